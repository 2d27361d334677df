"""Tables of fewer bits give back nearly the rows that went in, and lose least where it matters."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.edge_files import TEXTS, tiny
from tfpipeline.edge import probe
from tfpipeline.edge.tables import Int4Table, Int8Table, rounded_to_4_bits

IDS = tf.constant([3, 0, 3, 49])


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    random = np.random.default_rng(0)
    return (random.normal(size=(50, 16)) * np.exp(random.normal(size=(50, 1)))).astype(np.float32)


@pytest.mark.parametrize("fake", [True, False])
def test_int8_is_within_half_a_step_of_each_row(rows: np.ndarray, fake: bool) -> None:
    step = np.abs(rows).max(axis=1, keepdims=True) / 127
    found = Int8Table(rows, fake=fake)(IDS).numpy()
    assert (np.abs(found - rows[IDS]) <= 0.51 * step[IDS]).all()
    assert bool(np.abs(found - rows[IDS]).max() > 1e-6) is fake


def test_4_bits_look_up_what_was_rounded(rows: np.ndarray) -> None:
    codes, scales = rounded_to_4_bits(rows, np.eye(16, dtype=np.float32))
    assert (codes.min(), codes.max()) == (-8, 7)
    expected = (codes + 0.5) / 8 * scales
    np.testing.assert_allclose(Int4Table(rows, np.eye(16, dtype=np.float32))(IDS), expected[IDS], rtol=1e-6)
    assert np.sqrt(np.square(expected - rows).mean() / np.square(rows).mean()) < 0.13


def test_errors_go_where_the_answers_do_not_look(rows: np.ndarray) -> None:
    """Answers depend on one direction: the error in it is a small part of what rounding to the nearest makes, and the whole error not much larger."""
    direction = np.random.default_rng(1).normal(size=16)
    direction /= np.linalg.norm(direction)

    def errors(sensitivity: np.ndarray) -> np.ndarray:
        codes, scales = rounded_to_4_bits(rows, sensitivity.astype(np.float32))
        return (codes + 0.5) / 8 * scales - rows

    nearest, aware = errors(np.eye(16)), errors(np.outer(direction, direction))
    assert np.square(aware @ direction).mean() < 0.25 * np.square(nearest @ direction).mean()
    assert np.square(aware).mean() < 2.0 * np.square(nearest).mean()


def test_a_row_of_zeros_and_a_table_of_no_sensitivity(rows: np.ndarray) -> None:
    table = rows.copy()
    table[3] = 0.0
    found = Int4Table(table, np.zeros((16, 16), np.float32))(IDS).numpy()
    np.testing.assert_allclose(found[0], 0.0, atol=1e-8)
    assert np.isfinite(found).all()


def test_the_sensitivity_is_that_of_the_answers(tmp_path: object) -> None:
    """A step of the embeddings along its first direction moves the answers more than one along its last."""
    made = tiny(tmp_path)  # type: ignore[arg-type]
    tokens = probe.token_rows(made, TEXTS, None, 32)
    found = probe.table_sensitivity(made, tokens)
    np.testing.assert_allclose(found, found.T, atol=1e-8)
    values, vectors = np.linalg.eigh(found)
    assert values[0] > -1e-6 * values[-1]
    before = made.predict(TEXTS)
    table = made.model.bert.embeddings.weight
    kept = table.numpy()

    def moved(direction: np.ndarray) -> float:
        table.assign(kept + 0.05 * direction)
        return float(np.abs(made.predict(TEXTS) - before).mean())

    assert moved(vectors[:, -1]) > 3 * moved(vectors[:, 0])
