"""What a split is: columns in Arrow, never a list of objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tfpipeline.errors import DataError


@dataclass(frozen=True, slots=True)
class Example:
    """One row, for people and messages. `source` is `file:line`."""

    id: str
    text: str
    text_pair: str | None
    label: str | tuple[str, ...] | None
    weight: float
    source: str


@dataclass(frozen=True)
class Examples:
    """One split (or one batch of unlabelled rows).

    Attributes:
        table: columns `id`, `text`, `source` (string), `text_pair` where there are pairs, and `slice:NAME` for each slice column.
        labels: int32 `[rows]`, an index into `names`, -1 where there is no label; or float32 `[rows, classes]` zeros and ones for multi-label.
        weights: float32 `[rows]`, the row's own weight times its class weight.
        names: label names in their fixed order.
    """

    table: pa.Table
    labels: npt.NDArray[Any]
    weights: npt.NDArray[np.float32]
    names: tuple[str, ...]

    @classmethod
    def concatenate(cls, parts: Sequence[Examples]) -> Examples:
        """The rows of all parts (at least one), in order."""
        return cls(
            pa.concat_tables([part.table for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.weights for part in parts]),
            parts[0].names,
        )

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def ids(self) -> pa.ChunkedArray:
        """Row ids."""
        return self.table["id"]

    @property
    def texts(self) -> pa.ChunkedArray:
        """First texts."""
        return self.table["text"]

    @property
    def pairs(self) -> pa.ChunkedArray | None:
        """Second texts, or None where rows are single texts."""
        return self.table["text_pair"] if "text_pair" in self.table.column_names else None

    @property
    def sources(self) -> pa.ChunkedArray:
        """`file:line` of each row."""
        return self.table["source"]

    @property
    def slices(self) -> dict[str, pa.ChunkedArray]:
        """The slice columns by name."""
        return {name[len("slice:") :]: self.table[name] for name in self.table.column_names if name.startswith("slice:")}

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> Examples:
        """These rows, in this order."""
        return Examples(self.table.take(pa.array(rows)), self.labels[rows], self.weights[rows], self.names)

    def text_batch(self, rows: npt.NDArray[np.integer[Any]]) -> tuple[list[str], list[str] | None]:
        """Texts and second texts of these rows; called once per training step."""
        pairs = self.pairs
        return _gather(self.texts, rows), None if pairs is None else _gather(pairs, rows)

    def __getitem__(self, row: int) -> Example:
        label: str | tuple[str, ...] | None
        if self.labels.ndim == 2:
            label = tuple(name for name, on in zip(self.names, self.labels[row], strict=True) if on)
        else:
            label = self.names[self.labels[row]] if self.labels[row] >= 0 else None
        pairs = self.pairs
        return Example(
            self.ids[row].as_py(),
            self.texts[row].as_py(),
            None if pairs is None else pairs[row].as_py(),
            label,
            float(self.weights[row]),
            self.sources[row].as_py(),
        )


def _gather(column: pa.ChunkedArray, rows: npt.NDArray[np.integer[Any]]) -> list[str]:
    # `ChunkedArray.take` copies the whole column into one chunk first: at a million rows 9 ms for every batch.
    chunks = column.chunks
    if len(chunks) == 1:
        return list(chunks[0].take(pa.array(rows)).to_pylist())
    starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
    holders = np.searchsorted(starts, rows, side="right") - 1
    return [chunks[holder][row].as_py() for holder, row in zip(holders.tolist(), (rows - starts[holders]).tolist(), strict=True)]


@dataclass(frozen=True)
class Corpus:
    """Three splits and what is known about them.

    Attributes:
        task: `single_label` or `multi_label`.
        has_pairs: whether a row is two texts.
        labels: names in their fixed order.
        report: JSON-able; see `tfpipeline.data.report`.
        fingerprint: sha256 over the sorted ids and labels of `train`, `validation`, `test`: the same rows in other files give the same one.
    """

    task: str
    has_pairs: bool
    labels: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples
    report: dict[str, Any]
    fingerprint: dict[str, str]

    def split(self, name: str) -> Examples:
        """By name; raises DataError for a name that is none."""
        if name not in self.splits:
            raise DataError(f"split {name!r}: expected one of {', '.join(self.splits)}.")
        return self.splits[name]

    def some_texts(self, count: int) -> tuple[list[str], list[str] | None]:
        """At most `count` texts and second texts: of test, then validation, then train."""
        texts: list[str] = []
        pairs: list[str] | None = [] if self.has_pairs else None
        for examples in (self.test, self.validation, self.train):
            more, more_pairs = examples.text_batch(np.arange(min(len(examples), count - len(texts))))
            texts += more
            if pairs is not None:
                pairs += more_pairs or []
        return texts, pairs

    @property
    def splits(self) -> dict[str, Examples]:
        """All three by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}
