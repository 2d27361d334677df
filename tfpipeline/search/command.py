"""`tfpipeline search`: flags to `Settings`, the document to text. Only the standard library until it runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfpipeline import config as configs

TUNERS = ("random", "grid", "bayesian", "hyperband")
DEFAULT_TRIALS = 20


def add(command: Callable[[str, Any, str, str], argparse.ArgumentParser]) -> None:
    """Adds the command.

    Args:
        command: `command(name, run, summary, example)` of `tfpipeline.cli`.
    """
    added = command(
        "search",
        run,
        "find better settings: many trainings, chosen by Keras Tuner; the winner is trained anew and compared with the default",
        "tfpipeline search --preset sst2 --tuner bayesian --trials 20 --space space.toml",
    )
    added.add_argument("--preset", default="", metavar="NAME", help="start from a preset (bank, scratch, sst2)")
    added.add_argument("--config", default="", metavar="FILE", help="a TOML file over the preset")
    added.add_argument("--data", action="append", default=[], metavar="PATH", help="training files (data.path); repeatable")
    added.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="fix one setting for all trials; repeatable")
    added.add_argument("--tuner", default="bayesian", choices=TUNERS, help="how the next trial is chosen (default: bayesian)")
    added.add_argument(
        "--trials",
        type=int,
        default=None,
        metavar="N",
        help=f"at most so many (default: {DEFAULT_TRIALS}; grid and hyperband: all they have)",
    )
    added.add_argument(
        "--space",
        default="",
        metavar="FILE",
        help="TOML over config keys, or bert or scratch (default: the one of the two that suits the backbone)",
    )
    added.add_argument("--objective", default="accuracy", metavar="METRIC", help="a metric of the validation split (default: accuracy)")
    added.add_argument("--direction", default="", choices=("max", "min"), help="what is better (default: as the metric means it)")
    added.add_argument("--max-latency-ms", type=float, default=None, metavar="MS", help="a text may take so long, median, one at a time")
    added.add_argument("--max-megabytes", type=float, default=None, metavar="MB", help="a model may be so large on disk")
    added.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="train winner and default anew with so many seeds; 0: no (default: 3)"
    )
    added.add_argument("--no-pruning", action="store_true", help="let hopeless trials run to their end")
    added.add_argument(
        "--search", type=Path, default=None, metavar="DIR", help="where it lies, and is gone on with (default: RUNS/searches/NAME-TUNER)"
    )
    added.add_argument(
        "--worker-timeout", type=float, default=60.0, metavar="S", help="several machines: a silent worker is dead after this"
    )


def run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The document, and what people read."""
    from tfpipeline import runtime
    from tfpipeline.search import objective, report, session, space
    from tfpipeline.search.settings import Settings

    overrides = [*([f"data.path={json.dumps(options.data)}"] if options.data else []), *options.set]
    named = options.preset or options.config or overrides
    base = configs.load(options.preset if named else configs.DEFAULT_PRESET, options.config, overrides)
    searched = space.load(options.space, base)
    if options.tuner == "hyperband" and searched.name in space.shipped():
        searched = searched.without("train.epochs")  # which Hyperband sets itself
    wanted = objective.check(options.objective, options.direction, options.max_latency_ms, options.max_megabytes, base)
    trials = options.trials if options.trials is not None or options.tuner in ("grid", "hyperband") else DEFAULT_TRIALS
    settings = Settings(
        folder=options.search or options.runs / "searches" / f"{base.name}-{options.tuner}",
        base=base,
        space=searched,
        objective=wanted,
        tuner=options.tuner,
        trials=trials,
        seeds=options.seeds,
        prune=not options.no_pruning,
        worker_timeout=options.worker_timeout,
    )
    session.check(settings)
    runtime.check()
    found = session.search(settings)
    if found.get("role") == "worker":
        return found, f"{found['worker']}: ran {found['trials']} trials of {found['folder']}"
    return found, report.render(found, searched, wanted)
