"""Scores a file of texts where nothing but the standard library and LiteRT is installed: rows in, the same rows with labels out, whole or not at all.

In: `.txt` (a text a line), `.csv`, `.tsv` (with a header) or `.jsonl`. Out: `.csv` or `.jsonl`. Refuses a file without the text column, and a broken row
with its line number. `tfpipeline predict` reads more formats, quarantines bad rows and needs pyarrow.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tfpipeline.answers import Csv, JsonLines, answers
from tfpipeline.edge.runner import EdgeModel
from tfpipeline.errors import ConfigError, DataError
from tfpipeline.runs import atomic_write

INPUT_FORMATS = (".txt", ".csv", ".tsv", ".jsonl")
OUTPUT_FORMATS = (".csv", ".jsonl")
_CHUNK = 256

Row = tuple[str, str, str | None]  # source, text, second text


def score(model: EdgeModel, source: Path, output: Path, advance: Callable[[int], None] = lambda rows: None) -> dict[str, Any]:
    """Scores every row of `source` into `output`; returns counts.

    Args:
        model: the opened file; its description names the columns, `text` and `text_pair` stand in for columns given by number.
        source: rows.
        output: written whole or not at all.
        advance: told how many rows were done.
    """
    if source.suffix not in INPUT_FORMATS:
        raise ConfigError(f"--input {source}: expected a name ending in {', '.join(INPUT_FORMATS)}. Other formats: tfpipeline predict.")
    if output.suffix not in OUTPUT_FORMATS:
        raise ConfigError(f"--output {output}: expected a name ending in {' or '.join(OUTPUT_FORMATS)}.")
    rows = truncated = 0
    with atomic_write(output) as stream:
        writer = (Csv if output.suffix == ".csv" else JsonLines)(stream, model.labels)
        for chunk in _chunks(read_rows(source, model)):
            texts = [text for _, text, _ in chunk]
            pairs = [pair or "" for _, _, pair in chunk] if model.has_pairs else None
            found = answers(model.labels, model.task, model.description["label_separator"], model.predict(texts, pairs))
            writer.write([{"source": place, "text": text, **answer} for (place, text, _), answer in zip(chunk, found, strict=True)])
            rows += len(chunk)
            truncated += model.truncated
            advance(len(chunk))
        writer.close()
    return {"output": str(output), "rows": rows, "truncated": truncated}


def read_rows(source: Path, model: EdgeModel) -> Iterator[Row]:
    """`(file:line, text, second text or None)` of each row."""
    names = [_column(model.description["columns"][key], key) for key in (("text", "text_pair") if model.has_pairs else ("text",))]
    try:
        with source.open(encoding="utf-8-sig", newline="") as stream:
            if source.suffix == ".txt":
                if model.has_pairs:
                    raise ConfigError(
                        f"--input {source}: this model takes two texts a row; give a .csv, .tsv or .jsonl with the columns {names}."
                    )
                for number, line in enumerate(stream, 1):
                    yield f"{source}:{number}", line.rstrip("\r\n"), None
            elif source.suffix == ".jsonl":
                for number, line in enumerate(stream, 1):
                    if line.strip():
                        yield _row(f"{source}:{number}", _parsed(line, f"{source}:{number}"), names)
            else:
                reader = csv.DictReader(stream, dialect="excel-tab" if source.suffix == ".tsv" else "excel")
                for record in reader:
                    yield _row(f"{source}:{reader.line_num}", record, names)
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not UTF-8 at byte {error.start}. Convert it: iconv -t utf-8.") from error
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror or error}).") from error


def _column(name: str, standard: str) -> str:
    return standard if not name or name.isdigit() else name


def _parsed(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: not a JSON object ({error}). Fix the row.") from error
    if not isinstance(record, dict):
        raise DataError(f"{place}: expected a JSON object, received {type(record).__name__}. Fix the row.")
    return record


def _row(place: str, record: dict[str, Any], names: list[str]) -> Row:
    values = [record.get(name) for name in names]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str):
            held = ", ".join(str(key) for key in record)
            raise DataError(
                f"{place}: expected a text in column {name!r}, received {value!r} (columns: {held}). Fix the row or rename the column."
            )
    texts = [str(value) for value in values]
    return place, texts[0], texts[1] if len(texts) > 1 else None


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
