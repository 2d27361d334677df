"""A `Trained` to a `.tflite`. The only stage here that needs TensorFlow.

In: a trained model, a mode and lengths. Out: `Converted(data, report)`: the finished file with its metadata, and what was done. Refuses lengths that the
model has no positions for, int8 without calibration texts, and a converted file whose answers are not those of the model.

| mode | weights | products | for |
|---|---|---|---|
| `float32` | float | float | reference; a GPU delegate |
| `dynamic` | int8 | int8, factors quantized while running | CPUs: phones, a Raspberry Pi, servers |
| `int8` | int8 | int8 with fixed ranges | NPUs, microcontrollers; needs calibration texts |

| form | takes | operators |
|---|---|---|
| `ids` | `ids`, `mask`, `segment_ids` int32 `[1, length]` | built-in ones only |
| `text` | `text` string `[1]`, cleaned | TensorFlow Text's word pieces beside the built-in ones |

`lengths = ()` makes one graph that takes any length: the fastest on CPUs, because nothing is padding, and the form that MediaPipe reads. Several lengths make
one signature each, `serving_16`, ..., over one set of weights, for hardware that wants shapes to be known.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import tensorflow as tf
import tensorflow_text as tf_text

from tfpipeline import __version__
from tfpipeline.edge import inspect, metadata, probe
from tfpipeline.edge.calibration import calibrate
from tfpipeline.edge.graph import INPUTS, EdgeGraph, Lookup, dense_layers
from tfpipeline.edge.tables import Int4Table, Int8Table
from tfpipeline.errors import ConfigError, ExportError
from tfpipeline.trained import Trained

MODES = ("float32", "dynamic", "int8")
FORMS = ("ids", "text")


@dataclass(frozen=True)
class Converted:
    """A finished file.

    Attributes:
        data: the bytes of the `.tflite`.
        report: `mode`, `form`, `lengths`, `bytes`, `matmuls` (counts of int8, dynamic, float), `int8_share`, `kept_float`, `table_bits`, `operators`.
    """

    data: bytes
    report: dict[str, Any]


def convert(
    trained: Trained,
    *,
    mode: str = "dynamic",
    form: str = "ids",
    lengths: Sequence[int] = (),
    calibration: Sequence[str] = (),
    calibration_pairs: Sequence[str] | None = None,
    keep_float: Sequence[str] = (),
    table_bits: int = 8,
) -> Converted:
    """Converts; see the module's docstring.

    Args:
        trained: the model; Dense layers that training wrapped with quantizers are converted with the ranges they learned.
        mode: `float32`, `dynamic` or `int8`.
        form: `ids` or `text`.
        lengths: of the signatures, special tokens included; empty: one graph of any length. Those above `text.max_length` are left out.
        calibration: real texts, those of training: `int8` takes its ranges from them, `dynamic` balances its inputs with them, and does without where none are given.
        calibration_pairs: their second texts.
        keep_float: matrix products that stay in float in mode `int8`, by name or pattern (`layer_5/output`, `*/scores`).
        table_bits: of a number in the table of word pieces, 8 or 4; 4 needs calibration texts.

    Raises:
        ConfigError: an argument is wrong.
        ExportError: the model cannot be converted.
    """
    kept_lengths = _checked(trained, mode, form, lengths, keep_float)
    if table_bits not in (4, 8) or (table_bits == 4 and (mode == "float32" or not calibration)):
        raise ConfigError(
            f"table_bits: expected 8, or 4 with mode 'dynamic' or 'int8' and calibration texts, received {table_bits} with mode {mode!r} and {len(calibration)} texts."
        )
    learned = is_quantized(trained)
    longest = trained.config.text.max_length
    quantizers = calibrate(trained, calibration, calibration_pairs, keep_float, longest) if mode == "int8" and not learned else None
    balanced = mode == "dynamic" and not learned and bool(calibration)
    rows = probe.token_rows(trained, calibration, calibration_pairs, longest) if balanced or table_bits == 4 else []
    if mode == "float32":
        graph = EdgeGraph(trained, fuse=not learned)
    else:
        weight = trained.model.bert.embeddings.weight
        # Where a graph holds fake quantization, the converter leaves every other weight in float, unless it is rounded in the graph.
        fake = learned or mode == "int8"
        lookup: Lookup = Int8Table(weight, fake=fake) if table_bits == 8 else Int4Table(weight, probe.table_sensitivity(trained, rows))
        if quantizers is None:
            balance = probe.column_scales(trained, rows).balance if balanced else {}
            graph = EdgeGraph(trained, lookup=lookup, fuse=not learned, balance=balance)
        else:
            layers = dense_layers(trained.model)
            kernels = {name: Int8Table(layers[name].kernel, fake=True) for name in quantizers.kept if name in layers}
            graph = quantizers.graph(trained, stored=kernels, lookup=lookup)
    functions = {"serving_default": _from_text(trained, graph)} if form == "text" else _from_ids(graph, kept_lengths)
    model = _converted(functions, trained, graph, mode, form)
    report: dict[str, Any] = {
        "mode": mode,
        "form": form,
        "lengths": list(kept_lengths),
        "matmuls": inspect.count_products(model),
        "kept_float": list(quantizers.kept) if quantizers else [],
        "quantization_aware": learned,
        "table_bits": 32 if mode == "float32" else table_bits,
        "operators": inspect.operators(model),
    }
    report["int8_share"] = report["matmuls"]["int8"] / max(1, sum(report["matmuls"].values()))
    data = metadata.attach(model, describe(trained, report), trained.preprocessor.vocabulary, inspect.inputs(model))
    return Converted(data, {**report, "bytes": len(data)})


def describe(trained: Trained, report: dict[str, Any]) -> dict[str, Any]:
    """What the file says about itself, `tfpipeline.json`."""
    config = trained.config
    switches = ("unicode", "strip_html", "replace_urls", "replace_emails", "replace_mentions", "strip_control", "collapse_spaces")
    settings = asdict(config.text)
    return {
        "version": __version__,
        "name": config.name,
        "labels": list(trained.labels),
        "task": trained.task,
        "label_separator": config.data.label_separator,
        "has_pairs": trained.has_pairs,
        "columns": {"text": config.data.text, "text_pair": config.data.text_pair},
        "max_length": max(report["lengths"]) if report["lengths"] else config.text.max_length,
        "text": {
            **{key: settings[key] for key in (*switches, "rejoin_contractions")},
            "stop_words": list(config.text.stop_words),
            "lower_case": trained.preprocessor.lower_case,
        },
        "backbone": trained.backbone.name,
        **{key: report[key] for key in ("mode", "form", "lengths", "matmuls", "kept_float", "quantization_aware", "table_bits")},
    }


def is_quantized(trained: Trained) -> bool:
    """Whether it was trained with the rounding of int8, and so has ranges of its own."""
    return bool(trained.model.quantization)


def _checked(trained: Trained, mode: str, form: str, lengths: Sequence[int], keep_float: Sequence[str]) -> tuple[int, ...]:
    if mode not in MODES:
        raise ConfigError(f"mode: expected one of {', '.join(MODES)}, received {mode!r}.")
    if form not in FORMS:
        raise ConfigError(f"form: expected one of {', '.join(FORMS)}, received {form!r}.")
    if keep_float and mode != "int8":
        raise ConfigError(f"keep_float belongs to mode 'int8', received mode {mode!r}. Leave it out.")
    if form == "text":
        if trained.has_pairs:
            raise ConfigError("form 'text' is for models of one text, received a model of pairs. Write form 'ids'.")
        return ()
    longest = trained.config.text.max_length
    if any(length < 3 for length in lengths):
        raise ConfigError(f"lengths: expected 3 tokens or more each, received {list(lengths)}.")
    # The model was never trained beyond `text.max_length`; the signature that is asked for above it becomes one of exactly that length.
    kept = sorted({min(length, longest) for length in lengths})
    return tuple(kept)


def _from_ids(graph: EdgeGraph, lengths: tuple[int, ...]) -> dict[str, Any]:
    """One concrete function a length."""
    functions = {}
    for length in lengths or (None,):
        specs = [tf.TensorSpec([1, length], tf.int32, name=name) for name in INPUTS]
        function = tf.function(
            lambda ids, mask, segment_ids: {"probabilities": graph(ids, mask, segment_ids)}, input_signature=specs, autograph=False
        )
        functions[f"serving_{length}" if length else "serving_default"] = function.get_concrete_function()
    return functions


def _from_text(trained: Trained, graph: EdgeGraph) -> Any:
    """Word pieces by TensorFlow Text's operators, then the same graph.

    Cleaning is left to the caller: its regular expressions are TensorFlow's operators, which neither LiteRT nor TensorFlow Text's registerer brings.
    """
    preprocessor = trained.preprocessor
    vocabulary = list(preprocessor.vocabulary)
    tokenizer = tf_text.FastBertTokenizer(
        vocab=vocabulary, max_bytes_per_word=400, token_out_type=tf.int32, lower_case_nfd_strip_accents=preprocessor.lower_case
    )
    first, last = ([vocabulary.index(token)] for token in ("[CLS]", "[SEP]"))
    room = trained.config.text.max_length - 2

    def answer(text: tf.Tensor) -> dict[str, tf.Tensor]:
        ids = tf.concat([first, tokenizer.tokenize(text).flat_values[:room], last], 0)[tf.newaxis]
        return {"probabilities": graph(ids, tf.ones_like(ids), tf.zeros_like(ids))}

    return tf.function(answer, input_signature=[tf.TensorSpec([1], tf.string, name="text")], autograph=False).get_concrete_function()


def _converted(functions: dict[str, Any], trained: Trained, graph: EdgeGraph, mode: str, form: str) -> bytes:
    holder = tf.Module()
    # The variables alone: saving the model itself would trace all its layers and ask for the metrics of training.
    holder.weights = [*trained.model.weights]
    holder.tables = [graph.lookup, *graph.stored.values()]
    with tempfile.TemporaryDirectory() as folder, _silent():
        tf.saved_model.save(holder, folder, signatures=functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(functions))
        if mode != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if form == "text":
            converter.allow_custom_ops = True
        try:
            data: bytes = converter.convert()
        except Exception as error:  # the converter raises its own classes and plain ones
            reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
            raise ExportError(f"the converter refused the model in mode {mode!r}, form {form!r}: {reason}") from error
    return data


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The converter writes its thoughts to file descriptor 2 whatever the log level."""
    kept, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)
