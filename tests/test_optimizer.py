"""Schedules, rows, decay: the three things that are ours around Keras' optimizers."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfpipeline.config import TrainConfig
from tfpipeline.optimizer import WarmupThenDecay, make_optimizer, unique_rows


@pytest.mark.parametrize(
    ("shape", "step", "rate"),
    [
        ("linear", 0, 0.25),
        ("linear", 3, 1.0),
        ("linear", 6, 0.5714286),
        ("linear", 9, 0.14285715),
        ("cosine", 3, 1.0),
        ("cosine", 9, 0.04951557),
        ("constant", 1, 0.5),
        ("constant", 9, 1.0),
    ],
)
def test_the_rate_rises_for_four_steps_and_falls_until_ten(shape: str, step: int, rate: float) -> None:
    assert float(WarmupThenDecay(1.0, 4, 10, shape)(step)) == pytest.approx(rate, rel=1e-5)


def test_no_step_stands_still() -> None:
    for warmup in (0, 1, 5):
        schedule = WarmupThenDecay(1.0, warmup, 10, "linear")
        assert min(float(schedule(step)) for step in range(10)) > 0


def _numpy_adam(table: np.ndarray, steps: list[tuple[list[int], np.ndarray]], rate: float, decay: float) -> np.ndarray:
    """Adam on the touched rows alone, written down a second time."""
    table, first, second = table.copy(), np.zeros_like(table), np.zeros_like(table)
    for number, (rows, gradient) in enumerate(steps, start=1):
        first[rows] = 0.9 * first[rows] + 0.1 * gradient
        second[rows] = 0.999 * second[rows] + 0.001 * gradient**2
        alpha = rate * np.sqrt(1 - 0.999**number) / (1 - 0.9**number)
        table[rows] -= alpha * first[rows] / (np.sqrt(second[rows]) + 1e-6) + rate * decay * table[rows]
    return table


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_only_the_named_rows_move_and_by_adams_rule(decay: float) -> None:
    random = np.random.default_rng(0)
    start = random.normal(size=(6, 3)).astype(np.float32)
    table = tf.Variable(start)
    config = TrainConfig(optimizer="adamw", learning_rate=0.01, weight_decay=decay, schedule="constant", warmup_fraction=0.0)
    optimizer = make_optimizer(config, 10, [(table, 1.0)])
    optimizer.build([table])
    steps = [(rows, random.normal(size=(len(rows), 3)).astype(np.float32)) for rows in ([0, 2], [2, 5], [0], [5, 2, 0])]
    for rows, gradient in steps:
        optimizer.apply_gradients([(tf.IndexedSlices(tf.constant(gradient), tf.constant(rows), tf.constant([6, 3])), table)])
    np.testing.assert_allclose(table.numpy(), _numpy_adam(start, steps, 0.01, decay), atol=1e-6)
    np.testing.assert_array_equal(table.numpy()[[1, 3, 4]], start[[1, 3, 4]])


def test_rows_that_stand_twice_are_summed() -> None:
    merged = unique_rows(tf.IndexedSlices(tf.constant([[1.0], [2.0], [4.0]]), tf.constant([7, 3, 7]), tf.constant([9, 1])))
    assert dict(zip(merged.indices.numpy().tolist(), merged.values.numpy().ravel().tolist(), strict=True)) == {7: 5.0, 3: 2.0}
    dense = tf.ones([2])
    assert unique_rows(dense) is dense


def test_decay_spares_vectors() -> None:
    kernel, bias = tf.Variable(tf.ones([2, 2])), tf.Variable(tf.ones([2]))
    config = TrainConfig(optimizer="adamw", learning_rate=0.1, weight_decay=0.5, schedule="constant", warmup_fraction=0.0)
    optimizer = make_optimizer(config, 10, [(kernel, 1.0), (bias, 1.0)])
    optimizer.build([kernel, bias])
    optimizer.apply_gradients([(tf.zeros([2, 2]), kernel), (tf.zeros([2]), bias)])
    np.testing.assert_allclose(kernel.numpy(), 0.95)
    np.testing.assert_allclose(bias.numpy(), 1.0)
