"""Which keys made a difference: a random forest learns the objective from the values, then each key is shuffled.

In: trials that finished. Out: per key, by how much the forest's error grows without it. What it does not say: which value is better, what keys do
together, or anything at all when the forest has not learned (`explained` near or below 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfpipeline.search.space import Space

LEAST_TRIALS = 8
TREES, SHUFFLES = 300, 20
INACTIVE = -0.5  # a key whose conditions did not hold: outside [0, 1], where its values lie


def importances(trials: Sequence[dict[str, Any]], space: Space, seed: int = 1) -> dict[str, Any] | None:
    """Permutation importances (Breiman 2001, section 10), largest first.

    Args:
        trials: records; only finished ones count.
        space: whose keys are asked about.
        seed: of forest and shuffles.

    Returns:
        `n`, `explained` (R^2 on trials that a tree has not seen), `keys`: [{"key", "value", "spread"}], `value` as a share of their sum; None for fewer
        than `LEAST_TRIALS` trials, or when all had the same result.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    finished = [one for one in trials if one["state"] == "finished"]
    targets = np.array([one["value"] for one in finished], float)
    if len(finished) < LEAST_TRIALS or not np.ptp(targets) > 0:
        return None
    keys = space.keys
    places = np.array(
        [[space[key].place(one["values"][key]) if key in one["values"] else INACTIVE for key in keys] for one in finished], float
    )
    forest = RandomForestRegressor(TREES, min_samples_leaf=2, oob_score=True, random_state=seed).fit(places, targets)
    found = permutation_importance(forest, places, targets, n_repeats=SHUFFLES, random_state=seed)
    total = float(np.clip(found.importances_mean, 0, None).sum())
    shares = found.importances_mean / total if total > 0 else np.zeros(len(keys))
    spreads = found.importances_std / total if total > 0 else np.zeros(len(keys))
    rows = [{"key": key, "value": float(share), "spread": float(spread)} for key, share, spread in zip(keys, shares, spreads, strict=True)]
    return {"n": len(finished), "explained": float(forest.oob_score_), "keys": sorted(rows, key=lambda row: -float(str(row["value"])))}
