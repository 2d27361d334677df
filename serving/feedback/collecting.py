"""Labels and texts of a journal to a training file with its provenance. Frees training from journals, conflicts and rows it knows already.

In: a journal, and what the model was trained on. Out: a file, `FILE.provenance` beside it, and a `Collected` that accounts for every label. Refuses to
write fewer rows than asked for. In memory are the labelled texts and 16 bytes of each training text; of unlabelled ones only those that are chosen.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import heapq
import io
import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from serving.errors import ConfigError, RequestError
from serving.feedback.labels import Labels, votes
from serving.feedback.layout import Layout, Row
from serving.feedback.texts import text_digest, write_whole
from serving.journal import Record, read, to_time

PROVENANCE = ".provenance"  # no ending of a data file: a folder of collected files can be given as data.path
SHOWN = 20  # examples of each finding
_SPLITS = ("train", "validation", "test")


@dataclass
class Collected:
    """What `collect` wrote.

    Attributes:
        path: of the labelled rows.
        pseudo_path: of the pseudo-labelled rows; None without any.
        rows: how many are in `path`.
        pseudo_rows: how many are in `pseudo_path`.
        labels: rows of each label in `path`.
        left_out: labelled records that did not become a row, by reason.
        contradictions: rows whose text is in the training set under another label.
        conflicts: texts that people labelled differently.
        examples: the first few of each finding.
    """

    path: Path
    pseudo_path: Path | None
    rows: int
    pseudo_rows: int
    labels: dict[str, int]
    left_out: dict[str, int]
    contradictions: int
    conflicts: int
    examples: dict[str, list[dict[str, Any]]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "path": str(self.path), "pseudo_path": str(self.pseudo_path) if self.pseudo_path else None}

    def render(self) -> str:
        """For people."""
        shares = ", ".join(f"{label} {count:,}" for label, count in sorted(self.labels.items()))
        lines = [f"{self.path}: {self.rows:,} labelled texts ({shares})"]
        lines += [f"{self.pseudo_path}: {self.pseudo_rows:,} pseudo-labelled texts"] if self.pseudo_path else []
        lines += [f"  left out: {count:,} {reason}" for reason, count in self.left_out.items()]
        if self.contradictions:
            lines.append(
                f"  {self.contradictions:,} of them are in the training set under another label; in a retraining the new one counts"
            )
        if self.conflicts:
            lines.append(f"  {self.conflicts:,} texts were labelled differently by different people")
        files = "".join(f" --data {path}" for path in (self.path, self.pseudo_path) if path)
        return "\n".join([*lines, "", f"Next:      tfpipeline retrain{files}"])


@dataclass
class _Findings:
    left_out: Counter[str] = field(default_factory=Counter)
    contradictions: int = 0
    conflicts: int = 0
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def note(self, what: str, **example: Any) -> None:
        shown = self.examples.setdefault(what, [])
        if len(shown) < SHOWN:
            shown.append(example)

    def leave_out(self, reason: str, **example: Any) -> None:
        self.left_out[reason] += 1
        self.note(reason, **example)

    def told(self) -> dict[str, Any]:
        return {
            "left_out": dict(self.left_out), "contradictions": self.contradictions, "conflicts": self.conflicts, "examples": self.examples,
        }  # fmt: skip


def collect(
    folder: str | Path,
    output: str | Path,
    *,
    training: Sequence[str | Path] = (),
    manifest: Mapping[str, Any] | None = None,
    minimum: int = 1,
    since: datetime | None = None,
    conflicts: str = "last",
    weight: float = 1.0,
    pseudo_label_above: float | None = None,
    pseudo_weight: float = 0.3,
    pseudo_per_class: int = 200,
) -> Collected:
    """Writes the labelled texts as a training file, whole or not at all, and `OUTPUT.provenance` beside it.

    Columns: text, text_pair where there are pairs, label, weight, source, id; under the names and in the form that the training config of the manifest
    reads (it reads weights and ids only where it says so). The provenance is JSON: the journal's files and their hashes, who labelled, which versions
    had answered, how many rows, and everything that was left out.

    Pseudo-labels (self-training) go to a file of their own, `NAME.pseudo.ENDING`: texts that nobody labelled, of which the newest version of the model
    in the journal is that sure, and whose hash puts them into the training split. A test split must not be labelled by the model it judges.

    Args:
        folder: of the journal.
        output: a `.csv`, `.tsv` or `.jsonl`; what is there is replaced.
        training: what the model was trained on: run folders (this needs pyarrow), or files that the manifest's config reads.
        manifest: of the model: only its records count; its labels, and the config its data were read with.
        minimum: fewer labelled texts than this are an error.
        since: only labels given from this time on.
        conflicts: `last` or `drop`, where people labelled one text differently.
        weight: of a labelled row.
        pseudo_label_above: least probability for a pseudo-label; None: none are made.
        pseudo_weight: of a pseudo-labelled row.
        pseudo_per_class: most pseudo-labelled rows of a class; their hash decides which.

    Raises:
        RequestError: fewer than `minimum` texts; nothing was written. The message says what was left out, and why.
        ConfigError: a file cannot be read or written, or a setting that cannot work.
    """
    _check(conflicts, weight, pseudo_label_above, pseudo_weight, manifest)
    path, journal = Path(output), Path(folder)
    layout, labels, found = Layout.of(manifest, path), Labels.of(manifest), _Findings()
    known = _training_set(training, layout, labels)
    files = _journal_files(journal)
    rows, facts = _labelled(journal, to_time(since.timestamp()) if since else "", conflicts, weight, layout, labels, manifest, found)
    fresh = [row for row in rows if _is_new(row, known, found)]
    if len(fresh) < max(1, minimum):
        why = "; ".join(f"{count} {reason}" for reason, count in found.left_out.items()) or "nothing, there is no feedback"
        raise RequestError(
            f"{journal}: {len(fresh)} usable labelled texts, expected at least {max(1, minimum)}. Left out: {why}. "
            "Label more (`python -m serving feedback queue` lists what is worth it), or lower the minimum."
        )
    pseudo: list[Row] = []
    if pseudo_label_above is not None and manifest is not None:
        taken = set(known) | {row.digest for row in rows}
        pseudo = _pseudo(journal, manifest, taken, (pseudo_label_above, pseudo_weight, pseudo_per_class), layout, labels)
    origin = {
        "journal": files,
        "model": {name: (manifest or {}).get(name) for name in ("name", "version", "run")},
        "training": [str(one) for one in training],
    }
    settings = {"since": since.isoformat() if since else None, "conflicts": conflicts, "weight": weight, "minimum": minimum}
    _write(path, layout, fresh, {**origin, "settings": settings, **facts, **found.told()})
    pseudo_path = path.with_name(f"{path.stem}.pseudo{path.suffix}")
    if pseudo:
        settings = {"pseudo_label_above": pseudo_label_above, "pseudo_weight": pseudo_weight, "pseudo_per_class": pseudo_per_class}
        _write(pseudo_path, layout, pseudo, {**origin, "settings": settings})
    else:
        _remove(pseudo_path)  # of an earlier collection: it must not be taken for part of this one
    return Collected(
        path=path,
        pseudo_path=pseudo_path if pseudo else None,
        rows=len(fresh),
        pseudo_rows=len(pseudo),
        labels=dict(Counter(row.label for row in fresh)),
        **found.told(),
    )


def _check(conflicts: str, weight: float, above: float | None, pseudo_weight: float, manifest: Mapping[str, Any] | None) -> None:
    if conflicts not in ("last", "drop"):
        raise ConfigError(f"conflicts {conflicts!r}: expected last or drop. Leave it out for last.")
    for name, value in (("weight", weight), ("pseudo weight", pseudo_weight)):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} {value}: expected a number above 0. Leave it out for the default.")
    if above is not None and not 0.5 <= above <= 1:
        raise ConfigError(f"pseudo-labels above {above}: expected a probability from 0.5 to 1, such as 0.98.")
    if above is not None and manifest is None:
        raise ConfigError(
            "pseudo-labels need the manifest of the model, which says which texts are held out for test. Name the published model."
        )


# ---- what people said ----


def _labelled(
    folder: Path,
    since: str,
    conflicts: str,
    weight: float,
    layout: Layout,
    labels: Labels,
    manifest: Mapping[str, Any] | None,
    found: _Findings,
) -> tuple[list[Row], dict[str, Any]]:
    """One row a text, and what the provenance says of where the rows come from."""
    last = {record_id: given[-1] for record_id, given in votes(folder).items() if given[-1]["time"] >= since}
    # Turns, not times: two labels may share a millisecond, and clocks are set back.
    turns = {record_id: turn for turn, record_id in enumerate(last)}
    reasons: dict[str, str] = {}  # why a record was no use so far: client and server may both have written it, one of them without the text
    texts: dict[bytes, list[tuple[Record, Record, Row]]] = {}
    for record in read(folder):
        vote = last.get(record["id"]) if record.get("kind") == "request" else None
        if vote is None:
            continue
        label = labels.parse(vote["label"])
        reason = layout.refusal(record)
        if manifest is not None and record.get("model") != manifest.get("name"):
            reason = "of another model"
        elif label is None:
            reason = "label that the model has not"
        if reason or label is None:
            reasons[record["id"]] = reason
            continue
        del last[record["id"]]
        digest = text_digest(record["text"], record.get("text_pair"))
        row = Row(record["id"], record["text"], record.get("text_pair"), label, weight, "feedback", digest)
        texts.setdefault(digest, []).append((vote, record, row))
    for record_id, vote in last.items():
        found.leave_out(reasons.get(record_id, "record not in the journal any more"), id=record_id, label=vote["label"])
    rows = []
    for given in texts.values():
        given.sort(key=lambda one: turns[one[2].id])
        row = given[-1][2]
        differ = len({one.label for _, _, one in given}) > 1
        if differ:
            found.conflicts += 1
            kept = row.label if conflicts == "last" else None
            found.note("conflicts", ids=[one.id for _, _, one in given], labels=[one.label for _, _, one in given], kept=kept)
        if differ and conflicts == "drop":
            found.left_out["labelled differently"] += len(given)
            continue
        if len(given) > 1:
            found.left_out["same text again"] += len(given) - 1
        rows.append(row)
    every = [(vote, record) for given in texts.values() for vote, record, _ in given]
    facts = {
        "labelled_by": dict(Counter(str(vote.get("by") or "unnamed") for vote, _ in every)),
        "labelled": _span(vote for vote, _ in every),
        "answered_by": dict(Counter(f"{record.get('model')} {record.get('version')}" for _, record in every)),
        "answered": _span(record for _, record in every),
    }
    return rows, facts


def _span(records: Iterable[Record]) -> dict[str, str] | None:
    times = [record["time"] for record in records]
    return {"from": min(times), "to": max(times)} if times else None


def _is_new(row: Row, known: Mapping[bytes, str], found: _Findings) -> bool:
    before = known.get(row.digest)
    if before == row.label:
        found.leave_out("already in the training set", id=row.id, label=row.label)
        return False
    if before is not None:
        found.contradictions += 1
        found.note("contradictions", id=row.id, label=row.label, training=before)
    return True


# ---- what the model is sure of ----


def _pseudo(
    folder: Path, manifest: Mapping[str, Any], taken: set[bytes], settings: tuple[float, float, int], layout: Layout, labels: Labels
) -> list[Row]:
    """Of each class the rows with the smallest hashes: the surest ones would be those that teach least."""
    above, weight, per_class = settings
    newest = max((record["version"] or 0 for record in _answered(folder, manifest)), default=0)
    heaps: dict[str, list[tuple[int, bytes]]] = {}
    chosen: dict[bytes, Row] = {}
    for record in _answered(folder, manifest):
        if (record["version"] or 0) != newest or layout.refusal(record):
            continue
        values = record["probabilities"].values()
        sure = min(max(value, 1 - value) for value in values) if labels.multi else max(values)
        label = labels.parse(record.get("label") or "")
        digest = text_digest(record["text"], record.get("text_pair"))
        if sure < above or label is None or digest in taken or digest in chosen or not layout.trains_on(digest):
            continue
        # Not the hash of the split, which has just left out its lower end.
        number = int.from_bytes(hashlib.blake2b(digest, digest_size=8, person=b"pseudo").digest(), "big")
        chosen[digest] = Row(record["id"], record["text"], record.get("text_pair"), label, weight, "pseudo", digest)
        heap = heaps.setdefault(label, [])
        heapq.heappush(heap, (-number, digest))
        if len(heap) > per_class:
            del chosen[heapq.heappop(heap)[1]]
    return [chosen[digest] for _, heap in sorted(heaps.items()) for _, digest in sorted(heap, reverse=True)]


def _answered(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Record]:
    for record in read(folder):
        if record.get("kind") == "request" and record.get("model") == manifest.get("name") and record.get("probabilities"):
            yield record


# ---- what the model knows already ----


def _training_set(training: Sequence[str | Path], layout: Layout, labels: Labels) -> dict[bytes, str]:
    """Digest of each text to its label. A label that occurs in a million rows is one string."""
    known: dict[bytes, str] = {}
    shared: dict[str, str] = {}
    for one in map(Path, training):
        rows = _run_rows(one / "data", labels) if (one / "data" / "labels.json").is_file() else _file_rows(one, layout)
        for text, pair, label in rows:
            parsed = labels.parse(label) or label
            known.setdefault(text_digest(text, pair), shared.setdefault(parsed, parsed))
    return known


def _run_rows(folder: Path, labels: Labels) -> Iterator[tuple[str, str | None, str]]:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise ConfigError(f"{folder.parent}: reading a run's rows needs pyarrow: pip install 'tfpipeline[train]'.") from error
    try:
        names = json.loads((folder / "labels.json").read_text(encoding="utf-8"))["labels"]
        for split in _SPLITS:
            with pyarrow.memory_map(str(folder / f"{split}.arrow")) as source:
                reader = pyarrow.ipc.open_file(source)
                for number in range(reader.num_record_batches):
                    batch = reader.get_batch(number)
                    texts, codes = batch["text"].to_pylist(), batch["label"].to_pylist()
                    pairs = batch["text_pair"].to_pylist() if "text_pair" in batch.schema.names else [None] * len(texts)
                    for text, pair, code in zip(texts, pairs, codes, strict=True):
                        yield text, pair, labels.separator.join(names[one] for one in code) if isinstance(code, list) else names[code]
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{folder}: the run's rows cannot be read: {error}. Name a finished run, or its training files.") from error


def _file_rows(path: Path, layout: Layout) -> Iterator[tuple[str, str | None, str]]:
    """Bad rows are left out: whether they are an error, `tfpipeline data` says."""
    name = path.name.removesuffix(".gz")
    kind = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".txt": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}.get(
        Path(name).suffix.lower()
    )
    if kind is None:
        raise ConfigError(f"{path}: expected the folder of a run, or a .csv, .tsv or .jsonl. Name the run instead of this file.")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline="")
        if kind == "jsonl":
            rows: Iterator[Any] = (json.loads(line) for line in lines if line.strip())
        else:
            cells = csv.reader(lines) if kind == "csv" else csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            header = next(cells, []) if layout.header else [str(place) for place in range(1000)]
            rows = (dict(zip([name.strip() for name in header], row, strict=False)) for row in cells)
        for row in rows:
            text, pair, label = (row.get(layout.names[name]) if isinstance(row, dict) else None for name in ("text", "text_pair", "label"))
            if isinstance(text, str) and label is not None:
                yield text, pair if isinstance(pair, str) else None, label if isinstance(label, str) else str(label)
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as {kind}: {error}. Name the folder of the run instead.") from error


# ---- what is written ----


def _journal_files(folder: Path) -> list[dict[str, Any]]:
    """Taken before the journal is read. It may grow meanwhile: the hash is of the first `bytes` bytes."""
    found = []
    try:
        for path in sorted(folder.glob("*.jsonl")):
            digest, left = hashlib.sha256(), path.stat().st_size
            size = left
            with path.open("rb") as stream:
                while left and (block := stream.read(min(left, 1 << 20))):
                    digest.update(block)
                    left -= len(block)
            found.append({"name": path.name, "bytes": size, "sha256": digest.hexdigest()})
    except OSError as error:
        raise ConfigError(f"journal {folder}: cannot be read: {error.strerror}. Fix its permissions, or try again.") from error
    return found


def _write(path: Path, layout: Layout, rows: Sequence[Row], origin: Mapping[str, Any]) -> None:
    """The provenance last: a file with one that does not have its hash is an older one."""
    data = layout.table(rows)
    write_whole(path, data)
    provenance = {
        "format": 1,
        "kind": rows[0].source,
        "created": to_time(time.time()),
        "sha256": hashlib.sha256(data).hexdigest(),
        "rows": len(rows),
        "labels": dict(Counter(row.label for row in rows)),
        "weighted": any(row.weight != 1 for row in rows),
        **origin,
    }
    write_whole(path.with_name(path.name + PROVENANCE), (json.dumps(provenance, indent=2, ensure_ascii=False) + "\n").encode())


def _remove(path: Path) -> None:
    for one in (path, path.with_name(path.name + PROVENANCE)):
        one.unlink(missing_ok=True)
