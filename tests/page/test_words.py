"""Which words mattered."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import numpy as np
import pytest

from serving.server import page, words
from tests.page.conftest import DEFAULT, EXPLAIN, TEXT, _explain, _Fake, _signature


@pytest.mark.parametrize(
    ("pieces", "expected", "other"),
    [
        ("[CLS] un ##like ##ly good [SEP] [PAD]", [("unlikely", 9.0), ("good", 5.0)], 14.0),
        ("##s a", [("##s", 1.0), ("a", 2.0)], 0.0),
        ("[CLS] ##s", [("##s", 2.0)], 1.0),
        ("a [SEP] ##s ##t", [("a", 1.0), ("##st", 7.0)], 2.0),
        ("a ## ##", [("a", 1.0), ("##", 2.0), ("##", 3.0)], 0.0),
        ("[UNK] ##s", [("[UNK]s", 3.0)], 0.0),
        ("", [], 0.0),
    ],
)
def test_pieces_are_joined_to_words_and_nothing_is_lost(pieces: str, expected: list[tuple[str, float]], other: float) -> None:
    values = [float(number) for number in range(1, len(pieces.split()) + 1)]
    found, rest_ = words.joined(pieces.split(), values)
    assert [(word["text"], word["value"]) for word in found] == expected
    assert rest_ == other
    assert sum(word["value"] for word in found) + rest_ == sum(values)


def test_the_signature_explain_is_preferred_and_gives_words_gap_and_sum(ask: Any, fake: _Fake) -> None:
    fake.signatures = {"serving_default": DEFAULT, "explain": EXPLAIN}
    fake.explanation = {
        "pieces": np.array([[b"[CLS]", b"go", b"##od", b"\xff", b"[SEP]"]], object),
        "attributions": np.array([[0.125, 0.25, 0.25, -0.5, 0.125]], np.float32),
        "label": np.array([b"positive"], object),
        "score": np.array([0.75], np.float32),
        "baseline_score": np.array([0.25], np.float32),
        "gap": np.array([0.0625], np.float32),
    }
    assert _explain(ask).json() == {
        "version": "7",
        "way": "gradients",
        "label": "positive",
        "score": 0.75,
        "baseline_score": 0.25,
        "gap": 0.0625,
        "other": 0.25,
        "words": [{"text": "good", "value": 0.5}, {"text": "\ufffd", "value": -0.5}],
    }
    assert fake.asked == [{"text": ["good bad day"]}]


def test_without_it_each_word_is_left_out_once(ask: Any, fake: _Fake) -> None:
    answer = _explain(ask, "good, lovely bad-ish 好天").json()
    assert fake.asked == [
        {
            "text": [
                "good, lovely bad-ish 好天",
                ", lovely bad-ish 好天",
                "good,  bad-ish 好天",
                "good, lovely  好天",
                "good, lovely bad-ish 天",
                "good, lovely bad-ish 好",
            ]
        }
    ]
    assert [word["text"] for word in answer["words"]] == ["good", "lovely", "bad-ish", "好", "天"]
    assert [round(word["value"], 6) for word in answer["words"]] == [0, 0.2, 0, 0, 0]  # "good," is no word of this model
    assert (answer["way"], answer["label"], answer["cut"]) == ("left_out", "positive", False)
    assert answer["score"] == pytest.approx(0.7)


def test_a_long_text_is_looked_at_as_far_as_it_costs_and_that_is_said(ask: Any, fake: _Fake) -> None:
    answer = _explain(ask, "word " * 500).json()
    assert len(answer["words"]) == words.MAX_LEFT_OUT
    assert answer["cut"] is True
    assert len(fake.asked[0]["text"]) == words.MAX_LEFT_OUT + 1


def test_a_text_without_words_has_none_that_mattered(ask: Any) -> None:
    assert _explain(ask, "?!").json()["words"] == []


def test_explaining_is_counted_but_its_time_is_not_taken_for_a_predictions(ask: Any, fake: _Fake) -> None:
    _explain(ask)
    _explain(ask, model="x")
    text = fake.metrics.render()
    assert 'serving_requests_total{model="m",version="",method="explain",entrypoint="REST",code="OK"} 1' in text
    assert 'serving_requests_total{model="x",version="",method="explain",entrypoint="REST",code="NOT_FOUND"} 1' in text
    assert "serving_request_seconds_count" not in text
    assert all(deadline is not None for deadline in fake.deadlines)


def test_numbers_that_are_none_are_an_error_and_not_json(ask: Any, fake: _Fake) -> None:
    fake.signatures = {"serving_default": DEFAULT, "explain": _signature(TEXT, ["pieces", "attributions"])}
    fake.explanation = {"pieces": np.array([[b"a"]], object), "attributions": np.array([[np.nan]], np.float32)}
    answer = _explain(ask)
    assert answer.status_code == 500
    assert answer.json() == {"error": "The model answers with numbers that are not finite: which words mattered cannot be said."}


@pytest.mark.parametrize(
    ("document", "http", "message"),
    [
        ({"model": ""}, 400, "model: expected a model's name; received ''."),
        ({"model": "x"}, 404, "Servable not found for request: Latest(x)"),
        ({"version": 7}, 400, "version: expected digits in a text; received 7. Leave it out for the newest."),
        ({"version": "７"}, 400, "version: expected digits in a text; received '７'. Leave it out for the newest."),
        ({"version": "9" * 20}, 400, "version: expected digits in a text; received '99999999999999999999'. Leave it out for the newest."),
        ({"inputs": {"text": 1}}, 400, 'inputs: expected one text per input, such as {"text": "..."}; received {\'text\': 1}.'),
        ({"inputs": {}}, 400, "inputs []: this model takes ['text']. Name each once."),
        ({"inputs": {"text": "a", "b": "c"}}, 400, "inputs ['b', 'text']: this model takes ['text']. Name each once."),
        ({"more": 1}, 400, "unknown field 'more': expected model, version, inputs."),
    ],
)
def test_what_cannot_be_explained_is_refused_in_words(ask: Any, document: dict[str, Any], http: int, message: str) -> None:
    answer = _explain(ask, **document)
    assert (answer.status_code, answer.json()) == (http, {"error": message})


def test_only_a_few_explanations_run_at_once(app: Any, fake: _Fake) -> None:
    release, started = threading.Event(), threading.Semaphore(0)

    def held() -> None:
        started.release()
        assert release.wait(30)

    fake.on_run = held

    async def run() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app()), base_url="http://127.0.0.1") as client:

            async def one() -> int:
                return (await client.post("/page/explain", json={"model": "m", "inputs": {"text": "a"}})).status_code

            running = [asyncio.create_task(one()) for _ in range(page.MAX_EXPLAINING)]
            for _ in running:
                assert await asyncio.to_thread(started.acquire, timeout=30)
            refused = await one()
            release.set()
            return [refused, *await asyncio.gather(*running), await one()]

    assert asyncio.run(run()) == [429, 200, 200, 200]
