"""Small corpora on disk for the tests of the data room, and what the tests ask of a prepared one."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tfpipeline import config
from tfpipeline.data import Corpus, prepare
from tfpipeline.errors import DataError

NOUNS = ("app", "card", "loan", "branch", "transfer", "clerk", "phone", "queue", "letter", "fee")
WORDS = ("great", "lovely", "quick", "kind", "awful", "slow", "rude", "broken", "late", "dear")
SPLITS = ("train", "validation", "test")


def texts(count: int, seed: int = 1) -> list[str]:
    """Different texts, no two of them near-duplicates."""
    random_ = random.Random(seed)
    return [f"{seed} {number} " + " ".join(random_.choices((*NOUNS, *WORDS), k=8)) for number in range(count)]


def labelled(found: list[str]) -> list[tuple[str, str]]:
    """Alternating labels."""
    return [(text, "negative" if number % 2 else "positive") for number, text in enumerate(found)]


def write(file: Path, rows: list[tuple[Any, ...]], header: tuple[str, ...] = ("text", "label")) -> Path:
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])
    return file


def settings(path: Path | list[Path], **values: Any) -> config.DataConfig:
    files = [str(p) for p in (path if isinstance(path, list) else [path])]
    found = {"path": files, **values}
    return config.load(overrides=[f"data.{name}={json.dumps(value)}" for name, value in found.items()]).data


def where(corpus: Corpus) -> dict[str, str]:
    """Text to the name of its split."""
    return {text: name for name in SPLITS for text in corpus.split(name).texts.to_pylist()}


def labels_of(corpus: Corpus) -> dict[str, Any]:
    """Text to label, over all splits."""
    found = [corpus.split(name)[row] for name in SPLITS for row in range(len(corpus.split(name)))]
    return {example.text: example.label for example in found}


def refusal(wanted: config.DataConfig, folder: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        prepare(wanted, folder)
    return str(caught.value)


def twins(count: int) -> list[tuple[str, str]]:
    """Pairs of texts that differ in their last word, far above the threshold."""
    return [
        (f"{text} and that was all there is to say about it today", f"{text} and that was all there is to say about it now")
        for text in texts(count, 5)
    ]
