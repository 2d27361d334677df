"""Does anybody notice when versions are pushed and rolled back under load?

Clients ask for the label `stable` without a pause for a minute or more, while ten versions are pushed and five rolled back. Counted: requests that
failed, answers of a version that was not labelled `stable` at any moment of the request, and answers that differ from that version's own.

    python benchmarks/version_swaps.py [--model models/sentiment] [--clients 8]

Without --model: small versions whose answers tell them apart. With it: copies of that exported model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from serving import Client
from serving.push import Target, push, rollback
from serving.registry import Published, Registry, open_published
from serving.stores import FolderStore

PUSHES, ROLLBACKS = 10, 5
TEXT = "the app lost my payment"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an exported model to copy; default: small numbered versions")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0, help="least time of traffic")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sources = versions(root / "exports", options.model)
        name = sources[0].name
        port = free_port()
        (root / "models").mkdir()
        with server(root, port):
            target = Target(f"127.0.0.1:{port}", FolderStore(root / "models"))
            labelled = Labelled()
            labelled.move(lambda on_step: push(sources[0].path, [target], on_step=on_step)[0].version)
            figures = run(name, sources[1:], target, labelled, options)
    print(
        json.dumps(
            {
                "benchmark": "version_swaps",
                "model": "numbered" if options.model is None else "exported",
                "clients": options.clients,
                **figures,
            }
        )
    )
    if figures["failed"] or figures["not_labelled"]:
        raise SystemExit(1)


def versions(root: Path, model: Path | None) -> list[Published]:
    """Eleven versions to push, all with different hashes."""
    from numbered_models import publish

    if model is None:
        return [publish(root, number) for number in range(PUSHES + 1)]
    source = open_published(model)
    made = []
    for number in range(PUSHES + 1):
        with Registry(root).publishing(source.name) as staged:
            shutil.copytree(source.path, staged.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
            (staged.folder / "assets.extra" / "copy.txt").write_text(str(number))
            kept = {key: value for key, value in source.manifest.items() if key not in ("name", "version", "parent", "files")}
            made.append(staged.publish(kept))
    return made


@contextlib.contextmanager
def server(root: Path, port: int) -> Iterator[None]:
    flags = [f"--models_root={root / 'models'}", f"--port={port}", "--enable_batching", "--max_num_load_retries=0"]
    log = (root / "server.log").open("w")
    process = subprocess.Popen([sys.executable, "-m", "serving", "serve", *flags], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(60)
        log.close()


class Labelled:
    """Which version was `stable` when: `[version, from, until]`, as wide as the call that moved the label."""

    def __init__(self) -> None:
        self.spans: list[list[float]] = []

    def move(self, change: Any) -> float:
        started = time.monotonic()
        moving = [started]

        def on_step(step: str) -> None:
            if step == "label":
                moving[0] = time.monotonic()

        version = change(on_step)
        now = time.monotonic()
        if self.spans:
            self.spans[-1][2] = now
        self.spans.append([version, moving[0], float("inf")])
        return now - started

    def allowed(self, started: float, ended: float) -> set[int]:
        return {int(version) for version, since, until in self.spans if since <= ended and until >= started}


def run(name: str, sources: list[Published], target: Target, labelled: Labelled, options: argparse.Namespace) -> dict[str, Any]:
    stop = threading.Event()
    answers: list[tuple[float, float, int, Any]] = []
    failures: list[str] = []

    def ask() -> None:
        with Client(target.address, model=name, version_label="stable", timeout_s=30, max_attempts=1) as client:
            while not stop.is_set():
                started = time.monotonic()
                try:
                    result = client.predict([TEXT])
                    answers.append((started, time.monotonic(), result.version, result[0]))
                except Exception as error:
                    failures.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=ask) for _ in range(options.clients)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    pushes, rollbacks = [], []
    try:
        for number, source in enumerate(sources):
            pushes.append(labelled.move(lambda on_step, path=source.path: push(path, [target], on_step=on_step)[0].version))
            if number % 2:
                rollbacks.append(labelled.move(lambda on_step: rollback([target], name, on_step=on_step)[0].version))
        while time.monotonic() - began < options.seconds:
            time.sleep(0.1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return judge(answers, failures, labelled, pushes, rollbacks, time.monotonic() - began)


def judge(
    answers: list[Any], failures: list[str], labelled: Labelled, pushes: list[float], rollbacks: list[float], took: float
) -> dict[str, Any]:
    from numbered_models import number_of

    wrong = sum(version not in labelled.allowed(started, ended) for started, ended, version, _ in answers)
    by_version: dict[int, set[Any]] = {}
    for _, _, version, prediction in answers:
        number = number_of(prediction) if prediction.label.isdigit() and "other" in prediction.probabilities else prediction.label
        by_version.setdefault(version, set()).add(number)
    seconds = [ended - started for started, ended, _, _ in answers]
    return {
        "seconds": round(took, 1),
        "answers": len(answers),
        "failed": len(failures),
        "failures": Counter(failures).most_common(3),
        "not_labelled": wrong,
        "versions_seen": len(by_version),
        "mixed": sum(len(numbers) > 1 for numbers in by_version.values()),
        "pushes": len(pushes),
        "push_s": [round(min(pushes), 2), round(float(np.median(pushes)), 2), round(max(pushes), 2)],
        "rollbacks": len(rollbacks),
        "rollback_s": [round(min(rollbacks), 2), round(float(np.median(rollbacks)), 2), round(max(rollbacks), 2)],
        "p50_ms": round(float(np.percentile(seconds, 50)) * 1000, 1),
        "p99_ms": round(float(np.percentile(seconds, 99)) * 1000, 1),
        "max_ms": round(max(seconds) * 1000, 1),
    }


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


if __name__ == "__main__":
    main()
