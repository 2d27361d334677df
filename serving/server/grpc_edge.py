"""The gRPC services. Frees the handlers from threads, deadlines, codes and logs.

In: `Handlers`. Out: a started `grpc.Server` with PredictionService, ModelService, health and reflection. Refuses bytes that are no message, and
more requests at once than the limit (gRPC answers RESOURCE_EXHAUSTED by itself).
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

import grpc

from serving import wire
from serving.journal import REQUEST_ID, Exchange, Journal, is_request_id, new_request_id
from serving.server.configs import Tls
from serving.server.flags import Flags
from serving.server.handlers import Handlers
from serving.server.status import Status

logger = logging.getLogger(__name__)

MAX_MESSAGE = 1024  # as the real server: longer error messages are cut
TRUNCATED = "...TRUNCATED"
SERVICES = ("tensorflow.serving.PredictionService", "tensorflow.serving.ModelService")
JOURNALLED = ("Predict", "Classify", "Regress")
HEALTH_NAMES = ("", "ModelService", "PredictionService", *SERVICES)


class AccessLog:
    """One JSON line per request, appended; a line that cannot be written is lost rather than delaying anybody."""

    def __init__(self, stream: TextIO) -> None:
        """Writes to an open text stream."""
        self._stream, self._lock = stream, threading.Lock()

    def __call__(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, ensure_ascii=False, separators=(",", ":"), default=str) + "\n"
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._stream.write(line.encode("utf-8", "backslashreplace").decode("utf-8"))
            self._stream.flush()


class GrpcEdge:
    """A gRPC server over the handlers."""

    def __init__(
        self,
        handlers: Handlers,
        flags: Flags,
        tls: Tls | None = None,
        access_log: Callable[[dict[str, Any]], None] | None = None,
        journal: Journal | None = None,
    ) -> None:
        """Makes the server; nothing listens yet."""
        self._handlers, self._flags, self._tls, self._log, self._journal = handlers, flags, tls, access_log, journal
        self._in_flight = 0
        self._stopping = False
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(flags.grpc_max_threads, thread_name_prefix="grpc")
        self._server = grpc.server(
            self._executor,
            maximum_concurrent_rpcs=flags.max_concurrent_requests,
            options=[
                ("grpc.max_receive_message_length", flags.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a second server on the same port must fail, not share it
                *_channel_arguments(flags.grpc_channel_arguments),
            ],
        )
        calls: dict[str, Callable[[Any, float | None], Any]] = {
            "Predict": handlers.predict,
            "Classify": handlers.classify,
            "Regress": handlers.regress,
            "MultiInference": handlers.multi_inference,
            "GetModelMetadata": lambda request, deadline: handlers.metadata(request),
            "GetModelStatus": lambda request, deadline: handlers.model_status(request),
            "HandleReloadConfigRequest": handlers.reload_config,
        }
        services: dict[str, dict[str, Any]] = {service: {} for service in SERVICES}
        for method, (path, request_class, _) in wire.METHODS.items():
            services[path.split("/")[1]][method] = grpc.unary_unary_rpc_method_handler(self._unary(method, request_class, calls[method]))
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, methods) for service, methods in services.items()]
        )
        self._health = _add_health_and_reflection(self._server)

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def start(self) -> int:
        """Listens. Returns the TCP port, 0 for none.

        Raises:
            Status: the port or the socket cannot be had.
        """
        port = 0
        flags = self._flags
        addresses = [f"[{flags.host}]:{flags.port}" if ":" in flags.host else f"{flags.host}:{flags.port}"] if flags.port else []
        addresses += [f"unix:{Path(flags.grpc_socket_path).absolute()}"] if flags.grpc_socket_path else []
        for address in addresses:
            try:
                bound = self._bind(address)
            except RuntimeError as error:
                raise Status("UNKNOWN", f"cannot listen on {address}: is another server there? Choose another --port.") from error
            port = port or (bound if not address.startswith("unix:") else 0)
        self._server.start()
        return port

    def _bind(self, address: str) -> int:
        if self._tls is None:
            return int(self._server.add_insecure_port(address))
        credentials = grpc.ssl_server_credentials(
            [(self._tls.key, self._tls.certificate)],
            root_certificates=self._tls.client_ca or None,
            require_client_auth=self._tls.verify_client,
        )
        return int(self._server.add_secure_port(address, credentials))

    def set_ready(self, ready: bool) -> None:
        """What the health service answers; a server that stops is not ready, whatever its models are."""
        from grpc_health.v1 import health_pb2

        status = health_pb2.HealthCheckResponse.SERVING if ready and not self._stopping else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in HEALTH_NAMES:
            self._health.set(name, status)

    def stop(self, grace_s: float) -> None:
        """Refuses new requests, finishes those that run, for at most this long."""
        self._stopping = True
        self.set_ready(False)
        self._server.stop(grace_s).wait(grace_s + 1)
        self._executor.shutdown(wait=False, cancel_futures=True)

    # ---- one request

    def _unary(self, method: str, request_class: Any, call: Callable[[Any, float | None], Any]) -> Callable[[bytes, Any], bytes]:
        def handle(data: bytes, context: Any) -> bytes:
            started = time.monotonic()
            request, response, status, answer = None, None, Status("OK", ""), b""
            with self._counted():
                try:
                    request = _parsed(request_class, data)
                    response = call(request, self._deadline(context, started))
                    answer = bytes(response.SerializeToString())
                except Status as error:
                    status = error
                except Exception:
                    logger.exception("%s failed in an unexpected way", method)
                    status = Status("INTERNAL", "Internal error; see the server's log")
            self._note(method, request, response, status.code, started, context, len(data))
            if request_id := self._request_id(method, context):
                context.set_trailing_metadata(((REQUEST_ID, request_id),))
                self._keep(method, request, response, status.code, started, request_id, len(data) + len(answer))
            if status.code != "OK":
                context.abort(grpc.StatusCode[status.code], cut(status.message))
            return answer

        return handle

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._in_flight += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1

    def _deadline(self, context: Any, started: float) -> float:
        remaining = context.time_remaining()
        most = self._flags.max_request_seconds
        return started + (most if remaining is None else min(remaining, most))

    def _note(self, method: str, request: Any, response: Any, code: str, started: float, context: Any, size: int) -> None:
        seconds = time.monotonic() - started
        spec = _spec_of(request)
        answered = _spec_of(response)
        version = answered.version.value if answered.HasField("version") else None
        self._handlers.metrics.record(spec.name, method, "GRPC", code, seconds, version)
        if self._log is not None:
            self._log(
                {
                    "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "entrypoint": "GRPC", "method": method, "model": spec.name,
                    "version": version, "code": code, "ms": round(seconds * 1000, 3), "bytes_in": size, "peer": context.peer(),
                }
            )  # fmt: skip

    def _request_id(self, method: str, context: Any) -> str:
        """The caller's; a new one if a journal needs one; else none."""
        given = next((value for key, value in reversed(context.invocation_metadata()) if key == REQUEST_ID), "")
        if is_request_id(given):
            return str(given)
        return new_request_id() if self._journal is not None and method in JOURNALLED else ""

    def _keep(self, method: str, request: Any, response: Any, code: str, started: float, request_id: str, size: int) -> None:
        if self._journal is None or method not in JOURNALLED or not self._journal.samples(request_id):
            return
        asked, answered = _spec_of(request), _spec_of(response)
        seconds = time.monotonic() - started
        self._journal.note(
            Exchange(request_id, asked.name, answered.version.value, asked.version_label, code, seconds, 0, request, response, time.time()),
            size,
        )


def cut(message: str) -> str:
    """At most 1024 bytes, as the real server."""
    data = message.encode("utf-8", "replace")
    if len(data) <= MAX_MESSAGE:
        return message
    return data[: MAX_MESSAGE - len(TRUNCATED)].decode("utf-8", "ignore") + TRUNCATED


def _parsed(request_class: Any, data: bytes) -> Any:
    try:
        return request_class.FromString(data)
    except Exception as error:  # protobuf's DecodeError class differs between its implementations
        raise Status("INTERNAL", f"Request bytes are not a {request_class.DESCRIPTOR.full_name}") from error


_EMPTY = wire.ModelSpec()


def _spec_of(message: Any) -> Any:
    """The model spec of a request or a response, wherever it has one."""
    if message is None:
        return _EMPTY
    if hasattr(message, "model_spec"):
        return message.model_spec
    for field in ("tasks", "results"):
        if getattr(message, field, None):
            return getattr(message, field)[0].model_spec
    return _EMPTY


def _channel_arguments(text: str) -> list[tuple[str, int | str]]:
    """`k=v,k=v`; whole numbers are passed as numbers."""
    found: list[tuple[str, int | str]] = []
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        found.append((name, int(value) if value.lstrip("-").isdigit() else value))
    return found


def _add_health_and_reflection(server: Any) -> Any:
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection

    # A second registration of the same file is refused only when it differs.
    wire.POOL.AddSerializedFile(health_pb2.DESCRIPTOR.serialized_pb)
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection((*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name), server, pool=wire.POOL)
    return servicer
