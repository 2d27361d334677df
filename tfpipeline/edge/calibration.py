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

from tfpipeline.edge import probe
from tfpipeline.edge.graph import EdgeGraph, Floats, Point
from tfpipeline.edge.probe import Scales
from tfpipeline.errors import ConfigError
from tfpipeline.techniques.quantization import best_range
from tfpipeline.trained import Trained

FEWEST_TEXTS = 20
# Values kept of one point; enough that the share of outliers is right.
_SAMPLE = 50_000


@dataclass(frozen=True)
class Quantizers:
    """What `EdgeGraph` takes.

    Attributes:
        ranges: (product, role) to (low, high).
        kept: products left in float.
        scales: of single columns.
    """

    ranges: dict[tuple[str, str], tuple[float, float]]
    kept: tuple[str, ...]
    scales: Scales

    def graph(self, trained: Trained, *, point: Point | None = None, **arguments: Any) -> EdgeGraph:
        """The graph that these ranges belong to, with this or another `point`."""
        scales = self.scales
        return EdgeGraph(trained, point=point or self.point, fuse=False, balance=scales.balance, stretch=scales.stretch, **arguments)

    def point(self, product: str, role: str, value: tf.Tensor) -> tf.Tensor:
        """Rounds a factor or a result to its range."""
        if product in self.kept or (product, role) not in self.ranges:
            return value
        low, high = self.ranges[product, role]
        return tf.quantization.fake_quant_with_min_max_args(value, low, high, num_bits=8)


def calibrate(
    trained: Trained, texts: Sequence[str], pairs: Sequence[str] | None, keep_float: Sequence[str], max_length: int
) -> Quantizers:
    """Measures the ranges.

    Args:
        trained: the model.
        texts: real ones, of every length; at most `probe.MOST_TEXTS` are used, spread over the lengths.
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
    rows = probe.token_rows(trained, texts, pairs, max_length)
    scales = probe.column_scales(trained, rows)
    seen: dict[tuple[str, str], list[Floats]] = {}
    extremes: dict[tuple[str, str], tuple[float, float]] = {}
    random = np.random.default_rng(0)
    each = max(64, _SAMPLE // len(rows))
    watched = probe.watched(trained, scales)
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
