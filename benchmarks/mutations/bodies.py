"""Bad REST requests: a valid one with something done to its JSON, its path, its compression, its framing or its headers."""

from __future__ import annotations

import functools
import gzip
import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

from serving import wire

from .values import FLOATS, INTEGERS, MOST_BYTES, MOST_ROWS, Request, Target, bad_name, bad_text, mutated_bytes, text


def _http(
    verb: bytes, path: bytes, body: bytes = b"", headers: Sequence[bytes] = (), *, version: bytes = b"HTTP/1.1", sized: bool = True
) -> bytes:
    lines = [b" ".join((verb, path, version)), b"Host: localhost", b"Connection: close", *headers]
    if sized and (body or verb == b"POST"):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body])


def rest_request(target: Target, rng: random.Random, number: int) -> Request:
    api = rng.choices(("predict", "classify", "regress"), (6, 2, 1))[0]
    path = f"/v1/models/{target.model}{rng.choice(('', '', f'/versions/{target.version}'))}:{api}".encode()
    document = _document(target, rng, api)
    body = json.dumps(document).encode()
    kind = rng.choices(
        ("json", "json bytes", "raw json", "path", "gzip", "framing", "http bytes", "headers", "huge", "stalled"),
        (36, 14, 20, 10, 6, 7, 4, 3, 0.3, 0.1),
    )[0]
    cut = False
    if kind == "json":
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            before = json.dumps(document)
            if len(before) < MOST_BYTES:
                _mutate_document(rng, target, document)
            if _is_load(document):
                document = json.loads(before)
        data = _http(b"POST", path, json.dumps(document, ensure_ascii=rng.random() < 0.7).encode("utf-8", "surrogatepass"))
    elif kind == "json bytes":
        data = _http(b"POST", path, mutated_bytes(rng, body))
    elif kind == "raw json":
        data = _http(b"POST", path, _raw_body(rng))
    elif kind == "path":
        data, cut = _odd_path(target, rng, body), True
    elif kind == "gzip":
        data = _http(b"POST", path, _gzipped(rng, body), [b"Content-Encoding: " + rng.choice((b"gzip", b"GZIP", b"x-gzip, gzip", b"br"))])
    elif kind == "framing":
        data, cut = _framing(rng, path, body), True
    elif kind == "http bytes":
        data, cut = mutated_bytes(rng, _http(b"POST", path, body)), True
    elif kind == "headers":
        data, cut = _odd_headers(rng, path, body), True
    elif kind == "huge":
        data = _http(b"POST", path, b'{"instances": ["' + b"x" * rng.choice((30 << 20, 65 << 20)) + b'"]}')
        cut = True  # refused before it is all there
    else:
        # The only one that is waited for: the server has to end it by itself.
        data = _http(b"POST", path, body[:-1], [b"Content-Length: %d" % len(body)], sized=False)
    verb = data[:12].split(b" ")[0].decode("ascii", "replace")
    return Request(number, "rest", f"REST/{kind}", verb, data, may_time_out=kind == "stalled", may_be_cut=cut, half_close=cut)


def _odd_path(target: Target, rng: random.Random, body: bytes) -> bytes:
    model = target.model.encode()
    verb = rng.choice(
        (b"POST", b"POST", b"GET", b"GET", b"PUT", b"DELETE", b"PATCH", b"HEAD", b"OPTIONS", b"TRACE", b"get", b"FOO", b"CONNECT")
    )
    base = b"/v1/models/" + model
    path = rng.choice(
        (
            base, base + b"/", base + b"/metadata", base + b"/versions/0", base + b"/versions/" + b"9" * rng.choice((19, 20, 30, 5000)), base + b"/versions/-1",
            base + b"/labels/%ff", base + b"/labels/stable/metadata", base + b":predict?x=1", base + b":PREDICT", base + b":explode", base + b":", base + b"%00:predict",
            b"/v1/models", b"/v1/models/", b"/v1/models//:predict", b"/v1/models/..%2f..%2fetc%2fpasswd:predict", b"/v1/models/../../../etc/passwd",
            b"/v1/models/%ed%a0%80:predict", b"/v1/models/\xff\xfe:predict", b"/v1/models/" + b"n" * rng.choice((1000, 60_000, 200_000)) + b":predict",
            b"/v1/models/n%d:predict" % rng.randrange(10**9), b"/v1/", b"/V1/MODELS/" + model, b"/", b"*", b"//", b"/readyz", b"/healthz?x", b"/metrics", b"/favicon.ico",
            b"/monitoring/prometheus/metrics", b"http://localhost" + base, b"/v1/models/" + b"%25" * 2000, b"/v1/models/a b:predict", b"/v1/models/%zz%:predict",
            b"/v1/models/\xd9\xa3:predict", base + b"/versions/\xd9\xa3:predict", base + b"#x", base + b";x=1",
        )
    )  # fmt: skip
    return _http(verb, path, body if verb in (b"POST", b"PUT", b"PATCH") else b"")


def _gzipped(rng: random.Random, body: bytes) -> bytes:
    whole = gzip.compress(body, mtime=0)  # the time of day would make every request a new one
    return rng.choice(
        (
            whole, whole[:-4], whole[:12], whole + whole, whole + b"garbage", body, b"", mutated_bytes(rng, whole), whole[:-4] + struct.pack("<I", 5),
            _bomb(b" ", 1 << 20), _bomb(b"[", 8 << 20), _bomb(b"\0", (64 << 20) + 1), _bomb(b"", 0),
        )
    )  # fmt: skip


@functools.cache  # making one takes longer than refusing it
def _bomb(byte: bytes, size: int) -> bytes:
    return gzip.compress(byte * size, 6, mtime=0)


def _framing(rng: random.Random, path: bytes, body: bytes) -> bytes:
    chunked = b"".join(b"%x\r\n%c\r\n" % (1, byte) for byte in body) + b"0\r\n\r\n"
    framing: Callable[[bytes, list[bytes]], bytes] = lambda sent, headers: _http(b"POST", path, sent, headers, sized=False)  # noqa: E731
    return rng.choice(
        (
            framing(body, []),
            framing(body, [b"Content-Length: %d" % (len(body) - 3)]),
            framing(body, [b"Content-Length: %d" % (len(body) + 300)]),
            framing(body, [b"Content-Length: " + rng.choice((b"-5", b"abc", b"", b"1e3", b"0x10", b"9" * 30, b"\xd9\xa3", b"+7"))]),
            framing(body, [b"Content-Length: 5", b"Content-Length: %d" % len(body)]),
            framing(body, [b"Content-Length: %d" % (1 << 40)]),
            framing(chunked, [b"Transfer-Encoding: chunked"]),
            framing(chunked, [b"Transfer-Encoding: chunked", b"Content-Length: 5"]),
            framing(chunked[:-5], [b"Transfer-Encoding: chunked"]),
            framing(b"zz\r\n" + body, [b"Transfer-Encoding: chunked"]),
            framing(b"f" * rng.choice((8, 16, 40)) + b"\r\n" + body, [b"Transfer-Encoding: chunked"]),
            framing(mutated_bytes(rng, chunked), [b"Transfer-Encoding: chunked"]),
            framing(body, [b"Transfer-Encoding: " + rng.choice((b"gzip", b"identity", b"chunked, chunked", b"xchunked"))]),
            framing(body, [b"Expect: 100-continue", b"Content-Length: %d" % len(body)]),
            framing(body, [b"Expect: 999-what", b"Content-Length: %d" % len(body)]),
            _http(b"POST", path, body) * 3,
            _http(b"POST", path, body)[: rng.randrange(1, 60)],
        )
    )


def _odd_headers(rng: random.Random, path: bytes, body: bytes) -> bytes:
    headers = rng.choice(
        (
            [b"X: " + b"a" * rng.choice((1000, 60_000, 1 << 20, 8 << 20))],
            [b"X-%d: y" % number for number in range(rng.choice((100, 5000)))],
            [b"X: \xff\xfe\x80"],
            [b"X: a\0b"],
            [b"no colon here"],
            [b": no name"],
            [b"X : blank before the colon"],
            [b"X: folded", b" line"],
            [b"Content-Type: " + rng.choice((b"text/xml", b"application/json; charset=utf-16", b"\xff", b"a" * 2000))],
            [b"Content-Encoding: " + rng.choice((b"gzip, gzip", b"deflate", b"zstd", b""))],
            [b"Upgrade: websocket", b"Sec-WebSocket-Key: x", b"Sec-WebSocket-Version: 13"],
            [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"],
            [b"Host: another", b"Host: " + b"h" * 300],
            [b"Origin: " + rng.choice((b"http://x", b"null", b"\xff"))],
            [b"Accept-Encoding: gzip;q=nan", b"Range: bytes=0-1"],
        )
    )
    version = rng.choice(
        (b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9.9", b"HTTP/1.1.1", b"", b"ICY")
    )
    return _http(b"POST", path, body, headers, version=version)


# ---- JSON


def _document(target: Target, rng: random.Random, api: str) -> dict[str, Any]:
    """A body that an honest client could send."""
    name = rng.choice(sorted(target.signatures))
    document: dict[str, Any] = {} if name == "serving_default" else {"signature_name": name}
    if api != "predict":
        document["examples"] = [{"text": text(rng).decode(), "x": 1.5, "n": 3}]
        if rng.random() < 0.3:
            document["context"] = {"text": ["a", {"b64": "YQ=="}]}
        return document
    inputs = target.signatures[name].inputs
    rows = rng.choice((1, 1, 2, 3))
    columns = {alias: [_value(rng, info.dtype, len(info.tensor_shape.dim) - 1) for _ in range(rows)] for alias, info in inputs.items()}
    if rng.random() < 0.5:
        document["inputs"] = columns if len(columns) > 1 or rng.random() < 0.5 else next(iter(columns.values()))
    elif len(columns) > 1 or rng.random() < 0.5:
        document["instances"] = [{alias: column[row] for alias, column in columns.items()} for row in range(rows)]
    else:
        document["instances"] = next(iter(columns.values()))
    return document


def _value(rng: random.Random, dtype: int, rank: int) -> Any:
    if rank > 0:
        return [_value(rng, dtype, rank - 1)] * 4
    return text(rng).decode() if dtype == wire.DT_STRING else True if dtype == 10 else rng.choice((1, 1, 2, 0.5)) if dtype in (1, 2) else 1


def _is_load(document: dict[str, Any]) -> bool:
    """Whether a server that obeyed would just be busy."""
    columns = [document.get(key) for key in ("instances", "inputs", "examples")]
    for value in columns[:]:
        columns += value.values() if isinstance(value, dict) else ()
    return any(isinstance(column, list) and MOST_ROWS < len(column) <= 4096 for column in columns)


def _bad_value(rng: random.Random, target: Target) -> Any:
    ragged: list[Any] = [1, [2], [[3]]]
    return rng.choice(
        (
            None, True, {}, [], [[]], [None], "", ragged, {"b64": "!"}, {"b64": 5}, {"b64": "//79"}, {"b64": "YQ==", "x": 1}, {"": ""},
            rng.choice(INTEGERS), rng.choice(FLOATS), 10**400, -(10**25), 1.0, "\ud800", "\udfff\ud800", "\ud83e\udd37", "\0", bad_name(rng, target),
            bad_text(rng).decode("utf-8", "replace"), bad_text(rng).decode("latin-1"), ["x"] * 4097, [0] * 10_000, _nested(rng.choice((3, 33, 65, 300))),
            {str(number): number for number in range(2000)}, {"b64": "QUJD" * 50_000},
        )
    )  # fmt: skip


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _mutate_document(rng: random.Random, target: Target, document: Any) -> None:
    """Does something to one place of a JSON document."""
    places: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        container = waiting.pop()
        for key in list(container) if isinstance(container, dict) else range(min(len(container), 20)):
            places.append((container, key))
            if isinstance(container[key], (dict, list)):
                waiting.append(container[key])
    container, key = rng.choice(places) if places else (document, "instances")
    kind = rng.randrange(6)
    if kind == 0 and places:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[rng.choice((bad_name(rng, target), "instances", "inputs", "examples", "signature_name", "context"))] = _bad_value(
            rng, target
        )
    elif kind == 2 and isinstance(container, list):
        container.insert(key, _bad_value(rng, target))
    elif kind == 3 and places:
        # A large value many times over would fill the memory of whoever makes it.
        container[key] = [container[key]] * min(rng.choice((1, 2, 60, 5000)), 1 + MOST_BYTES * 16 // len(json.dumps(container[key])))
    else:
        container[key] = _bad_value(rng, target)


def _raw_body(rng: random.Random) -> bytes:
    """Bodies that are hard on a parser."""
    many, depth = rng.choice((1000, 100_000)), rng.choice((30, 33, 64, 500, 900, 990, 1000, 5000, 100_000))
    opened, pair = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return rng.choice(
        (
            b"", b" \n\t", b" " * (1 << 20), b"null", b"[]", b"{}", b'""', b"nan", b"{", b"}", b'{"instances"', b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0",
            b'{"instances": ["a"]} trailing \xff', b'{"instances": ["\xff"]}', b'{"instances": [1,]}', b"{'instances': [1]}", b'{"instances": [01]}',
            b'{"instances": [1e999]}', b'{"instances": [-1e-999]}', b'{"instances": [' + b"9" * rng.choice((400, 4300, 4301, 50_000)) + b"]}",
            b'{"instances": [1], "instances": [2], "inputs": [3]}', b'{"instances": ["\\ud800"]}', b'{"instances": ["\\u12"]}', b'{"instances": ["a\x00"]}',
            opened * depth, opened * depth + b"1" + pair * depth, b'{"instances": ' + opened * depth + b"1" + pair * depth + b"}",
            b'{"a": "' + b"x" * many * 10 + b'" 1', b'{"a": "' + b"\\n" * many + b'" 1', b'{"' + b"k" * many * 10 + b'": 1}', b'{"instances": "' + b"x" * many,
            b'{"instances": [' + b"0," * many + b'"x"]}', b'{"instances": [' + b'"a",' * many + b"0]}", b'{"instances": [' + b"[0]," * many + b"[0, 1]]}",
            b'{"inputs": [' + b"0," * many + b"null]}", b'{"instances": [' + b'{"text": 1},' * many + b"{}]}", b'{"instances": [' + b"[]," * many + b"[] []]}",
            b'{"examples": [' + b"{}," * 5000 + b"{}]}", b'{"examples": [{' + b",".join(b'"%d": 1' % number for number in range(5000)) + b"}]}",
            b'{"examples": [{"x": [1, 2.5]}, {"x": "a"}, {"x": [[1]]}, null]}', b'{"instances": [{"b64": "' + b"A" * many + b'"}]}', rng.randbytes(2000),
        )
    )  # fmt: skip
