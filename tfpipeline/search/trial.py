"""One trial: a training in a process of its own, so that what TensorFlow keeps dies with it.

    python -m tfpipeline.search.trial --config trials/007/config.toml --runs trials/007/runs --result trials/007/result.json

It does what `tfpipeline train --config` does, and besides: goes on with an attempt that was stopped, measures the model when there is a budget, and
stops (with a checkpoint) when the process of the search dies, which it notices by the end of its standard input. Exit codes as everywhere; a model that
a gate refuses is finished all the same: the search only wants its numbers.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import stat
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfpipeline import config as configs
from tfpipeline import runs
from tfpipeline.errors import GateError, PipelineError

logger = logging.getLogger("tfpipeline.search.trial")

TEXTS_TIMED, TEXTS_WARM = 100, 10
OUT_OF_MEMORY = "OutOfMemory"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the trial; returns its exit code. `result.json` says how it ended, unless it was killed."""
    parser = argparse.ArgumentParser(prog="tfpipeline.search.trial", description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--config", required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--measure", action="store_true", help="time the model on single texts")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    _end_with_the_parent()
    from tfpipeline import runtime

    runtime.quiet()
    try:
        result, code = _run(options), 0
    except KeyboardInterrupt as error:
        logger.info("stopped: %s", error)
        return 130
    except PipelineError as error:
        logger.error("%s: %s", type(error).__name__, error)
        result, code = {"error": type(error).__name__, "message": str(error)}, error.exit_code
    except Exception as error:
        if not _out_of_memory(error):
            raise
        logger.error("out of memory: %s", str(error).splitlines()[0] if str(error) else type(error).__name__)
        result, code = {"error": OUT_OF_MEMORY, "message": f"the trial ran out of memory ({type(error).__name__})"}, 2
    runs.write_json(options.result, result)
    return code


def unfinished(root: Path, digest: str) -> runs.Run | None:
    """The newest run of this config under the root that has a checkpoint to go on from, or is finished already; None: start anew."""
    found = [run for run in runs.list_runs(root) if run.info["config_digest"] == digest]
    if not found or found[-1].info["status"] == "failed":
        return None
    finished = (found[-1].path / "metrics.json").is_file()
    return found[-1] if finished or any(found[-1].path.glob("checkpoints/step-*/state.json")) else None


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from tfpipeline import runtime

    loaded = configs.load(file=options.config)
    earlier = unfinished(options.runs, loaded.digest())
    runtime.check()
    from tfpipeline.train import train

    if earlier is not None and earlier.info["status"] == "finished":
        run = earlier
    else:
        try:
            run = train(loaded, root=options.runs, resume=earlier).run
        except GateError:
            run = runs.list_runs(options.runs)[-1]
    metrics = runs.read_json(run.path / "metrics.json")
    files = [path for path in (run.path / "checkpoints" / "best").iterdir() if path.is_file()]
    return {
        "run": run.path.name,
        "best_epoch": metrics["best_epoch"],
        "validation": headline(metrics["validation"]),
        "test": headline(metrics["metrics"]),
        "megabytes": round(sum(path.stat().st_size for path in files) / 1e6, 3),
        "latency_ms": _latency_ms(run) if options.measure else None,
    }


def headline(metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics that have a value, as plain numbers."""
    return {
        name: found["value"] for name, found in metrics.items() if isinstance(found, dict) and isinstance(found.get("value"), int | float)
    }


def _latency_ms(run: runs.Run) -> float:
    """Median time of one text through the signature that is served, raw text to probabilities."""
    import numpy as np
    import tensorflow as tf

    from tfpipeline import data, trained
    from tfpipeline.served import Served

    model = trained.load(run)
    examples = data.open_prepared(run.path / "data").validation
    texts, pairs = examples.text_batch(np.arange(min(TEXTS_TIMED, len(examples))))
    with tempfile.TemporaryDirectory() as assets:
        for name in ("vocab.txt", "labels.txt"):
            (Path(assets) / name).touch()
        serve = Served(model, Path(assets)).serve
        rows = list(zip(texts, pairs, strict=True)) if pairs is not None else [(text,) for text in texts]
        # Every length once before the clock runs: a first call of a shape may choose its kernels.
        for row in rows[:TEXTS_WARM]:
            serve(*[tf.constant([text], tf.string) for text in row])
        taken = []
        for row in rows:
            started = time.perf_counter()
            serve(*[tf.constant([text], tf.string) for text in row])["probabilities"].numpy()
            taken.append(time.perf_counter() - started)
    return round(1000 * statistics.median(taken), 3)


def _end_with_the_parent() -> None:
    """When nobody holds the other end of standard input any more, the search is gone, and a trial for nobody is waste."""
    if sys.stdin is None or not stat.S_ISFIFO(os.fstat(0).st_mode):  # started by hand
        return

    def watch() -> None:
        # The descriptor and not `sys.stdin`: its lock would be held at exit.
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _out_of_memory(error: Exception) -> bool:
    # TensorFlow is not imported for the question: an error of its own has a class of its own name.
    return isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"


if __name__ == "__main__":
    sys.exit(main())
