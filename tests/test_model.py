"""One step: with everything off it is stock Keras' step; each feature changes what it should."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from sklearn.metrics import f1_score

from tfpipeline.backbone import Backbone
from tfpipeline.config import ModelConfig, TrainConfig
from tfpipeline.model import Classifier, MacroF1, build
from tfpipeline.optimizer import make_optimizer

ARCHITECTURE = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 32, "type_vocab_size": 2,
}  # fmt: skip
BACKBONE = Backbone("test", ARCHITECTURE, True, None, None, "")
OFF = ModelConfig(dropout=0.0, clip_norm=0.0, pooling="cls")
PLAIN = TrainConfig(
    optimizer="adam", schedule="constant", warmup_fraction=0.0, learning_rate=1e-3, sparse_embedding_updates=False, weight_decay=0.0
)
ROWS, LENGTH, CLASSES = 6, 8, 3


def _batch(rows: int = ROWS, seed: int = 0, task: str = "single_label") -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
    random = np.random.default_rng(seed)
    lengths = random.integers(3, LENGTH + 1, rows)
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    ids = random.integers(1, 50, (rows, LENGTH)).astype(np.int32) * mask
    targets = (
        random.integers(0, CLASSES, rows).astype(np.int32)
        if task == "single_label"
        else random.integers(0, 2, (rows, CLASSES)).astype(np.float32)
    )
    weights = random.uniform(0.5, 1.5, rows).astype(np.float32)
    tokens = {"input_ids": tf.constant(ids), "attention_mask": tf.constant(mask), "token_type_ids": tf.zeros_like(ids)}
    return tokens, tf.constant(targets), tf.constant(weights)


def _model(
    settings: ModelConfig = OFF,
    train: TrainConfig = PLAIN,
    *,
    sparse: bool = False,
    task: str = "single_label",
    seed: int = 1,
    steps: int = 10,
) -> Classifier:
    model = build(BACKBONE, settings, vocabulary_size=50, labels=("a", "b", "c"), task=task, seed=seed)
    model.prepare_training(settings, sparse_embeddings=sparse, seed=seed)
    optimizer: Any = make_optimizer(train, steps, model.rate_multipliers(train.layer_decay), ema_decay=settings.ema_decay)
    optimizer.build(model.trainable_variables)
    if tf_keras.mixed_precision.global_policy().name == "mixed_float16":
        optimizer = tf_keras.mixed_precision.LossScaleOptimizer(optimizer)
    model.compile_for_training(optimizer)
    return model


def _network(task: str = "single_label") -> Classifier:
    """The same weights, without anything of ours around them."""
    model = build(BACKBONE, OFF, vocabulary_size=50, labels=("a", "b", "c"), task=task, seed=1)
    model.prepare_training(OFF, sparse_embeddings=False, seed=1)
    return model


def _fit(model: Classifier, steps: int = 3, task: str = "single_label", rows: int = ROWS) -> list[float]:
    losses: list[float] = []
    keep = tf_keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: losses.append(float(logs["batch_loss"])))
    data = tf.data.Dataset.range(steps).map(lambda i: i)
    del data
    batches = [_batch(rows, seed, task) for seed in range(steps)]
    stacked = tf.nest.map_structure(lambda *parts: tf.stack(parts), *batches)
    model.fit(tf.data.Dataset.from_tensor_slices(stacked), verbose=0, callbacks=[keep])
    return losses


def _weights(model: tf_keras.Model) -> list[np.ndarray]:
    return [variable.numpy().copy() for variable in model.trainable_variables]


class _Stock(tf_keras.Model):
    """Keras' own train_step around the same network."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def call(self, tokens: Any, training: bool = False) -> tf.Tensor:
        return self.network(tokens, training=training).logits


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_switched_off_our_step_is_stock_keras_number_for_number(task: str) -> None:
    ours, twin = _model(task=task), _network(task)
    for a, b in zip(_weights(ours), _weights(twin), strict=True):
        np.testing.assert_array_equal(a, b)
    losses = _fit(ours, 4, task)
    stock = _Stock(twin)
    loss = (
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if task == "single_label"
        else tf_keras.losses.BinaryCrossentropy(from_logits=True)
    )
    stock.compile(optimizer=tf_keras.optimizers.Adam(1e-3, epsilon=1e-6, jit_compile=False), loss=loss)
    theirs = [stock.train_on_batch(*_batch(ROWS, seed, task)) for seed in range(4)]
    np.testing.assert_allclose(losses, theirs, rtol=2e-6)
    for variable, a, b in zip(ours.trainable_variables, _weights(ours), _weights(twin), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=variable.name)


def test_our_decay_is_keras_adamw_without_biases_and_layer_norm() -> None:
    train = replace(PLAIN, optimizer="adamw", weight_decay=0.1)
    ours, twin = _model(train=train), _network()
    _fit(ours, 3)
    stock = _Stock(twin)
    optimizer = tf_keras.optimizers.AdamW(1e-3, weight_decay=0.1, epsilon=1e-6, jit_compile=False)
    optimizer.exclude_from_weight_decay(var_list=[v for v in twin.trainable_variables if len(v.shape) == 1])
    stock.compile(optimizer=optimizer, loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for seed in range(3):
        stock.train_on_batch(*_batch(ROWS, seed))
    for a, b in zip(_weights(ours), _weights(twin), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def _changed(settings: ModelConfig = OFF, train: TrainConfig = PLAIN, **more: Any) -> float:
    """How far the weights are from those of the plain step after three steps."""
    plain, other = _model(), _model(settings, train, **more)
    _fit(plain)
    _fit(other)
    return max(float(np.abs(a - b).max()) for a, b in zip(_weights(plain), _weights(other), strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        replace(OFF, label_smoothing=0.2),
        replace(OFF, fgm_epsilon=0.5),
        replace(OFF, r_drop_alpha=1.0, dropout=0.2),
        replace(OFF, dropout=0.2),
        replace(OFF, pooling="mean"),
    ],
    ids=["smoothing", "fgm", "r-drop", "dropout", "mean pooling"],
)
def test_a_feature_changes_the_step(settings: ModelConfig) -> None:
    if settings.pooling == "mean":
        assert "pooler" in " ".join(v.name for v in _model().trainable_variables)
        assert "pooler" not in " ".join(v.name for v in _model(settings).trainable_variables)
    else:
        assert _changed(settings) > 1e-4


@pytest.mark.parametrize("rows", [6, 7])
@pytest.mark.parametrize("sparse", [False, True])
def test_accumulating_slices_equals_the_whole_batch(rows: int, sparse: bool) -> None:
    whole, sliced = _model(sparse=sparse), _model(replace(OFF, accumulation_steps=3), sparse=sparse)
    np.testing.assert_allclose(_fit(whole, rows=rows), _fit(sliced, rows=rows), rtol=1e-5)
    for a, b in zip(_weights(whole), _weights(sliced), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_more_slices_than_rows_is_no_error() -> None:
    whole, sliced = _model(), _model(replace(OFF, accumulation_steps=8))
    np.testing.assert_allclose(_fit(whole, rows=3), _fit(sliced, rows=3), rtol=1e-5)


def test_gradients_are_clipped_to_the_global_norm() -> None:
    """With SGD without momentum's history the first step is rate x gradient, so its length is the norm."""
    train = replace(PLAIN, optimizer="sgd", learning_rate=1.0)
    for limit in (0.05, 0.01):
        model = _model(replace(OFF, clip_norm=limit), train)
        before = _weights(model)
        _fit(model, 1)
        moved = np.sqrt(sum(float(np.square(a - b).sum()) for a, b in zip(before, _weights(model), strict=True)))
        assert moved == pytest.approx(limit, rel=1e-3)


def test_a_word_that_stands_twice_counts_once_in_the_norm() -> None:
    dense, sparse = _model(replace(OFF, clip_norm=0.01)), _model(replace(OFF, clip_norm=0.01), sparse=True)
    _fit(dense, 1)
    _fit(sparse, 1)
    for a, b in zip(_weights(dense), _weights(sparse), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_row_weights_steer_the_loss() -> None:
    tokens, targets, _ = _batch()
    model = _model()
    only_first = tf.constant([6.0, 0, 0, 0, 0, 0])
    losses = {}
    for name, (t, y, w) in {
        "weighted": (tokens, targets, only_first),
        "alone": ({k: v[:1] for k, v in tokens.items()}, targets[:1], tf.ones(1)),
    }.items():
        losses[name] = float(model.test_step((t, y, w))["loss"])
        model.reset_metrics()
    assert losses["weighted"] == pytest.approx(losses["alone"], rel=1e-5)


@pytest.mark.parametrize(("optimizer"), ["adamw", "adam", "sgd", "adafactor", "lion"])
def test_every_optimizer_learns_a_batch_by_heart(optimizer: str) -> None:
    rate = {"sgd": 0.05, "lion": 1e-3, "adafactor": 0.05}.get(optimizer, 3e-3)
    model = _model(
        replace(OFF, clip_norm=1.0), replace(PLAIN, optimizer=optimizer, learning_rate=rate), sparse=optimizer.startswith("adam")
    )
    batch = _batch()
    step = tf.function(model.train_step)
    first = float(step(batch)["batch_loss"])
    for _ in range(60):
        last = float(step(batch)["batch_loss"])
    assert last < 0.7 * first


def test_layers_learn_at_decaying_rates() -> None:
    model = _model()
    rates = {variable.name.split("classifier_")[-1]: rate for variable, rate in model.rate_multipliers(0.5)}
    by_part = {part: {rate for name, rate in rates.items() if part in name} for part in ("embeddings", "layer_._0", "layer_._1", "pooler")}
    assert by_part == {"embeddings": {0.125}, "layer_._0": {0.25}, "layer_._1": {0.5}, "pooler": {1.0}}
    assert {rate for variable, rate in model.rate_multipliers(0.5) if variable is model.classifier.kernel} == {1.0}


def test_a_lower_rate_moves_a_layer_less() -> None:
    """Adam's first step is the rate itself, whatever the gradient."""
    model = _model(train=replace(PLAIN, layer_decay=0.5))
    before = _weights(model)
    multipliers = [rate for _, rate in model.rate_multipliers(0.5)]
    _fit(model, 1)
    for old, new, rate in zip(before, _weights(model), multipliers, strict=True):
        assert np.abs(new - old).max() <= 1e-3 * rate * 1.001 + 1e-7


def test_frozen_parts_stay() -> None:
    model = _model(replace(OFF, freeze_embeddings=True, freeze_layers=1))
    frozen = [*model.bert.embeddings.variables, *model.bert.encoder.layer[0].variables]
    before = [variable.numpy() for variable in frozen]
    moving = model.bert.encoder.layer[1].attention.self_attention.query.kernel
    old = moving.numpy()
    _fit(model)
    for variable, value in zip(frozen, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert np.abs(moving.numpy() - old).max() > 1e-5


def test_averaged_weights_are_between_and_leave_no_trace() -> None:
    model = _model(replace(OFF, ema_decay=0.5))
    start = model.classifier.kernel.numpy()
    _fit(model, 1)
    after = model.classifier.kernel.numpy()
    with model.averaged_weights():
        np.testing.assert_allclose(model.classifier.kernel.numpy(), (start + after) / 2, atol=1e-7)
    np.testing.assert_array_equal(model.classifier.kernel.numpy(), after)


def test_mean_pooling_does_not_see_padding() -> None:
    model = _model(replace(OFF, pooling="mean"))
    tokens, _, _ = _batch()
    longer = {name: tf.pad(value, [[0, 0], [0, 4]]) for name, value in tokens.items()}
    np.testing.assert_allclose(model(tokens).logits, model(longer).logits, atol=1e-5)


def test_dropout_is_a_function_of_seed_and_step() -> None:
    settings = replace(OFF, dropout=0.3)
    first, second = _model(settings), _model(settings)
    assert _fit(first) == _fit(second)
    third = _model(settings)
    third.randomness.state.assign([99, 0])
    assert _fit(third, 1) != _fit(_model(settings), 1)
    tokens = _batch()[0]
    model = _model(settings)
    one = model(tokens, training=True).logits.numpy()
    np.testing.assert_array_equal(one, model(tokens, training=True).logits.numpy())
    model.randomness.advance()
    assert np.abs(one - model(tokens, training=True).logits.numpy()).max() > 1e-4


def test_dropout_keeps_the_mean_and_drops_the_share() -> None:
    model = _model(replace(OFF, dropout=0.3))
    dropped = model.dropout(tf.ones([400, 100]), training=True).numpy()
    assert (dropped == 0).mean() == pytest.approx(0.3, abs=0.01)
    assert dropped.mean() == pytest.approx(1.0, abs=0.02)


@pytest.fixture
def policy(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    tf_keras.mixed_precision.set_global_policy(request.param)
    yield request.param
    tf_keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"], indirect=True)
def test_half_precision_stays_near_the_full_one(policy: str) -> None:
    half = _model(sparse=True)
    losses = _fit(half)
    assert all(variable.dtype == tf.float32 for variable in half.trainable_variables)
    tf_keras.mixed_precision.set_global_policy("float32")
    np.testing.assert_allclose(losses, _fit(_model(sparse=True)), rtol=0.05)


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_with_loss_scaling_a_step_with_infinite_gradients_is_skipped(policy: str) -> None:
    model = _model()
    before = _weights(model)
    tokens, targets, weights = _batch()
    scale = float(model.optimizer.loss_scale)
    model.train_step((tokens, targets, weights * 1e36))
    for old, new in zip(before, _weights(model), strict=True):
        np.testing.assert_array_equal(old, new)
    assert float(model.optimizer.loss_scale) == scale / 2


def test_macro_f1_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 4, 200), random.integers(0, 3, 200)
    metric = MacroF1(4)
    for part in np.array_split(np.arange(200), 7):
        metric.update_state(tf.one_hot(truth[part], 4), tf.one_hot(predicted[part], 4))
    assert float(metric.result()) == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0), rel=1e-6)
    metric.reset_state()
    assert float(metric.result()) == 0.0


MIRRORED = """
import sys
import tfpipeline
import tensorflow as tf
devices = int(sys.argv[1])
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * devices)
from dataclasses import replace
from tests.test_model import OFF, _batch, _model
strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)]) if devices > 1 else tf.distribute.get_strategy()
with strategy.scope():
    model = _model(replace(OFF, clip_norm=0.05, ema_decay=0.9), sparse=True)
for seed in range(3):
    model.fit(tf.data.Dataset.from_tensors(_batch(7, seed)), verbose=0)
print("RESULT", *[repr(float(tf.reduce_sum(tf.abs(v)))) for v in model.trainable_variables])
"""


def test_two_replicas_take_the_step_of_one() -> None:
    """The same global batch on one device and on two: gradients are summed before they are clipped, so the weights agree."""
    import subprocess
    import sys
    from pathlib import Path

    results = []
    for devices in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", MIRRORED, devices],
            capture_output=True,
            text=True,
            timeout=180,
            cwd=Path(__file__).parents[1],
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results.append([float(x) for x in next(line for line in done.stdout.splitlines() if line.startswith("RESULT")).split()[1:]])
    # 1e-9: sums that are 0 but for float32's rounding, as those of the biases of keys, have no digits to compare
    np.testing.assert_allclose(results[0], results[1], rtol=2e-5, atol=1e-9)
