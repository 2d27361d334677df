"""How a training config reads a file, so that what is collected is read like any other. Frees `collect` from columns, headers, separators and splits.

In: the `config.data` of a manifest and the name of the output. Out: a `Layout`, which judges records and writes rows. Refuses an output that the config
would not read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import ConfigError
from serving.feedback.texts import SURROGATE, kind_of, table
from serving.journal import normalised

_DEFAULTS = {"text": "text", "text_pair": "", "label": "label", "weight": "weight", "id": "id"}


@dataclass(frozen=True)
class Row:
    """One row of a training file; `source` is `feedback` or `pseudo`, `digest` that of its text."""

    id: str
    text: str
    text_pair: str | None
    label: str
    weight: float
    source: str
    digest: bytes


@dataclass(frozen=True)
class Layout:
    """What a training config looks for, and where.

    Attributes:
        kind: csv, tsv or jsonl.
        names: ours to the config's; a number is a place, counted from 0, in a file without a header.
        header: whether the file opens with names.
        slices: further columns that the config wants; empty in rows from feedback.
        longest: bytes of a text.
        pairs: whether a row is two texts; None: as it comes.
        salt: of the split.
        held_out: share of the hashes that go to validation and test.
    """

    kind: str
    names: Mapping[str, str]
    header: bool
    slices: tuple[str, ...]
    longest: int
    pairs: bool | None
    salt: str
    held_out: float

    @classmethod
    def of(cls, manifest: Mapping[str, Any] | None, output: Path) -> Layout:
        """Without a manifest the defaults of `tfpipeline`, under which every row may be held out."""
        data = (manifest or {}).get("config", {}).get("data", {})
        kind, wanted = kind_of(output), data.get("format", "auto")
        if wanted not in ("auto", kind):
            raise ConfigError(
                f"{output}: is {kind}, but the model's training config reads {wanted} alone (data.format). Name the output *.{wanted}, or train with "
                "data.format = auto."
            )
        names = {ours: data.get(ours) or default for ours, default in _DEFAULTS.items()}
        pairs = None if manifest is None else bool(manifest.get("has_pairs"))
        if pairs is not False:
            names["text_pair"] = names["text_pair"] or "text_pair"
        numbers = [name for name in names.values() if name.isdigit()]
        if numbered_json := numbers if kind == "jsonl" else []:
            raise ConfigError(
                f"{output}: the model was trained on columns {', '.join(numbered_json)} of files without names. Name the output *.csv or *.tsv."
            )
        header = data.get("header", "auto")
        splits = {"test_fraction": "test_path", "validation_fraction": "validation_path"}
        return cls(
            kind=kind,
            names=names,
            header=header == "yes" or (header == "auto" and not numbers),
            slices=tuple(data.get("slice_columns", ())),
            longest=int(data.get("max_text_bytes", 1_000_000)),
            pairs=pairs,
            salt=str(data.get("split_salt", "")),
            held_out=sum(float(data.get(fraction, 1.0)) for fraction, path in splits.items() if not data.get(path)),
        )

    def refusal(self, record: Mapping[str, Any]) -> str:
        """Why a record cannot become a row; "" when it can."""
        pair = record.get("text_pair")
        texts = [one for one in (record.get("text"), pair) if one is not None]
        if not isinstance(record.get("text"), str):
            return "text not kept"
        if self.pairs is not None and self.pairs != isinstance(pair, str):
            return "one text, where the model takes two" if self.pairs else "two texts, where the model takes one"
        if any(SURROGATE.search(one) for one in texts):
            return "text that is not Unicode"
        if not all(normalised(one) for one in texts):
            return "empty text"
        return "text too long for training" if any(len(one.encode()) > self.longest for one in texts) else ""

    def trains_on(self, digest: bytes) -> bool:
        """Whether the hash puts a text into the training split; the arithmetic is that of `tfpipeline.data`."""
        share = int.from_bytes(hashlib.blake2b(digest, digest_size=8, key=self.salt.encode()[:64]).digest(), "big") >> 11
        return share / 2**53 >= self.held_out

    def table(self, rows: Sequence[Row]) -> bytes:
        """The rows as the config reads them; what it does not read comes last."""
        ours = ["text", *(["text_pair"] if any(row.text_pair is not None for row in rows) else []), "label", "weight", "source", "id"]
        places = {name: self.names.get(name, name) for name in ours}
        numbers = {int(name) for name in places.values() if name.isdigit()}
        columns = [str(place) if place in numbers else f"column_{place}" for place in range(max(numbers, default=-1) + 1)]
        columns += [name for name in dict.fromkeys((*places.values(), *self.slices)) if not name.isdigit()]
        filled = ({places[name]: getattr(row, name) for name in ours} for row in rows)
        return table(self.kind, columns, ([row.get(name, "") for name in columns] for row in filled), header=self.header)
