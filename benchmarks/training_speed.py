"""How much faster is our training than the stock recipe: Keras `fit`, every batch padded to 64, the optimizer as Keras has it?

Both train the same pretrained network on the same SST-2 sentences at the same batch size, in turns in one process, A B A B ..., one minute of
warm-up each is not counted. What it does not show: other lengths of text (the gain is padding and embedding rows; texts of always 64 tokens gain
only the second), GPUs, and the cost of R-Drop, which the `sst2` preset pays for accuracy.

    python benchmarks/training_speed.py [--rounds 3] [--warmup 60] [--seconds 30]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

from tfpipeline import backbone, batches, config, runtime, text
from tfpipeline.data import prepare

DATA = Path(__file__).parents[2] / "shared" / "data" / "sst2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=float, default=60.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    runtime.quiet()
    runtime.check()
    import numpy as np
    import tensorflow as tf
    import tf_keras
    from transformers import TFBertForSequenceClassification

    from tfpipeline.model import build
    from tfpipeline.optimizer import make_optimizer
    from tfpipeline.trained import count_tokens

    source = (
        [f"data.path={DATA / 'train.tsv'}"]
        if DATA.is_dir()
        else [
            "data.path=sample:bank_feedback",
            "data.text=text",
            "data.label=label",
            "data.header=auto",
            "data.format=auto",
            "data.labels=",
        ]
    )
    loaded = config.load("sst2", overrides=[*source, "model.r_drop_alpha=0", "model.ema_decay=0"])
    corpus = prepare(loaded.data)
    train = corpus.train
    found = backbone.find(loaded.model.backbone, offline=True)
    assert found.vocabulary
    assert found.weights
    vocabulary = text.read_vocabulary(found.vocabulary)
    preprocessor = text.Preprocessor(vocabulary, loaded.text, found.lower_case)
    lengths = np.minimum(count_tokens(preprocessor, train)[0], 64)
    size = loaded.train.batch_size

    ours = build(found, loaded.model, vocabulary_size=len(vocabulary), labels=corpus.labels, task="single_label", seed=1)
    ours.prepare_training(loaded.model, sparse_embeddings=True, seed=1)
    ours.compile_for_training(make_optimizer(loaded.train, 1000, ours.rate_multipliers(loaded.train.layer_decay)))

    class Stock(tf_keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.network = TFBertForSequenceClassification.from_pretrained(str(found.weights.parent), num_labels=len(corpus.labels))  # type: ignore[union-attr]

        def call(self, tokens: Any, training: bool = False) -> Any:
            return self.network(tokens, training=training).logits

    stock = Stock()
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    stock.compile(optimizer=tf_keras.optimizers.AdamW(1e-4, weight_decay=0.01, global_clipnorm=1.0), loss=loss, metrics=["accuracy"])

    padded = text.Preprocessor(vocabulary, config.load("sst2", overrides=["text.length_buckets=[]"]).text, found.lower_case)

    def endless(plan_of: Any, preprocess: Any) -> Any:
        plan = list(itertools.chain.from_iterable(plan_of(epoch) for epoch in range(40)))
        return iter(batches.dataset(plan, train.text_batch, preprocess, train.labels, train.weights))

    def random_plan(epoch: int) -> list[Any]:
        order = np.random.default_rng(epoch).permutation(len(train))
        return [order[i : i + size] for i in range(0, len(order), size)]

    feeds = {
        "ours": endless(lambda epoch: batches.training_plan(lengths, size, seed=1, epoch=epoch), preprocessor),
        "stock": endless(random_plan, padded),
    }
    steps = {"ours": tf.function(ours.train_step, reduce_retracing=True), "stock": tf.function(stock.train_step, reduce_retracing=True)}

    def run(name: str, seconds: float) -> tuple[float, float]:
        """(rows a second, share of the time spent waiting for input)."""
        rows, waited, started = 0, 0.0, time.perf_counter()
        while (now := time.perf_counter()) - started < seconds:
            batch = next(feeds[name])
            waited += time.perf_counter() - now
            result = steps[name](batch)
            float(result["loss"])  # wait for the step
            rows += int(batch[1].shape[0])
        total = time.perf_counter() - started
        return rows / total, waited / total

    for name in feeds:
        run(name, options.warmup)
    rates: dict[str, list[float]] = {"ours": [], "stock": []}
    waits: list[float] = []
    for _ in range(options.rounds):
        for name in feeds:
            rate, wait = run(name, options.seconds)
            rates[name].append(rate)
            if name == "ours":
                waits.append(wait)
    ratios = [a / b for a, b in zip(rates["ours"], rates["stock"], strict=True)]
    print(
        json.dumps(
            {
                "benchmark": "training_speed",
                "machine": platform.processor() or platform.machine(),
                "cores": len(os.sched_getaffinity(0)),
                "batch_size": size,
                "rows_per_second": {
                    name: {"median": round(statistics.median(v), 1), "all": [round(x, 1) for x in v]} for name, v in rates.items()
                },
                "ratio": {"median": round(statistics.median(ratios), 2), "all": [round(x, 2) for x in ratios]},
                "share_waiting_for_input": round(statistics.median(waits), 5),
            }
        )
    )


if __name__ == "__main__":
    main()
