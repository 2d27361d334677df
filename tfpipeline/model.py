"""Token ids to logits: `TFBertForSequenceClassification` with our own `train_step` and `test_step`, driven by `model.fit`.

In: `(tokens, targets, weights)` from `tfpipeline.batches`; `tokens` as `tfpipeline.text` gives them; `targets` int32 `[batch]` class numbers, or
float32 `[batch, classes]` zeros and ones for multi-label; `weights` float32 `[batch]`. Out: logits float32 `[batch, classes]`.

One step is: the teacher's answers, forward, loss, backward (in `accumulation_steps` slices of the batch), sum over replicas, clip by global norm,
optimizer, masks of what was pruned. Every feature is off by default, and with all of them off the step is stock Keras' number for number (a test
compares them).

The randomness of a step (dropout) is a function of seed, step, layer, slice and replica, never of hidden generator state: that is what makes a
resumed run bit-equal to an undisturbed one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras
from safetensors import SafetensorError
from transformers import BertConfig, TFBertForSequenceClassification
from transformers.modeling_tf_outputs import TFSequenceClassifierOutput
from transformers.modeling_tf_utils import unpack_inputs

from tfpipeline.backbone import Backbone
from tfpipeline.config import ModelConfig
from tfpipeline.errors import BackboneError
from tfpipeline.optimizer import unique_rows


class Randomness(tf.Module):
    """Seeds for dropout: `[seed, step]` in a variable that goes into checkpoints; everything else is known while tracing."""

    def __init__(self, seed: int) -> None:
        super().__init__(name="randomness")
        self.state = tf.Variable([seed, 0], dtype=tf.int64, trainable=False, name="seed_and_step")
        self.pass_number = 0  # which forward pass of the step is being traced

    def seed(self, layer: int) -> tf.Tensor:
        """int64 `[2]`, different for each layer, pass and replica."""
        replica = 0
        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            replica = context.replica_id_in_sync_group
        place = (self.pass_number * 1009 + layer) * 65537
        return self.state * tf.constant([1, 1], tf.int64) + tf.stack([tf.cast(place, tf.int64) + tf.cast(replica, tf.int64), 0])

    def advance(self) -> None:
        """To the next step."""
        self.state.assign_add([0, 1])


class StatelessDropout(tf_keras.layers.Layer):
    """`tf_keras.layers.Dropout` whose mask follows from the step number instead of a generator."""

    def __init__(self, rate: float, number: int, randomness: Randomness, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self._number = number
        self._seed = randomness.seed  # a bound method: Keras would count the variable itself among the model's weights

    def call(self, inputs: tf.Tensor, training: Any = None) -> tf.Tensor:
        if not training or self.rate == 0.0:
            return inputs
        return tf.nn.experimental.stateless_dropout(inputs, rate=self.rate, seed=self._seed(self._number), rng_alg="philox")


class MacroF1(tf_keras.metrics.Metric):
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN); a class without any positive, true or predicted, counts 0 as in scikit-learn."""

    def __init__(self, classes: int, **kwargs: Any) -> None:
        super().__init__(name="macro_f1", **kwargs)
        self.counts = self.add_weight(name="counts", shape=(3, classes), initializer="zeros")  # TP, predicted, true

    def update_state(self, truth: tf.Tensor, predicted: tf.Tensor, sample_weight: Any = None) -> None:
        """Both float32 `[batch, classes]`, zeros and ones."""
        del sample_weight
        self.counts.assign_add(tf.stack([tf.reduce_sum(truth * predicted, 0), tf.reduce_sum(predicted, 0), tf.reduce_sum(truth, 0)]))

    def reset_state(self) -> None:
        """Keras would assign a scalar 0."""
        self.counts.assign(tf.zeros_like(self.counts))

    def result(self) -> tf.Tensor:
        """float32 scalar in [0, 1]."""
        return tf.reduce_mean(tf.math.divide_no_nan(2.0 * self.counts[0], self.counts[1] + self.counts[2]))


class Classifier(TFBertForSequenceClassification):
    """See the module's docstring. Build one with `build`, not by hand."""

    def __init__(self, config: BertConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        self.pooling: str = getattr(config, "pooling", "cls")
        self.task: str = getattr(config, "task", "single_label")
        self.settings = ModelConfig()
        self.sparse_embeddings = False
        self.sparsity: Any = None  # of `tfpipeline.techniques.pruning`
        self.distillation: Any = None  # of `tfpipeline.techniques.distillation`
        self.quantization: dict[str, Any] | None = None  # what `tfpipeline.techniques.quantization` has put in
        self.randomness = Randomness(getattr(config, "seed", 0))
        self._replace_dropout()

    def _replace_dropout(self) -> None:
        number = 0
        for layer in list(self._flatten_layers()):
            for name, value in list(vars(layer).items()):
                if isinstance(value, tf_keras.layers.Dropout):
                    setattr(layer, name, StatelessDropout(value.rate, number, self.randomness, name=f"stateless_dropout_{number}"))
                    number += 1

    @unpack_inputs
    def call(  # type: ignore[no-untyped-def]
        self,
        input_ids=None,
        attention_mask=None,
        token_type_ids=None,
        position_ids=None,
        head_mask=None,
        inputs_embeds=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        labels=None,
        training=False,
    ):
        """As in the parent, with the choice of pooling. `labels` are not taken: the loss is `train_step`'s business."""
        outputs = self.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            training=training,
        )
        if self.pooling == "mean":
            hidden = outputs.last_hidden_state
            mask = tf.ones(tf.shape(hidden)[:2], hidden.dtype) if attention_mask is None else tf.cast(attention_mask, hidden.dtype)
            # Divided before it is multiplied: the sum over 512 positions would lose digits in half precision.
            share = mask / tf.reduce_sum(mask, axis=1, keepdims=True)
            pooled = tf.squeeze(tf.matmul(share[:, tf.newaxis, :], hidden), axis=1)
        else:
            pooled = outputs.pooler_output
        logits = self.classifier(self.dropout(pooled, training=training))
        return TFSequenceClassifierOutput(
            loss=None, logits=tf.cast(logits, tf.float32), hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def prepare_training(
        self, settings: ModelConfig, *, sparse_embeddings: bool, seed: int, sparsity: Any = None, distillation: Any = None
    ) -> None:
        """Sets what one step does; call it before `compile` and before the optimizer is made (freezing decides what it holds).

        Args:
            settings: of the model.
            sparse_embeddings: the gradient of the word embeddings stays row-sparse.
            seed: of dropout.
            sparsity: has `gradients`, `after_step` and `apply`; None: no weight is held at zero.
            distillation: has `split`, `answers` and `row_loss`; None: no teacher.
        """
        self.settings = settings
        self.sparse_embeddings = sparse_embeddings
        self.sparsity, self.distillation = sparsity, distillation
        self.randomness.state.assign([seed, 0])
        layers = self.bert.encoder.layer
        self.bert.embeddings.trainable = not settings.freeze_embeddings
        for number, layer in enumerate(layers):
            layer.trainable = number >= settings.freeze_layers
        if self.bert.pooler is not None:
            self.bert.pooler.trainable = self.pooling == "cls"  # with `mean` nothing reads it

    def compile_for_training(self, optimizer: Any) -> None:
        """Keras' own `compile` (the parent's would add a loss of its own), and the metrics of both steps."""
        tf_keras.Model.compile(self, optimizer=optimizer)
        self.distribute_reduction_method = "first"  # each replica returns numbers of all of them; Keras would add those up
        self.loss_metric = tf_keras.metrics.Mean(name="loss")
        self.accuracy_metric = tf_keras.metrics.Mean(name="accuracy")
        self.f1_metric = MacroF1(self.config.num_labels)

    @property
    def metrics(self) -> list[Any]:
        """What Keras resets at the start of each epoch."""
        return [self.loss_metric, self.accuracy_metric, self.f1_metric]

    # Plain Python over tensors. AutoGraph would parse the sources of transformers and Keras for that: seconds in each process that trains.
    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def train_step(self, data: Any) -> dict[str, Any]:
        """One optimizer step on one batch; see the module's docstring for its parts."""
        tokens, targets, weights = data
        answers: Any = {}
        if self.distillation is not None:
            tokens, of_teacher = self.distillation.split(tokens)
            answers = self.distillation.answers(of_teacher)
        rows = tf.shape(targets)[0]
        # The mean is over the rows of all replicas, which need not hold equally many: Keras sums gradients over replicas.
        all_rows = _sum_over_replicas(tf.cast(rows, tf.float32))
        slices = self.settings.accumulation_steps
        total: list[Any] | None = None
        losses, outputs = [], []
        for number in range(slices):
            if slices == 1:
                part = (tokens, targets, weights, answers)
            else:
                first, last = rows * number // slices, rows * (number + 1) // slices
                part = tf.nest.map_structure(lambda tensor, a=first, b=last: tensor[a:b], (tokens, targets, weights, answers))
            loss, logits, gradients = self._gradients(*part, share=1.0 / all_rows, number=number)
            losses.append(loss)
            outputs.append(logits)
            total = gradients if total is None else [_add(a, b) for a, b in zip(total, gradients, strict=True)]
        assert total is not None
        self._apply(total)
        if self.sparsity is not None:
            self.sparsity.after_step(self.optimizer.iterations)
        self.randomness.advance()
        batch_loss = _sum_over_replicas(tf.add_n(losses))
        # Rows that only the teacher labels have no target to be right about.
        labelled = tf.cast(weights > 0.0, tf.float32) if self.distillation is not None else None
        self._update_metrics(batch_loss, targets, tf.concat(outputs, axis=0), labelled)
        return {"loss": self.loss_metric.result(), "accuracy": self.accuracy_metric.result(), "batch_loss": batch_loss}

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def test_step(self, data: Any) -> dict[str, Any]:
        """Loss without smoothing, accuracy and macro F1 of one batch."""
        tokens, targets, weights = data
        rows = tf.shape(targets)[0]
        logits = self(_filled(tokens, rows), training=False).logits[:rows]
        loss = tf.reduce_sum(self.row_loss(targets, logits, 0.0) * weights) / tf.cast(tf.maximum(rows, 1), tf.float32)
        self._update_metrics(loss, targets, logits)
        return {metric.name: metric.result() for metric in self.metrics}

    def _update_metrics(self, loss: tf.Tensor, targets: tf.Tensor, logits: tf.Tensor, labelled: tf.Tensor | None = None) -> None:
        classes = self.config.num_labels
        if self.task == "multi_label":
            truth, predicted = targets, tf.cast(logits > 0.0, tf.float32)
        else:
            truth, predicted = tf.one_hot(targets, classes), tf.one_hot(tf.argmax(logits, axis=1), classes)
        self.loss_metric.update_state(loss, sample_weight=tf.cast(tf.shape(targets)[0], tf.float32))
        self.accuracy_metric.update_state(tf.reduce_all(truth == predicted, axis=1), sample_weight=labelled)
        self.f1_metric.update_state(truth, predicted)

    def row_loss(self, targets: tf.Tensor, logits: tf.Tensor, smoothing: float) -> tf.Tensor:
        """Cross-entropy of each row, float32 `[batch]`: softmax for one label, the mean of a sigmoid per label for several."""
        if self.task == "multi_label":
            smooth = targets * (1.0 - smoothing) + 0.5 * smoothing
            return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=smooth, logits=logits), axis=1)
        if not smoothing:
            return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets, logits=logits)
        classes = self.config.num_labels
        smooth = tf.one_hot(targets, classes) * (1.0 - smoothing) + smoothing / classes
        return tf.nn.softmax_cross_entropy_with_logits(labels=smooth, logits=logits)

    def _gradients(self, tokens: Any, targets: Any, weights: Any, answers: Any, *, share: Any, number: int) -> tuple[Any, Any, list[Any]]:
        """Loss (this slice's share of the batch mean), logits, and gradients of the trainable variables."""
        settings = self.settings
        variables = self.trainable_variables
        table = self.bert.embeddings.weight
        self.randomness.pass_number = 2 * number
        distillation = self.distillation
        count = tf.shape(targets)[0]
        tokens, targets, weights, answers = (_filled(part, count) for part in (tokens, targets, weights, answers))
        mask = tokens["attention_mask"]

        def forward(inputs: dict[str, Any]) -> tuple[tf.Tensor, Any]:
            outputs = self(inputs, training=True, output_hidden_states=distillation is not None and distillation.wants_hidden)
            return outputs.logits, outputs.hidden_states or ()

        def loss_of(logits: tf.Tensor, hidden: Any) -> tf.Tensor:
            rows = self.row_loss(targets, logits, settings.label_smoothing) * weights
            if distillation is not None:
                rows = distillation.hard_weight * rows + distillation.row_loss(logits, hidden, mask, answers)
            return tf.reduce_sum(rows[:count]) * share

        def scaled(loss: tf.Tensor) -> tf.Tensor:
            return self.optimizer.get_scaled_loss(loss) if hasattr(self.optimizer, "get_scaled_loss") else loss

        if settings.fgm_epsilon:
            with tf.GradientTape() as tape:
                embedded = tf.gather(table, tokens["input_ids"])
                tape.watch(embedded)
                logits, hidden = forward(_with_embeddings(tokens, embedded))
                loss = loss_of(logits, hidden)
                target = scaled(loss)
            *gradients, slope = tape.gradient(target, [*variables, embedded])
            # Per text, over all its tokens: Miyato et al., arXiv:1605.07725, section 3.
            slope = tf.cast(slope, tf.float32)
            norm = tf.sqrt(tf.reduce_sum(tf.square(slope), axis=[1, 2], keepdims=True)) + 1e-12
            step = tf.stop_gradient(settings.fgm_epsilon * slope / norm)
            self.randomness.pass_number = 2 * number + 1
            with tf.GradientTape() as tape:
                moved = tf.gather(table, tokens["input_ids"]) + tf.cast(step, embedded.dtype)
                hard = scaled(loss_of(*forward(_with_embeddings(tokens, moved))))
            gradients = [_add(a, b) for a, b in zip(gradients, tape.gradient(hard, variables), strict=True)]
        elif settings.r_drop_alpha:
            twice = tf.nest.map_structure(lambda tensor: tf.concat([tensor, tensor], axis=0), tokens)
            with tf.GradientTape() as tape:
                both, hidden = forward(twice)
                logits, other = tf.split(both, 2)
                halves = [tf.split(state, 2) for state in hidden]
                loss = 0.5 * (loss_of(logits, [half[0] for half in halves]) + loss_of(other, [half[1] for half in halves]))
                apart = tf.reduce_sum(_symmetric_divergence(logits, other, self.task) * weights) * share
                target = scaled(loss + settings.r_drop_alpha * apart)
            gradients = tape.gradient(target, variables)
        else:
            with tf.GradientTape() as tape:
                logits, hidden = forward(tokens)
                loss = loss_of(logits, hidden)
                target = scaled(loss)
            gradients = tape.gradient(target, variables)
        gradients = [
            gradient if variable is table and self.sparse_embeddings else tf.convert_to_tensor(gradient)
            for gradient, variable in zip(gradients, variables, strict=True)
        ]
        return loss, logits[:count], gradients

    def _apply(self, gradients: list[Any]) -> None:
        variables = self.trainable_variables
        optimizer = self.optimizer
        if hasattr(optimizer, "get_unscaled_gradients"):
            gradients = optimizer.get_unscaled_gradients(gradients)
        if _replicas() > 1:
            gradients = [unique_rows(gradient) for gradient in gradients]  # all of it is sent to all
            inner: Any = getattr(optimizer, "inner_optimizer", optimizer)
            gradients = [gradient for gradient, _ in inner.aggregate_gradients(list(zip(gradients, variables, strict=True)))]
        gradients = [unique_rows(gradient) for gradient in gradients]
        if self.sparsity is not None:
            gradients = self.sparsity.gradients(gradients, variables)
        if self.settings.clip_norm:
            # After the sum over replicas: the norm is of the whole step, whatever the number of workers.
            gradients, _ = tf.clip_by_global_norm(gradients, self.settings.clip_norm)
        optimizer.apply_gradients(list(zip(gradients, variables, strict=True)), skip_gradients_aggregation=True)

    def rate_multipliers(self, layer_decay: float) -> list[tuple[Any, float]]:
        """Trainable variables with their share of the learning rate: 1 at the top, `layer_decay` less per layer below it."""
        depth = len(self.bert.encoder.layer)
        layer_of = {id(v): number + 1 for number, layer in enumerate(self.bert.encoder.layer) for v in layer.trainable_variables}
        layer_of |= {id(v): 0 for v in self.bert.embeddings.trainable_variables}
        return [(v, layer_decay ** (depth + 1 - layer_of.get(id(v), depth + 1))) for v in self.trainable_variables]

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside, the weights are their moving average (where `ema_decay` is on); afterwards they are what they were."""
        inner: Any = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if not getattr(inner, "use_ema", False):
            yield
            return
        variables = self.trainable_variables
        kept = [variable.numpy() for variable in variables]
        inner.load_averages(variables)
        if self.sparsity is not None:
            self.sparsity.apply()  # an average over steps before a weight was pruned is not zero
        try:
            yield
        finally:
            for variable, value in zip(variables, kept, strict=True):
                variable.assign(value)


def build(
    backbone: Backbone,
    settings: ModelConfig,
    *,
    vocabulary_size: int,
    labels: tuple[str, ...],
    task: str,
    seed: int,
    load_weights: bool = True,
) -> Classifier:
    """A `Classifier` with the backbone's weights (or random ones) and a new classification layer.

    Args:
        backbone: from `tfpipeline.backbone.find`, or of a trained model. Its `architecture` may hold `layer_shapes`; see `layer_shapes`.
        settings: pooling and dropout.
        vocabulary_size: rows of the embedding table; must be the backbone's own where it has weights.
        labels: class names in order.
        task: `single_label` or `multi_label`.
        seed: of the random weights.
        load_weights: False when a checkpoint will overwrite them anyway.

    Raises:
        BackboneError: the weights do not fit the architecture.
    """
    described = {key: value for key, value in backbone.architecture.items() if key not in ("architectures", "torch_dtype", "layer_shapes")}
    shapes = layer_shapes(backbone.architecture)
    config = BertConfig(**described)
    if backbone.weights is not None and config.vocab_size != vocabulary_size:
        raise BackboneError(
            f"backbone {backbone.name!r}: its embedding table has {config.vocab_size} rows but the vocabulary {vocabulary_size} word pieces. "
            "Use the vocabulary that came with the weights (leave text.vocabulary empty)."
        )
    config.vocab_size = vocabulary_size
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = settings.dropout
    config.pooling, config.task, config.seed = settings.pooling, task, seed
    tf_keras.utils.set_random_seed(seed)
    if backbone.weights is None or not load_weights:
        model = Classifier(config)
        model.build_in_name_scope()
        _narrow(model, shapes)
        return model
    try:
        # from_pretrained wants a folder; the file's own folder is the verified one.
        model = Classifier.from_pretrained(str(Path(backbone.weights).parent), config=config, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BackboneError(f"backbone {backbone.name!r}: {backbone.weights} cannot be loaded as BERT weights: {error}.") from error
    return model


def layer_shapes(architecture: dict[str, Any]) -> list[dict[str, int]]:
    """What each encoder layer is made of: `[{"heads": 12, "intermediate": 1536}, ...]`.

    Where the architecture has `layer_shapes` they are these (layers that lost heads or feed-forward columns), else all layers are alike. The width of a
    head is always `hidden_size / num_attention_heads`.

    Raises:
        BackboneError: they do not describe this many layers, or a layer with nothing in it, or more than it can hold.
    """
    layers, heads, inner = (int(architecture[key]) for key in ("num_hidden_layers", "num_attention_heads", "intermediate_size"))
    shapes: list[dict[str, int]] = architecture.get("layer_shapes") or [{"heads": heads, "intermediate": inner}] * layers
    fits = len(shapes) == layers and all(1 <= shape["heads"] <= heads and 1 <= shape["intermediate"] <= inner for shape in shapes)
    if not fits:
        raise BackboneError(
            f"layer_shapes must give each of {layers} layers 1 to {heads} heads and 1 to {inner} feed-forward columns; received {shapes}. "
            "The file that describes this model is damaged: make the variant again."
        )
    return shapes


def _narrow(model: Classifier, shapes: list[dict[str, int]]) -> None:
    """Puts smaller Dense layers where a layer has fewer heads or columns than the architecture's ordinary ones.

    After the model is built, because TFBert's own `build` takes every width from one config.
    """
    config = model.config
    head = config.hidden_size // config.num_attention_heads

    def dense(old: Any, units: int, inputs: int) -> Any:
        # Not the old layer's initializer: one instance gives the same values each time.
        initializer = tf_keras.initializers.TruncatedNormal(stddev=config.initializer_range)
        layer = tf_keras.layers.Dense(units, kernel_initializer=initializer, activation=old.activation, name=old.name)
        layer.build([None, None, inputs])
        return layer

    for layer, shape in zip(model.bert.encoder.layer, shapes, strict=True):
        attention, output = layer.attention.self_attention, layer.attention.dense_output
        if shape["heads"] != attention.num_attention_heads:
            width = shape["heads"] * head
            attention.num_attention_heads, attention.all_head_size = shape["heads"], width
            for name in ("query", "key", "value"):
                setattr(attention, name, dense(getattr(attention, name), width, config.hidden_size))
            output.dense = dense(output.dense, config.hidden_size, width)
        if shape["intermediate"] != config.intermediate_size:
            layer.intermediate.dense = dense(layer.intermediate.dense, shape["intermediate"], config.hidden_size)
            layer.bert_output.dense = dense(layer.bert_output.dense, config.hidden_size, shape["intermediate"])


def _replicas() -> int:
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def _filled(tensors: Any, rows: tf.Tensor) -> Any:
    """`never_empty` where it can happen while training: a replica of several may get no row of the last batch."""
    return never_empty(tensors, rows) if _replicas() > 1 else tensors


def never_empty(tensors: Any, rows: tf.Tensor) -> Any:
    """Where a batch has no row: one row of padding in each tensor, for TFBert's reshapes with -1 cannot tell the length of nothing.

    Whoever asks for it cuts it off again. Its mask is 1, so that nothing is divided by 0.
    """
    extra = tf.cast(tf.equal(rows, 0), tf.int32)
    padded = tf.nest.map_structure(lambda tensor: tf.pad(tensor, [[0, extra], *[[0, 0]] * (len(tensor.shape) - 1)]), tensors)
    if isinstance(padded, dict) and "attention_mask" in padded:
        padded["attention_mask"] = tf.where(tf.equal(rows, 0), tf.ones_like(padded["attention_mask"]), padded["attention_mask"])
    return padded


def _sum_over_replicas(value: tf.Tensor) -> tf.Tensor:
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def _with_embeddings(tokens: dict[str, Any], embedded: tf.Tensor) -> dict[str, Any]:
    return {**{key: value for key, value in tokens.items() if key != "input_ids"}, "inputs_embeds": embedded}


def _add(a: Any, b: Any) -> Any:
    """The sum of two gradients, sparse where both are."""
    if isinstance(a, tf.IndexedSlices) and isinstance(b, tf.IndexedSlices):
        return tf.IndexedSlices(tf.concat([a.values, b.values], 0), tf.concat([a.indices, b.indices], 0), a.dense_shape)
    return tf.convert_to_tensor(a) + tf.convert_to_tensor(b)


def _symmetric_divergence(a: tf.Tensor, b: tf.Tensor, task: str) -> tf.Tensor:
    """Mean of KL(a || b) and KL(b || a) of each row, float32 `[batch]` (arXiv:2106.14448, equation 2)."""
    if task == "multi_label":
        return 0.5 * tf.reduce_sum((tf.sigmoid(a) - tf.sigmoid(b)) * (a - b), axis=1)
    log_a, log_b = tf.nn.log_softmax(a), tf.nn.log_softmax(b)
    return 0.5 * tf.reduce_sum((tf.exp(log_a) - tf.exp(log_b)) * (log_a - log_b), axis=1)
