"""Structured pruning: whole attention heads and feed-forward columns go, so the matrices that are left are smaller and every processor is faster.

What a head or a column is worth is the first-order Taylor estimate of how the loss would change without it (Molchanov et al. 2019, arXiv:1906.10771;
for heads Michel et al. 2019, arXiv:1905.10650): the gradient by a gate of 1 on its output. That gradient is the sum of weight times gradient over the
rows of the output matrix that read it, so no gate needs to be built. Absolute values are summed over small batches of training rows, scores are
normalised within each layer (Michel et al., section 4), and the least of all layers go. Every layer keeps at least one head and eight columns; columns
are kept in eights, which is what vector units take.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfpipeline import batches
from tfpipeline.compress.recipes import Structured
from tfpipeline.compress.reshape import (
    FEED_FORWARD_INPUT,
    FEED_FORWARD_OUTPUT,
    HEAD_INPUTS,
    HEAD_OUTPUT,
    LAYER,
    arrays_of,
    head_size,
    rebuilt,
    variables_of,
)
from tfpipeline.data import Corpus
from tfpipeline.model import layer_shapes
from tfpipeline.trained import Trained, count_tokens

Scores = npt.NDArray[np.float64]
# A gate's gradient is of the mean over a batch: the smaller the batch, the less do rows that pull in opposite directions hide each other.
_BATCH_ROWS = 8
_COLUMNS = 8


def structured(trained: Trained, corpus: Corpus, settings: Structured) -> tuple[Trained, dict[str, Any]]:
    """A model without its least important heads and columns.

    Returns:
        The new model, and `layer_shapes` ({"before", "after"}: heads and feed-forward columns of each layer), `rows` that were looked at.
    """
    arrays = arrays_of(trained)
    before = layer_shapes(trained.backbone.architecture)
    size = head_size(trained)
    heads, columns, rows = importance(trained, corpus, settings.rows)
    kept_heads = keep(heads, settings.heads, least=1, multiple=1)
    kept_columns = keep(columns, settings.feed_forward, least=_COLUMNS, multiple=_COLUMNS)
    for number, (of_heads, of_columns) in enumerate(zip(kept_heads, kept_columns, strict=True)):
        wide = (of_heads[:, np.newaxis] * size + np.arange(size)).ravel()
        prefix = LAYER.format(number)
        for place, chosen in [*((name, wide) for name in HEAD_INPUTS), (FEED_FORWARD_INPUT, of_columns)]:
            arrays[f"{prefix}{place}kernel"] = arrays[f"{prefix}{place}kernel"][:, chosen]
            arrays[f"{prefix}{place}bias"] = arrays[f"{prefix}{place}bias"][chosen]
        for place, chosen in ((HEAD_OUTPUT, wide), (FEED_FORWARD_OUTPUT, of_columns)):
            arrays[f"{prefix}{place}kernel"] = arrays[f"{prefix}{place}kernel"][chosen]
    after = [{"heads": len(a), "intermediate": len(b)} for a, b in zip(kept_heads, kept_columns, strict=True)]
    return rebuilt(trained, arrays, layer_shapes=after), {"layer_shapes": {"before": before, "after": after}, "rows": rows}


def importance(trained: Trained, corpus: Corpus, rows: int) -> tuple[list[Scores], list[Scores], int]:
    """Scores of the heads and of the feed-forward columns, one array a layer, and how many training rows gave them."""
    train = corpus.train
    some = np.sort(np.random.default_rng(trained.config.runtime.seed).permutation(len(train))[:rows])
    examples = train.take(some)
    lengths, _ = count_tokens(trained.preprocessor, examples)
    plan = batches.evaluation_plan(np.minimum(lengths, trained.config.text.max_length), _BATCH_ROWS)
    dataset = batches.dataset(
        plan, examples.text_batch, trained.preprocessor, examples.labels, examples.weights, has_pairs=corpus.has_pairs
    )
    size = head_size(trained)
    variables = variables_of(trained.model)
    depth = int(trained.backbone.architecture["num_hidden_layers"])
    outputs = [variables[f"{LAYER.format(number)}{place}kernel"] for number in range(depth) for place in (HEAD_OUTPUT, FEED_FORWARD_OUTPUT)]

    def gates(tokens: dict[str, tf.Tensor], targets: tf.Tensor, weights: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(outputs)
            logits = trained.model(tokens, training=False).logits
            loss = tf.reduce_mean(trained.model.row_loss(targets, logits, 0.0) * weights)
        gradients = tape.gradient(loss, outputs)
        by_row = [tf.reduce_sum(kernel * gradient, axis=1) for kernel, gradient in zip(outputs, gradients, strict=True)]
        heads = [tf.reduce_sum(tf.reshape(one, [-1, size]), axis=1) for one in by_row[::2]]
        return [tf.abs(one) for one in [*heads, *by_row[1::2]]]

    compiled = tf.function(gates, reduce_retracing=True, autograph=False)
    total: list[Scores] | None = None
    for tokens, targets, weights in dataset:
        found = [one.numpy().astype(np.float64) for one in compiled(tokens, targets, weights)]
        total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
    assert total is not None
    return total[:depth], total[depth:], len(examples)


def keep(scores: list[Scores], dropped: float, *, least: int, multiple: int) -> list[npt.NDArray[np.int64]]:
    """Which ones of each layer stay, upwards: all layers compete, each keeps at least `least` (or all it has) and a multiple of `multiple`.

    Args:
        scores: one array a layer.
        dropped: share of all that goes.
        least: of a layer.
        multiple: the number kept in a layer is rounded to a multiple of this, up to what it has.
    """
    if not dropped:
        return [np.arange(len(one)) for one in scores]
    normal = [one / max(float(np.linalg.norm(one)), 1e-30) for one in scores]
    everything = np.concatenate(normal)
    bar = np.sort(everything)[min(len(everything) - 1, round(dropped * len(everything)))]
    result = []
    for one in normal:
        wanted = int((one >= bar).sum())
        count = min(len(one), max(least, multiple * round(wanted / multiple)))
        result.append(np.sort(np.argsort(-one, kind="stable")[:count]))
    return result
