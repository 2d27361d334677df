"""One row at a time: turns what a reader gives into checked values, or sets it aside with the reason.

In: rows of `readers`. Out: tuples that `prepare` deduplicates and splits, in batches that fit Arrow. Refuses what `DataConfig` says cannot be used; the
first such row stops everything, unless `data.on_bad_row` is `quarantine`.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tfpipeline.config import DataConfig
from tfpipeline.data.examples import Examples
from tfpipeline.data.readers import Columns, Problem, read, undecodable
from tfpipeline.errors import DataError

BATCH = 8192
BATCH_CHARACTERS = 1 << 24  # a batch of very long texts is cut earlier
MAX_LABELS = 1000
SHOWN = 20  # examples of each finding kept in the report
_HIGHEST_WEIGHT = 3.4e38  # of float32
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd\u200b-\u200f\u2060\ufeff]")


def normalise(text: str) -> str:
    """The form in which two texts are the same: NFC, without control and zero-width characters, white space squeezed."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
        text = _CONTROL.sub("", text)
    elif not text.isprintable():
        text = _CONTROL.sub("", text)
    return " ".join(text.split())


def row_keys(texts: list[str], pairs: list[str] | None) -> Iterator[bytes]:
    """What makes two rows the same text, 16 bytes a row: few enough for a million rows at once."""
    for parts in zip(texts, pairs, strict=True) if pairs is not None else zip(texts, strict=True):
        yield hashlib.blake2b("\x1f".join(map(normalise, parts)).encode(), digest_size=16).digest()


def keys_of(examples: Examples) -> Iterator[bytes]:
    """The key of each row, in order."""
    for start in range(0, len(examples), 8192):
        yield from row_keys(*examples.text_batch(np.arange(start, min(start + 8192, len(examples)))))


@dataclass
class Intake:
    """Judges rows: turns what a reader gives into checked values, or into a reject."""

    config: DataConfig
    known: tuple[str, ...]  # empty: names are collected
    columns: Columns
    on_reject: Callable[[dict[str, Any]], object]
    examples: list[dict[str, Any]] = field(default_factory=list)  # the first few rejects
    reasons: Counter[str] = field(default_factory=Counter)
    names: dict[str, int] = field(default_factory=dict)  # label name to code, in order of appearance
    all_files: Sequence[str] = ()  # of all splits; empty: those given to rows()
    seen_rows: int = 0

    def __post_init__(self) -> None:
        self.names = {name: code for code, name in enumerate(self.known)}
        self.closed = bool(self.known)
        self.multi = self.config.task == "multi_label"

    def close(self) -> None:
        """From here on a label that has not been seen is a bad row."""
        self.known, self.closed = tuple(sorted(self.names)), True

    def rows(self, files: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """`(hash, id, text, pair, codes, weight, source, slices)` of each good row."""
        base_names = Counter(Path(file).name for file in set(self.all_files or files))
        for file in files:
            # `reviews.csv:17` reads well, as long as there is one reviews.csv.
            shown = file if ":" in file[:7] or base_names[Path(file).name] > 1 else Path(file).name
            for line, values in read(file, self.config, self.columns):
                self.seen_rows += 1
                good = values if isinstance(values, Problem) else self._check(values, f"{shown}:{line}")
                if isinstance(good, Problem):
                    self._reject(good, f"{shown}:{line}")
                else:
                    yield good

    def _reject(self, problem: Problem, source: str) -> None:
        if self.config.on_bad_row == "stop":
            raise DataError(
                f"{source}: {problem.reason}: expected {problem.expected}, received {problem.received}. "
                "Fix the row, or --set data.on_bad_row=quarantine to set it aside."
            )
        self.reasons[problem.reason] += 1
        reject = {"source": source, "reason": problem.reason, "expected": problem.expected, "received": problem.received}
        if len(self.examples) < SHOWN:
            self.examples.append(reject)
        self.on_reject(reject)

    def _check(self, values: list[Any], source: str) -> tuple[Any, ...] | Problem:
        text, pair, label, weight, row_id, *slices = values
        columns = self.columns
        checked: list[str] = []
        for name, value in ((columns.text, text), (columns.text_pair, pair)):
            if not name:
                continue
            if value is None:
                return Problem("missing text", f"a text in column '{name}'", "nothing")
            if not isinstance(value, str):
                return Problem("missing text", f"a text in column '{name}'", f"{type(value).__name__} {str(value)[:80]}")
            length = len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
            if length > self.config.max_text_bytes:
                return Problem("text too long", f"at most {self.config.max_text_bytes:,} bytes (data.max_text_bytes)", f"{length:,} bytes")
            if undecodable(value):
                return Problem("undecodable bytes", "UTF-8 text", repr(value[:80]))
            normal = normalise(value)
            if not normal:
                return Problem("empty text", f"a text in column '{name}'", repr(value[:80]) if value else "an empty cell")
            checked.append(normal)
        codes: Any = None
        if columns.label:
            codes = self._codes(label)
            if isinstance(codes, Problem):
                return codes
        number = 1.0
        if columns.weight:
            try:
                number = float(weight)
            except (TypeError, ValueError):
                number = math.nan
            # What is infinite as float32 would be infinite in the loss. The comparison is also false for NaN.
            if not 0.0 <= number <= _HIGHEST_WEIGHT:
                return Problem("bad weight", f"a number >= 0 in column '{columns.weight}'", repr(weight)[:80])
        for value in (row_id, *slices):
            if isinstance(value, str) and undecodable(value):
                return Problem("undecodable bytes", "UTF-8 text", repr(value[:80]))
        digest = hashlib.blake2b("\x1f".join(checked).encode(), digest_size=16).digest()
        name = str(row_id) if columns.id and row_id not in (None, "") else digest.hex()
        return digest, name, text, pair, codes, number, source, ["" if value is None else str(value) for value in slices]

    def _codes(self, label: Any) -> Any:
        one = label if self.multi and isinstance(label, list | tuple) else [label]
        if any(isinstance(item, list | tuple | dict | bytes) for item in one):
            return Problem("not a label", f"a text or a number in column '{self.columns.label}'", repr(label)[:80])
        if self.multi:
            if label is None:
                names = []
            elif isinstance(label, list | tuple):
                names = [_label_name(item) for item in label]
                if not all(names):
                    return Problem("not a label", f"label names in column '{self.columns.label}'", repr(label)[:80])
            else:
                names = [part.strip() for part in str(label).split(self.config.label_separator)]
            codes = [self._code(name) for name in dict.fromkeys(name for name in names if name)]
            return next((code for code in codes if isinstance(code, Problem)), codes)
        name = _label_name(label)
        if not name:
            return Problem("missing label", f"a label in column '{self.columns.label}'", "nothing" if label is None else "an empty cell")
        return self._code(name)

    def _code(self, name: str) -> int | Problem:
        code = self.names.get(name)
        if code is not None:
            return code
        if undecodable(name):
            return Problem("undecodable bytes", "UTF-8 text", repr(name[:80]))
        if self.closed:
            return Problem("unknown label", f"one of {listed(self.known)}", repr(name[:80]))
        if len(self.names) >= MAX_LABELS:
            raise DataError(
                f"column '{self.columns.label}' has more than {MAX_LABELS} different values, the last one {name[:60]!r}: it does not look like a label. "
                "Set data.label to the right column."
            )
        self.names[name] = len(self.names)
        return self.names[name]

    def arrow(self, rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
        """One batch of the columns that wait on disk."""
        digest, ids, texts, pairs, codes, weights, sources, slices = zip(*rows, strict=True)
        columns: dict[str, Any] = {
            "hash": pa.array(digest, pa.binary(16)),
            "id": pa.array(ids, pa.string()),
            "text": pa.array(texts, pa.string()),
            "source": pa.array(sources, pa.string()),
            "weight": pa.array(weights, pa.float32()),
        }
        if self.columns.text_pair:
            columns["text_pair"] = pa.array(pairs, pa.string())
        if self.columns.label:
            columns["code"] = pa.array(codes, pa.list_(pa.int32()) if self.multi else pa.int32())
        for number, name in enumerate(self.columns.slices):
            columns[f"slice:{name}"] = pa.array([values[number] for values in slices], pa.string())
        return pa.RecordBatch.from_pydict(columns)


def _label_name(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "" if math.isnan(value) else (str(int(value)) if value.is_integer() else str(value))
    return str(value).strip()


def listed(names: Sequence[str]) -> str:
    """Names in a message, at most twelve."""
    shown = ", ".join(repr(name) for name in names[:12])
    return f"({shown}{', ...' if len(names) > 12 else ''})"


def batched(rows: Iterator[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """Lists of at most `BATCH` rows, fewer where texts are long."""
    batch: list[tuple[Any, ...]] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row[2]) + len(row[3] or "")
        if len(batch) == BATCH or characters > BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
