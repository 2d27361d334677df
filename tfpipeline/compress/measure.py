"""What a variant costs and what it is still worth, beside the model it was made from: same rows, same texts, same minute.

In: models and the rows of a run. Out: plain JSON types. Nothing here judges; the budget is `chain`'s business.

| measured | how |
|---|---|
| accuracy, interval | on the validation and test rows together; Wilson |
| difference, agreement | paired, on the same rows: `evaluate.compare` |
| bytes, gzip | the files that make the model: the `.tflite`, or weights, vocabulary and description; gzip of each, summed |
| sparsity | share of exact zeros among the encoder's kernels, in the float weights |
| latency | one text at a time, string to probabilities, texts of the test rows at their true length; both models in turn, text by text, so that whatever else the machine does hits both |
"""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfpipeline import evaluate
from tfpipeline.data import Corpus, Examples
from tfpipeline.evaluate.intervals import wilson
from tfpipeline.techniques import zeros
from tfpipeline.techniques.places import GROUPS, encoder_places
from tfpipeline.trained import Trained, to_probabilities

Answer = Callable[[str, str | None], Any]
WARM_UP = 10  # texts before the clock starts


@dataclass
class Rows:
    """The rows that decide, and what the original says about them.

    Attributes:
        examples: validation and test of the run.
        validation: how many of them, the first ones, are validation.
        probabilities: of the original, float32 `[rows, classes]`.
    """

    examples: Examples
    validation: int
    probabilities: npt.NDArray[np.float32]


def rows_of(trained: Trained, corpus: Corpus) -> Rows:
    """Validation and test, answered by this model."""
    examples = Examples.concatenate([corpus.validation, corpus.test])
    return Rows(examples, len(corpus.validation), trained.predict_examples(examples, batch_size=trained.config.evaluate.batch_size))


def quality(trained: Trained, rows: Rows, probabilities: npt.NDArray[np.float32], name: str) -> dict[str, Any]:
    """`rows`, `accuracy`, `interval`, `difference` (what `evaluate.compare` says, variant - original), `agreement`."""
    config = trained.config
    found = evaluate.compare(
        probabilities,
        rows.probabilities,
        rows.examples.labels,
        trained.task,
        config=config.evaluate,
        seed=config.runtime.seed,
        names=(name, "original"),
    )
    interval = wilson(round(found["accuracy_a"] * found["n"]), found["n"], config.evaluate.confidence)
    return {
        "rows": found["n"],
        "accuracy": found["accuracy_a"],
        "interval": [interval["low"], interval["high"]],
        "difference": found,
        "agreement": found["label_agreement"],
    }


def drop_points(measured: Mapping[str, Any]) -> float:
    """Points of accuracy lost; negative: won."""
    return float(-100 * measured["difference"]["accuracy_difference"]["value"])


def sizes(folder: Path) -> dict[str, int]:
    """`bytes` and `gzip_bytes` of the variant in a folder."""
    converted = folder / "model.tflite"
    files = [converted] if converted.is_file() else [*sorted(folder.glob("weights*")), folder / "model.json", folder / "vocab.txt"]
    return {"bytes": sum(path.stat().st_size for path in files), "gzip_bytes": sum(map(_gzipped, files))}


def sparsity(trained: Trained) -> dict[str, Any]:
    """Share of zeros: `encoder`, `attention`, `feed_forward`; `two_of_four`, the share of groups of four neighbours along a column that hold at least
    two zeros; `layers`, by the name of the kernel.
    """
    kernels = {place: place.dense.kernel.numpy() for place in encoder_places(trained.model)}
    fours = np.concatenate([zeros.in_fours(kernel) for kernel in kernels.values()])
    return {
        "encoder": zeros.share(kernels.values()),
        **{group: zeros.share(kernel for place, kernel in kernels.items() if place.group == group) for group in GROUPS},
        "two_of_four": float((fours >= 2).mean()),
        "layers": {place.name: zeros.share([kernel]) for place, kernel in kernels.items()},
    }


def answer_of(trained: Trained) -> Answer:
    """One text to its probabilities, in one graph as the exported model has it."""
    columns = [tf.TensorSpec([None], tf.string)] * (2 if trained.has_pairs else 1)
    function = tf.function(
        lambda *texts: to_probabilities(trained.model(trained.preprocessor(*texts), training=False).logits, trained.task),
        input_signature=columns,
        autograph=False,
    )

    def answer(text: str, pair: str | None) -> Any:
        return function(*(tf.constant([part]) for part in ((text,) if pair is None else (text, pair)))).numpy()

    return answer


def latency(answers: Mapping[str, Answer], examples: Examples, texts: int, threads: int) -> dict[str, dict[str, Any]]:
    """`p50`, `p95` (milliseconds), `texts` and `threads` of each model, asked in turn about the same texts."""
    some = np.linspace(0, len(examples) - 1, min(texts, len(examples))).astype(np.int64)
    rows, pairs = examples.text_batch(some)
    partners: list[str | None] = [None] * len(rows) if pairs is None else list(pairs)
    asked = list(zip(rows, partners, strict=True))
    for text, pair in asked[:WARM_UP]:
        for answer in answers.values():
            answer(text, pair)
    seconds: dict[str, list[float]] = {name: [] for name in answers}
    for text, pair in asked:
        for name, answer in answers.items():
            started = time.perf_counter()
            answer(text, pair)
            seconds[name].append(time.perf_counter() - started)
    return {
        name: {
            "p50": round(1000 * float(np.percentile(found, 50)), 3),
            "p95": round(1000 * float(np.percentile(found, 95)), 3),
            "texts": len(found),
            "threads": threads,
        }
        for name, found in seconds.items()
    }


def threads_of(trained: Trained) -> int:
    """How many a model may use: `runtime.threads`, or one per core."""
    return trained.config.runtime.threads or len(os.sched_getaffinity(0))


def _gzipped(path: Path) -> int:
    class Counter:
        size = 0

        def write(self, block: bytes) -> int:
            self.size += len(block)
            return len(block)

        def flush(self) -> None:
            """gzip asks for it."""

    counter: Any = Counter()
    with path.open("rb") as stream, gzip.GzipFile(filename="", mode="wb", fileobj=counter, compresslevel=6, mtime=0) as packed:
        for block in iter(lambda: stream.read(1 << 20), b""):
            packed.write(block)
    return int(counter.size)
