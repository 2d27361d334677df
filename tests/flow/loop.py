"""The loop that makes a service better, on real processes: train -> push -> requests -> corrections -> drift -> retrain -> gated push -> right answers.

`make demo` tells it for a person to watch (`python tests/flow/loop.py`); tests/flow/test_loop.py runs it small and checks every step.

The story: a model learns from messages about a bank. Then a new product comes, and people speak of it in words that the model has never seen. It answers many of
them wrongly, the monitor sees that the texts have changed, people correct the answers, and the next model learns from the corrections.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from serving import Client

REQUESTS = 500
THINGS = (
    "crypto wallet",
    "wallet",
    "staking",
    "token swap",
    "cold storage",
    "airdrop",
    "seed phrase backup",
    "gas fee",
    "ledger sync",
    "mining pool",
)
GOOD = ("slaps", "is straight fire", "is goated", "is a total W", "is bussin", "is lit")
BAD = ("got rugged", "is mid", "is a total L", "is cooked", "is rekt", "is borked")
AFTER = ("", " fr", " no cap", " today", " tbh", " again", " right now")


@dataclass
class Story:
    """What is trained, and what is asked.

    Attributes:
        train: arguments of `tfpipeline train`.
        name: of the model.
        ordinary: texts like those of the training.
        texts: the training file: what the monitor compares new texts with.
        retrain: arguments of `tfpipeline retrain`.
    """

    train: Sequence[str]
    name: str
    ordinary: Sequence[str]
    texts: Path
    retrain: Sequence[str] = ()


@dataclass
class Ending:
    """What came of it."""

    versions: list[int] = field(default_factory=list)
    verdict_before: str = ""
    verdict: str = ""
    corrected: int = 0
    right_before: float = 0.0
    right_after: float = 0.0
    ordinary_same: float = 0.0
    retrained: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def novel_texts() -> list[tuple[str, str]]:
    """Texts about the new product, with the label a person would give."""
    rows = [(f"the {thing} {word}{after}", "positive") for thing, word, after in itertools.product(THINGS, GOOD, AFTER)]
    rows += [(f"the {thing} {word}{after}", "negative") for thing, word, after in itertools.product(THINGS, BAD, AFTER)]
    random.Random(0).shuffle(rows)
    return rows


def tell(folder: Path, story: Story, say: Callable[[str], None]) -> Ending:
    """Runs the story in an empty folder."""
    started, ending = time.monotonic(), Ending()
    novel = novel_texts()[:200]
    truth = dict(novel)
    ordinary = list(itertools.islice(itertools.cycle(story.ordinary), REQUESTS - len(novel)))

    say("1. Train a model, and publish it.")
    run("tfpipeline", "train", *story.train, cwd=folder)
    run("tfpipeline", "export", "latest", cwd=folder)

    say("2. Start a server that keeps a journal, and push the model to it.")
    with server(folder) as (address, rest):
        ending.versions.append(push(folder, address))

        say(f"3. {len(ordinary)} requests as usual. What does the monitor say?")
        with Client(address, model=story.name, version_label="stable") as client:
            before = ask(client, ordinary)
            ending.verdict_before = monitor(folder, story, say)

            say(f"4. A new product: {len(novel)} requests in new words. And now?")
            since = datetime.now(timezone.utc).isoformat()
            answers = ask(client, [text for text, _ in novel])
            ending.verdict = monitor(folder, story, say, "--since", since)
        ending.right_before = share(answers[text][0] == truth[text] for text in truth)
        say(f"   {ending.right_before:.0%} of the new texts were answered rightly.")

        say("5. People correct the answers: one over HTTP, as the page does, the others in a file.")
        ending.corrected = correct(folder, rest, story.name, {text: (answers[text][1], label) for text, label in novel})

        say("6. Collect the corrections, go on training from the former best, compare on the same rows, publish only if not worse.")
        collect = ["feedback", "collect", "feedback.csv", "--journal", "journal", "--model", f"models/{story.name}"]
        run("serving", *collect, cwd=folder)
        ending.retrained = run("tfpipeline", "retrain", "--data", "feedback.csv", *story.retrain, cwd=folder)
        say(f"   {ending.retrained['comparison']['verdict']}")

        say("7. Push the new model. Ask again.")
        ending.versions.append(push(folder, address))
        with Client(address, model=story.name, version_label="stable") as client:
            again = ask(client, [text for text, _ in novel])
            after = ask(client, list(dict.fromkeys(ordinary)))
        ending.right_after = share(again[text][0] == truth[text] for text in truth)
        ending.ordinary_same = share(after[text][0] == before[text][0] for text in after)
        say(
            f"   {ending.right_after:.0%} of the new texts are answered rightly now, {ending.ordinary_same:.0%} of the usual ones as before."
        )
    ending.seconds = time.monotonic() - started
    return ending


def run(module: str, *arguments: str, cwd: Path, allowed: Sequence[int] = (0,)) -> dict[str, Any]:
    """One command with `--json`, as a process of its own."""
    command = [sys.executable, "-m", module, *arguments, "--json"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode not in allowed:
        raise SystemExit(f"{' '.join(command[1:])}\nended with {done.returncode}\n{done.stderr[-3000:]}{done.stdout[-1000:]}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[str, int]]:
    """The embedded server over `models/` with a journal."""
    port, rest = free_port(), free_port()
    command = [
        sys.executable,
        "-m",
        "serving",
        "serve",
        "--models_root=models",
        f"--port={port}",
        f"--rest_api_port={rest}",
        "--enable_batching",
    ]
    command += ["--journal=journal", "--journal_text=redacted", "--max_num_load_retries=0"]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{rest}/readyz", timeout=5):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((folder / "server.log").read_text()[-3000:])
            time.sleep(0.05)
        yield f"127.0.0.1:{port}", rest
    finally:
        process.terminate()
        process.wait(60)


def push(folder: Path, address: str) -> int:
    return int(run("serving", "push", "--target", address, cwd=folder)["outcomes"][0]["version"])


def ask(client: Client, texts: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Label and record id of each text, one request a text, as users ask."""
    found = {}
    for text in texts:
        answer = client.predict([text])[0]
        found[text] = (answer.label, answer.id)
    return found


def monitor(folder: Path, story: Story, say: Callable[[str], None], *window: str) -> str:
    flush(folder)
    arguments = [
        "--journal",
        "journal",
        "--model",
        f"models/{story.name}",
        "--reference-texts",
        str(story.texts),
        "--html",
        "drift.html",
        *window,
    ]
    found = run("serving", "monitor", *arguments, cwd=folder, allowed=(0, 3))
    level, reasons = str(found["level"]), found["reasons"]
    say(f"   {level.upper()}" + "".join(f"\n     {reason}" for reason in reasons[:4]))
    return level


def flush(folder: Path) -> None:
    """Waits until the journal has stopped growing: it is written once a second."""
    size, deadline = -1, time.monotonic() + 30
    while time.monotonic() < deadline:
        now = sum(path.stat().st_size for path in (folder / "journal").glob("*.jsonl"))
        if now == size and now:
            return
        size = now
        time.sleep(1.2)


def correct(folder: Path, rest: int, name: str, answers: dict[str, tuple[str, str]]) -> int:
    flush(folder)
    items = list(answers.values())
    record, label = items[0]
    body = json.dumps({"id": record, "label": label, "comment": "said over HTTP"}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{rest}/feedback", body, {"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        if answer.status not in (200, 201):
            raise SystemExit(f"POST /feedback: {answer.status}")
    lines = [json.dumps({"id": record, "label": label, "comment": ""}) for record, label in items[1:]]
    (folder / "labels.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = run("serving", "feedback", "attach", "--file", "labels.jsonl", "--by", "demo", "--model", f"models/{name}", cwd=folder)
    return 1 + len(found["attached"])


def share(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="bank")
    parser.add_argument("--keep", action="store_true", help="leave the folder for a look")
    options = parser.parse_args()
    import csv

    corpus = Path(__file__).parents[2] / "tfpipeline" / "samples" / "bank_feedback.csv"
    with corpus.open(encoding="utf-8", newline="") as stream:
        ordinary = [row["text"] for row in csv.DictReader(stream)]
    random.Random(1).shuffle(ordinary)
    folder = Path(tempfile.mkdtemp(prefix="loop-"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    story = Story(["--preset", options.preset], options.preset, ordinary, corpus, ["--set", "train.epochs=2"])

    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    ending = tell(folder, story, say)
    say(f"\nDone in {ending.seconds:.0f} s: versions {', '.join(map(str, ending.versions))}, {ending.corrected} corrections.")
    if options.keep:
        say(f"Kept: {folder} (drift.html, journal/, models/, runs/)")
    else:
        shutil.rmtree(folder)
    return 0 if ending.right_after > ending.right_before else 1


if __name__ == "__main__":
    sys.exit(main())
