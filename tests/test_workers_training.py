"""Several processes that train one model, on loopback: they take the steps of one, lose and repeat no row, and survive the loss of one of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY
from tests.test_train import _same_bits, wait_for_checkpoint
from tfpipeline import config, data, runs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SETTINGS = (
    *TINY,
    "train.epochs=2",
    "train.checkpoint_steps=4",
    "runtime.deterministic=true",
    "runtime.threads=1",
    "evaluate.tfidf_baseline=false",
)
# One process that writes down which rows it reads and the loss of each step.
PROCESS = """
import json, sys
from pathlib import Path
from tfpipeline import config, runtime, train
runtime.quiet()
loaded = config.load(overrides=sys.argv[3:])
if loaded.runtime.strategy == "mirrored":  # over the GPUs of a machine; here over two halves of a processor
    import tensorflow as tf
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
    made_for_gpus = tf.distribute.MirroredStrategy
    tf.distribute.MirroredStrategy = lambda: made_for_gpus(["CPU:0", "CPU:1"])
root, notes = Path(sys.argv[1]), open(sys.argv[2], "w")
train.EVENT_SECONDS = -1.0
made = train._Session._dataset
class Noted:
    def __init__(self, examples, name):
        self.examples, self.name, self.labels, self.weights = examples, name, examples.labels, examples.weights
    def text_batch(self, rows):
        print(json.dumps([self.name, [int(row) for row in rows]]), file=notes, flush=True)
        return self.examples.text_batch(rows)
def noted(session, examples, plan, **more):
    return made(session, Noted(examples, "train" if examples is session.rows else "validation"), plan, **more)
train._Session._dataset = noted
result = train.train(loaded, root=root)
print(json.dumps({"epochs": result.epochs, "accuracy": result.metrics["metrics"]["accuracy"]["value"]}))
"""


def _free_ports(count: int) -> list[int]:
    taken = [socket.socket() for _ in range(count)]
    try:
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]
    finally:
        for one in taken:
            one.close()


def _environments(count: int) -> list[dict[str, str]]:
    cluster = {"worker": [f"127.0.0.1:{port}" for port in _free_ports(count)]}
    return [
        {**os.environ, "TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})} for index in range(count)
    ]


def _start(commands: Sequence[Sequence[str]]) -> list[subprocess.Popen[str]]:
    environments = _environments(len(commands)) if len(commands) > 1 else [dict(os.environ)]
    return [
        subprocess.Popen([sys.executable, *command], env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command, environment in zip(commands, environments, strict=True)
    ]


def _end(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each; none of them outlives the test."""
    try:
        ended = []
        for process in processes:
            output, errors = process.communicate(timeout=300)
            ended.append((process.returncode, output, errors))
        return ended
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


def _trained(
    folder: Path, workers: int, strategy: str, settings: Sequence[str]
) -> tuple[runs.Run, list[dict[str, Any]], list[list[list[int]]], list[int]]:
    """The run, what each worker said, the training rows that each read, and the validation rows that all read."""
    folder.mkdir()
    notes = [folder / f"notes-{index}" for index in range(workers)]
    ended = _end(_start([["-c", PROCESS, str(folder / "runs"), str(note), *settings, f"runtime.strategy={strategy}"] for note in notes]))
    for code, _, errors in ended:
        assert code == 0, errors[-3000:]
    read = [[json.loads(line) for line in note.read_text().splitlines()] for note in notes]
    (run,) = runs.list_runs(folder / "runs")
    return (
        run,
        [json.loads(output) for _, output, _ in ended],
        [[rows for name, rows in lines if name == "train"] for lines in read],
        [row for lines in read for name, rows in lines if name == "validation" for row in rows],
    )


def test_two_workers_take_the_steps_of_one_and_read_each_row_once(tiny_csv: Path, tmp_path: Path) -> None:
    """The same batches in one process, shared by two, and by two replicas of one process. Without dropout: its masks belong to a replica and its rows, not to a row."""
    settings = [
        *SETTINGS, f"data.path={tiny_csv}", "model.dropout=0", "model.accumulation_steps=2", "model.clip_norm=0.5", "model.ema_decay=0.9",
        "model.label_smoothing=0.1", "data.class_weights=balanced",
    ]  # fmt: skip
    rows = len(data.prepare(config.load(overrides=settings).data).train)
    # The last batch has one row, so that one worker has none of it.
    size = next(size for size in range(6, 13) if rows % size == 1)
    settings += [f"train.batch_size={size}"]
    one, (alone,), (order,), judged = _trained(tmp_path / "one", 1, "one", settings)
    two, said, parts, judged_by_two = _trained(tmp_path / "two", 2, "multiworker", settings)

    steps = -(-rows // size)
    _same_numbers(one, two, 2 * steps)

    both, _, (order_of_both,), _ = _trained(tmp_path / "mirrored", 1, "mirrored", settings)
    _same_numbers(one, both, 2 * steps)
    assert Counter(row for part in order_of_both for row in part) == Counter([*range(rows)] * 2)

    for epoch in range(2):
        mine, theirs = (part[epoch * steps : (epoch + 1) * steps] for part in parts)
        assert Counter(row for part in (*mine, *theirs) for row in part) == Counter(range(rows))
        assert [sorted(a + b) for a, b in zip(mine, theirs, strict=True)] == [sorted(batch) for batch in order[epoch * steps :][:steps]]
    assert [] in parts[1]
    assert Counter(judged_by_two) == Counter(judged)
    assert said[0] == said[1]
    assert said[0]["epochs"] == alone["epochs"] == 2
    assert said[0]["accuracy"] == pytest.approx(alone["accuracy"])
    assert two.info["status"] == "finished"
    assert len(two.info["sessions"]) == 1  # of the chief: nobody else writes


def _same_numbers(one: runs.Run, other: runs.Run, steps: int) -> None:
    losses = [[event["loss"] for event in run.events("step")] for run in (one, other)]
    assert len(losses[0]) == len(losses[1]) == steps
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    epochs = [list(run.events("epoch")) for run in (one, other)]
    for name in ("loss", "accuracy", "validation_loss", "validation_accuracy", "validation_macro_f1"):
        assert [event[name] for event in epochs[1]] == pytest.approx([event[name] for event in epochs[0]], abs=1e-5), name


def _command(root: Path, *arguments: str) -> list[str]:
    return ["-m", "tfpipeline", "train", *arguments, "--runs", str(root)]


def test_a_killed_worker_stops_the_others_and_all_resume_to_the_same_bits(tiny_csv: Path, tmp_path: Path) -> None:
    """`kill -9` of one, a clear end of the other, both started again: weights, optimizer and step are those of two workers that nobody disturbed."""
    overrides = [*SETTINGS, f"data.path={tiny_csv}", "train.epochs=3", "runtime.strategy=multiworker"]
    settings = [part for override in overrides for part in ("--set", override)]
    undisturbed = _end(_start([_command(tmp_path / "a", *settings)] * 2))
    assert [code for code, _, _ in undisturbed] == [0, 0], undisturbed[0][2][-3000:]
    assert undisturbed[0][1].splitlines()[:3] == undisturbed[1][1].splitlines()[:3]  # both answer

    processes = _start([_command(tmp_path / "b", *settings)] * 2)
    wait_for_checkpoint(processes, tmp_path / "b", lambda: "\n".join(errors[-2000:] for _, _, errors in _end(processes)), 200)
    processes[1].send_signal(signal.SIGKILL)
    (code, _, errors), (killed, _, _) = _end(processes)
    run = runs.find("latest", tmp_path / "b")
    assert not (run.path / "metrics.json").exists()  # it was killed in time, or this test shows nothing
    assert killed == -signal.SIGKILL
    assert code == 75, errors[-3000:]
    assert "WorkerLost: another worker is gone, so this one stopped (" in errors
    assert f"Start all workers again with --resume {run.path.name}; training goes on from its last checkpoint." in errors
    assert "Traceback" not in errors
    assert run.info["status"] == "failed"

    # As in deploy/k8s/train.yaml: the chief says which run, the others follow it.
    resumed = _end(_start([_command(tmp_path / "b", "--resume", "latest"), _command(tmp_path / "b", *settings)]))
    assert [code for code, _, _ in resumed] == [0, 0], resumed[0][2][-3000:]
    assert len(list(run.events("resumed"))) == 1
    _same_bits(tmp_path / "a", tmp_path / "b")


def test_ctrl_c_at_one_worker_saves_and_stops_all(tiny_csv: Path, tmp_path: Path) -> None:
    overrides = [*SETTINGS, f"data.path={tiny_csv}", "train.epochs=3", "runtime.strategy=multiworker"]
    processes = _start([_command(tmp_path, *(part for override in overrides for part in ("--set", override)))] * 2)
    wait_for_checkpoint(processes, tmp_path, lambda: "\n".join(errors[-2000:] for _, _, errors in _end(processes)), 200)
    processes[1].send_signal(signal.SIGINT)
    ended = _end(processes)
    assert [code for code, _, _ in ended] == [130, 130], ended[0][2][-3000:]
    for _, _, errors in ended:
        assert "a checkpoint is written. Go on with: tfpipeline train --resume" in errors
    assert runs.find("latest", tmp_path).info["status"] == "interrupted"


def test_an_error_of_the_chief_ends_all_with_its_message(tmp_path: Path) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("text,label\n")
    settings = [part for override in (*TINY, f"data.path={empty}", "runtime.strategy=multiworker") for part in ("--set", override)]
    (code, _, errors), (other, _, other_errors) = _end(_start([_command(tmp_path / "runs", *settings)] * 2))
    assert (code, other) == (2, 2), errors + other_errors
    message = next(line for line in errors.splitlines() if line.startswith("DataError: ")).removeprefix("DataError: ")
    assert f"DataError: the chief stopped: {message}" in other_errors
    assert not [one for one in (tmp_path / "runs").iterdir() if one.is_dir()]
