"""A finished run as one object: preprocessor + model + label names. Frees evaluation, compression and export from how a run is stored.

In: a run directory with a best checkpoint. Out: a `Trained` whose `predict(texts, pairs)` gives probabilities.

    checkpoints/best/         the weights (a TensorFlow checkpoint), model.json (architecture, labels, casing, pooling, backbone), vocab.txt
    checkpoints/start/        the same, of the model that training started from, where it started from one
    compressed/<variant>/     the same, of a smaller model made from this one
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfpipeline import batches, text
from tfpipeline.backbone import Backbone
from tfpipeline.config import Config
from tfpipeline.data import Corpus, add_token_statistics
from tfpipeline.errors import RunError
from tfpipeline.model import Classifier, build
from tfpipeline.progress import Progress
from tfpipeline.runs import Run, cannot_write, read_json

Probabilities = npt.NDArray[np.float32]
_TEXTS_AT_ONCE = 65_536  # in memory


@dataclass
class Trained:
    """Everything that answers a text.

    Attributes:
        config: of the run.
        labels: class names; the index is the class number.
        has_pairs: whether a row is two texts.
        preprocessor: strings to ids.
        model: ids to logits.
        backbone: what the run started from.
    """

    config: Config
    labels: tuple[str, ...]
    has_pairs: bool
    preprocessor: text.Preprocessor
    model: Classifier
    backbone: Backbone

    @property
    def task(self) -> str:
        """`single_label` or `multi_label`."""
        return self.config.data.task

    def predict(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 64, progress: bool = False
    ) -> Probabilities:
        """Probabilities float32 `[rows, classes]`, in the order of the texts; any number of rows, also none."""

        forward = self._forward()
        with Progress("predicting", len(texts), "texts") if progress else contextlib.nullcontext() as bar:
            return self._answers(texts, pairs, forward, batch_size, bar)

    def logits(self, examples: Any, *, batch_size: int = 64) -> Probabilities:
        """What comes before the probabilities, float32 `[rows, classes]`, for the rows of a split of any size."""
        forward = tf.function(
            lambda tokens: tf.cast(self.model(tokens, training=False).logits, tf.float32), input_signature=[token_spec()], autograph=False
        )
        result = np.zeros((len(examples), len(self.labels)), np.float32)
        with Progress("asking the teacher", len(examples), "texts") as bar:
            for start in range(0, len(examples), _TEXTS_AT_ONCE):
                rows = np.arange(start, min(start + _TEXTS_AT_ONCE, len(examples)))
                texts, pairs = examples.text_batch(rows)
                result[rows] = self._answers(texts, pairs, forward, batch_size, bar)
        return result

    def _answers(
        self, texts: Sequence[str], pairs: Sequence[str] | None, forward: Callable[[Any], tf.Tensor], batch_size: int, bar: Progress | None
    ) -> Probabilities:
        def fetch(rows: batches.Rows) -> tuple[list[str], list[str] | None]:
            return [texts[i] for i in rows], None if pairs is None else [pairs[i] for i in rows]

        # The number of UTF-8 bytes orders texts nearly as their token count does, without tokenising twice.
        lengths = np.array([len(t.encode()) for t in texts], np.int64)
        if pairs is not None:
            lengths += np.array([len(t.encode()) for t in pairs], np.int64)
        plan = batches.evaluation_plan(lengths, batch_size)
        result = np.zeros((len(texts), len(self.labels)), np.float32)
        rows = batches.dataset(plan, fetch, self.preprocessor, has_pairs=pairs is not None)
        for numbers, tokens in zip(plan, rows, strict=True):
            result[numbers] = forward(tokens).numpy()
            if bar is not None:
                bar.update(len(numbers))
        return result

    def predict_examples(self, examples: Any, *, batch_size: int = 64, progress: bool = False) -> Probabilities:
        """As `predict`, for the rows of a split."""
        texts, pairs = examples.text_batch(np.arange(len(examples)))
        return self.predict(texts, pairs, batch_size=batch_size, progress=progress)

    def _forward(self) -> Callable[[dict[str, tf.Tensor]], tf.Tensor]:
        if not hasattr(self, "_forward_function"):
            self._forward_function = tf.function(
                lambda tokens: to_probabilities(self.model(tokens, training=False).logits, self.task),
                input_signature=[token_spec()],
                autograph=False,
            )
        function: Callable[[dict[str, tf.Tensor]], tf.Tensor] = self._forward_function
        return function


def token_spec() -> dict[str, tf.TensorSpec]:
    """int32 `[batch, length]` for each of the model's inputs."""
    return {name: tf.TensorSpec([None, None], tf.int32, name=name) for name in ("input_ids", "attention_mask", "token_type_ids")}


def to_probabilities(logits: tf.Tensor, task: str) -> tf.Tensor:
    """Softmax over classes, or a sigmoid per label; float32, same shape."""
    return tf.sigmoid(logits) if task == "multi_label" else tf.nn.softmax(logits)


def count_tokens(preprocessor: text.Preprocessor, examples: Any) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """True token counts before any cut, and unknown pieces, int32 `[rows]` each."""
    rows = len(examples)
    tokens, unknown = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    string = tf.TensorSpec([None], tf.string)
    has_pairs = examples.pairs is not None
    count = tf.function(preprocessor.count, input_signature=[string] * (2 if has_pairs else 1), autograph=False)
    for start in range(0, rows, 4096):
        numbers = np.arange(start, min(start + 4096, rows))
        texts, pairs = examples.text_batch(numbers)
        columns = [tf.constant(texts, tf.string)] + ([tf.constant(pairs, tf.string)] if has_pairs else [])
        counted = count(*columns)
        tokens[numbers], unknown[numbers] = counted[0].numpy(), counted[1].numpy()
    return tokens, unknown


def count_corpus(preprocessor: text.Preprocessor, corpus: Corpus) -> dict[str, npt.NDArray[np.int32]]:
    """True token counts of each split, int32 `[rows]`; the corpus' report gets what they say."""
    counted = {name: count_tokens(preprocessor, examples) for name, examples in corpus.splits.items()}
    lengths = {name: tokens for name, (tokens, _) in counted.items()}
    unknown = {name: pieces for name, (_, pieces) in counted.items()}
    add_token_statistics(corpus.report, lengths, unknown, preprocessor.config.max_length)
    return lengths


def save(folder: Path, trained: Trained) -> None:
    """Writes into an existing, private folder (the caller makes it atomic)."""
    model = trained.model
    # Not the model as it is: Keras tracks the optimizer in it, whose state is three times the size of the weights.
    weights = tf.train.Checkpoint(bert=model.bert, classifier=model.classifier, randomness=model.randomness)
    tf.train.Checkpoint(model=weights).write(str(folder / "weights"))
    (folder / "vocab.txt").write_text("\n".join(trained.preprocessor.vocabulary) + "\n", encoding="utf-8")
    description = {
        "labels": list(trained.labels),
        "has_pairs": trained.has_pairs,
        "lower_case": trained.preprocessor.lower_case,
        "pooling": model.pooling,
        "backbone": {"name": trained.backbone.name, "sha256": trained.backbone.sha256, "architecture": trained.backbone.architecture},
    }
    if model.quantization:
        description["quantization"] = dict(model.quantization)  # Keras has wrapped it
    (folder / "model.json").write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """TensorFlow reports a full disk as its own errors; inside, it is said as `tfpipeline.runs` does."""
    try:
        yield
    except tf.errors.OpError as error:
        raise cannot_write(path, OSError(0, str(error).splitlines()[0])) from error


def load(run: Run, variant: str = "") -> Trained:
    """The best model of a run, or one of its smaller variants.

    Args:
        run: a run.
        variant: a folder in its `compressed/`; empty: the model that was trained.

    Raises:
        RunError: the run has no finished epoch or no such variant, or its files do not fit together.
    """
    if variant:
        folder = run.path / "compressed" / variant
        if not (folder / "model.json").is_file() or Path(variant).name != variant:
            known = sorted(path.parent.name for path in run.path.glob("compressed/*/model.json"))
            there = f"It has: {', '.join(known)}." if known else f"It has none yet; make some: tfpipeline compress {run.path}."
            raise RunError(f"{run.path}: has no variant {variant!r}. {there}")
        return load_folder(folder, run.config)
    folder = run.path / "checkpoints" / "best"
    if not (folder / "model.json").is_file():
        raise RunError(
            f"{run.path}: has no trained model yet (status: {run.info.get('status')}). Finish it: tfpipeline train --resume {run.path}"
        )
    return load_folder(folder, run.config)


def load_folder(folder: Path, config: Config) -> Trained:
    """What `save` wrote.

    Args:
        folder: with the weights, `model.json` and `vocab.txt`.
        config: of the run it belongs to: cleaning of texts, dropout, task.

    Raises:
        RunError: a file is missing, or they do not fit together.
    """
    description = read_json(folder / "model.json")
    try:
        vocabulary = text.read_vocabulary(folder / "vocab.txt")
        source = description["backbone"]
        lower_case, labels, has_pairs = bool(description["lower_case"]), tuple(description["labels"]), bool(description["has_pairs"])
        backbone = Backbone(source["name"], source["architecture"], lower_case, folder / "vocab.txt", weights=None, sha256=source["sha256"])
        # Older runs do not say it; their config does.
        pooling = description.get("pooling", config.model.pooling)
        model = build(
            backbone,
            replace(config.model, pooling=pooling),
            vocabulary_size=len(vocabulary),
            labels=labels,
            task=config.data.task,
            seed=config.runtime.seed,
            load_weights=False,
        )
    except (KeyError, TypeError) as error:
        raise RunError(
            f"{folder / 'model.json'}: does not describe a model ({type(error).__name__}: {error}). Train the run again."
        ) from error
    if description.get("quantization"):
        from tfpipeline.techniques.quantization import quantize  # imports TF-MOT, which no other model needs

        quantize(model)
    try:
        tf.train.Checkpoint(model=model).read(str(folder / "weights")).assert_existing_objects_matched().expect_partial()
    except (tf.errors.OpError, AssertionError, ValueError) as error:
        raise RunError(f"{folder}: the weights cannot be read ({str(error).splitlines()[0][:200]}). Train the run again.") from error
    preprocessor = text.Preprocessor(vocabulary, config.text, lower_case)
    return Trained(config, labels, has_pairs, preprocessor, model, backbone)
