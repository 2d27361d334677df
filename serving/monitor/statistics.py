"""How far two samples are apart, and how far two samples of the same thing would be. Frees the checks from formulas.

In: counts and sums. Out: numbers. Knows nothing of records, manifests or thresholds of taste. Nothing here is asymptotic where an exact answer is
cheap: histograms are compared under the permutation null given both samples together (a multivariate hypergeometric draw), rates by binomial and
hypergeometric tails. So a small reference widens the null by itself, and no bin is too empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

MOST_ROWS = 100_000_000  # the sampler refuses populations of a thousand million; counts are scaled down long before


@dataclass(frozen=True)
class Divergence:
    """A distance between two histograms, beside the distances that chance alone gives.

    Attributes:
        value: what was measured.
        null: float64 `[draws]`, ascending: the same distance when both samples are shuffled together and dealt again in their sizes.
    """

    value: float
    null: Floats

    @property
    def p_value(self) -> float:
        """Monte Carlo p-value, never 0: exact for any number of draws."""
        # Sums of the same numbers in another order may differ in the last bits.
        below = int(np.searchsorted(self.null, self.value - 1e-12, side="left"))
        return (1 + len(self.null) - below) / (len(self.null) + 1)

    def noise(self, rate: float) -> float:
        """What the value must exceed for a p-value of at most `rate`; infinity when there are too few draws to tell."""
        rank = math.floor(rate * (len(self.null) + 1) + 1e-9)
        return float(self.null[-rank]) if rank >= 1 else math.inf


def population_stability_index(window: Any, reference: Any) -> Floats:
    """Sum over bins of (p - q) ln(p / q), half a row added to each bin so that an empty one stays finite.

    Args:
        window: counts `[..., bins]`.
        reference: counts `[..., bins]`.
    """
    p, q = (np.asarray(counts) + 0.5 for counts in (window, reference))
    p, q = p / p.sum(axis=-1, keepdims=True), q / q.sum(axis=-1, keepdims=True)
    return np.asarray(((p - q) * np.log(p / q)).sum(axis=-1))


def jensen_shannon(window: Any, reference: Any) -> Floats:
    """Jensen-Shannon divergence in bits: 0 the same, 1 nothing in common.

    Args:
        window: counts `[..., bins]`.
        reference: counts `[..., bins]`.
    """
    p, q = np.asarray(window, np.float64), np.asarray(reference, np.float64)
    p, q = p / p.sum(axis=-1, keepdims=True), q / q.sum(axis=-1, keepdims=True)
    middle = (p + q) / 2
    halves = [part * np.log2(np.where(part > 0, part, 1) / np.where(middle > 0, middle, 1)) for part in (p, q)]
    return np.asarray(np.maximum(0.0, (halves[0] + halves[1]).sum(axis=-1) / 2))


def compare(window: Any, reference: Any, draws: int, rng: np.random.Generator) -> dict[str, Divergence]:
    """Both distances of two histograms, under their permutation null.

    Given the sum of both histograms, and that all rows come from one distribution whatever it is, the window is a multivariate hypergeometric draw
    from the sum. That holds exactly for any sizes, so the reference's own sampling noise is in the threshold.

    Args:
        window: counts `[bins]`.
        reference: counts `[bins]`, in the same bins.
        draws: how often the rows are dealt again.
        rng: of the draws.
    """
    ours, theirs = _scaled(window), _scaled(reference)
    both = ours + theirs
    ours, theirs, both = ours[both > 0], theirs[both > 0], both[both > 0]
    dealt = rng.multivariate_hypergeometric(both, int(ours.sum()), size=draws, method="marginals")
    measures = {"population_stability_index": population_stability_index, "jensen_shannon": jensen_shannon}
    return {name: Divergence(float(of(ours, theirs)), np.sort(of(dealt, both - dealt))) for name, of in measures.items()}


def _scaled(counts: Any) -> Counts:
    counts = np.asarray(counts, np.int64)
    total = int(counts.sum())
    return counts if total <= MOST_ROWS else (counts * (MOST_ROWS / total)).astype(np.int64)


def binomial_tail(successes: int, trials: int, rate: float) -> float:
    """P(X >= successes) for X binomial."""
    if successes <= 0:
        return 1.0
    if rate <= 0 or successes > trials:
        return 0.0
    return 1.0 if rate >= 1 else float(min(1.0, _binomial_terms(successes, trials, rate).sum()))


def binomial_bound(trials: int, rate: float, risk: float) -> int:
    """The smallest count that a binomial reaches with probability at most `risk`; `trials` + 1 when even all successes are likelier than that."""
    if trials <= 0 or rate >= 1:
        return trials + 1
    if rate <= 0:
        return 1
    tails = np.cumsum(_binomial_terms(0, trials, rate)[::-1])[::-1]
    return int(np.searchsorted(-tails, -risk, side="left"))


def _binomial_terms(first: int, trials: int, rate: float) -> Floats:
    """Probabilities of `first` to `trials` successes, each from the one before: no factorial overflows."""
    start = math.lgamma(trials + 1) - math.lgamma(first + 1) - math.lgamma(trials - first + 1)
    start += first * math.log(rate) + (trials - first) * math.log1p(-rate)
    k = np.arange(first + 1, trials + 1, dtype=np.float64)
    steps = np.log((trials - k + 1) / k) + math.log(rate) - math.log1p(-rate)
    return np.asarray(np.exp(start + np.concatenate([[0.0], np.cumsum(steps)])))


def hypergeometric_tail(successes: int, trials: int, all_successes: int, all_trials: int) -> float:
    """P(X >= successes) when `trials` of `all_trials` rows are drawn, of which `all_successes` count: Fisher's exact test, one-sided."""
    terms, low = _hypergeometric_terms(trials, all_successes, all_trials)
    return float(min(1.0, terms[max(0, successes - low) :].sum()))


def hypergeometric_bound(trials: int, all_successes: int, all_trials: int, risk: float) -> int:
    """The smallest count of successes among `trials` that chance reaches with probability at most `risk`."""
    terms, low = _hypergeometric_terms(trials, all_successes, all_trials)
    tails = np.cumsum(terms[::-1])[::-1]
    return low + int(np.searchsorted(-tails, -risk, side="left"))


def _hypergeometric_terms(trials: int, good: int, population: int) -> tuple[Floats, int]:
    """Probabilities of each possible count, and the least of these."""

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    low, high = max(0, trials + good - population), min(trials, good)
    start = log_choose(good, low) + log_choose(population - good, trials - low) - log_choose(population, trials)
    k = np.arange(low + 1, high + 1, dtype=np.float64)
    steps = np.log((good - k + 1) * (trials - k + 1)) - np.log(k * (population - good - trials + k))
    return np.asarray(np.exp(start + np.concatenate([[0.0], np.cumsum(steps)]))), low


def normal_tail(z: float) -> float:
    """P(Z >= z) of the standard normal distribution."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def histogram_quantile(edges: Any, counts: Any, share: float) -> float:
    """The value below which `share` of the rows lie, linear inside its bin. The counts must not all be 0."""
    counts = np.asarray(counts, np.float64)
    reached = np.cumsum(counts)
    bin_ = int(np.searchsorted(reached, share * reached[-1], side="left"))
    bin_ = min(bin_, len(counts) - 1)
    before = reached[bin_] - counts[bin_]
    inside = (share * reached[-1] - before) / counts[bin_] if counts[bin_] else 0.0
    return float(edges[bin_] + (edges[bin_ + 1] - edges[bin_]) * inside)


def quantile_upper_bound(edges: Any, counts: Any, share: float, risk: float) -> float:
    """What the true quantile exceeds with probability at most `risk`, from order statistics, for any distribution; infinity for too few rows."""
    total = int(np.sum(counts))
    rank = binomial_bound(total, share, risk)
    if rank > total or rank < 1:
        return math.inf
    return float(edges[int(np.searchsorted(np.cumsum(counts), rank, side="left")) + 1])


def area_under_curve(scores: Any, labels: Any) -> Floats:
    """Area under the ROC curve of each column: 0.5 cannot tell, 1 tells all. Ties are broken by order, which real scores do not need.

    Args:
        scores: float `[rows, columns]`.
        labels: bool `[rows, columns]`, both kinds in each column.
    """
    order = np.argsort(scores, axis=0, kind="stable")
    ranked = np.take_along_axis(np.asarray(labels, bool), order, axis=0)
    positives = ranked.sum(axis=0)
    ranks = (ranked * np.arange(1, len(ranked) + 1)[:, np.newaxis]).sum(axis=0)
    return np.asarray((ranks - positives * (positives + 1) / 2) / (positives * (len(ranked) - positives)))
