"""A search as a process, for tests that kill it: `python tests/search_process.py FOLDER TUNER TRIALS SEEDS`, trials by `tests/search_trial.py`."""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path

from tests.search_trial import __file__ as fake
from tfpipeline import config as configs
from tfpipeline import runtime
from tfpipeline.errors import PipelineError
from tfpipeline.search import objective, session, space
from tfpipeline.search.settings import Settings

COMMAND = (sys.executable, str(Path(fake).resolve()))
TREE = {
    "train.learning_rate": {"min": 1e-5, "max": 1e-3, "log": True},
    "model.dropout": [0.0, 0.1, 0.2],
    "train.schedule": ["linear", "cosine"],
    "train.weight_decay": {"values": [0.0, 0.1], "when": {"train.schedule": "cosine"}},
}


def settings(folder: Path, **changed: object) -> Settings:
    """A search with fake trials."""
    base = configs.load("scratch", overrides=["train.epochs=2", "evaluate.bootstrap_samples=200"])
    given = {
        "tuner": "random",
        "trials": 4,
        "seeds": 0,
        "space": space.parse(TREE, "space.toml", base),
        "objective": objective.Objective(),
        "base": base,
        "command": COMMAND,
        "prune": False,  # or a fake would now and then end just before it is stopped
        "worker_timeout": 10.0,
        **changed,
    }
    return Settings(folder=folder, **given)  # type: ignore[arg-type]


def main() -> int:
    # A shell that starts the tests in the background has SIGINT ignored by all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    runtime.quiet()
    folder, tuner, trials, seeds = sys.argv[1:]
    try:
        found = session.search(settings(Path(folder), tuner=tuner, trials=int(trials), seeds=int(seeds)))
    except PipelineError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
