"""Shared by all tests: the legacy-Keras switch before anything imports TensorFlow, quiet libraries, and one small trained run."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import hypothesis
import pytest

import tfpipeline  # noqa: F401  first: decides which Keras TensorFlow is
from tfpipeline import config, runtime

runtime.quiet()
# A busy machine is slow, not wrong. The same examples at every run: a change is judged by what it changes. TFPIPELINE_EXPLORE=1 looks for new ones.
hypothesis.settings.register_profile(
    "patient", deadline=None, derandomize=not os.environ.get("TFPIPELINE_EXPLORE"), suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test downloads

TINY = (
    "name=tiny",
    "model.backbone=scratch:tiny",
    "text.vocabulary_size=300",
    "text.max_length=32",
    "train.epochs=1",
    "train.batch_size=8",
    "train.learning_rate=1e-3",
    "train.tensorboard=false",
    "evaluate.bootstrap_samples=100",
    "export.parity_texts=20",
    "data.near_duplicates=off",
    "data.validation_fraction=0.2",
    "data.test_fraction=0.2",
)


def sentences() -> list[tuple[str, str]]:
    """120 short texts whose label is in their words: enough for a tiny model to learn something."""
    good, bad = ("great", "lovely", "quick", "kind", "perfect"), ("awful", "slow", "rude", "broken", "lost")
    things = ("app", "card", "loan", "branch", "transfer", "clerk")
    ends = ("today", "again")
    rows = [(f"the {thing} was {word} {end}", "positive") for thing, word, end in itertools.product(things, good, ends)]
    return rows + [(f"the {thing} was {word} {end}", "negative") for thing, word, end in itertools.product(things, bad, ends)]


@pytest.fixture(scope="session")
def tiny_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of `sentences()`, labels alternating."""
    path = tmp_path_factory.mktemp("data") / "tiny.csv"
    rows = sentences()
    half = len(rows) // 2
    mixed = [row for pair in zip(rows[:half], rows[half:], strict=True) for row in pair]
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in mixed), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_config(tiny_csv: Path) -> config.Config:
    """A Config that trains in seconds."""
    return config.load(overrides=[*TINY, f"data.path={tiny_csv}", "train.epochs=6"])


@pytest.fixture(scope="session")
def tiny_run(tiny_config: config.Config, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """One trained and evaluated run, shared: tests must not change it."""
    from tfpipeline.train import train

    return train(tiny_config, root=tmp_path_factory.mktemp("runs")).run


@pytest.fixture(scope="session")
def tiny_model(tiny_run, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """The run above, exported: a `Published`."""
    from tfpipeline.export import export

    return export(tiny_run, root=tmp_path_factory.mktemp("models"))
