"""Full-integer int8 without surprises: the range of every factor and result is measured on real texts at their true lengths, then written into the
graph as fake quantization, which the converter turns into integers.

In: a `Trained`, texts, names of products to leave in float. Out: the function that `EdgeGraph` applies to products. One set of ranges
serves every length of a file. Refuses fewer than `FEWEST_TEXTS` texts.

The range of a value is the one whose quantization error is smallest, not its extremes: a handful of outliers in the residual stream of BERT (arXiv:
2109.12948) would leave a dozen steps for everything else, which is what a naive conversion dies of.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipeline.edge.graph import EdgeGraph, Floats, Point, rounded_weight
from tfpipeline.errors import ConfigError
from tfpipeline.techniques.quantization import best_range
from tfpipeline.trained import Trained

FEWEST_TEXTS = 20
MOST_TEXTS = 200
# Values kept of one point; enough that the share of outliers is right.
_SAMPLE = 50_000

# Products whose results are added to the residual stream: a scale a column for them.
STRETCHED = ("*/attention_output", "*/output")
# Products whose inputs are balanced; that of key and value is the one of query.
BALANCED = ("*/query", "*/intermediate", "*/output")


@dataclass(frozen=True)
class Scales:
    """What `EdgeGraph` does to single columns.

    Attributes:
        balance: product to what the columns of its input are divided by, float32 `[width]`.
        stretch: product to the largest magnitude of each column of its result, float32 `[width]`.
    """

    balance: dict[str, Floats]
    stretch: dict[str, Floats]


@dataclass(frozen=True)
class Quantizers:
    """What `EdgeGraph` takes.

    Attributes:
        ranges: (product, role) to (low, high).
        kept: products left in float.
        scales: of single columns, see `EdgeGraph`.
    """

    ranges: dict[tuple[str, str], tuple[float, float]]
    kept: tuple[str, ...]
    scales: Scales

    def graph(self, trained: Trained, *, point: Point | None = None, **arguments: Any) -> EdgeGraph:
        """The graph that these ranges belong to, with this or another `point`."""
        return EdgeGraph(
            trained, point=point or self.point, fuse=False, balance=self.scales.balance, stretch=self.scales.stretch, **arguments
        )

    def point(self, product: str, role: str, value: tf.Tensor) -> tf.Tensor:
        """Rounds a factor or a result to its range."""
        if product in self.kept or (product, role) not in self.ranges:
            return value
        low, high = self.ranges[product, role]
        return tf.quantization.fake_quant_with_min_max_args(value, low, high, num_bits=8)


class Int8Table(tf.Module):
    """A lookup in a table that the file holds in int8, one scale a row: rare words, which hardly moved in training, are a fraction as long as others.

    LiteRT's gather knows one scale for a table, so the rows are stored at equal length and stretched after the lookup.

    Args:
        weight: float32 `[rows, width]`.
        fake: whether fake quantization says so to the converter; else its dynamic-range mode does the same by itself.
    """

    def __init__(self, weight: Any, *, fake: bool) -> None:
        super().__init__(name="int8_table")
        values = weight.numpy()
        longest = np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-8)
        # Constants: of a variable, gather_nd becomes an operator that LiteRT does not have.
        self._rows, self._scales = tf.constant(values / longest), tf.constant(longest)
        self._fake = fake

    def __call__(self, ids: tf.Tensor) -> tf.Tensor:
        """Embeddings float32 `[length, width]` of ids int32 `[length]`."""
        table = rounded_weight(self._rows) if self._fake else self._rows
        # gather_nd, because the converter leaves its table in float.
        return tf.gather(table, ids) * tf.gather_nd(self._scales, ids[:, tf.newaxis])


def calibrate(
    trained: Trained, texts: Sequence[str], pairs: Sequence[str] | None, keep_float: Sequence[str], max_length: int
) -> Quantizers:
    """Measures the ranges.

    Args:
        trained: the model.
        texts: real ones, of every length; at most `MOST_TEXTS` are used, spread over the lengths.
        pairs: second texts.
        keep_float: names of products, `*` allowed: `layer_5/output`, `*/scores`, `classifier`.
        max_length: texts are cut there.

    Raises:
        ConfigError: too few texts, or a name that fits no product.
    """
    if len(texts) < FEWEST_TEXTS:
        raise ConfigError(
            f"int8: expected at least {FEWEST_TEXTS} texts to calibrate on, received {len(texts)}. Give texts of the training data."
        )
    rows = _tokens(trained, texts, pairs, max_length)
    scales = _scales(trained, rows)
    seen: dict[tuple[str, str], list[Floats]] = {}
    extremes: dict[tuple[str, str], tuple[float, float]] = {}
    random = np.random.default_rng(0)
    each = max(64, _SAMPLE // len(rows))
    watched = _watched(trained, scales)
    for row in rows:
        for name, value in watched(*row).items():
            product, _, role = name.rpartition(":")
            flat = value.numpy().ravel()
            low, high = extremes.get((product, role), (0.0, 0.0))
            extremes[product, role] = (min(low, float(flat.min())), max(high, float(flat.max())))
            seen.setdefault((product, role), []).append(flat if len(flat) <= each else random.choice(flat, each, replace=False))
    products = sorted({product for product, _ in seen})
    kept = matching(products, keep_float)
    ranges = {point: best_range(np.concatenate(values), *extremes[point]) for point, values in seen.items()}
    return Quantizers(ranges, kept, scales)


def scales(trained: Trained, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> Scales:
    """Measured on real texts; arguments as for `calibrate`."""
    return _scales(trained, _tokens(trained, texts, pairs, max_length))


def _scales(trained: Trained, rows: list[list[tf.Tensor]]) -> Scales:
    """Columns of inputs are balanced by the square root of how long they are, root mean square, over how long their row of the kernel is, its largest."""
    largest: dict[str, Floats] = {}
    squares: dict[str, Floats] = {}
    watched = _watched(trained, Scales({}, {}))
    for row in rows:
        for name, value in watched(*row).items():
            product, _, role = name.rpartition(":")
            values = value.numpy()
            if role == "result" and any(fnmatch.fnmatch(product, pattern) for pattern in STRETCHED):
                largest[product] = np.maximum(largest.get(product, 0.0), np.abs(values).max(axis=0))
            elif role == "input" and any(fnmatch.fnmatch(product, pattern) for pattern in BALANCED):
                squares[product] = squares.get(product, 0.0) + np.square(values).sum(axis=0)
    balance = {}
    for number, layer in enumerate(trained.model.bert.encoder.layer):
        attention = layer.attention.self_attention
        for product, readers in (
            ("query", (attention.query, attention.key, attention.value)),
            ("intermediate", (layer.intermediate.dense,)),
        ):
            name = f"layer_{number}/{product}"
            columns = np.sqrt(squares[name] / sum(int(row[0].shape[1]) for row in rows))
            kernels = np.abs(np.concatenate([reader.kernel.numpy() for reader in readers], axis=1)).max(axis=1)
            found = np.sqrt(np.maximum(columns, 1e-6) / np.maximum(kernels, 1e-6))
            balance[name] = (found / np.exp(np.log(found).mean())).astype(np.float32)
    return Scales(balance, {product: np.maximum(values, 1e-6).astype(np.float32) for product, values in largest.items()})


def _tokens(trained: Trained, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> list[list[tf.Tensor]]:
    """Of at most `MOST_TEXTS`, spread over the lengths, without padding."""
    rows = []
    for number in _spread(texts, MOST_TEXTS):
        columns = [tf.constant([texts[number]])] + ([] if pairs is None else [tf.constant([pairs[number]])])
        tokens = trained.preprocessor(*columns)
        real = min(int(tf.reduce_sum(tokens["attention_mask"])), max_length)
        rows.append([tokens[name][:, :real] for name in ("input_ids", "attention_mask", "token_type_ids")])
    return rows


def _watched(trained: Trained, scales: Scales) -> Any:
    """A function of one row that gives every factor and result by name, `product:role`."""

    def watched(ids: tf.Tensor, mask: tf.Tensor, segment_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        values: dict[str, tf.Tensor] = {}

        def keep(product: str, role: str, value: tf.Tensor) -> tf.Tensor:
            values[f"{product}:{role}"] = value
            return value

        Quantizers({}, (), scales).graph(trained, point=keep)(ids, mask, segment_ids)
        return values

    return tf.function(watched, input_signature=[tf.TensorSpec([1, None], tf.int32)] * 3)


def matching(products: Sequence[str], patterns: Sequence[str]) -> tuple[str, ...]:
    """The products that the patterns name.

    Raises:
        ConfigError: a pattern names none.
    """
    kept: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(products, pattern)
        if not found:
            raise ConfigError(
                f"keep_float: no matrix product is called {pattern!r}. Expected names or patterns of: {', '.join(products[:9])}, ..."
            )
        kept |= set(found)
    return tuple(sorted(kept))


def _spread(texts: Sequence[str], count: int) -> list[int]:
    """Row numbers, evenly over the texts ordered by length."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    return [order[int(place)] for place in np.linspace(0, len(order) - 1, min(count, len(order)))]
