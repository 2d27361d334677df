"""The commands that close the loop: monitor, feedback, journal. Frees `serving.cli` from them; the same rules hold.

Only the standard library is imported until a command runs.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Add = Callable[[str, Any, str, str], argparse.ArgumentParser]
JOURNAL = "journal"


def add_commands(command: Add) -> None:
    """Adds the parsers; `command` makes one from name, function, summary and example."""
    monitor = command(
        "monitor",
        _monitor,
        "does a window of the journal still look like what the model was made for?",
        "python -m serving monitor --journal journal --model models/bank --since 24h --html drift.html",
    )
    monitor.add_argument("--model", type=Path, default=Path("models"), metavar="MODEL", help="models/NAME/VERSION, models/NAME, or models")
    _journal_argument(monitor)
    monitor.add_argument("--since", default="", metavar="TIME", help="start of the window: 24h, 7d, 2026-11-24T13:00 (default: all)")
    monitor.add_argument("--until", default="", metavar="TIME", help="its end, not in it (default: now)")
    monitor.add_argument(
        "--reference-since", default="", metavar="TIME", help="start of an earlier window to compare latency and errors with"
    )
    monitor.add_argument("--reference-until", default="", metavar="TIME", help="its end (default: where the window starts)")
    monitor.add_argument(
        "--reference-texts",
        type=Path,
        metavar="FILE",
        help="texts the model was made for: .csv or .jsonl with a column text, or one a line",
    )
    monitor.add_argument("--html", type=Path, metavar="FILE", help="also write one page with plots")

    feedback = command(
        "feedback",
        None,
        "human labels: attach them to answers, list what to label next, collect the next training file",
        'python -m serving feedback attach 4f1c...:0 negative --comment "not positive at all"',
    )
    actions = feedback.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, run: Any, summary: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=summary, description=summary)
        added.add_argument("--json", action="store_true", help="print exactly one JSON document on stdout")
        _journal_argument(added)
        added.add_argument(
            "--model", type=Path, metavar="MODEL", help="the model whose labels are meant: models/NAME (default: not checked)"
        )
        added.set_defaults(run=run)
        return added

    attach = action("attach", _attach, "record what a person says about one answer, or about a file of them")
    attach.add_argument("id", nargs="?", default="", help="the record's id: REQUEST or REQUEST:ROW")
    attach.add_argument("label", nargs="?", default="", help="the right label")
    attach.add_argument("--file", type=Path, metavar="FILE", help="a file that `feedback queue` made and people filled in")
    attach.add_argument("--comment", default="", help="why; kept without identifiers")
    attach.add_argument("--by", default="", metavar="WHO", help="who says so")

    queue = action("queue", _queue, "the texts whose label would teach most: disputed ones, then the least certain")
    queue.add_argument("--count", type=int, default=100, metavar="N", help="most texts (default: 100)")
    queue.add_argument("--by", default="margin", choices=("margin", "entropy"), help="measure of uncertainty (default: margin)")
    queue.add_argument("--since", default="", metavar="TIME", help="only texts asked from then on: 7d, 2026-11-24")
    queue.add_argument("--output", type=Path, metavar="FILE", help="write them for people to fill in (.csv or .jsonl)")

    collect = action("collect", _collect, "write a training file that tfpipeline reads, with where it came from beside it")
    collect.add_argument("output", type=Path, metavar="FILE", help=".csv or .jsonl")
    collect.add_argument("--training", type=Path, action="append", default=[], metavar="FILE", help="training files so far; repeatable")
    collect.add_argument("--minimum", type=int, default=1, metavar="N", help="fewer rows than this are refused (default: 1)")
    collect.add_argument(
        "--pseudo-label-above", type=float, default=None, metavar="P", help="also take answers this confident as labels, with less weight"
    )

    journal = command(
        "journal", None, "look into a journal, or take records out of it", "python -m serving journal delete --id 4f1c... --journal journal"
    )
    looks = journal.add_subparsers(dest="action", metavar="ACTION", required=True)
    count = looks.add_parser("count", help="records by kind, model and code, and torn lines", description="records by kind, model and code")
    delete = looks.add_parser("delete", help="take records out for good", description="take records out for good")
    delete.add_argument("--id", action="append", default=[], metavar="ID", help="of a record, or of a request for all its rows; repeatable")
    delete.add_argument("--text-key", action="append", default=[], metavar="KEY", help="all records of a text; repeatable")
    for added, run in ((count, _count), (delete, _delete)):
        added.add_argument("--json", action="store_true", help="print exactly one JSON document on stdout")
        _journal_argument(added)
        added.set_defaults(run=run)


def _journal_argument(added: argparse.ArgumentParser) -> None:
    added.add_argument("--journal", type=Path, default=Path(JOURNAL), metavar="DIR", help=f"the journal's folder (default: {JOURNAL})")


# ---- the commands: each returns (document for --json, text for people), and an exit code where it is not 0 ----


def _monitor(options: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    from serving import journal, monitor
    from serving.registry import open_published

    def time(text: str) -> Any:
        return monitor.moment(text) if text else None

    records = journal.read(_checked_journal(options))
    report = monitor.monitor(
        records,
        open_published(options.model).manifest,
        reference_texts=_texts(options.reference_texts) if options.reference_texts else None,
        since=time(options.since),
        until=time(options.until),
        reference_since=time(options.reference_since),
        reference_until=time(options.reference_until),
    )
    text = report.text()
    if options.html:
        _write(options.html, report.html())
        text += f"\n\nReport:    {options.html}"
    return report.to_dict(), text, report.exit_code


def _attach(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from serving import feedback
    from serving.errors import ConfigError

    folder, manifest = _checked_journal(options), _manifest(options)
    if options.file:
        result: Any = feedback.attach_file(folder, options.file, options.by, manifest=manifest)
    elif options.id and options.label:
        result = feedback.attach(folder, options.id, options.label, options.comment, options.by, manifest=manifest)
    else:
        raise ConfigError("feedback attach: expected an id and a label, or --file FILE.")
    return result.to_dict(), result.render()


def _queue(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from serving import feedback, monitor

    since = monitor.moment(options.since) if options.since else None
    found = feedback.queue(_checked_journal(options), count=options.count, by=options.by, manifest=_manifest(options), since=since)
    text = found.render()
    if options.output:
        found.write(options.output)
        text += f"\n\nWritten:   {options.output}; fill in the labels, then: python -m serving feedback attach --file {options.output}"
    return found.to_dict(), text


def _collect(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from serving import feedback

    result = feedback.collect(
        _checked_journal(options),
        options.output,
        training=options.training,
        minimum=options.minimum,
        manifest=_manifest(options),
        pseudo_label_above=options.pseudo_label_above,
    )
    return result.to_dict(), result.render()


def _count(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from collections import Counter

    from serving import journal

    counts: Counter[tuple[str, str, str]] = Counter()
    records = journal.read(_checked_journal(options))
    for record in records:
        counts[record.get("kind", ""), str(record.get("model", "")), str(record.get("code", ""))] += 1
    rows = [{"kind": kind, "model": model, "code": code, "records": number} for (kind, model, code), number in sorted(counts.items())]
    lines = [f"{row['kind']:<10} {row['model']:<20} {row['code']:<20} {row['records']:>10}" for row in rows]
    return {"records": rows, "torn_lines": records.torn}, "\n".join([*lines, f"torn lines: {records.torn}"])


def _delete(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from serving import journal
    from serving.errors import ConfigError

    if not options.id and not options.text_key:
        raise ConfigError("journal delete: expected --id or --text-key.")
    number = journal.delete(_checked_journal(options), ids=options.id, text_keys=options.text_key)
    return {"deleted": number}, f"Deleted:   {number} records"


def _checked_journal(options: argparse.Namespace) -> Path:
    from serving.errors import ConfigError

    if not options.journal.is_dir():
        raise ConfigError(f"{options.journal}: no such journal. Give its folder with --journal; a server writes one with --journal=DIR.")
    return Path(options.journal)


def _manifest(options: argparse.Namespace) -> dict[str, Any] | None:
    from serving.registry import open_published

    return open_published(options.model).manifest if options.model else None


def _texts(path: Path) -> Iterator[str]:
    from serving.errors import ConfigError

    try:
        with path.open(encoding="utf-8", newline="") as stream:
            if path.suffix == ".csv":
                yield from (row.get("text") or "" for row in csv.DictReader(stream))
            elif path.suffix == ".jsonl":
                yield from (str(json.loads(line).get("text", "")) for line in stream if line.strip())
            else:
                yield from (line.rstrip("\r\n") for line in stream)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}. Expected .csv or .jsonl with a column text, or one text a line.") from error


def _write(path: Path, text: str) -> None:
    from serving.errors import ConfigError

    try:
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}.") from error
