"""A teacher's answers as targets: soft labels with temperature, hidden states, unlabelled texts.

In: a trained model that answers tokens (the teacher), `CompressConfig`. Out: an object that `train_step` asks once per batch what the teacher says, and once per
slice what the difference costs. Where soft labels are all that is wanted, the teacher is heard before training, once about every row, and its answers come with
the batches; hidden states are too large for that. Refuses a student that is wider or deeper than its teacher, and hidden states of different widths or word pieces.

The teacher is frozen: it runs outside the gradient tape, without dropout, and none of its variables are the student's (Keras would otherwise find them,
train them, and write them into every checkpoint).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipeline.config import CompressConfig
from tfpipeline.data import Corpus, Examples
from tfpipeline.data.intake import keys_of
from tfpipeline.errors import ConfigError, DataError

PREFIX = "teacher_"  # of the teacher's own tokens, where its word pieces are not the student's
LOGITS = PREFIX + "logits"  # of its answers, where it was heard before


class Distillation:
    """What `train_step` asks about a teacher.

    Attributes:
        hard_weight: of the loss on the given labels.
        wants_hidden: whether the student's hidden states are compared, so that its forward pass must give them.
    """

    def __init__(self, teacher: Any, student: Any, settings: CompressConfig, *, own_tokens: bool, heard: bool = False) -> None:
        """Checks that they fit.

        Args:
            teacher: a `Classifier`.
            student: another one.
            settings: of the run.
            own_tokens: the teacher's vocabulary is another one; batches hold tokens of its own, unless it was heard.
            heard: batches hold `LOGITS`, and the teacher is not asked. Not where hidden states are compared.

        Raises:
            ConfigError: they do not fit.
        """
        theirs, ours = teacher.config, student.config
        wider = ours.hidden_size > theirs.hidden_size
        if wider or ours.num_hidden_layers > theirs.num_hidden_layers:
            raise ConfigError(
                f"compress.distill_from: a student is no larger than its teacher. Expected at most {theirs.num_hidden_layers} layers of width "
                f"{theirs.hidden_size}, received {ours.num_hidden_layers} of {ours.hidden_size}. Choose a larger teacher or a smaller student."
            )
        self.wants_hidden = settings.distill_hidden_weight > 0.0
        if self.wants_hidden and ours.hidden_size != theirs.hidden_size:
            raise ConfigError(
                f"compress.distill_hidden_weight: hidden states can only be compared where they are equally wide; the teacher's are {theirs.hidden_size} "
                f"wide, the student's {ours.hidden_size}. Set compress.distill_hidden_weight=0: soft labels need no equal widths."
            )
        if self.wants_hidden and own_tokens:
            raise ConfigError(
                "compress.distill_hidden_weight: the teacher has other word pieces than the student, so their hidden states are of other tokens. "
                "Set compress.distill_hidden_weight=0, or distill from a model with the same vocabulary."
            )
        self.settings = settings
        self.task: str = student.task
        self.hard_weight = 1.0 - settings.distill_weight
        self.pairs = layer_pairs(ours.num_hidden_layers, theirs.num_hidden_layers)
        assert not (heard and self.wants_hidden)
        self._apart, self._heard = own_tokens or heard, heard
        # A closure, not the model: see the module's docstring. One that was heard may go.
        self._teacher: Any = None if heard else lambda tokens: teacher(tokens, training=False, output_hidden_states=self.wants_hidden)

    def split(self, tokens: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """What a batch holds into the student's tokens, and what `answers` takes."""
        if not self._apart:
            return tokens, tokens
        own = {key.removeprefix(PREFIX): value for key, value in tokens.items() if key.startswith(PREFIX)}
        return {key: value for key, value in tokens.items() if not key.startswith(PREFIX)}, own

    def answers(self, tokens: dict[str, tf.Tensor]) -> dict[str, Any]:
        """What the teacher says of a batch: `logits` float32 `[batch, classes]` and `hidden`, a list of `[batch, length, width]`."""
        if self._heard:
            return {"logits": tokens["logits"], "hidden": []}
        outputs = self._teacher(tokens)
        hidden = [outputs.hidden_states[theirs] for _, theirs in self.pairs] if self.wants_hidden else []
        return tf.nest.map_structure(tf.stop_gradient, {"logits": outputs.logits, "hidden": hidden})

    def row_loss(self, logits: tf.Tensor, hidden: Any, mask: tf.Tensor, answers: dict[str, Any]) -> tf.Tensor:
        """What each row costs, float32 `[batch]`, already weighted: add it to `hard_weight` times the loss on its label.

        Args:
            logits: float32 `[batch, classes]` of the student.
            hidden: its hidden states, embeddings first; not read unless `wants_hidden`.
            mask: int32 `[batch, length]`, 1 at tokens.
            answers: of `answers`, for the same rows.
        """
        loss = self.settings.distill_weight * soft_divergence(answers["logits"], logits, self.settings.distill_temperature, self.task)
        if self.wants_hidden:
            share = tf.cast(mask, tf.float32)
            share /= tf.reduce_sum(share, axis=1, keepdims=True)
            apart = tf.add_n(
                [
                    tf.reduce_sum(share * tf.reduce_mean(tf.math.squared_difference(tf.cast(hidden[ours], tf.float32), tf.cast(state, tf.float32)), -1), 1)
                    for (ours, _), state in zip(self.pairs, answers["hidden"], strict=True)
                ]
            )  # fmt: skip
            loss += self.settings.distill_hidden_weight * apart / len(self.pairs)
        return loss


def both_tokens(
    student: Callable[..., dict[str, tf.Tensor]], teacher: Callable[..., dict[str, tf.Tensor]]
) -> Callable[..., dict[str, tf.Tensor]]:
    """Two preprocessors as one, for a teacher with word pieces of its own; `Distillation.split` takes their tokens apart again."""

    def preprocess(*columns: tf.Tensor) -> dict[str, tf.Tensor]:
        return {**student(*columns), **{PREFIX + name: tokens for name, tokens in teacher(*columns).items()}}

    return preprocess


def unlabelled_rows(found: Iterable[Examples], corpus: Corpus) -> Examples:
    """Texts that only the teacher labels, as training rows of weight 0, in the columns of `text_columns`.

    Texts of validation and test are left out: a teacher that has labelled them would flatter the student. So are those of train, and repeated ones.

    Raises:
        DataError: none is left.
    """
    seen = {key for split in corpus.splits.values() for key in keys_of(split)}
    parts, rows = [], 0
    for examples in found:
        fresh = []
        rows += len(examples)
        for row, key in enumerate(keys_of(examples)):
            if key not in seen:
                seen.add(key)
                fresh.append(row)
        kept = np.array(fresh, np.int64)
        # Any class will do where the weight is 0, except -1, whose loss is not a number.
        targets = np.zeros((len(kept), *corpus.train.labels.shape[1:]), corpus.train.labels.dtype)
        table = text_columns(examples).table.take(kept)
        parts.append(Examples(table, targets, np.zeros(len(kept), np.float32), corpus.labels))
    if not sum(map(len, parts)):
        raise DataError(
            f"compress.unlabelled: none of {rows} texts is new; all are in the corpus already. Give other files, or leave it empty."
        )
    return Examples.concatenate(parts)


def text_columns(examples: Examples) -> Examples:
    """Without slice columns, which files of unlabelled texts need not have."""
    names = [name for name in ("id", "text", "text_pair", "source") if name in examples.table.column_names]
    return Examples(examples.table.select(names), examples.labels, examples.weights, examples.names)


def layer_pairs(student: int, teacher: int) -> list[tuple[int, int]]:
    """Which hidden state of the student learns from which of the teacher; 0 is the embeddings' and is not compared.

    | layers of student, teacher | pairs |
    |---|---|
    | 3, 6 | (1, 2), (2, 4), (3, 6) |
    | 4, 6 | (1, 2), (2, 3), (3, 4), (4, 6) |
    | 6, 6 | each with its own |
    """
    return [(layer, round(layer * teacher / student)) for layer in range(1, student + 1)]


def soft_divergence(teacher: tf.Tensor, student: tf.Tensor, temperature: float, task: str) -> tf.Tensor:
    """KL(teacher || student) of each row at a temperature, times its square (Hinton et al., arXiv:1503.02531, section 2.1), float32 `[batch]`.

    The square keeps the size of the gradients the same at every temperature. With several labels a text it is the mean over labels.
    """
    scaled_teacher, scaled_student = teacher / temperature, student / temperature
    if task == "multi_label":
        target = tf.sigmoid(scaled_teacher)
        cross = tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=scaled_student)
        own = tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=scaled_teacher)
        return temperature**2 * tf.reduce_mean(cross - own, axis=1)
    log_teacher, log_student = tf.nn.log_softmax(scaled_teacher), tf.nn.log_softmax(scaled_student)
    return temperature**2 * tf.reduce_sum(tf.exp(log_teacher) * (log_teacher - log_student), axis=1)
