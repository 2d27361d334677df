"""Every call's answer to a request that names something which is not there: the codes and words that clients of the real server see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from tensorflow_serving.apis import session_service_pb2

from tests.contract.conftest import Client, Served, example, refused
from tests.contract.saved_models import CLASSIFY

Call = Callable[[Client, "dict[str, Any] | None"], Any]


def _predict(client: Client, spec: dict[str, Any] | None) -> Any:
    return client.predict(inputs={"x": [1.0]}, **(spec or {"name": None}))


def _classify(client: Client, spec: dict[str, Any] | None) -> Any:
    return client.classify(examples=[example(x=1.0)], **(spec or {"name": None}))


def _regress(client: Client, spec: dict[str, Any] | None) -> Any:
    return client.regress(examples=[example(x=1.0)], **(spec or {"name": None}))


def _multi_inference(client: Client, spec: dict[str, Any] | None) -> Any:
    return client.multi_inference([(spec, CLASSIFY)], [example(x=1.0)])


def _metadata(client: Client, spec: dict[str, Any] | None) -> Any:
    return client.metadata(**(spec or {"name": None}))


def _status(client: Client, spec: dict[str, Any] | None) -> Any:
    return client.status(**(spec or {"name": None}))


INFERENCE: dict[str, Call] = {
    "Predict": _predict,
    "Classify": _classify,
    "Regress": _regress,
    "MultiInference": _multi_inference,
    "GetModelMetadata": _metadata,
}
CALLS: dict[str, Call] = {**INFERENCE, "GetModelStatus": _status}
NO_NAME = "ModelSpec has no name specified."


@pytest.mark.parametrize("call", CALLS)
def test_a_request_without_a_model_spec(static: Served, call: str) -> None:
    found = refused(CALLS[call], static.client, None)
    assert found.code == "INVALID_ARGUMENT"
    assert found.details == (NO_NAME if call == "MultiInference" else "Missing ModelSpec")


def test_a_multi_inference_request_without_tasks(static: Served) -> None:
    found = refused(static.client.multi_inference, [], [example(x=1.0)])
    assert (found.code, found.details) == ("INVALID_ARGUMENT", NO_NAME)


@pytest.mark.parametrize("call", INFERENCE)
def test_an_empty_model_name(static: Served, call: str) -> None:
    found = refused(INFERENCE[call], static.client, {"name": ""})
    assert (found.code, found.details) == ("INVALID_ARGUMENT", NO_NAME)


@pytest.mark.parametrize("call", INFERENCE)
def test_an_unknown_model(static: Served, call: str) -> None:
    found = refused(INFERENCE[call], static.client, {"name": "foo"})
    assert (found.code, found.details) == ("NOT_FOUND", "Servable not found for request: Latest(foo)")


@pytest.mark.parametrize("call", INFERENCE)
@pytest.mark.parametrize("name", ["half_plus_two", "foo"])
def test_an_unknown_version(static: Served, call: str, name: str) -> None:
    found = refused(INFERENCE[call], static.client, {"name": name, "version": 9})
    assert (found.code, found.details) == ("NOT_FOUND", f"Servable not found for request: Specific({name}, 9)")


@pytest.mark.parametrize("call", INFERENCE)
@pytest.mark.parametrize("name", ["half_plus_two", "foo"])
def test_an_unknown_label_even_of_an_unknown_model(static: Served, call: str, name: str) -> None:
    found = refused(INFERENCE[call], static.client, {"name": name, "label": "l"})
    assert (found.code, found.details) == ("INVALID_ARGUMENT", "Unrecognized servable version label: l")


@pytest.mark.parametrize(
    ("spec", "details"),
    [
        ({"name": ""}, "Could not find any versions of model "),
        ({"name": "foo"}, "Could not find any versions of model foo"),
        ({"name": "half_plus_two", "version": 9}, "Could not find version 9 of model half_plus_two"),
    ],
)
def test_status_of_what_is_not_there(static: Served, spec: dict[str, Any], details: str) -> None:
    found = refused(static.client.status, **spec)
    assert (found.code, found.details) == ("NOT_FOUND", details)


@pytest.mark.parametrize(
    ("call", "code", "details"),
    [
        ("Predict", "FAILED_PRECONDITION", 'Serving signature key "s" not found.'),
        ("Classify", "INVALID_ARGUMENT", "No signature was found with the name: s"),
        ("Regress", "INVALID_ARGUMENT", "No signature was found with the name: s"),
        ("MultiInference", "INVALID_ARGUMENT", "Requested signature not found in model graph: s"),
    ],
)
def test_an_unknown_signature(static: Served, call: str, code: str, details: str) -> None:
    found = refused(CALLS[call], static.client, {"name": "half_plus_two", "signature": "s"})
    assert (found.code, found.details) == (code, details)


@pytest.mark.parametrize(
    ("name", "cut"),
    [("a" * 984, False), ("a" * 985, True), ("a" * 5000, True), ("é" * 3000, True)],
)
def test_messages_longer_than_1024_bytes_are_cut(static: Served, name: str, cut: bool) -> None:
    details = refused(static.client.predict, name, {"x": [1.0]}).details
    whole = f"Servable not found for request: Latest({name})"
    if cut:
        assert 1020 < len(details.encode()) <= 1024
        assert details.endswith("...TRUNCATED")
        assert whole.startswith(details.removesuffix("...TRUNCATED"))
    else:
        assert details == whole


def test_the_session_service_is_not_registered(static: Served) -> None:
    call = static.client.channel.unary_unary(
        "/tensorflow.serving.SessionService/SessionRun",
        request_serializer=session_service_pb2.SessionRunRequest.SerializeToString,
        response_deserializer=session_service_pb2.SessionRunResponse.FromString,
    )
    assert refused(call, session_service_pb2.SessionRunRequest(), timeout=5).code == "UNIMPLEMENTED"


def test_bytes_that_are_no_message(static: Served) -> None:
    call = static.client.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    found = refused(call, b"\xff\xff\xff", timeout=5)
    assert (found.code, found.details) == ("INTERNAL", "Request bytes are not a tensorflow.serving.PredictRequest")


def test_errors_travel_with_their_status_code_and_nothing_of_python(static: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        static.client.predict("several", {"x": [[1.0, 2.0]]}, signature="matrix")
    assert "Traceback" not in caught.value.details()
    assert "File " not in caught.value.details()
