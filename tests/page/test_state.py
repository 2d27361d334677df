"""What the page shows of the server: versions, rates, latencies, and the verdict of the monitor."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from serving import wire
from serving.server import live, page
from serving.server.metrics import Metrics
from serving.server.page import PageSettings
from tests.page.conftest import DEFAULT, EVIL, EXPLAIN, TEXT, _Fake, _signature


def test_the_state_tells_versions_labels_rates_latencies_and_errors(ask: Any, fake: _Fake) -> None:
    for code, version in (("OK", 7), ("OK", 7), ("INVALID_ARGUMENT", 7), ("NOT_FOUND", None)):
        fake.metrics.record("m", "predict", "REST", code, 0.0075, version)
    fake.metrics.record("x", "Predict", "GRPC", "NOT_FOUND", 0.001, None)
    fake.metrics.record("m", "status", "REST", "OK", 0.001, None)  # no inference
    answer = ask("GET", "/page/state")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    state = answer.json()
    assert state["ready"] is True
    assert state["journal"] is None
    assert state["drift"] is None
    assert state["feedback"] is False
    [model] = state["models"]
    assert model["name"] == "m"
    assert model["labels"] == {"stable": "7"}
    good, bad = model["versions"]
    assert (good["version"], good["state"], good["requests"], good["errors"]) == ("7", "AVAILABLE", 3, {"INVALID_ARGUMENT": 1})
    assert good["rate"] > 0
    assert 5 < good["p50_ms"] < good["p95_ms"] <= 10  # the metrics' bucket from 5 to 10 ms
    assert (good["inputs"], good["explain"], good["classes"], good["separator"]) == (["text"], "left_out", [], "")
    assert (bad["version"], bad["state"], bad["message"], bad["requests"], bad["p50_ms"]) == ("6", "END", "it is broken", 0, None)
    assert "inputs" not in bad
    assert (model["unanswered"]["requests"], model["unanswered"]["errors"]) == (1, {"NOT_FOUND": 1})
    assert (state["other"]["requests"], state["other"]["errors"]) == (1, {"NOT_FOUND": 1})
    assert str(fake.folder) not in answer.text


def test_classes_and_their_separator_come_from_the_manifest(ask: Any, fake: _Fake) -> None:
    manifest = {"labels": ["a", "b"], "task": "multi_label", "config": {"data": {"label_separator": "; "}}}
    (fake.folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    version = ask("GET", "/page/state").json()["models"][0]["versions"][0]
    assert (version["classes"], version["separator"]) == (["a", "b"], "; ")


@pytest.mark.parametrize("manifest", ['{"labels": "ab"}', '{"labels": [1]}', '{"task": "multi_label", "config": []}', "[]", "{"])
def test_a_manifest_that_is_none_takes_nothing_away(ask: Any, fake: _Fake, manifest: str) -> None:
    (fake.folder / "manifest.json").write_text(manifest, encoding="utf-8")
    version = ask("GET", "/page/state").json()["models"][0]["versions"][0]
    assert (version["inputs"], version["classes"], version["separator"]) == (["text"], [], "")


def test_other_rooms_are_asked_each_time_and_their_failure_is_not_the_pages(ask: Any, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> dict[str, Any]:
        raise OSError("/secret/path")

    settings = PageSettings(journal=lambda: {"written": 3}, drift=broken, feedback=lambda *_: None)
    answer = ask("GET", "/page/state", settings=settings)
    state = answer.json()
    assert state["journal"] == {"written": 3}
    assert state["drift"] == {"failed": True}
    assert state["feedback"] is True
    assert "secret" not in answer.text
    assert "secret" in caplog.text


def test_names_are_data(ask: Any, fake: _Fake) -> None:
    fake.name = EVIL
    answer = ask("GET", "/page/state")
    assert answer.json()["models"][0]["name"] == EVIL
    assert answer.headers["content-type"] == "application/json"


def _text(*lines: tuple[str, str, str, int]) -> str:
    return "".join(
        f'serving_requests_total{{model="{m}",version="{v}",method="predict",entrypoint="REST",code="{c}"}} {n}\n' for m, v, c, n in lines
    )


def test_counts_are_read_from_the_prometheus_text_with_names_unescaped() -> None:
    metrics = Metrics(gauges=lambda: {"serving_requests_in_flight": 2.0})
    odd = 'a"b\\c\nd}{ ,code="OK'
    metrics.record(odd, "predict", "REST", "OK", 0.002, 1)
    metrics.record(odd, "Classify", "GRPC", "OK", 0.002, 1)
    counts = live.read_counts(metrics.render(), 5.0)
    assert counts.requests == {(odd, "1"): {"OK": 2.0}}
    assert counts.buckets[odd, "1"][0.001] == 0
    assert counts.buckets[odd, "1"][float("inf")] == 2
    assert (counts.in_flight, counts.moment) == (2, 5.0)


def test_the_window_is_about_the_last_minute_while_somebody_looks() -> None:
    moment, count = 0.0, 0
    window = live.Window(lambda: _text(("m", "1", "OK", count)), lambda: moment)

    def look(at: float) -> float:
        nonlocal moment, count
        moment, count = at, int(at)  # one request a second
        before, now = window.look()
        assert now.moment <= at
        return now.moment - before.moment

    assert look(3600.0) == 3600.0, "the first: since the start"
    assert look(3602.0) == 2.0, "then since the first"
    assert look(3602.1) == 2.0, "too soon: the same answer again"
    spans = [look(3602.0 + second) for second in range(2, 300, 2)]
    assert spans[0] == 4.0
    assert max(spans) <= live.WINDOW_S + live.KEPT_EVERY_S
    assert min(spans[40:]) >= live.WINDOW_S - live.KEPT_EVERY_S
    assert look(9000.0) == pytest.approx(9000 - 3900, abs=6), "nobody has looked for long"
    assert look(9002.0) == 2.0


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([0, 0, 0, 0], 0.5, None),
        ([10, 10, 10, 10], 0.5, 0.5),  # half of the first bucket
        ([0, 10, 10, 10], 0.5, 1.5),
        ([5, 10, 10, 10], 0.95, 1.9),
        ([0, 0, 10, 10], 1.0, 4.0),
        ([0, 0, 0, 10], 0.5, 4.0),  # over the last bound: no more is known
    ],
)
def test_quantiles_are_read_from_buckets(counts: list[int], share: float, expected: float | None) -> None:
    after = {bound: float(count) for bound, count in zip((1.0, 2.0, 4.0, float("inf")), counts, strict=True)}
    assert live.quantile({}, after, share) == (None if expected is None else pytest.approx(expected))
    assert live.quantile(after, after, share) is None


@pytest.mark.parametrize(
    ("signatures", "inputs", "explain"),
    [
        ({"serving_default": DEFAULT}, ["text"], "left_out"),
        ({"serving_default": DEFAULT, "explain": EXPLAIN}, ["text"], "gradients"),
        ({"serving_default": _signature({"text_pair": [-1], "text": [-1]}, ["probabilities"])}, ["text", "text_pair"], "left_out"),
        ({"serving_default": DEFAULT, "explain": _signature({"other": [-1]}, ["pieces", "attributions"])}, ["text"], "left_out"),
        ({"serving_default": _signature({"sentence": [-1]}, ["probabilities"])}, ["sentence"], ""),
        ({"serving_default": _signature(TEXT, ["label"])}, ["text"], ""),
        ({"serving_default": _signature({"x": [-1]}, ["y"], wire.DT_FLOAT)}, [], ""),
        ({"serving_default": _signature({"text": [-1, 1]}, ["probabilities"])}, [], ""),
        ({"tokens": DEFAULT}, [], ""),
        ({}, [], ""),
    ],
)
def test_what_a_version_can_be_asked_is_read_from_its_signatures(signatures: Any, inputs: list[str], explain: str) -> None:
    assert live.describe(signatures) == {"inputs": inputs, "explain": explain}


def test_the_verdict_is_read_from_the_monitors_file_whenever_it_changes(tmp_path: Path) -> None:
    report = tmp_path / "drift.json"
    drift = page.drift_from(report)
    assert drift() is None
    for level in ("ok", "alarm"):
        reasons = [f"reason {number}" for number in range(20)]
        report.write_text(json.dumps({"model": "m", "version": 7, "level": level, "reasons": reasons, "checks": []}), encoding="utf-8")
        found = drift()
        assert found is not None
        assert (found["verdict"], found["model"], found["version"], found["reasons"]) == (level, "m", "7", reasons[: page.MAX_REASONS])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["time"])


def test_a_file_that_is_no_verdict_is_said_on_the_page(ask: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = tmp_path / "drift.json"
    report.write_text("{", encoding="utf-8")
    assert ask("GET", "/page/state", settings=PageSettings(drift=page.drift_from(report))).json()["drift"] == {"failed": True}
    assert "the page could not ask" in caplog.text
