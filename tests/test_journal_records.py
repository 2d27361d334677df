"""What a record says of a request, whatever was asked and answered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serving import wire
from serving.journal import (
    records_of,
    text_key,
)
from tests.journals import KEY, exchange


def test_a_row_is_a_record_of_everything_but_the_text() -> None:
    first, second = records_of(exchange(), "client", KEY)
    assert first == {
        "kind": "request", "time": "2025-11-24T16:00:00.000+00:00", "id": "abc:0", "model": "bank", "version": 7, "version_label": "stable", "source": "client", "code": "OK",
        "ms": 8.123, "label": "positive", "score": 0.75, "probabilities": {"negative": 0.25, "positive": 0.75}, "tokens": None, "unknown": None, "length": 7,
        "text_key": text_key(KEY, "good 电话"),
    }  # fmt: skip
    assert (second["id"], second["score"], second["length"]) == ("abc:1", None, 1)


def test_tokens_and_unknown_words_are_there_when_the_model_tells_them() -> None:
    arrays = exchange().outputs | {"tokens": np.array([8, 9], np.int32), "unknown": np.array([0.125, 0], np.float32)}
    assert [(one["tokens"], one["unknown"]) for one in records_of(exchange(outputs=arrays), "server", KEY)] == [(8, 0.125), (9, 0.0)]


def test_pairs_are_hashed_together_and_kept_redacted() -> None:
    inputs = {"text": np.array([b"a@b.example"], object), "text_pair": np.array([b"hi"], object)}
    (record,) = records_of(exchange(inputs=inputs, outputs=None, code="INTERNAL", version=0), "server", KEY, lambda text: text.upper())
    assert record["text_key"] == text_key(KEY, "a@b.example", "hi")
    assert (record["text"], record["text_pair"], record["label"], record["version"], record["code"]) == (
        "A@B.EXAMPLE",
        "HI",
        None,
        None,
        "INTERNAL",
    )


@pytest.mark.parametrize(
    ("inputs", "rows", "expected"),
    [
        (None, 0, 1),  # could not be read
        (None, 3, 3),
        ({"ids": np.zeros((4, 8), np.int32)}, 0, 4),
        ({"anything": np.array([b"one text input by another name"], object)}, 0, 1),
        ({"a": np.array([b"1"], object), "b": np.array([b"2", b"3"], object)}, 0, 2),
        ({"scalar": np.float32(1)}, 1, 1),
        (wire.PredictRequest(inputs={"text": wire.TensorProto(dtype=7)}), 0, 1),
        (wire.PredictRequest(inputs={"text": wire.to_tensor(np.array([b"x"] * 3, object))}), 0, 3),
        (wire.ClassificationRequest(), 0, 1),
    ],
)
def test_a_failed_request_counts_its_rows_as_far_as_they_are_known(inputs: Any, rows: int, expected: int) -> None:
    found = list(records_of(exchange(inputs=inputs, rows=rows, outputs=None, code="INVALID_ARGUMENT"), "server", KEY))
    assert len(found) == expected
    assert all(record["label"] is record["score"] is record["probabilities"] is None for record in found)


def test_a_tensor_that_claims_to_be_huge_is_not_made() -> None:
    tensor = wire.TensorProto(dtype=7, string_val=[b"x"])
    tensor.tensor_shape.dim.add(size=1 << 30)
    (record,) = records_of(
        exchange(inputs=wire.PredictRequest(inputs={"text": tensor}), rows=1, outputs=None, code="INVALID_ARGUMENT"), "server", KEY
    )
    assert record["length"] is None


def test_an_empty_batch_that_was_answered_has_no_records() -> None:
    assert not list(records_of(exchange(inputs={"text": np.array([], object)}, outputs={}, rows=0), "server", KEY))


def test_classify_and_regress_tell_their_own() -> None:
    request_ = wire.ClassificationRequest()
    for text in (b"good", b"bad"):
        one = request_.input.example_list.examples.add()
        one.features.feature["text"].bytes_list.value.append(text)
    response = wire.ClassificationResponse()
    for scores in ((0.25, 0.75), (0.5, 0.5)):
        row = response.result.classifications.add()
        for label, score in zip(("negative", "positive"), scores, strict=True):
            row.classes.add(label=label, score=score)
    first, second = records_of(exchange(inputs=request_, outputs=response), "server", KEY)
    assert (first["label"], first["score"], first["probabilities"]) == ("positive", 0.75, {"negative": 0.25, "positive": 0.75})
    assert (second["label"], second["length"], second["text_key"]) == ("negative", 3, text_key(KEY, "bad"))
    regression = wire.RegressionResponse()
    regression.result.regressions.add(value=2.5)
    (record,) = records_of(exchange(inputs=None, outputs=regression, rows=1), "server", KEY)
    assert (record["label"], record["score"], record["length"]) == (None, 2.5, None)
