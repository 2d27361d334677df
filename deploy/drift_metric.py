"""The verdict of `python -m serving monitor --json` -> a metric that node_exporter's textfile collector shows to Prometheus.

python -m serving monitor --json --journal journal --model models/bank --since 24h | python deploy/drift_metric.py --output DIR/serving_drift_bank.prom

`serving_drift_verdict`: 0 ok, 1 warn, 2 alarm, -1 too few rows to judge. What cannot be read leaves the file as it was: its age is watched.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

VALUES = {"ok": 0, "warn": 1, "alarm": 2, "too_few": -1}


def main() -> int:
    """Writes the file, whole or not at all; 2 when there is no verdict to write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="in the textfile collector's folder; ends in .prom")
    options = parser.parse_args()
    if options.output.suffix != ".prom":
        sys.stderr.write(f"{options.output}: expected a name that ends in .prom: the collector reads no other.\n")
        return 2
    try:
        report = json.load(sys.stdin)
        name, value = json.dumps(str(report["model"]), ensure_ascii=False), VALUES[report["level"]]
    except (ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"expected the JSON of `python -m serving monitor --json` on stdin: {type(error).__name__}: {error}\n")
        return 2
    lines = [
        "# HELP serving_drift_verdict Last comparison of the journal with the reference: 0 ok, 1 warn, 2 alarm, -1 too few rows.",
        "# TYPE serving_drift_verdict gauge",
        f"serving_drift_verdict{{model={name}}} {value}",
    ]
    # Not .prom: the collector would read the half of it.
    written = options.output.with_suffix(".part")
    try:
        written.write_text("\n".join(lines) + "\n", encoding="utf-8")
        written.replace(options.output)
    except OSError as error:
        sys.stderr.write(f"{options.output}: {error.strerror or error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
