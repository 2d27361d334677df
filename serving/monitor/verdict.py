"""Summaries -> one verdict. Frees whoever is woken by it from statistics: a level, and the reasons in sentences.

    verdict(window, references, limits) -> Verdict(level, reasons, checks)

| level | when | exit code |
|---|---|---|
| ok | nothing has moved more than chance and the floors allow | 0 |
| warn | something has, a little; or there was nothing to compare with | 0 |
| alarm | something has, much | 3 |
| too_few | fewer rows than can be judged, and no alarm: an answer of its own, not an ok | 0 |

The rates of `Limits` hold for the whole verdict: each of m tests must be as sure as rate / m (Bonferroni), so that asking more questions does not
make more false alarms. Pure: the same summaries and seed give the same verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.monitor.checks import DISTRIBUTIONS, Evidence, References, Test, gather
from serving.monitor.limits import DEFAULT, Limits
from serving.monitor.window import Summary

OK, WARN, ALARM, TOO_FEW, SKIPPED = "ok", "warn", "alarm", "too_few", "skipped"
EXIT_CODES = {OK: 0, WARN: 0, TOO_FEW: 0, ALARM: 3}
TITLES = {
    "predicted": "predicted classes",
    "confidence": "confidence",
    "length": "text length",
    "script": "script",
    "unknown": "unknown word pieces",
    "texts": "texts",
    "failures": "failed calls",
    "refusals": "refused calls",
    "latency_p50": "median latency",
    "latency_p95": "95th percentile of latency",
}
MEASURES = {
    "population_stability_index": "population stability index",
    "jensen_shannon": "Jensen-Shannon divergence",
    "domain_classifier_auc": "told apart with an area under the curve of",
}


@dataclass(frozen=True)
class Comparison:
    """A test that was judged.

    Attributes:
        measure: what the number is.
        level: what exceeding means.
        value: the number.
        floor: what is tolerated at any size.
        noise: what chance alone exceeds at most at the corrected rate, for these sample sizes.
        p_value: of the value under chance alone.
    """

    measure: str
    level: str
    value: float
    floor: float
    noise: float
    p_value: float

    @property
    def threshold(self) -> float:
        """The greater of `floor` and `noise`."""
        return max(self.floor, self.noise)

    @property
    def exceeded(self) -> bool:
        return self.value > self.threshold


@dataclass(frozen=True)
class Check:
    """One question and its answer.

    Attributes:
        name: of the check.
        level: `ok`, `warn`, `alarm` or `skipped`.
        reason: one sentence with its numbers, or why it was skipped.
        comparisons: the numbers.
        evidence: what they came from.
    """

    name: str
    level: str
    reason: str
    comparisons: tuple[Comparison, ...]
    evidence: Evidence


@dataclass(frozen=True)
class Verdict:
    """The answer.

    Attributes:
        level: `ok`, `warn`, `alarm` or `too_few`.
        reasons: sentences, the worst first; what the level comes from.
        checks: all questions.
    """

    level: str
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def exit_code(self) -> int:
        """3 for an alarm, else 0."""
        return EXIT_CODES[self.level]


def verdict(window: Summary, references: References, limits: Limits = DEFAULT, seed: int = 0) -> Verdict:
    """Judges a window.

    Args:
        window: what came.
        references: what it is compared with.
        limits: what is tolerated.
        seed: of the permutations.
    """
    found = gather(window, references, limits, seed)
    tests = [test for evidence in found for test in evidence.tests]
    family = {level: max(1, sum(test.level == level for test in tests)) for level in (WARN, ALARM)}
    rates = {WARN: limits.warn_rate / family[WARN], ALARM: limits.alarm_rate / family[ALARM]}
    checks = tuple(_judged(evidence, rates) for evidence in found)
    reasons = {level: tuple(check.reason for check in checks if check.level == level) for level in (ALARM, WARN)}
    if reasons[ALARM]:
        return Verdict(ALARM, reasons[ALARM] + reasons[WARN], checks)
    if window.rows < limits.min_rows:
        few = f"{window.rows} answered texts are too few to judge; {limits.min_rows} are needed."
        return Verdict(TOO_FEW, (few, *reasons[WARN]), checks)
    if all(check.level == SKIPPED for check in checks if check.name in DISTRIBUTIONS):
        nothing = "Nothing to compare with: " + "; ".join(
            f"{check.name}: {check.reason}" for check in checks if check.name in DISTRIBUTIONS
        )
        return Verdict(WARN, (*reasons[WARN], nothing), checks)
    return Verdict(WARN if reasons[WARN] else OK, reasons[WARN], checks)


def _judged(evidence: Evidence, rates: Mapping[str, float]) -> Check:
    if not evidence.tests:
        return Check(evidence.name, SKIPPED, evidence.missing, (), evidence)
    comparisons = tuple(_compared(test, rates) for test in evidence.tests)
    level = next((level for level in (ALARM, WARN) if any(one.exceeded and one.level == level for one in comparisons)), OK)
    return Check(evidence.name, level, _sentence(evidence, comparisons, level), comparisons, evidence)


def _compared(test: Test, rates: Mapping[str, float]) -> Comparison:
    return Comparison(test.measure, test.level, test.value, test.floor, test.noise(rates[test.level]), test.p_value)


def _sentence(evidence: Evidence, comparisons: tuple[Comparison, ...], level: str) -> str:
    """Such as `predicted classes: positive: 30.1% -> 71.2%; population stability index 0.74 (alarm above 0.12); 500 rows against 244 of ...`."""
    shown = [one for one in comparisons if one.exceeded and one.level == level] or [one for one in comparisons if one.level == ALARM]
    numbers = ", ".join(
        f"{MEASURES.get(one.measure, one.measure.replace('_', ' '))} {one.value:.3g} ({one.level} above {one.threshold:.3g})"
        for one in shown
    )
    sizes = (
        f"{evidence.rows:,} against " + (f"{evidence.reference_rows:,} of " if evidence.name in DISTRIBUTIONS else "") + evidence.against
    )
    return "; ".join(part for part in (f"{TITLES[evidence.name]}: {evidence.moved}".removesuffix(": "), numbers, sizes) if part) + "."


def to_dict(found: Verdict) -> dict[str, Any]:
    """Everything as JSON has it."""
    return {
        "level": found.level,
        "exit_code": found.exit_code,
        "reasons": list(found.reasons),
        "checks": [
            {
                "name": check.name,
                "level": check.level,
                "reason": check.reason,
                "against": check.evidence.against,
                "rows": check.evidence.rows,
                "reference_rows": check.evidence.reference_rows,
                "comparisons": [
                    {
                        "measure": one.measure,
                        "level": one.level,
                        "value": one.value,
                        "threshold": one.threshold,
                        "floor": one.floor,
                        "noise": one.noise,
                        "p_value": one.p_value,
                        "exceeded": one.exceeded,
                    }
                    for one in check.comparisons
                ],
                "bins": [{"name": name, "window": ours, "reference": theirs} for name, ours, theirs in check.evidence.bins],
                **({"detail": dict(check.evidence.detail)} if check.evidence.detail else {}),
            }
            for check in found.checks
        ],
    }
