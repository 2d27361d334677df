"""Zeros that are there: counted, held against what was asked for, and kept while a sparse model is trained further.

In: a `Classifier`. Out: shares of zeros; an object whose `gradients` `train_step` calls. Refuses to call a model sparse that is not. Makes no zeros:
that is `tfpipeline.techniques.pruning`, which imports TF-MOT; this does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipeline.config import CompressConfig
from tfpipeline.errors import TrainingError
from tfpipeline.techniques.places import encoder_places

# A matrix with fewer zeros than this was not pruned; a trained weight is exactly zero only by accident.
FEWEST_ZEROS = 0.01
# TF-MOT keeps every weight that is as large as the smallest one kept, so a few more than asked for may stay.
TOLERANCE = 1e-3


def technique(model: Any, settings: CompressConfig, steps: int, *, started: bool) -> Any:
    """What `train_step` asks about zeros: a `Pruning`, `KeptZeros`, or None where there is nothing to do.

    Args:
        model: with the weights that training starts from.
        settings: of the run.
        steps: optimizer steps of the whole run.
        started: whether training starts from a trained model, whose zeros may be meant.
    """
    if settings.sparsity:
        from tfpipeline.techniques.pruning import Pruning

        return Pruning(model, settings, steps)
    if started and settings.keep_sparsity and is_sparse(model):
        return KeptZeros(model)
    return None


class KeptZeros:
    """The zeros of a sparse model stay zeros while it is trained further.

    TF-MOT's sparsity-preserving quantizers (PQAT) fix their mask when a layer is built, outside every checkpoint, and multiply in each pass. Here the mask is a
    variable, and the gradients are masked: an optimizer never moves a weight that never has a gradient and is zero.
    """

    def __init__(self, model: Any) -> None:
        self.state = tf.Module(name="kept_zeros")
        kernels = [place.dense.kernel for place in encoder_places(model)]
        self.kernels = [kernel for kernel in kernels if share([kernel.numpy()]) >= FEWEST_ZEROS]
        self.state.masks = [
            tf.Variable(tf.cast(tf.not_equal(kernel.read_value(), 0.0), tf.float32), trainable=False, name="mask")
            for kernel in self.kernels
        ]

    def gradients(self, gradients: list[Any], variables: list[Any]) -> list[Any]:
        """Zero where the weight is to stay zero."""
        masks = {id(kernel): mask for kernel, mask in zip(self.kernels, self.state.masks, strict=True)}
        return [
            gradient * tf.cast(masks[id(variable)], gradient.dtype) if id(variable) in masks else gradient
            for gradient, variable in zip(gradients, variables, strict=True)
        ]

    def after_step(self, step: tf.Tensor) -> None:
        """Nothing is left to do."""

    def apply(self) -> None:
        """Nothing: averages of zeros are zeros."""

    def complete(self, step: int) -> bool:
        """Always: the zeros are there from the start."""
        del step
        return True

    @contextlib.contextmanager
    def stripped(self) -> Iterator[None]:
        """Nothing is wrapped."""
        yield


def is_sparse(model: Any) -> bool:
    """Whether some matrix of the encoder was pruned."""
    return any(share([place.dense.kernel.numpy()]) >= FEWEST_ZEROS for place in encoder_places(model))


def measure(model: Any) -> dict[str, Any]:
    """Zeros as they are, counted: `{"encoder": share, "model": share, "layers": {name: share}, "two_in_four": bool}`; the shares are of weights.

    `encoder` is over the six matrices of each encoder layer, `model` over everything, embeddings included. `two_in_four`: every four consecutive inputs of
    every output hold two zeros or more, in all matrices that were pruned.
    """
    kernels = {place.name: place.dense.kernel.numpy() for place in encoder_places(model)}
    pruned = [kernel for kernel in kernels.values() if share([kernel]) >= FEWEST_ZEROS]
    return {
        "encoder": share(kernels.values()),
        "model": share(variable.numpy() for variable in model.trainable_variables),
        "layers": {name: share([kernel]) for name, kernel in kernels.items()},
        "two_in_four": bool(pruned) and all(_is_two_in_four(kernel) for kernel in pruned),
    }


def require(model: Any, settings: CompressConfig) -> None:
    """Holds a trained model against what was asked for.

    Raises:
        TrainingError: a matrix has fewer zeros, or has them in other places.
    """
    if not settings.sparsity:
        return
    for place in encoder_places(model, settings.sparsity_layers):
        kernel = place.dense.kernel.numpy()
        found = share([kernel])
        if found < settings.sparsity - TOLERANCE - 1.0 / kernel.size:
            raise TrainingError(
                f"{place.name}: {found:.4f} of its weights are zero; compress.sparsity asked for {settings.sparsity:g}. This is a fault of the package, "
                "not of the settings: please report it with the run's config.json."
            )
        if settings.sparsity_pattern == "2:4" and not _is_two_in_four(kernel):
            raise TrainingError(
                f"{place.name}: has four consecutive inputs with fewer than two zeros; compress.sparsity_pattern asked for 2:4. This is a fault of the "
                "package, not of the settings: please report it with the run's config.json."
            )


def share(kernels: Iterable[Any]) -> float:
    """Of all weights of these matrices, the part that is exactly zero."""
    zeros, size = 0, 0
    for kernel in kernels:
        zeros, size = zeros + int(np.sum(kernel == 0.0)), size + kernel.size
    return zeros / size


def in_fours(kernel: Any) -> Any:
    """Zeros in each group of four consecutive inputs of one output, which is how 2:4 kernels are stored: int64 `[groups]`."""
    whole = kernel.T[:, : kernel.shape[0] // 4 * 4]
    return (whole.reshape(-1, 4) == 0.0).sum(axis=1)


def _is_two_in_four(kernel: Any) -> bool:
    return bool((in_fours(kernel) >= 2).all())
