"""The conversions to int8, and which matrix products stay in float.

`int8_dynamic` is one call of `tfpipeline.edge.convert`. `int8_full` is a loop around it: convert, ask the file about the validation rows, and while more
than half the budget is lost there (half, because these rows choose), leave the product in float that alone does most harm. The harm of a product is
measured, not guessed: the model answers training texts with the factors and the result of that product alone rounded to int8, and its log-probabilities are compared with those of the
untouched model. A model that was trained quantization-aware has its ranges already: it is converted once, as it is.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipeline import evaluate
from tfpipeline.compress.measure import Rows
from tfpipeline.compress.recipes import Int8Dynamic, Int8Full
from tfpipeline.data import Corpus
from tfpipeline.edge import convert, probe
from tfpipeline.edge.calibration import Quantizers, calibrate
from tfpipeline.edge.runner import EdgeModel
from tfpipeline.trained import Trained

logger = logging.getLogger(__name__)

SUSPECT_TEXTS = 64  # that each product is tried on
_LEAST_PROBABILITY = 1e-6


def int8_dynamic(trained: Trained, corpus: Corpus, settings: Int8Dynamic) -> tuple[bytes, dict[str, Any]]:
    """The file, and what `convert` reports; training rows of the corpus tell which columns are long, and where the table of word pieces may be coarse."""
    texts, pairs = _some(corpus, settings.calibration_rows, trained.config.runtime.seed)
    converted = convert.convert(
        trained, mode="dynamic", lengths=settings.lengths, calibration=texts, calibration_pairs=pairs, table_bits=settings.table_bits
    )
    return converted.data, _without_operators(converted.report)


def int8_full(
    trained: Trained, corpus: Corpus, rows: Rows, settings: Int8Full, budget: float, threads: int
) -> tuple[bytes, dict[str, Any]]:
    """The file, and what `convert` reports.

    Args:
        trained: the model.
        corpus: its training rows give the ranges and the suspects.
        rows: its validation rows choose.
        settings: lengths, calibration rows, what is kept from the start, and how much may be.
        budget: points of accuracy.
        threads: of LiteRT.

    Returns:
        Beside the report of `convert`: `kept` (which products, and why: the harm that each does alone, and the validation drop before it was kept),
        `validation_drop` (points), `tried` (conversions).
    """
    texts, pairs = _some(corpus, settings.calibration_rows, trained.config.runtime.seed)
    learned = convert.is_quantized(trained)
    keep = list(settings.keep_float)
    kept: list[dict[str, Any]] = [{"product": name, "why": "the recipe says so"} for name in keep]
    suspects: list[tuple[float, str]] | None = None
    tried = 0
    while True:
        converted = convert.convert(
            trained,
            mode="int8",
            lengths=settings.lengths,
            calibration=texts,
            calibration_pairs=pairs,
            keep_float=tuple(keep),
            table_bits=settings.table_bits,
        )
        tried += 1
        drop = _drop(trained, rows, EdgeModel(converted.data, threads=threads))
        logger.info("int8: %d products in float, %.2f points lost on validation", len(converted.report["kept_float"]), drop)
        if drop <= budget / 2 or learned:
            break
        if suspects is None:
            quantizers = calibrate(trained, texts, pairs, tuple(keep), trained.config.text.max_length)
            suspects = harm(trained, texts[:SUSPECT_TEXTS], None if pairs is None else pairs[:SUSPECT_TEXTS], quantizers)
            most = math.floor(settings.most_float * len(suspects))
        if len(kept) - len(settings.keep_float) >= most or not suspects:
            break
        size, name = suspects.pop(0)
        keep.append(name)
        kept.append({"product": name, "harm": round(size, 4), "validation_drop_before": round(drop, 3)})
    told = {**_without_operators(converted.report), "kept": kept, "validation_drop": round(drop, 3), "tried": tried}
    return converted.data, told


def harm(trained: Trained, texts: list[str], pairs: list[str] | None, quantizers: Quantizers) -> list[tuple[float, str]]:
    """How far the log-probabilities move when one product alone is rounded to int8, mean over texts and classes; the worst first."""
    products = sorted({product for product, _ in quantizers.ranges} - set(quantizers.kept))
    numbers = {product: number for number, product in enumerate(products)}
    rounded = tf.Variable(-1, dtype=tf.int32, trainable=False)  # the product in question

    def point(product: str, role: str, value: tf.Tensor) -> tf.Tensor:
        other = quantizers.point(product, role, value)
        return value if other is value else tf.where(rounded == numbers[product], other, value)

    # Kernels are in int8 whatever stays in float: what a product does harm with are its factors and its result.
    graph = quantizers.graph(trained, point=point)
    forward = tf.function(graph, input_signature=[tf.TensorSpec([1, None], tf.int32)] * 3, autograph=False)
    rows = probe.token_rows(trained, texts, pairs, trained.config.text.max_length)

    def logs(product: int) -> Any:
        rounded.assign(product)
        return np.log(np.maximum(np.concatenate([forward(*row).numpy() for row in rows]), _LEAST_PROBABILITY))

    untouched = logs(-1)
    found = [(float(np.abs(logs(number) - untouched).mean()), product) for product, number in numbers.items()]
    return sorted(found, reverse=True)


def _drop(trained: Trained, rows: Rows, edge: EdgeModel) -> float:
    """Points of accuracy lost on the validation rows."""
    some = np.arange(rows.validation)
    answers = edge.predict(*rows.examples.text_batch(some))
    found = evaluate.compare(
        answers,
        rows.probabilities[some],
        rows.examples.labels[some],
        trained.task,
        config=trained.config.evaluate,
        seed=trained.config.runtime.seed,
    )
    return float(-100 * found["accuracy_difference"]["value"])


def _some(corpus: Corpus, count: int, seed: int) -> tuple[list[str], list[str] | None]:
    """Training texts, of every length because chosen at random; `calibrate` spreads them over the lengths."""
    train = corpus.train
    return train.text_batch(np.random.default_rng(seed).permutation(len(train))[:count])


def _without_operators(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key != "operators"}
