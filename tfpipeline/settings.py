"""Every setting with its default, meaning, unit, source and bounds, and nowhere else. `tfpipeline.config` fills and checks these.

Section name = module name: `train.learning_rate` is read by `tfpipeline.train`, `compress.sparsity` by `tfpipeline.techniques` and `tfpipeline.compress`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


def setting(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    source: str = "",
    choices: Sequence[str] | Sequence[int] = (),
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

    path: tuple[str, ...] = setting(
        (),
        "Training files: paths, globs, folders; `sample:bank_feedback` (ships with the package), `hf:NAME[:CONFIG]`, `tfds:NAME`.",
    )
    validation_path: tuple[str, ...] = setting((), "Files of a given validation split; empty: cut from `data.path` by content hash.")
    test_path: tuple[str, ...] = setting((), "Files of a given test split; empty: cut from `data.path` by content hash.")
    format: str = setting(
        "auto", "File format; `auto` goes by the file's ending.", choices=("auto", "csv", "tsv", "jsonl", "parquet", "tfrecord")
    )
    header: str = setting("auto", "Whether CSV / TSV files open with a row of names.", choices=("auto", "yes", "no"))
    text: str = setting("text", "Column of the text: a name, or a number counted from 0.")
    text_pair: str = setting("", "Column of the second text of a pair; empty: single texts.")
    label: str = setting("label", "Column of the label: a name, or a number counted from 0.")
    weight: str = setting("", "Column of a per-row weight (>= 0); empty: every row weighs 1.")
    id: str = setting("", "Column of a row id; empty: derived from the content.")
    slice_columns: tuple[str, ...] = setting((), "Further columns kept for slices in the evaluation report.")
    task: str = setting(
        "single_label",
        "One label a text (softmax), or any number of labels a text (a sigmoid each).",
        choices=("single_label", "multi_label"),
    )
    labels: tuple[str, ...] = setting((), "Label names in their fixed order; empty: the sorted names found in the training files.")
    label_separator: str = setting("|", "What separates the labels of one cell when `data.task` is `multi_label`.")
    on_bad_row: str = setting(
        "stop",
        "A row that cannot be used stops the run with file:line, or is set aside in `rejects.jsonl` with its reason.",
        choices=("stop", "quarantine"),
    )
    max_text_bytes: int = setting(1_000_000, "Longest text taken for one; a longer row is a bad row.", unit="bytes", low=1)
    validation_fraction: float = setting(0.1, "Share of the texts whose content hash puts them into validation.", low=0.0, below=1.0)
    test_fraction: float = setting(0.1, "Share of the texts whose content hash puts them into test.", low=0.0, below=1.0)
    split_salt: str = setting("tfpipeline", "Mixed into the content hash: another salt is another split.")
    near_duplicates: str = setting(
        "on", "Search near-duplicates (MinHash) and keep each group on one side of the split.", choices=("on", "off")
    )
    near_duplicate_threshold: float = setting(
        0.8, "Jaccard similarity of 3-word shingles from which two texts are near-duplicates.", above=0.0, high=1.0
    )
    near_duplicate_max_rows: int = setting(
        200_000, "More rows than this: the search takes a sample of this size and the report says so.", unit="rows", low=1
    )
    class_weights: str = setting(
        "none",
        "Class weights folded into the row weight: none, `balanced` (rows / (classes * rows of the class)), or `given`.",
        choices=("none", "balanced", "given"),
        source="scikit-learn, compute_class_weight",
    )
    class_weight_values: tuple[float, ...] = setting((), "One weight per label, in the order of the labels, for `given`.", low=0.0)
    limit: int = setting(0, "Use only this many training rows (chosen by hash, so stable); 0: all.", unit="rows", low=0)


@dataclass(frozen=True)
class TextConfig:
    """How a string becomes token ids; all of it runs in the graph (`tfpipeline.text`)."""

    unicode: str = setting(
        "NFC",
        "Unicode normalisation before anything else.",
        choices=("none", "NFC", "NFKC"),
        source="UAX #15; NFKC also folds full-width letters and ligatures",
    )
    strip_html: bool = setting(True, "Decode HTML entities (&amp;) and drop tags (<br>).")
    replace_urls: bool = setting(True, "Put the word `url` in place of a URL.")
    replace_emails: bool = setting(True, "Put the word `email` in place of an e-mail address.")
    replace_mentions: bool = setting(True, "Put the word `user` in place of an @mention.")
    strip_control: bool = setting(True, "Drop control characters; tabs and line breaks become spaces.")
    collapse_spaces: bool = setting(True, "Squeeze runs of white space into one space and trim the ends.")
    rejoin_contractions: bool = setting(
        False,
        "Turn `do n't`, as treebank corpora write it, back into `don't`: BERT's word pieces of the two differ, and it was pretrained on the second.",
    )
    lower_case: str = setting(
        "auto", "Lower-case and strip accents: `auto` does what the backbone was trained with.", choices=("auto", "yes", "no")
    )
    stop_words: tuple[str, ...] = setting(
        (),
        "Words removed before tokenising. Off by default: BERT was pretrained on whole sentences, and `not` is on every stop-word list.",
    )
    vocabulary: str = setting("", "Path of a vocab.txt; empty: the backbone's, or for `scratch:*` one learned from the training texts.")
    vocabulary_size: int = setting(8000, "Size of a learned vocabulary.", unit="word pieces", low=100, high=200_000)
    max_length: int = setting(128, "Longest token sequence, special tokens included; the rest is cut off.", unit="tokens", low=3, high=512)
    length_buckets: tuple[int, ...] = setting(
        (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 448, 512),
        "A batch is padded to the smallest of these that holds its longest row; those beyond `text.max_length` do not count.",
        unit="tokens",
        low=1,
        high=512,
    )


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and what happens inside one `train_step` (`tfpipeline.model`)."""

    backbone: str = setting(
        "sentence-transformers/all-MiniLM-L6-v2",
        "A local folder, a Hugging Face id, or `scratch:tiny|mini|small` (random weights).",
        source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0)",
    )
    pooling: str = setting(
        "mean",
        "What the classifier reads: the pooler over [CLS], or the mean of the last hidden states. `mean` is how the default backbone was trained.",
        choices=("cls", "mean"),
        source="Reimers & Gurevych 2019, arXiv:1908.10084",
    )
    dropout: float = setting(0.1, "Dropout in the encoder and before the classifier.", low=0.0, below=1.0, source="Devlin et al. 2018")
    freeze_embeddings: bool = setting(False, "Leave the embedding tables as they are.")
    freeze_layers: int = setting(0, "Leave this many of the lowest encoder layers as they are.", unit="layers", low=0)
    label_smoothing: float = setting(0.0, "Share of the target spread over all classes.", low=0.0, below=1.0, source="arXiv:1512.00567")
    clip_norm: float = setting(1.0, "Gradients are scaled down to this global norm; 0: off.", low=0.0)
    accumulation_steps: int = setting(1, "Batches whose gradients are summed before the optimizer moves.", unit="batches", low=1)
    fgm_epsilon: float = setting(
        0.0,
        "Size of the adversarial step on the word embeddings (FGM); 0: off. Doubles the cost of a step.",
        low=0.0,
        source="arXiv:1605.07725",
    )
    r_drop_alpha: float = setting(
        0.0, "Weight of the R-Drop term (two dropout passes must agree); 0: off. Doubles the cost.", low=0.0, source="arXiv:2106.14448"
    )
    ema_decay: float = setting(
        0.0, "Decay of an exponential moving average of the weights, used for evaluation and export; 0: off.", low=0.0, below=1.0
    )


@dataclass(frozen=True)
class TrainConfig:
    """The loop around the step (`tfpipeline.train`)."""

    epochs: int = setting(3, "Passes over the training split.", low=1)
    batch_size: int = setting(32, "Rows of one batch (over all replicas).", unit="rows", low=1)
    optimizer: str = setting("adamw", "Which optimizer moves the weights.", choices=("adamw", "adam", "sgd", "adafactor", "lion"))
    learning_rate: float = setting(
        1e-4,
        "Peak learning rate, at the top layer.",
        unit="change of a weight per step, before Adam's scaling",
        above=0.0,
        source="twice the 5e-5 of Devlin et al. 2018 for BERT-base: the default backbone is a fifth as large; tried in docs/decisions/0005-sst2-recipe.md",
    )
    weight_decay: float = setting(
        0.01, "Decoupled weight decay; biases and LayerNorm are spared.", low=0.0, source="Loshchilov & Hutter, arXiv:1711.05101"
    )
    schedule: str = setting("linear", "What follows the warm-up.", choices=("linear", "cosine", "constant"))
    warmup_fraction: float = setting(0.1, "Share of all steps in which the learning rate rises from 0.", low=0.0, high=1.0)
    layer_decay: float = setting(
        1.0,
        "Each encoder layer below the top learns at this times the rate of the one above; 1: off.",
        above=0.0,
        high=1.0,
        source="arXiv:1801.06146",
    )
    sparse_embedding_updates: bool = setting(
        True,
        "Move only the word-embedding rows a batch touches (row-wise Adam). A dense update of a 30,522-row table makes a step 12 % longer.",
        source="tensorflow_addons LazyAdam; measured in benchmarks/README.md, Training speed",
    )
    early_stopping_patience: int = setting(0, "Stop after this many epochs without a better `train.monitor`; 0: off.", unit="epochs", low=0)
    monitor: str = setting("accuracy", "The validation metric that picks the best checkpoint.", choices=("accuracy", "macro_f1", "loss"))
    checkpoint_minutes: float = setting(
        5.0, "A checkpoint for resuming is written this often, and after each epoch.", unit="minutes", low=0.0
    )
    checkpoint_steps: int = setting(0, "Also write one every so many steps; 0: off.", unit="steps", low=0)
    tensorboard: bool = setting(True, "Write TensorBoard event files into the run.")
    baseline_run: str = setting("", "A run that the new one must not be worse than (paired test on the same rows), or exit 3.")
    initial_weights: str = setting(
        "", "A run whose best weights training starts from; same architecture, vocabulary and labels. Empty: the backbone's weights."
    )


@dataclass(frozen=True)
class CompressConfig:
    """What happens to a model while it is trained so that it becomes smaller (`tfpipeline.techniques`); all of it is off by default."""

    sparsity: float = setting(
        0.0,
        "Share of the weights of each pruned layer that are zero at the end; 0: no pruning.",
        low=0.0,
        below=1.0,
        source="Zhu & Gupta 2017, arXiv:1710.01878",
    )
    sparsity_pattern: str = setting(
        "any",
        "Where zeros may stand: anywhere, or two in every four consecutive inputs of an output (`compress.sparsity` is then 0.5).",
        choices=("any", "2:4"),
        source="arXiv:2104.08378",
    )
    sparsity_schedule: str = setting(
        "polynomial",
        "How the sparsity grows: cubically from 0, or all at once. 2:4 is always set at once.",
        choices=("polynomial", "constant"),
    )
    sparsity_begin: float = setting(0.0, "Share of all steps after which pruning begins.", low=0.0, below=1.0)
    sparsity_end: float = setting(
        0.6, "Share of all steps at which the last weight is pruned; afterwards the others recover.", above=0.0, high=1.0
    )
    sparsity_layers: tuple[str, ...] = setting(
        ("attention", "feed_forward"), "Which Dense layers of the encoder are pruned.", choices=("attention", "feed_forward")
    )
    keep_sparsity: bool = setting(True, "Zeros of a sparse model that training starts from stay zero, also while it is quantized.")
    quantize_aware: bool = setting(False, "Train with the rounding of 8-bit inputs, weights and outputs of every matrix product.")
    distill_from: str = setting(
        "", "The teacher: a run, RUN:VARIANT, or a folder with a model. Empty: the model that training starts from."
    )
    distill_weight: float = setting(
        0.0, "Weight of the teacher's soft labels; the given labels weigh the rest. 0: off.", low=0.0, high=1.0, source="arXiv:1503.02531"
    )
    distill_temperature: float = setting(2.0, "Both distributions are softened by this before they are compared.", above=0.0, high=100.0)
    distill_hidden_weight: float = setting(
        0.0,
        "Weight of the mean squared difference of hidden states, on layers of the teacher spread evenly; 0: off.",
        low=0.0,
        source="TinyBERT, arXiv:1909.10351",
    )
    unlabelled: tuple[str, ...] = setting(
        (), "Files of more texts, in the columns of `data`, that only the teacher labels. Texts of validation and test are left out."
    )
    max_drop: float = setting(
        1.0,
        "A step of a recipe that loses more accuracy than this, on the same rows, stops the recipe.",
        unit="points",
        low=0.0,
        high=100.0,
    )


@dataclass(frozen=True)
class EvaluateConfig:
    """Metrics, intervals, slices (`tfpipeline.evaluate`)."""

    bootstrap_samples: int = setting(1000, "Resamples behind each interval.", low=100, high=100_000)
    confidence: float = setting(0.95, "Coverage of the intervals.", above=0.5, below=1.0)
    calibration_bins: int = setting(
        15, "Bins of the reliability diagram and of the expected calibration error.", low=2, high=100, source="arXiv:1706.04599"
    )
    tfidf_baseline: bool = setting(True, "Train TF-IDF + logistic regression on the same split, for comparison.")
    worst_mistakes: int = setting(20, "How many of the most confident mistakes the report shows.", low=0, high=1000)
    batch_size: int = setting(64, "Rows of one batch when predicting.", unit="rows", low=1)
    not_worse_margin: float = setting(
        0.05,
        "`retrain` takes a model when no loss of accuracy is shown and the lower end of its paired interval is not below minus this.",
        unit="share of the rows",
        low=0.0,
        high=1.0,
    )
    min_accuracy: float = setting(0.0, "The quality gate: below this accuracy on test the command exits 3; 0: no gate.", low=0.0, high=1.0)


@dataclass(frozen=True)
class ExportConfig:
    """What is published (`tfpipeline.export`)."""

    name: str = setting("", "Model name, the folder under `export.root`; empty: the run's name.")
    root: str = setting("models", "Where published models live.")
    parity_texts: int = setting(200, "Texts on which every form of the model must agree before it is published.", low=1)
    parity_tolerance: float = setting(1e-5, "Largest difference of a probability between two forms of the model.", above=0.0)
    explain_steps: int = setting(
        32,
        "Points on the path of integrated gradients in the signature `explain`; 0: the model is published without explanations.",
        unit="forward and backward passes of an explanation",
        low=0,
        high=1000,
        source="20 to 300 in arXiv:1703.01365, section 5",
    )
    golden_probes: int = setting(16, "Texts with expected probabilities kept in the manifest; `push` asks the live server these.", low=1)


@dataclass(frozen=True)
class RuntimeConfig:
    """Process state (`tfpipeline.runtime`)."""

    seed: int = setting(1, "Seed of weights, dropout and order.", low=0, high=2**31 - 1)
    deterministic: bool = setting(False, "Bit-equal reruns on the same machine (slower).")
    precision: str = setting("float32", "Compute precision; the weights stay float32.", choices=("float32", "bfloat16", "float16"))
    threads: int = setting(0, "Threads TensorFlow may use; 0: one per core.", low=0)
    strategy: str = setting("one", "tf.distribute strategy.", choices=("one", "mirrored", "multiworker"))


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. Two runs of one Config on one machine and data set see the same batches in the same order."""

    name: str = setting("model", "Name of the run and, unless `export.name` says otherwise, of the model.")
    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    compress: CompressConfig = field(default_factory=CompressConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, every key present; `load_dict` reads it back."""
        return typing.cast("dict[str, Any]", json.loads(json.dumps(dataclasses.asdict(self))))

    def digest(self) -> str:
        """Hex sha256 of the canonical JSON: equal configs, equal digests."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()
