"""How good is a preset on real files, over several seeds, beside TF-IDF + logistic regression on the same split?

    python benchmarks/accuracy.py sst2 [--seeds 1 2 3]      presets/sst2.toml on SST-2
    python benchmarks/accuracy.py sst2-scratch              the same without any pretrained weights
    python benchmarks/accuracy.py chnsenticorp              Chinese hotel reviews, no pretrained weights, vocabulary learned from the data

Each seed is a whole training; one JSON line a seed, then one with the means. The data is not part of the project: put it under
../shared/data, or name its folder in TFPIPELINE_DATA. What it does not show: how the numbers move with another split of the data.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tfpipeline import config, runtime

DATA = Path(os.environ.get("TFPIPELINE_DATA", Path(__file__).parents[2] / "shared" / "data"))
SST2 = [
    f"data.path={DATA / 'sst2' / 'train.tsv'}",
    f"data.validation_path={DATA / 'sst2' / 'dev.tsv'}",
    f"data.test_path={DATA / 'sst2' / 'test.tsv'}",
]
SETTINGS: dict[str, tuple[str, list[str]]] = {
    "sst2": ("sst2", SST2),
    "sst2-scratch": (
        "sst2",
        [*SST2, "model.backbone=scratch:mini", "model.r_drop_alpha=0", "train.epochs=10", "train.learning_rate=5e-4", "train.layer_decay=1.0", "model.dropout=0.2"],
    ),
    "chnsenticorp": (
        "",
        [
            f"data.path={DATA / 'chnsenticorp' / 'hotel.csv'}", "name=chnsenticorp", "data.text=review", "data.on_bad_row=quarantine", "text.max_length=128",
            "text.vocabulary_size=5000", "model.backbone=scratch:tiny", "model.dropout=0.2", "model.ema_decay=0.99", "train.epochs=6", "train.learning_rate=1e-3",
        ],
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=sorted(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    runtime.quiet()
    runtime.check()
    from tfpipeline.train import train

    preset, overrides = SETTINGS[options.which]
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        loaded = config.load(preset, "", [*overrides, *options.set, f"runtime.seed={seed}"])
        with tempfile.TemporaryDirectory() as folder:
            result = train(loaded, root=Path(folder))
        metrics, baseline = result.metrics["metrics"], result.metrics["baseline"]
        rows.append(
            {
                "benchmark": options.which,
                "seed": seed,
                "validation_accuracy": result.metrics["validation"]["accuracy"]["value"],
                "test_accuracy": metrics["accuracy"]["value"],
                "test_macro_f1": metrics["macro_f1"]["value"],
                "tfidf_accuracy": baseline["accuracy"]["value"],
                "tfidf_macro_f1": baseline["macro_f1"]["value"],
                "against_tfidf": result.metrics["comparison"]["verdict"],
                "best_epoch": result.best_epoch,
                "seconds": round(result.seconds),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    means = {key: round(statistics.mean(row[key] for row in rows), 4) for key in rows[0] if isinstance(rows[0][key], float)}
    spread = {key: [round(min(row[key] for row in rows), 4), round(max(row[key] for row in rows), 4)] for key in means}
    print(json.dumps({"benchmark": options.which, "seeds": len(rows), "mean": means, "min_max": spread}))


if __name__ == "__main__":
    main()
