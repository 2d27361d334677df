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
| the model that training started from | `checkpoints/start/` | written once, before the first step |
| masks, ranges | variables of the model | in that same checkpoint |
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
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfpipeline import backbone as backbones
from tfpipeline import batches, data, runs, runtime, workers
from tfpipeline.config import Config
from tfpipeline.errors import ConfigError, PipelineError, RunError, TrainingError
from tfpipeline.progress import Progress

if TYPE_CHECKING:
    from tfpipeline.trained import Trained

logger = logging.getLogger(__name__)

CALIBRATION_BATCHES = 16  # texts of every length: a batch holds texts of one length, and these are drawn over all
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


def train(
    config: Config,
    *,
    root: Path = Path("runs"),
    resume: runs.Run | None = None,
    start: Trained | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Trains, keeps the best epoch, evaluates it on the test split.

    Args:
        config: of a new run; for a resumed one the run's own config is taken.
        root: where new runs go.
        resume: a run to go on with.
        start: what a new run starts from, of whatever architecture and vocabulary; `model.backbone` is then not looked for. The run keeps a copy, in
            `checkpoints/start/`. None: the backbone, or what `train.initial_weights` names.
        lineage: what else `run.json` is to say about where the run comes from.

    Raises:
        PipelineError: see `tfpipeline.errors`. Before the first step the run directory is removed again; after it, it says `failed` and why.
        KeyboardInterrupt: after Ctrl-C, with a checkpoint written.
    """
    started = time.monotonic()
    config = resume.config if resume else config
    _check_workers(config, start)
    strategy = runtime.apply(config.runtime)
    team = runtime.team(config.runtime, strategy)
    with workers.watched(team):
        run = workers.run_of_all(team, resume, lambda: runs.create(config, root), resume.path.parent if resume else root, config.digest())
    config = run.config
    session = None
    try:
        with run.writing(), workers.watched(team, run):
            run.update(runtime={**runtime.describe(), "workers": team.count}, **(lineage or {}))
            session = _Session(run, config, strategy, team, start)
            result = session.fit()
            team.first(lambda: finish(run, session.corpus))
    except PipelineError:
        if session is None and resume is None and team.is_chief:
            runs.discard(run)  # a bad file, column or backbone: nothing was trained, so nothing stays
        raise
    result.metrics = runs.read_json(run.path / "metrics.json")
    result.seconds = time.monotonic() - started
    return result


def _check_workers(config: Config, start: Trained | None) -> None:
    if config.runtime.strategy != "multiworker":
        return
    if start is not None:
        raise ConfigError(
            "runtime.strategy = multiworker: training that goes on from a model (retrain, compress) is the work of one process. "
            "Add --set runtime.strategy=one."
        )
    if config.compress.quantize_aware:
        raise ConfigError(
            "runtime.strategy = multiworker: compress.quantize_aware measures ranges, which workers do not share. Add --set runtime.strategy=one."
        )


class _Session:
    """One process working on one run: builds what the config says, restores what the run has, loops over epochs.

    Every worker of a team has one, and calls the team at the same places.
    """

    def __init__(self, run: runs.Run, config: Config, strategy: Any, team: workers.Team, start: Trained | None = None) -> None:
        import tensorflow as tf

        from tfpipeline import origin, text, trained
        from tfpipeline.model import build
        from tfpipeline.optimizer import make_optimizer
        from tfpipeline.techniques import zeros

        self.run, self.config, self.strategy, self.team = run, config, strategy, team
        self.checkpoints = run.path / "checkpoints"
        prepared = run.path / "data"
        team.first(lambda: None if (prepared / "report.json").is_file() else data.prepare(config.data, prepared))
        self.corpus = data.open_prepared(prepared)
        with strategy.scope():
            given = origin.given_start(run, config, self.corpus, start)
        if given is None:
            backbone = backbones.find(config.model.backbone)
            lower_case = text.lower_cases(config.text, backbone)
            initial = None if self._saved() else origin.initial_weights(run, config, self.corpus, backbone, lower_case)
        else:
            backbone, lower_case, initial = given.backbone, given.preprocessor.lower_case, None
        vocabulary = self._vocabulary(backbone, lower_case, given or initial)
        preprocessor = text.Preprocessor(vocabulary, config.text, lower_case)
        counted = trained.count_corpus(preprocessor, self.corpus)
        if team.is_chief:
            runs.write_json(prepared / "report.json", self.corpus.report)
        self.lengths = {name: np.minimum(tokens, config.text.max_length) for name, tokens in counted.items()}
        self.rows = self._training_rows(preprocessor)
        labels = self.corpus.labels
        steps = math.ceil(len(self.rows) / config.train.batch_size) * config.train.epochs
        with strategy.scope():
            if given is not None:
                model = given.model
            else:
                model = build(
                    backbone,
                    config.model,
                    vocabulary_size=len(vocabulary),
                    labels=labels,
                    task=config.data.task,
                    seed=config.runtime.seed,
                    load_weights=initial is None,
                )
            if initial is not None:
                model.set_weights(initial.model.get_weights())
                del initial  # a second model's weights, in memory for nothing from here on
            self.trained = trained.Trained(config, labels, self.corpus.has_pairs, preprocessor, model, backbone)
            if config.compress.quantize_aware:
                self._quantize(trained_before=given is not None or bool(config.train.initial_weights))
            self.sparsity = zeros.technique(model, config.compress, steps, started=given is not None)
            distillation, self.preprocess, self.heard = origin.teacher(run, self.corpus, self.trained, self.rows)
            model.prepare_training(
                config.model,
                sparse_embeddings=config.train.sparse_embedding_updates and config.train.optimizer in ("adam", "adamw"),
                seed=config.runtime.seed,
                sparsity=self.sparsity,
                distillation=distillation,
            )
            optimizer = make_optimizer(
                config.train, steps, model.rate_multipliers(config.train.layer_decay), ema_decay=config.model.ema_decay
            )
            optimizer.build(model.trainable_variables)
            if config.runtime.precision == "float16":
                import tf_keras

                optimizer = tf_keras.mixed_precision.LossScaleOptimizer(optimizer)
            model.compile_for_training(optimizer)
        kept = {} if self.sparsity is None else {"sparsity": self.sparsity.state}
        # Not the model as it is: with it come the metrics, which all workers would have to read together, and only the chief writes.
        parts = tf.train.Checkpoint(bert=model.bert, classifier=model.classifier)
        self.checkpoint = tf.train.Checkpoint(model=parts, optimizer=optimizer, randomness=model.randomness, **kept)
        self.at = self._restore()
        self.writer = (
            tf.summary.create_file_writer(str(run.path / "tensorboard"))
            if config.train.tensorboard and team.is_chief
            else tf.summary.create_noop_writer()
        )

    # ---- the loop ----

    def fit(self) -> TrainResult:
        """Epochs until the last, or until early stopping; returns without metrics."""
        config, at, model = self.config, self.at, self.trained.model
        train = self.rows
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
                        self._shared(train, rest, with_teacher=True),
                        steps_per_epoch=len(rest),
                        epochs=at.epoch + 1,
                        initial_epoch=at.epoch,
                        verbose=0,
                        callbacks=[watcher],
                    )
                    logs = {key: float(values[-1]) for key, values in history.history.items()}
                seconds = time.monotonic() - started
                rows = sum(len(batch) for batch in rest)
                if rows:
                    speeds.append(rows / seconds)
                with model.averaged_weights(), self._as_stored():
                    validation = model.evaluate(
                        self._shared(self.corpus.validation, validation_plan), steps=len(validation_plan), verbose=0, return_dict=True
                    )
                    self._end_of_epoch(logs, {key: float(value) for key, value in validation.items()}, rows, seconds)
        self._hold_sparsity()
        return TrainResult(self.run, {}, at.epoch, at.best_epoch, 0.0, float(np.median(speeds)) if speeds else 0.0)

    def _as_stored(self) -> AbstractContextManager[None]:
        """Inside, a model that is trained with rounding has the kernels that it is stored with."""
        if not self.trained.model.quantization:
            return nullcontext()
        from tfpipeline.techniques.quantization import snapped

        return snapped(self.trained.model)

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
        # A model on its way to a sparsity is better than the one that gets there, and not what was asked for.
        complete = self.sparsity is None or self.sparsity.complete(int(self.trained.model.optimizer.iterations.numpy()))
        better = complete and (at.best_value is None or (value < at.best_value if monitor == "loss" else value > at.best_value))
        if better:
            at.best_value, at.best_epoch, at.stale_epochs = value, at.epoch + 1, 0
            self._save_best()
        elif complete:
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

    def _shared(self, examples: Any, plan: list[batches.Rows], *, with_teacher: bool = False) -> Any:
        """Every batch of the plan, split over the replicas of all workers."""
        return batches.distributed(self.strategy, plan, lambda part: self._dataset(examples, part, with_teacher=with_teacher))

    def _dataset(self, examples: Any, plan: list[batches.Rows], *, with_teacher: bool = False) -> Any:
        preprocess, columns = (self.preprocess, self.heard) if with_teacher else (self.trained.preprocessor, {})
        return batches.dataset(
            plan, examples.text_batch, preprocess, examples.labels, examples.weights, has_pairs=self.corpus.has_pairs, columns=columns
        )

    def _hold_sparsity(self) -> None:
        """Measures the zeros of the best model, writes them into the run, and refuses a model that is not as sparse as was asked for."""
        from tfpipeline import trained
        from tfpipeline.techniques import zeros

        if (self.sparsity is None and not self.config.compress.quantize_aware) or not self.team.is_chief:
            return
        model = trained.load(self.run).model
        self.run.update(compression={"sparsity": zeros.measure(model), "quantization": model.quantization})
        zeros.require(model, self.config.compress)

    # ---- what the run needs before its first step ----

    def _quantize(self, *, trained_before: bool) -> None:
        """Puts 8-bit rounding into the model, with ranges from training texts unless the run has a checkpoint that holds them.

        Raises:
            ConfigError: training starts from a backbone.
        """
        from tfpipeline.techniques import quantization

        if not trained_before:
            raise ConfigError(
                "compress.quantize_aware: the ranges of 8-bit values are measured once, before the first step, and this run would start from a backbone "
                "whose classifier knows nothing yet. Train first, then: tfpipeline compress RUN --recipe qat, or --set train.initial_weights=RUN."
            )
        model = self.trained.model
        if model.quantization:
            return  # it came with its ranges
        quantization.quantize(model)
        if self._saved():
            return
        plan = batches.training_plan(self.lengths["train"], self.config.train.batch_size, seed=self.config.runtime.seed, epoch=0)
        quantization.calibrate(model, (tokens for tokens, _, _ in self._dataset(self.rows, plan[:CALIBRATION_BATCHES])))

    def _training_rows(self, preprocessor: Any) -> data.Examples:
        """The training split, and after it the texts of `compress.unlabelled` with weight 0; `self.lengths["train"]` grows with it."""
        from tfpipeline import trained
        from tfpipeline.techniques import distillation

        config, train = self.config, self.corpus.train
        if not config.compress.unlabelled:
            return train
        found = data.read_examples(config.compress.unlabelled, config.data, None, need_labels=False)
        more = distillation.unlabelled_rows(found, self.corpus)
        lengths, _ = trained.count_tokens(preprocessor, more)
        self.lengths["train"] = np.concatenate([self.lengths["train"], np.minimum(lengths, config.text.max_length)])
        self.run.event("unlabelled", rows=len(more))
        return data.Examples.concatenate([distillation.text_columns(train), more])

    def _vocabulary(self, backbone: backbones.Backbone, lower_case: bool, start: Any) -> list[str]:
        """The word pieces, kept in the run from its first session on."""
        from tfpipeline import text

        path = self.run.path / "data" / "vocab.txt"

        def once() -> None:
            if path.is_file():
                return
            # Weights belong to the word pieces they were trained with: one that was learned is not learned anew.
            vocabulary = text.known_vocabulary(self.config.text, backbone) if start is None else list(start.preprocessor.vocabulary)
            if vocabulary is None:
                logger.info("learning a vocabulary of about %d word pieces", self.config.text.vocabulary_size)
                vocabulary = text.learn_vocabulary(_text_batches(self.corpus.train), self.config.text, lower_case)
            with runs.atomic_write(path) as stream:
                stream.write(("\n".join(vocabulary) + "\n").encode())

        self.team.first(once)
        return text.read_vocabulary(path)

    # ---- checkpoints ----

    def save(self) -> None:
        """The state of this moment, whole or not at all; the one before it is removed only afterwards. Only the chief writes it."""
        from tfpipeline import trained

        if not self.team.is_chief:
            return

        name = f"step-{int(self.trained.model.optimizer.iterations.numpy()):08d}"
        with trained.disk_errors(self.checkpoints), runs.atomic_folder(self.checkpoints / f"{name}-{time.monotonic_ns()}") as folder:
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

        def last() -> str:
            for stray in self.checkpoints.glob(".incoming-*"):  # left by a kill; never complete
                shutil.rmtree(stray, ignore_errors=True)
            return next((path.name for path in reversed(self._saved())), "")

        name = self.team.first(last)
        if not name:
            return Progressed()
        saved = self.checkpoints / name
        try:
            self.checkpoint.read(str(saved / "state")).assert_existing_objects_matched()
            state = json.loads((saved / "state.json").read_text(encoding="utf-8"))
        except (tf.errors.OpError, AssertionError, OSError, ValueError) as error:
            raise RunError(
                f"{saved}: this checkpoint cannot be read ({str(error).splitlines()[0][:200]}). Remove it to go on from an older one."
            ) from error
        self.run.event("resumed", epoch=state["epoch"], batch=state["batch"])
        return Progressed(**state)

    def _save_best(self) -> None:
        """`best/` always holds a complete model: the new one is written beside it, then the two change places. Only the chief writes it."""
        from tfpipeline import trained

        if not self.team.is_chief:
            return

        best, old = self.checkpoints / "best", self.checkpoints / ".best-old"
        fresh = self.checkpoints / ".best-new"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        plain = self.sparsity.stripped() if self.sparsity is not None else nullcontext()
        with plain, trained.disk_errors(self.checkpoints), runs.atomic_folder(fresh) as folder:
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
            step = int(model.optimizer.iterations.numpy())
            if not math.isfinite(loss):
                raise TrainingError(_non_finite(loss, step, session, plan[batch]))
            at.batch = first_batch + batch + 1
            bar.update(len(plan[batch]), loss=f"{float(logs['loss']):.4f}", accuracy=f"{float(logs['accuracy']):.4f}")
            now = time.monotonic()
            if now - self.last_event > EVENT_SECONDS:
                self.last_event = now
                inner: Any = getattr(model.optimizer, "inner_optimizer", model.optimizer)
                rate = float(inner.learning_rate.numpy())
                session.run.event("step", step=step, epoch=at.epoch + 1, loss=round(loss, 6), learning_rate=rate)
                session._summaries({"loss": loss, "learning_rate": rate}, step, "step")
            due = settings.checkpoint_minutes and now - self.last_save > 60 * settings.checkpoint_minutes
            # Of several workers one may get a signal, and each has a clock: all of them must do the same after the same step.
            stopping, due = session.team.any_of(stop.is_set(), bool(due) and session.team.is_chief)
            if due or (settings.checkpoint_steps and step % settings.checkpoint_steps == 0) or stopping:
                session.save()
                self.last_save = now
            if stopping:
                raise KeyboardInterrupt(
                    f"stopped at step {step}; a checkpoint is written. Go on with: tfpipeline train --resume {session.run.path}"
                )

    return Watcher()


def _non_finite(loss: float, step: int, session: _Session, rows: batches.Rows) -> str:
    train = session.rows
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
