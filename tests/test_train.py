"""The loop around the step: what it leaves, how it stops, and that nothing is lost when it is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import TINY
from tfpipeline import config, runs
from tfpipeline.errors import GateError, RunError, TrainingError
from tfpipeline.train import train


def test_a_run_holds_everything_that_explains_it(tiny_run: runs.Run) -> None:
    for name in (
        "config.json", "run.json", "events.jsonl", "metrics.json", "data/train.arrow", "data/report.json", "data/rejects.jsonl", "data/vocab.txt",
        "checkpoints/best/model.json", "checkpoints/best/vocab.txt", "evaluation/report.html", "evaluation/test.parquet",
    ):  # fmt: skip
        assert (tiny_run.path / name).is_file(), name
    info = tiny_run.info
    assert info["status"] == "finished"
    assert info["versions"]["tensorflow"] == tf.__version__
    assert info["runtime"]["cpus"] >= 1
    assert not list(tiny_run.path.rglob(".incoming-*"))
    assert (tiny_run.path.parent / "latest").resolve() == tiny_run.path.resolve()


def test_it_learns(tiny_run: runs.Run) -> None:
    metrics = runs.read_json(tiny_run.path / "metrics.json")
    first = next(tiny_run.events("epoch"))
    assert np.isfinite(first["loss"])
    assert metrics["metrics"]["accuracy"]["value"] > 0.9


def test_the_best_epoch_is_kept_not_the_last(tiny_csv: Path, tmp_path: Path) -> None:
    """With a rate that grows wild the last epoch is worse; `best` must still answer like the best one."""
    loaded = config.load(overrides=[*TINY, f"data.path={tiny_csv}", "train.epochs=3", "train.monitor=loss"])
    result = train(loaded, root=tmp_path)
    history = list(result.run.events("epoch"))
    losses = [row["validation_loss"] for row in history]
    assert result.best_epoch == int(np.argmin(losses)) + 1
    validation = runs.read_json(result.run.path / "metrics.json")["validation"]
    assert validation["log_loss"]["value"] == pytest.approx(min(losses), abs=1e-5)


def test_early_stopping_stops_after_the_patience(tiny_csv: Path, tmp_path: Path) -> None:
    loaded = config.load(
        overrides=[
            *TINY,
            f"data.path={tiny_csv}",
            "train.epochs=9",
            "train.early_stopping_patience=1",
            "train.learning_rate=1e-9",
            "train.optimizer=sgd",
        ]
    )
    result = train(loaded, root=tmp_path)
    assert result.epochs < 9
    assert [event["best_epoch"] for event in result.run.events("early_stop")] == [result.best_epoch]


def test_a_non_finite_loss_stops_with_the_step_and_the_rows(tiny_csv: Path, tmp_path: Path) -> None:
    loaded = config.load(
        overrides=[*TINY, f"data.path={tiny_csv}", "train.learning_rate=1e30", "model.clip_norm=0", "train.warmup_fraction=0"]
    )
    with pytest.raises(
        TrainingError, match=r"^step \d+: the loss is (nan|inf), so training stopped. Rows of this batch: tiny.csv:\d+"
    ) as caught:
        train(loaded, root=tmp_path)
    assert "Lower train.learning_rate (now 1e+30)" in str(caught.value)
    run = runs.find("latest", tmp_path)
    assert run.info["status"] == "failed"
    assert "the loss is" in run.info["reason"]


def test_the_gate_says_no_below_the_wanted_accuracy(tiny_csv: Path, tmp_path: Path) -> None:
    loaded = config.load(overrides=[*TINY, f"data.path={tiny_csv}", "evaluate.min_accuracy=1.0", "train.learning_rate=1e-9"])
    with pytest.raises(GateError, match=r"^accuracy 0\.\d{4} on test is below evaluate.min_accuracy = 1$"):
        train(loaded, root=tmp_path)
    assert (tmp_path / "latest" / "metrics.json").is_file()  # the numbers stay, whatever the gate says


def test_a_run_worse_than_its_baseline_run_is_refused(tiny_run: runs.Run, tiny_csv: Path) -> None:
    """Paired test on the same rows: an untrained model loses against a trained one."""
    overrides = [*TINY, f"data.path={tiny_csv}", f"train.baseline_run={tiny_run.path.name}", "train.learning_rate=1e-9", "runtime.seed=3"]
    root = tiny_run.path.parent
    latest = (root / "latest").readlink()
    try:
        with pytest.raises(GateError, match=rf"^worse than {tiny_run.path.name} on the same \d+ rows: accuracy -0"):
            train(config.load(overrides=overrides), root=root)
    finally:  # the shared run stays the newest
        (root / "latest").unlink()
        (root / "latest").symlink_to(latest)


def test_the_features_of_the_step_train_together(tiny_csv: Path, tmp_path: Path) -> None:
    extra = [
        "model.accumulation_steps=2", "model.ema_decay=0.9", "model.label_smoothing=0.1", "model.fgm_epsilon=0.1", "train.layer_decay=0.8",
        "runtime.precision=bfloat16", "data.class_weights=balanced", "model.freeze_layers=1",
    ]  # fmt: skip
    try:
        result = train(config.load(overrides=[*TINY, f"data.path={tiny_csv}", *extra]), root=tmp_path)
    finally:
        import tf_keras

        tf_keras.mixed_precision.set_global_policy("float32")
    assert np.isfinite(next(result.run.events("epoch"))["loss"])


def test_several_labels_a_text_and_pairs_train_and_answer(tmp_path: Path) -> None:
    rows = [
        {
            "a": f"question {i} about {'cards' if i % 2 else 'loans'}",
            "b": f"answer number {i}",
            "tags": (["x"] if i % 2 else []) + (["y"] if i % 3 else []),
        }
        for i in range(90)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = config.load(
        overrides=[
            *TINY,
            f"data.path={path}",
            "data.task=multi_label",
            "data.text=a",
            "data.text_pair=b",
            "data.label=tags",
            "evaluate.tfidf_baseline=true",
        ]
    )
    result = train(loaded, root=tmp_path / "runs")
    from tfpipeline.export import export, open_model

    published = export(result.run, root=tmp_path / "models")
    model = open_model(published.path)
    assert (model.labels, model.has_pairs, model.task) == (("x", "y"), True, "multi_label")
    probabilities = model.predict(["question 1 about cards"], ["answer number 1"])
    assert probabilities.shape == (1, 2)


def _command(arguments: list[str], root: Path) -> list[str]:
    return [sys.executable, "-m", "tfpipeline", "train", *arguments, "--runs", str(root)]


def _start(arguments: list[str], root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(_command(arguments, root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _long(tiny_csv: Path) -> list[str]:
    overrides = [
        *TINY,
        f"data.path={tiny_csv}",
        "train.epochs=3",
        "train.checkpoint_steps=4",
        "runtime.deterministic=true",
        "evaluate.tfidf_baseline=false",
    ]
    return [part for override in overrides for part in ("--set", override)]


def _wait_for_checkpoint(process: subprocess.Popen[str], root: Path) -> None:
    """Until a checkpoint in the middle of an epoch lies there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for state in root.glob("2*/checkpoints/step-*/state.json"):
            try:
                if json.loads(state.read_text())["batch"]:
                    return
            except (OSError, ValueError):
                continue
        if process.poll() is not None:
            raise AssertionError(process.stdout.read() if process.stdout else "ended")
        time.sleep(0.005)
    raise AssertionError("no checkpoint within two minutes")


def _weights(root: Path) -> dict[str, np.ndarray]:
    (path,) = root.glob("2*/checkpoints/step-*/state.index")
    reader = tf.train.load_checkpoint(str(path.with_suffix("")))
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if name not in ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE")
    }


def test_a_killed_run_resumes_to_the_same_bits(tiny_csv: Path, tmp_path: Path) -> None:
    """`kill -9` in the middle of an epoch, then --resume: weights, optimizer, step and random state equal those of a run never killed."""
    undisturbed = subprocess.run(_command(_long(tiny_csv), tmp_path / "a"), capture_output=True, text=True, timeout=300)
    assert undisturbed.returncode == 0, undisturbed.stderr
    process = _start(_long(tiny_csv), tmp_path / "b")
    _wait_for_checkpoint(process, tmp_path / "b")
    process.kill()
    process.communicate()
    run = runs.find("latest", tmp_path / "b")
    assert not (run.path / "metrics.json").exists()  # it was killed in time, or this test shows nothing
    resumed = subprocess.run(_command(["--resume", "latest"], tmp_path / "b"), capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    assert [event["epoch"] for event in run.events("resumed")]
    first, second = _weights(tmp_path / "a"), _weights(tmp_path / "b")
    assert first.keys() == second.keys()
    assert len(first) > 50
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_ctrl_c_saves_and_says_how_to_go_on(tiny_csv: Path, tmp_path: Path) -> None:
    process = _start(_long(tiny_csv), tmp_path)
    _wait_for_checkpoint(process, tmp_path)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    run = runs.find("latest", tmp_path)
    assert process.returncode == 130
    assert f"a checkpoint is written. Go on with: tfpipeline train --resume {tmp_path}" in output
    assert "Traceback" not in output
    assert run.info["status"] == "interrupted"


def test_a_full_disk_while_checkpointing_is_one_clear_message(tiny_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tf.train.Checkpoint.write

    def full(self: tf.train.Checkpoint, path: str, options: object = None) -> str:
        if "state" in Path(path).name:
            Path(path + ".data").write_bytes(b"half")
            raise tf.errors.ResourceExhaustedError(None, None, f"{path}.data: No space left on device")
        return str(real(self, path, options))

    monkeypatch.setattr(tf.train.Checkpoint, "write", full)
    with pytest.raises(RunError, match=r"checkpoints: cannot be written: .*No space left on device\. What was written before is intact\."):
        train(config.load(overrides=[*TINY, f"data.path={tiny_csv}"]), root=tmp_path)
    run = runs.find("latest", tmp_path)
    assert run.info["status"] == "failed"
    assert not list(run.path.rglob("*half*"))
    assert not list(run.path.rglob(".incoming-*"))


def test_a_run_without_a_model_says_how_to_get_one(tiny_config: config.Config, tmp_path: Path) -> None:
    from tfpipeline.trained import load

    run = runs.create(tiny_config, tmp_path)
    with pytest.raises(
        RunError, match=rf"^{run.path}: has no trained model yet \(status: created\). Finish it: tfpipeline train --resume {run.path}$"
    ):
        load(run)
