"""What do the recipes make of a trained run: accuracy (paired), agreement, size, gzip, zeros, latency, and how many matrix products are int8?

    python benchmarks/compression.py RUN                                       every ready recipe
    python benchmarks/compression.py RUN --recipe trim-int8 --recipe prune80   these

For the table: a run of presets/sst2.toml (benchmarks/accuracy.py says where the data goes). The run is not changed: a copy is compressed, in WORK (default:
beside the run, RUN-compressed), where a second call goes on and finds what the first one made. Budgets are reported, not held: what falls short is a row too.

One JSON line a recipe, ending with those that failed. Latency is of one text at its true length, variant and original asked in turn. What it does not show:
the spread over training seeds, phones, and any processor but the one it ran on.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import time
from pathlib import Path
from typing import Any

from tfpipeline import runs, runtime
from tfpipeline.compress import recipes
from tfpipeline.errors import GateError, PipelineError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a trained run: path or name under runs/")
    parser.add_argument("--recipe", action="append", default=[], help="a ready recipe or a file; repeatable (default: all ready ones)")
    parser.add_argument("--work", default="", help="where the copy of the run goes")
    parser.add_argument("--texts", type=int, default=200, help="of which latency is measured")
    options = parser.parse_args()
    chosen = [recipes.load(name) for name in options.recipe or recipes.names()]
    # Those that another one begins with come first, so that they are trained once.
    chosen.sort(key=lambda recipe: len(recipe.steps))
    source = runs.find(options.run)
    copy = copied(source, Path(options.work or f"{source.path}-compressed"))
    runtime.quiet()
    runtime.apply(copy.config.runtime)
    from tfpipeline.compress import chain, report

    original = chain.Original.open(copy, texts=options.texts)
    print(
        json.dumps(
            {"what": "original", "processor": platform.processor() or platform.machine(), "threads": original.threads, **original.facts}
        ),
        flush=True,
    )
    failed = []
    for recipe in chosen:
        started = time.monotonic()
        try:
            made = made_anyway(original, recipe)
        except PipelineError as error:
            failed.append({"what": recipe.name, "error": type(error).__name__, "message": str(error)})
            continue
        print(json.dumps(line(made, recipe, report.row_of(made), time.monotonic() - started)), flush=True)
    for one in failed:
        print(json.dumps(one), flush=True)


def made_anyway(original: Any, recipe: recipes.Recipe) -> dict[str, Any]:
    """The variant, also where it breaks its budget; the first try has the real one, which int8_full aims at."""
    from tfpipeline.compress import chain

    try:
        return chain.compress(original, recipe)
    except GateError:
        return chain.compress(original, recipe, max_drop=100.0)


def copied(source: runs.Run, place: Path) -> runs.Run:
    """The run in another folder, without the checkpoints that only a resumed training needs."""
    if not (place / "run.json").is_file():
        with runs.atomic_folder(place) as folder:
            shutil.copytree(
                source.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("step-*", "tensorboard", "compressed", ".lock")
            )
    return runs.Run(place)


def line(made: dict[str, Any], recipe: recipes.Recipe, row: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Everything that the table asks for."""
    last = made["steps"][-1]["told"]
    budget = 1.0 if recipe.max_drop is None else recipe.max_drop
    return {
        "what": recipe.name,
        **{key: value for key, value in row.items() if key not in ("variant", "max_drop", "passes", "refused")},
        "budget": budget,
        "within_budget": row["drop_points"] <= budget,
        "mcnemar_p": made["difference"]["mcnemar_p"],
        "two_of_four": made["sparsity"]["two_of_four"],
        "matmuls": last.get("matmuls"),
        "int8_share": last.get("int8_share"),
        "kept_float": last.get("kept"),
        "steps": [{"kind": step["kind"], "drop_points": step["drop_points"], "seconds": step["seconds"]} for step in made["steps"]],
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
