"""Pruning, rounding and teachers on one batch: what each of them changes in a step, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.test_model import ARCHITECTURE, BACKBONE, OFF, PLAIN, _batch
from tfpipeline.backbone import Backbone
from tfpipeline.config import CompressConfig, ModelConfig, TrainConfig
from tfpipeline.errors import ConfigError, TrainingError
from tfpipeline.model import Classifier, build
from tfpipeline.optimizer import make_optimizer
from tfpipeline.techniques import distillation, pruning, quantization, zeros
from tfpipeline.techniques.places import encoder_places

ADAM = replace(PLAIN, optimizer="adamw", weight_decay=0.01)


def _build(task: str = "single_label", seed: int = 1, **architecture: Any) -> Classifier:
    changed = {**ARCHITECTURE, **architecture}
    backbone = Backbone("test", changed, True, None, None, "")
    return build(backbone, OFF, vocabulary_size=50, labels=("a", "b", "c"), task=task, seed=seed)


def _ready(
    model: Classifier,
    *,
    settings: ModelConfig = OFF,
    train: TrainConfig = ADAM,
    sparsity: Any = None,
    teacher: Any = None,
    sparse: bool = True,
) -> Any:
    """The model ready for steps; returns its step as a graph."""
    model.prepare_training(settings, sparse_embeddings=sparse, seed=1, sparsity=sparsity, distillation=teacher)
    optimizer = make_optimizer(train, 100, model.rate_multipliers(1.0), ema_decay=settings.ema_decay)
    optimizer.build(model.trainable_variables)
    model.compile_for_training(optimizer)
    return tf.function(model.train_step)


def _zeros(model: Classifier) -> dict[str, float]:
    return dict(zeros.measure(model)["layers"])


# ---- pruning ----


def test_sparsity_grows_with_the_schedule_and_stays() -> None:
    model = _build()
    settings = CompressConfig(sparsity=0.75, sparsity_begin=0.1, sparsity_end=0.6)
    technique = pruning.Pruning(model, settings, 10)
    step = _ready(model, sparsity=technique)
    assert (technique.first_step, technique.last_step) == (1, 6)
    seen = []
    for number in range(10):
        step(_batch(seed=number))
        seen.append(min(_zeros(model).values()))
        assert technique.complete(number + 1) == (number + 1 >= 6)
    assert seen == sorted(seen)
    assert seen[0] == 0.0
    assert 0.4 < seen[2] < 0.74
    assert seen[5:] == [pytest.approx(0.75, abs=0.01)] * 5
    with technique.stripped():
        zeros.require(model, settings)


def test_only_the_named_layers_are_pruned_and_nothing_else() -> None:
    model = _build()
    technique = pruning.Pruning(model, CompressConfig(sparsity=0.5, sparsity_schedule="constant", sparsity_layers=("feed_forward",)), 10)
    step = _ready(model, sparsity=technique)
    for number in range(3):
        step(_batch(seed=number))
    found = _zeros(model)
    assert {name for name, share in found.items() if share > 0.45} == {name for name in found if "feed_forward" in name}
    assert len(found) == 12
    assert np.mean(model.classifier.kernel.numpy() == 0) == 0


def test_two_of_every_four_inputs_are_zero_in_every_group() -> None:
    model = _build()
    settings = CompressConfig(sparsity=0.5, sparsity_pattern="2:4", sparsity_begin=0.2)
    technique = pruning.Pruning(model, settings, 10)
    step = _ready(model, sparsity=technique)
    kernel = model.bert.encoder.layer[0].intermediate.dense.layer.kernel
    step(_batch())
    assert np.mean(kernel.numpy() == 0) == 0  # it begins with step 2
    before = kernel.numpy()
    for number in range(3):
        step(_batch(seed=number))
        groups = (kernel.numpy() == 0).reshape(4, 4, 32).sum(axis=1)
        assert (groups == 2).all()
    larger = np.abs(before).reshape(4, 4, 32)
    kept = (kernel.numpy() != 0).reshape(4, 4, 32)
    # A step moves a weight by 0.001 at most, so what is clearly larger is kept.
    assert (np.where(kept, larger, np.inf).min(axis=1) + 0.01 > np.where(kept, 0, larger).max(axis=1)).all()
    assert zeros.measure(model)["two_in_four"]
    zeros.require(model, settings)


def test_stripping_leaves_the_model_it_was_and_the_same_answers() -> None:
    model = _build()
    plain = {type(place.layer).__name__ for place in encoder_places(model)}
    technique = pruning.Pruning(model, CompressConfig(sparsity=0.5, sparsity_schedule="constant"), 10)
    step = _ready(model, sparsity=technique)
    step(_batch())
    tokens = _batch(seed=3)[0]
    wrapped = model(tokens).logits
    with technique.stripped():
        assert {type(place.layer).__name__ for place in encoder_places(model)} == plain == {"Dense"}
        np.testing.assert_array_equal(model(tokens).logits, wrapped)
    assert {type(place.layer).__name__ for place in encoder_places(model)} == {"Pruned"}
    step(_batch(seed=1))  # and it goes on


def test_the_average_of_a_pruned_weight_is_zero_too() -> None:
    model = _build()
    settings = CompressConfig(sparsity=0.5, sparsity_begin=0.3, sparsity_schedule="constant")
    technique = pruning.Pruning(model, settings, 10)
    step = _ready(model, settings=replace(OFF, ema_decay=0.9), sparsity=technique)
    for number in range(5):
        step(_batch(seed=number))
    trained = model.classifier.kernel.numpy()
    with model.averaged_weights():
        zeros.require(model, settings)
        assert np.abs(model.classifier.kernel.numpy() - trained).max() > 1e-6
    np.testing.assert_array_equal(model.classifier.kernel.numpy(), trained)


def test_too_few_zeros_and_zeros_in_the_wrong_places_are_errors() -> None:
    model = _build()
    with pytest.raises(
        TrainingError, match=r"^layer 0 attention query: 0\.0000 of its weights are zero; compress.sparsity asked for 0\.8\."
    ):
        zeros.require(model, CompressConfig(sparsity=0.8))
    for place in encoder_places(model):
        kernel = place.dense.kernel
        kernel.assign(tf.where(tf.range(kernel.shape[0])[:, tf.newaxis] < kernel.shape[0] // 2, 0.0, kernel + 1.0))
    zeros.require(model, CompressConfig(sparsity=0.5))
    with pytest.raises(TrainingError, match=r"^layer 0 attention query: has four consecutive inputs with fewer than two zeros"):
        zeros.require(model, CompressConfig(sparsity=0.5, sparsity_pattern="2:4"))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor", "lion"])
def test_zeros_of_a_sparse_start_stay_zeros_under_every_optimizer(optimizer: str) -> None:
    model = _build()
    for place in encoder_places(model):
        place.dense.kernel.assign(tf.where(tf.abs(place.dense.kernel) < 0.01, 0.0, place.dense.kernel))
    before = {place.name: place.dense.kernel.numpy() for place in encoder_places(model)}
    technique = zeros.technique(model, CompressConfig(), 10, started=True)
    assert isinstance(technique, zeros.KeptZeros)
    step = _ready(model, train=replace(ADAM, optimizer=optimizer, learning_rate=0.02), sparsity=technique)
    for number in range(4):
        step(_batch(seed=number))
    for place in encoder_places(model):
        np.testing.assert_array_equal(place.dense.kernel.numpy() == 0, before[place.name] == 0)
    assert any(np.abs(place.dense.kernel.numpy() - before[place.name]).max() > 1e-6 for place in encoder_places(model))


@pytest.mark.parametrize(
    ("settings", "started", "sparse", "kind"),
    [
        (CompressConfig(), True, False, "NoneType"),
        (CompressConfig(), True, True, "KeptZeros"),
        (CompressConfig(), False, True, "NoneType"),
        (CompressConfig(keep_sparsity=False), True, True, "NoneType"),
        (CompressConfig(sparsity=0.5), True, True, "Pruning"),
    ],
)
def test_which_technique_a_run_needs(settings: CompressConfig, started: bool, sparse: bool, kind: str) -> None:
    model = _build()
    if sparse:
        kernel = model.bert.encoder.layer[0].intermediate.dense.kernel
        kernel.assign(kernel * tf.cast(tf.range(kernel.shape[0]) % 2, tf.float32)[:, tf.newaxis])
    assert type(zeros.technique(model, settings, 10, started=started)).__name__ == kind


# ---- rounding ----


def _quantized(seed: int = 1) -> Classifier:
    model = _build(seed=seed)
    quantization.quantize(model)
    quantization.calibrate(model, [_batch(seed=number)[0] for number in range(3)])
    return model


def test_rounding_changes_little_and_leaves_256_values() -> None:
    plain, model = _build(), _quantized()
    tokens = _batch(seed=7)[0]
    np.testing.assert_allclose(model(tokens).logits, plain(tokens).logits, atol=0.02)
    assert np.abs(model(tokens).logits - plain(tokens).logits).max() > 0
    point = next(quantization.roundings(model))
    values = point(tf.random.stateless_normal([20_000], [1, 2], stddev=3.0)).numpy()
    assert 100 < len(np.unique(values)) <= 256


def test_every_product_of_the_encoder_lies_between_roundings() -> None:
    """Counted in the graph: what is multiplied comes from a rounding, through reshapes and transposes alone, or is a kernel."""
    model = _quantized()
    tokens = _batch(rows=1)[0]
    graph = tf.function(lambda **inputs: model(inputs, training=False).logits).get_concrete_function(
        **{name: tf.TensorSpec([1, 8], tf.int32, name=name) for name in tokens}
    )
    through = {"Reshape", "Transpose", "Identity", "ReadVariableOp"}

    def source(tensor: Any) -> str:
        operation = tensor.op
        while operation.type in through and operation.inputs:
            operation = operation.inputs[0].op
        return str(operation.type)

    products = [operation for operation in graph.graph.get_operations() if operation.type in ("MatMul", "BatchMatMulV2")]
    sources = [source(tensor) for operation in products for tensor in operation.inputs]
    assert len(products) == 2 * 8 + 2
    assert {kind for kind in sources if not kind.startswith("FakeQuant")} <= {"Placeholder"}  # a captured variable
    assert sources.count("Placeholder") == 2 * 6 + 2


def test_ranges_clip_what_is_rare_when_that_loses_less() -> None:
    """-5 and 200 were seen somewhere, but a fair sample of all values has none of them."""
    values = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    low, high = quantization.best_range(values, -5.0, 200.0)
    assert -5 <= low < -2.5
    assert 2.5 < high < 6
    wide = np.concatenate([values, np.linspace(0, 200, 2_000, dtype=np.float32)])
    assert quantization.best_range(wide, -5.0, 200.0)[1] > 150  # no longer rare
    assert quantization.best_range(np.zeros(5, np.float32), 0.0, 0.0)[1] > 0
    assert quantization.best_range(np.array([1.0, 2.0, 3.0], np.float32), 0.0, 3.0) == (0.0, pytest.approx(3.0, rel=0.2))


def test_training_makes_up_for_the_rounding_while_the_ranges_stand_still() -> None:
    model = _build()
    step = _ready(model, train=replace(ADAM, learning_rate=3e-3))
    for _ in range(30):
        step(_batch())
    quantization.quantize(model)
    quantization.calibrate(model, [_batch(seed=number)[0] for number in range(3)])
    step = _ready(model, train=replace(ADAM, learning_rate=1e-3), settings=replace(OFF, dropout=0.1, accumulation_steps=2))
    before = [variable.numpy() for point in quantization.roundings(model) for variable in point.non_trainable_variables]
    losses = [float(step(_batch())["batch_loss"]) for _ in range(40)]
    after = [variable.numpy() for point in quantization.roundings(model) for variable in point.non_trainable_variables]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert len(before) == 2 * (2 * 12 + 4)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_inside_snapped_the_kernels_are_what_their_rounding_makes_of_them() -> None:
    model = _quantized()
    tokens = _batch(seed=5)[0]
    kernel = model.bert.encoder.layer[0].intermediate.dense.layer.kernel
    before, answers = kernel.numpy(), model(tokens, training=True).logits.numpy()
    with quantization.snapped(model):
        scale = np.abs(kernel.numpy()).max(axis=0) / 127
        steps = kernel.numpy() / scale
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
        assert np.abs(kernel.numpy() - before).max() > 0
        np.testing.assert_allclose(model(tokens).logits, answers, atol=1e-5)
    np.testing.assert_array_equal(kernel.numpy(), before)


def test_a_quantized_model_keeps_the_zeros_it_started_with() -> None:
    model = _build()
    for place in encoder_places(model):
        place.dense.kernel.assign(tf.where(tf.abs(place.dense.kernel) < 0.02, 0.0, place.dense.kernel))
    quantization.quantize(model)
    quantization.calibrate(model, [_batch()[0]])
    before = _zeros(model)
    technique = zeros.technique(model, CompressConfig(quantize_aware=True), 10, started=True)
    step = _ready(model, sparsity=technique)
    for number in range(3):
        step(_batch(seed=number))
    assert _zeros(model) == before
    with quantization.snapped(model):
        assert all(found >= before[name] for name, found in _zeros(model).items())


def test_a_quantized_model_is_not_pruned() -> None:
    with pytest.raises(ConfigError, match=r"^compress.sparsity: the model that training starts from is already quantized\. Prune first"):
        pruning.Pruning(_quantized(), CompressConfig(sparsity=0.5), 10)


# ---- teachers ----


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [(3, 6, [(1, 2), (2, 4), (3, 6)]), (4, 6, [(1, 2), (2, 3), (3, 4), (4, 6)]), (2, 2, [(1, 1), (2, 2)]), (1, 6, [(1, 6)])],
)
def test_which_layer_learns_from_which(student: int, teacher: int, pairs: list[tuple[int, int]]) -> None:
    assert distillation.layer_pairs(student, teacher) == pairs


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_the_divergence_is_that_of_its_definition(task: str) -> None:
    random = np.random.default_rng(0)
    a, b, heat = random.normal(size=(5, 3)), random.normal(size=(5, 3)), 2.5

    def distribution(x: np.ndarray) -> np.ndarray:
        if task == "multi_label":
            p = 1 / (1 + np.exp(-x / heat))
            return np.stack([p, 1 - p])
        p = np.exp(x / heat)
        return p / p.sum(axis=1, keepdims=True)

    p, q = distribution(a), distribution(b)
    rows = p * np.log(p / q)
    expected = heat**2 * (rows.sum(axis=0).mean(axis=1) if task == "multi_label" else rows.sum(axis=1))
    found = distillation.soft_divergence(tf.constant(a, tf.float32), tf.constant(b, tf.float32), heat, task)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    same = distillation.soft_divergence(tf.constant(a, tf.float32), tf.constant(a, tf.float32), heat, task)
    np.testing.assert_allclose(same, np.zeros(5), atol=1e-5)


@pytest.mark.parametrize("slices", [1, 3])
def test_a_student_comes_nearer_to_its_teacher(slices: int) -> None:
    teacher, student = _build(num_hidden_layers=4, seed=5), _build()
    settings = CompressConfig(distill_weight=1.0, distill_hidden_weight=1.0)
    technique = distillation.Distillation(teacher, student, settings, own_tokens=False)
    step = _ready(student, train=replace(ADAM, learning_rate=3e-3), teacher=technique, settings=replace(OFF, accumulation_steps=slices))
    before = [variable.numpy() for variable in teacher.variables]
    losses = [float(step(_batch())["batch_loss"]) for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]
    for old, new in zip(before, teacher.variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())
    assert len(student.trainable_variables) < len(teacher.trainable_variables)  # the teacher is no part of the student


def test_slices_of_a_batch_learn_from_their_own_rows_of_the_teacher() -> None:
    settings = CompressConfig(distill_weight=0.7, distill_hidden_weight=0.5)
    found = []
    for slices in (1, 2):
        teacher, student = _build(seed=5), _build()
        technique = distillation.Distillation(teacher, student, settings, own_tokens=False)
        step = _ready(student, train=PLAIN, teacher=technique, settings=replace(OFF, accumulation_steps=slices), sparse=False)
        found.append([float(step(_batch(seed=number))["batch_loss"]) for number in range(3)])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


@pytest.mark.parametrize("slices", [1, 2])
def test_a_teacher_that_was_heard_before_says_the_same(slices: int) -> None:
    found = []
    for heard in (False, True):
        teacher, student = _build(seed=5), _build()
        technique = distillation.Distillation(teacher, student, CompressConfig(distill_weight=0.7), own_tokens=False, heard=heard)
        step = _ready(student, train=PLAIN, teacher=technique, settings=replace(OFF, accumulation_steps=slices))
        losses = []
        for number in range(3):
            tokens, targets, weights = _batch(seed=number)
            answers = {distillation.LOGITS: teacher(tokens, training=False).logits} if heard else {}
            losses.append(float(step(({**tokens, **answers}, targets, weights))["batch_loss"]))
        found.append(losses)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


@pytest.mark.parametrize("feature", ["r_drop_alpha", "fgm_epsilon"])
def test_a_teacher_goes_with_the_other_features_of_a_step(feature: str) -> None:
    teacher, student = _build(seed=5), _build()
    technique = distillation.Distillation(teacher, student, CompressConfig(distill_weight=0.5, distill_hidden_weight=0.1), own_tokens=False)
    pruned = pruning.Pruning(student, CompressConfig(sparsity=0.5), 10)
    step = _ready(student, teacher=technique, sparsity=pruned, settings=replace(OFF, clip_norm=1.0, dropout=0.1, **{feature: 0.5}))
    losses = [float(step(_batch(seed=number))["batch_loss"]) for number in range(10)]
    assert np.isfinite(losses).all()
    zeros.require(student, CompressConfig(sparsity=0.5))


def test_rows_without_a_label_of_their_own_learn_from_the_teacher_alone() -> None:
    """Their target is any class, so changing it must change nothing; accuracy counts the labelled rows only."""
    results = []
    for target in (0, 2):
        teacher, student = _build(seed=5), _build()
        technique = distillation.Distillation(teacher, student, CompressConfig(distill_weight=0.5), own_tokens=False)
        step = _ready(student, teacher=technique)
        tokens, targets, _ = _batch()
        weights = tf.constant([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
        targets = tf.where(weights > 0, targets, target)
        logs = step((tokens, targets, weights))
        results.append((float(logs["batch_loss"]), float(logs["accuracy"]), student.classifier.kernel.numpy()))
    assert results[0][:2] == results[1][:2]
    np.testing.assert_array_equal(results[0][2], results[1][2])
    assert results[0][1] * 3 == pytest.approx(round(results[0][1] * 3), abs=1e-5)


@pytest.mark.parametrize(
    ("student", "settings", "own_tokens", "message"),
    [
        ({"hidden_size": 32}, {"distill_weight": 1.0}, False, r"compress.distill_from: a student is no larger than its teacher. Expected at most 2 layers of width 16, received 2 of 32\."),
        ({"num_hidden_layers": 3}, {"distill_weight": 1.0}, False, r"compress.distill_from: a student is no larger than its teacher. Expected at most 2 layers of width 16, received 3 of 16\."),
        ({"hidden_size": 8}, {"distill_hidden_weight": 1.0}, False, r"compress.distill_hidden_weight: hidden states can only be compared where they are equally wide; the teacher's are 16 wide, the student's 8\."),
        ({}, {"distill_hidden_weight": 1.0}, True, r"compress.distill_hidden_weight: the teacher has other word pieces than the student"),
    ],
)  # fmt: skip
def test_a_teacher_that_does_not_fit_is_refused(
    student: dict[str, int], settings: dict[str, float], own_tokens: bool, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        distillation.Distillation(_build(), _build(**student), CompressConfig(**settings), own_tokens=own_tokens)


def test_the_stock_step_is_untouched_by_what_is_off() -> None:
    """A technique that is None adds no operation to the graph of a step."""
    model = build(BACKBONE, OFF, vocabulary_size=50, labels=("a", "b", "c"), task="single_label", seed=1)
    step = _ready(model, sparsity=None)
    types = {operation.type for operation in step.get_concrete_function(_batch()).graph.get_operations()}
    assert not {kind for kind in types if kind.startswith("FakeQuant") or kind == "TopKV2"}


def test_weights_of_a_quantized_model_come_back(tmp_path: Path) -> None:
    model = _quantized()
    path = str(tmp_path / "weights")
    tf.train.Checkpoint(model=model).write(path)
    other = _build(seed=9)
    quantization.quantize(other)
    tf.train.Checkpoint(model=other).read(path).assert_existing_objects_matched()
    tokens = _batch(seed=4)[0]
    np.testing.assert_array_equal(model(tokens).logits, other(tokens).logits)
