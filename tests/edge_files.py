"""A small classifier that nobody trained, and edge files made of it: conversion has to be right, not clever. Shared by the edge tests."""

from __future__ import annotations

from pathlib import Path

from tfpipeline import config, model, text, trained
from tfpipeline.backbone import Backbone

LABELS = ("good", "bad", "neither")
LETTERS = [chr(code) for code in range(33, 127)]
TEXTS = [
    "the app was great",
    "awful",
    "my card was slow and the loan was lost",
    "Very good service, don't you think?",
    "a b c d e f g h i j k l",
    "it is not a film i like: see https://a.example/b",
    *(
        f"the {thing} was {word} {'very ' * times}slow"
        for thing in ("app", "card", "loan")
        for word in ("good", "bad")
        for times in range(4)
    ),
]

WORDS = sorted({word for line in TEXTS for word in line.lower().split() if word.isalpha()})
VOCABULARY = [*text.SPECIAL_TOKENS, *dict.fromkeys([*LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS, "##s", "##ing"])]


def tiny(folder: Path, *settings: str, has_pairs: bool = False, labels: tuple[str, ...] = LABELS, seed: int = 3) -> trained.Trained:
    """Two layers, 32 wide, random weights that are large enough for answers to differ."""
    loaded = config.load(overrides=["name=tiny", "model.backbone=scratch:tiny", "text.max_length=32", f"runtime.seed={seed}", *settings])
    file = folder / "vocab.txt"
    file.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    architecture = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
    backbone = Backbone("scratch:tiny", architecture, True, file, weights=None, sha256="")
    built = model.build(
        backbone, loaded.model, vocabulary_size=len(VOCABULARY), labels=labels, task=loaded.data.task, seed=seed, load_weights=False
    )
    for weight in built.trainable_variables:
        if weight.shape.rank == 2:
            weight.assign(weight * 6.0)
    return trained.Trained(loaded, labels, has_pairs, text.Preprocessor(VOCABULARY, loaded.text, True), built, backbone)
