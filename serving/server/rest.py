"""TensorFlow Serving's REST API as an ASGI application. Frees the server's core from HTTP, and HTTP from models.

    POST /v1/models/NAME[/versions/N | /labels/L]:predict | :classify | :regress
    GET  /v1/models/NAME[/versions/N | /labels/L][/metadata]
    GET  /readyz   /healthz                          ours: may this server be sent requests; is it alive
    ANY  the Prometheus path, when monitoring is on

In: `Handlers` (the models), `RestSettings`, an executor in which everything that takes time runs. Out: an ASGI callable. Refuses bodies over the
limit (413), more requests at once than the limit (429), and what TensorFlow Serving refuses, in its words.

Deliberately not as the original: the limits; a gzip body that cannot be inflated is an error of its own and not an empty document; bytes of a
name that are not UTF-8 are replaced, so that no model has it. An empty query (`/v1/models/m?`) cannot be told from none in ASGI.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import urllib.parse
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Protocol

from serving import wire
from serving.journal import REQUEST_ID, Exchange, Journal, is_request_id, new_request_id
from serving.server import rest_json
from serving.server.status import HTTP_CODES, Status, invalid
from serving.wire import Array

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# Matched against the path together with its query: a query makes a request malformed, or belongs to the name or label it follows.
# Names and labels are decoded afterwards.
_PREDICTION = re.compile(
    r"/v1/models/([^/:]+)(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?:(classify|regress|predict)", re.IGNORECASE | re.ASCII
)
_STATUS = re.compile(r"/v1/models(?:/([^/:]+))?(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?(?:/(metadata))?", re.IGNORECASE | re.ASCII)
_ORIGIN = re.compile(r"https?://")
_MAX_INT64 = (1 << 63) - 1
_NOT_FOUND_PAGE = b"<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD><BODY>\n<H1>Not Found</H1>\n</BODY></HTML>\n"
_CORS = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"POST, GET"),
    (b"access-control-allow-headers", b"Content-Type"),
)
_JOURNALLED = ("predict", "classify", "regress")
# REST name of a call -> the name of the same call in gRPC, for the access log.
_METHODS = {
    "predict": "Predict",
    "classify": "Classify",
    "regress": "Regress",
    "status": "GetModelStatus",
    "metadata": "GetModelMetadata",
}


class Servable(Protocol):
    """A loaded version of a model."""

    @property
    def version(self) -> int: ...
    @property
    def signatures(self) -> Mapping[str, Any]: ...
    def run(self, signature_name: str, inputs: Mapping[str, Array], outputs: Sequence[str], deadline: float | None) -> dict[str, Array]: ...


class Metrics(Protocol):
    """Counters and their Prometheus page."""

    def record(self, model: str, method: str, entrypoint: str, code: str, seconds: float, version: int | None) -> None: ...
    def render(self) -> str: ...


class Handlers(Protocol):
    """What this edge asks of the server. Everything raises `Status` with the words that the client shall see."""

    @property
    def metrics(self) -> Metrics: ...
    def acquire(self, name: str, version: int | None, version_label: str) -> AbstractContextManager[Servable]: ...
    def classify(self, request: Any, deadline: float | None) -> Any: ...
    def regress(self, request: Any, deadline: float | None) -> Any: ...
    def metadata(self, request: Any) -> Any: ...
    def model_status(self, request: Any) -> Any: ...
    def is_ready(self) -> bool: ...


@dataclass(frozen=True)
class RestSettings:
    """What an operator can choose.

    Attributes:
        timeout_s: time for one request from its first byte, waiting included; 0 and less: no limit.
        cors: three CORS headers on every answer under /v1/.
        max_body_bytes: largest request body, as sent and inflated.
        max_pending: most requests at once, waiting ones included.
        metrics_path: path of the Prometheus page; empty: there is none.
        access_log: receives one JSON-ready dict per request.
        journal: receives predictions, classifications and regressions, those that failed too, once it is known which model was meant.
    """

    timeout_s: float = 30.0
    cors: bool = False
    max_body_bytes: int = 64 << 20
    max_pending: int = 1024
    metrics_path: str = ""
    access_log: Callable[[dict[str, Any]], None] | None = None
    journal: Journal | None = None


@dataclass(frozen=True)
class Request:
    """What a route gets. Header names are in lower case; of equal names the last one is there."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What goes back, and under which gRPC code it is counted."""

    http: int
    body: bytes = b""
    content_type: str = "application/json"
    code: str = "OK"
    headers: tuple[tuple[str, str], ...] = ()


AsyncHandler = Callable[[Request], Awaitable[Answer]]


@dataclass
class _Call:
    """One request on its way: what the metrics and the access log say about it."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    peer: str
    started: float
    deadline: float | None
    api: str = ""
    model: str = ""
    version: int | None = None
    label: str = ""
    served_version: int | None = None
    bytes_in: int = 0
    request_id: str = ""  # the caller's, or made for the journal
    inputs: Any = None  # as the journal takes them
    outputs: Any = None

    @property
    def is_rest(self) -> bool:
        return self.path[:4].lower() == "/v1/"

    @property
    def full_path(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path


class _Disconnected(Exception):
    """The client is gone before its request was whole; nobody waits for an answer."""


class _BodyTooLarge(Exception):
    """The body, as sent or inflated, is over the limit."""


def application(
    handlers: Handlers, settings: RestSettings, executor: Executor, routes: Mapping[tuple[str, str], AsyncHandler] | None = None
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """The ASGI application.

    Args:
        handlers: the models.
        settings: limits and switches.
        executor: where JSON is read and written and models run; its size is the number of requests worked on at once.
        routes: further (METHOD, path) pairs outside /v1/; a path is matched whole, without its query.

    Returns:
        A callable for any ASGI server.
    """
    return _Application(handlers, settings, executor, dict(routes or {}))


class _Application:
    def __init__(self, handlers: Handlers, settings: RestSettings, executor: Executor, routes: dict[tuple[str, str], AsyncHandler]) -> None:
        self._handlers = handlers
        self._settings = settings
        self._executor = executor
        self._pending = 0
        health = {(method, "/healthz"): self._healthz for method in ("GET", "HEAD")}
        ready = {(method, "/readyz"): self._readyz for method in ("GET", "HEAD")}
        self._routes: dict[tuple[str, str], AsyncHandler] = {**health, **ready, **routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        elif scope["type"] == "http":
            await self._http(_call(scope, self._settings), receive, send)

    async def _http(self, call: _Call, receive: Receive, send: Send) -> None:
        try:
            answer = await self._answer(call, receive)
        except _Disconnected:
            self._record(call, Answer(HTTP_CODES["CANCELLED"], code="CANCELLED"))
            return
        except Status as error:
            answer = _failure(error)
        except Exception:
            logger.exception("REST request failed: %s %r", call.method, call.path)
            answer = Answer(HTTP_CODES["INTERNAL"], rest_json.error_json("Internal error"), code="INTERNAL")
        # First recorded, then sent: who has an answer finds it counted.
        self._record(call, answer)
        try:
            await _send(answer, call, self._settings.cors, send)
        except OSError:
            logger.debug("REST client %s left before its answer was sent", call.peer)

    async def _answer(self, call: _Call, receive: Receive) -> Answer:
        if call.method == "CONNECT":
            # A 2xx answer to it would end HTTP on this connection.
            return Answer(404, _NOT_FOUND_PAGE, "text/html", code="NOT_FOUND")
        is_metrics = bool(self._settings.metrics_path) and call.path == self._settings.metrics_path
        route = self._routes.get((call.method, call.path))
        if not (is_metrics or call.is_rest or route):
            return Answer(404, _NOT_FOUND_PAGE, "text/html", code="NOT_FOUND")
        if is_metrics:
            return await self._metrics(call)
        if route and call.path in ("/healthz", "/readyz"):
            # Asked for while the server is full, too.
            return await route(Request(call.method, call.path, call.query, call.headers, b""))
        if self._pending >= self._settings.max_pending:
            raise Status(
                "RESOURCE_EXHAUSTED",
                f"Server is full: {self._pending} requests are being answered and no more than {self._settings.max_pending} are taken. "
                "Send fewer at once, or try again later.",
            )
        self._pending += 1
        try:
            body = await _read(call, receive, self._settings.max_body_bytes)
            if route and not call.is_rest:
                return await route(Request(call.method, call.path, call.query, call.headers, body))
            return await self._run(call, body)
        except _BodyTooLarge:
            message = (
                f"Request body is too large: no more than {self._settings.max_body_bytes} bytes are taken, "
                "before and after inflating. Send smaller requests."
            )
            return Answer(413, rest_json.error_json(message), code="INVALID_ARGUMENT")
        finally:
            self._pending -= 1

    async def _run(self, call: _Call, body: bytes) -> Answer:
        try:
            future = asyncio.get_running_loop().run_in_executor(self._executor, self._rest, call, body)
        except RuntimeError as error:
            # The only reason an executor has not to take work.
            raise Status("UNAVAILABLE", "Server is shutting down. Try again later, or another server.") from error
        return await future

    async def _healthz(self, _: Request) -> Answer:
        return Answer(200, b'{"status": "alive"}\n')

    async def _readyz(self, _: Request) -> Answer:
        # Not in the executor: whether the server is ready has to be known also when all its threads are at work.
        ready = await asyncio.get_running_loop().run_in_executor(None, self._handlers.is_ready)
        if ready:
            return Answer(200, b'{"status": "ready"}\n')
        return Answer(503, b'{"status": "not ready"}\n', code="UNAVAILABLE")

    async def _metrics(self, call: _Call) -> Answer:
        if call.query:
            text = f"Unexpected path: {call.full_path}. Should be {self._settings.metrics_path}"
            return Answer(400, text.encode("utf-8", "replace"), "text/plain", code="INVALID_ARGUMENT")
        page = await asyncio.get_running_loop().run_in_executor(None, self._handlers.metrics.render)
        return Answer(200, page.encode("utf-8"), "text/plain")

    def _rest(self, call: _Call, body: bytes) -> Answer:
        """Everything that takes time. Runs in the executor."""
        try:
            if call.method == "OPTIONS":
                if _ORIGIN.search(call.headers.get("origin", "")):
                    return Answer(200, content_type="")
                return Answer(400, content_type="", code="FAILED_PRECONDITION")
            _route(call)
            if self._settings.journal is not None and call.api in _JOURNALLED:
                call.request_id = call.request_id or new_request_id()
            if call.deadline is not None and time.monotonic() >= call.deadline:
                raise Status("DEADLINE_EXCEEDED", "Request waited for longer than its timeout; the model was not run.")
            if "gzip" in call.headers.get("content-encoding", ""):
                body = _inflate(body, self._settings.max_body_bytes)
            return Answer(200, _APIS[call.api](self._handlers, call, body))
        except Status as error:
            return _failure(error)

    def _record(self, call: _Call, answer: Answer) -> None:
        seconds = time.monotonic() - call.started
        try:
            if call.is_rest:
                self._handlers.metrics.record(call.model, call.api, "REST", answer.code, seconds, call.served_version)
            if self._settings.access_log:
                self._settings.access_log(_log_entry(call, answer, seconds))
            if self._settings.journal is not None and call.api in _JOURNALLED:
                _keep(self._settings.journal, call, answer, seconds)
        except Exception:
            # A full disk under the log is no reason to keep the answer back.
            logger.exception("REST request could not be recorded: %s %r", call.method, call.path)


def _keep(journal: Journal, call: _Call, answer: Answer, seconds: float) -> None:
    if not journal.samples(call.request_id):
        return
    version, outputs = call.served_version or 0, call.outputs if answer.code == "OK" else None
    exchange = Exchange(call.request_id, call.model, version, call.label, answer.code, seconds, 0, call.inputs, outputs, time.time())
    journal.note(exchange, call.bytes_in + len(answer.body))


def _log_entry(call: _Call, answer: Answer, seconds: float) -> dict[str, Any]:
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "entrypoint": "REST",
        "method": _METHODS.get(call.api, ""),
        "path": call.full_path,
        "model": call.model,
        "version": call.served_version,
        "code": answer.code,
        "http": answer.http,
        "ms": round(1000 * seconds, 3),
        "bytes_in": call.bytes_in,
        "bytes_out": len(answer.body),
        "peer": call.peer,
    }


# ------------------------------------------------------------------------------------------------------------------------ the five calls


def _predict(handlers: Handlers, call: _Call, body: bytes) -> bytes:
    # In this order, as in the original: a body that is not JSON is reported even when the model does not exist.
    document = rest_json.parse_object(body)
    asked = rest_json.signature_name(document)
    name = asked or "serving_default"
    with handlers.acquire(call.model, call.version, call.label) as servable:
        call.served_version = servable.version
        if name not in servable.signatures:
            raise invalid(f'Serving signature name: "{name}" not found in signature def')
        signature = servable.signatures[name]
        call.inputs, row = rest_json.predict_inputs(document, signature, asked)
        call.outputs = servable.run(name, call.inputs, sorted(signature.outputs), call.deadline)
        return rest_json.predict_json(call.outputs, signature, row=row)


def _classify(handlers: Handlers, call: _Call, body: bytes) -> bytes:
    call.inputs = _examples(wire.ClassificationRequest(), call, body)
    call.outputs = response = handlers.classify(call.inputs, call.deadline)
    call.served_version = _version_of(response)
    return rest_json.classification_json(response.result)


def _regress(handlers: Handlers, call: _Call, body: bytes) -> bytes:
    call.inputs = _examples(wire.RegressionRequest(), call, body)
    call.outputs = response = handlers.regress(call.inputs, call.deadline)
    call.served_version = _version_of(response)
    return rest_json.regression_json(response.result)


def _examples(request: Any, call: _Call, body: bytes) -> Any:
    document = rest_json.parse_object(body)
    _fill_spec(request.model_spec, call)
    request.model_spec.signature_name = rest_json.signature_name(document)
    request.input.CopyFrom(rest_json.example_input(document))
    return request


def _model_status(handlers: Handlers, call: _Call, _: bytes) -> bytes:
    request = wire.GetModelStatusRequest()
    _fill_spec(request.model_spec, call)
    return rest_json.status_json(handlers.model_status(request))


def _metadata(handlers: Handlers, call: _Call, _: bytes) -> bytes:
    request = wire.GetModelMetadataRequest(metadata_field=["signature_def"])
    _fill_spec(request.model_spec, call)
    response = handlers.metadata(request)
    call.served_version = _version_of(response)
    return rest_json.metadata_json(response)


_APIS: dict[str, Callable[[Handlers, _Call, bytes], bytes]] = {
    "predict": _predict,
    "classify": _classify,
    "regress": _regress,
    "status": _model_status,
    "metadata": _metadata,
}


def _fill_spec(spec: Any, call: _Call) -> None:
    spec.name = call.model
    if call.version is not None:
        spec.version.value = call.version
    elif call.label:
        spec.version_label = call.label


def _version_of(response: Any) -> int | None:
    spec = response.model_spec
    return spec.version.value if spec.HasField("version") else None


def _route(call: _Call) -> None:
    """Finds out which call it is, and of which model. Raises `Status` for what the two patterns do not take."""
    malformed = invalid(f"Malformed request: {call.method} {call.full_path}")
    if call.method == "POST":
        match = _PREDICTION.fullmatch(call.full_path)
    elif call.method == "GET":
        match = _STATUS.fullmatch(call.full_path)
    else:
        match = None
    if not match:
        raise malformed
    name, version, label, last = match.groups()
    # Bytes that are not UTF-8 become U+FFFD, which no model's name has: not found, rather than an error in the protocol buffers.
    call.model = urllib.parse.unquote(name or "", errors="replace")
    call.label = urllib.parse.unquote(label or "", errors="replace")
    if version:
        # At most 19 digits can fit; the length is looked at first because Python refuses to read very long ones.
        digits = version.lstrip("0") or "0"
        if len(digits) > 19 or int(digits) > _MAX_INT64:
            raise invalid(f"Failed to convert version: {version} to numeric.")
        call.version = int(digits)
    if call.method == "POST" and last not in ("classify", "regress", "predict"):
        raise malformed
    call.api = last if call.method == "POST" else "metadata" if last == "metadata" else "status"
    if not name:
        raise invalid("Missing model name in request.")


# ----------------------------------------------------------------------------------------------------------------------------------- HTTP


def _call(scope: Scope, settings: RestSettings) -> _Call:
    started = time.monotonic()
    raw = scope.get("raw_path") or urllib.parse.quote(scope["path"], safe="/:").encode("ascii")
    client = scope.get("client")
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    request_id = headers.get(REQUEST_ID, "")
    return _Call(
        method=scope["method"],
        path=raw.decode("utf-8", "replace"),
        query=scope.get("query_string", b"").decode("utf-8", "replace"),
        headers=headers,
        request_id=request_id if is_request_id(request_id) else "",
        peer=f"{client[0]}:{client[1]}" if client else "",
        started=started,
        deadline=started + settings.timeout_s if settings.timeout_s > 0 else None,
    )


async def _read(call: _Call, receive: Receive, limit: int) -> bytes:
    length = call.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 19 or int(length) > limit):
        raise _BodyTooLarge
    left = None if call.deadline is None else call.deadline - time.monotonic()
    try:
        return await asyncio.wait_for(_receive_all(call, receive, limit), left)
    except asyncio.TimeoutError:
        # Or a client that never finishes would hold its place for ever.
        raise Status("DEADLINE_EXCEEDED", "Request body did not arrive within the timeout of a request.") from None


async def _receive_all(call: _Call, receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise _Disconnected
        part = event.get("body", b"")
        call.bytes_in += len(part)
        if call.bytes_in > limit:
            raise _BodyTooLarge
        parts.append(part)
        if not event.get("more_body", False):
            return b"".join(parts)


def _inflate(body: bytes, limit: int) -> bytes:
    if not body:
        return body
    inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(body, limit + 1)
    except zlib.error:
        inflated = b""
    if len(inflated) > limit:
        raise _BodyTooLarge
    if not inflater.eof:
        raise invalid("Failed to uncompress the gzipped body. Send whole gzip data, or leave out the header Content-Encoding.")
    return inflated


def _failure(error: Status) -> Answer:
    return Answer(HTTP_CODES.get(error.code, 500), rest_json.error_json(error.message), code=error.code)


async def _send(answer: Answer, call: _Call, cors: bool, send: Send) -> None:
    headers = [(b"content-length", str(len(answer.body)).encode("ascii"))]
    if answer.content_type:
        headers.append((b"content-type", answer.content_type.encode("latin-1")))
    headers += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    if call.request_id:
        headers.append((REQUEST_ID.encode("ascii"), call.request_id.encode("ascii")))
    if cors and call.is_rest:
        headers += _CORS
    await send({"type": "http.response.start", "status": answer.http, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        event = await receive()
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return
