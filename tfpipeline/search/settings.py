"""What one search is asked to do; every module of it takes what it needs from here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfpipeline.config import Config
from tfpipeline.search import runner
from tfpipeline.search.objective import Objective
from tfpipeline.search.space import Space


@dataclass(frozen=True)
class Settings:
    """One search.

    Attributes:
        folder: where it lies.
        base: the default Config.
        space: what varies.
        objective: what is best.
        tuner: "random", "grid", "bayesian" or "hyperband".
        trials: at most so many; None: all of a grid or of a Hyperband sweep.
        seeds: with how many seeds the winner and the default are trained anew; 0: not at all.
        prune: whether the median rule ends hopeless trials.
        worker_timeout: seconds after which a silent worker counts as dead.
        command: what starts a trial.
    """

    folder: Path
    base: Config
    space: Space
    objective: Objective
    tuner: str = "bayesian"
    trials: int | None = 20
    seeds: int = 3
    prune: bool = True
    worker_timeout: float = 60.0
    command: Sequence[str] = runner.COMMAND

    def identity(self) -> dict[str, Any]:
        """What makes it this search and no other. More trials or seeds are the same search, gone on with."""
        return {
            "tuner": self.tuner,
            "objective": self.objective.describe(),
            "space": self.space.describe(),
            "config": self.base.to_dict(),
        }
