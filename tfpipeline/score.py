"""Batch scoring: files of millions of rows through a model, streamed, whole or not at all.

In: an opened model and input files. Out: one file of `source, text, label, score, probabilities`, in the order of the input. Rows that cannot be
used stop it, or are set aside beside the output when `data.on_bad_row` is `quarantine`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfpipeline import data
from tfpipeline.config import Config
from tfpipeline.errors import ConfigError
from tfpipeline.export import answers
from tfpipeline.progress import Progress
from tfpipeline.runs import atomic_write

FORMATS = (".jsonl", ".csv", ".parquet")


def score_files(model: Any, config: Config, inputs: Sequence[str], output: Path) -> tuple[dict[str, Any], str]:
    """Scores every row and writes `output`; returns the document and the sentence for the command line.

    Args:
        model: anything with `labels`, `task` and `predict(texts, pairs)`.
        config: columns and formats of the input; labels are not read.
        inputs: files, globs, folders.
        output: `.jsonl`, `.csv` or `.parquet`.
    """
    if output.suffix not in FORMATS:
        raise ConfigError(f"--output {output}: expected a name ending in {', '.join(FORMATS)}.")
    rejects: list[dict[str, Any]] = []
    rows = 0
    writers: dict[str, Any] = {".jsonl": _JsonLines, ".csv": _Csv, ".parquet": _Parquet}
    with atomic_write(output) as stream, Progress("scoring", unit="texts") as bar:
        writer = writers[output.suffix](stream, model.labels)
        for examples in data.read_examples(inputs, config.data, model.labels, need_labels=False, rejects=rejects):
            texts, pairs = examples.text_batch(np.arange(len(examples)))
            found = answers(model.labels, model.task, config.data.label_separator, model.predict(texts, pairs))
            sources = examples.sources.to_pylist()
            writer.write([{"source": source, "text": text, **answer} for source, text, answer in zip(sources, texts, found, strict=True)])
            rows += len(texts)
            bar.update(len(texts))
        writer.close()
    aside = ""
    if rejects:
        with atomic_write(output.with_name(f"{output.name}.rejects.jsonl")) as stream:
            stream.writelines((json.dumps(reject, ensure_ascii=False) + "\n").encode() for reject in rejects)
        aside = f"; {len(rejects)} rows set aside in {output.name}.rejects.jsonl"
    return {"output": str(output), "rows": rows, "rejects": len(rejects)}, f"Scored {rows:,} texts into {output}{aside}."


class _JsonLines:
    def __init__(self, stream: Any, labels: tuple[str, ...]) -> None:
        self._stream = stream

    def write(self, rows: list[dict[str, Any]]) -> None:
        self._stream.writelines((json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows)

    def close(self) -> None:
        pass


class _Csv:
    def __init__(self, stream: Any, labels: tuple[str, ...]) -> None:
        self._text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
        self._writer = csv.writer(self._text)
        self._labels = labels
        self._writer.writerow(["source", "text", "label", "score", *(f"probability:{label}" for label in labels)])

    def write(self, rows: list[dict[str, Any]]) -> None:
        self._writer.writerows(
            [row["source"], row["text"], row["label"], row["score"], *(row["probabilities"][label] for label in self._labels)]
            for row in rows
        )

    def close(self) -> None:
        self._text.detach()  # the stream itself is closed by whoever opened it


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
