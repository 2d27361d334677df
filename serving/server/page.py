"""A page to try the models on, and the way back for corrections. Frees people from curl, and the models from texts nobody ever judged.

    GET  /               the page: one file, everything inside
    GET  /page/state     what it shows live, as JSON: models, versions, rates, journal, drift
    POST /page/explain   which words mattered: {"model", "version", "inputs": {"text": ...}}
    POST /feedback       {"id", "label", "comment"}: a human's word on an answer, by the answer's `X-Request-Id` and row: `<id>:0`

In: the server's handlers, and small functions for what other rooms know (journal, drift). Out: routes for `serving.server.rest.application`. The page
predicts through TensorFlow Serving's own `/v1/` paths, like any client.

The page and /feedback can be reached by every browser that reaches the port, so they refuse what another site makes a browser send: a POST that is
not `application/json` (415), or comes from another origin (403); and any request whose Host header names somebody else while the server listens on
loopback (403), because a name of the attacker's can be made to point here. They know no user: who may reach the port may read and correct.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import ipaddress
import json
import logging
import os
import re
import time
import urllib.parse
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from serving.errors import RequestError, ServingError
from serving.feedback import attach
from serving.journal import Journal
from serving.server.live import Handlers, Live, describe
from serving.server.rest import Answer, AsyncHandler, Request
from serving.server.rest_json import error_json, parse_object
from serving.server.status import HTTP_CODES, Status, invalid
from serving.server.words import explained

logger = logging.getLogger(__name__)

FILE = Path(__file__).with_name("page.html")
RECORD_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}:\d{1,6}", re.ASCII)
MAX_FEEDBACK_BYTES = 16 << 10
MAX_EXPLAIN_BYTES = 64 << 10  # a text is asked up to 100 times
MAX_EXPLAINING = 2  # at once: each costs as much as many predictions
MAX_CORRECTING = 4  # at once: an id that is not there costs reading the whole journal
MAX_REASONS = 10
MAX_REPORT_BYTES = 8 << 20
FLUSH_S = 2.0  # longer than the journal takes to bring a record to the disk
MAX_LABEL, MAX_COMMENT = 200, 2000  # characters
MAX_VERSION_DIGITS = 19
_INSIDE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)

Feedback = Callable[[str, str, str, str], object]


@dataclass(frozen=True)
class PageSettings:
    """What the page has to know of other rooms.

    Attributes:
        page: whether there is one; /feedback does not depend on it.
        host: address the server listens on; on loopback the Host header is checked.
        hosts: further names under which the server may be reached on loopback, such as that of a proxy which passes it on.
        feedback: stores (record id, label, comment, by); raises `ServingError` with the words for the user. None: corrections are not kept.
        journal: what the journal says of itself, JSON-ready and without paths; None: there is none.
        drift: the newest verdict of the monitor, as `drift_from` gives it; None from it: not known.
        timeout_s: longest time for an explanation.
    """

    page: bool = True
    host: str = "127.0.0.1"
    hosts: tuple[str, ...] = ()
    feedback: Feedback | None = None
    journal: Callable[[], Mapping[str, Any]] | None = None
    drift: Callable[[], Mapping[str, Any] | None] | None = None
    timeout_s: float = 30.0


def is_on(flag: str, *, client_certificates: bool) -> bool:
    """Whether there is a page: `--page=auto|on|off`. Who asks gRPC clients for certificates does not expect an open page beside it."""
    return flag == "on" or (flag == "auto" and not client_certificates)


def feedback_into(journal: Journal) -> Feedback:
    """Stores corrections in the folder of the server's own journal; the words of its refusals are without the folder's path."""

    def store(record_id: str, label: str, comment: str, by: str) -> None:
        try:
            try:
                attach(journal.folder, record_id, label, comment, by)
            except RequestError:
                # A person can be faster than the journal's next flush.
                if not _flushed(journal):
                    raise
                attach(journal.folder, record_id, label, comment, by)
        except ServingError as error:
            folder = str(journal.folder)
            raise type(error)(str(error).replace(f"journal {folder}", "the journal").replace(folder, "the journal")) from error

    return store


def _flushed(journal: Journal) -> bool:
    """Waits until nothing is queued, but not for ever; False when nothing was."""
    if not journal.counts.queued:
        return False
    deadline = time.monotonic() + FLUSH_S
    while journal.counts.queued and time.monotonic() < deadline:
        time.sleep(0.02)
    return True


def drift_from(report: Path) -> Callable[[], Mapping[str, Any] | None]:
    """Reads the verdict from the JSON file that the monitor leaves; None while there is no file.

    Returns:
        A function whose answer has `verdict` (ok, warn, alarm or too_few), `reasons`, `model`, `version`, and `time`: when the file was written.
    """

    def read() -> Mapping[str, Any] | None:
        try:
            with report.open("rb") as stream:
                written = os.fstat(stream.fileno()).st_mtime
                document = json.loads(stream.read(MAX_REPORT_BYTES))
        except FileNotFoundError:
            return None
        reasons = [str(reason) for reason in document["reasons"]][:MAX_REASONS]
        time_ = datetime.fromtimestamp(written, timezone.utc).isoformat(timespec="seconds")
        about = {name: str(document.get(name, "")) for name in ("model", "version")}
        return {"verdict": str(document["level"]), "reasons": reasons, "time": time_, **about}

    return read


def routes(handlers: Handlers, settings: PageSettings, executor: Executor) -> dict[tuple[str, str], AsyncHandler]:
    """Routes for `serving.server.rest.application`; none when there is neither a page nor a journal to correct.

    Args:
        handlers: the models.
        settings: what is switched on.
        executor: where models run and files are written.
    """
    made = _Page(handlers, settings, executor)
    found: dict[tuple[str, str], AsyncHandler] = {}
    if settings.page:
        found |= {("GET", "/"): made.page, ("HEAD", "/"): made.page}
        found |= {("GET", "/page/state"): made.state, ("POST", "/page/explain"): made.explain}
    if settings.page or settings.feedback:
        found["POST", "/feedback"] = made.feedback
    return found


class _Page:
    def __init__(self, handlers: Handlers, settings: PageSettings, executor: Executor) -> None:
        self._handlers, self._settings, self._executor = handlers, settings, executor
        self._live = Live(handlers)
        self._at_work = {"explanations": 0, "corrections": 0}
        body = FILE.read_bytes()
        headers = (*_COMMON, ("Content-Security-Policy", content_security_policy(body.decode("utf-8"))), ("X-Frame-Options", "DENY"))
        self._document = Answer(200, body, "text/html; charset=utf-8", headers=headers)

    async def page(self, request: Request) -> Answer:
        if refused := self._refusal(request):
            return refused
        return dataclasses.replace(self._document, body=b"") if request.method == "HEAD" else self._document

    async def state(self, request: Request) -> Answer:
        if refused := self._refusal(request):
            return refused
        return await self._in_executor(self._state)

    async def explain(self, request: Request) -> Answer:
        if refused := self._refusal(request, MAX_EXPLAIN_BYTES):
            return refused
        return await self._few("explanations", MAX_EXPLAINING, self._explain, request.body)

    async def feedback(self, request: Request) -> Answer:
        if refused := self._refusal(request, MAX_FEEDBACK_BYTES):
            return refused
        # A browser always names the origin of a POST; programs have none.
        by = "page" if "origin" in request.headers else "http"
        return await self._few("corrections", MAX_CORRECTING, self._feedback, request.body, by)

    async def _few(self, what: str, most: int, work: Callable[..., dict[str, Any]], *arguments: Any) -> Answer:
        """Not more than `most` at once: the threads are for predictions."""
        if self._at_work[what] >= most:
            return _failure(Status("RESOURCE_EXHAUSTED", f"{most} {what} are being worked on. Try again in a moment."))
        self._at_work[what] += 1
        try:
            return await self._in_executor(work, *arguments)
        finally:
            self._at_work[what] -= 1

    def _refusal(self, request: Request, max_bytes: int = 0) -> Answer | None:
        words = refusal(request, self._settings.host, self._settings.hosts)
        if words:
            return _failure(Status("PERMISSION_DENIED", words))
        if request.method != "POST":
            return None
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            words = f"Content-Type {kind[:100]!r}: expected application/json. Send the header Content-Type: application/json."
            return _failure(invalid(words), http=415)
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            return _failure(invalid("The body is compressed: expected plain JSON. Leave out the header Content-Encoding."), http=415)
        if len(request.body) > max_bytes:
            return _failure(
                invalid(f"Body of {len(request.body)} bytes: at most {max_bytes} are taken here. Send a shorter text."), http=413
            )
        return None

    async def _in_executor(self, work: Callable[..., dict[str, Any]], *arguments: Any) -> Answer:
        try:
            future = asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)
        except RuntimeError:
            # The only reason an executor has not to take work.
            return _failure(Status("UNAVAILABLE", "Server is shutting down. Try again later."))
        try:
            answer = await future
        except Status as error:
            return _failure(error)
        except ServingError as error:
            return _failure(Status("INVALID_ARGUMENT" if isinstance(error, RequestError) else "UNAVAILABLE", str(error)))
        body = json.dumps(answer, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        return Answer(200, body, headers=_COMMON)

    def _state(self) -> dict[str, Any]:
        settings = self._settings
        return {
            **self._live.state(),
            "feedback": settings.feedback is not None,
            "journal": _asked(settings.journal),
            "drift": _asked(settings.drift),
        }

    def _explain(self, body: bytes) -> dict[str, Any]:
        document = parse_object(body)
        name, version, inputs = _explain_fields(document)
        started = time.monotonic()
        code = "OK"
        try:
            with self._handlers.acquire(name, version, "") as loaded:
                way = describe(loaded.signatures)
                if sorted(inputs) != sorted(way["inputs"]):
                    raise invalid(f"inputs {sorted(inputs)}: this model takes {sorted(way['inputs'])}. Name each once.")
                deadline = started + self._settings.timeout_s if self._settings.timeout_s > 0 else None
                return {"version": str(loaded.version), **explained(loaded, inputs, way["explain"], deadline)}
        except Status as error:
            code = error.code
            raise
        finally:
            # Without the version: its latencies are those of predictions.
            self._handlers.metrics.record(name, "explain", "REST", code, time.monotonic() - started, None)

    def _feedback(self, body: bytes, by: str) -> dict[str, Any]:
        record_id, label, comment = feedback_fields(parse_object(body))
        if self._settings.feedback is None:
            raise Status("FAILED_PRECONDITION", "This server keeps no journal, so there is nothing to correct. Start it with --journal.")
        self._settings.feedback(record_id, label, comment, by)
        return {"recorded": {"id": record_id, "label": label}}


_COMMON = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)


def content_security_policy(document: str) -> str:
    """Allows the document's own script and style by their hashes, requests to its own server, and nothing else.

    `require-trusted-types-for` also turns every way of making markup out of text into an error, where the browser knows it.
    """
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, content in _INSIDE.findall(document):
        digest = base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")
        hashes[kind].append(f"'sha256-{digest}'")
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(hashes['script'])}",
            f"style-src {' '.join(hashes['style'])}",
            "connect-src 'self'",
            "img-src data:",  # the icon
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def refusal(request: Request, host: str, hosts: tuple[str, ...] = ()) -> str:
    """Why a request may be another site's doing, in words; empty when it is not.

    | request | on loopback | elsewhere |
    |---|---|---|
    | Host: 127.0.0.1, localhost, one of `hosts`; any port (tunnels change it) | fine | fine |
    | Host: any other name | refused | fine: which names are ours is not known |
    | POST, Sec-Fetch-Site: same-origin | fine | fine |
    | POST, Sec-Fetch-Site: anything else | refused | refused |
    | POST, no Sec-Fetch-Site, Origin of the same host and port | fine | fine |
    | POST, no Sec-Fetch-Site, any other Origin, `null` too | refused | refused |
    | POST, neither header: a program, not a browser | fine | fine |
    """
    given = request.headers.get("host", "")
    name = _host_name(given)
    if _is_loopback(host) and not (_is_loopback(name) or name in {one.lower() for one in hosts}):
        return (
            f"Host {given[:100]!r} is not this server, which listens on {host} for this machine alone. "
            f"Open it as http://{'[::1]' if ':' in host else '127.0.0.1'}, or start the server with this name among its own."
        )
    if request.method != "POST":
        return ""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    crossed = site != "same-origin" if site is not None else origin is not None and not _same(origin, given)
    return "This request comes from another site. Use the page of this server itself." if crossed else ""


def _host_name(netloc: str) -> str:
    """Without the port and the brackets, in lower case."""
    try:
        return (urllib.parse.urlsplit(f"//{netloc}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _same(origin: str, host: str) -> bool:
    scheme, _, rest = origin.partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme, "")
    return bool(default) and rest.lower().removesuffix(default) == host.lower().removesuffix(default)


def feedback_fields(document: Mapping[str, Any]) -> tuple[str, str, str]:
    """Record id, label and comment of a correction.

    Raises:
        Status: INVALID_ARGUMENT, naming the field.
    """
    _only(document, ("id", "label", "comment"))
    record_id, label, comment = document.get("id"), document.get("label"), document.get("comment", "")
    if not isinstance(record_id, str) or not RECORD_ID.fullmatch(record_id):
        raise invalid(
            f"id: expected an answer's X-Request-Id with its row, such as '3f2a:0'; received {_shown(record_id)}. Send the id of an answer."
        )
    for name, value, least, most in (("label", label, 1, MAX_LABEL), ("comment", comment, 0, MAX_COMMENT)):
        if not isinstance(value, str) or not least <= len(value.strip()) or len(value) > most:
            size = f", {len(value)} characters" if isinstance(value, str) else ""
            raise invalid(f"{name}: expected a text of {least} to {most} characters; received {_shown(value)}{size}.")
    assert isinstance(label, str)
    assert isinstance(comment, str)
    return record_id, label, comment.strip()


def _explain_fields(document: Mapping[str, Any]) -> tuple[str, int | None, dict[str, str]]:
    _only(document, ("model", "version", "inputs"))
    name, version, inputs = document.get("model"), document.get("version"), document.get("inputs")
    if not isinstance(name, str) or not name:
        raise invalid(f"model: expected a model's name; received {_shown(name)}.")
    if version is not None and not (
        isinstance(version, str) and version.isascii() and version.isdecimal() and len(version) <= MAX_VERSION_DIGITS
    ):
        raise invalid(f"version: expected digits in a text; received {_shown(version)}. Leave it out for the newest.")
    if not isinstance(inputs, dict) or not all(isinstance(value, str) for value in inputs.values()):
        raise invalid(f'inputs: expected one text per input, such as {{"text": "..."}}; received {_shown(inputs)}.')
    return name, None if version is None else int(version), inputs


def _only(document: Mapping[str, Any], known: tuple[str, ...]) -> None:
    if unknown := sorted(set(document) - set(known)):
        raise invalid(f"unknown field {_shown(unknown[0])}: expected {', '.join(known)}.")


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:60]


def _asked(about: Callable[[], Mapping[str, Any] | None] | None) -> dict[str, Any] | None:
    """What another room says; its failure is not the page's."""
    if about is None:
        return None
    try:
        said = about()
    except Exception:
        logger.exception("the page could not ask %r", about)
        return {"failed": True}
    return None if said is None else dict(said)


def _failure(error: Status, http: int = 0) -> Answer:
    return Answer(http or HTTP_CODES.get(error.code, 500), error_json(error.message), code=error.code, headers=_COMMON)
