"""How fast, and in how much memory, is a raw CSV of a million rows read, validated, deduplicated and split?

    python benchmarks/data_stream.py [--rows 1000000] [--repeat 1]

Each measurement is a child process of its own, so that its peak memory is its own: `prepare` into a folder with the near-duplicate search off,
`prepare` with the search on as configured by default (a sample above `data.near_duplicate_max_rows`), and a peer that does less: a plain
`csv.DictReader` with a dict of texts seen, everything in memory, no checks beyond "is there a text and a label", no split, nothing written.

Prints one line of JSON. Does not show: other formats, a cold disk cache, texts that are all near-duplicates of each other, tokenisation.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WORDS = [
    "account",
    "app",
    "answer",
    "balance",
    "bank",
    "branch",
    "bill",
    "call",
    "card",
    "cash",
    "charge",
    "cheque",
    "clerk",
    "code",
    "counter",
    "credit",
    "customer",
    "day",
    "debit",
    "deposit",
    "desk",
    "email",
    "error",
    "evening",
    "fee",
    "form",
    "fraud",
    "help",
    "hour",
    "interest",
    "letter",
    "limit",
    "line",
    "loan",
    "login",
    "manager",
    "message",
    "minute",
    "mobile",
    "money",
    "month",
    "mortgage",
    "morning",
    "number",
    "office",
    "online",
    "overdraft",
    "password",
    "payment",
    "people",
    "phone",
    "pin",
    "place",
    "point",
    "problem",
    "queue",
    "rate",
    "refund",
    "reply",
    "response",
    "salary",
    "saving",
    "screen",
    "service",
    "statement",
    "support",
    "system",
    "team",
    "ticket",
    "time",
    "transfer",
    "update",
    "visit",
    "wait",
    "website",
    "week",
    "window",
    "year",
    "annoying",
    "bad",
    "broken",
    "calm",
    "clear",
    "cold",
    "confusing",
    "correct",
    "cheap",
    "easy",
    "endless",
    "excellent",
    "expensive",
    "fast",
    "fair",
    "fine",
    "friendly",
    "good",
    "great",
    "helpful",
    "hidden",
    "honest",
    "impossible",
    "kind",
    "late",
    "lost",
    "lovely",
    "new",
    "nice",
    "old",
    "patient",
    "perfect",
    "polite",
    "poor",
    "quick",
    "rude",
    "safe",
    "shiny",
    "short",
    "simple",
    "slow",
    "small",
    "sorry",
    "strange",
    "terrible",
    "tiny",
    "useless",
    "warm",
    "wrong",
    "again",
    "always",
    "almost",
    "because",
    "before",
    "but",
    "every",
    "finally",
    "for",
    "from",
    "in",
    "into",
    "never",
    "nobody",
    "of",
    "on",
    "once",
    "over",
    "still",
    "the",
    "their",
    "then",
    "there",
    "to",
    "twice",
    "under",
    "until",
    "very",
    "with",
    "without",
    "yet",
]
LABELS = ("negative", "neutral", "positive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=1, help="runs of each measurement; the medians are reported")
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "FILE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(*options.child)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.csv"
        made = generate(file, options.rows)
        runs: dict[str, list[dict[str, Any]]] = {"off": [], "on": [], "peer": []}
        for number in range(options.repeat):
            for what, found in runs.items():
                found.append(measure(what, file, Path(folder) / f"{what}-{number}"))
        off, on, peer = (median(found) for found in runs.values())
        searched = on["rows_searched"]
        # The step measured on its own, inside the same process: the difference of two whole runs would be noise on a shared machine.
        print(
            json.dumps(
                {
                    "benchmark": "data_stream",
                    "rows": options.rows,
                    "file_mib": round(file.stat().st_size / 2**20, 1),
                    "seconds": off["seconds"],
                    "rows_per_second": round(options.rows / off["seconds"]),
                    "peak_rss_mib": off["peak_rss_mib"],
                    "seconds_with_near_duplicates": on["seconds"],
                    "peak_rss_mib_with_near_duplicates": on["peak_rss_mib"],
                    "near_duplicates": {
                        "searched": on["searched"],
                        "rows": searched,
                        "seconds": on["near_seconds"],
                        "rows_per_second": round(searched / on["near_seconds"]),
                        "groups": on["groups"],
                    },
                    "peer_dict_reader": {"seconds": peer["seconds"], "peak_rss_mib": peer["peak_rss_mib"]},
                    "found": {name: off[name] for name in ("kept", "duplicates", "rejects")},
                    "made": made,
                    "repeat": options.repeat,
                    "target": {"seconds": 90, "peak_rss_mib": 1500, "met": on["seconds"] < 90 and on["peak_rss_mib"] < 1500},
                    "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]},
                }
            )
        )


def generate(file: Path, rows: int) -> dict[str, int]:
    """Distinct texts of about 100 bytes; 3 % exact duplicates, 1 % near-duplicates (one word more), 0.2 % bad rows."""
    random_ = random.Random(7)
    made = {"duplicates": 0, "near_duplicates": 0, "bad": 0}
    recent: list[str] = ["the card came late and nobody told me why it took so long"]
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("text", "label"))
        for number in range(rows):
            kind = random_.random()
            label = LABELS[number % 3]
            if kind < 0.002:
                made["bad"] += 1
                writer.writerow((("", label), ("a text without a label", ""), ("one", "column", "more"))[number % 3])
                continue
            if kind < 0.032:
                made["duplicates"] += 1
                text = random_.choice(recent)
            elif kind < 0.042:
                made["near_duplicates"] += 1
                text = f"{random_.choice(recent)} {random_.choice(WORDS)}"
            else:
                text = " ".join(random_.choices(WORDS, k=random_.randint(10, 24)))
                text = f"{text}, café {number % 97}!" if number % 10 == 0 else text
                if len(recent) < 50_000:
                    recent.append(text)
                else:
                    recent[number % 50_000] = text
            writer.writerow((text, label))
    return made


def measure(what: str, file: Path, folder: Path) -> dict[str, Any]:
    answer = subprocess.run(
        [sys.executable, __file__, "--child", what, str(file), str(folder)], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return dict(json.loads(answer))


def median(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: round(statistics.median(run[name] for run in found), 2) if isinstance(value, int | float) else value
        for name, value in found[0].items()
    }


def child(what: str, file: str, folder: str) -> dict[str, Any]:
    answer = peer(file) if what == "peer" else prepared(what, file, Path(folder))
    return {**answer, "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}


def prepared(near: str, file: str, folder: Path) -> dict[str, Any]:
    from tfpipeline import config
    from tfpipeline.data import near_duplicates, prepare

    near_seconds = 0.0
    search = near_duplicates.groups

    def timed(*arguments: Any) -> Any:
        nonlocal near_seconds
        started = time.perf_counter()
        found = search(*arguments)
        near_seconds = time.perf_counter() - started
        return found

    near_duplicates.groups = timed
    settings = config.load(
        overrides=[f"data.path={file}", f"data.near_duplicates={near}", "data.on_bad_row=quarantine"],
    )
    started = time.perf_counter()
    corpus = prepare(settings.data, folder)
    seconds = time.perf_counter() - started
    report = corpus.report
    return {
        "seconds": round(seconds, 2),
        "near_seconds": round(near_seconds, 2),
        "searched": report["near_duplicates"]["searched"],
        "rows_searched": report["near_duplicates"]["rows_searched"],
        "groups": report["near_duplicates"]["groups"],
        "kept": sum(split["rows"] for split in report["splits"].values()),
        "duplicates": report["duplicates"]["rows"],
        "rejects": report["rejects"]["rows"],
    }


def peer(file: str) -> dict[str, Any]:
    started = time.perf_counter()
    seen: dict[str, str] = {}
    duplicates = bad = 0
    with Path(file).open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            text, label = row["text"], row["label"]
            if not text or not label or None in row:
                bad += 1
            elif text in seen:
                duplicates += 1
            else:
                seen[text] = label
    return {"seconds": round(time.perf_counter() - started, 2), "kept": len(seen), "duplicates": duplicates, "rejects": bad}


if __name__ == "__main__":
    main()
