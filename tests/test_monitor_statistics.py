"""The monitor's numbers against hand calculation, SciPy and scikit-learn, and its thresholds against what chance really does."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from serving.monitor import statistics


def test_population_stability_index_by_hand() -> None:
    # 30.5 and 10.5 of 41, 20.5 and 20.5 of 41: half a row is added to each bin.
    p, q = 30.5 / 41, 0.5
    expected = (p - q) * math.log(p / q) + (q - p) * math.log((1 - p) / (1 - q))
    assert statistics.population_stability_index([30, 10], [20, 20]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([5, 5], [50, 50], 0.0),
        ([7, 0], [0, 3], 1.0),
        ([1, 0], [1, 1], 0.5 * (math.log2(1 / 0.75)) + 0.5 * (0.5 * math.log2(0.5 / 0.75) + 0.5 * math.log2(0.5 / 0.25))),
    ],
)
def test_jensen_shannon_by_hand(ours: list[int], theirs: list[int], expected: float) -> None:
    assert statistics.jensen_shannon(ours, theirs) == pytest.approx(expected)


def test_an_empty_bin_leaves_both_measures_finite() -> None:
    found = statistics.compare([100, 0, 0], [0, 0, 100], 100, np.random.default_rng(0))
    assert all(math.isfinite(one.value) and one.value > 0.5 for one in found.values())


@pytest.mark.parametrize(("rows", "reference_rows"), [(500, 60), (60, 500), (300, 244)])
def test_chance_alone_exceeds_the_noise_as_often_as_said_however_small_the_reference(rows: int, reference_rows: int) -> None:
    rng = np.random.default_rng(rows)
    shares, rate, trials = np.array([0.6, 0.25, 0.1, 0.03, 0.02]), 0.1, 300
    exceeding = {"population_stability_index": 0, "jensen_shannon": 0}
    for _ in range(trials):
        ours, theirs = rng.multinomial(rows, shares), rng.multinomial(reference_rows, shares)
        for name, found in statistics.compare(ours, theirs, 399, rng).items():
            assert (found.value > found.noise(rate)) == (found.p_value <= rate)
            exceeding[name] += found.value > found.noise(rate)
    # Between what 300 trials give one time in a thousand at 10 %, and not uselessly rare.
    for count in exceeding.values():
        assert scipy.stats.binom.ppf(0.001, trials, rate * 0.5) <= count <= scipy.stats.binom.ppf(0.999, trials, rate)


def test_the_noise_shrinks_with_both_samples() -> None:
    def noise(rows: int, reference_rows: int) -> float:
        ours, theirs = (np.array([0.5, 0.3, 0.2]) * size for size in (rows, reference_rows))
        return statistics.compare(ours.astype(int), theirs.astype(int), 2_000, np.random.default_rng(0))["jensen_shannon"].noise(0.01)

    values = [noise(100, 100), noise(1_000, 100), noise(1_000, 1_000), noise(1_000_000, 1_000_000)]
    assert all(two < one for one, two in pairwise(values))
    # A small reference keeps the threshold up, whatever the window.
    assert noise(1_000_000, 100) > 0.4 * values[0]


def test_too_few_draws_for_a_rate_allow_no_alarm() -> None:
    found = statistics.compare([100, 0], [0, 100], 50, np.random.default_rng(0))["jensen_shannon"]
    assert found.noise(0.001) == math.inf
    assert found.p_value == pytest.approx(1 / 51)


def test_a_thousand_million_rows_are_compared_too() -> None:
    found = statistics.compare([600_000_000, 400_000_000], [500_000_000, 500_000_000], 100, np.random.default_rng(0))
    assert found["population_stability_index"].value == pytest.approx(0.0405, abs=0.0005)
    assert found["population_stability_index"].p_value < 0.02


@pytest.mark.parametrize(("trials", "rate"), [(1, 0.5), (20, 0.01), (500, 0.05), (5_000, 0.95), (200_000, 0.01)])
def test_binomial_tails_and_bounds_are_those_of_scipy(trials: int, rate: float) -> None:
    for successes in {0, 1, trials // 50, trials // 20, int(trials * rate) + 3, trials - 1, trials}:
        expected = scipy.stats.binom.sf(successes - 1, trials, rate)
        assert statistics.binomial_tail(successes, trials, rate) == pytest.approx(expected, rel=1e-6, abs=1e-200)
    for risk in (0.05, 1e-4):
        bound = statistics.binomial_bound(trials, rate, risk)
        assert scipy.stats.binom.sf(bound - 1, trials, rate) <= risk < scipy.stats.binom.sf(bound - 2, trials, rate)


def test_binomial_edges() -> None:
    assert statistics.binomial_tail(0, 10, 0.0) == 1.0
    assert statistics.binomial_tail(1, 10, 0.0) == 0.0
    assert statistics.binomial_tail(11, 10, 0.5) == 0.0
    assert statistics.binomial_tail(10, 10, 1.0) == 1.0
    assert statistics.binomial_bound(10, 0.0, 0.01) == 1
    assert statistics.binomial_bound(10, 1.0, 0.01) == 11
    assert statistics.binomial_bound(2, 0.5, 0.01) == 3


@pytest.mark.parametrize(("trials", "good", "population"), [(500, 30, 1_500), (500, 0, 1_000), (900, 500, 1_000), (10_000, 700, 110_000)])
def test_hypergeometric_tails_and_bounds_are_those_of_scipy(trials: int, good: int, population: int) -> None:
    law = scipy.stats.hypergeom(population, good, trials)
    for successes in {0, good // 3, good // 2, min(good, trials)}:
        assert statistics.hypergeometric_tail(successes, trials, good, population) == pytest.approx(
            law.sf(successes - 1), rel=1e-5, abs=1e-12
        )
    bound = statistics.hypergeometric_bound(trials, good, population, 0.01)
    assert law.sf(bound - 1) <= 0.01 < law.sf(bound - 2)


def test_quantiles_of_a_histogram_lie_in_the_right_bin() -> None:
    edges, values = np.linspace(0, 10, 101), np.random.default_rng(0).gamma(2, 1, 5_000)
    counts = np.histogram(values, edges)[0]
    for share in (0.01, 0.5, 0.95):
        assert statistics.histogram_quantile(edges, counts, share) == pytest.approx(np.quantile(values, share), abs=0.1)


def test_the_upper_bound_of_a_quantile_is_above_it_as_often_as_said() -> None:
    rng, edges = np.random.default_rng(1), np.linspace(0, 20, 2_001)
    truth = scipy.stats.gamma(2).ppf(0.95)
    bounds = [statistics.quantile_upper_bound(edges, np.histogram(rng.gamma(2, 1, 400), edges)[0], 0.95, 0.05) for _ in range(400)]
    missed = sum(bound < truth for bound in bounds)
    assert 2 <= missed <= scipy.stats.binom.ppf(0.999, 400, 0.05)


def test_too_few_rows_bound_no_quantile() -> None:
    assert statistics.quantile_upper_bound([0.0, 1.0, 2.0], [5, 5], 0.95, 0.01) == math.inf


def test_area_under_curve_is_that_of_scikit_learn_in_every_column() -> None:
    rng = np.random.default_rng(3)
    scores, labels = rng.normal(size=(200, 4)), rng.random((200, 4)) < 0.3
    expected = [sklearn.metrics.roc_auc_score(labels[:, column], scores[:, column]) for column in range(4)]
    assert statistics.area_under_curve(scores, labels) == pytest.approx(expected)


def test_normal_tail_is_that_of_scipy() -> None:
    for z in (-1.0, 0.0, 3.0, 8.0):
        assert statistics.normal_tail(z) == pytest.approx(scipy.stats.norm.sf(z))
