"""Reads flatbuffers by field number: enough of the format to look into a `.tflite` without its generated classes, which take a quarter of a second to
import. Standard library only. Does not verify: a file is hashed before it is read here.
"""

from __future__ import annotations

import struct
from typing import NamedTuple


class Table(NamedTuple):
    """One table; `position` is where it starts in `data`."""

    data: bytes
    position: int

    def place(self, number: int) -> int | None:
        """Where field `number` lies; None when it is not set."""
        vtable = self.position - int(struct.unpack_from("<i", self.data, self.position)[0])
        if 4 + 2 * number >= struct.unpack_from("<H", self.data, vtable)[0]:
            return None
        offset = int(struct.unpack_from("<H", self.data, vtable + 4 + 2 * number)[0])
        return self.position + offset if offset else None

    def target(self, number: int) -> int:
        """What the reference in field `number` points to; the field must be set."""
        place = self.place(number)
        if place is None:
            raise ValueError(f"field {number} is not set")
        return _follow(self.data, place)

    def number(self, number: int, kind: str = "I", default: int = 0) -> int:
        """A scalar; `kind` as in `struct`."""
        place = self.place(number)
        return default if place is None else int(struct.unpack_from(f"<{kind}", self.data, place)[0])

    def text(self, number: int) -> str:
        """A string; empty when not set."""
        if self.place(number) is None:
            return ""
        start = self.target(number)
        length = _u32(self.data, start)
        return bytes(self.data[start + 4 : start + 4 + length]).decode("utf-8")

    def numbers(self, number: int) -> list[int]:
        """A vector of int32; empty when not set."""
        if self.place(number) is None:
            return []
        start = self.target(number)
        return list(struct.unpack_from(f"<{_u32(self.data, start)}i", self.data, start + 4))

    def tables(self, number: int) -> list[Table]:
        """A vector of tables; empty when not set."""
        if self.place(number) is None:
            return []
        start = self.target(number)
        return [Table(self.data, _follow(self.data, start + 4 + 4 * item)) for item in range(_u32(self.data, start))]


def root(data: bytes) -> Table:
    """The root table of a buffer."""
    return Table(data, _follow(data, 0))


def _u32(data: bytes, place: int) -> int:
    return int(struct.unpack_from("<I", data, place)[0])


def _follow(data: bytes, place: int) -> int:
    return place + _u32(data, place)
