"""The whole story: raw text to a served model that answers, through the command line as a person types it."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from serving import Client


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


def test_raw_text_becomes_an_answering_model(tmp_path: Path) -> None:
    """data -> train -> evaluate -> export -> predict -> serve -> push -> ask, on the shipped corpus, each command reading what the one before wrote."""
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

    exported = json.loads(_tfpipeline("export", "latest", "--json", cwd=tmp_path))
    assert (tmp_path / exported["model"] / "saved_model.pb").is_file()

    by_run = json.loads(_tfpipeline("predict", "latest", "the app lost my payment", "lovely staff", "--json", cwd=tmp_path))["predictions"]
    for folder in tmp_path.glob("runs/*"):  # the model's own folder must be enough
        folder.rename(folder.with_name(f"gone-{folder.name}")) if not folder.is_symlink() else folder.unlink()
    by_model = json.loads(_tfpipeline("predict", "models", "the app lost my payment", "lovely staff", "--json", cwd=tmp_path))[
        "predictions"
    ]
    for one, other in zip(by_run, by_model, strict=True):
        assert one["label"] == other["label"]
        assert abs(one["score"] - other["score"]) < 1e-5

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
                "the app lost my payment",
                "lovely staff",
                cwd=tmp_path,
            )
        )
        assert asked["version"] == pushed["version"]
        for one, other in zip(by_run, asked["predictions"], strict=True):
            assert one["label"] == other["label"]
            assert abs(one["score"] - other["score"]) < 1e-5
