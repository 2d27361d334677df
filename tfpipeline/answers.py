"""Probabilities as people and files have them: label, score, probability of each label. Frees every command from saying it again.

In: probabilities float32 `[rows, classes]` and what the classes are called. Out: plain dicts, lines for a terminal, files of rows. Needs numpy and no more.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfpipeline.errors import ConfigError

MOST_SHOWN = 8  # classes in a line for a terminal


def answers(labels: tuple[str, ...], task: str, separator: str, probabilities: npt.NDArray[np.float32]) -> Iterator[dict[str, Any]]:
    """`label`, `score` and `probabilities` of each row; of several labels, those above one half joined by `separator`."""
    for row in probabilities:
        if task == "multi_label":
            label = separator.join(name for name, value in zip(labels, row, strict=True) if value > 0.5)
        else:
            label = labels[int(row.argmax())]
        yield {
            "label": label,
            "score": round(float(row.max()), 6),
            "probabilities": {name: round(float(value), 6) for name, value in zip(labels, row, strict=True)},
        }


def line(answer: dict[str, Any]) -> str:
    """An answer for a terminal: the label, then the likeliest classes."""
    likeliest = sorted(answer["probabilities"].items(), key=lambda item: -item[1])[:MOST_SHOWN]
    return f"{answer['label'] or '(none)'}\t" + "  ".join(f"{name} {value:.3f}" for name, value in likeliest)


def paired(has_pairs: bool, texts: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """The texts of a command line as the model takes them.

    Raises:
        ConfigError: the model takes pairs, and one text has none.
    """
    if not has_pairs:
        return list(texts), None
    if len(texts) % 2:
        raise ConfigError(f"this model takes pairs of texts; received {len(texts)} texts. Give first and second text, one after the other.")
    return list(texts[0::2]), list(texts[1::2])


class JsonLines:
    """Rows into a binary stream, one JSON object a line."""

    def __init__(self, stream: Any, labels: tuple[str, ...]) -> None:
        self._stream = stream

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Rows: `source`, `text` and an answer."""
        self._stream.writelines((json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows)

    def close(self) -> None:
        """Nothing is held back."""


class Csv:
    """Rows into a binary stream, with a header and a column for each class."""

    def __init__(self, stream: Any, labels: tuple[str, ...]) -> None:
        self._text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
        self._writer = csv.writer(self._text)
        self._labels = labels
        self._writer.writerow(["source", "text", "label", "score", *(f"probability:{label}" for label in labels)])

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Rows: `source`, `text` and an answer."""
        self._writer.writerows(
            [row["source"], row["text"], row["label"], row["score"], *(row["probabilities"][label] for label in self._labels)]
            for row in rows
        )

    def close(self) -> None:
        """Leaves the stream itself open: it is closed by whoever opened it."""
        self._text.detach()
