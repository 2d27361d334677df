"""Does a search find better settings, and does its process stay small?

    python benchmarks/search.py --gain                 Bayesian search of 12 trials on SST-2 (a part of it) against the sst2 preset, 3 seeds each
    python benchmarks/search.py --memory               memory of the search after 20 trials against after the first; trials of a second each
    python benchmarks/search.py --memory --real        the same with real (tiny) trainings: about 10 minutes

Each prints one JSON line. `--gain` shortens the preset to what 30 minutes hold: `--limit` rows, `--epochs` epochs, no R-Drop; both sides get the same. It goes on
where it was when it is started again with the same `--folder`. SST-2 is not part of the project: put it under ../shared/data, or name its folder in
TFPIPELINE_DATA. What it does not show: what a search finds on the whole of the data, or with other spaces; a difference of one search is one draw of searches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

DATA = Path(os.environ.get("TFPIPELINE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "sst2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gain", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--trials", type=int, default=0, help="default: 12 for --gain, 20 for --memory")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=1200, help="training rows of --gain")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of --gain")
    parser.add_argument("--folder", type=Path, default=None, help="where the search lies (default: a temporary folder)")
    options = parser.parse_args()
    if options.gain:
        print(json.dumps(gain(options)))
    if options.memory:
        print(json.dumps(memory(options)))
    if not options.gain and not options.memory:
        parser.error("say --gain or --memory")


def gain(options: argparse.Namespace) -> dict[str, object]:
    """The command that a user types, in a process of its own; its document has everything."""
    settings = {
        "data.path": f'["{DATA / "train.tsv"}"]',
        "data.validation_path": f'["{DATA / "dev.tsv"}"]',
        "data.test_path": f'["{DATA / "test.tsv"}"]',
        "data.limit": options.limit,
        "train.epochs": options.epochs,
        "model.r_drop_alpha": 0.0,
        "train.tensorboard": "false",
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "search"
        command = [sys.executable, "-m", "tfpipeline", "search", "--json", "--preset", "sst2", "--tuner", "bayesian"]
        command += ["--trials", str(options.trials or 12), "--seeds", str(options.seeds), "--search", str(folder)]
        command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        started = time.monotonic()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout)
        final = found["final"]
        return {
            "benchmark": "search gain",
            "trials": found["counts"],
            "limit": options.limit,
            "epochs": options.epochs,
            "winner": found["winner"]["values"],
            "best_validation": found["winner"]["value"],
            "seeds": final["seeds"],
            "winner_test": final["winner"],
            "default_test": final["default"],
            "difference": final["difference"],
            "n": final["n"],
            "verdict": final["verdict"],
            "minutes": round((time.monotonic() - started) / 60, 1),
            "commit": found["git"].get("commit"),
        }


def memory(options: argparse.Namespace) -> dict[str, object]:
    """The search runs in this process; after each trial it looks at its own resident memory."""
    from tests.search_process import settings
    from tfpipeline import config as configs
    from tfpipeline import runtime
    from tfpipeline.search import runner, session, space
    from tfpipeline.search.tuner import Tuner

    runtime.quiet()
    seen: list[int] = []
    ended = Tuner.on_trial_end

    def on_trial_end(tuner: Tuner, trial: object) -> None:
        ended(tuner, trial)
        seen.append(_resident_bytes())

    Tuner.on_trial_end = on_trial_end  # type: ignore[method-assign]
    trials = options.trials or 20
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "search"
        changed: dict[str, object] = {"tuner": "bayesian", "trials": trials}
        if options.real:
            base = configs.load("scratch", overrides=["train.epochs=1", "evaluate.bootstrap_samples=100"])
            changed |= {"base": base, "space": space.load("scratch", base), "command": runner.COMMAND, "prune": False}
        started = time.monotonic()
        found = session.search(settings(folder, **changed))
    return {
        "benchmark": "search memory",
        "trials": found["counts"],
        "real": options.real,
        "mb_after_first": round(seen[0] / 1e6, 1),
        "mb_after_last": round(seen[-1] / 1e6, 1),
        "ratio": round(seen[-1] / seen[0], 3),
        "largest_ratio": round(max(seen) / seen[0], 3),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
