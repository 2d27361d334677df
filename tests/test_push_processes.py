"""Pushing across processes: a pusher that is killed at each of its steps, the embedded server, the real one where there is one."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import desired, push
from serving.client import Client
from serving.errors import ModelNotFound, PushError, Unavailable
from serving.push import Target
from serving.stores import FolderStore
from tests.fake_tf_serving import FakeServer, hashed, make_model, traffic

MODEL = "sentiment"

# ---- kill -9 ----

PUSHER = """
import os, pathlib, shutil, signal, sys
from serving import push, stores
address, root, source, where = sys.argv[1:]
def die(step):
    if step == where: os.kill(os.getpid(), signal.SIGKILL)
if where == "publish.half":
    copy = shutil.copyfile
    def half(source, target):
        if target.name != "saved_model.pb": die(where)
        return copy(source, target)
    shutil.copyfile = half
push.push(pathlib.Path(source), [push.Target(address, stores.FolderStore(pathlib.Path(root)))], retention=1, on_step=die)
"""


@pytest.mark.parametrize("where", [*push.STEPS, "publish.half", "label.written"])
def test_a_push_that_is_killed_leaves_a_served_version_and_the_same_push_again_finishes(tmp_path: Path, where: str) -> None:
    store = FolderStore(tmp_path / "served")
    paths = [make_model(tmp_path / "exports", version, shift=version / 10).path for version in (1, 2, 3)]
    with FakeServer() as server:
        target = Target(server.address, store)
        for path in paths[:2]:
            push.push(path, [target], retention=1)
        with traffic(server.address, MODEL) as seen:
            done = subprocess.run(
                [sys.executable, "-c", PUSHER, server.address, str(store.root), str(paths[2]), where], timeout=60, check=False
            )
            assert done.returncode == -signal.SIGKILL
            assert desired.read_labels(store, MODEL)["stable"] in (2, 3)
            assert all(version in store.versions(MODEL) for version in desired.read_labels(store, MODEL).values())
            (outcome,) = push.push(paths[2], [target], retention=1)
        assert outcome.version == 3
        assert outcome.published == (where in ("check", "gate", "publish", "publish.half"))
        assert (server.labels(MODEL), desired.read_labels(store, MODEL)) == ({"stable": 3}, {"stable": 3, "previous": 2})
        assert store.versions(MODEL) == [2, 3]
        assert not list((store.root / MODEL).glob(".pushing*"))
        assert set(seen) <= {2, 3}
        assert seen == sorted(seen)


# ---- the embedded server ----


def saved_model(root: Path, version: int, bias: float, *, expected: float | None = None) -> Path:
    """A real SavedModel in place: the probability of `long` is text length / 10 + bias; the manifest expects `expected` for it instead."""
    import tensorflow as tf

    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
        def serve(self, text: Any) -> Any:
            long = tf.cast(tf.strings.length(text), tf.float32) / 10 + bias
            classes = tf.tile([["short", "long"]], [tf.shape(text)[0], 1])
            return {
                "label": tf.where(long > 0.5, "long", "short"),
                "score": tf.maximum(long, 1 - long),
                "probabilities": tf.stack([1 - long, long], axis=1),
                "classes": classes,
            }

    made = Model()
    folder = root / MODEL / str(version)
    tf.saved_model.save(made, str(folder), signatures={"serving_default": made.serve})
    value = 0.3 + (bias if expected is None else expected)
    manifest = {
        "signatures": {"serving_default": {"inputs": {"text": {"dtype": "string", "shape": [None]}}, "outputs": {}}},
        "ops": ["Cast"],
        "gate": {"passed": True},
        "golden_probes": {"tolerance": 1e-3, "texts": ["abc"], "probabilities": [[1 - value, value]]},
        "files": hashed(folder),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@contextlib.contextmanager
def running(*command: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server in a process of its own, ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, quiet = f"127.0.0.1:{port}", subprocess.DEVNULL
    with subprocess.Popen([*command, f"--port={port}"], cwd=Path(__file__).parents[1], stdout=quiet, stderr=quiet) as process:
        try:
            with Client(address) as client:
                deadline = time.monotonic() + 60
                while True:  # it opens its port when its models are loaded
                    try:
                        client.status(model="nobody")
                    except ModelNotFound:
                        break
                    except Unavailable:
                        assert time.monotonic() < deadline
                        assert process.poll() is None
            yield address, process
        finally:
            process.kill()


def embedded(root: Path) -> contextlib.AbstractContextManager[tuple[str, subprocess.Popen[bytes]]]:
    quick = ("--file_system_poll_wait_seconds=0.05", "--max_num_load_retries=0")
    return running(sys.executable, "-m", "serving", "serve", f"--models_root={root}", *quick)


def test_pushes_to_the_embedded_server_under_traffic_and_through_a_crash(tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    store = FolderStore(root)
    with embedded(root) as (address, process):
        target = Target(address, store)
        push.push(saved_model(root, 1, 0.1), [target])
        with traffic(address, MODEL) as seen:
            with pytest.raises(PushError, match="the answers differ from those at export"):
                push.push(saved_model(root, 2, 0.2, expected=0.4), [target])
            broken = saved_model(root, 3, 0.2)
            (broken / "saved_model.pb").write_bytes(b"not a graph")
            manifest = json.loads((broken / "manifest.json").read_text())
            (broken / "manifest.json").write_text(json.dumps({**manifest, "files": hashed(broken)}))
            with pytest.raises(PushError, match="failed at wait"):
                push.push(broken, [target])
            (outcome,) = push.push(saved_model(root, 4, 0.3), [target])
            started = time.monotonic()
            push.rollback([target], MODEL)
            assert time.monotonic() - started < 1
            push.push(root / MODEL, [target])
        assert set(seen) == {1, 4}
        assert (outcome.version, store.failed(MODEL)) == (4, [2, 3])
        process.send_signal(signal.SIGKILL)
    with embedded(root) as (address, _), Client(address, model=MODEL) as client:
        assert client.predict(["abc"], version_label="stable").version == 4
        push.rollback([Target(address, store)], MODEL)
        assert client.predict(["abc"], version_label="stable").version == 1


@pytest.mark.skipif(
    shutil.which("tensorflow_model_server") is None,
    reason="no tensorflow_model_server on the PATH: install TensorFlow Serving's own package tensorflow-model-server",
)
def test_pushes_to_the_real_server_under_traffic(tmp_path: Path) -> None:
    root = tmp_path / "models"
    config = tmp_path / "models.config"
    config.write_text("")
    with running("tensorflow_model_server", f"--model_config_file={config}", "--max_num_load_retries=0") as (address, _):
        target = Target(address, FolderStore(root))
        push.push(saved_model(root, 1, 0.1), [target])
        with traffic(address, MODEL) as seen:
            with pytest.raises(PushError, match="the answers differ from those at export"):
                push.push(saved_model(root, 2, 0.2, expected=0.4), [target])
            push.push(saved_model(root, 3, 0.3), [target])
            started = time.monotonic()
            push.rollback([target], MODEL)
            assert time.monotonic() - started < 1
        assert set(seen) == {1, 3}
