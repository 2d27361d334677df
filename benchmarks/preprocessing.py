"""Texts a second through our in-graph preprocessor, against `BertTokenizerFast` called on batches of the same size.

Both clean nothing away that the other keeps on this corpus, pad, cut and give the three inputs of BERT; in turns, batches of 256.
What it does not show: texts full of HTML or non-Latin scripts, where more rows take the slow way, and tokenizers run in several processes.

    python benchmarks/preprocessing.py [--repeats 7]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

from tfpipeline import backbone, config, runtime, text
from tfpipeline.data import prepare

DATA = Path(__file__).parents[2] / "shared" / "data" / "sst2"
BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    runtime.quiet()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # the peer may use every core as well
    runtime.check()
    import tensorflow as tf
    from transformers import BertTokenizerFast

    preset = config.load("sst2", overrides=[f"data.path={DATA / 'train.tsv'}"]) if DATA.is_dir() else config.load("bank")
    found = backbone.find(preset.model.backbone, offline=True)
    assert found.vocabulary
    texts = prepare(preset.data).train.texts.to_pylist()
    texts = (texts * (60_000 // len(texts) + 1))[:60_000]
    preprocessor = text.Preprocessor(text.read_vocabulary(found.vocabulary), config.load().text, found.lower_case)
    reference = BertTokenizerFast(str(found.vocabulary))

    strings = tf.constant(texts)  # each side gets the strings in the form it takes: a tensor here, Python lists there

    def ours() -> float:
        started = time.perf_counter()
        rows = tf.data.Dataset.from_tensor_slices(strings).batch(BATCH).map(preprocessor, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
        for _ in rows:
            pass
        return len(texts) / (time.perf_counter() - started)

    def theirs() -> float:
        started = time.perf_counter()
        for i in range(0, len(texts), BATCH):
            reference(texts[i : i + BATCH], padding=True, truncation=True, max_length=128, return_tensors="np")
        return len(texts) / (time.perf_counter() - started)

    ours()
    theirs()
    pairs = [(ours(), theirs()) for _ in range(options.repeats)]
    ratios = [a / b for a, b in pairs]
    print(
        json.dumps(
            {
                "benchmark": "preprocessing",
                "texts": len(texts),
                "words_per_text": round(sum(len(t.split()) for t in texts) / len(texts), 1),
                "texts_per_second": {
                    "ours": round(statistics.median(a for a, _ in pairs)),
                    "BertTokenizerFast": round(statistics.median(b for _, b in pairs)),
                },
                "ratio": {"median": round(statistics.median(ratios), 1), "min": round(min(ratios), 1), "max": round(max(ratios), 1)},
                "n": options.repeats,
            }
        )
    )


if __name__ == "__main__":
    main()
