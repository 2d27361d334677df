"""The one place for settings: frees every other room from parsing, defaults and validation.

In: an optional preset, an optional TOML file, `key=value` overrides, applied in that order over the defaults. Out: a frozen `Config`.
Refuses: unknown keys (naming the nearest valid one), wrong types, values out of range, combinations that cannot work - all problems in one
`ConfigError`. Imports neither TensorFlow nor transformers, so a typo costs a tenth of a second, not a start of TensorFlow.

The settings themselves, with their defaults and bounds, are the dataclasses of `tfpipeline.settings`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10 has no tomllib; tomli is the same parser under its old name.
    import tomli as tomllib

from tfpipeline.errors import ConfigError
from tfpipeline.settings import (
    CompressConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    ExportConfig,
    ModelConfig,
    RuntimeConfig,
    TextConfig,
    TrainConfig,
)

__all__ = [
    "CompressConfig", "Config", "DataConfig", "EvaluateConfig", "ExportConfig", "ModelConfig", "RuntimeConfig", "Setting", "TextConfig", "TrainConfig",
    "explain", "load", "load_dict", "preset_text", "presets", "settings",
]  # fmt: skip

DEFAULT_PRESET = "bank"


def load(preset: str = "", file: str = "", overrides: Iterable[str] = ()) -> Config:
    """Defaults < preset < file < overrides.

    Args:
        preset: name of a preset that ships with the package; "" for none.
        file: path of a TOML file; "" for none.
        overrides: strings `section.key=value`; the value is read as TOML, and as a plain string where the key takes one.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    if preset:
        values.update(_flatten(parse_toml(preset_text(preset), f"preset {preset}"), f"preset {preset}", problems))
    if file:
        missing = f"{file}: no such config file. Give the path of a TOML file, or use --preset ({', '.join(presets())})."
        values.update(_flatten(read_toml(file, missing), file, problems))
    for override in overrides:
        values.update(_override(override, problems))
    config = _build(values, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def load_dict(values: Mapping[str, Any], origin: str, overrides: Iterable[str] = ()) -> Config:
    """The inverse of `Config.to_dict` (a run's `config.json`), then the overrides; `origin` is named in messages."""
    problems: list[str] = []
    flat = _flatten(values, origin, problems)
    for override in overrides:
        flat.update(_override(override, problems))
    config = _build(flat, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def presets() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = resources.files("tfpipeline") / "presets"
    return sorted(entry.name[: -len(".toml")] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def preset_text(name: str) -> str:
    """The TOML text of a preset, comments included."""
    known = presets()
    if name not in known:
        raise ConfigError(f"unknown preset '{name}'.{did_you_mean(name, known)} Presets: {', '.join(known)}.")
    return (resources.files("tfpipeline") / "presets" / f"{name}.toml").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Setting:
    """One dotted key, as `config --explain` shows it."""

    key: str
    type: str
    default: Any
    meaning: str
    unit: str
    source: str
    choices: tuple[str, ...] | tuple[int, ...]
    bounds: str


def settings() -> dict[str, Setting]:
    """Every key by its dotted name, in the order of the tree."""
    result = {}
    for key, (annotation, default, metadata) in _keys().items():
        result[key] = Setting(
            key=key,
            type=_type_name(annotation),
            default=default,
            meaning=metadata["meaning"],
            unit=metadata["unit"],
            source=metadata["source"],
            choices=metadata["choices"],
            bounds=_bounds(metadata),
        )
    return result


def explain(key: str) -> Setting:
    """Raises ConfigError, with the nearest valid key, for one that does not exist."""
    known = settings()
    if key not in known:
        raise ConfigError(f"unknown key `{key}`.{did_you_mean(key, known)} `tfpipeline config` lists all keys.")
    return known[key]


def _keys() -> dict[str, tuple[Any, Any, Mapping[str, Any]]]:
    result: dict[str, tuple[Any, Any, Mapping[str, Any]]] = {}
    hints = typing.get_type_hints(Config)
    for item in dataclasses.fields(Config):
        section = hints[item.name]
        if dataclasses.is_dataclass(section):
            inner_hints = typing.get_type_hints(section)
            for inner in dataclasses.fields(section):
                result[f"{item.name}.{inner.name}"] = (inner_hints[inner.name], inner.default, inner.metadata)
        else:
            result[item.name] = (section, item.default, item.metadata)
    return result


def read_toml(name: str, missing: str) -> dict[str, Any]:
    """What a TOML file holds, unchecked.

    Raises:
        ConfigError: with the words of `missing` when there is no such file; it cannot be read, or is no TOML.
    """
    return parse_toml(read_text(name, missing), name)


def read_text(name: str, missing: str) -> str:
    """The text of a TOML file; errors as in `read_toml`."""
    try:
        return Path(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(missing) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: cannot be read as a TOML file in UTF-8: {error}.") from error


def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """A TOML text, unchecked; `origin` is named in messages.

    Raises:
        ConfigError: it is no TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin}: not valid TOML: {error}.") from error


def _flatten(tree: Mapping[str, Any], origin: str, problems: list[str]) -> dict[str, tuple[Any, str]]:
    """`{"train": {"epochs": 3}}` to `{"train.epochs": (3, origin)}`; unknown keys go to `problems`."""
    known = _keys()
    sections = {key.split(".")[0] for key in known if "." in key}
    flat: dict[str, tuple[Any, str]] = {}
    for name, value in tree.items():
        if name in sections and isinstance(value, Mapping):
            for inner, inner_value in value.items():
                flat[f"{name}.{inner}"] = (inner_value, origin)
        elif name in sections:
            problems.append(f"{origin}: `{name}` must be a section [{name}], not the value {value!r}.")
        else:
            flat[name] = (value, origin)
    for key in list(flat):
        if key not in known:
            problems.append(f"{origin}: unknown key `{key}`.{did_you_mean(key, known)}")
            del flat[key]
    return flat


def _override(override: str, problems: list[str]) -> dict[str, tuple[Any, str]]:
    key, separator, raw = override.partition("=")
    key = key.strip()
    if not separator:
        problems.append(f"--set {override}: expected key=value, for example --set train.epochs=3.")
        return {}
    known = _keys()
    if key not in known:
        problems.append(f"--set {override}: unknown key `{key}`.{did_you_mean(key, known)}")
        return {}
    annotation = known[key][0]
    if annotation is str:
        try:  # `--set name='"x"'` and `--set name=x` mean the same.
            value = tomllib.loads(f"value = {raw}")["value"]
        except tomllib.TOMLDecodeError:
            value = raw
        return {key: (value if isinstance(value, str) else raw, "--set")}
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    if typing.get_origin(annotation) is tuple and not isinstance(value, list):
        item = typing.get_args(annotation)[0]
        value = [part.strip() for part in raw.split(",")] if item is str and raw else ([] if not raw else [value])
    return {key: (value, "--set")}


def _build(flat: Mapping[str, tuple[Any, str]], problems: list[str]) -> Config:
    known = _keys()
    chosen: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    for key, (value, origin) in flat.items():
        annotation, _, metadata = known[key]
        try:
            checked = check_value(value, annotation, metadata)
        except ValueError as error:
            problems.append(f"{origin}: `{key}` {error}")
            continue
        section, _, name = key.rpartition(".")
        (chosen.setdefault(section, {}) if section else top)[name] = checked
    hints = typing.get_type_hints(Config)
    config = Config(**top, **{section: hints[section](**values) for section, values in chosen.items()})
    problems.extend(_contradictions(config))
    return config


def check_value(value: Any, annotation: Any, metadata: Mapping[str, Any]) -> Any:
    """The value in its declared type. Raises ValueError with the rest of a sentence that starts with the key."""
    if typing.get_origin(annotation) is tuple:
        if isinstance(value, str) and typing.get_args(annotation)[0] is str:
            value = [value]
        if not isinstance(value, list | tuple):
            raise ValueError(f"takes a list, received {value!r}.")
        return tuple(check_value(item, typing.get_args(annotation)[0], metadata) for item in value)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, annotation) or (annotation is not bool and isinstance(value, bool)):
        raise ValueError(f"takes {_type_name(annotation)}, received {value!r}.")
    if metadata["choices"] and value not in metadata["choices"]:
        raise ValueError(
            f"takes one of {', '.join(map(str, metadata['choices']))}, received {value!r}.{did_you_mean(str(value), map(str, metadata['choices']))}"
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high, above, below = metadata["low"], metadata["high"], metadata["above"], metadata["below"]
        inside = (
            value == value
            and (low is None or value >= low)
            and (high is None or value <= high)
            and (above is None or value > above)
            and (below is None or value < below)
            and abs(value) != float("inf")
        )
        if not inside:
            raise ValueError(f"takes {_type_name(annotation)} {_bounds(metadata)}, received {value!r}.")
    return value


# A run's name becomes a folder: nothing that could climb out of it or hide.
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def _contradictions(config: Config) -> Iterable[str]:
    if config.data.validation_fraction + config.data.test_fraction >= 1.0:
        yield "`data.validation_fraction` + `data.test_fraction` must leave something to train on: their sum is 1 or more."
    if config.data.class_weights == "given" and not config.data.class_weight_values:
        yield '`data.class_weights = "given"` needs `data.class_weight_values`, one number per label.'
    if config.data.class_weights != "given" and config.data.class_weight_values:
        yield '`data.class_weight_values` is only read with `data.class_weights = "given"`. Set both or neither.'
    if config.data.class_weights == "balanced" and config.data.task == "multi_label":
        yield '`data.class_weights = "balanced"` is defined for one label a text; with `multi_label` use per-row weights (`data.weight`).'
    if len(set(config.data.labels)) != len(config.data.labels):
        yield f"`data.labels` names a label twice: {list(config.data.labels)}."
    if config.model.backbone.startswith("scratch:") and config.model.backbone not in SCRATCH_BACKBONES:
        yield (
            f"`model.backbone` {config.model.backbone!r} is not one of {', '.join(SCRATCH_BACKBONES)}."
            f"{did_you_mean(config.model.backbone, SCRATCH_BACKBONES)}"
        )
    if not config.model.backbone:
        yield "`model.backbone` is empty. Give a folder, a Hugging Face id, or scratch:tiny."
    if config.model.fgm_epsilon and config.model.r_drop_alpha:
        yield "`model.fgm_epsilon` and `model.r_drop_alpha` are two ways to the same end; choose one."
    yield from _compress_contradictions(config)
    for key, name in (("name", config.name), ("export.name", config.export.name or config.name)):
        if not NAME_PATTERN.fullmatch(name):
            yield f"`{key}` {name!r} must be letters, digits, _ and -, starting with a letter or digit, at most 64 long: it becomes a folder name."


def _compress_contradictions(config: Config) -> Iterable[str]:
    compress = config.compress
    if compress.sparsity_pattern == "2:4" and compress.sparsity != 0.5:
        yield f'`compress.sparsity_pattern = "2:4"` is two zeros in four: `compress.sparsity` must be 0.5, received {compress.sparsity:g}.'
    if compress.sparsity and compress.sparsity_begin >= compress.sparsity_end:
        yield (
            f"`compress.sparsity_begin` must be before `compress.sparsity_end`, received {compress.sparsity_begin:g} and {compress.sparsity_end:g}: "
            "no step would be left in which the sparsity grows."
        )
    if compress.sparsity and not compress.sparsity_layers:
        yield "`compress.sparsity_layers` is empty, so `compress.sparsity` has nothing to prune. Name attention, feed_forward, or both."
    if compress.quantize_aware and compress.sparsity:
        yield (
            "`compress.quantize_aware` and `compress.sparsity` in one training: prune first, then train with quantization from the pruned model, "
            "which keeps its zeros (`compress.keep_sparsity`)."
        )
    if compress.quantize_aware and config.runtime.precision != "float32":
        yield f'`compress.quantize_aware` needs `runtime.precision = "float32"`, received {config.runtime.precision!r}: rounding to 8 bits is defined on it.'
    distilled = compress.distill_weight or compress.distill_hidden_weight
    if compress.distill_from and not distilled:
        yield "`compress.distill_from` names a teacher that nothing listens to. Set `compress.distill_weight`, for example 0.5."
    if compress.unlabelled and not compress.distill_weight:
        yield "`compress.unlabelled` needs a teacher to label those texts. Set `compress.distill_weight`, for example 0.5."


SCRATCH_BACKBONES = ("scratch:tiny", "scratch:mini", "scratch:small")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not near and "." in word:
        # `train.batch` is nearer to `train.batch_size` than the ratio of the whole strings says.
        section, _, name = word.partition(".")
        near = [key for key in known if key.startswith(f"{section}.") and name and name in key][:1]
    if not near:
        near = [key for key in known if key.rpartition(".")[2] == word][:1]
    return f" Did you mean `{near[0]}`?" if near else ""


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is tuple:
        return f"list of {_type_name(typing.get_args(annotation)[0])}"
    if isinstance(annotation, types.UnionType):
        return " or ".join(_type_name(part) for part in typing.get_args(annotation))
    return {str: "string", int: "integer", float: "number", bool: "true or false"}.get(annotation, str(annotation))


def _bounds(metadata: Mapping[str, Any]) -> str:
    parts = []
    for name, sign in (("low", ">="), ("above", ">"), ("high", "<="), ("below", "<")):
        if metadata[name] is not None:
            parts.append(f"{sign} {metadata[name]:g}")
    return " and ".join(parts)
