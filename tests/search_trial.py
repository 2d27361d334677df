"""Stands in for a training in tests of the search: takes the flags of `tfpipeline.search.trial`, answers in half a second, leaves what a run leaves.

Its accuracy is a function of the config, largest at a learning rate of 1e-4. `FAKE_TRIALS`, a JSON object, says which trial does what else: its number (or
the name of its folder) to one of

    nan             fails as a training does whose loss is not finite        oom       fails as one that ran out of memory
    killed          is killed from outside, each time                        killed-once, the first time only
    fault           ends with a traceback                                    wait      runs until it is stopped, then ends like an interrupted training
    wait-once       that, the first time only                                mute      reports no accuracy
    late            as nan, once another training beside it has begun
    bad             is bad in its first epoch, and runs until it is stopped  big       has a model of 100 MB that takes 50 ms
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tfpipeline import config as configs
from tfpipeline import runs
from tfpipeline.search import trial

ROWS = 400


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--measure", action="store_true")
    options = parser.parse_args()
    trial._end_with_the_parent()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    config = configs.load(file=options.config)
    name = options.runs.parent.name
    asked = json.loads(os.environ.get("FAKE_TRIALS", "{}"))
    what = asked.get(name, asked.get(str(int(name)) if name.isdigit() else name, asked.get("all", "")))
    if what.endswith("-once"):
        what = "" if options.runs.is_dir() else what.removesuffix("-once")
    run = runs.create(config, options.runs)
    with (options.runs.parents[2] / "started.txt").open("a", encoding="utf-8") as stream:
        stream.write(f"{name} {os.environ.get('KERASTUNER_TUNER_ID', '')} {os.getpid()}\n")
    deadline = time.monotonic() + 60
    while what == "late" and len(list(options.runs.parents[1].glob("*/runs/*/events.jsonl"))) < 2:
        if time.monotonic() > deadline:
            raise RuntimeError("nobody began beside it")
        time.sleep(0.05)
    if what in ("nan", "late"):
        runs.write_json(options.result, {"error": "TrainingError", "message": "step 3: the loss is nan, so training stopped."})
        return 2
    if what == "oom":
        runs.write_json(options.result, {"error": "OutOfMemory", "message": "the trial ran out of memory"})
        return 2
    if what == "fault":
        raise RuntimeError("a fault")
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    accuracy = 0.9 - 0.1 * abs(math.log10(config.train.learning_rate) + 4) - 0.2 * config.model.dropout + 0.001 * config.runtime.seed
    for epoch in range(1, config.train.epochs + 1):
        value = 0.1 if what == "bad" else accuracy - 0.02 * (config.train.epochs - epoch)
        run.event("epoch", epoch=epoch, validation_accuracy=value, best=True)
        if what in ("bad", "wait") and not stopped.wait(60):
            raise RuntimeError("nobody stopped it")
        if stopped.is_set():
            run.update(status="interrupted")
            return 130
    if config.train.epochs > 8:  # a real one: it would take hours
        time.sleep(1)
    if name[0] in "wd":  # of the final comparison: rows that can be compared
        _answers(run, accuracy, config.runtime.seed)
    validation = {"log_loss": 0.5} if what == "mute" else {"accuracy": accuracy, "macro_f1": accuracy - 0.01, "log_loss": 1 - accuracy}
    big = what == "big"
    runs.write_json(
        options.result,
        {
            "run": run.path.name,
            "best_epoch": config.train.epochs,
            "validation": validation,
            "test": {"accuracy": accuracy},
            "megabytes": 100.0 if big else 10.0,
            "latency_ms": (50.0 if big else 5.0) if options.measure else None,
        },
    )
    return 0


def _answers(run: runs.Run, accuracy: float, seed: int) -> None:
    """400 test rows, of which the share `accuracy` is right; which rows depends on the seed."""
    import numpy as np

    from tfpipeline import evaluate

    truth = np.arange(ROWS) % 2
    right = np.random.default_rng(seed).permutation(ROWS) < accuracy * ROWS
    said = np.where(right, truth, 1 - truth)
    probabilities = np.where(np.arange(2) == said[:, None], 0.8, 0.2).astype(np.float32)
    evaluate.save_predictions(run.path / "evaluation" / "test.parquet", Rows(truth.astype(np.int32)), probabilities, ("0", "1"))


class Rows:
    def __init__(self, labels: Any) -> None:
        self.labels = labels
        self.ids = [str(row) for row in range(len(labels))]
        self.sources = [f"x.csv:{row}" for row in range(len(labels))]

    def __len__(self) -> int:
        return len(self.labels)


if __name__ == "__main__":
    sys.exit(main())
