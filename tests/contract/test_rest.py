"""TensorFlow Serving's REST API over HTTP: paths, codes, headers, limits, and what is written down about each request; the models are a small fake."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from serving import wire
from serving.server import rest
from serving.server.rest import Answer, Request, RestSettings
from serving.server.status import HTTP_CODES, Status, invalid

GZIP = {"Content-Encoding": "gzip"}


def _spec(spec: Any) -> tuple[str, int | None, str]:
    return spec.name, spec.version.value if spec.HasField("version") else None, spec.version_label


def _signature(inputs: list[str], outputs: list[str]) -> Any:
    signature = wire.SignatureDef()
    for name in inputs:
        signature.inputs[name].dtype = wire.DT_STRING if name.endswith("_bytes") else wire.DT_FLOAT
    for name in outputs:
        signature.outputs[name].dtype = wire.DT_STRING if name.endswith("_bytes") else wire.DT_FLOAT
    return signature


class _Servable:
    name, version = "m", 123

    def __init__(self, fake: _Fake) -> None:
        self._fake = fake
        self.signatures = {
            "serving_default": _signature(["x"], ["y"]),
            "echo": _signature(["text_bytes"], ["text_bytes"]),
            "none": _signature([], ["y"]),
        }

    def run(self, signature_name: str, inputs: Any, outputs: Any, deadline: float | None) -> dict[str, Any]:
        self._fake.deadlines.append(deadline)
        self._fake.on_run()
        if signature_name == "echo":
            return {"text_bytes": inputs["text_bytes"]}
        return {name: (inputs["x"] / 2 + 2).astype(np.float32) for name in outputs}


class _Fake:
    """`Handlers` over one model `m`, version 123, label `stable`; and the metrics it was told of."""

    def __init__(self) -> None:
        self.metrics = self
        self.on_run: Callable[[], None] = lambda: None
        self.ready = True
        self.records: list[tuple[Any, ...]] = []
        self.deadlines: list[float | None] = []
        self.requests: list[Any] = []
        self.released = 0

    def record(self, model: str, method: str, entrypoint: str, code: str, seconds: float, version: int | None) -> None:
        assert seconds >= 0
        self.records.append((model, method, entrypoint, code, version))

    def render(self) -> str:
        return "# the page\n"

    def is_ready(self) -> bool:
        return self.ready

    @contextlib.contextmanager
    def acquire(self, name: str, version: int | None, version_label: str) -> Iterator[_Servable]:
        if version_label not in ("", "stable"):
            raise invalid(f"Unrecognized servable version label: {version_label}")
        if name != "m":
            raise Status("NOT_FOUND", f"Servable not found for request: Latest({name})")
        if version not in (None, 123):
            raise Status("NOT_FOUND", f"Servable not found for request: Specific(m, {version})")
        try:
            yield _Servable(self)
        finally:
            self.released += 1

    def classify(self, request: Any, deadline: float | None) -> Any:
        self.requests.append(request)
        with self.acquire(*_spec(request.model_spec)):
            response = wire.ClassificationResponse()
            for _ in request.input.example_list.examples or request.input.example_list_with_context.examples:
                response.result.classifications.add().classes.add(label="good", score=0.75)
            response.model_spec.version.value = 123
            return response

    def regress(self, request: Any, deadline: float | None) -> Any:
        self.requests.append(request)
        with self.acquire(*_spec(request.model_spec)):
            response = wire.RegressionResponse()
            response.result.regressions.add(value=2.5)
            response.model_spec.version.value = 123
            return response

    def metadata(self, request: Any) -> Any:
        self.requests.append(request)
        with self.acquire(*_spec(request.model_spec)) as servable:
            stored = wire.SignatureDefMap()
            for name, signature in servable.signatures.items():
                stored.signature_def[name].CopyFrom(signature)
            response = wire.GetModelMetadataResponse()
            response.model_spec.name = "m"
            response.model_spec.version.value = 123
            response.metadata["signature_def"].Pack(stored)
            return response

    def model_status(self, request: Any) -> Any:
        self.requests.append(request)
        name, version, _ = _spec(request.model_spec)
        if name != "m":
            raise Status("NOT_FOUND", f"Could not find any versions of model {name}")
        if version not in (None, 123):
            raise Status("NOT_FOUND", f"Could not find version {version} of model m")
        response = wire.GetModelStatusResponse()
        response.model_version_status.add(version=123, state=30).status.SetInParent()
        return response


@pytest.fixture
def fake() -> _Fake:
    return _Fake()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
def ask(fake: _Fake, pool: ThreadPoolExecutor) -> Callable[..., httpx.Response]:
    """One request against a fresh application; `settings` and `routes` are its own."""

    def one(method: str, path: str, *, settings: RestSettings | None = None, routes: Any = None, **arguments: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(rest.application(fake, settings or RestSettings(), pool, routes))
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, path, **arguments)

        return asyncio.run(send())

    return one


def _error(response: httpx.Response, code: int, message: str) -> None:
    assert response.status_code == code, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.text.startswith('{\n    "error": "')
    assert response.json() == {"error": message}


# ---- the paths


@pytest.mark.parametrize("where", ["", "/versions/123", "/versions/00123", "/labels/stable", "/labels/st%61ble"])
def test_predict_by_name_version_and_label_in_rows_and_columns(ask: Any, where: str) -> None:
    # The content type of a request is not looked at.
    response = ask("POST", f"/v1/models/m{where}:predict", content='{"instances": [1, 2, 5]}', headers={"Content-Type": "image/png"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.text == '{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}'
    assert ask("POST", f"/v1/models/m{where}:predict", content='{"inputs": [1, 2, 5]}').json() == {"outputs": [2.5, 3.0, 4.5]}


def test_bytes_go_there_and_back_as_base64(ask: Any) -> None:
    instances = [{"text_bytes": {"b64": "/w=="}}, {"text_bytes": {"b64": "YQ=="}}]
    response = ask("POST", "/v1/models/m:predict", json={"signature_name": "echo", "instances": instances})
    assert response.json() == {"predictions": [{"b64": "/w=="}, {"b64": "YQ=="}]}


@pytest.mark.parametrize("path", ["/V1/MODELS/m:predict", "/v1/Models/m/Versions/123:predict", "/v1/models/%6D:predict"])
def test_paths_ignore_case_and_names_are_decoded_after_matching(ask: Any, path: str) -> None:
    assert ask("POST", path, content='{"instances": [1]}').status_code == 200


def test_a_name_that_is_not_utf8_belongs_to_no_model(ask: Any) -> None:
    for method, path in (("POST", "/v1/models/%ff%00:predict"), ("GET", "/v1/models/%ff%00"), ("GET", "/v1/models/%ff/metadata")):
        assert ask(method, path, content='{"instances": [1]}').status_code == 404


@pytest.mark.parametrize(("method", "path"), [
    ("POST", "/v1/models/m:PREDICT"), ("POST", "/v1/models/m:Classify"), ("POST", "/v1/models/m:predict?x=1"),
    ("POST", "/v1/models/m:predict/"), ("POST", "/v1/models/m/:predict"), ("POST", "/v1/models/m"), ("POST", "/v1/models/m:generate"),
    ("POST", "/v1/models/:predict"), ("POST", "/v1/models/m/versions/x:predict"), ("POST", "/v1/models/m/versions/1/labels/l:predict"),
    ("GET", "/v1/models/m:predict"), ("GET", "/v1/models/m/"), ("GET", "/v1/models?verbose=true"),
    ("GET", "/v1/models/m/metadata?verbose=true"), ("GET", "/v1/models/m/versions/123?verbose=true"), ("GET", "/v1/models/m/versions/-1"),
    ("GET", "/v1/models/m/other"), ("GET", "/v1/"), ("GET", "/v1/anything"), ("PUT", "/v1/models/m"), ("DELETE", "/v1/models/m"),
    ("PATCH", "/v1/models/m:predict"),
])  # fmt: skip
def test_everything_else_under_v1_is_malformed(ask: Any, method: str, path: str) -> None:
    _error(ask(method, path, content=b'{"instances": [1]}'), 400, f"Malformed request: {method} {path}")


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/models/m", "/v10/models/m", "/favicon.ico", "/monitoring/prometheus/metrics"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_outside_v1_is_libevents_page(ask: Any, fake: _Fake, method: str, path: str) -> None:
    response = ask(method, path)
    assert response.status_code == 404
    assert response.headers["content-type"] == "text/html"
    assert response.text == "<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD><BODY>\n<H1>Not Found</H1>\n</BODY></HTML>\n"
    assert fake.records == []


@pytest.mark.parametrize("version", ["9223372036854775808", "9" * 5000])
@pytest.mark.parametrize(("method", "suffix"), [("POST", ":predict"), ("GET", ""), ("GET", "/metadata")])
def test_a_version_beyond_int64_is_refused(ask: Any, method: str, suffix: str, version: str) -> None:
    response = ask(method, f"/v1/models/m/versions/{version}{suffix}", content=b'{"instances": [1]}')
    _error(response, 400, f"Failed to convert version: {version} to numeric.")


_ROW, _EXAMPLE = '{"instances": [1]}', '{"examples": [{}]}'


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "message"),
    [
        ("POST", "/foo:predict", _ROW, 404, "Servable not found for request: Latest(foo)"),
        ("POST", "/foo:classify", _EXAMPLE, 404, "Servable not found for request: Latest(foo)"),
        ("POST", "/foo:regress", _EXAMPLE, 404, "Servable not found for request: Latest(foo)"),
        ("GET", "/foo/metadata", "", 404, "Servable not found for request: Latest(foo)"),
        ("GET", "/foo", "", 404, "Could not find any versions of model foo"),
        ("POST", "/m/versions/9:predict", _ROW, 404, "Servable not found for request: Specific(m, 9)"),
        ("POST", f"/m/versions/{2**63 - 1}:predict", _ROW, 404, f"Servable not found for request: Specific(m, {2**63 - 1})"),
        ("GET", "/m/versions/9", "", 404, "Could not find version 9 of model m"),
        ("POST", "/foo/labels/l:predict", _ROW, 400, "Unrecognized servable version label: l"),
        ("GET", "/m/labels/l/metadata", "", 400, "Unrecognized servable version label: l"),
        # Names: an encoded slash belongs to one; so does a query that follows one, because the patterns see it; a model may be `metadata`.
        ("POST", "/m%2Fversions%2F1:predict", _ROW, 404, "Servable not found for request: Latest(m/versions/1)"),
        ("GET", "/m?verbose=true", "", 404, "Could not find any versions of model m?verbose=true"),
        ("GET", "/metadata", "", 404, "Could not find any versions of model metadata"),
        ("GET", "", "", 400, "Missing model name in request."),
        ("GET", "/versions/123", "", 400, "Missing model name in request."),
        ("GET", "/labels/l/metadata", "", 400, "Missing model name in request."),
        # A body that cannot be read is reported first, even for a model that is not there.
        ("POST", "/foo:predict", "", 400, "JSON Parse error: The document is empty"),
        ("POST", "/foo:classify", "", 400, "JSON Parse error: The document is empty"),
        ("POST", "/foo:predict", "{]", 400, "JSON Parse error: Missing a name for object member. at offset: 1"),
        ("POST", "/m:predict", '{"signature_name": "s", "instances": [1]}', 400, 'Serving signature name: "s" not found in signature def'),
        ("POST", "/m:predict", '{"signature_name": "none", "instances": [1]}', 400, "Failed to get input map for signature: none"),
        ("POST", "/m:predict", "{}", 400, "Missing 'inputs' or 'instances' key"),
        ("POST", "/m:predict", '{"inputs": "a"}', 400, 'JSON Value: "a" Type: String is not of expected type: float'),
        ("POST", "/m:regress", '{"examples": [5]}', 400, "Example must be JSON object but got JSON Number"),
    ],
)
def test_refusals(ask: Any, method: str, path: str, body: str, code: int, message: str) -> None:
    _error(ask(method, f"/v1/models{path}", content=body), code, message)


@pytest.mark.parametrize("code", [code for code in HTTP_CODES if code != "OK"])
def test_each_code_has_its_http_status(ask: Any, fake: _Fake, code: str) -> None:
    def fail() -> None:
        raise Status(code, 'a "message"\n')

    fake.on_run = fail
    _error(ask("POST", "/v1/models/m:predict", content='{"instances": [1]}'), HTTP_CODES[code], 'a "message"\n')
    assert fake.records == [("m", "predict", "REST", code, 123)]
    assert fake.released == 1


@pytest.mark.parametrize("body", [b"[" * 500_000, b'{"instances":' + b"[" * 500_000 + b"]" * 500_000 + b"}", b'{"instances": ["\xff"]}'])
def test_hostile_bodies_are_ordinary_refusals(ask: Any, caplog: pytest.LogCaptureFixture, body: bytes) -> None:
    for verb in ("predict", "classify", "regress"):
        assert ask("POST", f"/v1/models/m:{verb}", content=body).status_code == 400
    assert not caplog.records


def test_the_deadline_is_the_timeout_after_the_arrival(ask: Any, fake: _Fake) -> None:
    before = time.monotonic()
    ask("POST", "/v1/models/m:predict", content='{"instances": [1]}', settings=RestSettings(timeout_s=100))
    ask("POST", "/v1/models/m:predict", content='{"instances": [1]}', settings=RestSettings(timeout_s=0))
    limited, unlimited = fake.deadlines
    assert limited is not None
    assert before + 100 <= limited <= time.monotonic() + 100
    assert unlimited is None


def test_a_request_that_waited_too_long_never_reaches_the_model(fake: _Fake) -> None:
    class Late(ThreadPoolExecutor):
        def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Any:
            def later() -> Any:
                while time.monotonic() < arguments[0].deadline:
                    time.sleep(0.001)
                return function(*arguments, **named)

            return super().submit(later)

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(rest.application(fake, RestSettings(timeout_s=0.05), executor))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.post("/v1/models/m:predict", content='{"instances": [1]}')

    with Late(1) as executor:
        response = asyncio.run(send())
    _error(response, 504, "Request waited for longer than its timeout; the model was not run.")
    assert fake.deadlines == []


def test_an_unexpected_error_is_logged_and_its_text_is_kept_back(ask: Any, fake: _Fake, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise KeyError("secret")

    fake.on_run = fail
    with caplog.at_level(logging.ERROR):
        response = ask("POST", "/v1/models/m:predict", content='{"instances": [1]}')
    _error(response, 500, "Internal error")
    assert fake.records == [("m", "predict", "REST", "INTERNAL", 123)]
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [KeyError]


def test_metrics_or_a_log_that_fail_do_not_keep_the_answer_back(ask: Any, fake: _Fake, caplog: pytest.LogCaptureFixture) -> None:
    def full(_: dict[str, Any]) -> None:
        raise OSError("disk full")

    response = ask("POST", "/v1/models/m:predict", content='{"instances": [1]}', settings=RestSettings(access_log=full))
    assert response.status_code == 200
    assert "could not be recorded" in caplog.text


# ---- classify, regress, status, metadata


def test_classify_sends_examples_and_answers_results(ask: Any, fake: _Fake) -> None:
    body = {"signature_name": "s", "context": {"c": 1}, "examples": [{"x": 1.5}, {"x": 2.5}]}
    response = ask("POST", "/v1/models/m/labels/stable:classify", json=body)
    assert response.text == '{\n    "results": [[["good", 0.75]], [["good", 0.75]]\n    ]\n}'
    (request,) = fake.requests
    assert (request.model_spec.name, request.model_spec.signature_name, request.model_spec.version_label) == ("m", "s", "stable")
    assert [one.features.feature["x"].float_list.value[0] for one in request.input.example_list_with_context.examples] == [1.5, 2.5]


def test_regress_answers_results(ask: Any, fake: _Fake) -> None:
    response = ask("POST", "/v1/models/m/versions/123:regress", json={"examples": [{"x": 1.5}]})
    assert (response.text, fake.requests[0].model_spec.version.value) == ('{\n    "results": [2.5]\n}', 123)


@pytest.mark.parametrize("where", ["", "/versions/123", "/labels/unknown", "/METADATA"])
def test_status_ignores_labels_and_metadata_in_another_case(ask: Any, where: str) -> None:
    response = ask("GET", f"/v1/models/m{where}")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "model_version_status": [{"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}]
    }


@pytest.mark.parametrize("where", ["", "/versions/123", "/labels/stable"])
def test_metadata_has_the_signatures_of_the_model(ask: Any, fake: _Fake, where: str) -> None:
    read = ask("GET", f"/v1/models/m{where}/metadata").json()
    assert read["model_spec"] == {"name": "m", "signature_name": "", "version": "123"}
    assert sorted(read["metadata"]["signature_def"]["signature_def"]) == ["echo", "none", "serving_default"]
    assert list(fake.requests[0].metadata_field) == ["signature_def"]


# ---- headers, bodies, limits


def test_gzip_requests_are_inflated_and_answers_are_not_compressed(ask: Any) -> None:
    response = ask(
        "POST", "/v1/models/m:predict", content=gzip.compress(b'{"instances": [1]}'), headers={**GZIP, "Accept-Encoding": "gzip"}
    )
    assert response.json() == {"predictions": [2.5]}
    assert "content-encoding" not in response.headers


@pytest.mark.parametrize("body", [b'{"instances": [1]}', gzip.compress(b'{"instances": [1]}', mtime=0)[:-9]])
def test_gzip_that_cannot_be_inflated_is_refused(ask: Any, body: bytes) -> None:
    response = ask("POST", "/v1/models/m:predict", content=body, headers=GZIP)
    assert response.status_code == 400
    assert response.json()["error"].startswith("Failed to uncompress the gzipped body.")


def test_bodies_over_the_limit_are_refused_as_sent_and_inflated(ask: Any, fake: _Fake) -> None:
    limit = RestSettings(max_body_bytes=1000)
    fits = b'{"instances": [1]}'.ljust(1000)

    async def chunks() -> Any:
        for _ in range(3):
            yield b" " * 500

    assert ask("POST", "/v1/models/m:predict", content=fits, settings=limit).status_code == 200
    assert ask("POST", "/v1/models/m:predict", content=gzip.compress(fits), headers=GZIP, settings=limit).status_code == 200
    for body, headers in ((fits + b" ", {}), (gzip.compress(fits + b" "), GZIP), (gzip.compress(b" " * 10_000_000), GZIP), (chunks(), {})):
        response = ask("POST", "/v1/models/m:predict", content=body, headers=headers, settings=limit)
        assert response.status_code == 413
        assert response.json()["error"].startswith("Request body is too large: no more than 1000 bytes are taken")
    assert [record[3] for record in fake.records] == ["OK"] * 2 + ["INVALID_ARGUMENT"] * 4


@pytest.mark.parametrize(("origin", "code"), [("http://a", 200), ("https://a", 200), ("ftp://a", 400), (None, 400)])
def test_options_needs_an_origin_and_has_no_body(ask: Any, origin: str | None, code: int) -> None:
    response = ask("OPTIONS", "/v1/models/m:predict", headers={"Origin": origin} if origin else {})
    assert (response.status_code, response.content) == (code, b"")
    assert "access-control-allow-origin" not in response.headers


def test_cors_headers_are_on_every_answer_under_v1_when_enabled(ask: Any) -> None:
    settings = RestSettings(cors=True, max_body_bytes=10)
    for method, path, code in (
        ("GET", "/v1/models/m", 200), ("GET", "/v1/models/foo", 404), ("GET", "/v1/x", 400), ("OPTIONS", "/v1/models/m", 400),
        ("POST", "/v1/models/m:predict", 413),
    ):  # fmt: skip
        response = ask(method, path, content=b" " * (11 if code == 413 else 0), settings=settings)
        assert response.status_code == code
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.headers["access-control-allow-methods"] == "POST, GET"
        assert response.headers["access-control-allow-headers"] == "Content-Type"
        assert "access-control-allow-origin" not in ask(method, path).headers
    assert "access-control-allow-origin" not in ask("GET", "/elsewhere", settings=settings).headers


def test_one_request_too_many_is_told_so_and_health_still_answers(fake: _Fake, pool: ThreadPoolExecutor) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        assert go_on.wait(30)

    async def story() -> tuple[httpx.Response, ...]:
        application = rest.application(fake, RestSettings(max_pending=1), pool)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://server") as client:
            first = asyncio.create_task(client.post("/v1/models/m:predict", content='{"instances": [1]}'))
            await asyncio.to_thread(inside.wait, 30)
            refused = await client.post("/v1/models/m:predict", content='{"instances": [1]}')
            healthy, ready = await client.get("/healthz"), await client.get("/readyz")
            go_on.set()
            return await first, refused, healthy, ready, await client.post("/v1/models/m:predict", content='{"instances": [1]}')

    fake.on_run = wait
    first, refused, healthy, ready, afterwards = asyncio.run(story())
    assert refused.status_code == 429
    assert refused.json()["error"].startswith("Server is full: 1 requests are being answered and no more than 1 are taken.")
    assert [one.status_code for one in (first, healthy, ready, afterwards)] == [200] * 4
    assert ("", "", "REST", "RESOURCE_EXHAUSTED", None) in fake.records


def test_a_closed_executor_means_that_the_server_is_shutting_down(ask: Any, pool: ThreadPoolExecutor) -> None:
    pool.shutdown()
    _error(ask("GET", "/v1/models/m"), 503, "Server is shutting down. Try again later, or another server.")


def _events(fake: _Fake, pool: ThreadPoolExecutor, *events: Any, send_fails: bool = False, timeout_s: float = 30.0) -> list[Any]:
    """Plays ASGI events to the application; after the last one it waits for ever."""
    sent: list[Any] = []
    waiting = iter(events)

    async def receive() -> Any:
        event = next(waiting, None)
        return event if event is not None else await asyncio.Event().wait()

    async def send(event: Any) -> None:
        if send_fails:
            raise OSError("gone")
        sent.append(event)

    scope = {"type": "http", "method": "POST", "path": "/v1/models/m:predict", "query_string": b"", "headers": []}
    application = rest.application(fake, RestSettings(timeout_s=timeout_s), pool)

    async def play() -> None:
        await asyncio.wait_for(application(scope, receive, send), 30)

    asyncio.run(play())
    return sent


def test_a_client_that_leaves_before_its_request_is_whole_gets_nothing(fake: _Fake, pool: ThreadPoolExecutor) -> None:
    assert _events(fake, pool, {"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}) == []
    assert fake.records == [("", "", "REST", "CANCELLED", None)]
    assert fake.deadlines == []


def test_a_client_that_leaves_before_its_answer_breaks_nothing(fake: _Fake, pool: Any, caplog: pytest.LogCaptureFixture) -> None:
    _events(fake, pool, {"type": "http.request", "body": b'{"instances": [1]}'}, send_fails=True)
    assert fake.records == [("m", "predict", "REST", "OK", 123)]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_client_that_never_finishes_its_request_is_let_go(fake: _Fake, pool: ThreadPoolExecutor) -> None:
    start, body = _events(fake, pool, {"type": "http.request", "body": b"{", "more_body": True}, timeout_s=0.02)
    assert start["status"] == 504
    assert json.loads(body["body"])["error"] == "Request body did not arrive within the timeout of a request."


# ---- health, metrics, log, routes


def test_readiness_follows_the_models_and_liveness_does_not(ask: Any, fake: _Fake) -> None:
    for ready, code in ((True, 200), (False, 503)):
        fake.ready = ready
        response = ask("GET", "/readyz")
        assert (response.status_code, response.json()) == (code, {"status": "ready" if ready else "not ready"})
        assert (ask("GET", "/healthz").status_code, ask("GET", "/healthz").json()) == (200, {"status": "alive"})
    assert ask("POST", "/readyz").status_code == 404
    assert fake.records == []


def test_the_metrics_page_is_at_its_path_without_a_query(ask: Any) -> None:
    path = "/monitoring/prometheus/metrics"
    settings = RestSettings(metrics_path=path)
    page = ask("GET", path, settings=settings)
    assert (page.status_code, page.headers["content-type"], page.text) == (200, "text/plain", "# the page\n")
    query = ask("GET", f"{path}?x=1", settings=settings)
    assert (query.status_code, query.text) == (400, f"Unexpected path: {path}?x=1. Should be {path}")
    assert ask("GET", f"{path}/", settings=settings).status_code == 404


@pytest.mark.parametrize(("method", "path", "record"), [
    ("POST", "/v1/models/m:predict", ("m", "predict", "REST", "OK", 123)),
    ("POST", "/v1/models/foo:predict", ("foo", "predict", "REST", "NOT_FOUND", None)),
    ("POST", "/v1/models/m:classify", ("m", "classify", "REST", "INVALID_ARGUMENT", None)),
    ("GET", "/v1/models/m", ("m", "status", "REST", "OK", None)), ("GET", "/v1/models/m/metadata", ("m", "metadata", "REST", "OK", 123)),
    ("GET", "/v1/nothing", ("", "", "REST", "INVALID_ARGUMENT", None)),
])  # fmt: skip
def test_every_call_is_counted_errors_too(ask: Any, fake: _Fake, method: str, path: str, record: tuple[Any, ...]) -> None:
    ask(method, path, content='{"instances": [1]}')
    assert fake.records == [record]


def test_the_access_log_has_one_entry_per_request(ask: Any) -> None:
    entries: list[dict[str, Any]] = []
    settings = RestSettings(access_log=entries.append)
    answer = ask("POST", "/v1/models/m/versions/123:predict", content='{"instances": [1]}', settings=settings)
    ask("POST", "/v1/models/foo:classify", content='{"examples": [{}]}', settings=settings)
    ask("GET", "/elsewhere?x=1", settings=settings)
    first, second, third = entries
    assert first.pop("ms") >= 0
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "entrypoint": "REST", "method": "Predict", "path": "/v1/models/m/versions/123:predict", "model": "m", "version": 123, "code": "OK",
        "http": 200, "bytes_in": 18, "bytes_out": len(answer.content), "peer": "127.0.0.1:123",
    }  # fmt: skip
    assert [second[key] for key in ("method", "model", "version", "code", "http")] == ["Classify", "foo", None, "NOT_FOUND", 404]
    assert [third[key] for key in ("method", "path", "http")] == ["", "/elsewhere?x=1", 404]
    json.dumps(entries)


def test_further_routes_are_exact_and_outside_v1(ask: Any) -> None:
    async def route(request: Request) -> Answer:
        return Answer(201, f"{request.method} {request.path} {request.query} {request.headers['x']} ".encode() + request.body, "text/plain")

    async def refusing(request: Request) -> Answer:
        raise Status("PERMISSION_DENIED", "no")

    routes = {("POST", "/ours"): route, ("POST", "/no"): refusing, ("POST", "/v1/models/m:predict"): route}
    response = ask("POST", "/ours?q=1", content=b"body", headers={"X": "y"}, routes=routes)
    assert (response.status_code, response.text, response.headers["content-type"]) == (201, "POST /ours q=1 y body", "text/plain")
    _error(ask("POST", "/no", routes=routes), 403, "no")
    assert ask("GET", "/ours", routes=routes).status_code == 404
    assert ask("POST", "/ours/", routes=routes).status_code == 404
    assert ask("POST", "/v1/models/m:predict", content='{"instances": [1]}', routes=routes).status_code == 200


# ---- a real server


def test_a_real_server_answers_and_survives_clients_that_leave(fake: _Fake, pool: ThreadPoolExecutor) -> None:
    entered = threading.Event()
    fake.on_run = entered.set
    config = uvicorn.Config(rest.application(fake, RestSettings(), pool), port=0, log_config=None, access_log=False, lifespan="on")
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        address = listener.getsockname()
        request = b'POST /v1/models/m:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 18\r\n\r\n{"instances": [1]}'
        for cut in (30, len(request) - 5, len(request)):
            with socket.create_connection(address, timeout=30) as connection:
                connection.sendall(request[:cut])
        assert entered.wait(30)
        with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}", timeout=30, trust_env=False) as client:
            answer = client.post("/v1/models/%6d:predict", content='{"instances": [1]}')
            assert answer.json() == {"predictions": [2.5]}
            assert int(answer.headers["content-length"]) == len(answer.content)
            _error(client.get("/v1/models/m?x=1"), 404, "Could not find any versions of model m?x=1")
            head = client.head("/v1/models/m")
            assert (head.status_code, head.content) == (400, b"")
            assert client.get("/readyz").status_code == 200
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
    assert not thread.is_alive()
