"""Recipes: which steps make a variant, in which order. Frees the chain from files, defaults and validation.

    name = "prune80-int8"
    max_drop = 2.3                         # points of accuracy; left out: the run's compress.max_drop

    [[steps]]
    kind = "finetune"                      # a training run; sections as in a config, over those of the run that is compressed
    compress.sparsity = 0.8
    compress.distill_from = "original"     # that run itself
    compress.distill_weight = 0.8
    train.epochs = 3

    [[steps]]
    kind = "int8_dynamic"

In: the name of a ready recipe, or the path of a TOML file. Out: a frozen `Recipe`. Refuses, all problems in one `ConfigError`: kinds and keys that do not
exist (naming the nearest), values out of range, a chain without a step, a step after a conversion. What depends on the run (more layers than it has)
is refused by `check_against`, before the first step. Imports neither TensorFlow nor transformers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from tfpipeline import config
from tfpipeline.config import CompressConfig, Config
from tfpipeline.errors import ConfigError
from tfpipeline.settings import setting

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TABLE_BITS = "Of a number in the table of word pieces; 4 halves it and is rounded where the answers of training texts depend on it least."
ORIGINAL = "original"  # as `compress.distill_from`: the run that is compressed


@dataclass(frozen=True)
class TrimVocabulary:
    """Keeps the word pieces that the data uses, and every single-character piece."""

    files: tuple[str, ...] = setting((), "More files whose word pieces are kept: paths, globs, folders, with the columns of the run's own.")
    least: int = setting(
        1,
        "Rows that must use a word piece for it to be kept. Above 1, texts of the data may change their answer: the report counts them, the budget decides.",
        unit="rows",
        low=1,
    )


@dataclass(frozen=True)
class KeepLayers:
    """A student of some of the model's encoder layers."""

    layers: tuple[int, ...] = setting((), "Which layers, counted from 0, lowest first.", low=0)
    count: int = setting(0, "How many, spread evenly from the lowest to the highest; 0: `layers` names them.", unit="layers", low=0)


@dataclass(frozen=True)
class Student:
    """A new, smaller model with random weights and the vocabulary of the run: it learns from the run in the `finetune` step after it."""

    backbone: str = setting("scratch:mini", "Its shape.", choices=config.SCRATCH_BACKBONES)


@dataclass(frozen=True)
class Structured:
    """Drops whole attention heads and feed-forward columns by first-order Taylor importance."""

    heads: float = setting(0.0, "Share of all attention heads that is dropped.", low=0.0, below=1.0)
    feed_forward: float = setting(0.0, "Share of all feed-forward columns that is dropped.", low=0.0, below=1.0)
    rows: int = setting(1024, "Training rows that tell what is important.", unit="rows", low=1)


@dataclass(frozen=True)
class Finetune:
    """Training goes on from the model so far; its sections `train`, `compress` and `model` are those of a config."""


@dataclass(frozen=True)
class Int8Dynamic:
    """A `.tflite` with int8 weights; activations are quantized as they come."""

    lengths: tuple[int, ...] = setting(
        (), "One signature for each; empty: one graph of any length, the fastest on CPUs, because nothing is padding.", low=3, high=512
    )
    calibration_rows: int = setting(256, "Training rows that tell which columns are long.", unit="rows", low=1)
    table_bits: int = setting(8, _TABLE_BITS, unit="bits", choices=(8, 4))


@dataclass(frozen=True)
class Int8Full:
    """A `.tflite` that computes in int8, but for the operations that the accuracy budget wants in float."""

    lengths: tuple[int, ...] = setting(
        (16, 32, 64, 128), "One signature for each; those beyond `text.max_length` do not count.", low=3, high=512
    )
    calibration_rows: int = setting(256, "Training rows of every length that the ranges are taken from.", unit="rows", low=1)
    table_bits: int = setting(8, _TABLE_BITS, unit="bits", choices=(8, 4))
    keep_float: tuple[str, ...] = setting((), "Operations that stay in float from the start.")
    most_float: float = setting(0.1, "Share of the matrix products that may stay in float before the step gives up.", low=0.0, high=1.0)


KINDS: dict[str, type] = {
    "trim_vocabulary": TrimVocabulary,
    "keep_layers": KeepLayers,
    "student": Student,
    "structured": Structured,
    "finetune": Finetune,
    "int8_dynamic": Int8Dynamic,
    "int8_full": Int8Full,
}
CONVERSIONS = ("int8_dynamic", "int8_full")
TRANSFORMS = ("trim_vocabulary", "keep_layers", "student", "structured")
# They leave a model that has yet to be trained: directly before a `finetune`, it is after that one that the budget is held.
HEALED = ("keep_layers", "student", "structured")
_SECTIONS = ("train", "compress", "model")
# The shape and the start of a child run are the chain's business.
_NOT_IN_FINETUNE = ("model.backbone", "model.pooling", "train.initial_weights", "train.baseline_run", "compress.max_drop")


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        kind: a key of `KINDS`.
        settings: of that kind.
        sections: of a `finetune`, {"train": {...}, "compress": {...}, "model": {...}}: only what the recipe sets.
    """

    kind: str
    settings: Any
    sections: Mapping[str, Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: equal steps, equal dicts."""
        return {"kind": self.kind, **json.loads(json.dumps(dataclasses.asdict(self.settings))), **self.sections}


@dataclass(frozen=True)
class Recipe:
    """A checked chain.

    Attributes:
        name: of the recipe and, unless another is asked for, of the variant.
        summary: the comment that the file opens with.
        steps: at least one.
        max_drop: points of accuracy; None: what the run says.
    """

    name: str
    summary: str
    steps: tuple[Step, ...]
    max_drop: float | None

    def digest(self, steps: int | None = None) -> str:
        """Hex sha256 of the first `steps` steps (all by default)."""
        chain = [step.to_dict() for step in self.steps[:steps]]
        return hashlib.sha256(json.dumps(chain, sort_keys=True).encode()).hexdigest()

    def heals(self, number: int) -> bool:
        """Whether step `number` leaves a model that the next one has yet to train."""
        following = self.steps[number + 1 : number + 2]
        return self.steps[number].kind in HEALED and bool(following) and following[0].kind == "finetune"


def names() -> list[str]:
    """The ready recipes."""
    folder = resources.files("tfpipeline") / "recipes"
    return sorted(entry.name[: -len(".toml")] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load(name: str) -> Recipe:
    """A ready recipe by name, or one in a TOML file by path.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    known = names()
    if name in known:
        return parse((resources.files("tfpipeline") / "recipes" / f"{name}.toml").read_text(encoding="utf-8"), f"recipe {name}", name)
    path = Path(name)
    if path.suffix != ".toml" and not path.is_file():
        raise ConfigError(
            f"recipe '{name}': no such recipe, and no such file.{config.did_you_mean(name, known)} Recipes: {', '.join(known)}; or give the path of a TOML file."
        )
    missing = f"{name}: no such recipe file. Give the path of a TOML file, or one of {', '.join(known)}."
    return parse(config.read_text(name, missing), name, path.stem)


def parse(text: str, origin: str, default_name: str) -> Recipe:
    """The recipe that a TOML text holds; `origin` is named in messages.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    tree = config.parse_toml(text, origin)
    problems: list[str] = []
    for key in set(tree) - {"name", "max_drop", "steps"}:
        problems.append(f"{origin}: unknown key `{key}`.{config.did_you_mean(key, ('name', 'max_drop', 'steps'))}")
    name = tree.get("name", default_name)
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        problems.append(
            f"{origin}: `name` {name!r} must be small letters, digits, dots, _ and -, starting with a letter or digit, at most 64 long: it becomes a folder name."
        )
    max_drop = tree.get("max_drop")
    if max_drop is not None and (isinstance(max_drop, bool) or not isinstance(max_drop, int | float) or not 0 <= max_drop <= 100):
        problems.append(f"{origin}: `max_drop` takes points of accuracy, 0 to 100, received {max_drop!r}.")
    found = tree.get("steps")
    steps: list[Step] = []
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        problems.append(f'{origin}: has no step. Add at least one: [[steps]] with kind = "int8_dynamic" ({", ".join(KINDS)}).')
    else:
        for number, one in enumerate(found, 1):
            step = _step(one, f"{origin}, step {number}", problems)
            if step is not None:
                steps.append(step)
        for number, one in enumerate(found[:-1], 1):
            if one.get("kind") in CONVERSIONS:
                problems.append(f"{origin}, step {number}: `{one['kind']}` makes a .tflite, which no step can go on from. Put it last.")
        rounded = next((number for number, step in enumerate(steps) if step.sections.get("compress", {}).get("quantize_aware")), len(steps))
        for number, step in enumerate(steps[rounded:], rounded + 1):
            if step.kind in TRANSFORMS:
                problems.append(
                    f"{origin}, step {number}: `{step.kind}` cannot change a model with the rounding of int8 in it. Put it before step {rounded + 1}."
                )
    if problems:
        raise ConfigError("\n".join(problems))
    summary = []
    for line in text.lstrip().splitlines():
        if not line.startswith("#"):
            break
        summary.append(line.lstrip("# ").rstrip())
    return Recipe(name, "\n".join(summary), tuple(steps), None if max_drop is None else float(max_drop))


def _step(tree: Mapping[str, Any], origin: str, problems: list[str]) -> Step | None:
    kind = tree.get("kind")
    if kind not in KINDS:
        hint = config.did_you_mean(kind, KINDS) if isinstance(kind, str) else ""
        problems.append(f"{origin}: kind {kind!r} is not one of {', '.join(KINDS)}.{hint}")
        return None
    values = {key: value for key, value in tree.items() if key != "kind"}
    sections = {}
    if kind == "finetune":
        sections = {key: values.pop(key) for key in _SECTIONS if isinstance(values.get(key), dict)}
        _check_sections(sections, origin, problems)
    hints = typing.get_type_hints(KINDS[kind])
    fields = {one.name: one for one in dataclasses.fields(KINDS[kind])}
    chosen: dict[str, Any] = {}
    before = len(problems)
    for key, value in values.items():
        if key not in fields:
            if kind == "finetune":
                told = f" A finetune step takes {', '.join(f'{one}.*' for one in _SECTIONS)}, as in a config."
            else:
                told = config.did_you_mean(key, fields) + (f" It takes {', '.join(fields)}." if fields else "")
            problems.append(f"{origin} ({kind}): unknown key `{key}`.{told}")
            continue
        try:
            chosen[key] = config.check_value(value, hints[key], fields[key].metadata)
        except ValueError as error:
            problems.append(f"{origin} ({kind}): `{key}` {error}")
    settings = KINDS[kind](**chosen)
    if len(problems) == before:  # a misspelt key is not also a missing one
        problems.extend(f"{origin} ({kind}): {problem}" for problem in _contradictions(settings))
    return Step(kind, settings, sections)


def _check_sections(sections: Mapping[str, Mapping[str, Any]], origin: str, problems: list[str]) -> None:
    """What can be said without the run: the same checks as on any config."""
    for key in _NOT_IN_FINETUNE:
        section, _, name = key.partition(".")
        if name in sections.get(section, {}):
            problems.append(f"{origin} (finetune): `{key}` cannot be set here: a finetune step goes on from the model before it.")
    try:
        config.load_dict(_resolved(sections, "somewhere"), f"{origin} (finetune)")
    except ConfigError as error:
        told = str(error).splitlines()
        problems.extend(line if line.startswith(origin) else f"{origin} (finetune): {line}" for line in told)


def _contradictions(settings: Any) -> list[str]:
    if isinstance(settings, KeepLayers):
        if bool(settings.layers) == bool(settings.count):
            return ["give either `layers` (which) or `count` (how many), and not both."]
        if list(settings.layers) != sorted(set(settings.layers)):
            return [f"`layers` {list(settings.layers)} must go upwards, each once."]
    if isinstance(settings, Structured) and not settings.heads and not settings.feed_forward:
        return ["drops nothing. Set `heads` or `feed_forward` to the share to drop, for example heads = 0.25."]
    return []


def _resolved(sections: Mapping[str, Mapping[str, Any]], original: str) -> dict[str, dict[str, Any]]:
    """The sections with `distill_from = "original"` made a path."""
    result = {name: dict(section) for name, section in sections.items()}
    if result.get("compress", {}).get("distill_from") == ORIGINAL:
        result["compress"]["distill_from"] = original
    return result


def finetune_config(step: Step, parent: Config, original: Path, origin: str) -> Config:
    """The Config of the training run that a `finetune` step is: the parent's, with the step's sections over it.

    Of `compress` nothing is inherited: how the parent came to be is not what is done to its child. Accuracy gates, the baseline and TensorBoard are off: the
    budget of the chain judges.

    Raises:
        ConfigError: the two do not go together.
    """
    values = parent.to_dict()
    values["compress"] = {**dataclasses.asdict(CompressConfig()), "max_drop": parent.compress.max_drop}
    for name, section in _resolved(step.sections, str(original.resolve())).items():
        values[name] = {**values[name], **section}
    values["train"] |= {"initial_weights": "", "baseline_run": "", "tensorboard": step.sections.get("train", {}).get("tensorboard", False)}
    values["evaluate"] |= {"min_accuracy": 0.0, "tfidf_baseline": False}
    return config.load_dict(values, origin)


def check_against(recipe: Recipe, parent: Config, architecture: Mapping[str, Any], original: Path, *, quantized: bool = False) -> None:
    """What only the run can tell, before the first step: layers that it does not have, students larger than it, configs that do not go together.

    Args:
        recipe: to be cooked.
        parent: config of the run.
        architecture: of the run's model; `num_hidden_layers`, `hidden_size`.
        original: folder of the run.
        quantized: whether the run's model has the rounding of int8 in it.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    problems: list[str] = []
    depth, width = int(architecture["num_hidden_layers"]), int(architecture["hidden_size"])
    for number, step in enumerate(recipe.steps, 1):
        origin, settings = f"recipe {recipe.name}, step {number} ({step.kind})", step.settings
        if quantized and step.kind in TRANSFORMS:
            problems.append(
                f"{origin}: the run's model was trained with the rounding of int8 in it, and its shape is fixed. Compress the run it started from."
            )
        if isinstance(settings, KeepLayers):
            kept = settings.count or len(settings.layers)
            if kept > depth:
                problems.append(
                    f"{origin}: a student of {kept} layers is deeper than its teacher, which has {depth}. Keep at most {depth}."
                )
            elif settings.layers and settings.layers[-1] >= depth:
                problems.append(f"{origin}: the model has layers 0 to {depth - 1}; received {list(settings.layers)}.")
            depth = min(kept, depth)
        elif isinstance(settings, Student):
            from tfpipeline.backbone import SCRATCH_SIZES

            new_width, new_depth, *_ = SCRATCH_SIZES[settings.backbone]
            wider = [f"{what} {new} > {old}" for what, new, old in (("width", new_width, width), ("layers", new_depth, depth)) if new > old]
            if wider:
                fits = [name for name, (w, d, *_) in SCRATCH_SIZES.items() if w <= width and d <= depth]
                told = f"Take {' or '.join(fits)}." if fits else "No scratch backbone is smaller; take keep_layers."
                problems.append(f"{origin}: the student {settings.backbone} is larger than its teacher ({', '.join(wider)}). {told}")
            depth, width = new_depth, new_width
        elif step.kind == "finetune":
            try:
                finetune_config(step, parent, original, origin)
            except ConfigError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
