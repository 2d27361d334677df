"""The winner against the default, both trained anew with several seeds: what is left of the lead when luck is taken out.

In: two Configs. Out: the difference on the test split, which no choice has seen, with an interval over rows *and* seeds. A winner of twenty trials is
partly the luckiest of twenty; only fresh trainings say which part. With three seeds the share of the seeds in the interval is itself a rough estimate:
a difference that matters deserves five or ten.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from tfpipeline import evaluate, runs
from tfpipeline.config import Config, EvaluateConfig
from tfpipeline.errors import RunError
from tfpipeline.evaluate.intervals import percentile_interval, resample_counts
from tfpipeline.evaluate.rows import Floats, check
from tfpipeline.evaluate.scores import SUMMED, Scores
from tfpipeline.progress import Progress
from tfpipeline.search import records, runner
from tfpipeline.search.objective import METRICS, Objective
from tfpipeline.search.space import with_values

logger = logging.getLogger(__name__)

ROLES = ("winner", "default")
MOST_AT_ONCE = 4


def retrain(
    folder: Path, configs: Mapping[str, Config], seeds: Sequence[int], objective: Objective, command: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Trains every role with every seed, in turns, so that what changes on the machine meanwhile meets both.

    Args:
        folder: of the search; a training that is there already is not repeated.
        configs: one for each of `ROLES`.
        seeds: `runtime.seed` of each training.
        objective: whose metric is noted.
        command: starts a training.

    Returns:
        Per role, the record of each training.

    Raises:
        RunError: a training failed.
    """
    planned = [(seed, role) for seed in seeds for role in ROLES]
    done: dict[tuple[int, str], dict[str, Any]] = {}
    given_up = threading.Event()

    def beat() -> None:
        if given_up.is_set():
            raise KeyboardInterrupt  # the runner then has its training write a checkpoint and end

    with (
        Progress("re-training", len(planned), "trainings") as bar,
        ThreadPoolExecutor(at_once(configs.values(), measured=objective.max_latency_ms is not None)) as pool,
    ):
        pending = {
            pool.submit(_train, folder / "final" / f"{role}-{seed}", role, seed, configs[role], objective, command, beat): (seed, role)
            for seed, role in planned
        }
        try:
            for future in as_completed(pending):
                done[pending[future]] = future.result()
                bar.update(1)
        except BaseException:
            given_up.set()
            pool.shutdown(cancel_futures=True)
            raise
    return {role: [done[seed, role] for seed in seeds] for role in ROLES}


def at_once(configs: Iterable[Config], *, measured: bool) -> int:
    """How many trainings share the machine: those of the smallest model do not fill two cores and need 1.2 GB each; a latency is measured alone."""
    smallest = all(config.model.backbone == "scratch:tiny" for config in configs)
    return min(os.cpu_count() or 1, MOST_AT_ONCE) if smallest and not measured else 1


def _train(
    place: Path, role: str, seed: int, config: Config, objective: Objective, command: Sequence[str], beat: Callable[[], None]
) -> dict[str, Any]:
    config = with_values(config, {"runtime.seed": seed}, role)
    earlier = records.read_record(place)
    if earlier is not None and earlier["state"] == "finished" and earlier["config_digest"] == config.digest():
        return earlier
    for _ in range(runner.RETRIES + 1):
        ended = runner.run(
            place,
            config,
            f"{role}, seed {seed}",
            command=command,
            measure=objective.max_latency_ms is not None,
            beat=beat,
            beat_seconds=runner.POLL_SECONDS,
        )
        if ended.state != "lost":
            break
        logger.info("%s, seed %d: %s; again", role, seed, ended.reason)
    if ended.state != "finished":
        raise RunError(
            f"{place}: re-training the {role} with seed {seed} did not finish: {ended.reason}. The same command goes on from here."
        )
    record = {
        "role": role,
        "seed": seed,
        "state": "finished",
        "config_digest": config.digest(),
        "run": str((place / "runs" / ended.result["run"]).relative_to(place.parents[1])),
        "validation": ended.result["validation"],
        "test": ended.result["test"],
        "latency_ms": ended.result["latency_ms"],
        "megabytes": ended.result["megabytes"],
        "seconds": ended.seconds,
    }
    records.write_record(place, record)
    test = record["test"]
    assert isinstance(test, dict)
    logger.info("%s, seed %d: test %s %.4f, %.0f s", role, seed, objective.metric, test.get(objective.metric, float("nan")), ended.seconds)
    return record


def compare(
    folder: Path, trained: Mapping[str, Sequence[Mapping[str, Any]]], metric: str, config: EvaluateConfig, seed: int = 1
) -> dict[str, Any]:
    """Winner minus default on the same test rows.

    Each resample draws rows once for all models, and seeds separately for winner and default (the two have nothing in common but their number).

    Args:
        folder: of the search.
        trained: what `retrain` returned.
        metric: of the objective; one that is no sum over rows (roc_auc, pr_auc) is compared by accuracy.
        config: resamples and confidence.
        seed: of the bootstrap.

    Returns:
        `metric`, `n`, `seeds`, `confidence`, `winner` and `default` (each `values` by seed and `mean`), `difference` ({"value", "low", "high"}, winner -
        default), `verdict` ("better", "worse", "no difference shown"; for a metric of which less is better, a negative difference is better).

    Raises:
        DataError: the runs did not judge the same rows.
    """
    metric = metric if metric in SUMMED else "accuracy"
    scores = {role: list(_scores(folder, rows, config)) for role, rows in trained.items()}
    values = {role: [one.value()[metric] for one in found] for role, found in scores.items()}
    rows = len(scores["winner"][0].rows)
    generator = np.random.default_rng(seed)
    samples: list[Floats] = []
    for weights in resample_counts(rows, config.bootstrap_samples, seed):
        drawn = {}
        for role, found in scores.items():
            of_seed = np.stack([one.summed(weights)[metric] for one in found])
            picked = generator.integers(0, len(found), size=of_seed.shape)
            drawn[role] = np.take_along_axis(of_seed, picked, axis=0).mean(axis=0)
        samples.append(drawn["winner"] - drawn["default"])
    means = {role: float(np.mean([value for value in found if value is not None])) for role, found in values.items()}
    difference = percentile_interval(means["winner"] - means["default"], np.concatenate(samples), config.confidence)
    return {
        "metric": metric,
        "n": rows,
        "seeds": [int(one["seed"]) for one in trained["winner"]],
        "confidence": config.confidence,
        **{role: {"values": values[role], "mean": means[role]} for role in ROLES},
        "difference": difference,
        "verdict": verdict(difference, METRICS[metric][0]),
    }


def verdict(difference: Mapping[str, Any], direction: str) -> str:
    """What the interval of winner - default says."""
    low, high = difference["low"], difference["high"]
    if low is None or low <= 0 <= high:
        return "no difference shown"
    return "better" if (low > 0) == (direction == "max") else "worse"


def _scores(folder: Path, trained: Sequence[Mapping[str, Any]], config: EvaluateConfig) -> Iterator[Scores]:
    """Of each run's answers on test, in the order of the rows of the very first run."""
    first = None
    for one in trained:
        run = runs.Run(folder / str(one["run"]))
        found = evaluate.load_predictions(run.path / "evaluation" / "test.parquet")
        first = first or evaluate.load_predictions(_first(folder))
        order = evaluate.align(first.ids, found.ids, ("the first run", run.path.name))
        yield Scores(check(found.probabilities[order], found.targets[order], found.task), config.calibration_bins)


def _first(folder: Path) -> Path:
    """The file whose rows set the order for all."""
    return sorted(folder.glob("final/*/runs/*/evaluation/test.parquet"))[0]
