"""Tables as an edge file holds them: fewer bits a number than float32, put together again behind the lookup.

In: a float table. Out: a function of row numbers to rows, which the converter stores small.

LiteRT's gather knows one scale for a whole int8 table, and no 4-bit numbers that are looked up; so both are made of what it knows: integers, and arithmetic on the few
rows of one text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfpipeline.edge.graph import Floats

# Codes -8 to 7 stand for the middles of 16 equal steps from -1 to 1.
_HALF = 8.0
# Shares of a row's largest magnitude that are tried as its scale: a few numbers cut, and finer steps for all others.
_CLIPS = np.linspace(0.4, 1.0, 13)
# Of the mean of the diagonal of a sensitivity, added to it: texts of another kind look elsewhere.
_DAMPING = 0.05


class Int8Table(tf.Module):
    """A lookup in a table that the file holds in int8, one scale a row: rare words, which hardly moved in training, are a fraction as long as others.

    Rows are stored at equal length, because of the one scale, and stretched after the lookup.

    Args:
        weight: float32 `[rows, width]`.
        fake: whether fake quantization says so to the converter; else its dynamic-range mode does the same by itself.
    """

    def __init__(self, weight: Any, *, fake: bool) -> None:
        super().__init__(name="int8_table")
        values = np.asarray(weight)
        longest = np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-8)
        # Constants: of a variable, gather_nd becomes an operator that LiteRT does not have.
        self._rows, self._scales = tf.constant(values / longest), tf.constant(longest)
        self._fake = fake

    def __call__(self, ids: tf.Tensor) -> tf.Tensor:
        """Rows float32 `[length, width]` of ids int32 `[length]`."""
        table = self._rows
        if self._fake:
            table = tf.quantization.fake_quant_with_min_max_args(table, -1.0, 1.0, num_bits=8, narrow_range=True)
        # gather_nd, because the converter leaves its table in float.
        return tf.gather(table, ids) * tf.gather_nd(self._scales, ids[:, tf.newaxis])


class Int4Table(tf.Module):
    """A lookup in a table that the file holds in 4 bits a number, one scale a row.

    Args:
        weight: float32 `[rows, width]`, of even width.
        sensitivity: see `rounded_to_4_bits`.
    """

    def __init__(self, weight: Any, sensitivity: Floats) -> None:
        super().__init__(name="int4_table")
        codes, scales = rounded_to_4_bits(np.asarray(weight), sensitivity)
        high, low = np.split(codes.astype(np.int16), 2, axis=1)
        self._pairs = tf.constant((16 * high + low + 8).astype(np.int8))
        self._scales = tf.constant(scales / _HALF)

    def __call__(self, ids: tf.Tensor) -> tf.Tensor:
        """Rows float32 `[length, width]` of ids int32 `[length]`."""
        pairs = tf.cast(tf.gather(self._pairs, ids), tf.float32)
        high = tf.floor(pairs / 16.0)
        codes = tf.concat([high, pairs - 16.0 * high - 8.0], axis=1) + 0.5
        return codes * tf.gather_nd(self._scales, ids[:, tf.newaxis])


def rounded_to_4_bits(values: Floats, sensitivity: Floats) -> tuple[Any, Floats]:
    """Rounds where the answers do not look.

    A tenth of what a row says is lost when each number goes to its nearest step, and that costs labels. But answers depend on few directions of the row: column after
    column is rounded, and what it lost is made up for in the columns that are still to come, as far as they serve the same directions (after GPTQ,
    arXiv:2210.17323, which does so for kernels).

    Args:
        values: float32 `[rows, width]`.
        sensitivity: float32 `[width, width]`, positive semidefinite: an error `e` of a row costs `e S e`.

    Returns:
        Codes `[rows, width]` from -8 to 7 and scales float32 `[rows, 1]`; a code `c` stands for `(c + 0.5) / 8 * scale`.
    """
    width = values.shape[1]
    damped = sensitivity.astype(np.float64) + np.eye(width) * (_DAMPING * np.trace(sensitivity) / width + 1e-30)
    order = np.argsort(-np.diag(damped))  # what matters most comes first, while there are columns left to make up for it
    damped = damped[np.ix_(order, order)]
    # Row `j`: how the columns after `j` make up for an error in column `j`.
    remedy = np.linalg.cholesky(np.linalg.inv(damped)).T
    remedy = (remedy / np.diag(remedy)[:, np.newaxis]).astype(np.float32)
    rest = values[:, order].astype(np.float32)
    scales = _scales(rest)
    codes = np.empty_like(rest)
    for column in range(width):
        codes[:, column : column + 1] = _codes(rest[:, column : column + 1], scales)
        lost = rest[:, column : column + 1] - (codes[:, column : column + 1] + 0.5) / _HALF * scales
        rest[:, column:] -= lost * remedy[column, column:]
    back = np.argsort(order)
    return codes[:, back].astype(np.int8), scales


def _scales(values: Floats) -> Floats:
    """Of each row the one with which rounding to the nearest loses least, `[rows, 1]`."""
    longest = np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-8)
    losses = []
    for clip in _CLIPS:
        rounded = (_codes(values, longest * clip) + 0.5) / _HALF * (longest * clip)
        losses.append(np.square(rounded - values).sum(axis=1))
    return (longest * _CLIPS[np.argmin(losses, axis=0)][:, np.newaxis]).astype(np.float32)


def _codes(values: Floats, scales: Floats) -> Floats:
    return np.clip(np.floor(values / scales * _HALF), -_HALF, _HALF - 1)
