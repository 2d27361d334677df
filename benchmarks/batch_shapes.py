"""Which texts should run together? Rates of one SavedModel in this process for batch sizes, orders and threads, and with TensorFlow's own batching op.

    python benchmarks/batch_shapes.py --model models/sentiment --texts ../shared/data/sst2/dev.tsv

`arrival` is a random order; `window` sorts every 32 waiting texts by length before they are cut into batches, which is what a queue of 32 clients allows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

WINDOW = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="an exported model")
    parser.add_argument("--texts", type=Path, required=True, help="a TSV whose first column is the text")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    from serving.registry import open_published
    from serving.server.servable import SavedModelRunnable

    texts = [line.split("\t")[0].encode() for line in options.texts.read_text(encoding="utf-8").splitlines()]
    model = SavedModelRunnable(open_published(options.model).path, frozenset({"serve"}))
    signature = model.signatures["serving_default"]
    feed, fetches = signature.inputs["text"].name, [signature.outputs["label"].name, signature.outputs["probabilities"].name]

    def run(batch: list[bytes]) -> Any:
        return model.run_tensors({feed: np.array(batch, np.object_)}, fetches, None)

    arrival = [texts[index] for index in np.random.default_rng(0).permutation(len(texts))]
    windowed = [text for start in range(0, len(arrival), WINDOW) for text in sorted(arrival[start : start + WINDOW], key=len)]
    contestants: dict[str, Callable[[], None]] = {}
    for size in (1, 8, 16, 32, 64):
        contestants[f"arrival, batches of {size}"] = rate_of(run, arrival, size, 1)
        contestants[f"sorted, batches of {size}"] = rate_of(run, sorted(arrival, key=len), size, 1)
    for threads in (1, 2, 3):
        for size in (4, 8, 16):
            contestants[f"window, batches of {size}, {threads} threads"] = rate_of(run, windowed, size, threads)
    contestants["TensorFlow's batching op, 32 callers"] = batching_op(options.model, arrival)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(options.rounds + 1):
        for name, contestant in contestants.items():
            started = time.perf_counter()
            contestant()
            if number:
                rates[name].append(len(texts) / (time.perf_counter() - started))
    figures = {name: [round(value, 1) for value in (statistics.median(values), min(values), max(values))] for name, values in rates.items()}
    print(json.dumps({"benchmark": "batch_shapes", "texts": len(texts), "rounds": options.rounds, "texts_per_s_median_min_max": figures}))


def rate_of(run: Callable[[list[bytes]], Any], texts: list[bytes], size: int, threads: int) -> Callable[[], None]:
    batches = [texts[start : start + size] for start in range(0, len(texts), size)]

    def contestant() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, batches))

    return contestant


def batching_op(folder: Path, texts: list[bytes]) -> Callable[[], None]:
    """The same model behind `tf.nondifferentiable_batch_function`, called by 32 threads with one text each."""
    import tensorflow as tf

    from serving.registry import open_published

    loaded = tf.saved_model.load(str(open_published(folder).path))
    signature = loaded.signatures["serving_default"]

    @tf.nondifferentiable_batch_function(num_batch_threads=2, max_batch_size=64, batch_timeout_micros=0, max_enqueued_batches=64)
    def batched(text: Any) -> Any:
        return signature(text=text)["probabilities"]

    traced = tf.function(batched, input_signature=[tf.TensorSpec([None], tf.string)])

    def contestant(keep: Any = loaded) -> None:  # the signature alone does not keep the variables
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(lambda text: traced(tf.constant([text])), texts))

    return contestant


if __name__ == "__main__":
    main()
