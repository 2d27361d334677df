"""What a model said about each row, on disk: a Parquet file that pandas, Spark and DuckDB read too.

Columns: `id`, `source` (string), `label` and `predicted` (string; list of strings when multi-label; null without a label),
`probabilities` (list of float32, in the order of the labels). Label names and the task stand in the file's metadata. Texts are not in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfpipeline.errors import DataError, DependencyError
from tfpipeline.evaluate.rows import DECISION_THRESHOLD, ExamplesLike, strings
from tfpipeline.runs import atomic_write

METADATA_KEY = b"tfpipeline"
COLUMNS = ("id", "source", "label", "predicted", "probabilities")


@dataclass(frozen=True)
class Predictions:
    """A file read back.

    Attributes:
        ids: `[n]`.
        sources: `[n]`, "file:line".
        targets: int32 `[n]` (-1: none), or float32 `[n, classes]` when multi-label.
        probabilities: float32 `[n, classes]`.
        labels: label names, in the order of the columns.
        task: "single_label" or "multi_label".
    """

    ids: list[str]
    sources: list[str]
    targets: npt.NDArray[Any]
    probabilities: npt.NDArray[np.float32]
    labels: tuple[str, ...]
    task: str


def save_predictions(path: str | Path, examples: ExamplesLike, probabilities: npt.ArrayLike, labels: tuple[str, ...]) -> None:
    """Writes the file whole or not at all; a file of that name is replaced.

    The task is multi-label when `examples.labels` has two axes.
    """
    arrow, parquet = _pyarrow()
    given = np.ascontiguousarray(probabilities, dtype=np.float32)
    if given.shape != (len(examples), len(labels)):
        raise DataError(f"probabilities have shape {list(given.shape)}, expected [{len(examples)}, {len(labels)}] (rows, labels).")
    targets = np.asarray(examples.labels)
    task = "multi_label" if targets.ndim == 2 else "single_label"
    if task == "multi_label":
        known = targets.shape == given.shape
        true = [_named(row, labels) for row in targets] if known else [None] * len(given)
        predicted: list[Any] = [_named(row, labels) for row in given]
        kind = arrow.list_(arrow.string())
    else:
        known = len(targets) == len(given)
        true = [labels[target] if target >= 0 else None for target in targets] if known else [None] * len(given)
        predicted = [labels[best] for best in given.argmax(axis=1)] if len(given) else []
        kind = arrow.string()
    offsets = arrow.array(np.arange(len(given) + 1, dtype=np.int32) * len(labels))
    table = arrow.table(
        {
            "id": arrow.array(strings(examples.ids), arrow.string()),
            "source": arrow.array(strings(examples.sources), arrow.string()),
            "label": arrow.array(true, kind),
            "predicted": arrow.array(predicted, kind),
            "probabilities": arrow.ListArray.from_arrays(offsets, arrow.array(given.ravel(), arrow.float32())),
        }
    ).replace_schema_metadata({METADATA_KEY: json.dumps({"labels": list(labels), "task": task}).encode()})
    with atomic_write(Path(path)) as stream:
        parquet.write_table(table, stream, compression="zstd")


def load_predictions(path: str | Path) -> Predictions:
    """Reads what `save_predictions` wrote.

    Raises:
        DataError: no such file, or not one of ours.
    """
    arrow, parquet = _pyarrow()
    expected = "Expected a Parquet file that `tfpipeline evaluate` wrote."
    if not Path(path).is_file():
        raise DataError(f"{path}: there is no such file of predictions. {expected}")
    try:
        table = parquet.read_table(str(path))
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as Parquet ({str(error).splitlines()[0]}). {expected}") from error
    metadata = (table.schema.metadata or {}).get(METADATA_KEY)
    if metadata is None or not set(COLUMNS) <= set(table.column_names):
        raise DataError(f"{path}: a Parquet file, but without our columns or metadata; it has {', '.join(table.column_names)}. {expected}")
    described = json.loads(metadata)
    labels, task = tuple(described["labels"]), str(described["task"])
    flat = table.column("probabilities").combine_chunks().flatten()
    probabilities = np.asarray(flat.to_numpy(zero_copy_only=False), dtype=np.float32)
    if len(probabilities) != len(table) * len(labels):
        raise DataError(f"{path}: rows have probabilities for other than the {len(labels)} labels ({', '.join(labels)}). {expected}")
    number = {name: place for place, name in enumerate(labels)}
    true = table.column("label").to_pylist()
    if task == "single_label":
        targets: npt.NDArray[Any] = np.array([-1 if name is None else number[name] for name in true], dtype=np.int32)
    elif any(names is None for names in true):
        targets = np.zeros((0, len(labels)), dtype=np.float32)
    else:
        targets = np.array([[name in names for name in labels] for names in true], dtype=np.float32).reshape(len(true), len(labels))
    return Predictions(
        strings(table.column("id")), strings(table.column("source")), targets, probabilities.reshape(len(table), len(labels)), labels, task
    )


def _named(row: npt.NDArray[Any], labels: tuple[str, ...]) -> list[str]:
    return [labels[place] for place in np.flatnonzero(row >= DECISION_THRESHOLD)]


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DependencyError("predictions are Parquet files and need pyarrow: pip install 'tfpipeline[train]'") from error
    return pyarrow, pyarrow.parquet
