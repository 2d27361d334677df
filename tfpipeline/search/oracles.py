"""Keras Tuner's four ways to choose, made to survive: a kill at any moment, a worker that dies, and values that come twice.

What Keras Tuner 1.4.8 does, and what is done about it here (each can go when upstream no longer does it; no issue is open for most):

| upstream | here |
|---|---|
| state is written in place: a kill leaves half a file | written whole or not at all |
| a trial that ended stays "ongoing" in the file until the next one starts: after a kill it is run again | its status decides |
| a grid forgets where it was: after a restart it ends at once | its order is made again from its trials |
| the Gaussian process proposes values again that were tried | then a random draw is taken |
| a failed trial teaches the Gaussian process nothing: it asks for nearly the same again | it counts as the worst so far |
| 3 random trials per dimension before the Gaussian process is asked: with 12 trials, never | a third of the trials, at least 4 |
| a worker that dies keeps its trial and its place: the chief waits for ever | both are taken back when it was silent for too long |
| three failures in a row end the search, with an exception under a lock that is never released | the tuner decides (`tuner.Tuner`) |
"""

from __future__ import annotations

import functools
import logging
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import keras_tuner
from keras_tuner.engine import trial as trials
from keras_tuner.oracles import BayesianOptimizationOracle, GridSearchOracle, HyperbandOracle, RandomSearchOracle

from tfpipeline.runs import write_json
from tfpipeline.search.runner import RETRIES
from tfpipeline.search.space import Space

logger = logging.getLogger(__name__)

Status = trials.TrialStatus
TUNERS = ("random", "grid", "bayesian", "hyperband")
OBJECTIVE = "objective"
HYPERBAND_FACTOR = 3
NEVER = 1_000_000_000
ENDED = (Status.COMPLETED, Status.FAILED)

Method = TypeVar("Method", bound=Callable[..., Any])


def _synchronized(method: Method) -> Method:
    """Keras Tuner's lock around the methods of an oracle, with a type."""
    return cast("Method", keras_tuner.synchronized(method))


class Kept(keras_tuner.Oracle):
    """What the four have in common; stands before Keras Tuner's class among the bases."""

    def __init__(self, *arguments: Any, lease_seconds: float = 60.0, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.lease_seconds = lease_seconds
        self.has_ended = False
        self.verbose = 0
        self._seen: dict[str, float] = {}
        self._ran: dict[str, str] = {}

    # ---- on disk ----

    def save(self) -> None:
        """Whole or not at all."""
        write_json(Path(self._get_oracle_fname()), self.get_state())

    def _save_trial(self, trial: Any) -> None:
        write_json(Path(self._get_trial_dir(trial.trial_id)) / "trial.json", trial.get_state())

    def set_state(self, state: dict[str, Any]) -> None:
        """As upstream, which forgets in `reload` who was running what."""
        super().set_state(state)
        self._ran = {trial_id: tuner_id for tuner_id, trial_id in state["ongoing_trials"].items()}

    def reload(self) -> None:
        """What was running keeps its place: its worker may still be at it. It is taken back when that worker stays silent."""
        super().reload()  # puts what was ongoing into the retry queue, among it trials that had ended
        self._retry_queue = []
        for trial_id, trial in sorted(self.trials.items()):
            if trial.status in ENDED:
                continue
            if trial_id in self._ran:
                trial.status = Status.RUNNING
                self.ongoing_trials[self._ran[trial_id]] = trial
                self._seen[self._ran[trial_id]] = time.monotonic()
            else:
                self._retry_queue.append(trial_id)

    # ---- what a tuner asks, also over the wire ----

    @_synchronized
    def create_trial(self, tuner_id: str) -> Any:
        """A trial to run; IDLE while others still run trials, which may come back when their worker dies."""
        self._seen[tuner_id] = time.monotonic()
        self.take_back()
        trial = super().create_trial(tuner_id)
        if trial.status == Status.RUNNING:
            trial.metrics = type(trial.metrics)()  # an attempt that was killed may have reported already
        elif trial.status == Status.STOPPED:
            if self.ongoing_trials:
                self.tuner_ids.add(tuner_id)
                trial.status = Status.IDLE
            else:
                self.has_ended = True
        return trial

    def get_trial(self, trial_id: str) -> Any:
        """The trial; whoever runs it shows by asking that it is alive."""
        for tuner_id, trial in list(self.ongoing_trials.items()):
            if trial.trial_id == trial_id:
                self._seen[tuner_id] = time.monotonic()
        return super().get_trial(trial_id)

    @_synchronized
    def update_trial(self, trial_id: str, metrics: Any, step: int = 0) -> Any:
        """Takes a result; one for a trial that was taken back in the meantime is ignored."""
        if not self._is_ongoing(trial_id):
            return self.trials[trial_id]
        return super().update_trial(trial_id, metrics, step)

    @_synchronized
    def end_trial(self, trial: Any) -> None:
        """Ends a trial, or puts it aside to be tried again."""
        if self._is_ongoing(trial.trial_id):
            super().end_trial(trial)
            self.save()  # upstream saves before the trial leaves `ongoing_trials`

    @_synchronized
    def take_back(self) -> list[str]:
        """Takes trials and places from workers that have been silent for longer than the lease; returns their names."""
        oldest = time.monotonic() - self.lease_seconds
        silent = [tuner_id for tuner_id in {*self.ongoing_trials, *self.tuner_ids} if self._seen.get(tuner_id, oldest - 1) < oldest]
        for tuner_id in silent:
            self.tuner_ids.discard(tuner_id)
            trial = self.ongoing_trials.pop(tuner_id, None)
            # Said here: a waiting worker that asks for a trial may look before the chief's own loop does.
            outcome = "" if trial is None else "; its trial goes to another worker"
            logger.info("chief: %s has been silent for %g s%s", tuner_id, self.lease_seconds, outcome)
            if trial is not None:
                self._run_times[trial.trial_id] += 1
                trial.status = Status.INVALID
                if not self._retry(trial):
                    trial.message = f"its worker died {self._run_times[trial.trial_id]} times"
                    self.end_order.append(trial.trial_id)
                self._save_trial(trial)
        if silent:
            self.save()
        return silent

    @_synchronized
    def over(self) -> bool:
        """Whether nothing is left to do, and every worker has been told so or has died."""
        return self.has_ended and not self.ongoing_trials and not self.tuner_ids

    def _is_ongoing(self, trial_id: str) -> bool:
        return any(trial.trial_id == trial_id for trial in self.ongoing_trials.values())


class Random(Kept, RandomSearchOracle):
    """Independent draws."""


class Grid(Kept, GridSearchOracle):
    """Every combination, the last key of the space changing fastest."""

    def reload(self) -> None:
        """Upstream keeps neither the order of the trials nor which of them have no successor yet; both follow from the trials."""
        super().reload()
        in_order = sorted(self.trials.values(), key=functools.cmp_to_key(self._earlier))
        self._ordered_ids: Any = type(self._ordered_ids)()
        before = None
        for trial in in_order:
            self._ordered_ids.insert(trial.trial_id, before)
            before = trial.trial_id
        self._populate_next = [trial.trial_id for trial in in_order]

    def _earlier(self, first: Any, second: Any) -> int:
        return int(self._compare(first.hyperparameters.values, second.hyperparameters.values))


class Bayesian(Kept, BayesianOptimizationOracle):
    """A Gaussian process over what is known, and the point where it promises most."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """As upstream; what was tried before is not tried again."""
        with warnings.catch_warnings():
            # Few points: scikit-learn says that a length scale is at its bound, about which nobody can do anything.
            warnings.simplefilter("ignore")
            found = super().populate_space(trial_id)
        if found["status"] == Status.RUNNING and self._duplicate(found["values"]):
            return self._random_populate_space()
        return found

    def _vectorize_trials(self) -> Any:
        """Upstream leaves failed trials out."""
        scores = [trial.score for trial in self.trials.values() if trial.status == Status.COMPLETED]
        failed = [trial for trial in self.trials.values() if trial.status == Status.FAILED]
        for trial in failed:
            trial.status, trial.score = Status.COMPLETED, min(scores) if self.objective.direction == "max" else max(scores)
        try:
            return super()._vectorize_trials()
        finally:
            for trial in failed:
                trial.status, trial.score = Status.FAILED, None


class Hyperband(Kept, HyperbandOracle):
    """Many short trainings, the best of them anew with more epochs (Li et al. 2018)."""

    def planned(self) -> int:
        """How many trials a whole sweep has."""
        brackets = self._get_num_brackets()
        return sum(
            self._get_size(bracket, round_number) for bracket in range(brackets) for round_number in range(self._get_num_rounds(bracket))
        )


def make(
    tuner: str, space: Space, *, direction: str, max_trials: int | None, max_epochs: int, seed: int, lease_seconds: float = 60.0
) -> Kept:
    """The oracle of this name over the space.

    Args:
        tuner: one of `TUNERS`.
        space: what may vary.
        direction: "max" or "min".
        max_trials: at most so many; None: as many as a grid or a Hyperband sweep has.
        max_epochs: of the longest training, for Hyperband.
        seed: of the draws.
        lease_seconds: how long a worker may be silent.
    """
    shared: dict[str, Any] = {
        "objective": keras_tuner.Objective(OBJECTIVE, direction),
        # Hyperband draws before a trial could declare anything, so the space is declared here for all of them.
        "hyperparameters": space.hyperparameters(),
        "allow_new_entries": False,
        "tune_new_entries": False,
        "seed": seed or NEVER,  # 0 means "any" to Keras Tuner
        "max_retries_per_trial": RETRIES,
        "max_consecutive_failed_trials": NEVER,
        "lease_seconds": lease_seconds,
    }
    if tuner == "hyperband":
        found: Kept = Hyperband(max_epochs=max_epochs, factor=HYPERBAND_FACTOR, **shared)
        found.max_trials = max_trials
        return found
    if tuner == "bayesian":
        initial = max(4, math.ceil((max_trials or 12) / 3))
        return Bayesian(max_trials=max_trials, num_initial_points=min(initial, 3 * len(space.parameters)), **shared)
    return {"random": Random, "grid": Grid}[tuner](max_trials=max_trials, **shared)
