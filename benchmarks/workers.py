"""What does a second worker cost? Both on this machine, over loopback, with one core each.

    python benchmarks/workers.py --exchange            the all-reduce of one step's dense gradients (44 MB) between two processes, and of 4 bytes
    python benchmarks/workers.py --training            `tfpipeline train --preset bank`, one worker with half the batch against two with the whole one

Each prints one JSON line. `--exchange` gives the rate of TensorFlow's own gRPC ring, which is what docs/scaling.md compares with a network: loopback has no network
card, but every byte is serialised, copied and added as between machines. `--training` gives the efficiency of two workers: rows a second of two, divided by
twice those of one. What it does not show: more than two workers, GPUs, a network. Measure on a quiet machine with at least two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
DENSE_BYTES = 43_974_152  # of the 6-layer, 384-wide model with two labels: all weights but the 30,522 word embeddings

EXCHANGE = """
import json, statistics, sys, time
from tfpipeline import runtime
from tfpipeline.config import RuntimeConfig
runtime.quiet()
strategy = runtime.apply(RuntimeConfig(strategy="multiworker", threads=1))
import tensorflow as tf

def seconds(floats, rounds):
    value = tf.ones([floats])
    summed = tf.function(lambda: strategy.run(lambda: tf.distribute.get_replica_context().all_reduce("SUM", tf.identity(value))))
    taken = []
    for number in range(rounds + 3):
        started = time.monotonic()
        assert float(summed()[0]) == 2.0
        taken.append(time.monotonic() - started)
    return taken[3:]

print(json.dumps({"dense": seconds(int(sys.argv[1]) // 4, 20), "small": seconds(1, 200)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exchange", action="store_true")
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--rounds", type=int, default=3, help="of --training, each one worker and then two")
    options = parser.parse_args()
    if not options.exchange and not options.training:
        parser.error("say --exchange or --training")
    if options.exchange:
        print(json.dumps(exchange()))
    if options.training:
        print(json.dumps(training(options.rounds)))


def exchange() -> dict[str, object]:
    found = json.loads(_run([["-c", EXCHANGE, str(DENSE_BYTES)]] * 2)[0])
    dense = statistics.median(found["dense"])
    return {
        "benchmark": "exchange between two workers",
        "bytes": DENSE_BYTES,
        "seconds": round(dense, 4),
        "spread": [round(min(found["dense"]), 4), round(max(found["dense"]), 4)],
        "n": len(found["dense"]),
        # In a ring of two each sends 2 (N - 1) / N = 1 times its bytes.
        "gigabits_per_second": round(8e-9 * DENSE_BYTES / dense, 2),
        "small_ms": round(1000 * statistics.median(found["small"]), 2),
    }


def training(rounds: int) -> dict[str, object]:
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for count in rates:
                command = [
                    "-m", "tfpipeline", "train", "--json", "--preset", "bank", "--runs", folder, "--set", "train.epochs=3", "--set", "runtime.threads=1",
                    "--set", f"train.batch_size={16 * count}", "--set", f"runtime.strategy={'multiworker' if count > 1 else 'one'}",
                    "--set", "evaluate.tfidf_baseline=false", "--set", "train.tensorboard=false",
                ]  # fmt: skip
                rates[count].append(json.loads(_run([command] * count)[0])["examples_per_second"])
    medians = {count: statistics.median(values) for count, values in rates.items()}
    return {
        "benchmark": "training with two workers",
        "rows_per_second": {f"{count} workers": values for count, values in rates.items()},
        "efficiency": round(medians[2] / (2 * medians[1]), 3),
    }


def _run(commands: Sequence[Sequence[str]]) -> list[str]:
    """What each of the workers prints."""
    ports = []
    with_ports = [socket.socket() for _ in commands]
    for one in with_ports:
        one.bind(("127.0.0.1", 0))
        ports.append(one.getsockname()[1])
    for one in with_ports:
        one.close()
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    started = []
    for index, command in enumerate(commands):
        environment = dict(os.environ)
        if len(commands) > 1:
            environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        started.append(subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT))
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit("a worker failed; its message is above")
    return outputs


if __name__ == "__main__":
    main()
