"""What a training starts from, and whom it learns from: frees the loop from other models and whether they fit.

In: a run, its Config and corpus. Out: the model that training starts from, out of the run's own copy; the weights of `train.initial_weights`; the teacher of
`compress.distill_*`. Refuses models that answer another task, by name and before the first step.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from tfpipeline import backbone as backbones
from tfpipeline import runs, text, trained
from tfpipeline.config import Config
from tfpipeline.data import Corpus, Examples
from tfpipeline.errors import ConfigError, RunError
from tfpipeline.techniques import distillation
from tfpipeline.trained import Probabilities, Trained

logger = logging.getLogger(__name__)

MOST_HEARD_BYTES = 1 << 30  # of a teacher's answers that are kept in memory

# What the weights' shapes and meaning depend on; the rest of a backbone's config.json is description.
_STRUCTURE = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings", "type_vocab_size", "hidden_act",
    "layer_norm_eps", "position_embedding_type",
)  # fmt: skip


def given_start(run: runs.Run, config: Config, corpus: Corpus, start: Trained | None) -> Trained | None:
    """The model that training starts from, out of `checkpoints/start/`, which is written in the first session. None: the run has none.

    Raises:
        RunError: its labels, task or pairs are not this run's.
    """
    folder = run.path / "checkpoints" / "start"
    if start is not None and not folder.is_dir():
        with trained.disk_errors(folder), runs.atomic_folder(folder) as waiting:
            trained.save(waiting, start)
    if not folder.is_dir():
        return None
    given = trained.load_folder(folder, config)
    _same_task(run, corpus, given, "the model that training starts from")
    return given


def initial_weights(run: runs.Run, config: Config, corpus: Corpus, backbone: backbones.Backbone, lower_case: bool) -> Trained | None:
    """The `Trained` of `train.initial_weights`, once all of it fits this run; None: none is wanted.

    Raises:
        RunError: its architecture, vocabulary or task is not this run's.
    """
    if not config.train.initial_weights:
        return None
    parent = runs.find(config.train.initial_weights, run.path.parent)
    start = trained.load(parent)
    vocabulary = text.known_vocabulary(config.text, backbone)
    theirs = start.preprocessor.vocabulary
    if vocabulary is not None and list(vocabulary) != list(theirs):
        ours = f"{len(vocabulary)} word pieces, {len(set(vocabulary) - set(theirs))} of them unknown to it"
    else:
        ours = f"{len(theirs)} word pieces"
    pairs = {
        **{key: (start.backbone.architecture.get(key), backbone.architecture.get(key)) for key in _STRUCTURE},
        "model.pooling": (start.config.model.pooling, config.model.pooling),
        "data.task": (start.task, config.data.task),
        "labels": (list(start.labels), list(corpus.labels)),
        "texts a row": (1 + start.has_pairs, 1 + corpus.has_pairs),
        "lower-casing": (start.preprocessor.lower_case, lower_case),
        "vocabulary": (f"{len(theirs)} word pieces", ours),
    }
    wrong = [f"{name}: expected {expected}, received {received}" for name, (expected, received) in pairs.items() if expected != received]
    if wrong:
        raise RunError(
            f"train.initial_weights = {config.train.initial_weights}: the weights of {parent.path.name} do not fit this run. {'; '.join(wrong)}. "
            "Give this run the same model, text and label settings, or leave train.initial_weights empty to start from the backbone."
        )
    weights = sorted((parent.path / "checkpoints" / "best").glob("weights.data-*"))
    run.update(
        parent={
            "run": parent.path.name,
            "config_digest": parent.info["config_digest"],
            "weights_sha256": [backbones.sha256_of(path) for path in weights],
            "best_epoch": max((event["epoch"] for event in parent.events("epoch") if event["best"]), default=None),
        }
    )
    logger.info("starting from the weights of %s", parent.path.name)
    return start


def teacher(
    run: runs.Run, corpus: Corpus, student: Trained, rows: Examples
) -> tuple[distillation.Distillation | None, Any, dict[str, Probabilities]]:
    """What `compress.distill_*` asks for, or None; what makes tokens of texts: for the student, or for both where their word pieces differ; and columns that come
    with the rows: the teacher's answers, where it is heard before training.

    Args:
        run: that learns.
        corpus: its data.
        student: its model.
        rows: what it trains on.

    Raises:
        ConfigError: no teacher is named and training does not start from a model, or it does not fit the student.
        RunError: there is no such teacher, or it answers another task.
    """
    settings = student.config.compress
    if not settings.distill_weight and not settings.distill_hidden_weight:
        return None, student.preprocessor, {}
    found = _find_teacher(run, student.config)
    _same_task(run, corpus, found, f"the teacher {settings.distill_from}" if settings.distill_from else "the teacher")
    mine, theirs = student.preprocessor, found.preprocessor
    own_tokens = list(mine.vocabulary) != list(theirs.vocabulary) or mine.lower_case != theirs.lower_case
    # Every epoch asks about the same texts: the second time the answers are known, unless hidden states are wanted.
    size = len(rows) * len(student.labels) * np.dtype(np.float32).itemsize
    heard = not settings.distill_hidden_weight and student.config.train.epochs > 1 and size <= MOST_HEARD_BYTES
    technique = distillation.Distillation(found.model, student.model, settings, own_tokens=own_tokens, heard=heard)
    run.update(teacher={"from": settings.distill_from or "checkpoints/start", "architecture": found.backbone.architecture})
    if heard:
        return technique, mine, {distillation.LOGITS: found.logits(rows)}
    return technique, distillation.both_tokens(mine, theirs) if own_tokens else mine, {}


def _find_teacher(run: runs.Run, config: Config) -> Trained:
    name, start = config.compress.distill_from, run.path / "checkpoints" / "start"
    if not name:
        if not start.is_dir():
            raise ConfigError(
                "compress.distill_weight: there is no teacher. This run starts from a backbone, not from a trained model, so name one: "
                "--set compress.distill_from=RUN."
            )
        return trained.load_folder(start, config)
    if (Path(name) / "model.json").is_file():
        return trained.load_folder(Path(name), config)
    run_name, _, variant = name.partition(":")
    return trained.load(runs.find(run_name, run.path.parent), variant)


def _same_task(run: runs.Run, corpus: Corpus, other: Trained, name: str) -> None:
    pairs = {
        "labels": (list(corpus.labels), list(other.labels)),
        "texts a row": (1 + corpus.has_pairs, 1 + other.has_pairs),
        "data.task": (corpus.task, other.task),
    }
    wrong = [f"{what}: expected {expected}, received {received}" for what, (expected, received) in pairs.items() if expected != received]
    if wrong:
        raise RunError(f"{run.path.name}: {name} answers another task. {'; '.join(wrong)}. Give both the same data settings.")
