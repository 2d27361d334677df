"""Real texts with predictions, windows of them as journal records, and references of them as manifests have them: for tests and the benchmark.

The model is TF-IDF with naive Bayes: quick to train, and its predictions of its own training texts are made out of fold, so that all of
them are what a model says of texts it has not seen.
"""

from __future__ import annotations

import csv
import importlib.resources
import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serving.monitor import Report, monitor
from serving.monitor.window import CONFIDENCE_EDGES, LENGTH_EDGES
from serving.scripts import main_script

CORPORA = Path(os.environ.get("TFPIPELINE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class Row:
    """A text, the class it really has, and what a model said."""

    text: str
    truth: str
    label: str = ""
    score: float = 0.0


def read_sst2() -> list[Row]:
    names = {"0": "negative", "1": "positive"}
    lines = [
        line for part in ("train", "dev", "test") for line in (CORPORA / "sst2" / f"{part}.tsv").read_text(encoding="utf-8").splitlines()
    ]
    return [Row(text, names[label]) for text, label in (line.rsplit("\t", 1) for line in lines)]


def read_hotel() -> list[Row]:
    names = {"0": "negative", "1": "positive"}
    with (CORPORA / "chnsenticorp" / "hotel.csv").open(encoding="utf-8", newline="") as stream:
        return [Row(row["review"], names[row["label"]]) for row in csv.DictReader(stream) if row["review"].strip()]


def read_bank() -> list[Row]:
    file = importlib.resources.files("tfpipeline.samples") / "bank_feedback.csv"
    with file.open(encoding="utf-8") as stream:
        return [Row(row["text"], row["label"]) for row in csv.DictReader(stream)]


class Scorer:
    """Trained on rows; `held_out` are those rows with out-of-fold predictions."""

    def __init__(self, rows: Sequence[Row]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.model_selection import cross_val_predict
        from sklearn.naive_bayes import MultinomialNB
        from sklearn.pipeline import make_pipeline

        texts, truths = [row.text for row in rows], [row.truth for row in rows]
        self._model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), MultinomialNB(alpha=0.3))
        probabilities = cross_val_predict(self._model, texts, truths, cv=5, method="predict_proba")
        self._model.fit(texts, truths)
        self.held_out = self._rows(rows, probabilities)

    def score(self, rows: Sequence[Row]) -> list[Row]:
        return self._rows(rows, self._model.predict_proba([row.text for row in rows]))

    def _rows(self, rows: Sequence[Row], probabilities: Any) -> list[Row]:
        best = probabilities.argmax(axis=1)
        return [
            Row(row.text, row.truth, str(self._model.classes_[place]), float(probability))
            for row, place, probability in zip(rows, best, probabilities.max(axis=1), strict=True)
        ]


def manifest_of(rows: Sequence[Row]) -> dict[str, Any]:
    """As an export of a model would have it that was evaluated on these rows."""
    lengths = [*LENGTH_EDGES]
    return {
        "name": "m",
        "version": 1,
        "task": "single_label",
        "labels": sorted({row.label for row in rows}),
        "reference": {
            "rows": len(rows),
            "predicted": dict(Counter(row.label for row in rows)),
            "confidence": {"edges": [*CONFIDENCE_EDGES], "counts": np.histogram([row.score for row in rows], CONFIDENCE_EDGES)[0].tolist()},
            "characters": {"edges": lengths, "counts": np.histogram([len(row.text) for row in rows], lengths)[0].tolist()},
            "scripts": dict(Counter(main_script(row.text) for row in rows)),
            "unknown_share": 0.0,
        },
    }


def records_of(rows: Sequence[Row], texts: bool = True) -> list[dict[str, Any]]:
    """As the journal of a server has it that was asked these rows, one a second."""
    return [
        {
            "kind": "request",
            "time": f"2026-11-24T{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}.000+00:00",
            "id": f"request{number}:0",
            "model": "m",
            "version": 1,
            "version_label": None,
            "source": "server",
            "code": "OK",
            "ms": 8.0 + number % 5,
            "label": row.label,
            "score": row.score,
            "probabilities": None,
            "length": len(row.text),
            "tokens": None,
            "unknown": None,
            "text_key": None,
            **({"text": row.text} if texts else {}),
        }
        for number, row in enumerate(rows)
    ]


def judged(window: Sequence[Row], reference: Sequence[Row], texts: bool = True) -> Report:
    """A window against a reference, with the texts of both or with neither."""
    return monitor(records_of(window, texts), manifest_of(reference), reference_texts=[row.text for row in reference] if texts else None)


def split(rows: Sequence[Row], size: int, seed: int) -> tuple[list[Row], list[Row]]:
    """A random reference, and the rest, from which windows are drawn."""
    order = list(rows)
    random.Random(seed).shuffle(order)
    return order[:size], order[size:]


def mixed(rows: Sequence[Row], shares: dict[str, float], size: int, seed: int) -> list[Row]:
    """A window with these shares of the true classes, which nobody knows in service."""
    chooser = random.Random(seed)
    return [
        row for truth, share in shares.items() for row in chooser.sample([row for row in rows if row.truth == truth], round(share * size))
    ]
