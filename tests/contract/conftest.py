"""Servers to talk to, and clients made of the official stubs.

`static` is one server in this process with every kind of model, shared by all tests that change nothing; `serve` starts one with its own flags.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving.server import app, flags
from tests.contract import saved_models

TIMEOUT_S = 20.0
# Nothing is tried again, and folders are looked at all the time.
QUICK = ("--max_num_load_retries=0", "--file_system_poll_wait_seconds=0.05", "--drain_seconds=10")
ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> Any:
    """Waits for a condition to be true, and returns its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.01)
    return value


def example(**features: Any) -> tf.train.Example:
    """A tf.Example with one float, int64 or bytes list per feature."""
    made = tf.train.Example()
    for name, values in features.items():
        values = values if isinstance(values, list) else [values]
        feature = made.features.feature[name]
        if isinstance(values[0], bytes):
            feature.bytes_list.value.extend(values)
        elif isinstance(values[0], int):
            feature.int64_list.value.extend(values)
        else:
            feature.float_list.value.extend(values)
    return made


@dataclass
class Refusal:
    """How a call failed."""

    code: str
    details: str


class Client:
    """The official stubs, with less to type."""

    def __init__(self, target: str, credentials: Any = None, options: Sequence[tuple[str, Any]] = ()) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), *options]
        self.channel = grpc.secure_channel(target, credentials, options) if credentials else grpc.insecure_channel(target, options)
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.model = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    @staticmethod
    def fill(spec: Any, name: str | None, signature: str = "", version: int | None = None, label: str = "") -> None:
        """A ModelSpec; without a name it stays unset."""
        if name is not None:
            spec.SetInParent()
            spec.name, spec.signature_name = name, signature
            if version is not None:
                spec.version.value = version
            if label:
                spec.version_label = label

    def predict(
        self, name: str | None, inputs: Mapping[str, Any], *, outputs: Sequence[str] = (), timeout_s: float = TIMEOUT_S, **spec: Any
    ) -> Any:
        """Predict; inputs are TensorProtos or what makes a float (or string) tensor."""
        request = predict_pb2.PredictRequest(output_filter=outputs)
        self.fill(request.model_spec, name, **spec)
        for alias, value in inputs.items():
            request.inputs[alias].CopyFrom(value if isinstance(value, tf.make_tensor_proto(0).__class__) else _tensor(value))
        return self.prediction.Predict(request, timeout=timeout_s)

    def values(self, name: str, inputs: Mapping[str, Any], output: str = "y", **more: Any) -> Any:
        """One output of Predict as nested lists."""
        return tf.make_ndarray(self.predict(name, inputs, **more).outputs[output]).tolist()

    def _with_examples(self, request: Any, name: str | None, examples: Sequence[Any], context: Any, spec: Mapping[str, Any]) -> Any:
        self.fill(request.model_spec, name, **spec)
        _fill_examples(request.input, examples, context)
        return request

    def classify(self, name: str | None, examples: Sequence[Any] = (), context: Any = None, **spec: Any) -> Any:
        request = self._with_examples(classification_pb2.ClassificationRequest(), name, examples, context, spec)
        return self.prediction.Classify(request, timeout=TIMEOUT_S)

    def regress(self, name: str | None, examples: Sequence[Any] = (), context: Any = None, **spec: Any) -> Any:
        request = self._with_examples(regression_pb2.RegressionRequest(), name, examples, context, spec)
        return self.prediction.Regress(request, timeout=TIMEOUT_S)

    def multi_inference(self, tasks: Sequence[tuple[Mapping[str, Any] | None, str]], examples: Sequence[Any] = ()) -> Any:
        """`tasks` are pairs of a model spec's fields and a method name."""
        request = inference_pb2.MultiInferenceRequest()
        for spec, method in tasks:
            task = request.tasks.add(method_name=method)
            if spec is not None:
                self.fill(task.model_spec, **spec)
        _fill_examples(request.input, examples, None)
        return self.prediction.MultiInference(request, timeout=TIMEOUT_S)

    def metadata(self, name: str | None, fields: Sequence[str] = ("signature_def",), **spec: Any) -> Any:
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
        self.fill(request.model_spec, name, **spec)
        return self.prediction.GetModelMetadata(request, timeout=TIMEOUT_S)

    def signatures(self, name: str, **spec: Any) -> dict[str, Any]:
        stored = get_model_metadata_pb2.SignatureDefMap()
        assert self.metadata(name, **spec).metadata["signature_def"].Unpack(stored)
        return dict(stored.signature_def)

    def status(self, name: str | None, **spec: Any) -> Any:
        request = get_model_status_pb2.GetModelStatusRequest()
        self.fill(request.model_spec, name, **spec)
        return self.model.GetModelStatus(request, timeout=TIMEOUT_S)

    def states(self, name: str) -> dict[int, str]:
        """Version -> state, in the order of the answer; empty for a model that nobody knows."""
        try:
            found = self.status(name).model_version_status
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            return {}
        return {one.version: get_model_status_pb2.ModelVersionStatus.State.Name(one.state) for one in found}

    def reload(self, config: Any, timeout_s: float = TIMEOUT_S) -> Any:
        """HandleReloadConfigRequest, with a ModelServerConfig or its text."""
        request = model_management_pb2.ReloadConfigRequest()
        if isinstance(config, str):
            from google.protobuf import text_format

            text_format.Parse(config, request.config)
        else:
            request.config.CopyFrom(config)
        return self.model.HandleReloadConfigRequest(request, timeout=timeout_s)


def _tensor(value: Any) -> Any:
    array = np.asarray(value)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    return tf.make_tensor_proto(array)


def _fill_examples(target: Any, examples: Sequence[Any], context: Any) -> None:
    if context is not None:
        target.example_list_with_context.context.CopyFrom(context)
        target.example_list_with_context.examples.extend(examples)
    else:
        target.example_list.examples.extend(examples)


def refused(call: Callable[..., Any], *args: Any, **more: Any) -> Refusal:
    """The code and the details of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **more)
    return Refusal(caught.value.code().name, caught.value.details())


@dataclass
class Served:
    """A server that runs, and a client of it."""

    client: Client
    target: str
    rest: str
    running: Any = None

    def users(self, name: str, version: int) -> int:
        """Requests that are running on a version now."""
        return int(self.running.server._models._models[name].entries[version].users)

    def http(self, path: str, body: Any = None, method: str = "") -> tuple[int, str]:
        """HTTP status and text of an answer; a body that is not bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.rest + path, data=data, method=method or None)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@contextlib.contextmanager
def started(*arguments: str, credentials: Any = None, rest: bool = False) -> Iterator[Served]:
    """A server in this process with some flags, quick to act, and a client."""
    ports = (free_port(), free_port() if rest else 0)
    parsed, _ = flags.parse([f"--port={ports[0]}", f"--rest_api_port={ports[1]}", *QUICK, *arguments])
    with app.running(parsed) as running, Client(f"localhost:{running.grpc}", credentials) as client:
        yield Served(client, f"localhost:{running.grpc}", f"http://127.0.0.1:{running.rest}", running)


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts servers that live until the end of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **more: stack.enter_context(started(*arguments, **more))


@pytest.fixture
def start(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs the server's `main` in this process, for starts that end by themselves; gives its exit status and stdout."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)

    def run(*arguments: str) -> tuple[int, str]:
        status = app.main([*QUICK, *([] if any(one.startswith("--port=") for one in arguments) else [f"--port={free_port()}"]), *arguments])
        return status, capsys.readouterr().out

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The server as a process of its own, with its output captured."""
    command = [sys.executable, "-m", "serving", "serve", *QUICK, *arguments]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate()


def config(**base_paths: Any) -> str:
    """A ModelServerConfig as text: model names and their base paths, or (base path, further text)."""
    entries = []
    for name, value in base_paths.items():
        path, more = value if isinstance(value, tuple) else (value, "")
        entries.append(f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" {more} }}')
    return "model_config_list {\n" + "\n".join(entries) + "\n}\n"


def write(path: Path, content: str) -> Path:
    """A text file; returns its path, to be put behind a flag."""
    path.write_text(content, encoding="utf-8")
    return path


def write_records(version: Path, *logs: Any) -> Path:
    """A version's warm-up file, of PredictionLog messages or of bytes; returns its path."""
    file = version / "assets.extra" / "tf_serving_warmup_requests"
    file.parent.mkdir()
    with tf.io.TFRecordWriter(str(file)) as writer:
        for log in logs:
            writer.write(log if isinstance(log, bytes) else log.SerializeToString())
    return file


def predict_log(**inputs: Any) -> Any:
    """A warm-up record of Predict that names no model."""
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.SetInParent()
    for alias, value in inputs.items():
        log.predict_log.request.inputs[alias].CopyFrom(_tensor(value))
    return log


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "half_plus_two": saved_models.half_plus,
    "half_plus_three": saved_models.half_plus_three,
    "counter": saved_models.counter,
    "echo": saved_models.echo,
    "several": saved_models.several,
    "odd": saved_models.odd,
    "slow": saved_models.slow,
    "keras": saved_models.keras_sequential,
    "module": saved_models.module,
    "text": saved_models.text,
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one base path for each kind of model, all of version 123."""
    root = tmp_path_factory.mktemp("saved_models")
    for name, build in BUILDERS.items():
        build(root / name / "00000123")
    return root


@pytest.fixture(scope="session")
def static(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server with all of them, for tests that leave it as it is (`counter` aside)."""
    file = tmp_path_factory.mktemp("static") / "models.config"
    file.write_text(config(**{name: models / name for name in BUILDERS}), encoding="utf-8")
    with started(f"--model_config_file={file}", rest=True) as served:
        yield served


@pytest.fixture
def plus_one(tmp_path: Path) -> Path:
    """The base path of a model with version 1, which adds 1."""
    saved_models.plus(tmp_path / "plus" / "1", 1)
    return tmp_path / "plus"
