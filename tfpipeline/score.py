"""Batch scoring: files of millions of rows through a model, streamed, whole or not at all.

In: an opened model and input files. Out: one file of `source, text, label, score, probabilities`, in the order of the input. Rows that cannot be
used stop it, or are set aside beside the output when `data.on_bad_row` is `quarantine`.

Many machines share one job by `Shard`: each is given its number, scores its part of the files (or of the rows, when there are fewer files than shards)
and writes a file of its own, whole or not at all. Nobody coordinates: a part depends on the list of files and the number alone, so a shard that was
killed is simply run again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfpipeline import data
from tfpipeline.answers import Csv, JsonLines, answers
from tfpipeline.config import Config
from tfpipeline.errors import ConfigError
from tfpipeline.progress import Progress
from tfpipeline.runs import atomic_write

FORMATS = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Shard:
    """One part of a job: number `index` of `count`, counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`3/16` as the third of sixteen.

        Raises:
            ConfigError: anything else.
        """
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"--shard {text}: expected K/N with 1 <= K <= N, such as 3/16.")
        return cls(int(match[1]), int(match[2]))

    def output(self, path: Path) -> Path:
        """`scored.parquet` as `scored-00003-of-00016.parquet`."""
        return path.with_name(f"{path.stem}-{self.index:05d}-of-{self.count:05d}{path.suffix}")


def score_files(model: Any, config: Config, inputs: Sequence[str], output: Path, shard: Shard | None = None) -> tuple[dict[str, Any], str]:
    """Scores every row and writes `output`; returns the document and the sentence for the command line.

    Args:
        model: anything with `labels`, `task` and `predict(texts, pairs)`.
        config: columns and formats of the input; labels are not read.
        inputs: files, globs, folders.
        output: `.jsonl`, `.csv` or `.parquet`.
        shard: score this part only: whole files, dealt out in the order of their names; with fewer files than shards, every `count`-th row.
    """
    if output.suffix not in FORMATS:
        raise ConfigError(f"--output {output}: expected a name ending in {', '.join(FORMATS)}.")
    rejects: list[dict[str, Any]] = []
    rows = seen = 0
    part = Shard(1, 1)  # of the rows
    if shard is not None:
        files = data.expand(inputs)
        output = shard.output(output)
        inputs, part = (files[shard.index - 1 :: shard.count], part) if len(files) >= shard.count else (files, shard)
    writers: dict[str, Any] = {".jsonl": JsonLines, ".csv": Csv, ".parquet": _Parquet}
    with atomic_write(output) as stream, Progress("scoring", unit="texts") as bar:
        writer = writers[output.suffix](stream, model.labels)
        for examples in data.read_examples(inputs, config.data, model.labels, need_labels=False, rejects=rejects):
            numbers = np.arange((part.index - 1 - seen) % part.count, len(examples), part.count)
            seen += len(examples)
            texts, pairs = examples.text_batch(numbers)
            found = answers(model.labels, model.task, config.data.label_separator, model.predict(texts, pairs))
            sources = examples.sources.take(numbers).to_pylist()
            writer.write([{"source": source, "text": text, **answer} for source, text, answer in zip(sources, texts, found, strict=True)])
            rows += len(texts)
            bar.update(len(texts))
        writer.close()
    aside = ""
    if rejects and part.index == 1:  # all parts of the same rows meet the same ones
        with atomic_write(output.with_name(f"{output.name}.rejects.jsonl")) as stream:
            stream.writelines((json.dumps(reject, ensure_ascii=False) + "\n").encode() for reject in rejects)
        aside = f"; {len(rejects)} rows set aside in {output.name}.rejects.jsonl"
    return {"output": str(output), "rows": rows, "rejects": len(rejects)}, f"Scored {rows:,} texts into {output}{aside}."


class _Parquet:
    def __init__(self, stream: Any, labels: tuple[str, ...]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = [f"probability:{label}" for label in labels]
        self._schema = pa.schema(
            [
                ("source", pa.string()),
                ("text", pa.string()),
                ("label", pa.string()),
                ("score", pa.float32()),
                *((name, pa.float32()) for name in names),
            ]
        )
        self._labels = labels
        self._writer = pq.ParquetWriter(stream, self._schema)

    def write(self, rows: list[dict[str, Any]]) -> None:
        import pyarrow as pa

        flat = [
            {
                **{key: row[key] for key in ("source", "text", "label", "score")},
                **{f"probability:{label}": row["probabilities"][label] for label in self._labels},
            }
            for row in rows
        ]
        self._writer.write_table(pa.Table.from_pylist(flat, schema=self._schema))

    def close(self) -> None:
        self._writer.close()
