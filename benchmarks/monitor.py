"""How fast and how large is the monitor on a big journal, and is it quiet and loud at the right times on real texts?

    python benchmarks/monitor.py                          a journal of 1,000,000 records, made up, read as the command reads it
    python benchmarks/monitor.py --texts                  the same with a text of about 100 characters in every record
    python benchmarks/monitor.py --proof                  50 windows of the training distribution, and drifted ones; TF-IDF makes the answers
    python benchmarks/monitor.py --proof --scored test.jsonl dev.jsonl --drifted bank=bank.jsonl --truth sst2.tsv
                                                          the same with the answers of any model, from tfpipeline predict --output

The journal is written to a temporary folder and measured in a process of its own, beside `json.loads` alone over the same lines. The corpora are not
part of the project: put them under ../shared/data, or name their folder in TFPIPELINE_DATA. What it does not show: slow disks; drifts that come
slowly, or that change no input and no answer.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import monitor_texts as real
from tests.monitor_texts import Row, Scorer

SIZES = (100, 200, 300, 500)
MIXES = {
    "80 % positive": {"positive": 0.8, "negative": 0.2},
    "80 % negative": {"positive": 0.2, "negative": 0.8},
    "90 % positive": {"positive": 0.9, "negative": 0.1},
    "90 % negative": {"positive": 0.1, "negative": 0.9},
}
MANIFEST: dict[str, Any] = {
    "name": "bank",
    "version": 20261124130622,
    "labels": ["negative", "neutral", "positive"],
    "task": "single_label",
    "reference": {
        "rows": 300,
        "predicted": {"negative": 100, "neutral": 100, "positive": 100},
        "confidence": {"edges": [step / 20 for step in range(21)], "counts": [0] * 10 + [30] * 10},
        "tokens": {"edges": [0, 8, 16, 32, 1_000_000], "counts": [100, 100, 99, 1]},
        "characters": {"edges": [0, 50, 100, 150, 1_000_000], "counts": [66, 83, 83, 68]},
        "scripts": {"Latin": 300},
        "unknown_share": 0.01,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--texts", action="store_true")
    parser.add_argument("--proof", action="store_true")
    parser.add_argument("--windows", type=int, default=50)
    parser.add_argument("--requests", type=int, default=500, help="of a window")
    parser.add_argument("--reference", type=int, default=1_000, help="rows of the reference")
    parser.add_argument(
        "--scored", type=Path, nargs="+", default=[], help="texts of the training distribution that the model was not trained on"
    )
    parser.add_argument("--drifted", action="append", default=[], metavar="NAME=FILE", help="others; repeatable")
    parser.add_argument("--truth", type=Path, nargs="+", default=[], help="text TAB label, for windows with another mix of labels")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
    elif options.proof:
        proof(options)
    else:
        speed(options.records, options.texts)


def speed(records: int, texts: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        megabytes = write_journal(Path(folder), records, texts)
        command = [sys.executable, __file__, "--measure", folder]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    print(json.dumps({"benchmark": "monitor", "records": records, "texts": texts, "journal_mb": round(megabytes), **found}))


def measure(folder: Path) -> dict[str, Any]:
    from serving import journal
    from serving.monitor import monitor

    started = time.perf_counter()
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as stream:
            for line in stream:
                json.loads(line)
    parsed = time.perf_counter() - started
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    report = monitor(journal.read(folder), MANIFEST)
    judged = time.perf_counter() - started
    started = time.perf_counter()
    page = report.html()
    return {
        "seconds": round(judged, 2),
        "json_loads_alone_seconds": round(parsed, 2),
        "page_seconds": round(time.perf_counter() - started, 3),
        "page_kb": round(len(page.encode()) / 1000),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
        "peak_before_mb": round(before / 1000),
        "rows": report.window.rows,
        "level": report.verdict.level,
    }


def write_journal(folder: Path, records: int, texts: bool) -> float:
    """Files of 100,000 records each, as a journal rotates; returns megabytes."""
    chooser, start, size = random.Random(0), datetime(2026, 11, 24, tzinfo=timezone.utc), 0
    labels = MANIFEST["labels"]
    words = (
        "the",
        "app",
        "lost",
        "my",
        "payment",
        "and",
        "nobody",
        "at",
        "branch",
        "would",
        "tell",
        "why",
        "this",
        "card",
        "was",
        "blocked",
        "again",
    )
    for first in range(0, records, 100_000):
        lines = []
        for number in range(first, min(first + 100_000, records)):
            label, score = chooser.choice(labels), round(chooser.uniform(0.5, 1), 6)
            other = round((1 - score) / 2, 6)
            moment = start + timedelta(milliseconds=80 * number)
            record: dict[str, Any] = {
                "kind": "request", "time": moment.isoformat(timespec="milliseconds"), "id": f"{chooser.getrandbits(128):032x}:0",
                "model": MANIFEST["name"], "version": MANIFEST["version"], "version_label": "stable", "source": "server",
                "code": "OK" if number % 500 else "UNAVAILABLE", "ms": round(chooser.lognormvariate(2, 0.4), 3), "label": label, "score": score,
                "probabilities": {name: score if name == label else other for name in labels}, "length": chooser.randint(10, 190),
                "tokens": chooser.randint(3, 30), "unknown": 0.0 if chooser.random() < 0.9 else 0.1, "text_key": f"{chooser.getrandbits(128):032x}",
            }  # fmt: skip
            if texts:
                record["text"] = " ".join(chooser.choices(words, k=22))
            lines.append(json.dumps(record, separators=(",", ":")))
        name = f"{start + timedelta(milliseconds=80 * first):%Y%m%dT%H%M%S}.000Z-bench-{first // 100_000 + 1:06d}.jsonl"
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        size += (folder / name).stat().st_size
    return size / 1e6


def proof(options: argparse.Namespace) -> None:
    if options.scored:
        truths = dict(line.rsplit("\t", 1) for path in options.truth for line in path.read_text(encoding="utf-8").splitlines())
        home = [row for path in options.scored for row in read_scored(path, truths)]
        others = {name: read_scored(Path(path), {}) for name, path in (one.split("=", 1) for one in options.drifted)}
        names = dict(zip(("negative", "positive"), sorted({row.truth for row in home if row.truth}), strict=False))
        mixes = {name: {names[label]: share for label, share in shares.items()} for name, shares in MIXES.items()} if names else {}
    else:
        scorer = Scorer(real.read_sst2())
        home, mixes = scorer.held_out, MIXES
        others = {"bank corpus": scorer.score(real.read_bank()), "Chinese hotel reviews": scorer.score(real.read_hotel())}
    known = [row.label == row.truth for row in home if row.truth]
    print(json.dumps({"proof": "texts", "held_out": len(home), "accuracy": round(sum(known) / len(known), 3) if known else None}))
    for texts in (True, False):
        levels: Counter[str] = Counter()
        started = time.perf_counter()
        for number in range(options.windows):
            reference, rest = real.split(home, options.reference, number % 5)
            levels[real.judged(random.Random(number).sample(rest, options.requests), reference, texts).verdict.level] += 1
        each = round((time.perf_counter() - started) / options.windows, 2)
        print(
            json.dumps({"proof": "training distribution", "texts": texts, "requests": options.requests, **levels, "seconds_each": each}),
            flush=True,
        )
    for texts in (True, False):
        for size in SIZES:
            alarms = {
                name: share_of_alarms([random.Random(seed).sample(rows, size) for seed in range(10)], home, options.reference, texts)
                for name, rows in others.items()
            }
            for name, shares in mixes.items():
                _, rest = real.split(home, options.reference, 0)
                windows = [real.mixed(rest, shares, size, seed) for seed in range(10)]
                alarms[name] = share_of_alarms(windows, home, options.reference, texts)
            print(json.dumps({"proof": "alarms of 10 drifted windows", "texts": texts, "requests": size, **alarms}), flush=True)


def share_of_alarms(windows: list[list[Row]], home: list[Row], reference_rows: int, texts: bool) -> int:
    reference, _ = real.split(home, reference_rows, 0)
    return sum(real.judged(window, reference, texts).verdict.level == "alarm" for window in windows)


def read_scored(path: Path, truths: dict[str, str]) -> list[Row]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Row(row["text"], truths.get(row["text"], ""), str(row["label"]), row["score"]) for row in rows]


if __name__ == "__main__":
    main()
