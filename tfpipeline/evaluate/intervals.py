"""How sure a number is: percentile bootstrap, Wilson interval, exact McNemar test.

In: counts and rows. Out: {"value", "low", "high"} and p-values. No scipy: each is a few lines, tested against it.
The rows are taken to be independent draws; near-duplicates or several rows of one author make the intervals too narrow, and nothing here
can see that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import numpy as np

from tfpipeline.evaluate.rows import Floats

# Elements of one [resamples, rows] block: 4 M float64 = 32 MB, small enough for the memory of a phone-sized container.
BLOCK_ELEMENTS = 4_000_000


def resample_counts(rows: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each row was drawn: float64 blocks `[<= resamples, rows]`, each line summing to `rows`.

    Drawing `rows` rows with replacement is the bootstrap of Efron (1979); counting the draws turns every statistic that is a function of
    sums over rows into one matrix product. The same seed gives the same draws, so two models evaluated on the same rows share them.
    """
    generator = np.random.default_rng(seed)
    step = max(1, min(resamples, BLOCK_ELEMENTS // max(rows, 1)))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = generator.integers(0, rows, size=(size, rows))
        drawn += np.arange(size)[:, None] * rows
        yield np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)


def percentile_interval(value: float | None, samples: Floats, confidence: float) -> dict[str, Any]:
    """`value` with the middle `confidence` of the resampled statistics (Efron & Tibshirani 1993, chapter 13); NaN samples do not count."""
    finite = samples[np.isfinite(samples)]
    if value is None or not len(finite):
        return {"value": value, "low": None, "high": None}
    low, high = np.quantile(finite, ((1 - confidence) / 2, (1 + confidence) / 2))
    return {"value": value, "low": float(low), "high": float(high)}


def wilson(successes: int, trials: int, confidence: float) -> dict[str, Any]:
    """A share with its score interval (Wilson 1927), which unlike the bootstrap is right at 0 of n and n of n.

    No trials: everything is None.
    """
    if trials == 0:
        return {"value": None, "low": None, "high": None}
    share = successes / trials
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    centre = share + z * z / (2 * trials)
    scale = 1 + z * z / trials
    return {"value": share, "low": max(0.0, (centre - spread) / scale), "high": min(1.0, (centre + spread) / scale)}


def mcnemar(only_a_right: int, only_b_right: int) -> float:
    """Two-sided exact p-value that two classifiers err equally often (McNemar 1947, binomial form): 1.0 when they never disagree.

    Only the rows on which exactly one of them is right count; under the hypothesis each of the two is right on half of those.
    """
    discordant = only_a_right + only_b_right
    fewer = min(only_a_right, only_b_right)
    if discordant == 0:
        return 1.0
    # log C(n, k) as a running sum: C(100000, 50000) does not fit a float, its logarithm does.
    k = np.arange(1, fewer + 1, dtype=np.float64)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log(discordant - k + 1) - np.log(k))])
    tail = float(np.exp(log_choose - discordant * math.log(2)).sum())
    return min(1.0, 2 * tail)
