"""The encoder as LiteRT runs it best: one row at a time, two dimensions, no shape arithmetic. Frees conversion from how transformers writes BERT.

In: a `Trained`, whose own layers are called (a layer that training wrapped with quantizers keeps them). Out: a function of `ids`, `mask` and
`segment_ids`, int32 `[1, length]`, to probabilities float32 `[1, classes]`. Not a second model: no weight is held here, and a test holds its answers
to those of the model itself.

What differs from the graph of transformers, and why: rows are not batched, so the hidden states are `[length, width]` and every Dense is one matrix
product; query, key and value are one product, so that int8 kernels quantize their input once instead of three times; padding is masked with -120
instead of -10000, which would take the whole int8 range of the scores and leave nothing for their differences; means are sums, not products.

What is done for int8, exact but for rounding, because a few columns of BERT's hidden states are many times as long as the others (arXiv:2109.12948) and would leave the
others a dozen steps of the 256: before the products that read a hidden state its columns are balanced against the rows of their kernels (`balance`; after SmoothQuant,
arXiv:2211.10438), and behind the products that are added to it each column may
have a scale of its own (`stretch`).

Every matrix product has a name: `layer_2/query`, `key`, `value`, `scores`, `context`, `attention_output`, `intermediate`, `output`, and `pooler`,
`classifier`. Full-integer conversion is asked for product by product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfpipeline.trained import Trained, to_probabilities

# exp(-120) is 0 in float32 beside any real score.
MASKED = -120.0
INPUTS = ("ids", "mask", "segment_ids")
# What is done to a factor or a result of a product: (product, "input" | "other" | "result", value) -> value. See `calibration`.
Floats = npt.NDArray[np.float32]
Point = Callable[[str, str, tf.Tensor], tf.Tensor]
# Row numbers int32 `[rows]` to rows of a table float32 `[rows, width]`. See `tables`.
Lookup = Callable[[tf.Tensor], tf.Tensor]


class EdgeGraph:
    """Ids to probabilities, one row.

    Args:
        trained: the model.
        point: called on both factors (kernels excepted) and the result of each product; None: nothing is done to them.
        stored: product to the rows of its kernel as the file holds them, float32 `[inputs, outputs]` of row numbers: for products that multiply in float where a
            plain kernel would be stored in float too. They are neither balanced nor stretched.
        balance: product (`layer_2/query` stands for key and value too) to float32 `[width]`: what the columns of its input are divided by and the rows of its kernel
            multiplied by.
        stretch: product to float32 `[width]`: its result is computed divided by this, and multiplied by it behind `point`.
        lookup: ids int32 `[length]` to embeddings of word pieces float32 `[length, width]`; None: the model's own table.
        fuse: one product for query, key and value where they are plain Dense layers; `point` then sees none of the three. False is the form for full-integer conversion.
    """

    def __init__(
        self,
        trained: Trained,
        *,
        point: Point | None = None,
        stored: Mapping[str, Lookup] | None = None,
        lookup: Lookup | None = None,
        fuse: bool = True,
        balance: Mapping[str, Floats] | None = None,
        stretch: Mapping[str, Floats] | None = None,
    ) -> None:
        self._model = trained.model
        self._task = trained.task
        self._point = point or (lambda product, role, value: value)
        self.lookup = lookup or (lambda ids: tf.gather(trained.model.bert.embeddings.weight, ids))
        self._max_length = trained.config.text.max_length
        self.stored = dict(stored or {})
        self._fuse = fuse
        self._balance = balance or {}
        self._stretch = stretch or {}

    def __call__(self, ids: tf.Tensor, mask: tf.Tensor, segment_ids: tf.Tensor) -> tf.Tensor:
        """Probabilities float32 `[1, classes]`; the inputs int32 `[1, length]`."""
        model = self._model
        keep = tf.cast(mask, tf.float32)
        self._one = mask[0, 0]  # [CLS] is never padding
        scores_mask = (1.0 - keep) * MASKED  # [1, length]: broadcast over heads and queries
        hidden = self._embed(model.bert.embeddings, tf.reshape(ids, [-1]), tf.reshape(segment_ids, [-1]), ids.shape[1], mask)
        for number, layer in enumerate(model.bert.encoder.layer):
            hidden = self._layer(f"layer_{number}", layer, hidden, scores_mask)
        if model.pooling == "mean":
            kept = tf.reshape(keep, [-1, 1])
            pooled = tf.reduce_sum(hidden * kept, axis=0, keepdims=True) / tf.reduce_sum(keep, axis=1, keepdims=True)
        else:
            pooled = self._dense("pooler", model.bert.pooler.dense, hidden[:1])
        return to_probabilities(tf.cast(self._dense("classifier", model.classifier, pooled), tf.float32), self._task)

    def _embed(self, embeddings: Any, ids: tf.Tensor, types: tf.Tensor, length: int | None, mask: tf.Tensor) -> tf.Tensor:
        if length is not None:
            positions = embeddings.position_embeddings[:length]
        else:
            # Positions without asking for the shape, which LiteRT would only know while running; bounded, because MediaPipe does not cut long texts. No
            # plain gather: the converter would store its table in int8 with one scale, and the outliers of the first positions cost 0.3 points on SST-2.
            numbers = tf.clip_by_value(tf.cumsum(mask, axis=1) - 1, 0, self._max_length - 1)
            positions = tf.gather_nd(embeddings.position_embeddings[: self._max_length], tf.reshape(numbers, [-1, 1]))
        table = embeddings.token_type_embeddings
        if table.shape[0] == 2:  # arithmetic: a third gather would be slower
            segments = table[:1] + tf.cast(types, tf.float32)[:, tf.newaxis] * (table[1:2] - table[:1])
        else:
            segments = tf.gather(table, types)
        return _normalise(embeddings.LayerNorm, self.lookup(ids) + (positions + segments))

    def _layer(self, name: str, layer: Any, hidden: tf.Tensor, scores_mask: tf.Tensor) -> tf.Tensor:
        attention = layer.attention.self_attention
        context = (
            _learned(attention, hidden, scores_mask)
            if hasattr(attention, "score_rounding")
            else self._attend(name, attention, hidden, scores_mask)
        )
        context = tf.reshape(tf.transpose(context, [1, 0, 2]), [-1, attention.num_attention_heads * attention.attention_head_size])
        output = layer.attention.dense_output
        hidden = _normalise(output.LayerNorm, self._dense(f"{name}/attention_output", output.dense, context) + hidden)
        inner = layer.intermediate.intermediate_act_fn(self._dense(f"{name}/intermediate", layer.intermediate.dense, hidden))
        output = layer.bert_output
        return _normalise(output.LayerNorm, self._dense(f"{name}/output", output.dense, inner) + hidden)

    def _attend(self, name: str, attention: Any, hidden: tf.Tensor, scores_mask: tf.Tensor) -> tf.Tensor:
        """What each query takes from the values, float32 `[heads, length, size]`."""
        query, key, value = self._project(name, attention, hidden)
        scores = self._product(f"{name}/scores", query, key, transpose=True)
        return self._product(f"{name}/context", tf.nn.softmax(scores + scores_mask), value)

    def _project(self, name: str, attention: Any, hidden: tf.Tensor) -> list[tf.Tensor]:
        """Query (already divided by the square root of the head size), key and value, `[heads, length, size]` each."""
        heads, size = attention.num_attention_heads, attention.attention_head_size
        layers = (attention.query, attention.key, attention.value)
        scales = (1.0 / math.sqrt(size), 1.0, 1.0)
        hidden, rows = self._balanced(f"{name}/query", hidden)
        if self._fuse:
            kernel = tf.concat([layer.kernel * scale for layer, scale in zip(layers, scales, strict=True)], 1)
            bias = tf.concat([layer.bias * scale for layer, scale in zip(layers, scales, strict=True)], 0)
            together = tf.reshape(tf.matmul(hidden, kernel * rows) + bias, [-1, 3 * heads, size])
            return list(tf.split(tf.transpose(together, [1, 0, 2]), 3, axis=0))
        names = (f"{name}/query", f"{name}/key", f"{name}/value")
        parts = [self._dense(part, layer, hidden, scale, rows) for part, layer, scale in zip(names, layers, scales, strict=True)]
        return [_by_head(part, heads, size) for part in parts]

    def _balanced(self, product: str, values: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """The input as the product reads it, and what the rows of its kernel are multiplied by, `[width, 1]`."""
        if product not in self._balance:
            return values, 1.0
        balance = self._balance[product]
        # Two dimensions, or the converter multiplies it into the kernel again.
        return values * (1.0 / balance)[np.newaxis], balance[:, np.newaxis]

    def _dense(self, name: str, layer: Any, values: tf.Tensor, scale: float = 1.0, rows: Any = None) -> tf.Tensor:
        if not _is_plain(layer):
            return layer(values)
        if name in self.stored:
            # Times a 1 that only the running file knows, or the converter would look the rows up itself and store them in float.
            kernel = self.stored[name](tf.range(layer.kernel.shape[0]) * self._one)
            result = tf.matmul(values, kernel * (scale if rows is None else scale * rows)) + layer.bias * scale
        else:
            if rows is None:
                values, rows = self._balanced(name, values)
            stretch = self._stretch.get(name, np.ones(1, np.float32))
            values = self._point(name, "input", values)
            result = self._point(
                name, "result", tf.matmul(values, layer.kernel * (scale * rows / stretch)) + layer.bias * (scale / stretch)
            )
            result = result * stretch if name in self._stretch else result
        return result if layer.activation is None else layer.activation(result)

    def _product(self, name: str, first: tf.Tensor, second: tf.Tensor, *, transpose: bool = False) -> tf.Tensor:
        first, second = self._point(name, "input", first), self._point(name, "other", second)
        return self._point(name, "result", tf.matmul(first, second, transpose_b=transpose))


def dense_layers(model: Any) -> dict[str, Any]:
    """The layers behind those products that have a kernel, by name."""
    found: dict[str, Any] = {}
    for number, layer in enumerate(model.bert.encoder.layer):
        attention = layer.attention.self_attention
        found |= {f"layer_{number}/{part}": getattr(attention, part) for part in ("query", "key", "value")}
        found[f"layer_{number}/attention_output"] = layer.attention.dense_output.dense
        found[f"layer_{number}/intermediate"] = layer.intermediate.dense
        found[f"layer_{number}/output"] = layer.bert_output.dense
    if model.pooling != "mean":
        found["pooler"] = model.bert.pooler.dense
    return {**found, "classifier": model.classifier}


def _learned(attention: Any, hidden: tf.Tensor, scores_mask: tf.Tensor) -> tf.Tensor:
    """As `EdgeGraph._attend`, for attention that was trained with the rounding of int8: its own roundings, in its own places."""
    heads, size = attention.num_attention_heads, attention.attention_head_size
    hidden = attention.input_rounding(hidden)
    query, key, value = (_by_head(layer(hidden), heads, size) for layer in (attention.query, attention.key, attention.value))
    scores = attention.score_rounding(tf.matmul(query, key, transpose_b=True))
    return tf.matmul(attention.share_rounding(tf.nn.softmax(scores * size**-0.5 + scores_mask)), value)


def _by_head(values: tf.Tensor, heads: int, size: int) -> tf.Tensor:
    return tf.transpose(tf.reshape(values, [-1, heads, size]), [1, 0, 2])


def _normalise(layer: Any, values: tf.Tensor) -> tf.Tensor:
    """Layer normalisation over the last axis, in ops that XNNPACK has."""
    centred = values - tf.reduce_mean(values, axis=-1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
    return centred * tf.math.rsqrt(variance + layer.epsilon) * layer.gamma + layer.beta


def _is_plain(layer: Any) -> bool:
    """Whether it is a Dense that nothing was wrapped around."""
    return type(layer).__name__ == "Dense"
