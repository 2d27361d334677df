"""How long does `tfpipeline --help` take, as a whole process?

python benchmarks/startup.py [--runs 20]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "tfpipeline --help": [sys.executable, "-m", "tfpipeline", "--help"],
    "tfpipeline train --help": [sys.executable, "-m", "tfpipeline", "train", "--help"],
    "python -m serving --help": [sys.executable, "-m", "serving", "--help"],
    "python -c 'from serving import Client'": [sys.executable, "-c", "from serving import Client"],
    "python -c pass": [sys.executable, "-c", "pass"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(options.runs + 1):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            if number:  # the first one warms the file cache
                seconds[name].append(time.perf_counter() - started)
    figures = {
        name: {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}
        for name, values in seconds.items()
    }
    print(json.dumps({"benchmark": "startup", "n": options.runs, "seconds": figures}))


if __name__ == "__main__":
    main()
