"""Two models on the same rows: is one better, or is it noise.

In: the probabilities of both, row by row. Out: the difference with its interval, an exact p-value, and one of three words. Pairing the
rows removes what both find hard; comparing two separate intervals instead would miss differences this shows. One comparison is honest;
the best of twenty is not, and nothing here corrects for it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from tfpipeline.config import EvaluateConfig
from tfpipeline.errors import DataError
from tfpipeline.evaluate.intervals import mcnemar, percentile_interval, resample_counts
from tfpipeline.evaluate.rows import Floats, Ints, check, strings
from tfpipeline.evaluate.scores import Scores

EXAMPLES_NAMED = 3


def compare(
    probabilities_a: npt.ArrayLike,
    probabilities_b: npt.ArrayLike,
    targets: npt.ArrayLike,
    task: str,
    *,
    config: EvaluateConfig,
    seed: int = 1,
    names: tuple[str, str] = ("a", "b"),
) -> dict[str, Any]:
    """Whether `a` is better than `b` on these rows.

    Args:
        probabilities_a: `[n, classes]` of the model in question.
        probabilities_b: `[n, classes]` of the one it is measured against, same rows in the same order (`align` finds it).
        targets: int `[n]`, or 0/1 `[n, classes]`.
        task: "single_label" or "multi_label" (a row is right when all its labels are).
        config: resamples and confidence; 1 - confidence is the level of the test.
        seed: of the bootstrap.
        names: of the two, for the tables.

    Returns:
        `n`, `names`, `accuracy_a`, `accuracy_b`, `accuracy_difference` and `macro_f1_difference` (a - b, {"value", "low", "high"}:
        paired percentile bootstrap), `n01` (only b right), `n10` (only a right), `mcnemar_p` (exact, two-sided), `label_agreement`
        (share of rows for which both say the same), `confidence`, and `verdict` about a: "better" or "worse" when the McNemar p-value is
        below 1 - confidence *and* the interval of the accuracy difference leaves out 0; otherwise "no difference shown" (which does not
        say that there is none: look at the interval).

    Raises:
        DataError: shapes that differ, or what `rows.check` refuses.
    """
    if np.shape(probabilities_a) != np.shape(probabilities_b):
        raise DataError(
            f"the two models cannot be compared: probabilities of {names[0]} have shape {list(np.shape(probabilities_a))}, "
            f"of {names[1]} {list(np.shape(probabilities_b))}. Both must be about the same rows and labels."
        )
    a, b = check(probabilities_a, targets, task), check(probabilities_b, targets, task)
    scores_a, scores_b = Scores(a, config.calibration_bins), Scores(b, config.calibration_bins)
    samples: dict[str, list[Floats]] = {"accuracy": [], "macro_f1": []}
    for weights in resample_counts(len(a), config.bootstrap_samples, seed):
        of_a, of_b = scores_a.summed(weights), scores_b.summed(weights)
        for name, found in samples.items():
            found.append(of_a[name] - of_b[name])
    value_a, value_b = scores_a.value(), scores_b.value()
    intervals = {
        name: percentile_interval(_difference(value_a[name], value_b[name]), np.concatenate(found), config.confidence)
        for name, found in samples.items()
    }
    only_a, only_b = int((a.correct & ~b.correct).sum()), int((b.correct & ~a.correct).sum())
    p_value = mcnemar(only_a, only_b)
    return {
        "n": len(a),
        "names": list(names),
        "accuracy_a": value_a["accuracy"],
        "accuracy_b": value_b["accuracy"],
        "accuracy_difference": intervals["accuracy"],
        "macro_f1_difference": intervals["macro_f1"],
        "n01": only_b,
        "n10": only_a,
        "mcnemar_p": p_value,
        "label_agreement": float((a.predicted == b.predicted).all(axis=1).mean()),
        "confidence": config.confidence,
        "verdict": verdict(intervals["accuracy"], p_value, config.confidence),
    }


def verdict(difference: dict[str, Any], p_value: float, confidence: float) -> str:
    """ "better", "worse" or "no difference shown", from an interval of a - b and a p-value."""
    if p_value < 1 - confidence and difference["low"] > 0:
        return "better"
    if p_value < 1 - confidence and difference["high"] < 0:
        return "worse"
    return "no difference shown"


def align(ids_a: Any, ids_b: Any, names: tuple[str, str] = ("a", "b")) -> Ints:
    """Where each row of `a` stands in `b`: int64 `[n]` with `ids_b[result[i]] == ids_a[i]`.

    Raises:
        DataError: an id occurs twice, or is only on one side; with how many, and a few of them.
    """
    a, b = strings(ids_a), strings(ids_b)
    place = {row_id: number for number, row_id in enumerate(b)}
    problems = []
    for name, ids in zip(names, (a, b), strict=True):
        repeated = [row_id for row_id, times in Counter(ids).items() if times > 1]
        if repeated:
            problems.append(_finding("occur more than once in", name, repeated))
    in_a = set(a)
    for name, missing in ((names[0], [i for i in a if i not in place]), (names[1], [i for i in b if i not in in_a])):
        if missing:
            problems.append(_finding("are only in", name, missing))
    if problems:
        raise DataError(
            f"the rows of {names[0]} ({len(a)}) and {names[1]} ({len(b)}) are not the same: {'; '.join(problems)}. "
            "Evaluate both on the same file and split."
        )
    return np.array([place[row_id] for row_id in a], dtype=np.int64)


def _finding(what: str, name: str, ids: list[str]) -> str:
    more = ", ..." if len(ids) > EXAMPLES_NAMED else ""
    return f"{len(ids)} ids {what} {name} ({', '.join(ids[:EXAMPLES_NAMED])}{more})"


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
