"""What a window counts, what it passes over, and that it stays small; what a manifest's reference is read as."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from serving.errors import IntegrityError
from serving.monitor import window as room
from serving.monitor.reference import read_reference
from serving.monitor.window import Layout, Sample, Summary, Window

LAYOUT = Layout(labels=("bad", "good"))


def record(row: int = 0, request: str = "r", **values: Any) -> dict[str, Any]:
    answer = {
        "kind": "request", "id": f"{request}:{row}", "code": "OK", "ms": 5.0, "label": "good", "score": 0.9, "probabilities": None,
        "length": 20, "tokens": 6, "unknown": 0.0, "text": "the app is fine",
    }  # fmt: skip
    return answer | values


def counted(records: list[dict[str, Any]], layout: Layout = LAYOUT) -> Summary:
    found = Window(layout)
    for number, one in enumerate(records):
        found.add(one, float(number))
    return found.summary("the window")


def test_texts_are_counted_by_row_and_calls_by_request() -> None:
    batch = [record(row, "one") for row in range(10)]
    failed = [record(row, "two", code="UNAVAILABLE", label=None, score=None, ms=100.0) for row in range(500)]
    found = counted([*batch, *failed, record(request="three", code="INVALID_ARGUMENT", label=None)])
    assert (found.rows, found.requests, found.failures, found.refusals) == (10, 3, 1, 1)
    assert found.codes == {"OK": 1, "UNAVAILABLE": 1, "INVALID_ARGUMENT": 1}
    assert found.latency is not None
    assert found.latency.rows == 1
    assert found.predicted == {"bad": 0, "good": 10}


def test_a_record_without_a_row_is_a_request() -> None:
    assert counted([record() | {"id": "plain"}, record() | {"id": None}]).requests == 2


def test_bins_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    scores = [0.0, 0.05, 0.5, 0.95, 1.0, *(round(float(score), 2) for score in rng.random(10_000))]
    found = counted([record(score=score) for score in scores])
    assert found.confidence is not None
    # A manifest is counted by numpy.histogram over 20 bins from 0 to 1.
    assert found.confidence.counts.tolist() == np.histogram(np.asarray(scores), np.asarray(room.CONFIDENCE_EDGES))[0].tolist()


@pytest.mark.parametrize("value", [None, "0.9", math.nan, math.inf, -1.0, True, [], {}])
def test_a_value_of_a_wrong_kind_is_not_counted_and_the_rest_of_the_record_is(value: Any) -> None:
    found = counted([record(score=value, length=value, tokens=value, unknown=value, ms=value), record()])
    assert found.rows == 2
    for histogram in (found.confidence, found.characters, found.tokens, found.latency):
        assert histogram is not None
        assert histogram.rows == 1
    assert found.unknown is not None
    assert found.unknown.rows == 1


@pytest.mark.parametrize("value", [None, 7, ["OK"]])
def test_a_record_without_a_readable_code_is_a_failure(value: Any) -> None:
    assert counted([record(code=value)]).codes == {"UNKNOWN": 1}


def test_a_label_that_the_model_does_not_have_is_one_class_of_its_own() -> None:
    found = counted([record(label="good"), record(label="x"), record(label="y"), record(label=None), record(label=3)])
    assert found.predicted == {"bad": 0, "good": 1, room.OTHER_LABEL: 2}


def test_several_labels_of_a_text_are_counted_as_the_reference_is_by_the_likeliest() -> None:
    layout = Layout(labels=("app", "card"), multi_label=True)
    probabilities = {"app": 0.7, "card": 0.8}
    found = counted([record(label="app|card", score=0.75, probabilities=probabilities), record(label="", probabilities=None)], layout)
    assert found.predicted == {"app": 0, "card": 1}
    assert found.confidence is not None
    assert found.confidence.counts[16] == 1


def test_another_versions_answers_are_not_counted_and_its_inputs_are() -> None:
    window = Window(LAYOUT)
    window.add(record(), 0.0, outputs=False)
    found = window.summary("earlier")
    assert (found.rows, found.predicted, found.confidence) == (1, None, None)
    assert found.characters is not None
    assert found.scripts == {"Latin": 1}


def test_unknown_word_pieces_are_a_share_of_all_with_the_spread_between_texts() -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 50, 2_000)
    shares = rng.integers(0, 3, 2_000) / tokens
    found = counted([record(tokens=int(whole), unknown=float(share)) for whole, share in zip(tokens, shares, strict=True)]).unknown
    assert found is not None
    assert found.share == pytest.approx((tokens * shares).sum() / tokens.sum())
    residuals = tokens * shares - found.share * tokens
    assert found.deviation == pytest.approx(np.sqrt((residuals**2).mean()) / tokens.mean())


def test_scripts_leave_out_texts_without_a_letter() -> None:
    assert counted([record(text=text) for text in ("app", "房间很大", "👍 10/10", "")]).scripts == {"Latin": 1, "Han": 1}


def test_without_texts_there_are_no_scripts_and_no_sample() -> None:
    one = record()
    del one["text"]
    found = counted([one])
    assert (found.scripts, found.texts) == (None, ())


def test_the_sample_is_of_fixed_size_and_uniform() -> None:
    early = 0
    for seed in range(20):
        sample = Sample(seed)
        for number in range(10_000):
            sample.add(str(number))
        assert len(set(sample.texts)) == len(sample.texts) == room.SAMPLED_TEXTS
        early += sum(int(text) < 5_000 for text in sample.texts)
    # 20 x 1,000 draws, half of them from the first half: 10,000 +- 5 deviations of about 67.
    assert 9_650 < early < 10_350


def test_long_texts_are_kept_by_their_beginning() -> None:
    sample = Sample(0)
    sample.add("a" * 1_000_000)
    assert sample.texts == ["a" * room.MOST_TEXT]


@pytest.mark.parametrize("spread_s", [1, 3_600, 86_400 * 30, 86_400 * 3_650])
def test_slices_of_time_stay_few_and_lose_no_request(spread_s: int) -> None:
    chooser, window = random.Random(spread_s), Window(LAYOUT)
    for _ in range(2_000):
        window.add(record(code=chooser.choice(["OK", "INTERNAL", "NOT_FOUND"])), 1_700_000_000 + chooser.random() * spread_s)
    found = window.summary("the window")
    assert len(found.slices) <= room.MOST_SLICES + 1
    assert sum(one.requests for one in found.slices) == found.requests
    assert sum(one.failures for one in found.slices) == found.failures
    assert len({one.seconds for one in found.slices}) == 1
    assert all(one.start.timestamp() % one.seconds == 0 for one in found.slices)


def test_names_without_end_do_not_fill_the_memory() -> None:
    found = counted([record(code=f"CODE{number}", label=f"label{number}") for number in range(3_000)], Layout())
    assert len(found.codes) == room.MOST_LABELS
    found = counted([record(label=f"label{number}") for number in range(3_000)], Layout())
    assert found.predicted is not None
    assert len(found.predicted) == room.MOST_LABELS


def manifest(**reference: Any) -> dict[str, Any]:
    return {"name": "m", "version": 1, "labels": ["bad", "good"], "task": "single_label", "reference": {"rows": 100} | reference}


def test_a_reference_is_read_with_its_bins() -> None:
    layout, found = read_reference(
        manifest(
            predicted={"bad": 40, "good": 60},
            confidence={"edges": [0.0, 0.5, 1.0], "counts": [10, 90]},
            tokens={"edges": [0, 8, 1_000], "counts": [70, 30]},
            characters={"edges": [0, 50, 100_000], "counts": [80, 20]},
            scripts={"Latin": 97, "Han": 1, "none": 2},
            unknown_share=0.01,
        )
    )
    assert layout.confidence == (0.0, 0.5, 1.0)
    assert (layout.characters, layout.tokens) == ((0.0, 50.0, 100_000.0), (0.0, 8.0, 1_000.0))
    assert found.predicted == {"bad": 40, "good": 60}
    assert found.scripts == {"Latin": 97, "Han": 1}
    assert found.unknown == room.Ratio(100, 0.01, None)
    assert found.rows == 100


def test_what_an_older_manifest_lacks_is_not_known_and_has_usual_bins() -> None:
    layout, found = read_reference({"name": "m", "version": 1, "labels": ["bad", "good"]})
    assert layout == LAYOUT
    assert (found.predicted, found.confidence, found.characters, found.tokens, found.scripts, found.unknown) == (None,) * 6


@pytest.mark.parametrize(
    ("reference", "where"),
    [
        ({"predicted": [1, 2]}, "reference.predicted"),
        ({"predicted": {"bad": -1}}, "reference.predicted"),
        ({"confidence": {"edges": [0, 1], "counts": [1, 2]}}, "reference.confidence"),
        ({"confidence": {"edges": [0, 1, 1], "counts": [1, 2]}}, "reference.confidence"),
        ({"tokens": {"edges": [0, 1], "counts": [0.5]}}, "reference.tokens"),
        ({"characters": [1]}, "reference.characters"),
        ({"scripts": {"Latin": "many"}}, "reference.scripts"),
        ({"unknown_share": 2}, "reference.unknown_share"),
        ({"rows": "100"}, "reference.rows"),
    ],
)
def test_a_reference_that_does_not_fit_together_is_refused(reference: dict[str, Any], where: str) -> None:
    with pytest.raises(IntegrityError) as refused:
        read_reference(manifest(**reference))
    assert f"`{where}`" in str(refused.value)


def test_the_refusal_says_what_to_do() -> None:
    with pytest.raises(IntegrityError) as refused:
        read_reference(manifest(unknown_share=2))
    assert str(refused.value) == (
        "manifest.json: `reference.unknown_share`: expected a number from 0 to 1, received '2'. "
        "The monitor cannot compare with it; export the run again with tfpipeline export."
    )
