"""The whole story: raw text to a served model that answers, through the command line as a person types it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving import Client

TEXTS = ("the app lost my payment", "lovely staff")


@contextlib.contextmanager
def _server(cwd: Path) -> Iterator[str]:
    """The embedded server over `models/`, as `make serve` starts it; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "serving", "serve", "--models_root=models", f"--port={port}", "--enable_batching"]
    with (cwd / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(60) == 0, (cwd / "server.log").read_text()


def _tfpipeline(*arguments: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-m", "tfpipeline", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _serving(*arguments: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-m", "serving", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _same(first: list[dict[str, Any]], second: list[dict[str, Any]], tolerance: float) -> None:
    for one, other in zip(first, second, strict=True):
        assert one["label"] == other["label"]
        assert abs(one["score"] - other["score"]) < tolerance


def _by_mediapipe(path: Path) -> list[dict[str, Any]]:
    """The answers of MediaPipe's own classifier, which knows nothing but the file."""
    from mediapipe.tasks.python import text as mediapipe_text
    from mediapipe.tasks.python.core.base_options import BaseOptions

    options = mediapipe_text.TextClassifierOptions(base_options=BaseOptions(model_asset_path=str(path)))
    with mediapipe_text.TextClassifier.create_from_options(options) as classifier:
        best = [max(classifier.classify(text).classifications[0].categories, key=lambda one: one.score) for text in TEXTS]
    return [{"label": one.category_name, "score": one.score} for one in best]


def test_raw_text_becomes_an_answering_model(tmp_path: Path) -> None:
    """data -> train -> evaluate -> compress -> export -> predict -> LiteRT and MediaPipe -> serve -> push -> ask, on the shipped corpus, each command reading what
    the one before wrote.
    """
    report = json.loads(_tfpipeline("data", "--preset", "scratch", "--json", cwd=tmp_path))
    assert report["rows_read"] > 1200

    small = ["--set", "train.epochs=3", "--set", "text.vocabulary_size=1000", "--set", "evaluate.bootstrap_samples=100"]
    trained = json.loads(_tfpipeline("train", "--preset", "scratch", *small, "--json", cwd=tmp_path))
    assert trained["epochs"] == 3
    assert 0.3 < trained["metrics"]["accuracy"]["value"] <= 1.0
    assert trained["baseline"]["accuracy"]["value"] > 0.3

    again = json.loads(_tfpipeline("evaluate", "latest", "--json", cwd=tmp_path))
    assert again["metrics"]["accuracy"] == trained["metrics"]["accuracy"]
    assert again["best_epoch"] == trained["best_epoch"]

    _tfpipeline("compress", "latest", "--recipe", "int8-dynamic", "--max-drop", "100", "--json", cwd=tmp_path)
    exported = json.loads(_tfpipeline("export", "latest", "--variant", "int8-dynamic", "--json", cwd=tmp_path))
    assert (tmp_path / exported["model"] / "saved_model.pb").is_file()

    by_run = json.loads(_tfpipeline("predict", "latest", *TEXTS, "--json", cwd=tmp_path))["predictions"]
    for folder in tmp_path.glob("runs/*"):  # the model's own folder must be enough
        folder.rename(folder.with_name(f"gone-{folder.name}")) if not folder.is_symlink() else folder.unlink()
    by_model = json.loads(_tfpipeline("predict", "models", *TEXTS, "--json", cwd=tmp_path))["predictions"]
    _same(by_run, by_model, 1e-5)

    edge = json.loads(_tfpipeline("edge", exported["model"], *TEXTS, "--verify", "--json", cwd=tmp_path))
    _same(by_run, edge["predictions"], 0.05)
    assert edge["verified"]["parity"]["agreement"] > 0.9
    if importlib.util.find_spec("mediapipe"):
        _same(edge["predictions"], _by_mediapipe(tmp_path / exported["model"] / "model.tflite"), 1e-4)

    with _server(tmp_path) as address:
        with Client(address, model="scratch") as client:
            client.wait_until_available(timeout_s=120)
        pushed = json.loads(_serving("push", "--target", address, "--json", cwd=tmp_path))["outcomes"][0]
        assert pushed["labels"] == {"stable": pushed["version"]}
        asked = json.loads(
            _serving(
                "predict",
                "--target",
                address,
                "--model",
                "scratch",
                "--label",
                "stable",
                "--json",
                *TEXTS,
                cwd=tmp_path,
            )
        )
        assert asked["version"] == pushed["version"]
        _same(by_run, asked["predictions"], 1e-5)
