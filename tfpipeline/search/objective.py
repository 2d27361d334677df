"""What is best: a metric of the validation split and a direction, and what a model may cost. Pure functions of a trial's numbers.

Only validation decides: the test split is asked once, at the end, about the winner; a winner chosen by it would look better than it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from tfpipeline.config import Config
from tfpipeline.errors import ConfigError

# Metric of `metrics.json`: the direction that is better, and what an epoch calls it in `events.jsonl` ("": no epoch reports it).
METRICS = {
    "accuracy": ("max", "validation_accuracy"),
    "macro_f1": ("max", "validation_macro_f1"),
    "weighted_f1": ("max", ""),
    "micro_f1": ("max", ""),
    "roc_auc": ("max", ""),
    "pr_auc": ("max", ""),
    "log_loss": ("min", ""),
    "brier": ("min", ""),
    "expected_calibration_error": ("min", ""),
}
LEAST_FINISHED = 4  # trials to compare with before one may be called hopeless; Optuna's MedianPruner waits for 5, Google Vizier for none


@dataclass(frozen=True)
class Objective:
    """What the search is after.

    Attributes:
        metric: one of `METRICS`.
        direction: "max" or "min".
        max_latency_ms: the longest a text may take, median; None: any.
        max_megabytes: the largest a model may be on disk; None: any.
    """

    metric: str = "accuracy"
    direction: str = "max"
    max_latency_ms: float | None = None
    max_megabytes: float | None = None

    @property
    def epoch_key(self) -> str:
        """What an epoch's event calls the metric; "" when it does not report it."""
        return METRICS[self.metric][1]

    @property
    def has_budget(self) -> bool:
        return self.max_latency_ms is not None or self.max_megabytes is not None

    def describe(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "metric": self.metric,
            "direction": self.direction,
            "max_latency_ms": self.max_latency_ms,
            "max_megabytes": self.max_megabytes,
        }

    def words(self) -> str:
        """ "highest accuracy, at most 5 ms a text"."""
        limits = [f"at most {self.max_latency_ms:g} ms a text"] if self.max_latency_ms is not None else []
        limits += [f"at most {self.max_megabytes:g} MB"] if self.max_megabytes is not None else []
        return ", ".join([f"{'highest' if self.direction == 'max' else 'lowest'} {self.metric.replace('_', ' ')} on validation", *limits])

    def overshoot(self, latency_ms: float | None, megabytes: float | None) -> float:
        """By which share of the budget the trial is over it, the worse of the two; 0 within it."""
        pairs = ((latency_ms, self.max_latency_ms), (megabytes, self.max_megabytes))
        return max([0.0, *(given / most - 1 for given, most in pairs if given is not None and most is not None)])

    def score(self, value: float, overshoot: float) -> float:
        """What the tuner is told: the metric, or for a model over its budget something below every metric, the worse the further it is over.

        A budget is only taken with metrics between 0 and 1 of which more is better (`check`).
        """
        return value if overshoot <= 0 else -min(1.0, overshoot)

    def better(self, first: float, second: float) -> bool:
        """Whether the first value is strictly better."""
        return first > second if self.direction == "max" else first < second


def check(metric: str, direction: str, max_latency_ms: float | None, max_megabytes: float | None, base: Config) -> Objective:
    """An objective that runs of this config report.

    Raises:
        ConfigError: a metric that no run reports, or a budget that has no meaning.
    """
    known = [name for name in METRICS if name != "micro_f1" or base.data.task == "multi_label"]
    if metric not in known:
        bare = metric.removeprefix("validation_").removeprefix("val_").removeprefix("test_")
        near = difflib.get_close_matches(bare, known, n=1) or [name for name in known if bare and name.startswith(bare)]
        raise ConfigError(
            f"--objective {metric}: no run reports it.{f' Did you mean `{near[0]}`?' if near else ''} Reported for the validation split: {', '.join(known)}."
        )
    for flag, limit in (("--max-latency-ms", max_latency_ms), ("--max-megabytes", max_megabytes)):
        if limit is not None and not 0 < limit < float("inf"):
            raise ConfigError(f"{flag} {limit:g}: expected a number above 0.")
    found = Objective(metric, direction or METRICS[metric][0], max_latency_ms, max_megabytes)
    if found.has_budget and (found.direction != "max" or METRICS[metric][0] != "max"):
        most = ", ".join(name for name in known if METRICS[name][0] == "max")
        raise ConfigError(f"a budget needs an objective between 0 and 1 of which more is better ({most}); received the {found.words()}.")
    return found


def hopeless(curve: Sequence[float], others: Sequence[Sequence[float]], direction: str, least: int = LEAST_FINISHED) -> bool:
    """The median rule (Golovin et al. 2017, Google Vizier, section 3.2.1): worse so far than half of the others were at this epoch.

    | the trial's best so far | the others | hopeless |
    |---|---|---|
    | nothing yet | any | no |
    | any | fewer than `least` reached this epoch | no |
    | at the median of the others' best at this epoch, or better | enough | no |
    | worse | enough | yes |

    Args:
        curve: the metric after each epoch of this trial.
        others: the same of the trials that finished or were pruned.
        direction: "max" or "min".
        least: how many others must have reached this epoch.
    """
    epochs = len(curve)
    best = max if direction == "max" else min
    reached = [best(other[:epochs]) for other in others if len(other) >= epochs > 0]
    if len(reached) < max(1, least):
        return False
    mine, middle = best(curve), median(reached)
    return mine < middle if direction == "max" else mine > middle


def winner_of(trials: Sequence[Mapping[str, Any]], objective: Objective) -> Mapping[str, Any] | None:
    """The finished trial with the best value among those within the budget, the earlier one of two equals; None: there is none."""
    best: Mapping[str, Any] | None = None
    for trial in trials:
        if trial["state"] == "finished" and not trial["overshoot"] and (best is None or objective.better(trial["value"], best["value"])):
            best = trial
    return best
