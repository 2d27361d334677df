"""The door of the room: after it, every row has one finite probability per class and a known target, and nobody checks again.

In: examples and what a model said about them. Out: `Rows`, plain float64 / bool arrays in which single-label and multi-label rows look
alike.
Refuses (DataError): no rows, rows without a label, shapes that do not fit, NaN or values outside [0, 1], single-label rows that do not
sum to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tfpipeline.errors import DataError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

TASKS = ("single_label", "multi_label")

# Softmax in float32, bfloat16 or int8 does not sum to 1 exactly; bfloat16 keeps 8 bits of the mantissa, int8 outputs step by 1/256.
SUM_TOLERANCE = 0.02

# A label of a multi-label row is predicted from this probability on.
DECISION_THRESHOLD = 0.5


class ExamplesLike(Protocol):
    """What this room needs to know of `tfpipeline.data.Examples`: columns (pyarrow string arrays) and a label array."""

    def __len__(self) -> int: ...

    @property
    def ids(self) -> Any:
        """Strings `[n]`."""

    @property
    def texts(self) -> Any:
        """Strings `[n]`."""

    @property
    def pairs(self) -> Any:
        """Strings `[n]`, or None."""

    @property
    def sources(self) -> Any:
        """Strings `[n]`, "file:line"."""

    @property
    def slices(self) -> Mapping[str, Any]:
        """Column name -> strings `[n]`."""

    @property
    def labels(self) -> npt.NDArray[Any]:
        """int32 `[n]` or float32 `[n, classes]`."""


@dataclass(frozen=True)
class Rows:
    """Checked rows, one form for both tasks.

    Attributes:
        task: "single_label" or "multi_label".
        probabilities: float64 `[n, classes]` in [0, 1].
        truth: bool `[n, classes]`; exactly one True a row when single-label.
        predicted: bool `[n, classes]`; the arg max (single-label), or probability >= 0.5 (multi-label).
        correct: bool `[n]`; all labels of the row right (multi-label: subset accuracy).
    """

    task: str
    probabilities: Floats
    truth: Bools
    predicted: Bools
    correct: Bools

    def __len__(self) -> int:
        return len(self.truth)


def check(probabilities: npt.ArrayLike, targets: npt.ArrayLike, task: str, *, classes: int | None = None) -> Rows:
    """The rows, checked.

    Args:
        probabilities: `[n, classes]` in [0, 1].
        targets: int `[n]`, or 0/1 `[n, classes]` when multi-label.
        task: "single_label" or "multi_label".
        classes: how many classes there must be; None: as many as `probabilities` has columns.

    Raises:
        DataError: naming every finding, with the first row of each.
    """
    if task not in TASKS:
        raise DataError(f"task {task!r} is not one of {', '.join(TASKS)}.")
    given = np.asarray(probabilities, dtype=np.float64)
    truth = np.asarray(targets)
    if given.ndim != 2:
        raise DataError(f"probabilities must be [rows, classes], received an array of shape {list(given.shape)}.")
    if len(given) == 0:
        raise DataError("There are no rows to evaluate: 0 probabilities. Give a split with at least one labelled row.")
    if classes is not None and given.shape[1] != classes:
        raise DataError(
            f"probabilities have {given.shape[1]} columns, expected {classes}, one per label. Were the labels of another model given?"
        )
    columns = given.shape[1]
    expected = [len(given)] if task == "single_label" else [len(given), columns]
    if list(truth.shape) != expected:
        raise DataError(
            f"labels have shape {list(truth.shape)}, expected {expected} for {len(given)} rows of probabilities and task {task}. "
            "Rows without labels can be predicted but not evaluated."
        )
    problems = [*_probability_problems(given, task), *_target_problems(truth, columns, task)]
    if problems:
        raise DataError(" ".join(problems))
    if task == "single_label":
        one_hot = np.eye(columns, dtype=bool)
        truth = one_hot[truth.astype(np.int64)]
        predicted = one_hot[given.argmax(axis=1)]
    else:
        truth = truth > DECISION_THRESHOLD
        predicted = given >= DECISION_THRESHOLD
    return Rows(task, given, truth, predicted, (truth == predicted).all(axis=1))


def strings(column: Any) -> list[str]:
    """A column (pyarrow array, chunked or not, or any sequence of str) as a list; a missing value is ""."""
    values: Sequence[Any] = column.to_pylist() if hasattr(column, "to_pylist") else list(column)
    return ["" if value is None else str(value) for value in values]


def _probability_problems(given: Floats, task: str) -> list[str]:
    problems = []
    with np.errstate(invalid="ignore"):
        findings = {
            "not finite (NaN or infinite)": ~np.isfinite(given).all(axis=1),
            "outside [0, 1]": ((given < 0) | (given > 1 + 1e-6)).any(axis=1),
        }
    if task == "single_label" and not findings["not finite (NaN or infinite)"].any():
        findings["not summing to 1 (are these logits?)"] = np.abs(given.sum(axis=1) - 1) > SUM_TOLERANCE
    for name, bad in findings.items():
        if bad.any():
            problems.append(f"probabilities of {bad.sum()} of {len(given)} rows are {name}, first in row {int(bad.argmax())}.")
    return problems


def _target_problems(truth: npt.NDArray[Any], columns: int, task: str) -> list[str]:
    if task == "multi_label":
        odd = ~np.isin(truth, (0, 1)).all(axis=1)
        return [f"labels of {odd.sum()} of {len(truth)} rows are not 0 or 1, first in row {int(odd.argmax())}."] if odd.any() else []
    if truth.dtype.kind not in "iu":
        return [f"labels must be integers (indices of the label names), received {truth.dtype}."]
    problems = []
    missing, beyond = truth == -1, (truth < -1) | (truth >= columns)
    if missing.any():
        problems.append(
            f"{missing.sum()} of {len(truth)} rows have no label, first row {int(missing.argmax())}: they can be predicted, not evaluated."
        )
    if beyond.any():
        problems.append(f"labels of {beyond.sum()} of {len(truth)} rows are not in [0, {columns}), first in row {int(beyond.argmax())}.")
    return problems
