"""The loop around the step: what it leaves, how it stops, and that nothing is lost when it is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
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


def wait_for_checkpoint(processes: Sequence[subprocess.Popen[str]], root: Path, told: Callable[[], str], timeout_s: float = 120) -> None:
    """Until a checkpoint in the middle of an epoch lies there; fails with what `told` says when a process ends before."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for state in root.glob("2*/checkpoints/step-*/state.json"):
            try:
                if json.loads(state.read_text())["batch"]:
                    return
            except (OSError, ValueError):
                continue
        if any(process.poll() is not None for process in processes):
            raise AssertionError(told())
        time.sleep(0.005)
    raise AssertionError(f"no checkpoint within {timeout_s:g} s")


def _weights(root: Path) -> dict[str, np.ndarray]:
    (path,) = root.glob("2*/checkpoints/step-*/state.index")
    reader = tf.train.load_checkpoint(str(path.with_suffix("")))
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if name not in ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE")
    }


def _same_bits(first: Path, second: Path) -> None:
    mine, theirs = _weights(first), _weights(second)
    assert mine.keys() == theirs.keys()
    assert len(mine) > 50
    for name, value in mine.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_a_killed_run_resumes_to_the_same_bits(tiny_csv: Path, tmp_path: Path) -> None:
    """`kill -9` in the middle of an epoch, then --resume: weights, optimizer, step and random state equal those of a run never killed."""
    undisturbed = subprocess.run(_command(_long(tiny_csv), tmp_path / "a"), capture_output=True, text=True, timeout=300)
    assert undisturbed.returncode == 0, undisturbed.stderr
    process = _start(_long(tiny_csv), tmp_path / "b")
    wait_for_checkpoint([process], tmp_path / "b", lambda: process.stdout.read() if process.stdout else "ended")
    process.kill()
    process.communicate()
    run = runs.find("latest", tmp_path / "b")
    assert not (run.path / "metrics.json").exists()  # it was killed in time, or this test shows nothing
    resumed = subprocess.run(_command(["--resume", "latest"], tmp_path / "b"), capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    assert [event["epoch"] for event in run.events("resumed")]
    _same_bits(tmp_path / "a", tmp_path / "b")


FROM_A_MODEL = """
import os, sys
from pathlib import Path
from tfpipeline import config, runs, runtime, train, trained
runtime.quiet()
parent, root, last = runs.Run(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
save = train._Session.save
def save_and_die(self):
    save(self)
    if last and int(self.trained.model.optimizer.iterations) >= last:
        os._exit(9)
train._Session.save = save_and_die
train.train(config.load_dict(parent.config.to_dict(), "test", sys.argv[4:]), root=root, start=trained.load(parent))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["compress.sparsity=0.6", "compress.sparsity_end=0.8", "compress.distill_weight=0.5", "compress.distill_hidden_weight=0.1"],
        ["compress.quantize_aware=true", "compress.distill_weight=0.9", "model.ema_decay=0.9"],
    ],
    ids=["pruning", "quantization"],
)
def test_a_compression_killed_in_its_middle_resumes_to_the_same_bits(tiny_run: runs.Run, tmp_path: Path, settings: list[str]) -> None:
    """Masks, ranges, start and teacher are those of a run never killed."""
    settings = [*settings, "train.epochs=3", "train.checkpoint_steps=4", "runtime.deterministic=true", "evaluate.tfidf_baseline=false"]
    for name, last, code in (("a", "0", 0), ("b", "12", 9)):
        command = [sys.executable, "-c", FROM_A_MODEL, str(tiny_run.path), str(tmp_path / name), last, *settings]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr
    run = runs.find("latest", tmp_path / "b")
    assert (run.path / "checkpoints" / "start" / "model.json").is_file()
    resumed = subprocess.run(_command(["--resume", "latest"], tmp_path / "b"), capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    assert [event["batch"] for event in run.events("resumed")] == [12 % 9]
    _same_bits(tmp_path / "a", tmp_path / "b")


def test_ctrl_c_saves_and_says_how_to_go_on(tiny_csv: Path, tmp_path: Path) -> None:
    process = _start(_long(tiny_csv), tmp_path)
    wait_for_checkpoint([process], tmp_path, lambda: process.stdout.read() if process.stdout else "ended")
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


# ---- training from a model ----


def _finetuned(run: runs.Run, root: Path, *overrides: str, start: object = None) -> runs.Run:
    from tfpipeline import trained

    loaded = config.load_dict(run.config.to_dict(), "test", ["train.epochs=2", "evaluate.tfidf_baseline=false", *overrides])
    return train(loaded, root=root, start=start or trained.load(run)).run  # type: ignore[arg-type]


def test_training_starts_from_a_model_of_any_shape_without_looking_for_a_backbone(tiny_run: runs.Run, tmp_path: Path) -> None:
    from tests.test_trained import _of_shape
    from tfpipeline import trained

    start = _of_shape(trained.load(tiny_run), layer_shapes=[{"heads": 1, "intermediate": 100}, {"heads": 2, "intermediate": 60}])
    run = _finetuned(tiny_run, tmp_path, "model.backbone=/nowhere/at/all", "train.learning_rate=1e-12", start=start)
    texts = ["the app was great today", "the clerk was rude again"]
    np.testing.assert_allclose(trained.load(run).predict(texts), start.predict(texts), atol=1e-4)
    assert runs.read_json(run.path / "checkpoints" / "start" / "model.json")["backbone"]["architecture"]["layer_shapes"][0]["heads"] == 1


def test_a_pruned_run_is_as_sparse_as_was_asked_for_and_still_right(tiny_run: runs.Run, tmp_path: Path) -> None:
    from tfpipeline import trained
    from tfpipeline.techniques import zeros

    run = _finetuned(tiny_run, tmp_path, "compress.sparsity=0.8", "compress.distill_weight=0.8", "train.epochs=4")
    found = zeros.measure(trained.load(run).model)
    assert found["encoder"] == pytest.approx(0.8, abs=0.001)
    assert run.info["compression"]["sparsity"] == found
    assert run.info["teacher"]["from"] == "checkpoints/start"
    epochs = [event["best"] for event in run.events("epoch")]
    assert epochs[:2] == [False, False]  # not yet sparse: never the best, however accurate
    assert runs.read_json(run.path / "metrics.json")["metrics"]["accuracy"]["value"] > 0.9


def test_a_teacher_is_heard_once_or_asked_at_every_step(tiny_run: runs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its answers are too many to keep they are asked for again and again; the training is the same."""
    from tfpipeline import origin, trained

    asked: list[int] = []
    logits = trained.Trained.logits
    monkeypatch.setattr(trained.Trained, "logits", lambda self, rows: asked.append(len(rows)) or logits(self, rows))
    losses = []
    for most in (origin.MOST_HEARD_BYTES, 0):
        monkeypatch.setattr(origin, "MOST_HEARD_BYTES", most)
        run = _finetuned(tiny_run, tmp_path / str(most), "compress.distill_weight=0.9", "train.epochs=2", "runtime.deterministic=true")
        losses.append([event["loss"] for event in run.events("epoch")])
    assert len(asked) == 1
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_a_sparse_model_is_quantized_and_keeps_its_zeros(tiny_run: runs.Run, tmp_path: Path) -> None:
    from tfpipeline import trained
    from tfpipeline.techniques import zeros

    sparse = _finetuned(tiny_run, tmp_path, "compress.sparsity=0.5", "compress.sparsity_pattern=2:4")
    run = _finetuned(sparse, tmp_path, "compress.sparsity=0", "compress.sparsity_pattern=any", "compress.quantize_aware=true")
    model = trained.load(run).model
    assert model.quantization
    found = zeros.measure(model)
    assert found["two_in_four"]
    assert found["encoder"] >= 0.5
    assert runs.read_json(run.path / "metrics.json")["metrics"]["accuracy"]["value"] > 0.9


def test_a_smaller_vocabulary_learns_from_a_teacher_with_the_whole_one(tiny_run: runs.Run, tmp_path: Path) -> None:
    """Both read the same texts, each in its own word pieces; unlabelled texts are learned from too, and those of the corpus left out."""
    from dataclasses import replace

    from tests.test_trained import _of_shape
    from tfpipeline import text, trained

    teacher = trained.load(tiny_run)
    pieces = list(teacher.preprocessor.vocabulary)[:-40]
    small = replace(teacher, preprocessor=text.Preprocessor(pieces, teacher.config.text, teacher.preprocessor.lower_case))
    small = _of_shape(small, num_hidden_layers=1, vocab_size=len(pieces))
    more = tmp_path / "more.csv"
    known = "the app was great today"
    more.write_text("text\n" + "".join(f"the {thing} is great\n" for thing in ("pen", "cat", "pen", "sky")) + f"{known}\n")
    run = _finetuned(
        tiny_run, tmp_path / "runs", f"compress.distill_from={tiny_run.path}", "compress.distill_weight=0.9", f"compress.unlabelled={more}",
        "train.epochs=8", start=small,
    )  # fmt: skip
    assert [event["rows"] for event in run.events("unlabelled")] == [3]
    assert len(trained.load(run).preprocessor.vocabulary) == len(pieces)
    losses = [event["loss"] for event in run.events("epoch")]
    assert losses[-1] < losses[0]


def test_a_teacher_that_is_not_there_or_answers_something_else_is_refused(tiny_run: runs.Run, tiny_csv: Path, tmp_path: Path) -> None:
    from tfpipeline.errors import ConfigError

    plain = config.load(overrides=[*TINY, f"data.path={tiny_csv}", "compress.distill_weight=0.5"])
    with pytest.raises(ConfigError, match=r"^compress.distill_weight: there is no teacher. This run starts from a backbone"):
        train(plain, root=tmp_path)
    rounding = config.load(overrides=[*TINY, f"data.path={tiny_csv}", "compress.quantize_aware=true"])
    with pytest.raises(
        ConfigError, match=r"^compress.quantize_aware: the ranges .* would start from a backbone .* Train first, then: tfpipeline compress"
    ):
        train(rounding, root=tmp_path)
    with pytest.raises(RunError, match=r"^nowhere: no such run"):
        _finetuned(tiny_run, tmp_path, "compress.distill_weight=0.5", "compress.distill_from=nowhere")
    with pytest.raises(RunError, match=r": has no variant 'small'"):
        _finetuned(tiny_run, tmp_path, "compress.distill_weight=0.5", f"compress.distill_from={tiny_run.path}:small")
    other = tmp_path / "other.csv"
    other.write_text(tiny_csv.read_text().replace("positive", "good").replace("negative", "bad"))
    with pytest.raises(
        RunError, match=r": the model that training starts from answers another task. labels: expected \['bad', 'good'\], received"
    ):
        _finetuned(tiny_run, tmp_path, f"data.path={other}")
    assert runs.list_runs(tmp_path) == []  # nothing was trained, so nothing stays
