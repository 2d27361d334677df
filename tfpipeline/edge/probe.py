"""What real texts tell about a model before its numbers are rounded: how long the columns of its hidden states are, and in which directions the word embeddings
matter.

In: a `Trained` and texts. Out: `Scales`, which `EdgeGraph` takes, and a sensitivity, which `tables.Int4Table` takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipeline.edge.graph import EdgeGraph, Floats, dense_layers
from tfpipeline.trained import Trained

MOST_TEXTS = 200

_TINY = 1e-6  # below it a column counts as empty


@dataclass(frozen=True)
class Scales:
    """What `EdgeGraph` does to single columns.

    Attributes:
        balance: product to what the columns of its input are divided by, float32 `[width]`.
        stretch: product to the largest magnitude of each column of its result, float32 `[width]`.
    """

    balance: dict[str, Floats]
    stretch: dict[str, Floats]


def token_rows(trained: Trained, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> list[list[tf.Tensor]]:
    """Ids, mask and segment ids, int32 `[1, length]` without padding, of at most `MOST_TEXTS` texts, spread over the lengths."""
    rows = []
    for number in _spread(texts, MOST_TEXTS):
        columns = [tf.constant([texts[number]])] + ([] if pairs is None else [tf.constant([pairs[number]])])
        tokens = trained.preprocessor(*columns)
        real = min(int(tf.reduce_sum(tokens["attention_mask"])), max_length)
        rows.append([tokens[name][:, :real] for name in ("input_ids", "attention_mask", "token_type_ids")])
    return rows


def watched(trained: Trained, scales: Scales) -> Any:
    """A function of one of `token_rows` that gives every factor and result by name, `product:role`."""

    def values_of(ids: tf.Tensor, mask: tf.Tensor, segment_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        values: dict[str, tf.Tensor] = {}

        def keep(product: str, role: str, value: tf.Tensor) -> tf.Tensor:
            values[f"{product}:{role}"] = value
            return value

        EdgeGraph(trained, point=keep, fuse=False, balance=scales.balance, stretch=scales.stretch)(ids, mask, segment_ids)
        return values

    return tf.function(values_of, input_signature=[tf.TensorSpec([1, None], tf.int32)] * 3, autograph=False)


def column_scales(trained: Trained, rows: list[list[tf.Tensor]]) -> Scales:
    """How columns are made alike before they are rounded with one scale.

    A column of an input is divided by the square root of its own length, root mean square, over that of its row of the kernel, the largest magnitude: half of what it
    sticks out goes into the kernel, whose columns have a scale each (SmoothQuant, arXiv:2211.10438, with a root mean square for its maximum).
    """
    readers = _readers(trained)
    added = {
        f"layer_{number}/{product}" for number in range(len(trained.model.bert.encoder.layer)) for product in ("attention_output", "output")
    }
    squares: dict[str, Any] = dict.fromkeys(readers, 0.0)
    largest: dict[str, Any] = dict.fromkeys(added, _TINY)
    values_of = watched(trained, Scales({}, {}))
    for row in rows:
        values = values_of(*row)
        for product in readers:
            squares[product] = squares[product] + np.square(values[f"{product}:input"].numpy()).sum(axis=0)
        for product in added:
            largest[product] = np.maximum(largest[product], np.abs(values[f"{product}:result"].numpy()).max(axis=0)).astype(np.float32)
    tokens = sum(int(row[0].shape[1]) for row in rows)
    balance = {}
    for product, layers in readers.items():
        columns = np.sqrt(squares[product] / tokens)
        kernels = np.abs(np.concatenate([layer.kernel.numpy() for layer in layers], axis=1)).max(axis=1)
        found = np.sqrt(np.maximum(columns, _TINY) / np.maximum(kernels, _TINY))
        balance[product] = (found / np.exp(np.log(found).mean())).astype(np.float32)
    return Scales(balance, largest)


def table_sensitivity(trained: Trained, rows: list[list[tf.Tensor]]) -> Floats:
    """Fisher information of the word embeddings, float32 `[width, width]`: mean over tokens of the outer product of the gradient of the log-probability of an answer,
    drawn with the model's own probabilities.
    """
    model, random = trained.model, np.random.default_rng(0)

    def embedded(ids: tf.Tensor, mask: tf.Tensor, segment_ids: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            table = tf.gather(model.bert.embeddings.weight, ids[0])
            tape.watch(table)
            probabilities = EdgeGraph(trained, lookup=lambda _: table)(ids, mask, segment_ids)[0]
            if trained.task == "multi_label":
                given = tf.where(draw[: probabilities.shape[0]] < probabilities, probabilities, 1.0 - probabilities)
            else:
                chosen = tf.reduce_sum(tf.cast(tf.cumsum(probabilities)[:-1] < draw[0], tf.int32))
                given = probabilities[chosen]
            log_likelihood = tf.reduce_sum(tf.math.log(tf.maximum(given, 1e-9)))
        return tape.gradient(log_likelihood, table)

    classes = max(1, len(trained.labels))
    signature = [*[tf.TensorSpec([1, None], tf.int32)] * 3, tf.TensorSpec([classes], tf.float32)]
    gradients = tf.function(embedded, input_signature=signature, autograph=False)
    width = model.config.hidden_size
    found, tokens = np.zeros((width, width)), 0
    for row in rows:
        one = gradients(*row, tf.constant(random.random(classes), tf.float32)).numpy().astype(np.float64)
        found += one.T @ one
        tokens += len(one)
    return (found / tokens).astype(np.float32)


def _readers(trained: Trained) -> dict[str, tuple[Any, ...]]:
    """Products whose inputs are balanced, and the layers that read these; `query` stands for key and value too."""
    layers = dense_layers(trained.model)
    found: dict[str, tuple[Any, ...]] = {}
    for number in range(len(trained.model.bert.encoder.layer)):
        found[f"layer_{number}/query"] = tuple(layers[f"layer_{number}/{part}"] for part in ("query", "key", "value"))
        found[f"layer_{number}/intermediate"] = (layers[f"layer_{number}/intermediate"],)
    return found


def _spread(texts: Sequence[str], count: int) -> list[int]:
    """Row numbers, evenly over the texts ordered by length."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    return [order[int(place)] for place in np.linspace(0, len(order) - 1, min(count, len(order)))]
