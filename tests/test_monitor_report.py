"""From records to a report: which records count, what is said of the others, and what people read."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from serving import journal
from serving.errors import ConfigError
from serving.monitor import Limits, Report, moment, monitor

START = datetime(2026, 11, 24, 12, tzinfo=timezone.utc)
MANIFEST: dict[str, Any] = {
    "name": "bank",
    "version": 7,
    "labels": ["negative", "positive"],
    "task": "single_label",
    "reference": {
        "rows": 300,
        "predicted": {"negative": 150, "positive": 150},
        "confidence": {"edges": [0.0, 0.8, 1.0], "counts": [100, 200]},
        "characters": {"edges": [0, 20, 1_000], "counts": [150, 150]},
        "scripts": {"Latin": 300},
    },
}


def record(number: int, **values: Any) -> dict[str, Any]:
    """One a second from `START`; as the manifest expects them."""
    usual = {
        "kind": "request",
        "time": (START + timedelta(seconds=number)).isoformat(timespec="milliseconds"),
        "id": f"r{number}:0",
        "model": "bank",
        "version": 7,
        "version_label": "stable",
        "source": "server",
        "code": "OK",
        "ms": 8.0,
        "label": ("negative", "positive")[number % 2],
        "score": (0.7, 0.9, 0.9)[number % 3],
        "probabilities": None,
        "length": (10, 30)[number // 2 % 2],
        "tokens": None,
        "unknown": None,
        "text_key": None,
    }
    return usual | values


def records(count: int = 300, first: int = 0, **values: Any) -> list[dict[str, Any]]:
    return [record(number, **values) for number in range(first, first + count)]


def at(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


def test_a_window_like_the_reference_is_ok() -> None:
    report = monitor(records(), MANIFEST)
    assert (report.verdict.level, report.exit_code, report.notes) == ("ok", 0, ())
    assert (report.model, report.version, report.window.rows) == ("bank", 7, 300)


def test_other_answers_are_an_alarm() -> None:
    report = monitor(records(label="negative"), MANIFEST)
    assert (report.verdict.level, report.exit_code) == ("alarm", 3)


def test_a_window_has_its_start_and_not_its_end() -> None:
    report = monitor(records(), MANIFEST, since=at(100), until=at(250))
    assert report.window.rows == 150
    assert (report.window.first, report.window.last) == (at(100), at(249))


def test_a_time_without_a_zone_is_utc() -> None:
    report = monitor(records(), MANIFEST, since=at(100).replace(tzinfo=None))
    assert report.window.rows == 200


def test_times_are_read_in_any_zone_and_with_z() -> None:
    odd = [
        record(0, time="2026-11-24T14:00:00.000+02:00"),
        record(0, time="2026-11-24T12:00:00Z"),
        record(0, time="2026-11-24T12:00:00"),
    ]
    report = monitor([*odd, record(0, time="yesterday"), record(0, time=None)], MANIFEST, since=at(0), until=at(1))
    assert report.window.rows == 3
    assert report.notes == ("Passed over, without a readable time: 2.",)


def test_feedback_and_other_models_and_versions_are_passed_over_and_told() -> None:
    others = [*records(5, version=6), *records(2, model="film")]
    feedback = {"kind": "feedback", "time": record(0)["time"], "id": "r1:0", "label": "positive"}
    report = monitor([*records(), *others, feedback], MANIFEST)
    assert report.window.rows == 300
    assert report.notes == ("Passed over, of other models and versions: bank 6 (5), film 7 (2).",)


def test_calls_that_failed_before_a_version_was_known_are_failures_of_this_model() -> None:
    failed = [*records(30, code="UNAVAILABLE", version=None, label=None, score=None), *records(30, 30, code="UNAVAILABLE", version=6)]
    report = monitor([*records(), *failed], MANIFEST)
    assert (report.window.failures, report.window.requests) == (30, 330)


def test_what_client_and_server_both_wrote_is_counted_once() -> None:
    report = monitor([*records(), *records(200, source="client", label="negative")], MANIFEST)
    assert (report.window.rows, report.verdict.level) == (300, "ok")
    assert report.notes == ("Judged by the 300 records of the server; the 200 of the client may be of the same requests.",)
    assert monitor(records(source="client"), MANIFEST).window.rows == 300


def test_the_earlier_window_ends_where_the_window_starts() -> None:
    slow = records(300, 300, ms=40.0)
    report = monitor([*records(), *slow], MANIFEST, since=at(300), reference_since=at(0))
    assert report.references.earlier is not None
    assert (report.references.earlier.rows, report.window.rows) == (300, 300)
    assert {check.name for check in report.verdict.checks if check.level == "alarm"} == {"latency_p50", "latency_p95"}


def test_of_another_version_the_earlier_window_takes_inputs_and_not_answers() -> None:
    bare = MANIFEST | {"reference": {}}
    report = monitor([*records(version=6, label="negative"), *records(300, 300)], bare, since=at(300), reference_since=at(0))
    levels = {check.name: check.level for check in report.verdict.checks}
    assert (levels["predicted"], levels["length"]) == ("skipped", "ok")


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (
            {"since": at(10), "until": at(5)},
            "The window is empty: since 2026-11-24T12:00:10+00:00 is not before until 2026-11-24T12:00:05+00:00. "
            "Give them the other way round.",
        ),
        (
            {"reference_since": at(0)},
            "The earlier window is empty: it starts at 2026-11-24T12:00:00+00:00 and ends at the first record. "
            "Let it end later, or give the window a `since` after it.",
        ),
        (
            {"since": at(10), "reference_since": at(0), "reference_until": at(20)},
            "The earlier window, to 2026-11-24T12:00:20+00:00, overlaps the window, from 2026-11-24T12:00:10+00:00. "
            "A window cannot be compared with itself: let the earlier one end where the window starts.",
        ),
    ],
)
def test_windows_that_cannot_be_meant_are_refused(times: dict[str, datetime], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        monitor(records(), MANIFEST, **times)  # type: ignore[arg-type]
    assert str(refused.value) == said


NOW = datetime(2026, 11, 24, 18, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90m", NOW - timedelta(minutes=90)),
        ("24h", NOW - timedelta(days=1)),
        ("7 d", NOW - timedelta(days=7)),
        ("1.5h", NOW - timedelta(minutes=90)),
        ("2026-11-24", datetime(2026, 11, 24, tzinfo=timezone.utc)),
        ("2026-11-24T13:00", datetime(2026, 11, 24, 13, tzinfo=timezone.utc)),
        ("2026-11-24T13:00:00Z", datetime(2026, 11, 24, 13, tzinfo=timezone.utc)),
        ("2026-11-24T13:00+01:00", datetime(2026, 11, 24, 12, tzinfo=timezone.utc)),
    ],
)
def test_times_as_people_give_them(text: str, expected: datetime) -> None:
    assert moment(text, NOW) == expected


@pytest.mark.parametrize("text", ["yesterday", "", "24", "24x", "-3h", "9999999999999999w"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        moment(text, NOW)
    assert str(refused.value) == (
        f"{text!r} is no time. Expected such as 2026-11-24, 2026-11-24T13:00 (UTC), or how long ago: 90m, 24h, 7d."
    )


def test_a_journal_on_disk_is_judged_with_its_torn_and_dropped_records(tmp_path: Path) -> None:
    lines = [json.dumps(one) for one in records()]
    lines.insert(5, json.dumps({"kind": "drops", "time": record(4)["time"], "source": "server", "count": 12}))
    (tmp_path / "20261124T120000.000Z-writer-000001.jsonl").write_text("\n".join([*lines, lines[0][:50]]), encoding="utf-8")
    report = monitor(journal.read(tmp_path), MANIFEST)
    assert (report.window.rows, report.verdict.level) == (300, "ok")
    assert report.notes == (
        "The journal dropped 12 records of the window, as its disk or queue was full; what they were is not known.",
        "Skipped, as they are no whole records: 1 lines.",
    )


def test_the_text_is_for_people() -> None:
    report = monitor([*records(label="negative"), *records(3, model="film")], MANIFEST)
    lines = [re.sub(r"above 0\.(1|02)\d+", "above N", line) for line in report.text().splitlines()]
    assert lines[:8] == [
        "bank 7: ALARM: what the model sees or answers is not what it was made for, or the service is not well.",
        "  300 answered texts in 300 requests, 2026-11-24 12:00 to 2026-11-24 12:04 UTC",
        "  latency p50 7.99 ms, p95 8.06 ms; 0 failed, 0 refused",
        "",
        "Why:",
        "  - predicted classes: negative: 50.0% -> 100.0%; population stability index 3.19 (alarm above N), "
        "Jensen-Shannon divergence 0.311 (alarm above N); 300 against 300 of the manifest.",
        "",
        "Checks:",
    ]
    assert "  skipped  texts: the journal keeps no texts" in lines
    assert lines[-1] == "Passed over, of other models and versions: film 7 (3)."


def test_an_empty_journal_is_too_few_and_not_an_ok() -> None:
    report = monitor([], MANIFEST)
    assert (report.verdict.level, report.exit_code) == ("too_few", 0)
    assert report.text().splitlines()[:5] == [
        "bank 7: TOO FEW requests to judge.",
        "  no requests in the window",
        "",
        "Why:",
        "  - 0 answered texts are too few to judge; 100 are needed.",
    ]
    assert "<svg" not in report.html()


def test_the_document_is_strict_json_with_all_numbers() -> None:
    report = monitor(records(label="negative"), MANIFEST, since=at(0), limits=Limits(p95_ms=100))
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert (document["level"], document["exit_code"], document["model"], document["version"]) == ("alarm", 3, "bank", 7)
    assert document["since"] == "2026-11-24T12:00:00+00:00"
    assert document["window"]["rows"] == 300
    assert document["limits"]["p95_ms"] == 100
    predicted = document["checks"][0]
    assert predicted["bins"] == [
        {"name": "negative", "window": 300, "reference": 150},
        {"name": "positive", "window": 0, "reference": 150},
    ]
    assert [one["measure"] for one in predicted["comparisons"]] == ["population_stability_index"] * 2 + ["jensen_shannon"] * 2
    assert all(one["threshold"] == max(one["floor"], one["noise"]) for one in predicted["comparisons"])


class Page(HTMLParser):
    """Tags, attributes and text, as a browser sees them."""

    VOID = frozenset({"meta", "link", "br", "img", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def full_report(**values: Any) -> Report:
    texts = [record(number, text=f"the {'film' if number % 2 else 'scene'} was dull, scene {number}") for number in range(300, 600)]
    before = [record(number, text=f"my {'card' if number % 2 else 'loan'} is late, case {number}") for number in range(300)]
    return monitor([*before, *texts, *records(20, 600, code="INTERNAL")], MANIFEST, since=at(300), reference_since=at(0), **values)


def test_the_page_stands_alone() -> None:
    page = Page(full_report().html())
    assert page.tags.count("svg") == 6
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href", "style")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert "://" not in full_report().html()
    assert "prefers-color-scheme: dark" in page.text
    assert len(full_report().html()) < 150_000


def test_the_page_shows_what_the_text_says() -> None:
    report = full_report()
    page = Page(report.html())
    for reason in report.verdict.reasons:
        assert reason in page.text
    assert len(report.verdict.reasons) >= 2
    assert ("lang", "en") in page.attributes
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert len(labels) == 6


def test_names_from_data_are_shown_and_not_run() -> None:
    evil = '<script>alert("1")</script>\x00\ud800'
    manifest = MANIFEST | {"name": evil, "labels": [evil, "positive"]}
    manifest["reference"] = MANIFEST["reference"] | {"predicted": {evil: 150, "positive": 150}}
    found = [record(number, model=evil, label=evil, code="OK") for number in range(300)]
    html = monitor([*found, *records(3, model="<b>other</b>")], manifest).html()
    page = Page(html)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert '<script>alert("1")</script>' in page.text
    assert html.encode("utf-8")
    assert not re.search(r"[\x00-\x08]", html)


def test_the_same_records_give_the_same_report() -> None:
    assert full_report().to_dict() == full_report().to_dict()
    assert full_report().html() == full_report().html()
