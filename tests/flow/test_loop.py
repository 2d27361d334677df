"""The whole loop, small, on real processes: what people correct, the next model knows."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

from tests.flow import loop

GOOD, BAD = ("great", "lovely", "quick", "kind", "perfect"), ("awful", "slow", "rude", "broken", "lost")
THINGS = ("app", "card", "loan", "branch", "transfer", "clerk", "mortgage", "letter")
ENDS = ("today", "again", "this week", "as always", "for me", "yesterday")


def _corpus(path: Path) -> list[str]:
    """480 short texts of a bank's customers whose label is in their words."""
    rows = [
        (f"the {thing} was {word} {end}", label)
        for label, words in (("positive", GOOD), ("negative", BAD))
        for thing, word, end in itertools.product(THINGS, words, ENDS)
    ]
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8")
    random.Random(0).shuffle(rows)
    return [text for text, _ in rows]


def test_requests_corrections_drift_and_a_better_model(tmp_path: Path) -> None:
    ordinary = _corpus(tmp_path / "bank.csv")
    settings = (
        "name=small", "data.path=bank.csv", "model.backbone=scratch:tiny", "text.vocabulary_size=400", "text.max_length=32", "train.epochs=6",
        "train.batch_size=16", "train.learning_rate=1e-3", "train.tensorboard=false", "evaluate.bootstrap_samples=100", "export.parity_texts=20",
        "data.near_duplicates=off",
    )  # fmt: skip
    train = [part for setting in settings for part in ("--set", setting)]
    said: list[str] = []
    ending = loop.tell(
        tmp_path,
        loop.Story(train, "small", ordinary, tmp_path / "bank.csv", ["--set", "evaluate.not_worse_margin=0.2", "--set", "train.epochs=12"]),
        said.append,
    )

    assert ending.verdict_before in ("ok", "warn"), said
    assert ending.verdict == "alarm", said
    assert ending.corrected == 200
    assert len(set(ending.versions)) == 2
    assert ending.right_before < 0.8
    assert ending.right_after > max(0.85, ending.right_before + 0.15), said
    assert ending.ordinary_same > 0.95, said
    assert ending.retrained["gate"]["passed"] is True, ending.retrained["gate"]
