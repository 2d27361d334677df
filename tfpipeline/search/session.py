"""A search from its first trial to its report, alone or as one of several machines. Everything it knows lies in its folder, so it can be killed.

In: `Settings`. Out: the document of `results.json`. A worker only runs trials; alone, or as the chief, the search also trains the winner and the default
anew, and writes the report.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tfpipeline import runs
from tfpipeline.config import Config
from tfpipeline.errors import ConfigError, GateError, PipelineError, RunError
from tfpipeline.search import records, report
from tfpipeline.search.objective import winner_of
from tfpipeline.search.settings import Settings
from tfpipeline.search.space import with_values

logger = logging.getLogger(__name__)

MOST_GRID = 1000


class ChiefUnreachable(PipelineError):
    """The chief does not answer; exit 4, as for every server that cannot be reached."""

    exit_code = 4


def check(settings: Settings) -> None:
    """What can be known before the first trial.

    Raises:
        ConfigError: naming the flag.
    """
    for flag, number, least in (("--trials", settings.trials, 1), ("--seeds", settings.seeds, 0)):
        if number is not None and number < least:
            raise ConfigError(f"{flag} {number}: expected a whole number, {least} or more.")
    if settings.worker_timeout <= 0:
        raise ConfigError(f"--worker-timeout {settings.worker_timeout:g}: expected a number of seconds above 0.")
    searched = {one.key for one in settings.space.parameters}
    if settings.tuner == "hyperband" and "train.epochs" in searched:
        raise ConfigError(
            f"{settings.space.name}: `train.epochs` cannot be searched with --tuner hyperband, which sets it itself, up to the config's train.epochs."
        )
    if settings.tuner == "hyperband" and settings.base.train.epochs < 2:
        raise ConfigError(
            "--tuner hyperband stops bad trials after few epochs, so it needs train.epochs of 2 or more. Add --set train.epochs=4, or take another tuner."
        )
    if settings.tuner == "grid" and settings.trials is None:
        count = settings.space.combinations()
        if count is None or count > MOST_GRID:
            size = "has no end (a range without step, or conditions)" if count is None else f"has {count:,} combinations"
            raise ConfigError(f"{settings.space.name}: the grid {size}. Say how many trials to run: --trials 50.")
    if settings.base.runtime.strategy == "multiworker":
        raise ConfigError(
            "a trial is a training on one machine: set runtime.strategy to one or mirrored, and search on several machines instead."
        )


def search(settings: Settings) -> dict[str, Any]:
    """Runs what is left of the search, then compares its winner with the default.

    Returns:
        The document of `results.json`; of a worker, only which it was and how many trials it ran.

    Raises:
        ConfigError, RunError: the user's mistake, or another search's folder.
        GateError: no trial kept the budget; the report is written.
        ChiefUnreachable: a worker waited an hour for its chief.
        KeyboardInterrupt: the trial that ran has written its checkpoint.
    """
    check(settings)
    with _quiet():  # Keras Tuner prints on stdout, which belongs to the result
        from tfpipeline.search import tuner as tuners

        role = tuners.role()
        if role != "worker":
            records.open_folder(settings.folder, settings.identity(), settings.base)
        else:
            _join(settings)
        with runs.lock(settings.folder) if role != "worker" else contextlib.nullcontext():
            ran = _trials(settings, role)
            if role == "worker":
                return {"role": role, "worker": os.environ["KERASTUNER_TUNER_ID"], "trials": ran, "folder": str(settings.folder)}
            found = _results(settings)
            report.write(settings.folder, found, settings.space, settings.objective)
            if found["winner"] is not None and settings.seeds:
                found["final"] = _final(settings, found["winner"])
                report.write(settings.folder, found, settings.space, settings.objective)
    if found["winner"] is None and any(one["state"] == "finished" for one in found["trials"]):
        nearest = min((one for one in found["trials"] if one["state"] == "finished"), key=lambda one: one["overshoot"])
        raise GateError(
            f"no trial kept the budget ({settings.objective.words()}). The nearest is trial {nearest['number']}, {100 * nearest['overshoot']:.0f} % over it. "
            f"Raise the budget or search smaller models; every trial is in {settings.folder}/report.html"
        )
    if found["winner"] is None:
        raise RunError(f"no trial finished; the reasons are in {settings.folder}/report.html and in trials/*/log.txt")
    return found


def _trials(settings: Settings, role: str) -> int:
    """Runs trials, or as the chief has them run; returns how many this process ran."""
    import grpc
    import keras_tuner

    from tfpipeline.progress import Progress
    from tfpipeline.search import chief, oracles
    from tfpipeline.search.tuner import Tuner

    state = settings.folder / "state.json"
    if role != "worker" and state.is_file() and runs.read_json(state)["trials"] == settings.trials:
        logger.info("%s: its trials have all run", settings.folder)
        return 0
    oracle = oracles.make(
        settings.tuner,
        settings.space,
        direction=settings.objective.direction,
        max_trials=settings.trials,
        max_epochs=settings.base.train.epochs,
        seed=settings.base.runtime.seed,
        lease_seconds=settings.worker_timeout,
    )
    done = sum(one["state"] in records.ENDED for one in records.trials(settings.folder))
    with Progress("searching", _total(settings, oracle), "trials", done) as bar:
        tuner = Tuner(oracle, settings, bar)
        try:
            if role == "chief":
                tuner.save()
                chief.serve(oracle, _watching(settings, bar))
            else:
                tuner.search()
        except keras_tuner.errors.FatalError as error:
            raise RunError(str(error)) from error
        except grpc.RpcError as error:
            address = f"{os.environ['KERASTUNER_ORACLE_IP']}:{os.environ['KERASTUNER_ORACLE_PORT']}"
            reason = getattr(error, "details", str)() or type(error).__name__
            raise ChiefUnreachable(
                f"{address}: the chief does not answer ({reason}). Start it again with the same command; finished trials are kept."
            ) from error
    if role != "worker":
        runs.write_json(state, {"trials": settings.trials})
    return tuner.ran


def _total(settings: Settings, oracle: Any) -> int | None:
    planned = oracle.planned() if settings.tuner == "hyperband" else settings.space.combinations() if settings.tuner == "grid" else None
    known = [count for count in (settings.trials, planned) if count is not None]
    return min(known) if known else None


def _watching(settings: Settings, bar: Any) -> Any:
    """For the chief: a line and a step of the bar for each record of a worker that ends; says when the search should end."""
    from tfpipeline.search.tuner import hopeless_search, line

    told = {one["number"] for one in records.trials(settings.folder) if one["state"] in records.ENDED}

    def watch() -> str:
        found = list(records.trials(settings.folder))
        for one in found:
            if one["state"] in records.ENDED and one["number"] not in told:
                told.add(one["number"])
                bar.update(1)
                logger.info("%s: %s", one["tuner"], line(one, found, settings.objective))
        return hopeless_search(found)

    return watch


def _results(settings: Settings) -> dict[str, Any]:
    """Everything but the final comparison; trials that nobody brought to an end are failed."""
    from tfpipeline.search.importance import importances

    found = []
    for one in records.trials(settings.folder):
        if one["state"] not in records.ENDED:
            one = {**one, "state": "failed", "reason": one["reason"] or "the process or machine that ran it died each time"}
            records.write_record(records.trial_folder(settings.folder, one["number"]), one)
        found.append(one)
    best = winner_of(found, settings.objective)
    winner = None
    if best is not None:
        path = settings.folder / "winner.toml"
        records.write_config(
            path,
            _winner(settings, best),
            f"winner of {settings.folder.name}: trial {best['number']}, {settings.objective.metric} {best['value']:.4f}",
        )
        winner = {key: best[key] for key in ("number", "values", "changed", "value", "latency_ms", "megabytes", "run")} | {
            "config": str(path)
        }
    counts = Counter(one["state"] for one in found)
    return {
        "name": settings.folder.name,
        "folder": str(settings.folder),
        "tuner": settings.tuner,
        "space": settings.space.name,
        "objective": settings.objective.describe(),
        "counts": {state: counts.get(state, 0) for state in records.ENDED},
        "trials": found,
        "winner": winner,
        "importance": importances(found, settings.space),
        "final": None,
        "config": settings.base.to_dict(),
        "git": runs.git_state(),
    }


def _winner(settings: Settings, best: Any) -> Config:
    return with_values(settings.base, best["changed"], f"trial {best['number']}")


def _final(settings: Settings, winner: Any) -> dict[str, Any]:
    from tfpipeline.search import final
    from tfpipeline.search.tuner import for_trial

    base = for_trial(settings.base)
    configs = {"winner": with_values(base, winner["changed"], "winner"), "default": base}
    # Not the seed of the trials: with that one the winner has been lucky already.
    first = settings.base.runtime.seed + 1
    trained = final.retrain(settings.folder, configs, range(first, first + settings.seeds), settings.objective, settings.command)
    return {**final.compare(settings.folder, trained, settings.objective.metric, settings.base.evaluate), "trained": trained}


def _join(settings: Settings) -> None:
    """A worker shares the folder with its chief, or it would run trials of another search and nobody would find them."""
    import time

    deadline = time.monotonic() + settings.worker_timeout
    while not (settings.folder / "search.json").is_file():
        if time.monotonic() > deadline:
            raise RunError(
                f"{settings.folder}: no chief has opened a search there. All machines need the same folder: put it on a disk that they share (--search DIR), and start the chief."
            )
        time.sleep(0.2)
    records.open_folder(settings.folder, settings.identity(), settings.base)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        yield
