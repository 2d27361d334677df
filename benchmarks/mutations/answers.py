"""Sending a bad request, and judging what came back. Frees the benchmark and the tests from sockets, and from what an answer may look like."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from serving import wire

from .messages import valid
from .values import DEADLINE_S, Request, Target

PATIENCE_S = 1.0  # a client that says that nothing more comes says it after so long without an answer
CHANNEL_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
EXPECTED = {
    "grpc": {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "OUT_OF_RANGE"},
    "rest": {"200", "400", "404", "405", "413", "414", "429", "431", "501"},
}
TIMED_OUT = {"grpc": "DEADLINE_EXCEEDED", "rest": "504"}
# What these codes may say. Anything else under them is a fault of the server.
EXPLAINED = {
    "INTERNAL": (r"Request bytes are not a tensorflow\.serving\.\w+",),  # what the real server's gRPC answers to bytes that do not parse
    "UNKNOWN": (r"\d+ servable\(s\) did not become available: .*",),  # a new configuration named a model that cannot be loaded
    "500": (),
}
LEAKS = re.compile(
    rb"Traceback \(most recent|File \"[^\"\n]+\", line \d+|site-packages|\.py\b|\b[A-Z][A-Za-z]*(?:Error|Exception)\b[:(]|\bobject at 0x|<class '|"
    rb"/(?:home|usr|tmp|proc|root|work|var)/"
)


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        code: the gRPC status code or the HTTP status; `refused` and `closed` for a connection that was not taken, or closed without a word, `none` for
            nothing in time.
        body: the message, or everything below the HTTP head; of gRPC errors their details.
        seconds: how long it took.
        json: the HTTP answer says it is JSON.
    """

    code: str
    body: bytes
    seconds: float
    json: bool = False


def target_of(channel: grpc.Channel, model: str, base_path: Path) -> Target:
    """A served model, with the version and the signatures that the server tells of."""
    path, request_class, response_class = wire.METHODS["GetModelMetadata"]
    request = request_class(metadata_field=["signature_def"])
    request.model_spec.name = model
    response = response_class.FromString(channel.unary_unary(path)(request.SerializeToString(), timeout=DEADLINE_S))
    stored = wire.SignatureDefMap()
    response.metadata["signature_def"].Unpack(stored)
    signatures = {name: signature for name, signature in stored.signature_def.items() if signature.inputs}
    return Target(model, response.model_spec.version.value, str(base_path), signatures)


def honest(channel: grpc.Channel, target: Target) -> Any:
    """A Predict request that the model answers: not every signature takes what its types allow."""
    path = wire.METHODS["Predict"][0]
    for seed in itertools.count():
        request = valid(target, random.Random(seed), "Predict")
        try:
            channel.unary_unary(path)(request.SerializeToString(), timeout=DEADLINE_S)
        except grpc.RpcError:
            if seed == 1000:
                raise
            continue
        return request


def send(request: Request, channel: grpc.Channel, rest_port: int) -> Answer:
    """Sends a request and waits for its answer, for a little longer than its deadline."""
    started = time.monotonic()
    code, body, is_json = _send_grpc(channel, request) if request.edge == "grpc" else _send_http(rest_port, request)
    return Answer(code, body, time.monotonic() - started, is_json)


def _send_grpc(channel: grpc.Channel, request: Request) -> tuple[str, bytes, bool]:
    try:
        return "OK", channel.unary_unary(wire.METHODS[request.method][0])(request.data, timeout=request.deadline_s), False
    except grpc.RpcError as error:
        return error.code().name, (error.details() or "").encode("utf-8", "surrogatepass"), False


def _send_http(port: int, request: Request) -> tuple[str, bytes, bool]:
    deadline = time.monotonic() + request.deadline_s
    try:
        connected = socket.create_connection(("127.0.0.1", port), timeout=request.deadline_s)
    except OSError as error:
        return "refused", str(error).encode(), False
    with connected as connection:
        # A server that has seen enough closes while we are still sending.
        with contextlib.suppress(ConnectionError):
            connection.sendall(request.data)
        received, ended = b"", False
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(min(left, PATIENCE_S) if request.half_close and not ended else left)
            try:
                part = connection.recv(1 << 16)
            except TimeoutError:
                if request.half_close and not ended:
                    ended = True
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_WR)
                continue
            except ConnectionError:
                part = b""
            received += part
            whole = _whole(received)
            if whole or not part:
                return whole or ("closed", received, False)
    return "none", received, False


def _whole(received: bytes) -> tuple[str, bytes, bool] | None:
    """Code, body and whether it is JSON, of the first final answer in what came so far."""
    head, blank, rest = received.partition(b"\r\n\r\n")
    match = re.match(rb"HTTP/1\.[01] (\d{3})", head)
    if not (blank and match):
        return None
    if match[1].startswith(b"1"):
        return _whole(rest)
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    size = int(length[1]) if length else len(rest)
    if len(rest) < size:
        return None
    return match[1].decode(), rest[:size], b"application/json" in head


def complaint(request: Request, answer: Answer) -> str | None:
    """What is wrong with an answer; None for nothing."""
    if answer.code == "none":
        return f"no answer within {request.deadline_s:g} s"
    if answer.code == "closed":
        return None if request.may_be_cut else "connection closed without an answer"
    if leak := _leak(request, answer):
        return f"{answer.code} says {leak!r}: {answer.body[:300]!r}"
    if answer.code == TIMED_OUT[request.edge]:
        return None if request.may_time_out else f"{answer.code} after {answer.seconds:.1f} s: {answer.body[:300]!r}"
    if answer.code in EXPLAINED:
        said = answer.body.decode("utf-8", "replace")
        return None if any(re.fullmatch(words, said, re.DOTALL) for words in EXPLAINED[answer.code]) else f"{answer.code}: {said[:300]!r}"
    if answer.code == "503" and b"/readyz" in request.data[:100]:
        return None  # true: a new configuration names a model that never comes
    if answer.code not in EXPECTED[request.edge]:
        return f"unexpected code {answer.code}: {answer.body[:300]!r}"
    return _unreadable(request, answer)


def _leak(request: Request, answer: Answer) -> str | None:
    for match in LEAKS.finditer(answer.body):
        # What the client said itself may be quoted.
        if match[0] not in request.data:
            return match[0].decode("utf-8", "replace")
    return None


def _unreadable(request: Request, answer: Answer) -> str | None:
    """Whether a client could make sense of the body."""
    if request.edge == "grpc":
        if answer.code == "OK":
            try:
                wire.METHODS[request.method][2].FromString(answer.body)
            except Exception as error:  # protobuf's DecodeError class differs between its implementations
                return f"an answer that does not parse: {error}"
        return None if answer.body or answer.code == "OK" else f"{answer.code} without a message"
    if not answer.json:
        return None
    if request.method == "HEAD":
        return None
    try:
        document: Any = json.loads(answer.body.decode("utf-8", "surrogateescape"))
    except ValueError as error:
        return f"{answer.code} with a body that is no JSON: {error}: {answer.body[:300]!r}"
    if answer.code != "200" and (list(document) != ["error"] or not isinstance(document["error"], str)):
        return f"{answer.code} with a body that is no error: {answer.body[:300]!r}"
    return None
