"""What makes two texts the same, how sure an answer was, and how a table becomes a file. No journals here."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from serving.errors import ConfigError
from serving.journal import normalised
from serving.registry import sync_folder

SURROGATE = re.compile("[\ud800-\udfff]")
_KINDS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl"}


def text_digest(text: str, text_pair: str | None = None) -> bytes:
    """16 bytes that equal texts share; the hash by which `tfpipeline.data` finds duplicates and splits."""
    parts = [normalised(text)] + ([normalised(text_pair)] if text_pair is not None else [])
    return hashlib.blake2b("\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def near_digest(text: str, text_pair: str | None = None) -> bytes:
    """8 bytes that texts share which differ in case, punctuation, digits, spaces or emoji only; a text without letters stands for itself."""
    both = f"{text}\x1f{text_pair or ''}".casefold()
    letters = "".join(character for character in both if character.isalpha())
    return hashlib.blake2b((letters or both).encode("utf-8", "surrogatepass"), digest_size=8).digest()


def uncertainty(probabilities: Sequence[float], by: str = "margin", *, multi: bool = False) -> float:
    """0: sure; 1: cannot tell.

    Args:
        probabilities: of one row.
        by: `margin`: 1 - (highest - second); `entropy`: over that of equal probabilities.
        multi: each label is a question of its own; the least certain one counts.
    """
    if multi:
        return max((uncertainty((value, 1 - value), by) for value in probabilities), default=0.0)
    if len(probabilities) < 2:
        return 0.0
    if by == "margin":
        second, first = sorted(probabilities)[-2:]
        return 1 - (first - second)
    return -sum(value * math.log(value) for value in probabilities if value > 0) / math.log(len(probabilities))


def kind_of(path: Path) -> str:
    """csv, tsv or jsonl, by the name's ending."""
    if path.suffix.lower() not in _KINDS:
        raise ConfigError(f"{path}: expected a name that ends in {', '.join(_KINDS)}. Name it so.")
    return _KINDS[path.suffix.lower()]


def table(kind: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, header: bool = True) -> bytes:
    """The rows as a file; NULs are left out, because a file with them counts as binary."""
    stream = io.StringIO(newline="")
    if kind == "jsonl":
        for row in rows:
            stream.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False).replace("\\u0000", "") + "\n")
    elif kind == "csv":
        csv.writer(stream, lineterminator="\n").writerows([columns, *rows] if header else rows)
    else:  # TSV as in the public corpora: no quoting, so neither a tab nor a line break can stand in a cell
        for row in [columns, *rows] if header else rows:
            stream.write("\t".join(" ".join(re.split(r"[\t\r\n]+", str(cell))) for cell in row) + "\n")
    return stream.getvalue().replace("\x00", "").encode()


def write_whole(path: Path, data: bytes) -> None:
    """Whole or not at all, readable by its owner alone.

    Raises:
        ConfigError: it cannot be written; a file of that name is as it was.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}. Free space, or name another file.") from error
    finally:
        temporary.unlink(missing_ok=True)
