"""Read, validate, deduplicate, split, write: raw files to a prepared corpus.

Rows stream through once and wait in an Arrow file on disk; in memory stay the hashes (about 300 bytes a row, as Python keeps them). What
decides is the content, not the position: the same rows in other files, in another order, give the same splits. One exception: of rows with the
same text and different labels the first one stays, and the report names them.

What a split by hash guarantees: a text is in test or validation because of its own hash, so adding rows never moves a row from training
to test. Near-duplicates whose hashes disagree all go to training, so a new near-twin may pull a row out of test, never into it. That holds as
long as all rows are searched: past `data.near_duplicate_max_rows` the search takes a sample, new rows change the sample, and a row that was in
training only because of its twin may go where its own hash says.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tfpipeline.config import DataConfig
from tfpipeline.data import near_duplicates
from tfpipeline.data.examples import Corpus, Examples
from tfpipeline.data.intake import BATCH, BATCH_CHARACTERS, SHOWN, Intake, batched, listed, normalise
from tfpipeline.data.readers import Columns, expand
from tfpipeline.data.report import describe_split
from tfpipeline.errors import DataError, RunError
from tfpipeline.progress import Progress
from tfpipeline.runs import atomic_folder, cannot_write, read_json

_LOG = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")


def prepare(config: DataConfig, folder: Path | None = None) -> Corpus:
    """Reads, validates, deduplicates and splits.

    Args:
        config: what to read and how to split.
        folder: where the prepared corpus goes, whole or not at all; it must not exist. None: it stays in memory.

    Raises:
        DataError: a file, a row, or the whole cannot be used; nothing is left behind.
        RunError: the folder exists or cannot be written; nothing is left behind.
    """
    if folder is None:
        try:
            with tempfile.TemporaryDirectory() as temporary:
                _prepare_into(config, Path(temporary))
                return _open(Path(temporary), in_memory=True)
        except OSError as error:
            raise cannot_write(Path(tempfile.gettempdir()), error) from error
    try:
        is_there = folder.exists()
    except OSError as error:  # a parent that may not be entered
        raise cannot_write(folder, error) from error
    if is_there:
        raise RunError(f"{folder}: is there already; a prepared corpus is never written over. Open it, remove it, or name another folder.")
    with atomic_folder(folder) as incoming:
        _prepare_into(config, incoming)
    return open_prepared(folder)


def open_prepared(folder: Path) -> Corpus:
    """Memory-maps what `prepare` wrote; a corpus larger than memory opens in milliseconds."""
    return _open(folder, in_memory=False)


def read_examples(
    paths: Sequence[str],
    config: DataConfig,
    labels: tuple[str, ...] | None,
    *,
    need_labels: bool,
    rejects: list[dict[str, Any]] | None = None,
) -> Iterator[Examples]:
    """Streams rows that are not a training corpus (to score, or to evaluate on), at most 8,192 at a time; nothing is deduplicated.

    Args:
        paths: as `data.path`.
        config: columns and formats.
        labels: the model's label names; rows with another one are bad rows.
        need_labels: False: the label column is not read.
        rejects: with `data.on_bad_row = "quarantine"`, bad rows are appended here; None: their number is logged as a warning.
    """
    intake = Intake(
        config, labels or (), Columns.of(config, need_labels=need_labels), (lambda _: None) if rejects is None else rejects.append
    )
    for rows in batched(intake.rows(expand(paths))):
        table = pa.Table.from_batches([intake.arrow(rows)])
        yield _examples(table, labels or (), config.task, None)
    if rejects is None and intake.reasons:
        first = intake.examples[0]
        _LOG.warning(
            "%d of %d rows were left out (%s), the first of them %s",
            sum(intake.reasons.values()),
            intake.seen_rows,
            _counts(intake),
            first["source"],
        )


# ---- the whole ----


@dataclass
class _Given:
    """What was read of one group of files (`data.path`, `data.validation_path` or `data.test_path`)."""

    files: list[str]
    first: dict[bytes, int] = field(default_factory=dict)  # hash to row number in `all.arrow`
    kept: list[int] = field(default_factory=list)
    duplicates: int = 0
    conflicts: dict[bytes, list[int]] = field(default_factory=dict)  # hash to all row numbers


def _prepare_into(config: DataConfig, folder: Path) -> None:
    given = {
        name: _Given(expand(paths))
        for name, paths in zip(SPLITS, (config.path, config.validation_path, config.test_path), strict=True)
        if paths or name == "train"
    }
    waiting = folder / "waiting.arrow"
    with (folder / "rejects.jsonl").open("w", encoding="utf-8") as rejects:
        intake = Intake(
            config, config.labels, Columns.of(config), lambda reject: rejects.write(json.dumps(reject, ensure_ascii=False) + "\n")
        )
        intake.all_files = [file for part in given.values() for file in part.files]
        _read_into(waiting, given, intake)
    with pa.memory_map(str(waiting)) as source:
        table = pa.ipc.open_file(source).read_all()
        labels = _labels(config, intake, given)
        place = {name: code for code, name in enumerate(labels)}
        order = np.array([place[name] for name in intake.names], np.int32)
        rows_of, near = _split(config, table, given)
        report = _report(config, intake, given, table, labels, near, rows_of)
        for name in SPLITS:
            report["splits"][name] = _write_split(folder, name, table, rows_of[name], order, labels, config)
        if config.class_weights != "none":
            report["class_weights"] = dict(zip(labels, _class_weights(config, labels, report["splits"]["train"]["labels"]), strict=True))
        _refuse_unusable(config, labels, report)
        fingerprint = {name: report["splits"][name].pop("fingerprint") for name in SPLITS}
        del table
    waiting.unlink()
    about = {
        "task": config.task,
        "labels": list(labels),
        "has_pairs": bool(config.text_pair),
        "class_weights": report.get("class_weights", {}),
    }
    # Not `write_json`: the folder as a whole is what appears or does not, and an error has to name it and not a file that will be gone.
    for name, value in (("labels", about), ("fingerprint", fingerprint), ("report", report)):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _read_into(waiting: Path, given: dict[str, _Given], intake: Intake) -> None:
    """Writes every good row to `waiting` and notes in `given` which of them count."""
    reads = 0
    writer: Any = None
    with pa.OSFile(str(waiting), "wb") as sink, Progress("reading", unit="rows") as bar:
        for part in given.values():
            for rows in batched(intake.rows(part.files)):
                batch = intake.arrow(rows)
                writer = writer or pa.ipc.new_file(sink, batch.schema)
                writer.write_batch(batch)
                _deduplicate(rows, reads, part)
                reads += len(rows)
                bar.update(len(rows))
            if not part.kept:
                why = (
                    f"no usable row. Set aside: {_counts(intake)}." if intake.reasons else "no row. Expected at least a few labelled rows."
                )
                raise DataError(f"{', '.join(part.files)}: {why}")
            if not intake.closed:
                intake.close()
        writer.close()


def _deduplicate(rows: list[tuple[Any, ...]], offset: int, part: _Given) -> None:
    for number, row in enumerate(rows, start=offset):
        digest = row[0]
        before = part.first.setdefault(digest, number)
        if before == number:
            part.kept.append(number)
        else:
            part.duplicates += 1
            part.conflicts.setdefault(digest, [before]).append(number)


def _labels(config: DataConfig, intake: Intake, given: dict[str, _Given]) -> tuple[str, ...]:
    labels = config.labels or tuple(sorted(intake.names))
    least = 1 if config.task == "multi_label" else 2
    if len(labels) < least:
        found = f"only {labels[0]!r}" if labels else "none"
        raise DataError(
            f"{', '.join(given['train'].files)}: a classifier needs at least {least} labels; column '{config.label}' has {found} in "
            f"{len(given['train'].kept)} rows. Check data.label, or add rows of another label."
        )
    if config.class_weights == "given" and len(config.class_weight_values) != len(labels):
        raise DataError(
            f"data.class_weight_values has {len(config.class_weight_values)} numbers for {len(labels)} labels {listed(labels)}. Give one per label."
        )
    return labels


def _split(config: DataConfig, table: pa.Table, given: dict[str, _Given]) -> tuple[dict[str, npt.NDArray[np.int64]], dict[str, Any]]:
    """Row numbers of each split, and what the search for near-duplicates found."""
    kept = np.array(given["train"].kept, np.int64)
    shares = _shares(table, kept, config.split_salt)
    side = np.zeros(len(kept), np.int8)  # 0 train, 1 validation, 2 test
    test = 0.0 if "test" in given else config.test_fraction
    validation = 0.0 if "validation" in given else config.validation_fraction
    side[shares < test + validation] = 1
    side[shares < test] = 2
    others = {name: np.array(part.kept, np.int64) for name, part in given.items() if name != "train"}
    # Rows of given splits whose very text is in training are exact leaks, and reported as such.
    searched = {
        name: np.array([row for digest, row in given[name].first.items() if digest not in given["train"].first], np.int64)
        for name in others
    }
    near = _near(config, table, np.concatenate([kept, *searched.values()]), config.split_salt)
    moved = 0
    groups: list[npt.NDArray[np.int64]] = near.pop("_members")
    for members in groups:
        own = members[members < len(kept)]
        if len(set(side[own].tolist())) > 1:
            moved += int((side[own] != 0).sum())
            side[own] = 0
    near["rows_moved_to_train"] = moved
    near["leaks"] = _near_leaks(table, groups, side, kept, searched)
    rows_of = {name: kept[side == code] for code, name in enumerate(SPLITS)} | others
    if config.limit and len(rows_of["train"]) > config.limit:
        train_shares = shares[side == 0]
        chosen = np.sort(np.argsort(train_shares, kind="stable")[: config.limit])
        rows_of["train"] = rows_of["train"][chosen]
    return {name: rows_of[name] for name in SPLITS}, near


def _pieces(table: pa.Table, rows: npt.NDArray[np.int64], columns: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """These rows (ascending numbers), piece by piece: `Table.take` would copy whole columns for every piece."""
    held: list[pa.RecordBatch] = []
    size = start = offset = 0
    for batch in (table.select(list(columns)) if columns else table).to_batches():
        end = int(np.searchsorted(rows, offset + batch.num_rows))
        if end > start:
            held.append(batch.take(pa.array(rows[start:end] - offset)))
            size += held[-1].nbytes
        start, offset = end, offset + batch.num_rows
        if size > BATCH_CHARACTERS or sum(piece.num_rows for piece in held) >= BATCH:
            yield from pa.Table.from_batches(held).combine_chunks().to_batches()
            held, size = [], 0
    if held:
        yield from pa.Table.from_batches(held).combine_chunks().to_batches()


def _shares(table: pa.Table, rows: npt.NDArray[np.int64], salt: str) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each row (ascending numbers) that depends on its content and the salt alone."""
    key = salt.encode()[:64]
    hashed = (
        hashlib.blake2b(digest, digest_size=8, key=key).digest()
        for piece in _pieces(table, rows, ["hash"])
        for digest in piece["hash"].to_pylist()
    )
    # 53 bits: what a float64 holds exactly, so that 1.0 is never reached.
    return np.fromiter((int.from_bytes(value, "big") >> 11 for value in hashed), np.float64, len(rows)) / 2**53


def _near(config: DataConfig, table: pa.Table, rows: npt.NDArray[np.int64], salt: str) -> dict[str, Any]:
    """Groups of near-duplicates among these rows (ascending numbers); `_members` index into `rows`."""
    if config.near_duplicates == "off":
        return {"searched": "off", "rows_searched": 0, "rows_total": len(rows), "groups": 0, "rows": 0, "examples": [], "_members": []}
    # By hash: the same rows are searched, and compared in the same order, whatever their order in the files.
    chosen = np.argsort(_shares(table, rows, salt), kind="stable")[: config.near_duplicate_max_rows]
    columns = [name for name in ("text", "text_pair") if name in table.column_names]
    ascending = np.sort(chosen)
    texts = [
        normalise(" ".join(parts))
        for piece in _pieces(table, rows[ascending], columns)
        for parts in zip(*[piece[name].to_pylist() for name in columns], strict=True)
    ]
    place = np.searchsorted(ascending, chosen)
    found = [chosen[members] for members in near_duplicates.groups([texts[i] for i in place.tolist()], config.near_duplicate_threshold)]
    sources, first_texts = table["source"], table["text"]
    return {
        "searched": "sample" if len(chosen) < len(rows) else "all",
        "rows_searched": len(chosen),
        "rows_total": len(rows),
        "groups": len(found),
        "rows": sum(len(members) for members in found),
        "examples": [
            [{"source": sources[row].as_py(), "text": first_texts[row].as_py()[:200]} for row in members[:3]]
            for members in sorted(sorted(rows[members].tolist()) for members in found)[:SHOWN]
        ],
        "_members": found,
    }


def _near_leaks(
    table: pa.Table,
    groups: Sequence[npt.NDArray[np.int64]],
    side: npt.NDArray[np.int8],
    kept: npt.NDArray[np.int64],
    searched: dict[str, npt.NDArray[np.int64]],
) -> dict[str, Any]:
    """Rows of given splits that have a near-twin in training: reported, not moved."""
    sources = table["source"]
    leaks: dict[str, Any] = {}
    first = len(side)
    for name, rows in searched.items():
        pairs: list[tuple[int, int]] = []
        for members in groups:
            in_train = [row for row in members.tolist() if row < len(side) and side[row] == 0]
            if not in_train:
                continue
            theirs = members[(members >= first) & (members < first + len(rows))]
            pairs += [(row, int(kept[min(in_train)])) for row in rows[theirs - first].tolist()]
        leaks[name] = {
            "rows": len(pairs),
            "examples": [{"source": sources[row].as_py(), "also": sources[twin].as_py()} for row, twin in sorted(pairs)[:SHOWN]],
        }
        first += len(rows)
    return leaks


def _report(
    config: DataConfig,
    intake: Intake,
    given: dict[str, _Given],
    table: pa.Table,
    labels: tuple[str, ...],
    near: dict[str, Any],
    rows_of: dict[str, npt.NDArray[np.int64]],
) -> dict[str, Any]:
    name_of = {code: name for name, code in intake.names.items()}
    codes, texts, sources, hashes = table["code"], table["text"], table["source"], table["hash"]

    def label_of(row: int) -> Any:
        value = codes[row].as_py()
        return [name_of[code] for code in sorted(value)] if isinstance(value, list) else name_of[value]

    conflicts = 0
    conflict_examples: list[dict[str, Any]] = []
    for part in given.values():
        for rows in part.conflicts.values():
            found = [label_of(row) for row in rows]
            if any(label != found[0] for label in found):
                conflicts += 1
                if len(conflict_examples) < SHOWN:
                    conflict_examples.append(
                        {
                            "text": texts[rows[0]].as_py()[:200],
                            "sources": [sources[row].as_py() for row in rows[:5]],
                            "labels": found[:5],
                            "kept": found[0],
                        }
                    )
    leaks = {}
    for number, name in enumerate(SPLITS):
        if name == "train" or name not in given:
            continue
        earlier = [other for other in SPLITS[:number] if other in given]
        # Of `data.path` only what ended in training: a row that was cut from it into validation is not leaked.
        held = {other: set(rows_of[other].tolist()) for other in earlier}
        shared = [
            (row, other) for digest, row in given[name].first.items() for other in earlier if given[other].first.get(digest) in held[other]
        ]
        leaks[name] = {
            "also_in": earlier,
            "rows": len({row for row, _ in shared}),
            "examples": [
                {"source": sources[row].as_py(), "also": sources[given[other].first[hashes[row].as_py()]].as_py()}
                for row, other in shared[:SHOWN]
            ],
            "near": near["leaks"][name],
        }
    del near["leaks"]
    return {
        "files": {name: part.files for name, part in given.items()},
        "task": config.task,
        "labels": list(labels),
        "rows_read": intake.seen_rows,
        "rejects": {"rows": sum(intake.reasons.values()), "reasons": dict(intake.reasons.most_common()), "examples": intake.examples},
        "duplicates": {"rows": sum(part.duplicates for part in given.values())},
        "conflicts": {"texts": conflicts, "examples": conflict_examples},
        "near_duplicates": near,
        "leakage": leaks,
        "splits": {},
    }


def _write_split(
    folder: Path,
    name: str,
    table: pa.Table,
    rows: npt.NDArray[np.int64],
    order: npt.NDArray[np.int32],
    labels: tuple[str, ...],
    config: DataConfig,
) -> dict[str, Any]:
    """Writes `NAME.arrow` in pieces and returns the split's description."""
    digest = hashlib.sha256()
    sizes: list[int] = []
    counts: Counter[str] = Counter()
    prints: list[bytes] = []
    schema = table.schema.remove(table.schema.get_field_index("code"))
    label_type = pa.list_(pa.int32()) if config.task == "multi_label" else pa.int32()
    schema = schema.append(pa.field("label", label_type))
    with pa.OSFile(str(folder / f"{name}.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for part in _pieces(table, rows):
            codes = part["code"]
            if config.task == "multi_label":
                final = [sorted(int(order[code]) for code in cell) for cell in codes.to_pylist()]
                counts.update(labels[code] for cell in final for code in cell)
                tags = [",".join(labels[code] for code in cell) for cell in final]
                column = pa.array(final, label_type)
            else:
                mapped = order[codes.to_numpy()]
                counts.update({labels[code]: int(number) for code, number in zip(*np.unique(mapped, return_counts=True), strict=True)})
                tags = [labels[code] for code in mapped]
                column = pa.array(mapped, pa.int32())
            prints += [
                hashlib.blake2b(h + tag.encode(), digest_size=16).digest() for h, tag in zip(part["hash"].to_pylist(), tags, strict=True)
            ]
            if len(sizes) < 100_000:
                sizes += pc.binary_length(part["text"]).to_pylist()
            writer.write_batch(pa.RecordBatch.from_arrays([*(part[name] for name in schema.names[:-1]), column], schema=schema))
    for value in sorted(prints):
        digest.update(value)
    return {**describe_split(len(rows), counts, labels, sizes), "fingerprint": digest.hexdigest()}


def _class_weights(config: DataConfig, labels: tuple[str, ...], counts: dict[str, int]) -> list[float]:
    if config.class_weights == "given":
        return list(config.class_weight_values)
    total = sum(counts.values())
    return [total / (len(labels) * counts[label]) if counts[label] else 0.0 for label in labels]


def _refuse_unusable(config: DataConfig, labels: tuple[str, ...], report: dict[str, Any]) -> None:
    splits = report["splits"]
    sizes = {name: splits[name]["rows"] for name in SPLITS}
    where = ", ".join(report["files"]["train"])
    for name, fraction in (("validation", config.validation_fraction), ("test", config.test_fraction)):
        if not fraction and name not in report["files"]:
            raise DataError(
                f"{where}: there is no {name} split: data.{name}_fraction is 0 and data.{name}_path is empty. "
                f"Set one of them, for example --set data.{name}_fraction=0.1."
            )
    empty = [name for name in SPLITS if not sizes[name]]
    if empty:
        raise DataError(
            f"{where}: too few rows to split: {sum(sizes.values())} usable rows gave {sizes['train']} for training, {sizes['validation']} for validation, "
            f"{sizes['test']} for test. Add rows, raise data.validation_fraction / data.test_fraction, or give data.validation_path and data.test_path."
        )
    present = [label for label in labels if splits["train"]["labels"].get(label)]
    if config.task == "single_label" and len(present) < 2:
        raise DataError(
            f"{where}: the training split has only label {present[0] if present else 'none'!r} in {sizes['train']} rows; a classifier needs two. "
            "Add rows of another label, or change data.split_salt."
        )
    report["absent_from_training"] = [label for label in labels if label not in present]


def _counts(intake: Intake) -> str:
    return ", ".join(f"{count:,} x {reason}" for reason, count in intake.reasons.most_common())


# ---- reading back ----


def _open(folder: Path, *, in_memory: bool) -> Corpus:
    about = read_json(folder / "labels.json")
    labels = tuple(about["labels"])
    weights = about["class_weights"]
    splits = {}
    for name in SPLITS:
        path = folder / f"{name}.arrow"
        try:
            source = pa.BufferReader(path.read_bytes()) if in_memory else pa.memory_map(str(path))
            table = pa.ipc.open_file(source).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path}: the prepared split cannot be read: {error}. Start a new run.") from error
        splits[name] = _examples(
            table, labels, about["task"], [weights[label] for label in labels] if weights and name == "train" else None
        )
    return Corpus(
        about["task"],
        about["has_pairs"],
        labels,
        **splits,
        report=read_json(folder / "report.json"),
        fingerprint=read_json(folder / "fingerprint.json"),
    )


def _examples(table: pa.Table, labels: tuple[str, ...], task: str, class_weights: list[float] | None) -> Examples:
    rows = table.num_rows
    weights = table["weight"].to_numpy().astype(np.float32)
    codes = next((table[name] for name in ("label", "code") if name in table.column_names), None)
    targets: npt.NDArray[Any]
    if codes is None:
        targets = np.full(rows, -1, np.int32)
    elif task == "multi_label":
        targets = np.zeros((rows, len(labels)), np.float32)
        for row, cell in enumerate(codes.to_pylist()):
            targets[row, cell] = 1.0
        if class_weights is not None:  # a row weighs as much as the heaviest of its labels; one without labels weighs 1
            heaviest = (targets * np.array(class_weights, np.float32)).max(axis=1)
            weights = weights * np.where(targets.any(axis=1), heaviest, 1.0).astype(np.float32)
    else:
        targets = codes.to_numpy().astype(np.int32)
        if class_weights is not None:
            weights = weights * np.array(class_weights, np.float32)[targets]
    drop = [name for name in ("hash", "weight", "label", "code") if name in table.column_names]
    return Examples(table.drop_columns(drop), targets, weights, labels)
