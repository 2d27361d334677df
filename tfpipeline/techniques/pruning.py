"""Zeros that grow in the encoder's matrices: TF-MOT's magnitude and 2:4 pruning, stepped by the optimizer.

In: a `Classifier`, `CompressConfig`, the number of steps. Out: an object whose `gradients` and `after_step` `train_step` calls. Refuses a quantized model.
Does not prune embeddings, biases, LayerNorm, pooler or classifier, and does not make plain hardware faster: zeros that stand anywhere save space in a
compressed file, and time only on kernels made for them.

`tfmot.sparsity.keras.prune_low_magnitude` refuses a subclassed model, and its `UpdatePruningStep` callback does not find layers inside layers. So each
Dense is wrapped by itself, and the wrapper put back in its place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl, pruning_wrapper
from tensorflow_model_optimization.sparsity import keras as sparsity

from tfpipeline.config import CompressConfig
from tfpipeline.errors import ConfigError
from tfpipeline.techniques.places import encoder_places

# How often masks are drawn anew between begin and end. A drawing sorts every matrix: about a second for 11 million weights.
UPDATES = 25


class Pruned(pruning_wrapper.PruneLowMagnitude):
    """TF-MOT's wrapper: mask, threshold and rule are its own, when they are used is not.

    Its own `call` counts forward passes and multiplies the weights in each. A step of ours may hold several (slices of a batch, R-Drop, FGM), and an evaluation
    must not move a weight.
    """

    def __init__(self, layer: Any, clock: Callable[[], tf.Tensor], **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        self._clock = clock

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.pruning_obj = pruning_impl.Pruning(
            training_step_fn=self._clock,
            pruning_vars=self.pruning_vars,
            pruning_schedule=self.pruning_schedule,
            block_size=self.block_size,
            sparsity_m_by_n=self.sparsity_m_by_n,
            block_pooling_type=self.block_pooling_type,
        )

    def call(self, inputs: tf.Tensor, training: Any = None) -> tf.Tensor:
        return self.layer(inputs)


class Pruning:
    """Sparsity that grows while the model is trained. Make it before the optimizer is built: it wraps layers.

    Attributes:
        state: what a checkpoint needs beside the model, whose wrappers hold the masks.
        first_step, last_step: optimizer steps, counted from 1, at which masks are drawn for the first and the last time.
    """

    def __init__(self, model: Any, settings: CompressConfig, steps: int) -> None:
        if getattr(model, "quantization", None):
            raise ConfigError(
                "compress.sparsity: the model that training starts from is already quantized. Prune first, then train with quantization: the zeros stay."
            )
        self.settings = settings
        self.state = tf.Module(name="pruning")
        self.state.step = tf.Variable(
            0, dtype=tf.int64, trainable=False, name="step", aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
        )
        at_once = settings.sparsity_schedule == "constant" or settings.sparsity_pattern == "2:4"
        self.first_step = min(max(1, round(settings.sparsity_begin * steps)), steps)
        span = max(min(round(settings.sparsity_end * steps), steps) - self.first_step, 0)
        frequency = max(1, span // UPDATES)
        span -= span % frequency  # the last drawing is the one that reaches the full sparsity
        self.last_step = self.first_step if at_once else self.first_step + span
        if at_once or not span:
            schedule = sparsity.ConstantSparsity(settings.sparsity, self.first_step, self.first_step, 1)
        else:
            schedule = sparsity.PolynomialDecay(0.0, settings.sparsity, self.first_step, self.last_step, frequency=frequency)
        two_in_four = settings.sparsity_pattern == "2:4"
        self.places = list(encoder_places(model, settings.sparsity_layers))
        self.wrappers = [
            Pruned(
                place.dense,
                self._two_in_four_clock if two_in_four else self._clock,
                pruning_schedule=schedule,
                sparsity_m_by_n=(2, 4) if two_in_four else None,
            )
            for place in self.places
        ]
        for place, wrapper in zip(self.places, self.wrappers, strict=True):
            wrapper.build([None, None, place.dense.kernel.shape[0]])
            place.put(wrapper)

    def _clock(self) -> tf.Tensor:
        return self.state.step.read_value()

    def _two_in_four_clock(self) -> tf.Tensor:
        # TF-MOT sets the 2:4 masks at its step 1 and at no other.
        return self.state.step.read_value() - self.first_step + 1

    def gradients(self, gradients: list[Any], variables: list[Any]) -> list[Any]:
        """As they are: what is masked may grow until the next drawing, as in TF-MOT."""
        del variables
        return gradients

    def after_step(self, step: tf.Tensor) -> None:
        """Draws the masks when it is time, and sets the masked weights to zero. `step`: int64 scalar, optimizer steps made so far."""
        self.state.step.assign(tf.cast(step, tf.int64))
        for wrapper in self.wrappers:
            wrapper.pruning_obj.conditional_mask_update()
            wrapper.pruning_obj.weight_mask_op()

    def apply(self) -> None:
        """Sets the masked weights to zero where something else has changed them, as a moving average does."""
        for wrapper in self.wrappers:
            for weight, mask, _ in wrapper.pruning_vars:
                weight.assign(weight * mask)

    def complete(self, step: int) -> bool:
        """Whether the full sparsity is reached after this many optimizer steps."""
        return step >= self.last_step

    @contextlib.contextmanager
    def stripped(self) -> Iterator[None]:
        """Inside, the plain layers stand in their places, as in a model that was never wrapped."""
        for place, wrapper in zip(self.places, self.wrappers, strict=True):
            place.put(wrapper.layer)
        try:
            yield
        finally:
            for place, wrapper in zip(self.places, self.wrappers, strict=True):
                place.put(wrapper)
