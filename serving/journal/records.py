"""What a record of a request is made of: ids, times, keys, and the columns of an answer. Frees the writing thread from messages and arrays.

In: an `Exchange`: a request message with its answer, or arrays by name. Out: one dict a row. Refuses nothing: what cannot be read is null.
Does no I/O, but for the file of the key.
"""

from __future__ import annotations

import contextlib
import hmac
import math
import os
import re
import secrets
import unicodedata
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from serving import wire
from serving.errors import ConfigError

Record = dict[str, Any]

REQUEST_ID = "x-request-id"  # the gRPC metadata and, in lower case, the HTTP header
MOST_ROWS = 1 << 16  # of one request
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd\u200b-\u200f\u2060\ufeff]")


def new_request_id() -> str:
    """For a request that came without one."""
    return uuid.uuid4().hex


def is_request_id(text: str) -> bool:
    """1 to 64 letters, digits, `_`, `.` and `-`: nothing that could end a header or a line."""
    return _ID.fullmatch(text) is not None


class Answered(Protocol):
    """What a client's `on_response` gets; `serving.answers.Response` is one."""

    @property
    def model(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def version_label(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def rows(self) -> int: ...
    @property
    def request(self) -> Any: ...
    @property
    def response(self) -> Any: ...
    @property
    def request_id(self) -> str: ...
    @property
    def code(self) -> str: ...


class Exchange(NamedTuple):
    """A request that is over, as it is queued.

    Attributes:
        version: 0 when none answered.
        version_label: that the request asked for, or "".
        code: name of the gRPC status.
        rows: of the request; 0 when it has none or they are not known.
        inputs: the request message, or arrays by name; None when it could not be read.
        outputs: the response message, or arrays by name; None for a request that failed.
        time: when it was over, as `time.time()`.
    """

    request_id: str
    model: str
    version: int
    version_label: str
    code: str
    seconds: float
    rows: int
    inputs: Any
    outputs: Any
    time: float


def to_time(seconds: float) -> str:
    """As times stand in records: UTC, milliseconds; they sort as text."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


def records_of(exchange: Exchange, source: str, key: bytes, cleaned: Callable[[str], str] | None = None) -> Iterator[Record]:
    """One record for each row.

    Args:
        exchange: the request. Of one that failed, label, score and probabilities are null; one that could not be read counts as one row.
        source: `client` or `server`.
        key: for `text_key`.
        cleaned: makes a text one that may be kept; None keeps none.
    """
    texts, pairs, rows = _texts_of(exchange.inputs)
    rows = len(texts) or rows or exchange.rows or (0 if exchange.code == "OK" else 1)
    answers = _answers_of(exchange.outputs) if exchange.outputs is not None else {}
    common = {
        "kind": "request", "time": to_time(exchange.time), "id": "", "model": exchange.model[:100], "version": exchange.version or None,
        "version_label": exchange.version_label[:100] or None, "source": source, "code": exchange.code, "ms": round(exchange.seconds * 1000, 3),
    }  # fmt: skip
    for row in range(min(rows, MOST_ROWS)):
        record = common | {"id": f"{exchange.request_id}:{row}"}
        for name in ("label", "score", "probabilities", "tokens", "unknown"):
            column = answers.get(name, ())
            record[name] = column[row] if row < len(column) else None
        text, pair = (column[row] if row < len(column) else None for column in (texts, pairs))
        record["length"] = None if text is None else len(text)
        record["text_key"] = None if text is None else text_key(key, text, pair or "")
        if cleaned is not None and text is not None:
            record["text"] = cleaned(text)
            if pair is not None:
                record["text_pair"] = cleaned(pair)
        yield record


def _texts_of(inputs: Any) -> tuple[list[str], list[str], int]:
    """Texts, their pairs, and the rows where there are no texts. The text is the input `text`, or the only one that is text."""
    if inputs is None:
        return [], [], 0
    if hasattr(inputs, "input"):  # Classify, Regress
        kind = inputs.input.WhichOneof("kind")
        examples = getattr(inputs.input, kind).examples if kind else []
        texts, pairs = ([_feature(one, name) for one in examples] for name in ("text", "text_pair"))
        is_text = any(text is not None for text in texts)
        return ([text or "" for text in texts] if is_text else []), [pair for pair in pairs if pair is not None], len(examples)
    named = inputs if isinstance(inputs, Mapping) else inputs.inputs
    columns = {name: _column(value) for name, value in named.items()}
    strings = {name: column for name, column in columns.items() if column and isinstance(column[0], bytes)}
    text = strings.get("text") or (next(iter(strings.values())) if len(strings) == 1 else [])
    rows = max((len(column) for column in columns.values()), default=0)
    return _decoded(text), _decoded(strings.get("text_pair", [])), rows


def _feature(example: Any, name: str) -> str | None:
    values = example.features.feature[name].bytes_list.value if name in example.features.feature else ()
    return values[0].decode("utf-8", "replace") if values else None


def _answers_of(outputs: Any) -> dict[str, Sequence[Any]]:
    """Columns of a record, by name."""
    if hasattr(outputs, "result"):
        kind = outputs.result.DESCRIPTOR.name
        if kind == "RegressionResult":
            return {"score": [_rounded(one.value) for one in outputs.result.regressions]}
        rows = [[(one.label, _rounded(one.score)) for one in row.classes] for row in outputs.result.classifications]
        best = [max(row, key=lambda one: -1.0 if one[1] is None else one[1], default=(None, None)) for row in rows]
        return {"label": [label for label, _ in best], "score": [score for _, score in best], "probabilities": [dict(row) for row in rows]}
    named = outputs if isinstance(outputs, Mapping) else outputs.outputs
    found = {name: _column(named[name]) for name in ("label", "score", "probabilities", "classes", "tokens", "unknown") if name in named}
    answers: dict[str, Sequence[Any]] = {"label": _decoded(found.get("label", []))}
    for name in ("score", "unknown"):
        answers[name] = [_rounded(value) for value in found.get(name, [])]
    answers["tokens"] = [int(value) for value in found.get("tokens", [])]
    answers["probabilities"] = [
        {name: _rounded(value) for name, value in zip(_decoded(classes), values, strict=False)}
        for classes, values in zip(found.get("classes", []), found.get("probabilities", []), strict=False)
    ]
    return answers


def _column(value: Any) -> list[Any]:
    """The rows of a tensor or an array as Python's own values; none if it cannot be read or has none."""
    if not isinstance(value, np.ndarray):
        try:
            value = wire.to_array(value, max_elements=1 << 22)
        except ValueError:
            return []
    return value.tolist() if value.ndim else []


def _decoded(values: Iterable[Any]) -> list[str]:
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values]


def _rounded(value: Any) -> float | None:
    """Six digits, as the models' own precision; what JSON cannot say is null."""
    return round(value, 6) if isinstance(value, int | float) and math.isfinite(value) else None


def normalised(text: str) -> str:
    """The form in which two texts are the same, as when training data are deduplicated: NFC, no control characters, white space squeezed."""
    if not text.isascii():
        text = _CONTROL.sub("", unicodedata.normalize("NFC", text))
    elif not text.isprintable():
        text = _CONTROL.sub("", text)
    return " ".join(text.split())


def text_key(key: bytes, text: str, text_pair: str = "") -> str:
    """HMAC-SHA256 of the normalised text (and its pair), hex: equal texts have equal keys, and without `key` nobody can try texts out."""
    whole = normalised(text) + (f"\x1e{normalised(text_pair)}" if text_pair else "")
    return hmac.digest(key, whole.encode("utf-8", "surrogatepass"), "sha256").hex()


def read_key(path: Path) -> bytes:
    """The key in a file; a new one (0600) if there is no file.

    Raises:
        ConfigError: the file cannot be read or made, or holds no key.
    """
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(secrets.token_hex(32).encode() + b"\n")
            with contextlib.suppress(FileExistsError):  # another process was first: its key it is
                os.link(temporary, path)
            temporary.unlink()
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (ValueError, OSError) as error:
        raise ConfigError(f"journal key {path}: {error}. Name a file of 64 hexadecimal digits, or one that can be made.") from error
    if len(key) < 16:
        raise ConfigError(f"journal key {path}: {len(key)} bytes, expected 16 or more. Delete it, and a new one is made.")
    return key
