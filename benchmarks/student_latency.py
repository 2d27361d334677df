"""How many times as fast is a model of three layers as its teacher of six: one text at a time and in batches of 32 in TensorFlow, and on LiteRT?

    python benchmarks/student_latency.py --run latest [--layers 0 2 5] [--rounds 7]

Both answer the same 200 test texts in turn; a line is the median and the spread of the rounds' ratios. The student is not trained: what it answers does not
change how long it takes. What it does not show: phones, and accuracy (`benchmarks/compression.py RUN --recipe student3`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tfpipeline import runs, runtime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="latest")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2, 5])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    run = runs.find(options.run, options.runs)
    runtime.quiet()
    runtime.apply(run.config.runtime)
    import tensorflow as tf

    from tfpipeline.compress import layers, measure, recipes
    from tfpipeline.data import open_prepared
    from tfpipeline.edge.convert import convert
    from tfpipeline.edge.runner import EdgeModel
    from tfpipeline.trained import load

    corpus = open_prepared(run.path / "data")
    original = load(run)
    student, _ = layers.keep_layers(original, corpus, recipes.KeepLayers(layers=tuple(options.layers)))
    models = {"original": original, "student": student}
    threads = measure.threads_of(original)

    def one_by_one(answers: dict[str, Any]) -> float:
        found = measure.latency(answers, corpus.test, 200, threads)
        return float(found["original"]["p50"] / found["student"]["p50"])

    texts, _ = corpus.test.text_batch(np.linspace(0, len(corpus.test) - 1, 32).astype(np.int64))
    tokens = original.preprocessor(tf.constant(texts))
    forwards = {name: model._forward() for name, model in models.items()}

    def batched() -> float:
        seconds = {}
        for name, forward in forwards.items():
            started = time.perf_counter()
            for _ in range(5):
                forward(tokens).numpy()
            seconds[name] = time.perf_counter() - started
        return seconds["original"] / seconds["student"]

    in_tensorflow = {name: measure.answer_of(model) for name, model in models.items()}
    ways: dict[str, Callable[[], float]] = {"TensorFlow, one text": lambda: one_by_one(in_tensorflow), "TensorFlow, 32 texts": batched}
    for mode in ("float32", "dynamic"):
        edge = {name: EdgeModel(convert(model, mode=mode).data, threads=threads) for name, model in models.items()}
        answers = {name: lambda text, pair, model=model: model.predict([text])[0] for name, model in edge.items()}
        ways[f"LiteRT {mode}, one text"] = lambda answers=answers: one_by_one(answers)  # type: ignore[misc]
    for way, ratio in ways.items():
        ratio()  # warms up
        found = [ratio() for _ in range(options.rounds)]
        print(
            json.dumps(
                {"way": way, "times_as_fast": round(statistics.median(found), 3), "spread": [round(min(found), 3), round(max(found), 3)]}
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
