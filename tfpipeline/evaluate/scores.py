"""The metrics as functions of how often each row counts, so that the value and its bootstrap samples come out of the same lines.

In: checked rows. Out: per metric a float64 `[weightings]`, NaN where the metric is not defined for that weighting. A weighting of all
ones is the value itself.
"""

from __future__ import annotations

import numpy as np

from tfpipeline.evaluate.calibration import brier_scores, calibration_gaps, log_losses
from tfpipeline.evaluate.intervals import resample_counts
from tfpipeline.evaluate.rows import Bools, Floats, Rows

# Ranking metrics look at every row of every class in every resample; beyond this many looks fewer resamples are drawn (never under 200).
# 3 classes and 1000 resamples stay complete up to 100,000 rows: about 18 s on one core.
RANKING_BUDGET = 300_000_000
FEWEST_RESAMPLES = 200

SUMMED = ("accuracy", "macro_f1", "weighted_f1", "micro_f1", "log_loss", "brier", "expected_calibration_error")
RANKED = ("roc_auc", "pr_auc")


class Scores:
    """All headline metrics of some rows, for any weighting of the rows.

    Args:
        rows: checked rows.
        bins: bins of the expected calibration error.
        tempered: probabilities after the temperature; None: as they are.
    """

    def __init__(self, rows: Rows, bins: int, tempered: Floats | None = None) -> None:
        self.rows = rows
        probabilities = rows.probabilities if tempered is None else tempered
        self._classes = rows.truth.shape[1]
        self._decisions = 1 if rows.task == "single_label" else self._classes
        # Every metric of SUMMED is a function of these column sums.
        self._columns = np.concatenate(
            [
                rows.truth & rows.predicted,
                rows.predicted,
                rows.truth,
                rows.correct[:, None],
                log_losses(probabilities, rows)[:, None],
                brier_scores(probabilities, rows)[:, None],
                calibration_gaps(probabilities, rows, bins),
            ],
            axis=1,
            dtype=np.float64,
        )
        self._rankings = [_Ranking(probabilities[:, number], rows.truth[:, number]) for number in range(self._classes)]

    def summed(self, weights: Floats) -> dict[str, Floats]:
        """The metrics of `SUMMED` for weights float64 `[weightings, n]`."""
        sums = weights @ self._columns
        total = weights.sum(axis=1)
        hits, predicted, support = (sums[:, part * self._classes : (part + 1) * self._classes] for part in range(3))
        right, loss, brier = sums[:, 3 * self._classes : 3 * self._classes + 3].T
        gaps = sums[:, 3 * self._classes + 3 :]
        f1 = f1_scores(hits, predicted, support)
        return {
            "accuracy": right / total,
            "macro_f1": _mean_defined(f1),
            "weighted_f1": _ratio((np.nan_to_num(f1) * support).sum(axis=1), support.sum(axis=1)),
            "micro_f1": _ratio(2 * hits.sum(axis=1), predicted.sum(axis=1) + support.sum(axis=1)),
            "log_loss": loss / total,
            "brier": brier / total,
            "expected_calibration_error": np.abs(gaps).sum(axis=1) / (total * self._decisions),
        }

    def ranked(self, weights: Floats) -> dict[str, Floats]:
        """The metrics of `RANKED`: one-versus-rest, averaged over the classes that have rows on both sides."""
        pairs = [ranking.areas(weights) for ranking in self._rankings]
        return {
            "roc_auc": _mean_defined(np.stack([roc for roc, _ in pairs], axis=1)),
            "pr_auc": _mean_defined(np.stack([precision_recall for _, precision_recall in pairs], axis=1)),
        }

    def value(self) -> dict[str, float | None]:
        """Every metric of the rows themselves; None where it is not defined."""
        ones = np.ones((1, len(self.rows)))
        found = {**self.summed(ones), **self.ranked(ones)}
        return {name: float(values[0]) if np.isfinite(values[0]) else None for name, values in found.items()}

    def bootstrap(self, resamples: int, seed: int, *, ranked: bool = True) -> dict[str, Floats]:
        """Every metric of `resamples` draws of the rows; the ranked ones of fewer, where the rows are very many (`RANKING_BUDGET`).

        With `ranked=False` those, which cost most of the time, are left out.
        """
        affordable = max(FEWEST_RESAMPLES, RANKING_BUDGET // (len(self.rows) * self._classes)) if ranked else 0
        samples: dict[str, list[Floats]] = {name: [] for name in (*SUMMED, *(RANKED if ranked else ()))}
        done = 0
        for weights in resample_counts(len(self.rows), resamples, seed):
            found = self.summed(weights)
            if done < affordable:
                found.update(self.ranked(weights[: affordable - done]))
            for name, values in found.items():
                samples[name].append(values)
            done += len(weights)
        return {name: np.concatenate(values) for name, values in samples.items()}


class _Ranking:
    """The areas under the ROC and precision-recall curves of one class against the rest, for many weightings at once.

    Sorting is done once; a weighting then costs two running sums. Rows with equal scores count as one threshold (trapezoid for ROC; no
    interpolation for precision-recall, which is average precision), as in scikit-learn.
    """

    def __init__(self, scores: Floats, truth: Bools) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        self._truth = truth[self._order].astype(np.float64)
        first_of_tie = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        self._ties = None if len(first_of_tie) == len(scores) else first_of_tie

    def areas(self, weights: Floats) -> tuple[Floats, Floats]:
        weighted = weights[:, self._order]
        positive = weighted * self._truth
        if self._ties is not None:
            weighted = np.add.reduceat(weighted, self._ties, axis=1)
            positive = np.add.reduceat(positive, self._ties, axis=1)
        above = np.cumsum(weighted, axis=1)
        positive_above = np.cumsum(positive, axis=1)
        negative = weighted - positive
        positives = positive_above[:, -1]
        negatives = above[:, -1] - positives
        # A negative is beaten by every positive above it and by half of those beside it.
        beaten = (negative * (positive_above - positive / 2)).sum(axis=1)
        precision = positive_above / np.maximum(above, 1e-300)
        return _ratio(beaten, positives * negatives), _ratio((positive * precision).sum(axis=1), np.where(negatives > 0, positives, 0))


def f1_scores(hits: Floats, predicted: Floats, support: Floats) -> Floats:
    """2 hits / (predicted + support) per class; NaN for a class that neither occurs nor is predicted (it then counts in no average)."""
    return _ratio(2 * hits, predicted + support)


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.asarray(np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0))


def _mean_defined(values: Floats) -> Floats:
    defined = np.isfinite(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1).astype(np.float64))
