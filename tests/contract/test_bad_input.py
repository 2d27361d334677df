"""Requests that no honest client sends: each gets an answer that a client can make sense of, and the next honest one gets the right answer.

The long form, against a process and with its memory watched, is `benchmarks/bad_input.py`.
"""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks import mutations
from serving import wire
from serving.server import rest_json
from serving.server.status import Status
from tests.contract.conftest import Served, started

REQUESTS = 120  # per model
SEED = 20261124


@pytest.fixture(scope="module", params=["echo", "half_plus_two", "several", "text"])
def stormed(request: pytest.FixtureRequest, models: Path) -> Any:
    """A server over one model, of every dtype, of Examples, of several inputs, or of TensorFlow Text; and what there is to mutate."""
    base_path = models / request.param
    # A body that never comes is waited for no longer than this.
    with started(f"--model_name={request.param}", f"--model_base_path={base_path}", "--rest_api_timeout_in_ms=2000", rest=True) as served:
        yield served, mutations.target_of(served.client.channel, request.param, base_path)


def _outputs(served: Served, request: Any) -> Any:
    path, _, response_class = wire.METHODS["Predict"]
    response = response_class.FromString(served.client.channel.unary_unary(path)(request.SerializeToString(), timeout=20.0))
    return {name: wire.to_array(tensor).tolist() for name, tensor in response.outputs.items()}


def test_bad_requests_get_answers_and_honest_ones_the_right_ones(stormed: tuple[Served, mutations.Target]) -> None:
    served, target = stormed
    honest = mutations.honest(served.client.channel, target)
    before = _outputs(served, honest)
    port = int(served.rest.rpartition(":")[2])

    def ask(number: int) -> str | None:
        request = mutations.make(target, SEED, number)
        wrong = mutations.complaint(request, mutations.send(request, served.client.channel, port))
        return f"{number} ({request.kind}): {wrong}" if wrong else None

    with ThreadPoolExecutor(8) as pool:
        wrong = [complaint for complaint in pool.map(ask, range(REQUESTS)) if complaint]
    assert not wrong
    assert _outputs(served, honest) == before


def test_the_same_seed_makes_the_same_requests(stormed: tuple[Served, mutations.Target]) -> None:
    _, target = stormed
    first = [mutations.make(target, SEED, number) for number in range(60)]
    assert [mutations.make(target, SEED, number) for number in range(60)] == first
    assert [mutations.make(target, SEED + 1, number) for number in range(60)] != first


@pytest.mark.parametrize(
    ("code", "body", "words"),
    [
        ("INVALID_ARGUMENT", b'Traceback (most recent call last):\n  File "x.py", line 3', "Traceback"),
        ("INVALID_ARGUMENT", b"ValueError: bad", "ValueError"),
        ("NOT_FOUND", b"/home/me/models/x: not there", "/home/"),
        ("INTERNAL", b"Internal error", "INTERNAL"),
        ("UNAVAILABLE", b"closed", "unexpected code"),
        ("DEADLINE_EXCEEDED", b"late", "DEADLINE_EXCEEDED"),
        ("INVALID_ARGUMENT", b"", "without a message"),
        ("OK", b"\xff\xff", "does not parse"),
        ("none", b"", "no answer"),
    ],
)
def test_bad_answers_are_seen(code: str, body: bytes, words: str) -> None:
    request = mutations.Request(0, "grpc", "Predict/bytes", "Predict", b"")
    assert words in (mutations.complaint(request, mutations.Answer(code, body, 0.1)) or "")


@pytest.mark.parametrize(
    ("code", "body", "is_json", "words"),
    [
        ("500", b'{"error": "x"}', True, "500"),
        ("200", b"{", True, "no JSON"),
        ("400", b'{"message": "x"}', True, "no error"),
        ("closed", b"", False, "closed"),
        ("504", b'{"error": "late"}', True, "504"),
    ],
)
def test_bad_rest_answers_are_seen(code: str, body: bytes, is_json: bool, words: str) -> None:
    request = mutations.Request(0, "rest", "REST/json", "POST", b"")
    assert words in (mutations.complaint(request, mutations.Answer(code, body, 0.1, is_json)) or "")


# ---- properties

_SIZES = st.integers(-3, 6) | st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, -(2**63)])
_INT32, _INT64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)


@st.composite
def _tensors(draw: st.DrawFn) -> Any:
    """Any TensorProto: any type number, any shape, any content, values in any of its fields."""
    tensor = wire.TensorProto(dtype=draw(st.sampled_from(sorted(wire.DTYPE_NAMES)) | _INT32))
    for size in draw(st.lists(_SIZES, max_size=4) | st.lists(st.just(1), max_size=70)):
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_shape.unknown_rank = draw(st.integers(0, 9)) == 0
    tensor.tensor_content = draw(st.binary(max_size=40) if draw(st.booleans()) else st.just(b""))
    values = {
        "float_val": st.floats(width=32), "double_val": st.floats(), "int_val": _INT32, "string_val": st.binary(max_size=5), "scomplex_val": st.floats(width=32),
        "int64_val": _INT64, "bool_val": st.booleans(), "dcomplex_val": st.floats(), "half_val": _INT32, "uint32_val": st.integers(0, 2**32 - 1),
        "uint64_val": st.integers(0, 2**64 - 1),
    }  # fmt: skip
    for field in draw(st.lists(st.sampled_from(sorted(values)), max_size=3, unique=True)):
        getattr(tensor, field).extend(draw(st.lists(values[field], max_size=9)))
    return tensor


@given(_tensors())
def test_any_tensor_is_an_array_of_its_shape_or_a_value_error(tensor: Any) -> None:
    try:
        array = wire.to_array(tensor, max_elements=100_000)
    except (ValueError, OverflowError):
        return
    assert list(array.shape) == [dim.size for dim in tensor.tensor_shape.dim]
    # What could be read can be sent.
    assert wire.to_array(wire.to_tensor(array)).shape == array.shape


@given(st.binary(max_size=80))
def test_any_bytes_that_are_a_tensor_are_read_or_refused(data: bytes) -> None:
    try:
        tensor = wire.TensorProto.FromString(data)
    except Exception:  # protobuf's DecodeError class differs between its implementations
        return
    try:
        wire.to_array(tensor, max_elements=100_000)
    except (ValueError, OverflowError):
        return


_THINGS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=8,
)


@given(_THINGS, st.sampled_from([0, *sorted(wire.DTYPE_NAMES), 999]), st.booleans())
@example([1, [2]], 0, False)
@example([2**70], 0, False)
@example(1j, 1, False)
@example(np.array(["2026-11-24"], "datetime64[D]"), 1, False)
@example(np.array(["2026-11-24"], "datetime64[D]"), 0, True)
def test_anything_is_a_tensor_or_a_value_error(values: Any, dtype: int, typed_fields: bool) -> None:
    with np.errstate(all="ignore"):
        try:
            tensor = wire.to_tensor(values, dtype=dtype, typed_fields=typed_fields)
        except (ValueError, OverflowError):
            return
    assert wire.to_array(tensor).shape == np.shape(np.asarray(values))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.fixed_dictionaries({"b64": st.text(max_size=6)}),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "y", "b64", ""]) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)
_KEYS = st.sampled_from(["instances", "inputs", "examples", "context", "signature_name", "other"])


def _of_two_inputs(dtype: int) -> Any:
    signature = wire.SignatureDef()
    signature.inputs["x"].dtype, signature.inputs["y"].dtype = dtype, wire.DT_STRING
    return signature


@given(st.dictionaries(_KEYS, _JSON, max_size=4), st.sampled_from(sorted(wire.DTYPE_NAMES)), st.integers(0, 2**32), st.booleans())
def test_any_body_is_a_request_or_a_status(document: dict[str, Any], dtype: int, seed: int, whole: bool) -> None:
    body = json.dumps(document).encode()
    if not whole:
        body = mutations.mutated_bytes(random.Random(seed), body)
    for read in (
        lambda parsed: rest_json.predict_inputs(parsed, _of_two_inputs(dtype), rest_json.signature_name(parsed)),
        rest_json.example_input,
    ):
        refused = Status("OK", "")
        try:
            read(rest_json.parse_object(body))
        except Status as status:
            refused = status
        assert refused.code in ("OK", "INVALID_ARGUMENT", "UNIMPLEMENTED")
        # Its message goes into JSON.
        json.loads(rest_json.error_json(refused.message))
