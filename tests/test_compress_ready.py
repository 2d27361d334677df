"""Every ready recipe on a model of two layers: what it promises holds in the folder it leaves. Those that begin alike share their first steps."""

from __future__ import annotations

import re
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from tfpipeline import runs, trained
from tfpipeline.compress import chain, recipes

pytestmark = pytest.mark.slow

ORDER = sorted(recipes.names(), key=lambda name: len(recipes.load(name).steps))


@pytest.fixture(scope="module")
def original(tiny_run: runs.Run, tmp_path_factory: pytest.TempPathFactory) -> chain.Original:
    """A copy of the run, opened once: variants of one recipe are there for the next."""
    place = tmp_path_factory.mktemp("ready") / tiny_run.path.name
    return chain.Original.open(runs.Run(Path(shutil.copytree(tiny_run.path, place))), texts=3)


def shortened(name: str) -> recipes.Recipe:
    """The recipe with one epoch, for a teacher of two layers."""
    text = (resources.files("tfpipeline") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    text = (
        re.sub(r"train\.epochs = \d+", "train.epochs = 1", text).replace("count = 3", "count = 1").replace("scratch:mini", "scratch:tiny")
    )
    return recipes.parse(text, name, name)


PROMISES: dict[str, Any] = {
    "int8-dynamic": lambda report: (
        report["bytes_ratio"] < 0.5 and report["steps"][-1]["told"]["matmuls"]["dynamic"] == 4 * 2
    ),  # query, key and value as one, three more; in both layers
    "int8-full": lambda report: report["bytes_ratio"] < 0.5 and report["steps"][-1]["told"]["int8_share"] >= 0.9,
    "prune-2-4": lambda report: report["sparsity"]["two_of_four"] == 1.0,
    "prune50": lambda report: 0.49 < report["sparsity"]["encoder"] < 0.52,
    "prune80": lambda report: 0.79 < report["sparsity"]["encoder"] < 0.82 and report["gzip_ratio"] < 0.6,
    "prune80-int8": lambda report: report["sparsity"]["encoder"] > 0.79 and report["gzip_ratio"] < 0.35,
    "prune80-qat": lambda report: report["sparsity"]["encoder"] > 0.79 and report["steps"][-1]["told"]["int8_share"] >= 0.9,
    "qat": lambda report: report["steps"][-1]["told"]["quantization_aware"] and report["steps"][-1]["told"]["int8_share"] >= 0.9,
    "smallest": lambda report: report["sparsity"]["encoder"] > 0.79 and report["converted"],
    "structured": lambda report: report["bytes_ratio"] < 0.8,
    "student-mini": lambda report: len(report["steps"]) == 2,
    "student3": lambda report: report["bytes_ratio"] < 0.7,
    "trim-int8": lambda report: report["bytes_ratio"] < 0.5,
    "trim-vocabulary": lambda report: report["agreement"] == 1.0 and report["drop_points"] == 0.0,
}


@pytest.mark.parametrize("name", ORDER)
def test_a_ready_recipe_keeps_its_promise(original: chain.Original, name: str) -> None:
    report = chain.compress(original, shortened(name), max_drop=100.0)
    assert [step["kind"] for step in report["steps"]] == [step.kind for step in recipes.load(name).steps]
    assert PROMISES[name](report), report["steps"][-1]
    loaded = trained.load(original.run, variant=name)
    assert loaded.predict(["the app was great today"]).shape == (1, 2)
    assert (original.run.path / "compressed" / name / "model.tflite").is_file() == report["converted"]
