"""What a bad request is made of: a target, values that nobody expects, and bytes with something done to them.

In: a seeded generator of random numbers. Out: names, texts and bytes; always the same for the same state of the generator.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DEADLINE_S = 60.0
MOST_ROWS = 64  # that a model may really be run on: more are work, not bad input
MOST_BYTES = 1 << 16  # of something that is then repeated
TEXTS = ("the app lost my payment", "a charming and often affecting journey", "quick and kind", "", "x", "não funciona", "应用很好用")
INTEGERS = (
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    4096,
    4097,
    65536,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
)
FLOATS = (0.0, -0.0, 1e-45, 1e38, -1e38, 1.7e308, float("nan"), float("inf"), float("-inf"))
ENUMS = (0, -1, 3, 4, 20, 21, 24, 100, 101, 107, 999, 2**31 - 1)
INVALID_UTF8 = (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"ok\xfe\xff", b"\xf0\x28\x8c\x28", b"\x80" * 50)


@dataclass(frozen=True)
class Target:
    """A served model.

    Attributes:
        model: its name.
        version: a version that is loaded.
        base_path: its folder, as the server sees it.
        signatures: its `SignatureDef`s by name, those without inputs left out.
    """

    model: str
    version: int
    base_path: str
    signatures: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """One request as it goes on the wire.

    Attributes:
        number: which one of its seed.
        edge: `grpc` or `rest`.
        kind: what was done to it, for the report.
        method: name of the gRPC method; for REST the first word of what is sent.
        data: the message; for REST everything from the request line on.
        deadline_s: the client's.
        may_time_out: its deadline is so short, or the server has to wait so long, that DEADLINE_EXCEEDED is the right answer.
        may_be_cut: it is not whole HTTP: the server may close the connection without an answer.
        half_close: the client says that nothing more comes.
    """

    number: int
    edge: str
    kind: str
    method: str
    data: bytes
    deadline_s: float = DEADLINE_S
    may_time_out: bool = False
    may_be_cut: bool = False
    half_close: bool = False


def text(rng: random.Random) -> bytes:
    """Something a model is asked for, in UTF-8."""
    return rng.choice(TEXTS).encode()


def bad_name(rng: random.Random, target: Target) -> str:
    """A name that nothing has, or a strange spelling of one that something has."""
    return rng.choice(
        (
            "", " ", "\0", target.model + "\0", target.model.upper(), "../../etc/passwd", "/", "//", f"{target.model}/{target.version}", "a" * 5000,
            "é" * 3000, "\u202e" + target.model, "%s%n%x", "{0}", "${jndi:ldap://x}", "nan", "\r\n\r\nX: y", "🤷" * 400, "\ufffd\uffff", "\U0010ffff",
            "'; drop table models; --", "<script>", "n" + str(rng.randrange(10**9)), "a" * rng.choice((70_000, 300_000)),
        )
    )  # fmt: skip


def bad_text(rng: random.Random) -> bytes:
    """A string that a tokenizer has reason to fear."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(INVALID_UTF8)
    if kind == 1:
        return rng.randbytes(rng.randrange(1, 400))
    if kind == 2:
        return b"a" * rng.choice((400, 10_000, 1 << 20, (1 << 20) + 1))
    if kind == 3:
        return ("e" + "\u0301" * rng.choice((10, 5000))).encode()
    if kind == 4:
        return "".join(chr(rng.choice((0, 9, 0xAD, 0x200B, 0x202E, 0xFFFD, 0xFFFF, 0x1F937, 0x10FFFF, 0xFB01))) for _ in range(60)).encode()
    if kind == 5:
        return b"\0" * rng.choice((1, 300))
    if kind == 6:
        return b"[CLS] [SEP] [MASK] [UNK] ##ing" * rng.choice((1, 200))
    return text(rng) + rng.choice(INVALID_UTF8) + text(rng)


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """The same bytes with one to four things done to them."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, length = rng.randrange(len(changed) + 1), rng.choice((1, 1, 2, 8, 64))
        kind = rng.randrange(9)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            changed[at:at] = rng.randbytes(length)
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = changed[at : at + length] * rng.choice((1, 2, 100))
        elif kind == 5:
            del changed[at:]
        elif kind == 6:
            changed[at:at] = b"\xff" * 9 + b"\x01"  # the largest varint
        elif kind == 7:
            other = rng.randrange(len(changed) + 1)
            changed[at : at + length] = changed[other : other + length]
        else:
            changed[at : at + length] = rng.choice(INVALID_UTF8)
    return bytes(changed)
