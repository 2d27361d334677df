"""Config to a trained run: the loop around the step. Frees the caller from checkpoints, resuming, early stopping and bookkeeping.

In: a `Config` (or a run to resume). Out: a `TrainResult`: the run directory with its best checkpoint, history and metrics. Refuses to go on
after a non-finite loss, and to finish below a gate.

Who owns what:

| state of a run | owner | how it survives `kill -9` |
|---|---|---|
| weights, optimizer slots, step count, seed of the dropout masks | TensorFlow variables | one checkpoint, renamed into place whole |
| epoch and batch in it, best value | `Progressed` below | `state.json` inside that same checkpoint |
| order of the rows | nobody: a function of seed and epoch | recomputed |
| splits, label order, vocabulary | `data/` in the run | written once, before the first step |
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfpipeline import backbone as backbones
from tfpipeline import batches, data, runs, runtime
from tfpipeline.config import Config
from tfpipeline.errors import PipelineError, RunError, TrainingError
from tfpipeline.progress import Progress

logger = logging.getLogger(__name__)

EVENT_SECONDS = 5.0  # steps are written to events.jsonl and TensorBoard at most this often: a long run must not fill a disk with them


@dataclass
class TrainResult:
    """What a training leaves.

    Attributes:
        run: the run directory.
        metrics: of the test split, as in `metrics.json`.
        epochs: how many were trained, over all sessions.
        best_epoch: counted from 1.
        seconds: of this session.
        examples_per_second: median over the epochs of this session.
    """

    run: runs.Run
    metrics: dict[str, Any]
    epochs: int
    best_epoch: int
    seconds: float
    examples_per_second: float


@dataclass
class Progressed:
    """Where a run is; goes into every checkpoint."""

    epoch: int = 0
    batch: int = 0
    best_value: float | None = None
    best_epoch: int = 0
    stale_epochs: int = 0


def train(config: Config, *, root: Path = Path("runs"), resume: runs.Run | None = None) -> TrainResult:
    """Trains, keeps the best epoch, evaluates it on the test split.

    Args:
        config: of a new run; for a resumed one the run's own config is taken.
        root: where new runs go.
        resume: a run to go on with.

    Raises:
        PipelineError: see `tfpipeline.errors`. Before the first step the run directory is removed again; after it, it says `failed` and why.
        KeyboardInterrupt: after Ctrl-C, with a checkpoint written.
    """
    started = time.monotonic()
    strategy = runtime.apply((resume.config if resume else config).runtime)
    run = resume or runs.create(config, root)
    config = run.config
    session = None
    try:
        with run.writing():
            run.update(runtime=runtime.describe())
            session = _Session(run, config, strategy)
            result = session.fit()
            metrics = finish(run, session.corpus)
    except PipelineError:
        if session is None and resume is None:
            runs.discard(run)  # a bad file, column or backbone: nothing was trained, so nothing stays
        raise
    result.metrics = metrics
    result.seconds = time.monotonic() - started
    return result


class _Session:
    """One process working on one run: builds what the config says, restores what the run has, loops over epochs."""

    def __init__(self, run: runs.Run, config: Config, strategy: Any) -> None:
        import tensorflow as tf

        from tfpipeline import text, trained
        from tfpipeline.model import build
        from tfpipeline.optimizer import make_optimizer

        self.run, self.config, self.strategy = run, config, strategy
        self.checkpoints = run.path / "checkpoints"
        prepared = run.path / "data"
        self.corpus = data.open_prepared(prepared) if (prepared / "report.json").is_file() else data.prepare(config.data, prepared)
        backbone = backbones.find(config.model.backbone)
        lower_case = text.lower_cases(config.text, backbone)
        vocabulary = self._vocabulary(backbone, lower_case)
        preprocessor = text.Preprocessor(vocabulary, config.text, lower_case)
        counted = trained.count_corpus(preprocessor, self.corpus)
        runs.write_json(prepared / "report.json", self.corpus.report)
        self.lengths = {name: np.minimum(tokens, config.text.max_length) for name, tokens in counted.items()}
        labels = self.corpus.labels
        steps_per_epoch = math.ceil(len(self.corpus.train) / config.train.batch_size)
        with strategy.scope():
            model = build(
                backbone, config.model, vocabulary_size=len(vocabulary), labels=labels, task=config.data.task, seed=config.runtime.seed
            )
            model.prepare_training(
                config.model,
                sparse_embeddings=config.train.sparse_embedding_updates and config.train.optimizer in ("adam", "adamw"),
                seed=config.runtime.seed,
            )
            optimizer = make_optimizer(
                config.train,
                steps_per_epoch * config.train.epochs,
                model.rate_multipliers(config.train.layer_decay),
                ema_decay=config.model.ema_decay,
            )
            optimizer.build(model.trainable_variables)
            if config.runtime.precision == "float16":
                import tf_keras

                optimizer = tf_keras.mixed_precision.LossScaleOptimizer(optimizer)
            model.compile_for_training(optimizer)
        self.trained = trained.Trained(config, labels, self.corpus.has_pairs, preprocessor, model, backbone)
        self.checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, randomness=model.randomness)
        self.at = self._restore()
        self.writer = (
            tf.summary.create_file_writer(str(run.path / "tensorboard")) if config.train.tensorboard else tf.summary.create_noop_writer()
        )

    # ---- the loop ----

    def fit(self) -> TrainResult:
        """Epochs until the last, or until early stopping; returns without metrics."""
        config, at, model = self.config, self.at, self.trained.model
        train = self.corpus.train
        total = len(train) * config.train.epochs
        plan_lengths = self.lengths["train"]
        done = at.epoch * len(train)
        speeds: list[float] = []
        validation_plan = batches.evaluation_plan(self.lengths["validation"], config.evaluate.batch_size)
        with _interrupts() as stop, Progress("training", total, "rows", done + at.batch * config.train.batch_size) as bar:
            while at.epoch < config.train.epochs and not self._stale():
                plan = batches.training_plan(plan_lengths, config.train.batch_size, seed=config.runtime.seed, epoch=at.epoch)
                rest = plan[at.batch :]
                started = time.monotonic()
                logs: dict[str, float] = {}
                if rest:
                    watcher = _watcher(self, rest, bar, stop)
                    history = model.fit(
                        self._dataset(train, rest), epochs=at.epoch + 1, initial_epoch=at.epoch, verbose=0, callbacks=[watcher]
                    )
                    logs = {key: float(values[-1]) for key, values in history.history.items()}
                seconds = time.monotonic() - started
                rows = sum(len(batch) for batch in rest)
                if rows:
                    speeds.append(rows / seconds)
                with model.averaged_weights():
                    validation = model.evaluate(self._dataset(self.corpus.validation, validation_plan), verbose=0, return_dict=True)
                    self._end_of_epoch(logs, {key: float(value) for key, value in validation.items()}, rows, seconds)
        return TrainResult(self.run, {}, at.epoch, at.best_epoch, 0.0, float(np.median(speeds)) if speeds else 0.0)

    def _end_of_epoch(self, logs: dict[str, float], validation: dict[str, float], rows: int, seconds: float) -> None:
        at, monitor = self.at, self.config.train.monitor
        row = {
            "epoch": at.epoch + 1,
            "loss": logs.get("loss"),
            "accuracy": logs.get("accuracy"),
            **{f"validation_{key}": value for key, value in validation.items()},
            "examples_per_second": round(rows / seconds, 2) if rows else None,
            "seconds": round(seconds, 2),
        }
        value = validation[monitor]
        if not math.isfinite(value):
            raise TrainingError(f"epoch {at.epoch + 1}: validation {monitor} is {value}. Lower train.learning_rate and train again.")
        better = at.best_value is None or (value < at.best_value if monitor == "loss" else value > at.best_value)
        if better:
            at.best_value, at.best_epoch, at.stale_epochs = value, at.epoch + 1, 0
            self._save_best()
        else:
            at.stale_epochs += 1
        self.run.event("epoch", **row, best=better)
        self._summaries({key: value for key, value in row.items() if isinstance(value, float)}, at.epoch + 1, "epoch")
        at.epoch, at.batch = at.epoch + 1, 0
        self.save()
        logger.info(
            "epoch %d/%d: loss %s, validation accuracy %.4f, loss %.4f%s",
            at.epoch,
            self.config.train.epochs,
            f"{row['loss']:.4f}" if row["loss"] is not None else "-",
            validation["accuracy"],
            validation["loss"],
            " (best so far)" if better else "",
        )

    def _stale(self) -> bool:
        patience = self.config.train.early_stopping_patience
        if patience and self.at.stale_epochs >= patience:
            self.run.event("early_stop", epoch=self.at.epoch, best_epoch=self.at.best_epoch)
            return True
        return False

    def _dataset(self, examples: Any, plan: list[batches.Rows]) -> Any:
        # `fit` splits each batch over the replicas of the strategy.
        return batches.dataset(
            plan, examples.text_batch, self.trained.preprocessor, examples.labels, examples.weights, has_pairs=self.corpus.has_pairs
        )

    # ---- what the run needs before its first step ----

    def _vocabulary(self, backbone: backbones.Backbone, lower_case: bool) -> list[str]:
        """The word pieces, kept in the run from its first session on."""
        from tfpipeline import text

        path = self.run.path / "data" / "vocab.txt"
        if path.is_file():
            return text.read_vocabulary(path)
        vocabulary = text.known_vocabulary(self.config.text, backbone)
        if vocabulary is None:
            logger.info("learning a vocabulary of about %d word pieces", self.config.text.vocabulary_size)
            vocabulary = text.learn_vocabulary(_text_batches(self.corpus.train), self.config.text, lower_case)
        with runs.atomic_write(path) as stream:
            stream.write(("\n".join(vocabulary) + "\n").encode())
        return vocabulary

    # ---- checkpoints ----

    def save(self) -> None:
        """The state of this moment, whole or not at all; the one before it is removed only afterwards."""
        name = f"step-{int(self.trained.model.optimizer.iterations):08d}"
        with _disk_errors(self.checkpoints), runs.atomic_folder(self.checkpoints / f"{name}-{time.monotonic_ns()}") as folder:
            self.checkpoint.write(str(folder / "state"))
            (folder / "state.json").write_text(json.dumps(dataclasses.asdict(self.at), indent=2) + "\n", encoding="utf-8")
        for old in self._saved()[:-1]:
            shutil.rmtree(old, ignore_errors=True)

    def _saved(self) -> list[Path]:
        """Complete checkpoints, oldest first. The number after the step tells apart two of one step, as after an epoch's last batch."""
        return sorted(
            self.checkpoints.glob("step-*"), key=lambda path: (int(path.name.split("-")[1]), (path / "state.json").stat().st_mtime_ns)
        )

    def _restore(self) -> Progressed:
        import tensorflow as tf

        for stray in self.checkpoints.glob(".incoming-*"):  # left by a kill; never complete
            shutil.rmtree(stray, ignore_errors=True)
        saved = self._saved()
        if not saved:
            return Progressed()
        try:
            self.checkpoint.read(str(saved[-1] / "state")).assert_existing_objects_matched()
            state = json.loads((saved[-1] / "state.json").read_text(encoding="utf-8"))
        except (tf.errors.OpError, AssertionError, OSError, ValueError) as error:
            raise RunError(
                f"{saved[-1]}: this checkpoint cannot be read ({str(error).splitlines()[0][:200]}). Remove it to go on from an older one."
            ) from error
        self.run.event("resumed", epoch=state["epoch"], batch=state["batch"])
        return Progressed(**state)

    def _save_best(self) -> None:
        """`best/` always holds a complete model: the new one is written beside it, then the two change places."""
        from tfpipeline import trained

        best, old = self.checkpoints / "best", self.checkpoints / ".best-old"
        fresh = self.checkpoints / ".best-new"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        with _disk_errors(self.checkpoints), runs.atomic_folder(fresh) as folder:
            trained.save(folder, self.trained)
        if best.exists():
            best.rename(old)
        fresh.rename(best)
        shutil.rmtree(old, ignore_errors=True)

    def _summaries(self, values: dict[str, float], step: int, group: str) -> None:
        import tensorflow as tf

        with self.writer.as_default():
            for key, value in values.items():
                tf.summary.scalar(f"{group}/{key}", value, step=step)


def _watcher(session: _Session, plan: list[batches.Rows], bar: Progress, stop: threading.Event) -> Any:
    """A Keras callback for one epoch: progress, guard, checkpoints in time, Ctrl-C."""
    import tf_keras

    settings = session.config.train
    model, at = session.trained.model, session.at
    first_batch = at.batch

    class Watcher(tf_keras.callbacks.Callback):
        last_event = last_save = time.monotonic()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            loss = float(logs["batch_loss"])
            step = int(model.optimizer.iterations)
            if not math.isfinite(loss):
                raise TrainingError(_non_finite(loss, step, session, plan[batch]))
            at.batch = first_batch + batch + 1
            bar.update(len(plan[batch]), loss=f"{float(logs['loss']):.4f}", accuracy=f"{float(logs['accuracy']):.4f}")
            now = time.monotonic()
            if now - self.last_event > EVENT_SECONDS:
                self.last_event = now
                inner: Any = getattr(model.optimizer, "inner_optimizer", model.optimizer)
                rate = float(inner.learning_rate)
                session.run.event("step", step=step, epoch=at.epoch + 1, loss=round(loss, 6), learning_rate=rate)
                session._summaries({"loss": loss, "learning_rate": rate}, step, "step")
            due = settings.checkpoint_minutes and now - self.last_save > 60 * settings.checkpoint_minutes
            if due or (settings.checkpoint_steps and step % settings.checkpoint_steps == 0) or stop.is_set():
                session.save()
                self.last_save = now
            if stop.is_set():
                raise KeyboardInterrupt(
                    f"stopped at step {step}; a checkpoint is written. Go on with: tfpipeline train --resume {session.run.path}"
                )

    return Watcher()


def _non_finite(loss: float, step: int, session: _Session, rows: batches.Rows) -> str:
    train = session.corpus.train
    sources = [train.sources[int(row)].as_py() for row in rows[:8]]
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    return (
        f"step {step}: the loss is {loss}, so training stopped. Rows of this batch: {', '.join(sources)}{more}. "
        f"The last checkpoint is from before it. Lower train.learning_rate (now {session.config.train.learning_rate:g}), "
        "set model.clip_norm, or look at these rows."
    )


def finish(run: runs.Run, corpus: Any) -> dict[str, Any]:
    """Evaluates the best model on the test split, writes `metrics.json`, predictions and the report, and holds the gates.

    Raises:
        GateError: accuracy below `evaluate.min_accuracy`, or worse than `train.baseline_run` on the same rows.
    """
    from tfpipeline import judge, trained

    result = judge.judge(trained.load(run), run, corpus)
    judge.hold_gate(result)
    return result


def _text_batches(examples: Any) -> Iterator[list[str]]:
    for start in range(0, len(examples), 4096):
        texts, pairs = examples.text_batch(np.arange(start, min(start + 4096, len(examples))))
        yield texts if pairs is None else texts + pairs


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event instead of tearing a step apart; a second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def first(number: int, frame: Any) -> None:
        del frame
        stop.set()
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, first)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """TensorFlow reports a full disk as its own errors; say it as `runs` does."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        reason = str(error).splitlines()[0]
        raise runs.cannot_write(path, OSError(0, reason)) from error
