"""A TensorFlow Serving of a few lines, which speaks the official package's messages, and clients of both kinds to ask it."""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from serving import AsyncClient, Client

CLASSES = ("negative", "positive")
REQUESTS = {
    "Predict": predict_pb2.PredictRequest,
    "Classify": classification_pb2.ClassificationRequest,
    "Regress": regression_pb2.RegressionRequest,
    "GetModelMetadata": get_model_metadata_pb2.GetModelMetadataRequest,
    "GetModelStatus": get_model_status_pb2.GetModelStatusRequest,
    "HandleReloadConfigRequest": model_management_pb2.ReloadConfigRequest,
}


@dataclass(frozen=True)
class Refusal:
    """An answer that is an error."""

    code: str
    details: str = ""


@dataclass
class Asked:
    method: str
    request: Any
    metadata: dict[str, Any]
    remaining_s: float


Step = Any  # a message, a Refusal, or a function of the request that gives one of them


@dataclass
class ScriptedServer:
    """`script(method, step, step, ...)`: one step a request, the last one for ever. `asked` is what came, in order."""

    credentials: grpc.ServerCredentials | None = None
    address: str = "127.0.0.1:0"
    steps: dict[str, list[Step]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self.server = grpc.server(
            futures.ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
        )
        self.server.add_generic_rpc_handlers((_Handler(self),))
        add = self.server.add_insecure_port if self.credentials is None else lambda a: self.server.add_secure_port(a, self.credentials)
        port = add(self.address)
        self.target = self.address if self.address.startswith("unix:") else f"127.0.0.1:{port}"
        self.server.start()

    def script(self, method: str, *steps: Step) -> None:
        with self._lock:
            self.steps[method] = list(steps)

    def of(self, method: str) -> list[Any]:
        """The requests of one method."""
        return [one.request for one in self.asked if one.method == method]

    def stop(self) -> None:
        self.server.stop(None).wait(10)

    def answer(self, method: str, data: bytes, context: grpc.ServicerContext) -> bytes:
        request = REQUESTS[method].FromString(data)
        with self._lock:
            self.asked.append(Asked(method, request, dict(context.invocation_metadata()), context.time_remaining()))
            steps = self.steps.get(method) or [Refusal("UNIMPLEMENTED", f"no script for {method}")]
            step = steps.pop(0) if len(steps) > 1 else steps[0]
        if callable(step):
            step = step(request)
        if isinstance(step, Refusal):
            context.abort(grpc.StatusCode[step.code], step.details)
        return bytes(step.SerializeToString())


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, server: ScriptedServer) -> None:
        self._server = server

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = details.method.rpartition("/")[2]
        return grpc.unary_unary_rpc_method_handler(lambda data, context: self._server.answer(method, data, context))


def sentiment(version: int = 3) -> Callable[[Any], Any]:
    """Answers as an exported classifier does: texts with `good` in them are positive."""

    def step(request: Any) -> Any:
        texts = tf.make_ndarray(request.inputs["text"])
        good = np.array([b"good" in text for text in texts], bool)
        probabilities = np.where(good[:, None], [[0.25, 0.75]], [[0.875, 0.125]]).astype(np.float32).reshape(len(texts), 2)
        labels = np.array([CLASSES[int(one)].encode() for one in good], object)
        classes = np.array([[name.encode() for name in CLASSES]] * len(texts), object).reshape(len(texts), 2)
        return outputs({"label": labels, "score": probabilities.max(axis=1), "probabilities": probabilities, "classes": classes}, version)

    return step


def outputs(arrays: dict[str, Any], version: int, model: str = "sentiment") -> Any:
    response = predict_pb2.PredictResponse()
    response.model_spec.name = model
    response.model_spec.version.value = version
    response.model_spec.signature_name = "serving_default"
    for name, array in arrays.items():
        response.outputs[name].CopyFrom(array if hasattr(array, "tensor_shape") else tf.make_tensor_proto(array))
    return response


def echo(request: Any) -> Any:
    """Every input is an output, byte for byte."""
    response = outputs(dict(request.inputs), 7, request.model_spec.name)
    response.model_spec.signature_name = request.model_spec.signature_name
    return response


def statuses(*versions: tuple[int, str] | tuple[int, str, int, str]) -> Any:
    """`(version, state)` or `(version, state, error code, message)` each."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for version, state, *error in versions:
        one = response.model_version_status.add(version=version, state=state)
        if error:
            one.status.error_code, one.status.error_message = error
    return response


def described(version: int, **signatures: dict[str, dict[str, tuple[int, list[int] | None]]]) -> Any:
    """`name={"inputs": {"x": (DT_FLOAT, [-1, 2])}, "outputs": ...}` each; a shape of None is an unknown rank."""
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.version.value = version
    found = get_model_metadata_pb2.SignatureDefMap()
    for name, sides in signatures.items():
        for side in ("inputs", "outputs"):
            for key, (dtype, shape) in sides[side].items():
                info = getattr(found.signature_def[name], side)[key]
                info.dtype = dtype
                info.tensor_shape.unknown_rank = shape is None
                for size in shape or []:
                    info.tensor_shape.dim.add(size=size)
        found.signature_def[name].method_name = "tensorflow/serving/predict"
    response.metadata["signature_def"].Pack(found)
    return response


def running(**settings: Any) -> Iterator[ScriptedServer]:
    """For fixtures: `yield from running()`."""
    server = ScriptedServer(**settings)
    try:
        yield server
    finally:
        server.stop()


def connecting(kind: str) -> Iterator[Callable[..., Any]]:
    """For fixtures: makes clients of one kind, `sync` or `async`, that are closed at the end."""
    opened: list[Any] = []

    def make(target: Any, **settings: Any) -> Any:
        settings = {"model": "sentiment", "timeout_s": 30.0, **settings}
        opened.append(Client(target, **settings) if kind == "sync" else Awaited(target, **settings))
        return opened[-1]

    yield make
    for client in opened:
        client.close() if kind == "sync" else client.end()


class Awaited:
    """An `AsyncClient` with the manners of a `Client`."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.client = AsyncClient(*args, **settings)
        self.loop = asyncio.new_event_loop()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.client, name)
        if not inspect.iscoroutinefunction(value):
            return value
        return lambda *args, **words: self.loop.run_until_complete(value(*args, **words))

    def end(self) -> None:
        self.loop.run_until_complete(self.client.aclose())
        self.loop.close()


def unused_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
