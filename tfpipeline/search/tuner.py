"""Keras Tuner's loop with our trials in it: one process each, recorded, pruned by the median rule, told to TensorBoard.

In: an oracle and what a trial is. Out: records in the folder of the search. Nothing is trained here, so Keras Tuner's own way of building models (which
refuses Keras 2 models beside an installed Keras 3) is never taken.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import keras_tuner
import keras_tuner.src.config
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.errors import FailedTrialError, FatalRuntimeError
from keras_tuner.src import protos

from tfpipeline.config import Config
from tfpipeline.errors import ConfigError, PipelineError
from tfpipeline.progress import Progress
from tfpipeline.runs import write_json
from tfpipeline.search import hparams, records, runner
from tfpipeline.search.objective import Objective, hopeless, winner_of
from tfpipeline.search.oracles import OBJECTIVE
from tfpipeline.search.settings import Settings
from tfpipeline.search.space import with_values

logger = logging.getLogger(__name__)
keras_tuner.src.config.DEBUG = False  # a trial that fails is a line here, and not a stack trace

LEAST_TO_GIVE_UP = 3
IDLE_SECONDS = 0.5


class Tuner(BaseTuner):
    """One worker: asks the oracle (here, or at the chief) for trials and runs them, one at a time."""

    def __init__(self, oracle: keras_tuner.Oracle, settings: Settings, bar: Progress | None = None) -> None:
        self.settings = settings
        self.bar = bar
        self.ran = 0
        self._idle = False
        super().__init__(oracle, directory=str(settings.folder), project_name="tuner")

    def save(self) -> None:
        """Whole or not at all; a worker has nothing to save but that it was there."""
        if not self._is_worker():
            self.oracle.save()
        write_json(Path(self._get_tuner_fname()), self.get_state())

    def on_search_begin(self) -> None:
        """So that a kill during the first trial leaves something to go on from."""
        self.save()

    def pre_create_trial(self) -> None:
        """Keras Tuner asks again at once when there is nothing to do yet."""
        if self._idle:
            time.sleep(IDLE_SECONDS)
        self._idle = True

    def on_trial_begin(self, trial: Any) -> None:
        """There was something to do."""
        self._idle = False

    def run_trial(self, trial: Any, *fit_args: Any, **fit_kwargs: Any) -> dict[str, float]:
        """One training.

        Returns:
            The score under `OBJECTIVE`.

        Raises:
            FailedTrialError: not to be repeated.
            RuntimeError: to be repeated.
            FatalRuntimeError: the search cannot go on: the folder cannot be written.
        """
        try:
            record = self._recorded(int(trial.trial_id), trial.hyperparameters.values, trial.trial_id)
        except PipelineError as error:
            raise FatalRuntimeError(str(error)) from error
        if record["state"] == "failed":
            raise FailedTrialError(record["reason"])
        if record["state"] == "lost":
            raise RuntimeError(record["reason"])
        return {OBJECTIVE: float(record["score"])}

    def on_trial_end(self, trial: Any) -> None:
        """One line, one step of the bar, HParams; and the end, when nothing works at all."""
        super().on_trial_end(trial)
        found = list(records.trials(self.settings.folder))
        record = next(one for one in found if one["number"] == int(trial.trial_id))
        hparams.write(self.settings.folder / "tensorboard", record, self.settings.objective)
        if record["state"] in records.ENDED:
            self.ran += 1
            if self.bar is not None:
                best = winner_of(found, self.settings.objective)
                self.bar.update(1, best="-" if best is None else f"{best['value']:.4f}")
        logger.info(line(record, found, self.settings.objective))
        reason = hopeless_search(found)
        if reason:
            raise FatalRuntimeError(reason)

    # ---- one trial ----

    def _recorded(self, number: int, chosen: dict[str, Any], trial_id: str) -> dict[str, Any]:
        settings = self.settings
        place = records.trial_folder(settings.folder, number)
        values = settings.space.decode(chosen)
        changed = {**values, **({"train.epochs": chosen["tuner/epochs"]} if "tuner/epochs" in chosen else {})}
        earlier = records.read_record(place)
        if earlier is not None and earlier["state"] in records.ENDED and earlier["changed"] == changed:
            return earlier  # it ended, and the search was killed before the oracle knew
        record: dict[str, Any] = {
            "number": number,
            "values": values,
            "changed": changed,
            "state": "running",
            "reason": "",
            "value": None,
            "score": None,
            "overshoot": 0.0,
            "latency_ms": None,
            "megabytes": None,
            "validation": {},
            "best_epoch": None,
            "curve": [],
            "run": "",
            "tuner": self.tuner_id,
            "attempts": (earlier or {}).get("attempts", 0) + 1,
            "lost": (earlier or {}).get("lost", 0),
            "seconds": (earlier or {}).get("seconds", 0.0),
        }
        records.write_record(place, record)
        try:
            config = with_values(for_trial(settings.base), changed, f"trial {number}")
        except ConfigError as error:
            ended = runner.Ended("failed", str(error))
        else:
            ended = runner.run(
                place,
                config,
                f"trial {number} of {settings.folder.name}\n{spoken(changed)}",
                command=settings.command,
                measure=settings.objective.max_latency_ms is not None,
                epoch_key=settings.objective.epoch_key,
                hopeless=self._hopeless(number, "tuner/epochs" in chosen),
                beat=self._beat(trial_id),
                # Some may get lost or come late on a busy machine.
                beat_seconds=min(runner.BEAT_SECONDS, settings.worker_timeout / 6),
            )
        record = settled(record, ended, settings.objective)
        records.write_record(place, record)
        return record

    def _hopeless(self, number: int, halving: bool) -> Callable[[list[float]], bool] | None:
        """Hyperband prunes by itself; the others by the median rule, where epochs report the objective."""
        if halving or not self.settings.prune or not self.settings.objective.epoch_key:
            return None
        # Only what this trial began with: the others of now, not those that end meanwhile.
        others = [
            one["curve"]
            for one in records.trials(self.settings.folder)
            if one["number"] != number and one["state"] in ("finished", "pruned")
        ]
        return lambda curve: hopeless(curve, others, self.settings.objective.direction)

    def _beat(self, trial_id: str) -> Callable[[], None] | None:
        """For a worker, a call of the protocol by which the chief sees that it is alive; the chief being away for a while is no reason to stop."""
        stub = getattr(self.oracle, "stub", None) if self._is_worker() else None
        if stub is None:
            return None

        def beat() -> None:
            with contextlib.suppress(grpc.RpcError):
                stub.GetTrial(protos.get_service().GetTrialRequest(trial_id=trial_id), timeout=runner.BEAT_SECONDS)

        return beat


def for_trial(base: Config) -> Config:
    """The base without what only a single run wants: a gate would stop good trials, and the TF-IDF baseline is the same for all."""
    return with_values(base, {"evaluate.tfidf_baseline": False, "evaluate.min_accuracy": 0.0, "train.baseline_run": ""}, "search")


def settled(record: dict[str, Any], ended: runner.Ended, objective: Objective) -> dict[str, Any]:
    """The record of a trial from how its attempt ended. Pure."""
    found = {
        **record,
        "state": ended.state,
        "reason": ended.reason,
        "curve": ended.curve,
        "seconds": round(record["seconds"] + ended.seconds, 1),
        "run": ended.result.get("run", ""),
        "validation": ended.result.get("validation", {}),
        "best_epoch": ended.result.get("best_epoch"),
        "latency_ms": ended.result.get("latency_ms"),
        "megabytes": ended.result.get("megabytes"),
    }
    if ended.state == "lost":
        found["lost"] = record["lost"] + 1
        if found["lost"] > runner.RETRIES:
            found |= {"state": "failed", "reason": f"{ended.reason} ({found['lost']} attempts)"}
    elif ended.state == "pruned":
        best = max(ended.curve) if objective.direction == "max" else min(ended.curve)
        found |= {"value": best, "score": best}
    elif ended.state == "finished":
        value = found["validation"].get(objective.metric)
        if value is None:
            found |= {
                "state": "failed",
                "reason": f"reports no {objective.metric} for the validation split; it is not defined for these rows",
            }
        else:
            over = objective.overshoot(found["latency_ms"], found["megabytes"])
            found |= {"value": value, "overshoot": round(over, 4), "score": objective.score(value, over)}
    return found


def hopeless_search(found: Sequence[dict[str, Any]]) -> str:
    """Why the search should end: its first trials all failed. "" when it should not. One that ever finished is never given up."""
    ended = [one for one in found if one["state"] in records.ENDED]
    if len(ended) < LEAST_TO_GIVE_UP or any(one["state"] != "failed" for one in ended):
        return ""
    return f"all {len(ended)} trials so far failed, the last because of {ended[-1]['reason']} Its log: trials/{ended[-1]['number']:03d}/log.txt"


def line(record: dict[str, Any], found: Sequence[dict[str, Any]], objective: Objective) -> str:
    """ "trial 3: finished, accuracy 0.8412 (best 0.8550, trial 1), 42 s: train.epochs = 3"."""
    best = winner_of(found, objective)
    value = f", {objective.metric} {record['value']:.4f}" if record["value"] is not None else ""
    costs = f", {record['latency_ms']:.1f} ms" if record["latency_ms"] is not None else ""
    costs += f", {record['megabytes']:.1f} MB" if record["megabytes"] is not None and objective.max_megabytes is not None else ""
    over = ", over the budget" if record["overshoot"] else ""
    leader = f" (best {best['value']:.4f}, trial {best['number']})" if best is not None else ""
    state = "will be tried again" if record["state"] == "lost" else record["state"]
    reason = f" [{record['reason']}]" if record["reason"] else ""
    return f"trial {record['number']}: {state}{value}{costs}{over}{leader}, {record['seconds']:.0f} s: {spoken(record['changed'])}{reason}"


def spoken(values: dict[str, Any]) -> str:
    """ "train.epochs = 3, model.pooling = mean"."""
    return (
        ", ".join(f"{key} = {value:g}" if isinstance(value, float) else f"{key} = {value}" for key, value in values.items())
        or "the default"
    )


def role() -> str:
    """ "alone", "chief" or "worker", by Keras Tuner's own variables.

    Raises:
        ConfigError: some are set and some are not, or the port is none.
    """
    names = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")
    given = {name: os.environ.get(name, "") for name in names}
    if not given["KERASTUNER_ORACLE_IP"] and not given["KERASTUNER_ORACLE_PORT"]:
        return "alone"
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} must be set too: {names[0]} is `chief` or the name of a worker, {names[1]} and {names[2]} are where the chief listens."
        )
    port = given["KERASTUNER_ORACLE_PORT"]
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"KERASTUNER_ORACLE_PORT={port}: expected a port, a number from 1 to 65535.")
    return "chief" if "chief" in given["KERASTUNER_TUNER_ID"] else "worker"
