"""Does 90 % mean 90 %: expected calibration error, reliability bins, and the one number (a temperature) that repairs most of it.

In: probabilities and targets. Out: an error in [0, 1], bins for a diagram, a temperature > 0.
It does not change which label wins (single-label: the order of the classes stays; multi-label: 0.5 stays 0.5), so accuracy stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tfpipeline.errors import DataError
from tfpipeline.evaluate.rows import Floats, Ints, Rows, check

# log T is searched here: T from 0.05 to 20. Guo et al. report 0.8 to 4 for networks of all sizes.
LOG_TEMPERATURE_RANGE = (-3.0, 3.0)
LOG_TEMPERATURE_TOLERANCE = 1e-5

# Probabilities arrive as float32, where 1 - p carries an error of 6e-8: below that a logarithm would be of rounding.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).eps)


def fit_temperature(probabilities: npt.ArrayLike, labels: npt.ArrayLike, task: str) -> float:
    """The temperature that makes the log loss of these (validation) rows smallest (Guo et al. 2017, arXiv:1706.04599).

    The log loss is convex in 1 / T, so there is one minimum and a golden-section search finds it. Where there is none inside the range
    (every row
    right: T -> 0; no better than chance: T -> infinity; all classes equally likely: T does not matter) the rows do not say what T is,
    and it is 1.0.

    Args:
        probabilities: `[n, classes]`; softmax rows, or a sigmoid each when multi-label.
        labels: int `[n]`, or 0/1 `[n, classes]`.
        task: "single_label" or "multi_label".

    Raises:
        DataError: no rows, or probabilities that are none.
    """
    rows = check(probabilities, labels, task)

    def loss(log_temperature: float) -> float:
        return float(log_losses(_tempered(rows.probabilities, math.exp(log_temperature), task), rows).mean())

    best = _golden_section(loss, *LOG_TEMPERATURE_RANGE, LOG_TEMPERATURE_TOLERANCE)
    at_the_edge = min(abs(best - edge) for edge in LOG_TEMPERATURE_RANGE) < 0.01
    if at_the_edge or loss(0.0) - loss(best) < 1e-9:
        return 1.0
    return math.exp(best)


def apply_temperature(probabilities: npt.ArrayLike, temperature: float, task: str) -> npt.NDArray[np.float32]:
    """What the model would have said with its logits divided by `temperature`: float32 `[n, classes]`.

    Works from probabilities alone: log p equals the logits up to a constant per row, which softmax does not see; for a sigmoid log(p /
    (1 - p)) is the logit itself.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise DataError(f"a temperature must be a finite number > 0, received {temperature!r}.")
    return _tempered(np.asarray(probabilities, dtype=np.float64), temperature, task).astype(np.float32)


def _tempered(probabilities: Floats, temperature: float, task: str) -> Floats:
    if temperature == 1.0:
        return probabilities
    if task == "multi_label":
        clipped = np.clip(probabilities, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
        tempered: Floats = 1 / (1 + np.exp(-np.log(clipped / (1 - clipped)) / temperature))
        return tempered
    # A softmax may underflow to 0 where the logit was only very low; the smallest normal float32 is as near as a float32 gets.
    logits = np.log(np.maximum(probabilities, float(np.finfo(np.float32).tiny))) / temperature
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def log_losses(probabilities: Floats, rows: Rows) -> Floats:
    """Per row: -log of the true class (single-label), or the mean binary cross-entropy over the labels (multi-label). float64 `[n]`."""
    clipped = np.clip(probabilities, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    if rows.task == "single_label":
        return np.asarray(-np.log(clipped[rows.truth]))
    return np.asarray(-np.where(rows.truth, np.log(clipped), np.log1p(-clipped)).mean(axis=1))


def brier_scores(probabilities: Floats, rows: Rows) -> Floats:
    """Per row: the squared error, summed over the classes (single-label: Brier 1950, 0 to 2) or averaged over the labels (multi-label: 0 to 1)."""
    squared = (probabilities - rows.truth) ** 2
    return np.asarray(squared.sum(axis=1) if rows.task == "single_label" else squared.mean(axis=1))


def decisions(probabilities: Floats, rows: Rows) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """What the model committed itself to, and whether it was right: `[n, decisions]` each.

    Single-label: one decision a row, its confidence the highest probability. Multi-label: one per label, its confidence max(p, 1 - p).
    """
    if rows.task == "single_label":
        return probabilities.max(axis=1, keepdims=True), rows.correct[:, None]
    return np.maximum(probabilities, 1 - probabilities), rows.truth == rows.predicted


def bin_numbers(confidence: Floats, bins: int) -> Ints:
    """Which of `bins` equally wide bins over (0, 1] each confidence falls into: bin b holds (b / bins, (b + 1) / bins]."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def calibration_gaps(probabilities: Floats, rows: Rows, bins: int) -> Floats:
    """Per row and bin, (right - confidence) summed over the row's decisions: float64 `[n, bins]`.

    The expected calibration error of any weighting of the rows is |weights @ gaps| summed over the bins, divided by the number of
    decisions.
    """
    confidence, right = decisions(probabilities, rows)
    gaps = np.zeros((len(rows), bins))
    row_numbers = np.broadcast_to(np.arange(len(rows))[:, None], confidence.shape)
    np.add.at(gaps, (row_numbers, bin_numbers(confidence, bins)), right - confidence)
    return gaps


def reliability(probabilities: Floats, rows: Rows, bins: int) -> list[dict[str, Any]]:
    """The bins of the reliability diagram: {"low", "high", "n", "confidence", "accuracy"}; the last two are None where a bin is empty."""
    confidence, right = decisions(probabilities, rows)
    numbers = bin_numbers(confidence, bins).ravel()
    count = np.bincount(numbers, minlength=bins)
    confidence_sum = np.bincount(numbers, weights=confidence.ravel(), minlength=bins)
    right_sum = np.bincount(numbers, weights=right.ravel().astype(np.float64), minlength=bins)
    return [
        {
            "low": number / bins,
            "high": (number + 1) / bins,
            "n": int(count[number]),
            "confidence": float(confidence_sum[number] / count[number]) if count[number] else None,
            "accuracy": float(right_sum[number] / count[number]) if count[number] else None,
        }
        for number in range(bins)
    ]


def _golden_section(function: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    """Where a function with a single valley between `low` and `high` is lowest (Kiefer 1953)."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > tolerance:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
    return (low + high) / 2
