"""One question a function: has this moved, and could chance have done it? Frees the verdict from what each question needs.

In: the window's `Summary`, the `References`, `Limits`. Out: `Evidence`: tests that are not judged yet, since how sure each must be depends on how
many there are; or why the question cannot be asked. Pure: no clock, no disk; the randomness of the draws comes in.

| check | what it sees | what it needs |
|---|---|---|
| predicted | another mix of answers | - |
| confidence | texts the model finds harder, or easier | - |
| length | longer or shorter texts | characters in the manifest, else word pieces in the records, else an earlier window |
| script | another writing system | texts kept; scripts in the manifest, else an earlier window |
| unknown | words the vocabulary lacks | an export that answers `unknown` |
| texts | another topic, language or style | texts kept; reference texts, or an earlier window with texts |
| failures, refusals | calls that were not answered | - |
| latency_p50, latency_p95 | slower answers | a limit, or an earlier window |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

from serving.monitor import statistics
from serving.monitor.domain import LEAST_TEXTS, separate
from serving.monitor.limits import Limits
from serving.monitor.window import REFUSALS, Histogram, Summary

LEAST_REFERENCE_ROWS = 20
MOST_TESTS = 20  # a little more than there are
BOUND_RISK = 1e-5  # that the earlier window's latency is really above the bound taken for it
DISTRIBUTIONS = ("predicted", "confidence", "length", "script", "unknown", "texts")


@dataclass(frozen=True)
class References:
    """What a window is compared with.

    Attributes:
        manifest: from the export.
        earlier: an earlier stretch of the journal, for what the manifest lacks, for latency and errors.
        texts: reference texts.
    """

    manifest: Summary
    earlier: Summary | None = None
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Test:
    """One number that must not exceed what chance gives, nor what is tolerated.

    Attributes:
        measure: what the number is.
        level: `warn` or `alarm`: what exceeding means.
        value: the number.
        floor: what is tolerated.
        noise: rate -> what chance alone exceeds at most that often.
        p_value: how often chance alone gives such a number.
    """

    __test__ = False  # for pytest, which collects classes of this name

    measure: str
    level: str
    value: float
    floor: float
    noise: Callable[[float], float]
    p_value: float


@dataclass(frozen=True)
class Evidence:
    """A question with its tests, or with the reason why it cannot be asked.

    Attributes:
        name: of the check.
        tests: empty when it cannot be asked.
        missing: why not.
        against: what it was compared with.
        rows: of the window.
        reference_rows: 0 for a limit.
        moved: the greatest difference, in words.
        bins: names, window counts, reference counts; for the page.
    """

    name: str
    tests: tuple[Test, ...] = ()
    missing: str = ""
    against: str = ""
    rows: int = 0
    reference_rows: int = 0
    moved: str = ""
    bins: tuple[tuple[str, int, int], ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)


def gather(window: Summary, references: References, limits: Limits, seed: int) -> list[Evidence]:
    """All checks, in the order in which a reader wants them."""
    draws = math.ceil(MOST_TESTS / min(limits.alarm_rate, limits.warn_rate))
    rng = np.random.default_rng(seed)
    return [
        _predicted(window, references, limits, draws, rng),
        _confidence(window, references, limits, draws, rng),
        _length(window, references, limits, draws, rng),
        _script(window, references, limits, draws, rng),
        _unknown(window, references, limits),
        _texts(window, references, limits, rng),
        _calls("failures", window, references, (limits.failures_warn, limits.failures_alarm)),
        _calls("refusals", window, references, (limits.refusals_warn, limits.refusals_alarm)),
        _latency("latency_p50", 0.5, limits.p50_ms, window, references, limits),
        _latency("latency_p95", 0.95, limits.p95_ms, window, references, limits),
    ]


def _predicted(window: Summary, references: References, limits: Limits, draws: int, rng: np.random.Generator) -> Evidence:
    name = "predicted"
    reference = _first(references, lambda one: sum(one.predicted.values()) if one.predicted else 0)
    if reference is None or not reference.predicted:
        return Evidence(name, missing="neither the manifest nor an earlier window has predicted classes")
    if not window.predicted:
        return Evidence(name, missing="no record has a label of this version")
    return _shares(name, window.predicted, reference.predicted, reference.name, limits, draws, rng)


def _confidence(window: Summary, references: References, limits: Limits, draws: int, rng: np.random.Generator) -> Evidence:
    name = "confidence"
    reference = _first(references, lambda one: one.confidence.rows if one.confidence else 0)
    if reference is None or not reference.confidence:
        return Evidence(name, missing="neither the manifest nor an earlier window has scores")
    if not window.confidence:
        return Evidence(name, missing="no record has a score of this version")
    return _histograms(name, window.confidence, reference.confidence, reference.name, limits, draws, rng)


def _length(window: Summary, references: References, limits: Limits, draws: int, rng: np.random.Generator) -> Evidence:
    name = "length"
    manifest, earlier = references.manifest, references.earlier
    if window.characters and manifest.characters:
        return _histograms(name, window.characters, manifest.characters, manifest.name, limits, draws, rng, "characters")
    if window.tokens and manifest.tokens:
        return _histograms(name, window.tokens, manifest.tokens, manifest.name, limits, draws, rng, "word pieces")
    if window.characters and earlier and earlier.characters:
        return _histograms(name, window.characters, earlier.characters, earlier.name, limits, draws, rng, "characters")
    if not window.characters:
        return Evidence(name, missing="no record has a length")
    return Evidence(
        name, missing="the manifest has no lengths in characters, the records none in word pieces; export again, or give an earlier window"
    )


def _script(window: Summary, references: References, limits: Limits, draws: int, rng: np.random.Generator) -> Evidence:
    name = "script"
    if not window.scripts:
        return Evidence(name, missing="the journal keeps no texts")
    reference = _first(references, lambda one: sum(one.scripts.values()) if one.scripts else 0)
    if reference is None or not reference.scripts:
        return Evidence(name, missing="the manifest has no scripts; export again, or give an earlier window with texts")
    return _shares(name, window.scripts, reference.scripts, reference.name, limits, draws, rng)


def _shares(
    name: str, ours: Mapping[str, int], theirs: Mapping[str, int], against: str, limits: Limits, draws: int, rng: np.random.Generator
) -> Evidence:
    names = list(dict.fromkeys([*theirs, *ours]))
    counts = [[side.get(one, 0) for one in names] for side in (ours, theirs)]
    return _distribution(name, names, counts[0], counts[1], against, limits, draws, rng)


def _histograms(
    name: str, ours: Histogram, theirs: Histogram, against: str, limits: Limits, draws: int, rng: np.random.Generator, unit: str = ""
) -> Evidence:
    names = [f"{low:g} to {high:g}" for low, high in zip(theirs.edges, theirs.edges[1:], strict=False)]
    if unit:  # the last edge of lengths is only a large number
        names[-1] = f"{theirs.edges[-2]:g} or more"
    return _distribution(name, names, ours.counts.tolist(), theirs.counts.tolist(), against, limits, draws, rng, unit)


def _distribution(
    name: str,
    names: Sequence[str],
    ours: Sequence[int],
    theirs: Sequence[int],
    against: str,
    limits: Limits,
    draws: int,
    rng: np.random.Generator,
    unit: str = "",
) -> Evidence:
    rows, reference_rows = sum(ours), sum(theirs)
    if rows < limits.min_rows:
        return Evidence(name, missing=f"{rows} rows, {limits.min_rows} are needed", rows=rows)
    if reference_rows < LEAST_REFERENCE_ROWS:
        return Evidence(name, missing=f"{against} has {reference_rows} rows, {LEAST_REFERENCE_ROWS} are needed", rows=rows)
    found = statistics.compare(ours, theirs, draws, rng)
    floors = {
        "population_stability_index": (limits.stability_warn, limits.stability_alarm),
        "jensen_shannon": (limits.jensen_shannon_warn, limits.jensen_shannon_alarm),
    }
    tests = tuple(
        Test(measure, level, one.value, floor, one.noise, one.p_value)
        for measure, one in found.items()
        for level, floor in zip(("warn", "alarm"), floors[measure], strict=True)
    )
    shares = [(mine / rows, other / reference_rows) for mine, other in zip(ours, theirs, strict=True)]
    most = max(range(len(shares)), key=lambda index: abs(shares[index][0] - shares[index][1]))
    moved = f"{names[most]}{' ' + unit if unit else ''}: {shares[most][1]:.1%} -> {shares[most][0]:.1%}"
    bins = tuple(zip(names, ours, theirs, strict=True))
    return Evidence(name, tests, "", against, rows, reference_rows, moved, bins, {"unit": unit} if unit else {})


def _unknown(window: Summary, references: References, limits: Limits) -> Evidence:
    name = "unknown"
    if not window.unknown:
        return Evidence(name, missing="no record has a share of unknown word pieces; exports that answer `tokens` and `unknown` have it")
    reference = _first(references, lambda one: one.unknown.rows if one.unknown else 0)
    if reference is None or not reference.unknown:
        return Evidence(name, missing="neither the manifest nor an earlier window has a share of unknown word pieces")
    ours, theirs = window.unknown, reference.unknown
    if ours.rows < limits.min_rows:
        return Evidence(name, missing=f"{ours.rows} rows, {limits.min_rows} are needed", rows=ours.rows)
    mine = ours.deviation or 0.0
    # The manifest knows its share only: were nothing different, its texts would vary as ours do.
    other = mine if theirs.deviation is None else theirs.deviation
    error = math.sqrt(mine**2 / ours.rows + other**2 / theirs.rows) or 1e-9
    value = ours.share - theirs.share
    tests = tuple(
        Test("more_unknown_word_pieces", level, value, floor, lambda rate: _z(rate) * error, statistics.normal_tail(value / error))
        for level, floor in (("warn", limits.unknown_warn), ("alarm", limits.unknown_alarm))
    )
    moved = f"{theirs.share:.2%} -> {ours.share:.2%} of all word pieces"
    detail = {"window": ours.share, "reference": theirs.share}
    return Evidence(name, tests, "", reference.name, ours.rows, theirs.rows, moved, (), detail)


def _texts(window: Summary, references: References, limits: Limits, rng: np.random.Generator) -> Evidence:
    name = "texts"
    if not window.texts:
        return Evidence(name, missing="the journal keeps no texts")
    texts, against = references.texts, "the reference texts"
    if not texts and references.earlier:
        texts, against = references.earlier.texts, references.earlier.name
    if not texts:
        return Evidence(name, missing="nothing to compare with; give reference texts, or an earlier window with texts")
    found = separate(window.texts, texts, rng)
    if found is None:
        return Evidence(name, missing=f"{LEAST_TEXTS} different texts are needed on both sides")
    tests = tuple(
        Test(
            "domain_classifier_auc",
            level,
            found.auc,
            floor,
            lambda rate: found.chance_mean + _z(rate) * found.chance_deviation,
            found.p_value,
        )
        for level, floor in (("warn", limits.texts_warn), ("alarm", limits.texts_alarm))
    )
    moved = "the window has more of: " + ", ".join(found.words) if found.words else ""
    detail = {
        "chance_mean": found.chance_mean,
        "chance_deviation": found.chance_deviation,
        "permutations": found.permutations,
        "exceeding": found.exceeding,
        "words": list(found.words),
    }
    return Evidence(name, tests, "", against, found.window_texts, found.reference_texts, moved, (), detail)


def _calls(name: str, window: Summary, references: References, floors: tuple[float, float]) -> Evidence:
    """Failed or refused calls against the limits, and against the earlier window where there is one."""
    calls, bad = window.requests, getattr(window, name)
    if not calls:
        return Evidence(name, missing="no request in the window")
    earlier = references.earlier if references.earlier and references.earlier.requests >= LEAST_REFERENCE_ROWS else None
    tests = []
    for level, floor in zip(("warn", "alarm"), floors, strict=True):
        tests.append(_above(f"share_of_{name}", level, bad, calls, floor))
        if earlier:
            tests.append(_more(f"more_{name}_than_earlier", level, floor, (bad, calls), (getattr(earlier, name), earlier.requests)))
    codes = {code: count for code, count in window.codes.items() if code != "OK" and (code in REFUSALS) == (name == "refusals")}
    most = ", ".join(f"{code} {count}" for code, count in sorted(codes.items(), key=lambda item: -item[1])[:3])
    moved = f"{bad} of {calls} calls" + (f" ({most})" if most else "")
    against = f"the limits and {earlier.name}" if earlier else "the limits"
    return Evidence(name, tuple(tests), "", against, calls, earlier.requests if earlier else 0, moved, (), {"codes": codes})


def _latency(name: str, share: float, limit_ms: float | None, window: Summary, references: References, limits: Limits) -> Evidence:
    """Asks how many answers are slower than allowed: of a p95, one in twenty may be. That needs no assumption about the distribution."""
    ours = window.latency
    earlier = references.earlier.latency if references.earlier else None
    if not ours:
        return Evidence(name, missing="no record has a latency")
    if limit_ms is None and not earlier:
        return Evidence(name, missing="no limit and no earlier window given")
    tests, against = [], []
    if limit_ms is not None:
        tests.append(_slower("alarm", limit_ms, share, ours))
        against.append(f"a limit of {limit_ms:g} ms")
    moved = f"{statistics.histogram_quantile(ours.edges, ours.counts, share):.3g} ms"
    if earlier and references.earlier:
        bound = statistics.quantile_upper_bound(earlier.edges, earlier.counts, share, BOUND_RISK)
        if math.isfinite(bound):
            tests += [
                _slower(level, bound * times, share, ours)
                for level, times in (("warn", limits.slower_warn), ("alarm", limits.slower_alarm))
            ]
            against.append(references.earlier.name)
            moved = f"{statistics.histogram_quantile(earlier.edges, earlier.counts, share):.3g} ms -> {moved}"
        elif limit_ms is None:
            return Evidence(name, missing=f"{references.earlier.name} has {earlier.rows} answered calls, too few to know its {name[-3:]}")
    rows = earlier.rows if earlier else 0
    return Evidence(name, tuple(tests), "", " and ".join(against), ours.rows, rows, moved)


def _slower(level: str, threshold_ms: float, share: float, ours: Histogram) -> Test:
    surely = np.asarray(ours.edges[:-1]) >= threshold_ms
    return _above(f"share_slower_than_{threshold_ms:.4g}_ms", level, int(ours.counts[surely].sum()), ours.rows, 1 - share)


def _above(measure: str, level: str, found: int, calls: int, allowed: float) -> Test:
    """Whether more calls than allowed are so, surely: an exact binomial test."""

    def noise(rate: float) -> float:
        return (statistics.binomial_bound(calls, allowed, rate) - 1) / calls

    return Test(measure, level, found / calls, allowed, noise, statistics.binomial_tail(found, calls, allowed))


def _more(measure: str, level: str, floor: float, ours: tuple[int, int], theirs: tuple[int, int]) -> Test:
    """Whether a share of calls has grown, surely: Fisher's exact test. Each side is how many, of how many."""
    (found, calls), (before, all_before) = ours, theirs
    successes, trials = found + before, calls + all_before

    def noise(rate: float) -> float:
        most = statistics.hypergeometric_bound(calls, successes, trials, rate) - 1
        return most / calls - (successes - most) / all_before

    tail = statistics.hypergeometric_tail(found, calls, successes, trials)
    return Test(measure, level, found / calls - before / all_before, floor, noise, tail)


def _first(references: References, rows: Callable[[Summary], int]) -> Summary | None:
    """The manifest if it has enough of it, else the earlier window, else whichever has any."""
    having = [one for one in (references.manifest, references.earlier) if one and rows(one)]
    return next((one for one in having if rows(one) >= LEAST_REFERENCE_ROWS), having[0] if having else None)


def _z(rate: float) -> float:
    return NormalDist().inv_cdf(1 - rate)
