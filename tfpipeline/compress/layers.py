"""Students: models with fewer layers than their teacher, or new and smaller ones. They answer well only after the `finetune` step that follows.

Some layers of the teacher are a far better start than random weights (Sanh et al. 2019, arXiv:1910.01108, section 3, takes every second layer).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tfpipeline import backbone as backbones
from tfpipeline.compress.recipes import KeepLayers, Student
from tfpipeline.compress.reshape import LAYER, arrays_of, fresh, rebuilt
from tfpipeline.data import Corpus
from tfpipeline.trained import Trained


def keep_layers(trained: Trained, corpus: Corpus, settings: KeepLayers) -> tuple[Trained, dict[str, Any]]:
    """A model of some of the encoder layers; embeddings, pooler and classifier stay.

    Returns:
        The new model, and `layers`: which ones of the teacher it has.
    """
    del corpus
    architecture = trained.backbone.architecture
    depth = int(architecture["num_hidden_layers"])
    chosen = list(settings.layers) or spread(settings.count, depth)
    arrays = arrays_of(trained)
    kept = {place: value for place, value in arrays.items() if not place.startswith("layer/")}
    for new, old in enumerate(chosen):
        prefix = LAYER.format(old)
        kept |= {LAYER.format(new) + place[len(prefix) :]: value for place, value in arrays.items() if place.startswith(prefix)}
    changed: dict[str, Any] = {"num_hidden_layers": len(chosen)}
    if "layer_shapes" in architecture:
        changed["layer_shapes"] = [architecture["layer_shapes"][number] for number in chosen]
    return rebuilt(trained, kept, **changed), {"layers": chosen, "of": depth}


def spread(count: int, depth: int) -> list[int]:
    """`count` of `depth` layers, evenly from the lowest to the highest: 3 of 6 are 0, 2 and 5. A single one is the lowest."""
    return [int(number) for number in np.round(np.linspace(0, depth - 1, count))] if count > 1 else [0]


def student(trained: Trained, corpus: Corpus, settings: Student) -> tuple[Trained, dict[str, Any]]:
    """A new model with random weights, and the vocabulary and labels of its teacher, so that both read the same ids."""
    del corpus
    found = backbones.find(settings.backbone)
    pieces = trained.preprocessor.vocabulary
    architecture = {**found.architecture, "vocab_size": len(pieces)}
    backbone = dataclasses.replace(found, architecture=architecture, lower_case=trained.preprocessor.lower_case)
    shape = {key: found.architecture[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
    return fresh(trained, backbone, pieces), {"backbone": settings.backbone, **shape}
