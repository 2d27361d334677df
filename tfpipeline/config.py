"""The one place for settings: frees every other room from parsing, defaults and validation.

In: an optional preset, an optional TOML file, `key=value` overrides, applied in that order over the defaults below. Out: a frozen `Config`.
Refuses: unknown keys (naming the nearest valid one), wrong types, values out of range, combinations that cannot work - all problems in one
`ConfigError`. Imports neither TensorFlow nor transformers, so a typo costs a tenth of a second, not a start of TensorFlow.

All defaults live here and nowhere else. Section name = module name: `train.learning_rate` is read by `tfpipeline.train`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10 has no tomllib; tomli is the same parser under its old name.
    import tomli as tomllib

from tfpipeline.errors import ConfigError


def _setting(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    source: str = "",
    choices: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with everything `config --explain` prints and `load` checks (`low`/`high` inclusive, `above`/`below` exclusive)."""
    metadata = {
        "meaning": meaning,
        "unit": unit,
        "source": source,
        "choices": tuple(choices),
        "low": low,
        "high": high,
        "above": above,
        "below": below,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataConfig:
    """What `tfpipeline.data` reads and how rows become splits."""

    path: tuple[str, ...] = _setting(
        (),
        "Training files: paths, globs, folders; `sample:bank_feedback` (ships with the package), `hf:NAME[:CONFIG]`, `tfds:NAME`.",
    )
    validation_path: tuple[str, ...] = _setting((), "Files of a given validation split; empty: cut from `data.path` by content hash.")
    test_path: tuple[str, ...] = _setting((), "Files of a given test split; empty: cut from `data.path` by content hash.")
    format: str = _setting(
        "auto", "File format; `auto` goes by the file's ending.", choices=("auto", "csv", "tsv", "jsonl", "parquet", "tfrecord")
    )
    header: str = _setting("auto", "Whether CSV / TSV files open with a row of names.", choices=("auto", "yes", "no"))
    text: str = _setting("text", "Column of the text: a name, or a number counted from 0.")
    text_pair: str = _setting("", "Column of the second text of a pair; empty: single texts.")
    label: str = _setting("label", "Column of the label: a name, or a number counted from 0.")
    weight: str = _setting("", "Column of a per-row weight (>= 0); empty: every row weighs 1.")
    id: str = _setting("", "Column of a row id; empty: derived from the content.")
    slice_columns: tuple[str, ...] = _setting((), "Further columns kept for slices in the evaluation report.")
    task: str = _setting(
        "single_label",
        "One label a text (softmax), or any number of labels a text (a sigmoid each).",
        choices=("single_label", "multi_label"),
    )
    labels: tuple[str, ...] = _setting((), "Label names in their fixed order; empty: the sorted names found in the training files.")
    label_separator: str = _setting("|", "What separates the labels of one cell when `data.task` is `multi_label`.")
    on_bad_row: str = _setting(
        "stop",
        "A row that cannot be used stops the run with file:line, or is set aside in `rejects.jsonl` with its reason.",
        choices=("stop", "quarantine"),
    )
    max_text_bytes: int = _setting(1_000_000, "Longest text taken for one; a longer row is a bad row.", unit="bytes", low=1)
    validation_fraction: float = _setting(0.1, "Share of the texts whose content hash puts them into validation.", low=0.0, below=1.0)
    test_fraction: float = _setting(0.1, "Share of the texts whose content hash puts them into test.", low=0.0, below=1.0)
    split_salt: str = _setting("tfpipeline", "Mixed into the content hash: another salt is another split.")
    near_duplicates: str = _setting(
        "on", "Search near-duplicates (MinHash) and keep each group on one side of the split.", choices=("on", "off")
    )
    near_duplicate_threshold: float = _setting(
        0.8, "Jaccard similarity of 3-word shingles from which two texts are near-duplicates.", above=0.0, high=1.0
    )
    near_duplicate_max_rows: int = _setting(
        200_000, "More rows than this: the search takes a sample of this size and the report says so.", unit="rows", low=1
    )
    class_weights: str = _setting(
        "none",
        "Class weights folded into the row weight: none, `balanced` (rows / (classes * rows of the class)), or `given`.",
        choices=("none", "balanced", "given"),
        source="scikit-learn, compute_class_weight",
    )
    class_weight_values: tuple[float, ...] = _setting((), "One weight per label, in the order of the labels, for `given`.", low=0.0)
    limit: int = _setting(0, "Use only this many training rows (chosen by hash, so stable); 0: all.", unit="rows", low=0)


@dataclass(frozen=True)
class TextConfig:
    """How a string becomes token ids; all of it runs in the graph (`tfpipeline.text`)."""

    unicode: str = _setting(
        "NFC",
        "Unicode normalisation before anything else.",
        choices=("none", "NFC", "NFKC"),
        source="UAX #15; NFKC also folds full-width letters and ligatures",
    )
    strip_html: bool = _setting(True, "Decode HTML entities (&amp;) and drop tags (<br>).")
    replace_urls: bool = _setting(True, "Put the word `url` in place of a URL.")
    replace_emails: bool = _setting(True, "Put the word `email` in place of an e-mail address.")
    replace_mentions: bool = _setting(True, "Put the word `user` in place of an @mention.")
    strip_control: bool = _setting(True, "Drop control characters; tabs and line breaks become spaces.")
    collapse_spaces: bool = _setting(True, "Squeeze runs of white space into one space and trim the ends.")
    rejoin_contractions: bool = _setting(
        False,
        "Turn `do n't`, as treebank corpora write it, back into `don't`: BERT's word pieces of the two differ, and it was pretrained on the second.",
    )
    lower_case: str = _setting(
        "auto", "Lower-case and strip accents: `auto` does what the backbone was trained with.", choices=("auto", "yes", "no")
    )
    stop_words: tuple[str, ...] = _setting(
        (),
        "Words removed before tokenising. Off by default: BERT was pretrained on whole sentences, and `not` is on every stop-word list.",
    )
    vocabulary: str = _setting("", "Path of a vocab.txt; empty: the backbone's, or for `scratch:*` one learned from the training texts.")
    vocabulary_size: int = _setting(8000, "Size of a learned vocabulary.", unit="word pieces", low=100, high=200_000)
    max_length: int = _setting(128, "Longest token sequence, special tokens included; the rest is cut off.", unit="tokens", low=3, high=512)
    length_buckets: tuple[int, ...] = _setting(
        (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 448, 512),
        "A batch is padded to the smallest of these that holds its longest row; those beyond `text.max_length` do not count.",
        unit="tokens",
        low=1,
        high=512,
    )


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and what happens inside one `train_step` (`tfpipeline.model`)."""

    backbone: str = _setting(
        "sentence-transformers/all-MiniLM-L6-v2",
        "A local folder, a Hugging Face id, or `scratch:tiny|mini|small` (random weights).",
        source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0)",
    )
    pooling: str = _setting(
        "mean",
        "What the classifier reads: the pooler over [CLS], or the mean of the last hidden states. `mean` is how the default backbone was trained.",
        choices=("cls", "mean"),
        source="Reimers & Gurevych 2019, arXiv:1908.10084",
    )
    dropout: float = _setting(0.1, "Dropout in the encoder and before the classifier.", low=0.0, below=1.0, source="Devlin et al. 2018")
    freeze_embeddings: bool = _setting(False, "Leave the embedding tables as they are.")
    freeze_layers: int = _setting(0, "Leave this many of the lowest encoder layers as they are.", unit="layers", low=0)
    label_smoothing: float = _setting(0.0, "Share of the target spread over all classes.", low=0.0, below=1.0, source="arXiv:1512.00567")
    clip_norm: float = _setting(1.0, "Gradients are scaled down to this global norm; 0: off.", low=0.0)
    accumulation_steps: int = _setting(1, "Batches whose gradients are summed before the optimizer moves.", unit="batches", low=1)
    fgm_epsilon: float = _setting(
        0.0,
        "Size of the adversarial step on the word embeddings (FGM); 0: off. Doubles the cost of a step.",
        low=0.0,
        source="arXiv:1605.07725",
    )
    r_drop_alpha: float = _setting(
        0.0, "Weight of the R-Drop term (two dropout passes must agree); 0: off. Doubles the cost.", low=0.0, source="arXiv:2106.14448"
    )
    ema_decay: float = _setting(
        0.0, "Decay of an exponential moving average of the weights, used for evaluation and export; 0: off.", low=0.0, below=1.0
    )


@dataclass(frozen=True)
class TrainConfig:
    """The loop around the step (`tfpipeline.train`)."""

    epochs: int = _setting(3, "Passes over the training split.", low=1)
    batch_size: int = _setting(32, "Rows of one batch (over all replicas).", unit="rows", low=1)
    optimizer: str = _setting("adamw", "Which optimizer moves the weights.", choices=("adamw", "adam", "sgd", "adafactor", "lion"))
    learning_rate: float = _setting(
        1e-4,
        "Peak learning rate, at the top layer.",
        unit="change of a weight per step, before Adam's scaling",
        above=0.0,
        source="twice the 5e-5 of Devlin et al. 2018 for BERT-base: the default backbone is a fifth as large; tried in docs/decisions/0005-sst2-recipe.md",
    )
    weight_decay: float = _setting(
        0.01, "Decoupled weight decay; biases and LayerNorm are spared.", low=0.0, source="Loshchilov & Hutter, arXiv:1711.05101"
    )
    schedule: str = _setting("linear", "What follows the warm-up.", choices=("linear", "cosine", "constant"))
    warmup_fraction: float = _setting(0.1, "Share of all steps in which the learning rate rises from 0.", low=0.0, high=1.0)
    layer_decay: float = _setting(
        1.0,
        "Each encoder layer below the top learns at this times the rate of the one above; 1: off.",
        above=0.0,
        high=1.0,
        source="arXiv:1801.06146",
    )
    sparse_embedding_updates: bool = _setting(
        True,
        "Move only the word-embedding rows a batch touches (row-wise Adam). A dense update of a 30,522-row table makes a step 12 % longer.",
        source="tensorflow_addons LazyAdam; measured in benchmarks/README.md, Training speed",
    )
    early_stopping_patience: int = _setting(
        0, "Stop after this many epochs without a better `train.monitor`; 0: off.", unit="epochs", low=0
    )
    monitor: str = _setting("accuracy", "The validation metric that picks the best checkpoint.", choices=("accuracy", "macro_f1", "loss"))
    checkpoint_minutes: float = _setting(
        5.0, "A checkpoint for resuming is written this often, and after each epoch.", unit="minutes", low=0.0
    )
    checkpoint_steps: int = _setting(0, "Also write one every so many steps; 0: off.", unit="steps", low=0)
    tensorboard: bool = _setting(True, "Write TensorBoard event files into the run.")
    baseline_run: str = _setting("", "A run that the new one must not be worse than (paired test on the same rows), or exit 3.")


@dataclass(frozen=True)
class EvaluateConfig:
    """Metrics, intervals, slices (`tfpipeline.evaluate`)."""

    bootstrap_samples: int = _setting(1000, "Resamples behind each interval.", low=100, high=100_000)
    confidence: float = _setting(0.95, "Coverage of the intervals.", above=0.5, below=1.0)
    calibration_bins: int = _setting(
        15, "Bins of the reliability diagram and of the expected calibration error.", low=2, high=100, source="arXiv:1706.04599"
    )
    tfidf_baseline: bool = _setting(True, "Train TF-IDF + logistic regression on the same split, for comparison.")
    worst_mistakes: int = _setting(20, "How many of the most confident mistakes the report shows.", low=0, high=1000)
    batch_size: int = _setting(64, "Rows of one batch when predicting.", unit="rows", low=1)
    min_accuracy: float = _setting(0.0, "The quality gate: below this accuracy on test the command exits 3; 0: no gate.", low=0.0, high=1.0)


@dataclass(frozen=True)
class ExportConfig:
    """What is published (`tfpipeline.export`)."""

    name: str = _setting("", "Model name, the folder under `export.root`; empty: the run's name.")
    root: str = _setting("models", "Where published models live.")
    parity_texts: int = _setting(200, "Texts on which every form of the model must agree before it is published.", low=1)
    parity_tolerance: float = _setting(1e-5, "Largest difference of a probability between two forms of the model.", above=0.0)
    golden_probes: int = _setting(16, "Texts with expected probabilities kept in the manifest; `push` asks the live server these.", low=1)


@dataclass(frozen=True)
class RuntimeConfig:
    """Process state (`tfpipeline.runtime`)."""

    seed: int = _setting(1, "Seed of weights, dropout and order.", low=0, high=2**31 - 1)
    deterministic: bool = _setting(False, "Bit-equal reruns on the same machine (slower).")
    precision: str = _setting("float32", "Compute precision; the weights stay float32.", choices=("float32", "bfloat16", "float16"))
    threads: int = _setting(0, "Threads TensorFlow may use; 0: one per core.", low=0)
    strategy: str = _setting("one", "tf.distribute strategy.", choices=("one", "mirrored", "multiworker"))


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. Two runs of one Config on one machine and data set see the same batches in the same order."""

    name: str = _setting("model", "Name of the run and, unless `export.name` says otherwise, of the model.")
    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, every key present; `load_dict` reads it back."""
        return typing.cast("dict[str, Any]", json.loads(json.dumps(dataclasses.asdict(self))))

    def digest(self) -> str:
        """Hex sha256 of the canonical JSON: equal configs, equal digests."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


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
        values.update(_flatten(_parse(preset_text(preset), f"preset {preset}"), f"preset {preset}", problems))
    if file:
        path = Path(file)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(
                f"{file}: no such config file. Give the path of a TOML file, or use --preset ({', '.join(presets())})."
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: cannot be read as a TOML file in UTF-8: {error}.") from error
        values.update(_flatten(_parse(text, file), file, problems))
    for override in overrides:
        values.update(_override(override, problems))
    config = _build(values, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def load_dict(values: Mapping[str, Any], origin: str) -> Config:
    """The inverse of `Config.to_dict` (a run's `config.json`); `origin` is named in messages."""
    problems: list[str] = []
    config = _build(_flatten(values, origin, problems), problems)
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
        raise ConfigError(f"unknown preset '{name}'.{_did_you_mean(name, known)} Presets: {', '.join(known)}.")
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
    choices: tuple[str, ...]
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
        raise ConfigError(f"unknown key `{key}`.{_did_you_mean(key, known)} `tfpipeline config` lists all keys.")
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


def _parse(text: str, origin: str) -> dict[str, Any]:
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
            problems.append(f"{origin}: unknown key `{key}`.{_did_you_mean(key, known)}")
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
        problems.append(f"--set {override}: unknown key `{key}`.{_did_you_mean(key, known)}")
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
            checked = _check(value, annotation, metadata)
        except ValueError as error:
            problems.append(f"{origin}: `{key}` {error}")
            continue
        section, _, name = key.rpartition(".")
        (chosen.setdefault(section, {}) if section else top)[name] = checked
    hints = typing.get_type_hints(Config)
    config = Config(**top, **{section: hints[section](**values) for section, values in chosen.items()})
    problems.extend(_contradictions(config))
    return config


def _check(value: Any, annotation: Any, metadata: Mapping[str, Any]) -> Any:
    """The value in its declared type. Raises ValueError with the rest of a sentence that starts with the key."""
    if typing.get_origin(annotation) is tuple:
        if isinstance(value, str) and typing.get_args(annotation)[0] is str:
            value = [value]
        if not isinstance(value, list | tuple):
            raise ValueError(f"takes a list, received {value!r}.")
        return tuple(_check(item, typing.get_args(annotation)[0], metadata) for item in value)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, annotation) or (annotation is not bool and isinstance(value, bool)):
        raise ValueError(f"takes {_type_name(annotation)}, received {value!r}.")
    if metadata["choices"] and value not in metadata["choices"]:
        raise ValueError(
            f"takes one of {', '.join(metadata['choices'])}, received {value!r}.{_did_you_mean(str(value), metadata['choices'])}"
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
            f"{_did_you_mean(config.model.backbone, SCRATCH_BACKBONES)}"
        )
    if not config.model.backbone:
        yield "`model.backbone` is empty. Give a folder, a Hugging Face id, or scratch:tiny."
    if config.model.fgm_epsilon and config.model.r_drop_alpha:
        yield "`model.fgm_epsilon` and `model.r_drop_alpha` are two ways to the same end; choose one."
    for key, name in (("name", config.name), ("export.name", config.export.name or config.name)):
        if not NAME_PATTERN.fullmatch(name):
            yield f"`{key}` {name!r} must be letters, digits, _ and -, starting with a letter or digit, at most 64 long: it becomes a folder name."


SCRATCH_BACKBONES = ("scratch:tiny", "scratch:mini", "scratch:small")


def _did_you_mean(word: str, known: Iterable[str]) -> str:
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
