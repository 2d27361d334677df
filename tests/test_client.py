"""The client against a scripted server: both clients promise the same, so every test here runs with both."""

from __future__ import annotations

import asyncio
import inspect
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, model_management_pb2, regression_pb2
from tensorflow_serving.config import model_server_config_pb2

import serving
from serving import (
    AsyncClient,
    Client,
    ConfigError,
    ModelFailed,
    RequestError,
    wire,
)
from serving.answers import Class, Prediction, Signature, TensorSpec, VersionStatus
from tests.scripted_server import Refusal, ScriptedServer, connecting, described, echo, outputs, running, sentiment, statuses

GONE = Refusal("NOT_FOUND", "Servable not found for request: Specific(sentiment, 3)")
BUSY = Refusal("UNAVAILABLE", "The batch scheduling queue is full")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    yield from running()


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    yield from connecting(request.param)


# --- predict ---


def test_predict_answers_labels_and_probabilities(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", sentiment(version=3))
    answer = connect(server.target).predict(["good", "bad – schlecht", "不好"])
    assert answer.labels == ["positive", "negative", "negative"]
    assert answer.classes == ("negative", "positive")
    assert (answer.model, answer.version, len(answer)) == ("sentiment", 3, 3)
    assert (answer.scores.dtype, answer.scores.shape) == (np.float32, (3,))
    assert (answer.probabilities.dtype, answer.probabilities.tolist()) == (np.float32, [[0.25, 0.75], [0.875, 0.125], [0.875, 0.125]])
    assert answer[0] == Prediction("positive", 0.75, {"negative": 0.25, "positive": 0.75})
    assert [one.label for one in answer] == answer.labels
    [request] = server.of("Predict")
    assert (request.model_spec.name, request.model_spec.signature_name) == ("sentiment", "serving_default")
    assert not request.model_spec.HasField("version")
    assert tf.make_ndarray(request.inputs["text"]).tolist() == [b"good", "bad – schlecht".encode(), "不好".encode()]


def test_a_single_text_is_a_list_of_one_and_pairs_go_along(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", sentiment())
    client = connect(server.target)
    assert client.predict("good").labels == ["positive"]
    client.predict("good", "text")
    client.predict(["a", "b"], ["c", "d"])
    assert [tf.make_ndarray(request.inputs["text_pair"]).tolist() for request in server.of("Predict")[1:]] == [[b"text"], [b"c", b"d"]]


def test_no_texts_give_no_answers_with_the_models_own_shapes(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", sentiment(version=5))
    answer = connect(server.target).predict([])
    assert (answer.labels, answer.classes, answer.version, list(answer)) == ([], (), 5, [])
    assert answer.probabilities.shape == (0, 2)


def test_bytes_that_are_no_utf8_come_back_as_they_went(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", lambda request: sentiment()(request))
    text = b"\xff\x00 good \xfe\x00".decode("utf-8", "surrogateescape")
    connect(server.target).predict([text])
    assert tf.make_ndarray(server.of("Predict")[0].inputs["text"]).tolist() == [b"\xff\x00 good \xfe\x00"]


@pytest.mark.parametrize(
    ("texts", "pairs", "words"),
    [
        (["good", None], None, "predict: texts[1] is NoneType: expected str"),
        ([1.5], None, "predict: texts[0] is float: expected str"),
        (["a", "b"], ["c"], "predict: 2 texts and 1 pairs"),
        (["\ud800"], None, "surrogates not allowed"),
    ],
)
def test_what_is_no_text_is_refused_before_it_is_sent(server: ScriptedServer, connect: Any, texts: Any, pairs: Any, words: str) -> None:
    with pytest.raises(RequestError, match=r"predict: ") as caught:
        connect(server.target).predict(texts, pairs)
    assert words in str(caught.value)
    assert not server.asked


def test_a_model_with_other_outputs_is_sent_to_predict_tensors(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", outputs({"y": np.zeros(1, np.float32)}, 1))
    with pytest.raises(
        RequestError, match=r"answers \['y'\], predict\(\) needs label, score, probabilities and classes. Ask other models by predict_ten"
    ):
        connect(server.target).predict("good")


def test_the_call_names_another_model_version_or_label(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", sentiment())
    client = connect(server.target, version=3)
    for words in ({}, {"version": 4}, {"version_label": "canary"}, {"model": "sentiment"}, {"model": "topics"}):
        client.predict("good", **words)
    specs = [request.model_spec for request in server.of("Predict")]
    assert [(spec.name, spec.version.value, spec.version_label) for spec in specs] == [
        ("sentiment", 3, ""),
        ("sentiment", 4, ""),
        ("sentiment", 0, "canary"),
        ("sentiment", 3, ""),
        ("topics", 0, ""),
    ]
    with pytest.raises(RequestError, match="a version and a version label"):
        client.predict("good", version=3, version_label="stable")
    with pytest.raises(RequestError, match=r"expected a version from 0 to 2\*\*63 - 1"):
        client.predict("good", version=1 << 63)
    with pytest.raises(RequestError, match=r"which model\? Give Client\(model=...\)"):
        connect(server.target, model="").predict("good")


# --- splitting ---


def test_many_rows_are_split_and_joined_in_order_and_one_version_answers_all(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", sentiment(version=3), lambda request: sentiment(request.model_spec.version.value or 4)(request))
    texts = [f"{'good' if number % 3 else 'bad'} {number}" for number in range(7)]
    answer = connect(server.target, rows_per_request=3, version_label="stable").predict(texts)
    assert answer.labels == ["positive" if number % 3 else "negative" for number in range(7)]
    assert answer.version == 3
    requests = server.of("Predict")
    assert [tf.make_ndarray(request.inputs["text"]).tolist() for request in requests] == [
        [text.encode() for text in texts[start : start + 3]] for start in (0, 3, 6)
    ]
    assert [(request.model_spec.version_label, request.model_spec.version.value) for request in requests] == [
        ("stable", 0),
        ("", 3),
        ("", 3),
    ]


def test_a_version_that_is_unloaded_half_way_starts_the_call_over(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", sentiment(version=3), GONE, sentiment(version=4))
    server.script("GetModelStatus", statuses((4, "AVAILABLE"), (3, "END")))
    answer = connect(server.target, rows_per_request=1).predict(["good", "bad"])
    assert (answer.labels, answer.version) == (["positive", "negative"], 4)
    assert [request.model_spec.version.value for request in server.of("Predict")] == [0, 3, 0, 4]


def test_large_rows_are_split_by_bytes(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", sentiment())
    client = connect(server.target, max_message_bytes=8192)
    assert client.predict(["good" * 500] * 7).labels == ["positive"] * 7
    assert [len(request.inputs["text"].string_val) for request in server.of("Predict")] == [3, 3, 1]
    with pytest.raises(
        RequestError, match=r"row 1 has 9008 bytes, more than the 7168 that fit into a message. Shorten it, or raise max_message_bytes"
    ):
        client.predict(["good", "x" * 9000])


def test_tensors_are_split_only_when_the_signature_says_that_rows_are_a_batch(server: ScriptedServer, connect: Any) -> None:
    rows = {"inputs": {"x": (1, [-1, 2])}, "outputs": {"x": (1, [-1, 2])}}
    fixed = {"inputs": {"x": (1, [-1, 2])}, "outputs": {"x": (1, [-1, 2]), "mean": (1, [])}}
    server.script("GetModelMetadata", described(7, rows=rows, fixed=fixed))
    server.script("Predict", echo)
    client = connect(server.target, rows_per_request=2)
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    for signature, expected in (("rows", [2, 2, 1]), ("fixed", [5]), ("unknown", [5])):
        server.asked.clear()
        answer = client.predict_tensors({"x": x}, signature=signature)
        assert answer["x"].tolist() == x.tolist()
        assert [request.inputs["x"].tensor_shape.dim[0].size for request in server.of("Predict")] == expected
        assert {request.model_spec.version.value for request in server.of("Predict")} <= {0, 7}
    server.asked.clear()
    client.predict_tensors({"x": x}, signature="fixed", outputs=["x"])
    assert len(server.of("Predict")) == 3, "the output that has no rows was not asked for"
    client.predict_tensors({"x": x[:2]})
    assert len(server.of("GetModelMetadata")) == 1, "a small request asks nothing else first"


def test_an_answer_with_a_row_too_few_is_not_taken(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", outputs({"label": np.array([b"a"], object)}, 1))
    with pytest.raises(ModelFailed, match=r"output 'label' has shape \[1\] for 2 rows: expected one answer a row"):
        connect(server.target).predict(["good", "bad"])


def test_parts_that_cannot_be_joined_say_how_to_ask_in_one(server: ScriptedServer, connect: Any) -> None:
    server.script("GetModelMetadata", described(7, rows={"inputs": {"x": (1, [-1])}, "outputs": {"y": (1, [-1, -1])}}))
    server.script("Predict", outputs({"y": np.zeros((2, 5), np.float32)}, 7), outputs({"y": np.zeros((1, 4), np.float32)}, 7))
    with pytest.raises(
        RequestError, match=r"output 'y': rows of the shapes \[4\], \[5\] came in several requests .* Raise rows_per_request"
    ):
        connect(server.target, rows_per_request=2).predict_tensors({"x": np.zeros(3, np.float32)}, signature="rows")


# --- tensors ---

ARRAYS = [
    np.array([[b"a", b"b\x00\xff\x00"], [b"", "ü".encode()]], object),
    np.array([True, False]),
    *[
        np.array([[0, 1, np.iinfo(t).max, np.iinfo(t).min]], t)
        for t in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    ],
    *[np.array([1.5, -0.0, np.inf, 6e-5], t) for t in ("float16", "float32", "float64", "complex64", "complex128")],
    np.float32(2.5),
    np.zeros((0, 3), np.float32),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{list(array.shape)}")
def test_every_dtype_goes_there_and_back(server: ScriptedServer, connect: Any, array: Any) -> None:
    server.script("Predict", echo)
    answer = connect(server.target).predict_tensors({"x": array}, signature="echo")
    assert (answer["x"].dtype, answer["x"].shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(answer["x"], array)
    np.testing.assert_array_equal(tf.make_ndarray(server.of("Predict")[0].inputs["x"]), array)
    assert (answer.model, answer.version, answer.signature) == ("sentiment", 7, "echo")


def test_bfloat16_is_read_as_float32(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", echo)
    sent = tf.constant([1.5, -3.0], tf.bfloat16).numpy()
    answer = connect(server.target).predict_tensors({"x": sent})
    assert (answer["x"].dtype, answer["x"].tolist()) == (np.float32, [1.5, -3.0])
    assert server.of("Predict")[0].inputs["x"].dtype == tf.bfloat16.as_datatype_enum


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (1.5, "float32"),
        ([[1, 2]], "int32"),
        ([1 << 40], "int64"),
        ([True], "bool"),
        ("text", "string"),
        ([b"a\x00"], "string"),
        ([1j], "complex128"),
    ],
)
def test_pythons_own_values_go_as_tensorflow_takes_them(server: ScriptedServer, connect: Any, value: Any, dtype: str) -> None:
    server.script("Predict", echo)
    connect(server.target).predict_tensors({"x": value})
    tensor = server.of("Predict")[0].inputs["x"]
    assert tf.dtypes.as_dtype(tensor.dtype).name == dtype
    np.testing.assert_array_equal(tf.make_ndarray(tensor), tf.make_ndarray(tf.make_tensor_proto(value)))


def test_str_and_bytes_go_in_one_list(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", echo)
    assert connect(server.target).predict_tensors({"x": ["ü", b"\xff\x00"]})["x"].tolist() == ["ü".encode(), b"\xff\x00"]


def test_a_finished_tensor_goes_as_it_is(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", echo)
    mine, theirs = wire.to_tensor(np.float32([1]), typed_fields=True), tf.make_tensor_proto([2.0, 3.0])
    answer = connect(server.target).predict_tensors({"mine": mine, "theirs": theirs})
    assert (answer["mine"].tolist(), answer["theirs"].tolist()) == ([1.0], [2.0, 3.0])
    assert server.of("Predict")[0].inputs["mine"].float_val == [1.0]


@pytest.mark.parametrize("value", [[[1], [1, 2]], np.array(["2026-11-24"], "datetime64[D]"), [None], ["a", 1]], ids=str)
def test_what_no_tensor_can_carry_is_refused_by_the_inputs_name(server: ScriptedServer, connect: Any, value: Any) -> None:
    with pytest.raises(RequestError, match=r"^127.0.0.1:\d+: model 'sentiment': input 'x': "):
        connect(server.target).predict_tensors({"x": value})
    assert not server.asked


# --- classify, regress, status, metadata, reload ---


def _classified(request: Any) -> Any:
    response = classification_pb2.ClassificationResponse()
    response.model_spec.version.value = 3
    for example in getattr(request.input, request.input.WhichOneof("kind")).examples:
        feature = example.features.feature["text"].bytes_list.value[0]
        response.result.classifications.add().classes.add(label=feature.decode(), score=0.5)
    return response


def test_classify_sends_examples_and_joins_their_classes(server: ScriptedServer, connect: Any) -> None:
    server.script("Classify", _classified)
    examples = [
        {"text": "a", "floats": [1.0, 2.5], "ints": np.array([[1, 2]]), "flag": True, "empty": []},
        {"text": b"b", "number": 3},
        {"text": ["c", "d"]},
    ]
    answer = connect(server.target, rows_per_request=2).classify(examples, signature="classify")
    assert (len(answer), answer[0], answer.rows[2], answer.version) == (3, (Class("a", 0.5),), (Class("c", 0.5),), 3)
    first, second = server.of("Classify")
    assert (first.model_spec.signature_name, second.model_spec.version.value) == ("classify", 3)
    features = first.input.example_list.examples[0].features.feature
    assert (features["floats"].float_list.value, features["ints"].int64_list.value, features["flag"].int64_list.value) == (
        [1.0, 2.5],
        [1, 2],
        [1],
    )
    assert features["empty"].WhichOneof("kind") is None
    assert first.input.example_list.examples[1].features.feature["number"].int64_list.value == [3]


def test_an_example_without_an_answer_is_noticed(server: ScriptedServer, connect: Any) -> None:
    server.script("Classify", classification_pb2.ClassificationResponse())
    server.script("Regress", regression_pb2.RegressionResponse())
    client = connect(server.target)
    for ask in (client.classify, client.regress):
        with pytest.raises(ModelFailed, match=r"answered 0 (classifications|regressions) for 1 examples: expected one each"):
            ask([{"text": "a"}])


def test_a_context_goes_with_every_request(server: ScriptedServer, connect: Any) -> None:
    server.script("Classify", _classified)
    connect(server.target, rows_per_request=1).classify([{"text": "a"}, {"text": "b"}], context={"shop": 7})
    contexts = [
        request.input.example_list_with_context.context.features.feature["shop"].int64_list.value for request in server.of("Classify")
    ]
    assert contexts == [[7], [7]]


def test_regress_gives_one_number_an_example(server: ScriptedServer, connect: Any) -> None:
    response = regression_pb2.RegressionResponse()
    response.model_spec.version.value = 9
    response.result.regressions.add(value=2.5)
    server.script("Regress", response)
    client = connect(server.target)
    answer = client.regress([{"x": 1.0}])
    assert (answer.values.dtype, answer.values.tolist(), answer[0], answer.version, len(answer)) == (np.float32, [2.5], 2.5, 9, 1)
    assert (len(client.regress([])), len(client.classify([])), client.regress([]).version) == (0, 0, 0)
    assert len(server.asked) == 1, "TensorFlow Serving refuses an empty list, so it is not asked"


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "expected text"), (1j, "complex128"), (1 << 63, "out of range"), (["a", 1], "expected text"), ([[1], [1, 2]], "inhomogeneous")],
)
def test_a_feature_that_no_example_can_carry_is_refused_by_name(server: ScriptedServer, connect: Any, value: Any, words: str) -> None:
    with pytest.raises(RequestError, match=r"example 1, feature 'f'") as caught:
        connect(server.target).classify([{"f": 1}, {"f": value}])
    assert words in str(caught.value).lower()


def test_status_lists_versions_newest_first(server: ScriptedServer, connect: Any) -> None:
    server.script("GetModelStatus", statuses((2, "END", 2, "it broke"), (10, "AVAILABLE"), (3, "LOADING")))
    client = connect(server.target, version=3)
    assert client.status() == (
        VersionStatus(10, "AVAILABLE", "OK", ""),
        VersionStatus(3, "LOADING", "OK", ""),
        VersionStatus(2, "END", "UNKNOWN", "it broke"),
    )
    client.status(version=2)
    assert [request.model_spec.HasField("version") for request in server.of("GetModelStatus")] == [False, True]


def test_metadata_describes_the_signatures(server: ScriptedServer, connect: Any) -> None:
    signature = {"inputs": {"text": (7, [-1]), "ids": (3, [-1, 16])}, "outputs": {"label": (7, [-1]), "score": (1, None), "half": (19, [])}}
    server.script(
        "GetModelMetadata", described(3, serving_default=signature, __saved_model_init_op={"inputs": {}, "outputs": {"op": (0, None)}})
    )
    found = connect(server.target).metadata(version_label="stable")
    assert (found.model, found.version) == ("sentiment", 3)
    assert found.signatures == {
        "serving_default": Signature(
            {"text": TensorSpec("string", (None,)), "ids": TensorSpec("int32", (None, 16))},
            {"label": TensorSpec("string", (None,)), "score": TensorSpec("float32", None), "half": TensorSpec("float16", ())},
            "tensorflow/serving/predict",
        )
    }
    assert server.of("GetModelMetadata")[0].model_spec.version_label == "stable"


def test_reload_config_sends_ours_and_theirs_and_hears_both_kinds_of_no(server: ScriptedServer, connect: Any) -> None:
    server.script("HandleReloadConfigRequest", model_management_pb2.ReloadConfigResponse())
    theirs = model_server_config_pb2.ModelServerConfig()
    theirs.model_config_list.config.add(name="sentiment", base_path="/models/sentiment", model_platform="tensorflow")
    client = connect(server.target)
    client.reload_config(theirs)
    client.reload_config(wire.ModelServerConfig.FromString(theirs.SerializeToString()))
    assert [request.config for request in server.of("HandleReloadConfigRequest")] == [theirs, theirs]

    label = "Request to assign label to version 3 of model m, which is not currently available for inference"
    server.script("HandleReloadConfigRequest", Refusal("FAILED_PRECONDITION", label))
    with pytest.raises(RequestError, match=f"^{server.target}: FAILED_PRECONDITION: {label}"):
        client.reload_config(theirs)
    failed = model_management_pb2.ReloadConfigResponse()
    failed.status.error_code, failed.status.error_message = 2, "1 model(s) did not become available"
    server.script("HandleReloadConfigRequest", failed)
    with pytest.raises(ModelFailed, match=r"UNKNOWN: 1 model\(s\) did not become available"):
        client.reload_config(theirs)


# --- the hook ---


def test_on_response_gets_every_answered_request_and_cannot_break_it(
    server: ScriptedServer, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []

    def hook(response: Any) -> None:
        seen.append(response)
        raise RuntimeError("the journal is full")

    server.script("Predict", BUSY, sentiment(version=3))
    server.script("GetModelStatus", statuses((3, "AVAILABLE")))
    client = connect(server.target, rows_per_request=2, on_response=hook)
    with caplog.at_level(logging.ERROR, "serving"):
        assert client.predict(["good secret", "bad", "good"]).version == 3
        client.predict([])
    client.status()
    assert [(one.model, one.version, one.method, one.rows) for one in seen] == [("sentiment", 3, "Predict", rows) for rows in (2, 1, 0)]
    assert all(0 < one.seconds < 30 for one in seen)
    assert wire.to_array(seen[0].request.inputs["text"]).tolist() == [b"good secret", b"bad"]
    assert wire.to_array(seen[0].response.outputs["label"]).tolist() == [b"positive", b"negative"]
    assert "on_response failed" in caplog.text
    assert "the journal is full" in caplog.text
    assert "secret" not in caplog.text + repr(seen)


# --- life ---


def test_a_closed_client_says_so_and_closing_twice_is_fine(server: ScriptedServer) -> None:
    server.script("Predict", sentiment())
    with Client(server.target, model="sentiment") as client:
        client.predict("good")
    client.close()
    with pytest.raises(ConfigError, match=r"this client is closed\. Make a new one"):
        client.predict("good")

    async def use() -> None:
        async with AsyncClient(server.target, model="sentiment") as client:
            assert (await client.predict("good")).labels == ["positive"]
        await client.close()
        with pytest.raises(ConfigError, match="this client is closed"):
            await client.predict("good")

    asyncio.run(use())


def test_threads_share_a_client(server: ScriptedServer) -> None:
    server.script("Predict", sentiment())
    wrong: list[Any] = []
    with Client(server.target, model="sentiment", timeout_s=60) as client:

        def work(number: int) -> None:
            for turn in range(5):
                texts = [f"{'good' if (number + turn + row) % 2 else 'bad'}" for row in range(4)]
                if client.predict(texts).labels != ["positive" if text == "good" else "negative" for text in texts]:
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert len(server.asked) == 40


def test_many_coroutines_are_answered_at_once_and_one_can_be_cancelled(server: ScriptedServer) -> None:
    all_there, go = threading.Barrier(9, timeout=30), threading.Event()

    def step(request: Any) -> Any:
        all_there.wait()
        go.wait(30)
        return sentiment()(request)

    server.script("Predict", step)

    async def use() -> None:
        async with AsyncClient(server.target, model="sentiment", timeout_s=60) as client:
            tasks = [asyncio.ensure_future(client.predict("good")) for _ in range(8)]
            await asyncio.to_thread(all_there.wait)
            tasks[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            go.set()
            assert [(await task).labels for task in tasks[1:]] == [["positive"]] * 7

    try:
        asyncio.run(use())
    finally:
        go.set()


FORK = """
import os, sys
from serving import Client, ConfigError
used = Client(sys.argv[1], model="sentiment")
used.predict("good")
child = os.fork()
if not child:
    try:
        used.predict("good")
    except ConfigError as error:
        used.close()
        os._exit(0 if "used before the process forked" in str(error) else 3)
    os._exit(4)
assert os.waitpid(child, 0)[1] == 0
used.close()
"""


def test_a_client_carried_over_a_fork_refuses_instead_of_hanging(server: ScriptedServer) -> None:
    server.script("Predict", sentiment())
    root = Path(serving.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", FORK, server.target], capture_output=True, text=True, timeout=60, cwd=root)
    assert done.returncode == 0, done.stderr


def test_the_package_offers_the_client_and_all_errors_lazily() -> None:
    for name in serving.__all__:
        assert getattr(serving, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Clint'"):
        _ = serving.Clint


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    def public(kind: type) -> dict[str, Any]:
        return {
            name: [(p.name, p.kind, p.default) for p in inspect.signature(value).parameters.values()]
            for name, value in vars(kind).items()
            if callable(value) and not name.startswith("_") and name != "aclose"
        }

    assert public(Client) == public(AsyncClient)
    assert inspect.signature(Client) == inspect.signature(AsyncClient)
