"""One trained model's weights in a model of another shape: what the transforms share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from tfpipeline import text
from tfpipeline.backbone import Backbone
from tfpipeline.model import Classifier, build
from tfpipeline.trained import Trained

Arrays = dict[str, npt.NDArray[Any]]
# Where a weight lies. Names of variables do not say it: a layer that was made narrower has others.
LAYER = "layer/{}/"
HEAD_INPUTS = ("query/", "key/", "value/")
HEAD_OUTPUT = "attention_output/"
FEED_FORWARD_INPUT, FEED_FORWARD_OUTPUT = "intermediate/", "output/"
WORD_EMBEDDINGS = "word_embeddings"


def variables_of(model: Classifier) -> dict[str, Any]:
    """All weights by their place, `layer/0/query/kernel`; those outside the encoder by their names."""
    found: dict[str, Any] = {WORD_EMBEDDINGS: model.bert.embeddings.weight}
    for number, layer in enumerate(model.bert.encoder.layer):
        attention, after, last = layer.attention.self_attention, layer.attention.dense_output, layer.bert_output
        parts = {
            **dict(zip(HEAD_INPUTS, (attention.query, attention.key, attention.value), strict=True)),
            HEAD_OUTPUT: after.dense,
            "attention_norm/": after.LayerNorm,
            FEED_FORWARD_INPUT: layer.intermediate.dense,
            FEED_FORWARD_OUTPUT: last.dense,
            "output_norm/": last.LayerNorm,
        }
        for place, part in parts.items():
            for name in ("kernel", "bias", "gamma", "beta"):
                if hasattr(part, name):
                    found[f"{LAYER.format(number)}{place}{name}"] = getattr(part, name)
    placed = {id(variable) for variable in found.values()}
    # The name of the model, which differs from one built model to the next, comes first.
    found |= {str(variable.name).partition("/")[2]: variable for variable in model.weights if id(variable) not in placed}
    assert {id(variable) for variable in found.values()} == {id(variable) for variable in model.weights}
    return found


def arrays_of(trained: Trained) -> Arrays:
    """All weights by their place."""
    return {place: variable.numpy() for place, variable in variables_of(trained.model).items()}


def rebuilt(trained: Trained, arrays: Arrays, *, vocabulary: Sequence[str] | None = None, **architecture: Any) -> Trained:
    """A model like this one with other weights.

    Args:
        trained: what it is made from; left as it is.
        arrays: every weight of the new model, by its place.
        vocabulary: None: the same.
        architecture: fields that differ, `num_hidden_layers`, `vocab_size`, `layer_shapes`.
    """
    pieces = list(trained.preprocessor.vocabulary if vocabulary is None else vocabulary)
    changed = {**trained.backbone.architecture, "vocab_size": len(pieces), **architecture}
    made = fresh(trained, dataclasses.replace(trained.backbone, architecture=changed, weights=None), pieces)
    variables = variables_of(made.model)
    assert sorted(variables) == sorted(arrays)
    for place, variable in variables.items():
        variable.assign(arrays[place])
    return made


def fresh(trained: Trained, backbone: Backbone, pieces: Sequence[str]) -> Trained:
    """A model of another shape for the same task, with random weights: labels, pairs, cleaning and pooling are those of `trained`."""
    config = trained.config
    model = build(
        backbone,
        dataclasses.replace(config.model, pooling=trained.model.pooling),
        vocabulary_size=len(pieces),
        labels=trained.labels,
        task=trained.task,
        seed=config.runtime.seed,
        load_weights=False,
    )
    preprocessor = text.Preprocessor(list(pieces), config.text, trained.preprocessor.lower_case)
    return Trained(config, trained.labels, trained.has_pairs, preprocessor, model, backbone)


def head_size(trained: Trained) -> int:
    """Columns of one attention head."""
    architecture = trained.backbone.architecture
    return int(architecture["hidden_size"]) // int(architecture["num_attention_heads"])
