"""Gradients to new weights: Keras' own optimizers, with a learning rate per layer, decay that spares biases, and cheap embedding rows.

In: `TrainConfig`, the number of steps, the variables with their rate multipliers. Out: a `tf_keras` optimizer for `model.compile`.
Each algorithm's mathematics is Keras'; only three things are ours, all inside `update_step`, where Keras has one variable in hand:

- the rate of a variable is the schedule's rate times its multiplier (layer-wise learning-rate decay);
- weight decay is decoupled (Loshchilov & Hutter, arXiv:1711.05101) and leaves biases and LayerNorm alone;
- a row-sparse gradient (the word embeddings) moves only the rows it names. Keras' Adam decays the moments of all 30,522 rows and rewrites the
  whole table at every step. Rows that a batch does not touch keep their moments until they are touched again (as LazyAdam in
  tensorflow_addons did); the trajectory is not that of dense Adam.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from tfpipeline.config import TrainConfig


class WarmupThenDecay(tf_keras.optimizers.schedules.LearningRateSchedule):
    """From 0 to `peak` in `warmup_steps`, then to 0 at `total_steps` (linear or cosine), or on at `peak` (constant).

    The rate of step s, counted from 0, is taken at s + 1: the first step moves, and the last one does not stand still.
    """

    def __init__(self, peak: float, warmup_steps: int, total_steps: int, shape: str) -> None:
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.shape = shape

    def __call__(self, step: Any) -> tf.Tensor:
        at = tf.cast(step, tf.float32) + 1.0
        rise = at / max(1, self.warmup_steps)
        left = tf.clip_by_value((self.total_steps + 1 - at) / max(1, self.total_steps + 1 - self.warmup_steps), 0.0, 1.0)
        if self.shape == "cosine":
            left = 0.5 * (1.0 - tf.cos(math.pi * left))
        elif self.shape == "constant":
            left = tf.ones_like(left)
        return self.peak * tf.minimum(rise, left if self.warmup_steps else tf.minimum(left, 1.0))

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "warmup_steps": self.warmup_steps, "total_steps": self.total_steps, "shape": self.shape}


class _PerVariable:
    """Mixed in before a Keras optimizer: multipliers, decoupled decay, row-sparse Adam."""

    _multiplier = 1.0

    def configure(self, multipliers: Mapping[str, float], decayed: frozenset[str], decay: float) -> None:
        """Keys are what `_var_key` gives: the variable's unique id, the same on every replica."""
        self._multipliers = dict(multipliers)
        self._decayed = decayed
        self._decay = decay

    @property
    def learning_rate(self) -> Any:
        rate = super().learning_rate  # type: ignore[misc]
        return rate if self._multiplier == 1.0 else rate * self._multiplier

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        tf_keras.optimizers.Optimizer.learning_rate.fset(self, value)

    def update_step(self, gradient: Any, variable: Any) -> None:
        key = self._var_key(variable)  # type: ignore[attr-defined]
        self._multiplier = self._multipliers.get(key, 1.0)
        try:
            decay = self._decay if key in self._decayed else 0.0
            if isinstance(gradient, tf.IndexedSlices) and isinstance(self, tf_keras.optimizers.Adam):
                self._update_rows(gradient, variable, decay)
                return
            if decay:
                # Before the step and by the current rate, as in tf_keras.optimizers.AdamW.
                variable.assign_sub(variable * decay * tf.cast(self.learning_rate, variable.dtype))
            super().update_step(gradient, variable)  # type: ignore[misc]
        finally:
            self._multiplier = 1.0

    def finalize_variable_values(self, var_list: Any) -> None:
        """Nothing: Keras' `fit` calls this after every epoch, and with a moving average it would overwrite the weights that are being trained."""

    def load_averages(self, variables: Any) -> None:
        """Overwrites the variables with their moving averages; the caller keeps what they were."""
        # Keras pairs them with its averages by position, and a layer that was wrapped or unwrapped has moved among the others.
        ordered = sorted(variables, key=lambda variable: self._index_dict[self._var_key(variable)])  # type: ignore[attr-defined]
        super().finalize_variable_values(ordered)  # type: ignore[misc]

    def _update_rows(self, gradient: tf.IndexedSlices, variable: Any, decay: float) -> None:
        """Adam on the named rows alone. The indices must be unique (`unique_rows`)."""
        rows, values = gradient.indices, gradient.values
        rate = tf.cast(self.learning_rate, variable.dtype)
        step = tf.cast(self.iterations + 1, variable.dtype)  # type: ignore[attr-defined]
        beta_1, beta_2, epsilon = self.beta_1, self.beta_2, self.epsilon  # type: ignore[attr-defined]
        alpha = rate * tf.sqrt(1 - tf.pow(beta_2, step)) / (1 - tf.pow(beta_1, step))
        index = self._index_dict[self._var_key(variable)]  # type: ignore[attr-defined]
        first, second = self._momentums[index], self._velocities[index]  # type: ignore[attr-defined]
        moment = tf.gather(first, rows) * beta_1 + values * (1 - beta_1)
        velocity = tf.gather(second, rows) * beta_2 + tf.square(values) * (1 - beta_2)
        change = moment * alpha / (tf.sqrt(velocity) + epsilon)
        if decay:
            change += tf.gather(variable, rows) * decay * rate
        first.scatter_update(tf.IndexedSlices(moment, rows))
        second.scatter_update(tf.IndexedSlices(velocity, rows))
        variable.scatter_sub(tf.IndexedSlices(change, rows))


class RowAdam(_PerVariable, tf_keras.optimizers.Adam):
    """Adam, and AdamW where decay is configured."""


class RowSGD(_PerVariable, tf_keras.optimizers.SGD):
    """SGD with momentum."""


class RowAdafactor(_PerVariable, tf_keras.optimizers.Adafactor):
    """Adafactor: steps scaled by the size of the weights themselves, as in LAMB, with less memory."""


class RowLion(_PerVariable, tf_keras.optimizers.Lion):
    """Lion: the sign of the momentum."""


def make_optimizer(config: TrainConfig, total_steps: int, variables: list[tuple[Any, float]], *, ema_decay: float = 0.0) -> Any:
    """An optimizer ready for `compile`.

    Args:
        config: which algorithm, rate, schedule, decay.
        total_steps: optimizer steps of the whole run; the schedule ends there.
        variables: the variables that will be trained, each with its learning-rate multiplier.
        ema_decay: of the moving average that Keras keeps beside the weights; 0: none.
    """
    if config.schedule == "constant" and not config.warmup_fraction:
        rate: Any = config.learning_rate
    else:
        rate = WarmupThenDecay(config.learning_rate, round(config.warmup_fraction * total_steps), total_steps, config.schedule)
    shared: dict[str, Any] = {"learning_rate": rate, "jit_compile": False}
    if ema_decay:
        shared |= {"use_ema": True, "ema_momentum": ema_decay}
    match config.optimizer:
        case "adamw" | "adam":
            # 1e-6 as in the original BERT; Keras' 1e-7 lets rarely seen rows jump.
            optimizer: Any = RowAdam(epsilon=1e-6, **shared)
        case "sgd":
            optimizer = RowSGD(momentum=0.9, **shared)
        case "adafactor":
            optimizer = RowAdafactor(relative_step=False, **shared)
        case _:
            optimizer = RowLion(**shared)
    decay = 0.0 if config.optimizer == "adam" else config.weight_decay
    decayed = frozenset(optimizer._var_key(variable) for variable, _ in variables if len(variable.shape) > 1)
    multipliers = {optimizer._var_key(variable): multiplier for variable, multiplier in variables if multiplier != 1.0}
    optimizer.configure(multipliers, decayed, decay)
    return optimizer


def unique_rows(gradient: Any) -> Any:
    """An `IndexedSlices` in which each row stands once; anything else as it is.

    A word that occurs three times in a batch gives three slices. Unsummed they would give a wrong norm, and a scatter would keep only one.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, positions = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, positions, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)
