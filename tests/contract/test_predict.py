"""Predict: which signatures run, what their inputs must be, which outputs come back, and how each refusal is worded."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.contract.conftest import Served, example, refused, started, until


def test_an_answer_has_typed_fields_and_a_whole_model_spec(static: Served) -> None:
    answer = static.client.predict("half_plus_two", {"x": [2.0]})
    assert list(answer.outputs["y"].float_val) == [3.0]
    assert answer.outputs["y"].tensor_content == b""
    assert answer.model_spec.name == "half_plus_two"
    assert answer.model_spec.signature_name == "serving_default"
    assert answer.model_spec.version.value == 123


def test_the_signature_that_was_asked_for_is_echoed(static: Served) -> None:
    assert static.client.predict("several", {"x": [1.0]}, signature="one").model_spec.signature_name == "one"


@pytest.mark.parametrize(
    ("name", "signature", "inputs", "output", "expected"),
    [
        ("half_plus_two", "", {"x": [2.0, 4.0]}, "y", [3.0, 4.0]),
        ("half_plus_three", "", {"x": [2.0]}, "y", [4.0]),
        ("keras", "", {"dense_input": [[1.0, 2.0], [3.0, 4.0]]}, "sum", [[3.0], [7.0]]),
        ("module", "", {"x": [1.0, 2.0]}, "total", 6.0),
        ("module", "triple", {"x": 2.0}, "tripled", 6.0),
        ("module", "shout", {"text": ["zürich", "ok"]}, "text", ["ZÜRICH".encode(), b"OK"]),
        ("text", "", {"text": ["a bc", "d"]}, "count", [2, 1]),
        ("text", "", {"text": ["a bc", "d"]}, "words", [[b"a", b"bc"], [b"d", b""]]),
        ("several", "scalar", {"x": [1.0, 2.0, 3.0]}, "y", 6.0),
    ],
    ids=str,
)
def test_every_kind_of_model_answers(static: Served, name: str, signature: str, inputs: dict[str, Any], output: str, expected: Any) -> None:
    if name == "keras":
        inputs = {next(iter(static.client.signatures("keras")["serving_default"].inputs)): inputs["dense_input"]}
    assert static.client.values(name, inputs, output, signature=signature) == expected


@pytest.mark.parametrize("signature", ["regress_x_to_y", "classify_x_to_y"])
def test_a_signature_of_another_kind_can_be_predicted(static: Served, signature: str) -> None:
    answer = static.client.predict("half_plus_two", {"inputs": [example(x=2.0).SerializeToString()]}, signature=signature)
    (output,) = answer.outputs.values()
    assert list(output.float_val) == [3.0]
    assert answer.model_spec.signature_name == signature


def test_state_lives_between_requests(static: Served) -> None:
    client = static.client
    assert client.values("counter", {}, "output", signature="reset_counter") == 0.0
    assert client.values("counter", {}, "output", signature="incr_counter") == 1.0
    assert client.values("counter", {"delta": 5.0}, "output", signature="incr_counter_by") == 6.0
    assert client.values("counter", {}, "output", signature="get_counter") == 6.0


# ---- inputs


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"a": [1.0]}, "input size does not match signature: 1!=2 len({a}) != len({a,b}). Sent extra: {}. Missing but required: {b}."),
        ({}, "input size does not match signature: 0!=2 len({}) != len({a,b}). Sent extra: {}. Missing but required: {a,b}."),
        (
            {"a": [1.0], "b": [1.0], "z": [1.0]},
            "input size does not match signature: 3!=2 len({a,b,z}) != len({a,b}). Sent extra: {z}. Missing but required: {}.",
        ),
        (
            {"z": [1.0]},
            "input size does not match signature: 1!=2 len({z}) != len({a,b}). Sent extra: {z}. Missing but required: {a,b}.",
        ),
        (
            {"a": [1.0], "z": [1.0]},
            "Signature input alias: b(feed name: b:0) not found in request and no default value provided. "
            "Inputs expected to be in the request {a,z}, or default input alias set: ",
        ),
    ],
    ids=["missing", "none", "extra", "other", "right count, wrong name"],
)
def test_inputs_must_be_those_of_the_signature(static: Served, inputs: dict[str, Any], message: str) -> None:
    found = refused(static.client.predict, "several", inputs)
    assert (found.code, found.details) == ("INVALID_ARGUMENT", message)


def test_a_missing_input_with_a_default_is_filled_in(static: Served) -> None:
    client = static.client
    assert client.values("several", {"a": [1.0]}, "sum", signature="defaults") == [11.0]
    assert client.values("several", {"a": [1.0], "b": [2.0]}, "sum", signature="defaults") == [3.0]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"b": [1.0]}, "input size does not match signature: 1!=2 len({b}) != len({a,b}). Sent extra: {}. Missing but required: {a}."),
        (
            {"b": [1.0], "z": [1.0]},
            "Signature input alias: a(feed name: a:0) not found in request and no default value provided. "
            "Inputs expected to be in the request {b,z}, or default input alias set: b",
        ),
    ],
)
def test_a_default_does_not_stand_in_for_another_input(static: Served, inputs: dict[str, Any], message: str) -> None:
    found = refused(static.client.predict, "several", inputs, signature="defaults")
    assert (found.code, found.details) == ("INVALID_ARGUMENT", message)


@pytest.mark.parametrize(
    ("dtype", "word"), [(np.int32, "int32"), (np.float64, "double"), (np.float16, "half"), (np.bool_, "bool"), (np.bytes_, "string")]
)
def test_no_dtype_is_converted_not_even_double_to_float(static: Served, dtype: Any, word: str) -> None:
    found = refused(static.client.predict, "several", {"x": tf.make_tensor_proto(np.ones(1, dtype))}, signature="one")
    assert found.code == "INVALID_ARGUMENT"
    assert f"Expects arg[0] to be float but {word} is provided" in found.details


def test_a_shape_is_not_checked_against_the_signature_the_kernel_refuses_it(static: Served) -> None:
    assert static.client.values("several", {"x": [[1.0, 1.0, 1.0]]}, signature="matrix") == [[3.0, 3.0]]
    found = refused(static.client.predict, "several", {"x": [[1.0, 1.0, 1.0, 1.0]]}, signature="matrix")
    assert found.code == "INVALID_ARGUMENT"
    assert found.details.startswith("Matrix size-incompatible: In[0]: [1,4], In[1]: [3,2]\n\t [[{{node MatMul}}]]")


def test_a_shape_that_the_signature_forbids_runs_when_the_kernel_can(static: Served) -> None:
    """x is declared (None, 1); upstream's own clients send [1]."""
    assert static.client.values("half_plus_three", {"x": [1.0, 2.0, 3.0]}) == [3.5, 4.0, 4.5]
    assert static.client.values("half_plus_three", {"x": 2.0}) == 4.0


# ---- outputs


@pytest.mark.parametrize(
    ("wished", "expected"), [((), ["product", "sum"]), (("sum",), ["sum"]), (("product", "sum"), ["product", "sum"])], ids=str
)
def test_an_empty_filter_means_all_outputs(static: Served, wished: tuple[str, ...], expected: list[str]) -> None:
    answer = static.client.predict("several", {"a": [2.0], "b": [3.0]}, outputs=wished)
    assert sorted(answer.outputs) == expected
    assert list(answer.outputs["sum"].float_val) == [5.0]


@pytest.mark.parametrize(
    ("wished", "message"),
    [
        (("zz",), "output tensor alias not found in signature: zz Outputs expected to be in the set {product,sum}."),
        (("sum", "sum"), "duplicate output tensor alias: sum"),
    ],
)
def test_a_filter_names_outputs_once_each(static: Served, wished: tuple[str, ...], message: str) -> None:
    found = refused(static.client.predict, "several", {"a": [2.0], "b": [3.0]}, outputs=wished)
    assert (found.code, found.details) == ("INVALID_ARGUMENT", message)


def test_only_the_filtered_outputs_are_computed(static: Served) -> None:
    too_large = {"x": [5000.0]}
    found = refused(static.client.predict, "several", too_large, signature="one")
    assert found.code == "INVALID_ARGUMENT"
    assert "a is too large" in found.details
    assert static.client.values("several", too_large, signature="one", outputs=["y"]) == [10000.0]


# ---- deadlines, limits, flags


def test_the_clients_deadline_becomes_the_sessions_timeout(static: Served) -> None:
    """The run is cancelled, instead of computing for nobody for an hour."""
    begun = time.monotonic()
    found = refused(static.client.predict, "slow", {"x": tf.constant([2_000_000_000]).numpy()}, timeout_s=0.3)
    assert found.code == "DEADLINE_EXCEEDED"
    until(lambda: static.running.server._grpc.in_flight == 0, "the run was cancelled", 5)
    assert time.monotonic() - begun < 5


def test_difference_a_request_without_a_deadline_is_bounded(models: Any) -> None:
    with started("--model_name=slow", f"--model_base_path={models / 'slow'}", "--max_request_seconds=0.3") as served:
        found = refused(served.client.predict, "slow", {"x": tf.constant([2_000_000_000]).numpy()}, timeout_s=None)
    assert found.code == "DEADLINE_EXCEEDED"


def test_difference_rows_texts_and_messages_are_bounded(models: Any) -> None:
    flags = ("--max_request_rows=3", "--max_text_bytes=5", "--max_message_bytes=10000")
    with started("--model_name=echo", f"--model_base_path={models / 'echo'}", *flags) as served:
        client = served.client
        assert client.values("echo", {"x": [1.0, 2.0, 3.0]}, signature="float") == [1.0, 2.0, 3.0]
        found = refused(client.predict, "echo", {"x": [1.0] * 4}, signature="float")
        assert found.code == "INVALID_ARGUMENT"
        assert "4 rows in one request; this server takes 3" in found.details
        assert client.values("echo", {"x": ["12345"]}, signature="string") == [b"12345"]
        found = refused(client.predict, "echo", {"x": ["123456"]}, signature="string")
        assert found.code == "INVALID_ARGUMENT"
        assert "a string of 6 bytes; this server takes 5" in found.details
        assert refused(client.predict, "echo", {"x": ["x" * 11000]}, signature="string").code == "RESOURCE_EXHAUSTED"


def test_outputs_as_tensor_content_when_asked_for(models: Any) -> None:
    with started("--model_name=m", f"--model_base_path={models / 'half_plus_two'}", "--enable_serialization_as_tensor_content") as served:
        answer = served.client.predict("m", {"x": [2.0]})
    assert answer.outputs["y"].tensor_content == np.float32([3.0]).tobytes()
    assert not answer.outputs["y"].float_val


def test_the_method_name_is_looked_at_only_when_asked_for(static: Served, models: Any) -> None:
    assert static.client.values("several", {"x": [1.0]}, signature="no_method") == [2.0]
    with started("--model_name=several", f"--model_base_path={models / 'several'}", "--enable_signature_method_name_check") as served:
        assert served.client.values("several", {"x": [1.0]}, signature="one") == [2.0]
        found = refused(served.client.predict, "several", {"x": [1.0]}, signature="no_method")
    assert found.code == "INVALID_ARGUMENT"
    assert found.details.startswith("Expected prediction signature method_name to be one of {tensorflow/serving/predict, ")
