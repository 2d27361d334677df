"""One label for one answer: checked, then one durable line in the journal. Frees servers and command lines from ids, locks and torn lines.

In: the id of a record and what a human says. Out: a record of kind `feedback`. Refuses ids that are not there, labels the model has not, comments too long.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving.errors import ConfigError, RequestError
from serving.feedback.texts import SURROGATE, kind_of
from serving.journal import read, to_time
from serving.journal.files import is_at, locked
from serving.redact import redact
from serving.registry import sync_folder

MAX_COMMENT, MAX_NAME = 2000, 200
_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}(:[0-9]{1,9})?")


@dataclass(frozen=True)
class Labels:
    """What may be a label: the names of a manifest, and how several of them are written. Without names every label will do."""

    names: tuple[str, ...] = ()
    multi: bool = False
    separator: str = "|"

    @classmethod
    def of(cls, manifest: Mapping[str, Any] | None) -> Labels:
        """The labels of a published model."""
        if manifest is None:
            return cls()
        separator = manifest.get("config", {}).get("data", {}).get("label_separator", "|")
        return cls(tuple(manifest["labels"]), manifest.get("task") == "multi_label", separator)

    def parse(self, label: str) -> str | None:
        """The label in its one form (several are sorted: two people who mean the same must not seem to disagree); None when it is none."""
        parts = {part.strip() for part in label.split(self.separator)} - {""} if self.multi else {label.strip()} - {""}
        if SURROGATE.search(label) or (not parts and not self.multi) or (self.names and not parts <= set(self.names)):
            return None
        return self.separator.join(sorted(parts))

    def expected(self) -> str:
        """For messages."""
        several = f", several joined by {self.separator!r}" if self.multi else ""
        return (f"one of {', '.join(self.names)}" if self.names else "a label") + several


@dataclass(frozen=True)
class Attached:
    """What `attach` stored.

    Attributes:
        id: of the record, `<request id>:<row>`.
        label: the human's.
        predicted: the model's; None when it failed, or when the record was not looked up.
        agrees: whether they are the same; None without a prediction.
    """

    id: str
    label: str
    predicted: str | None
    agrees: bool | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def render(self) -> str:
        """For people."""
        said = "" if self.predicted is None else f"; the model said {self.predicted!r}"
        return f"{self.id}: {self.label!r} recorded{said}."


def attach(
    folder: str | Path,
    id: str,
    label: str,
    comment: str = "",
    by: str = "",
    *,
    manifest: Mapping[str, Any] | None = None,
    known: bool = False,
) -> Attached:
    """Records what a human says about one answer. Any number of threads and processes may do so at once; when this returns, it is on disk.

    Args:
        folder: of the journal.
        id: of the record, `<request id>:<row>`; the row may be left out where the request had one.
        label: a label of the model; several joined by the separator where a text may have several.
        comment: kept redacted, at most 2,000 characters.
        by: who says so. What the same one says later of the same record takes the place of it.
        manifest: of the model, to check the label.
        known: the caller has just seen the record: it is not looked for (it may not have reached the disk yet), and the id must have its row.

    Raises:
        RequestError: no such record or label, or the comment is too long; nothing was written.
        ConfigError: the journal cannot be read or written.
    """
    labels = Labels.of(manifest)
    parsed = _checked(id, label, comment, by, labels)
    predicted = None
    if known:
        if ":" not in id:
            raise RequestError(f"id {id!r}: expected `<request id>:<row>`, received no row. Add it, for example {id}:0.")
    else:
        found = _look_up(Path(folder), {id})[id]
        if len(found) != 1:
            raise _not_one(id, sorted(found), Path(folder))
        [(id, predicted)] = found.items()
    _append(Path(folder), [(id, parsed, comment, by)])
    return Attached(id, parsed, predicted, None if predicted is None else labels.parse(predicted) == parsed)


@dataclass(frozen=True)
class AttachedFile:
    """What `attach_file` stored: `attached`, `unlabelled` (rows whose label is empty), and `problems` of the others: line and reason."""

    attached: list[Attached]
    unlabelled: int
    problems: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def render(self) -> str:
        """For people."""
        agreed = sum(one.agrees is True for one in self.attached)
        lines = [f"{len(self.attached)} labels recorded, {agreed} of them what the model said; {self.unlabelled} rows without a label."]
        return "\n".join([*lines, *(f"  line {one['line']}: {one['reason']}" for one in self.problems)])


def attach_file(folder: str | Path, path: str | Path, by: str = "", *, manifest: Mapping[str, Any] | None = None) -> AttachedFile:
    """Records the labels of a file that `Queue.write` made and people filled in: columns `id`, `label` and, if they like, `comment`.

    Good rows are recorded and bad ones reported, so a file with one slip is not a lost afternoon; attaching it again changes nothing.

    Raises:
        RequestError: the file has no such columns.
        ConfigError: it cannot be read, or the journal cannot be read or written.
    """
    labels, attached, problems, good = Labels.of(manifest), [], [], []
    rows = [(line, row) for line, row in _rows(Path(path)) if row["label"].strip()]
    unlabelled = sum(1 for _ in _rows(Path(path))) - len(rows)
    found = _look_up(Path(folder), {row["id"] for _, row in rows})
    for line, row in rows:
        try:
            parsed = _checked(row["id"], row["label"], row["comment"], by, labels)
            if len(found[row["id"]]) != 1:
                raise _not_one(row["id"], sorted(found[row["id"]]), Path(folder))
        except RequestError as error:
            problems.append({"line": line, "reason": str(error)})
            continue
        [(full, predicted)] = found[row["id"]].items()
        good.append((full, parsed, row["comment"], by))
        attached.append(Attached(full, parsed, predicted, None if predicted is None else labels.parse(predicted) == parsed))
    if good:
        _append(Path(folder), good)
    return AttachedFile(attached, unlabelled, problems)


def _rows(path: Path) -> Iterable[tuple[int, dict[str, str]]]:
    kind = kind_of(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if kind == "jsonl":
            numbered: list[tuple[int, Any]] = [
                (number, json.loads(line)) for number, line in enumerate(text.splitlines(), 1) if line.strip()
            ]
        else:
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="," if kind == "csv" else "\t")
            numbered = [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as {kind} in UTF-8: {error}. Save it as the kind of file its name says.") from error
    for line, row in numbered:
        if not isinstance(row, dict) or not {"id", "label"} <= set(row):
            raise RequestError(
                f"{path}:{line}: expected columns id and label, received {str(row)[:80]}. Label a file that the queue wrote."
            )
        yield line, {name: str(row.get(name) or "") for name in ("id", "label", "comment")}


def _checked(record_id: str, label: str, comment: str, by: str, labels: Labels) -> str:
    """The label in its one form."""
    if not _ID.fullmatch(record_id):
        raise RequestError(
            f"id {record_id[:80]!r}: expected `<request id>:<row>`. The request id is in the answer's X-Request-Id, rows count from 0."
        )
    parsed = labels.parse(label)
    if parsed is None:
        raise RequestError(f"label {label[:80]!r}: expected {labels.expected()}. Nothing was recorded; send it again with such a label.")
    if len(comment) > MAX_COMMENT or len(by) > MAX_NAME or SURROGATE.search(comment + by):
        raise RequestError(
            f"comment of {len(comment)} characters, name of {len(by)}: expected Unicode, at most {MAX_COMMENT} and {MAX_NAME}. Shorten it."
        )
    return parsed


def _look_up(folder: Path, wanted: set[str]) -> dict[str, dict[str, str | None]]:
    """For each wanted id the full ids of its records, with the label that was predicted.

    The lines are searched as bytes, the newest files first: a person corrects what was just answered, and should not wait for a month of journal.
    """
    found: dict[str, dict[str, str | None]] = {one: {} for one in wanted}
    needles = [one.encode() for one in wanted] if len(wanted) < 8 else []
    open_ = set(wanted)
    try:
        for path in sorted(folder.glob("*.jsonl"), reverse=True):
            with path.open("rb") as stream:
                for line in stream:
                    if needles and not any(needle in line for needle in needles):
                        continue
                    try:
                        record = json.loads(line)
                        full, kind = str(record["id"]), record["kind"]
                    except (ValueError, TypeError, KeyError):
                        continue  # torn, or no record of ours
                    if kind != "request":
                        continue
                    for one in {full, full.rpartition(":")[0]} & wanted:
                        found[one][full] = found[one].get(full) or record.get("label")
                    open_.discard(full)
            if not open_:
                break
    except OSError as error:
        raise ConfigError(f"journal {folder}: cannot be read: {error.strerror}. Fix its permissions.") from error
    return found


def _not_one(record_id: str, rows: list[str], folder: Path) -> RequestError:
    if rows:
        return RequestError(f"id {record_id!r}: that request had {len(rows)} texts. Say which: {', '.join(rows[:5])}.")
    return RequestError(
        f"id {record_id!r}: no such record in {folder}. It was not sampled, its time of keeping is over, or it is not written yet. "
        "Expected an id of the journal, as `python -m serving feedback queue` lists them."
    )


def _append(folder: Path, given: Sequence[tuple[str, str, str, str]]) -> None:
    """Whole lines, durable, in a file of the day that all processes share: a file is in the order of its times, and goes with those of its age."""
    try:
        while not _appended(folder, to_time(time.time())[:10], given):
            pass
    except OSError as error:
        raise ConfigError(
            f"journal {folder}: feedback cannot be written: {error.strerror or error}. Nothing was recorded. Free space, fix the permissions, or name "
            "the folder of a journal."
        ) from error


def _appended(folder: Path, day: str, given: Sequence[tuple[str, str, str, str]]) -> bool:
    """False: while it waited for the lock, the day ended, or a deletion put another file in its place."""
    path = folder / f"{day.replace('-', '')}T000000.000Z-feedback-000000.jsonl"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        with locked(descriptor):
            now = to_time(time.time())
            if now[:10] != day or not is_at(descriptor, path):
                return False
            lines = [
                _ENCODE({"kind": "feedback", "time": now, "id": record_id, "label": label, "comment": redact(comment), "by": by})
                for record_id, label, comment, by in given
            ]
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # a writer died within a line: it must not spoil this one
            _write_all(descriptor, ("\n" * torn + "".join(f"{line}\n" for line in lines)).encode(), size)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if size == 0:
        sync_folder(folder)
    return True


def _write_all(descriptor: int, data: bytes, size: int) -> None:
    done = 0
    try:
        while done < len(data):
            done += os.write(descriptor, data[done:])
    except OSError:
        os.ftruncate(descriptor, size)  # half of it would be there, and be said not to be
        raise


def votes(folder: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Feedback by record id, in the order in which it was given; of what one person said of one record only the last. The record that was spoken of last comes last."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in read(folder):
        if record.get("kind") == "feedback" and isinstance(record.get("id"), str) and isinstance(record.get("label"), str):
            mine = found.pop(record["id"], [])
            found[record["id"]] = [*(one for one in mine if one.get("by") != record.get("by")), record]
    return found
