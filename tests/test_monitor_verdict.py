"""The verdict as a table: one case a line, in words. Pure: summaries in, a level and its reasons out."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from serving.errors import ConfigError
from serving.monitor.checks import References
from serving.monitor.limits import Limits
from serving.monitor.verdict import EXIT_CODES, Check, Verdict, to_dict, verdict
from serving.monitor.window import LATENCY_EDGES, Histogram, Ratio, Summary

LENGTHS = (0.0, 50.0, 100.0, 1e9)
MANIFEST = Summary(
    "the manifest",
    rows=240,
    predicted={"negative": 80, "neutral": 90, "positive": 70},
    confidence=Histogram((0.0, 0.6, 0.8, 1.0), np.array([40, 80, 120])),
    characters=Histogram(LENGTHS, np.array([100, 100, 40])),
    tokens=Histogram((0.0, 16.0, 1e6), np.array([150, 90])),
    scripts={"Latin": 238, "Han": 2},
    unknown=Ratio(240, 0.002, None),
)


def latency(p50_ms: float, calls: int, spread: float = 0.5) -> Histogram:
    values = np.random.default_rng(0).lognormal(np.log(p50_ms), spread, calls)
    return Histogram(LATENCY_EDGES, np.histogram(values, LATENCY_EDGES)[0])


def window(rows: int = 480, name: str = "the window", **values: Any) -> Summary:
    """As the manifest, but for `values`."""
    times = rows / 240
    usual: dict[str, Any] = {
        "predicted": {"negative": 80 * times, "neutral": 90 * times, "positive": 70 * times},
        "confidence": Histogram((0.0, 0.6, 0.8, 1.0), (np.array([40, 80, 120]) * times).astype(int)),
        "characters": Histogram(LENGTHS, (np.array([100, 100, 40]) * times).astype(int)),
        "scripts": {"Latin": 238 * times, "Han": 2 * times},
        "unknown": Ratio(rows, 0.002, 0.02),
        "requests": rows,
        "codes": {"OK": rows},
        "latency": latency(8, rows) if rows else None,
    }
    usual["predicted"] = {label: round(count) for label, count in usual["predicted"].items()}
    usual["scripts"] = {script: round(count) for script, count in usual["scripts"].items()}
    return Summary(name, rows, **(usual | values))


def judged(ours: Summary, earlier: Summary | None = None, limits: Limits | None = None, manifest: Summary = MANIFEST) -> Verdict:
    return verdict(ours, References(manifest, earlier), limits or Limits())


def check(found: Verdict, name: str) -> Check:
    return next(one for one in found.checks if one.name == name)


def shares(*counts: int) -> dict[str, int]:
    return dict(zip(("negative", "neutral", "positive"), counts, strict=True))


CONFIDENCE = MANIFEST.confidence.edges if MANIFEST.confidence else ()
CASES: list[tuple[str, Summary, str, set[str]]] = [
    ("as the manifest", window(), "ok", set()),
    ("twice as many negative", window(predicted=shares(320, 90, 70)), "alarm", {"predicted"}),
    ("a few more negative", window(predicted=shares(190, 160, 130)), "ok", set()),
    ("some more negative", window(predicted=shares(232, 136, 112)), "warn", {"predicted"}),
    ("twice as many negative, but only twelve texts", window(rows=12, predicted=shares(8, 2, 2)), "too_few", set()),
    ("a class the model does not have", window(predicted=shares(140, 140, 100) | {"(not a class of this model)": 100}), "alarm", {"predicted"}),
    ("much less sure", window(confidence=Histogram(CONFIDENCE, np.array([240, 140, 100]))), "alarm", {"confidence"}),
    ("much surer", window(confidence=Histogram(CONFIDENCE, np.array([10, 50, 420]))), "alarm", {"confidence"}),
    ("much longer", window(characters=Histogram(LENGTHS, np.array([40, 100, 340]))), "alarm", {"length"}),
    ("a third Chinese", window(scripts={"Latin": 320, "Han": 160}), "alarm", {"script"}),
    ("a new script in three of a hundred texts", window(scripts={"Latin": 462, "Han": 4, "Cyrillic": 14}), "ok", set()),
    ("a tenth of all word pieces unknown", window(unknown=Ratio(480, 0.1, 0.1)), "alarm", {"unknown"}),
    ("two of a hundred unknown", window(unknown=Ratio(480, 0.02, 0.05)), "warn", {"unknown"}),
    ("one text of nothing but unknown word pieces", window(unknown=Ratio(480, 0.05, 1.05)), "ok", set()),
    ("fewer unknown", window(unknown=Ratio(480, 0.0, 0.0)), "ok", set()),
    ("one call in eight fails", window(codes={"OK": 420, "UNAVAILABLE": 60}), "alarm", {"failures"}),
    ("three calls in a hundred fail", window(codes={"OK": 465, "DEADLINE_EXCEEDED": 15}), "warn", {"failures"}),
    ("two of 480 calls fail", window(codes={"OK": 478, "INTERNAL": 2}), "ok", set()),
    ("five calls and all fail", window(rows=0, requests=5, codes={"UNAVAILABLE": 5}, predicted=None, confidence=None), "alarm", {"failures"}),
    ("one call and it fails", window(rows=0, requests=1, codes={"UNAVAILABLE": 1}, predicted=None, confidence=None), "too_few", set()),
    ("half of the calls are refused", window(codes={"OK": 240, "INVALID_ARGUMENT": 240}), "alarm", {"refusals"}),
    ("one call in ten is refused", window(codes={"OK": 432, "INVALID_ARGUMENT": 48}), "warn", {"refusals"}),
    ("nothing at all", window(rows=0, requests=0, codes={}, predicted=None, confidence=None, characters=None, scripts=None, unknown=None), "too_few", set()),
]  # fmt: skip


@pytest.mark.parametrize(("case", "ours", "level", "named"), CASES, ids=[case for case, *_ in CASES])
def test_the_table_of_verdicts(case: str, ours: Summary, level: str, named: set[str]) -> None:
    found = judged(ours)
    assert found.level == level, found.reasons
    assert {one.name for one in found.checks if one.level in ("warn", "alarm")} == named
    assert found.exit_code == EXIT_CODES[level] == (3 if level == "alarm" else 0)
    assert bool(found.reasons) == (level != "ok")


def test_a_huge_window_does_not_alarm_on_a_trivial_difference() -> None:
    rows = 1_000_000
    reference = Summary("the manifest", rows, predicted=shares(300_000, 400_000, 300_000))
    ours = Summary("the window", rows, predicted=shares(315_000, 395_000, 290_000), requests=rows, codes={"OK": rows})
    found = check(judged(ours, manifest=reference), "predicted")
    assert found.level == "ok"
    # Surely not the same, and still tolerated.
    assert all(one.p_value < 0.001 and one.value > one.noise for one in found.comparisons)


def test_the_same_shift_needs_more_texts_when_the_reference_is_small() -> None:
    def level(reference_rows: int) -> str:
        reference = Summary("the manifest", reference_rows, predicted={"a": reference_rows // 2, "b": reference_rows // 2})
        ours = Summary("the window", 300, predicted={"a": 200, "b": 100}, requests=300, codes={"OK": 300})
        return check(judged(ours, manifest=reference), "predicted").level

    assert [level(rows) for rows in (20, 40, 3_000)] == ["ok", "ok", "alarm"]


def test_asking_more_questions_makes_each_one_stricter() -> None:
    alone = Summary("the window", 480, predicted=shares(230, 140, 110), requests=480, codes={"OK": 480})
    few, many = check(judged(alone), "predicted"), check(judged(window(predicted=shares(230, 140, 110))), "predicted")
    for one, other in zip(few.comparisons, many.comparisons, strict=True):
        assert one.value == other.value
        assert one.noise < other.noise


def test_half_a_percent_of_alarms_at_most_when_nothing_has_changed() -> None:
    rng, alarms, warnings = np.random.default_rng(5), 0, 0
    law = np.array([0.35, 0.35, 0.3])
    for _ in range(60):
        ours, theirs = (shares(*rng.multinomial(size, law).tolist()) for size in (300, 244))
        found = judged(window(300, predicted=ours), manifest=Summary("the manifest", 244, predicted=theirs))
        alarms += found.level == "alarm"
        warnings += found.level == "warn"
    assert alarms == 0
    assert warnings <= 4


def test_without_anything_to_compare_with_it_warns_and_says_so() -> None:
    found = judged(window(), manifest=Summary("the manifest", 0))
    assert (found.level, found.exit_code) == ("warn", 0)
    assert found.reasons[0].startswith(
        "Nothing to compare with: predicted: neither the manifest nor an earlier window has predicted classes;"
    )


def test_the_earlier_window_steps_in_for_what_the_manifest_lacks_and_only_for_that() -> None:
    bare = Summary("the manifest", 240, predicted=MANIFEST.predicted)
    earlier = window(name="the earlier window", predicted=shares(480, 0, 0))
    found = judged(window(scripts={"Latin": 100, "Han": 380}), earlier, manifest=bare)
    assert check(found, "predicted").evidence.against == "the manifest"
    assert check(found, "predicted").level == "ok"
    assert check(found, "script").evidence.against == "the earlier window"
    assert check(found, "script").level == "alarm"
    assert check(found, "length").evidence.against == "the earlier window"


@pytest.mark.parametrize(
    ("manifest", "ours", "against", "unit"),
    [
        ("characters and tokens", "both", "the manifest", "characters"),
        ("tokens", "both", "the manifest", "word pieces"),
        ("tokens", "characters", "the earlier window", "characters"),
        ("neither", "both", "the earlier window", "characters"),
    ],
)
def test_length_is_compared_in_the_unit_both_sides_have(manifest: str, ours: str, against: str, unit: str) -> None:
    reference = Summary(
        "the manifest",
        240,
        characters=MANIFEST.characters if "characters" in manifest else None,
        tokens=MANIFEST.tokens if "tokens" in manifest else None,
    )
    tokens = Histogram((0.0, 16.0, 1e6), np.array([300, 180])) if ours == "both" else None
    found = check(judged(window(tokens=tokens), window(name="the earlier window"), manifest=reference), "length")
    assert (found.evidence.against, found.evidence.detail["unit"]) == (against, unit)


def test_length_without_a_common_unit_says_what_is_missing() -> None:
    found = check(judged(window(), manifest=Summary("the manifest", 240, tokens=MANIFEST.tokens)), "length")
    assert (found.level, found.reason) == (
        "skipped",
        "the manifest has no lengths in characters, the records none in word pieces; export again, or give an earlier window",
    )


def test_texts_are_told_apart_from_reference_texts_or_from_the_earlier_window() -> None:
    bank = tuple(f"the card was {word} number {number}" for number in range(60) for word in ("declined", "late"))
    film = tuple(f"an actor in scene {number} seemed {word}" for number in range(60) for word in ("bored", "lively"))
    given = verdict(window(texts=film), References(MANIFEST, None, bank))
    former = verdict(window(texts=film), References(MANIFEST, window(name="the earlier window", texts=bank)))
    for found, against in ((given, "the reference texts"), (former, "the earlier window")):
        assert (check(found, "texts").level, check(found, "texts").evidence.against) == ("alarm", against)
        assert found.level == "alarm"
        assert "the window has more of: " in check(found, "texts").reason
    few = check(verdict(window(texts=film[:49]), References(MANIFEST, None, bank)), "texts")
    assert (few.level, few.reason) == ("skipped", "50 different texts are needed on both sides")


LATENCIES: list[tuple[str, float, float | None, dict[str, float], str, str]] = [
    ("as before", 8, 8, {}, "ok", "ok"),
    ("a tenth slower", 8.8, 8, {}, "ok", "ok"),
    ("1.7 times as slow", 13.6, 8, {}, "warn", "warn"),
    ("three times as slow", 24, 8, {}, "alarm", "alarm"),
    ("faster", 4, 8, {}, "ok", "ok"),
    ("under its limits", 8, None, {"p50_ms": 10, "p95_ms": 25}, "ok", "ok"),
    ("over the limit of the median", 8, None, {"p50_ms": 6, "p95_ms": 25}, "alarm", "ok"),
    ("over the limit of the 95th percentile", 8, None, {"p50_ms": 10, "p95_ms": 12}, "ok", "alarm"),
    ("over a limit by less than can be told", 8, None, {"p50_ms": 7.9, "p95_ms": 18}, "ok", "ok"),
    ("neither limit nor earlier window", 8, None, {}, "skipped", "skipped"),
]


@pytest.mark.parametrize(("case", "p50_ms", "before_ms", "limits", "p50", "p95"), LATENCIES, ids=[case for case, *_ in LATENCIES])
def test_the_table_of_latencies(case: str, p50_ms: float, before_ms: float | None, limits: dict[str, float], p50: str, p95: str) -> None:
    earlier = window(5_000, "the earlier window", latency=latency(before_ms, 5_000)) if before_ms else None
    found = judged(window(2_000, latency=latency(p50_ms, 2_000)), earlier, Limits(**limits))  # type: ignore[arg-type]
    assert (check(found, "latency_p50").level, check(found, "latency_p95").level) == (p50, p95)


def test_an_earlier_window_of_few_calls_knows_no_95th_percentile() -> None:
    found = check(judged(window(), window(100, "the earlier window")), "latency_p95")
    assert (found.level, found.reason) == ("skipped", "the earlier window has 100 answered calls, too few to know its p95")


@pytest.mark.parametrize(("failed", "failed_before", "level"), [(20, 20, "warn"), (60, 0, "alarm"), (12, 0, "warn"), (3, 1, "ok")])
def test_failures_are_held_against_the_limits_and_the_earlier_window(failed: int, failed_before: int, level: str) -> None:
    earlier = window(480, "the earlier window", codes={"OK": 480 - failed_before, "INTERNAL": failed_before})
    found = check(judged(window(codes={"OK": 480 - failed, "INTERNAL": failed}), earlier), "failures")
    assert found.level == level, found.reason


def test_a_reason_is_a_sentence_with_its_numbers() -> None:
    found = judged(window(predicted=shares(320, 90, 70)))
    # The thresholds are drawn: another version of numpy may draw a little differently.
    assert [re.sub(r"above 0\.(1[23]|02)\d+", "above N", reason) for reason in found.reasons] == [
        "predicted classes: negative: 33.3% -> 66.7%; population stability index 0.459 (alarm above N), "
        "Jensen-Shannon divergence 0.0817 (alarm above N); 480 against 240 of the manifest."
    ]


def test_alarms_come_before_warnings_in_the_reasons() -> None:
    found = judged(window(predicted=shares(232, 136, 112), codes={"OK": 420, "UNAVAILABLE": 60}))
    assert [reason.split(":")[0] for reason in found.reasons] == ["failed calls", "predicted classes"]


def test_the_same_summaries_give_the_same_verdict() -> None:
    first, second = (to_dict(judged(window(predicted=shares(230, 140, 110)))) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"alarm_rate": 0.5}, "alarm_rate: expected 0.0001 to 0.1, received 0.5"),
        ({"min_rows": 0}, "min_rows: expected a number above 0, received 0"),
        ({"p95_ms": float("nan")}, "p95_ms: expected a number above 0, received nan"),
        ({"texts_warn": 0.9}, "texts_warn: expected at most texts_alarm = 0.7, received 0.9"),
    ],
)
def test_limits_that_cannot_be_meant_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Limits(**values)
    assert str(refused.value) == f"Limits of the monitor: {said}. Correct them, or leave them out for the defaults."


def test_all_wrong_limits_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"failures_warn.*slower_alarm"):
        Limits(failures_warn=-1, slower_alarm=True)
