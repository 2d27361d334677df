"""Rows and what a model said about them in; every number of `metrics.json` out.

Frees the caller from metrics that divide by zero, intervals, slices and the hunt for the worst mistakes. Does not weigh rows:
`examples.weights` steer training (class weights, doubtful rows); a score that used them could not be compared with one of another
weighting. Refuses what `rows.check` refuses.

| rows | what happens |
|---|---|
| a class is absent from the rows | its recall is None, no ROC-AUC and PR-AUC (`skipped_labels`); in macro-F1 when it was predicted |
| a class is never predicted | its precision is None, its F1 is 0 |
| a class is neither | precision, recall and F1 are None, left out of the averages |
| one class only, or one row | ROC-AUC and PR-AUC are None with a reason; the rest is defined |
| all right or all wrong | accuracy's bootstrap interval is one point; the slices' Wilson intervals are not |
| no rows, NaN | DataError |
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tfpipeline.config import EvaluateConfig
from tfpipeline.errors import DataError
from tfpipeline.evaluate.calibration import apply_temperature, reliability
from tfpipeline.evaluate.intervals import percentile_interval
from tfpipeline.evaluate.rows import ExamplesLike, Floats, Rows, check
from tfpipeline.evaluate.scores import Scores
from tfpipeline.evaluate.slices import slices, worst_mistakes

HEADLINE = ("accuracy", "macro_f1", "weighted_f1", "roc_auc", "pr_auc", "log_loss", "brier", "expected_calibration_error")
CALIBRATED = ("expected_calibration_error", "log_loss", "brier")
MULTI_LABEL_HEADLINE = ("accuracy", "micro_f1", *HEADLINE[1:])


def evaluate(
    examples: ExamplesLike,
    probabilities: npt.ArrayLike,
    *,
    labels: tuple[str, ...],
    task: str,
    config: EvaluateConfig,
    temperature: float = 1.0,
    token_lengths: npt.NDArray[Any] | None = None,
    seed: int = 1,
) -> dict[str, Any]:
    """Everything that is known about a model on some labelled rows, as plain JSON types.

    Args:
        examples: the rows.
        probabilities: float32 `[n, classes]`, before any temperature.
        labels: the label names, in the order of the columns.
        task: "single_label" or "multi_label" (then `accuracy` is subset accuracy: every label of the row right).
        config: resamples, confidence, bins, number of mistakes.
        temperature: from `fit_temperature` on the validation split; only `calibration.after` uses it.
        token_lengths: int `[n]`, tokens of each row for the slices by length; None: words are counted (characters in scripts without
            spaces).
        seed: of the bootstrap.

    Returns:
        `n`, `task`, `labels`, `seed`, `confidence`, `bootstrap_samples`;
        each name of `HEADLINE` -> {"value", "low", "high"} (+ "reason" where the value is None); `skipped_labels` (in no AUC);
        `per_class`: [{"label", "precision", "recall", "f1", "support", "predicted"}];
        `confusion_matrix`: [true][predicted] counts (None when multi-label), `confusion_per_label`: [{"label", "tn", "fp", "fn", "tp"}];
        `calibration`: {"temperature", "before": {...}, "after": {...}}, each with expected_calibration_error, log_loss, brier and bins;
        `slices`: see `slices.slices`; `worst_mistakes`: see `slices.worst_mistakes`.

    Raises:
        DataError: no rows, rows without labels, or probabilities that are none.
    """
    rows = check(probabilities, examples.labels, task, classes=len(labels))
    if len(examples) != len(rows):
        raise DataError(f"there are {len(examples)} examples but {len(rows)} rows of probabilities.")
    if token_lengths is not None and np.shape(token_lengths) != (len(rows),):
        raise DataError(f"token_lengths has shape {list(np.shape(token_lengths))}, expected [{len(rows)}], one per row.")
    tempered = np.asarray(apply_temperature(rows.probabilities, temperature, task), dtype=np.float64)
    found = _headline(Scores(rows, config.calibration_bins), config, seed)
    after = found if temperature == 1.0 else _tempered(Scores(rows, config.calibration_bins, tempered), config, seed)
    return {
        "n": len(rows),
        "task": task,
        "labels": list(labels),
        "seed": seed,
        "confidence": config.confidence,
        "bootstrap_samples": config.bootstrap_samples,
        **found,
        "skipped_labels": [name for name, truth in zip(labels, rows.truth.T, strict=True) if truth.all() or not truth.any()],
        "per_class": per_class(rows, labels),
        "confusion_matrix": _confusion(rows) if task == "single_label" else None,
        "confusion_per_label": _confusion_per_label(rows, labels),
        "calibration": {
            "temperature": float(temperature),
            "before": _calibration(found, rows.probabilities, rows, config.calibration_bins),
            "after": _calibration(after, tempered, rows, config.calibration_bins),
        },
        "slices": slices(examples, rows, labels, config.confidence, token_lengths),
        "worst_mistakes": worst_mistakes(examples, rows, labels, config.worst_mistakes),
    }


def per_class(rows: Rows, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each label; None where one would divide by zero (see the table above)."""
    hits = (rows.truth & rows.predicted).sum(axis=0)
    predicted, support = rows.predicted.sum(axis=0), rows.truth.sum(axis=0)
    return [
        {
            "label": name,
            "precision": _share(hits[number], predicted[number]),
            "recall": _share(hits[number], support[number]),
            "f1": _share(2 * hits[number], predicted[number] + support[number]),
            "support": int(support[number]),
            "predicted": int(predicted[number]),
        }
        for number, name in enumerate(labels)
    ]


def _headline(scores: Scores, config: EvaluateConfig, seed: int) -> dict[str, Any]:
    values, samples = scores.value(), scores.bootstrap(config.bootstrap_samples, seed)
    found: dict[str, Any] = {}
    for name in HEADLINE if scores.rows.task == "single_label" else MULTI_LABEL_HEADLINE:
        found[name] = percentile_interval(values[name], samples[name], config.confidence)
        if values[name] is None:
            found[name]["reason"] = (
                "no label has both rows that carry it and rows that do not"
                if name in ("roc_auc", "pr_auc")
                else "no row carries a label and none was predicted"
            )
    return found


def _tempered(scores: Scores, config: EvaluateConfig, seed: int) -> dict[str, Any]:
    """The metrics a temperature changes; answers and rankings within a row stay, so the rest would be the same numbers again."""
    values, samples = scores.value(), scores.bootstrap(config.bootstrap_samples, seed, ranked=False)
    return {name: percentile_interval(values[name], samples[name], config.confidence) for name in CALIBRATED}


def _calibration(found: dict[str, Any], probabilities: Floats, rows: Rows, bins: int) -> dict[str, Any]:
    return {
        **{name: found[name] for name in CALIBRATED},
        "bins": reliability(probabilities, rows, bins),
    }


def _confusion(rows: Rows) -> list[list[int]]:
    matrix: list[list[int]] = (rows.truth.T.astype(np.int64) @ rows.predicted.astype(np.int64)).tolist()
    return matrix


def _confusion_per_label(rows: Rows, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    cells = {
        "tn": ~rows.truth & ~rows.predicted,
        "fp": ~rows.truth & rows.predicted,
        "fn": rows.truth & ~rows.predicted,
        "tp": rows.truth & rows.predicted,
    }
    counts = {name: cell.sum(axis=0) for name, cell in cells.items()}
    return [{"label": name, **{cell: int(count[number]) for cell, count in counts.items()}} for number, name in enumerate(labels)]


def _share(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None
