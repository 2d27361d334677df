"""Training with the rounding of 8 bits (QAT): TF-MOT's quantizers on inputs, weights and outputs of every matrix product inside TFBert.

In: a `Classifier` with trained weights, some of its training texts. Out: the same `Classifier` with fake-quantization in its graph, from which a converter
reads that and how each product is computed in int8. Refuses half precision (`tfpipeline.config`). Leaves LayerNorm, softmax, GELU, the embeddings' sum and
the pooling by mean in float: they are not matrix products, and rounding them is what breaks this kind of model.

`tfmot.quantization.keras.quantize_model` refuses a subclassed model. Its `QuantizeWrapperV2` would leave each product's input in float, and takes the kernel out of
what a checkpoint saves (it assigns a tensor to `layer.kernel`). So the wrappers are ours and the quantizers TF-MOT's.

| tensor | rounding | range |
|---|---|---|
| kernels | symmetric, a scale per output, in the graph only while training | of the kernel as it is: nothing to save, never stale |
| inputs and outputs of products | one range per tensor, 8 bits, asymmetric | the one that loses least of what the float model computes on training texts |

Ranges are calibrated once, before the first step, and then stand still while the weights learn to live with them. A moving average of minima and maxima, which is
TF-MOT's own rule, follows the outliers of BERT's feed-forward outputs, and then everything else shares a few of the 256 values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras import quantizers

Floats = npt.NDArray[np.float32]
# As it goes into a model's description, so that loading one puts the same rounding back.
DESCRIPTION = {"bits": 8, "products": "dense+attention", "kernels": "per_output_symmetric", "activations": "per_tensor_asymmetric"}
# Values kept of one tensor of one batch while calibrating; more change nothing that shows.
SAMPLES = 5_000


class KernelQuantizer(quantizers.LastValueQuantizer):
    """TF-MOT's quantizer for kernels, with the range taken from the kernel in every pass.

    The original stores the range of the last training step, so that an evaluation or export after that step rounds with a range that is one update old.
    """

    def __init__(self) -> None:
        super().__init__(num_bits=8, per_axis=True, symmetric=True, narrow_range=True)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {}

    def __call__(self, inputs: tf.Tensor, training: Any, weights: dict[str, Any], **kwargs: Any) -> tf.Tensor:
        del training, weights, kwargs
        largest = tf.stop_gradient(tf.maximum(tf.reduce_max(tf.abs(inputs), axis=0), 1e-8))
        return tf.quantization.fake_quant_with_min_max_vars_per_channel(
            inputs, -largest, largest, num_bits=self.num_bits, narrow_range=self.narrow_range
        )


class Rounding(tf_keras.layers.Layer):
    """One tensor rounded to 8 bits, between products. While `watch` is set, the tensor passes as it is and is shown to it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.quantizer = quantizers.MovingAverageQuantizer(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)
        self.watch: Callable[[Floats], None] | None = None
        self.range = self.quantizer.build(None, "range", self)
        self.built = True

    def set_range(self, low: float, high: float) -> None:
        """The smallest and largest value that can be told apart; 0 is always inside."""
        self.range["min_var"].assign(min(low, 0.0))
        self.range["max_var"].assign(max(high, 0.0, min(low, 0.0) + 1e-6))

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        if self.watch is not None:
            self.watch(inputs.numpy())
            return inputs
        # `training=False` means "with the range as it is"; see the module's docstring.
        return self.quantizer(inputs, False, weights=self.range)


class QuantizedDense(tf_keras.layers.Wrapper):
    """A Dense layer whose product can be computed in int8: kernel and output rounded, and its input, unless the caller has done that."""

    def __init__(self, layer: Any, *, rounds_input: bool, **kwargs: Any) -> None:
        super().__init__(layer, name=f"quantized_{layer.name}", **kwargs)
        self.input_rounding = Rounding(name="input_rounding") if rounds_input else None
        self.output_rounding = Rounding(name="output_rounding")
        self.kernel_quantizer = KernelQuantizer()
        self.built = True

    def call(self, inputs: tf.Tensor, training: Any = None) -> tf.Tensor:
        if self.input_rounding is not None:
            inputs = self.input_rounding(inputs)
        # Only while training: what is evaluated and stored is `snapped`. Of a rounding in the graph TFLite's converter makes a transposition whose axis of
        # scales is wrong ("mismatched quantized axes", TensorFlow 2.21); plain kernels it rounds itself, per output, to the very values they have.
        kernel = self.kernel_quantizer(self.layer.kernel, True, {}) if training else self.layer.kernel
        outputs = tf.tensordot(inputs, kernel, 1) + self.layer.bias
        # tanh of the pooler: the product is rounded before it, as a converter wants it.
        outputs = self.output_rounding(outputs)
        return outputs if self.layer.activation is None else self.layer.activation(outputs)


class QuantizedAttention(tf_keras.layers.Layer):
    """TFBert's self-attention of an encoder, with both of its products between roundings.

    Scores and mask are added in float: -10,000 for padding would otherwise take all 256 values for itself.
    """

    def __init__(self, attention: Any, **kwargs: Any) -> None:
        super().__init__(name=attention.name, **kwargs)
        self.num_attention_heads: int = attention.num_attention_heads
        self.attention_head_size: int = attention.attention_head_size
        self.all_head_size: int = attention.all_head_size
        self.query = QuantizedDense(attention.query, rounds_input=False)
        self.key = QuantizedDense(attention.key, rounds_input=False)
        self.value = QuantizedDense(attention.value, rounds_input=False)
        self.dropout = attention.dropout
        self.input_rounding = Rounding(name="input_rounding")
        self.score_rounding = Rounding(name="score_rounding")
        self.share_rounding = Rounding(name="share_rounding")
        self.built = True

    def call(self, hidden_states: tf.Tensor, attention_mask: tf.Tensor, training: bool = False, **unused: Any) -> tuple[tf.Tensor, ...]:
        """As TFBertSelfAttention, for an encoder: what only decoders use is not read."""
        del unused
        hidden = self.input_rounding(hidden_states)
        query, key, value = (self._heads(layer(hidden, training=training)) for layer in (self.query, self.key, self.value))
        scores = self.score_rounding(tf.matmul(query, key, transpose_b=True))
        # Rounded before dropout, which makes the shares it leaves larger than any that the range was made for.
        shares = self.share_rounding(tf.nn.softmax(scores * self.attention_head_size**-0.5 + attention_mask))
        shares = self.dropout(shares, training=training)
        mixed = tf.transpose(tf.matmul(shares, value), perm=[0, 2, 1, 3])
        return (tf.reshape(mixed, [tf.shape(hidden)[0], -1, self.all_head_size]),)

    def _heads(self, tensor: tf.Tensor) -> tf.Tensor:
        shaped = tf.reshape(tensor, [tf.shape(tensor)[0], -1, self.num_attention_heads, self.attention_head_size])
        return tf.transpose(shaped, perm=[0, 2, 1, 3])


def quantize(model: Any) -> None:
    """Puts the rounding into a model, ranges still unset (`calibrate`, or a checkpoint, sets them). Once: a model that has it is left as it is."""
    if getattr(model, "quantization", None):
        return
    for layer in model.bert.encoder.layer:
        layer.attention.self_attention = QuantizedAttention(layer.attention.self_attention)
        layer.attention.dense_output.dense = QuantizedDense(layer.attention.dense_output.dense, rounds_input=True)
        layer.intermediate.dense = QuantizedDense(layer.intermediate.dense, rounds_input=True)
        layer.bert_output.dense = QuantizedDense(layer.bert_output.dense, rounds_input=True)
    if model.pooling == "cls":
        model.bert.pooler.dense = QuantizedDense(model.bert.pooler.dense, rounds_input=True)
    model.classifier = QuantizedDense(model.classifier, rounds_input=True)
    model.quantization = dict(DESCRIPTION)


def roundings(model: Any) -> Iterator[Rounding]:
    """All of a quantized model's, in a fixed order."""
    for layer in model._flatten_layers():
        if isinstance(layer, Rounding):
            yield layer


def calibrate(model: Any, batches: Iterable[dict[str, tf.Tensor]]) -> None:
    """Sets every range from what the float model computes on these token batches. Eagerly: not to be called inside a graph."""
    seen: dict[int, list[Floats]] = {}
    extremes: dict[int, tuple[float, float]] = {}
    points = list(roundings(model))
    random = np.random.Generator(np.random.Philox(key=[0, 0]))

    def watcher(number: int) -> Callable[[Floats], None]:
        def watch(values: Floats) -> None:
            flat = values.reshape(-1)
            seen.setdefault(number, []).append(flat[random.integers(0, len(flat), SAMPLES)])
            low, high = extremes.get(number, (0.0, 0.0))
            extremes[number] = (min(low, float(flat.min())), max(high, float(flat.max())))

        return watch

    for number, point in enumerate(points):
        point.watch = watcher(number)
    try:
        for tokens in batches:
            model(tokens, training=False)
    finally:
        for point in points:
            point.watch = None
    for number, point in enumerate(points):
        point.set_range(*best_range(np.concatenate(seen[number]), *extremes[number]))


def best_range(values: Floats, low: float, high: float) -> tuple[float, float]:
    """The range whose 256 values are nearest to these, in the mean square: clipping a few outliers against rounding all others.

    Args:
        values: a fair sample of the tensor's.
        low: the least of all values ever seen, not above 0.
        high: the greatest, not below 0. Shares of both ends between a hundredth and the whole are tried.
    """
    if low == high:
        return low, low + 1e-6
    shares = np.geomspace(0.01, 1.0, 40)
    best, best_error = (low, high), np.inf
    for _ in range(2):  # one end after the other, twice: they hardly depend on each other
        for end in (0, 1):
            for share in shares:
                candidate = (low * share, best[1]) if end == 0 else (best[0], high * share)
                error = _rounding_error(values, *candidate)
                if error < best_error:
                    best, best_error = candidate, error
    return best


def _rounding_error(values: Floats, low: float, high: float) -> float:
    scale = (high - low) / 255.0
    if scale <= 0.0:
        return np.inf
    zero = round(-low / scale)
    rounded = (np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale
    return float(np.mean(np.square(values - rounded)))


@contextlib.contextmanager
def snapped(model: Any) -> Iterator[None]:
    """Inside, the kernels are what their rounding makes of them: stored so, a conversion of the plain weights lands on the same 255 values."""
    if not getattr(model, "quantization", None):
        yield
        return
    kernels = [layer.layer.kernel for layer in model._flatten_layers() if isinstance(layer, QuantizedDense)]
    kept = [kernel.numpy() for kernel in kernels]
    quantizer = KernelQuantizer()
    for kernel in kernels:
        kernel.assign(quantizer(kernel.read_value(), False, {}))
    try:
        yield
    finally:
        for kernel, value in zip(kernels, kept, strict=True):
            kernel.assign(value)
