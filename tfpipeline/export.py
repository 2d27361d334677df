"""A trained run to a published SavedModel that takes raw text. Frees serving from tokenizers and everybody from half-published models.

In: a `Trained` (or a compressed variant of it). Out: `models/NAME/VERSION/`. Refuses to publish when any form of the model answers differently
from the trained one, when a warm-up record fails, or when the graph holds an op that stock TensorFlow Serving does not have.

| signature | in | out |
|---|---|---|
| `serving_default` | `text` string `[batch]` (and `text_pair`) | `label` string, `score` float32 `[batch]`; `probabilities`, `classes` `[batch, classes]` |
| `tokens` | `input_ids`, `attention_mask`, `token_type_ids` int32 `[batch, length]` | `logits` float32 `[batch, classes]` |
| `classify` | `inputs`: serialized `tf.Example` with `text` (and `text_pair`), string `[batch]` | `classes` string, `scores` float32 `[batch, classes]` |

Any batch size including 0, texts of any length including none. With several labels a text, `label` joins those above 0.5 by the label separator.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the ops a loaded model needs

from serving.registry import Published, Registry, open_published, sha256_of
from tfpipeline import batches
from tfpipeline.config import Config, load_dict
from tfpipeline.data import open_prepared
from tfpipeline.errors import ExportError, RunError
from tfpipeline.progress import Progress
from tfpipeline.runs import Run, git_state, read_json, utc_now
from tfpipeline.trained import Trained, load, to_probabilities, token_spec

Probabilities = npt.NDArray[np.float32]

# Ops that need the Python process or a compiler that stock TensorFlow Serving is built without.
FORBIDDEN_OPS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc", "XlaLaunch", "XlaLaunchV2", "XlaHostCompute"})
PROBE_TOLERANCE = 1e-3  # other processors round differently; a wrong model is off by far more


class Served(tf.Module):
    """The three signatures over one model and the training's own preprocessor."""

    def __init__(self, trained: Trained, assets: Path) -> None:
        super().__init__(name="classifier")
        self.weights = list(trained.model.variables)  # a bare Keras model would bring its training graphs along
        self.preprocessor = trained.preprocessor
        self.assets = [tf.saved_model.Asset(str(assets / "vocab.txt")), tf.saved_model.Asset(str(assets / "labels.txt"))]
        labels = tf.constant(list(trained.labels))
        task, separator = trained.task, trained.config.data.label_separator
        model = trained.model

        def logits_of(tokens: dict[str, tf.Tensor]) -> tf.Tensor:
            # Keras reshapes with -1, which is ambiguous for an empty batch: one row of padding goes in and is cut off again.
            rows = tf.shape(tokens["input_ids"])[0]
            extra = tf.cast(tf.equal(rows, 0), tf.int32)
            padded = {name: tf.pad(tensor, [[0, extra], [0, 0]]) for name, tensor in tokens.items()}
            padded["attention_mask"] = tf.where(tf.equal(rows, 0), tf.ones_like(padded["attention_mask"]), padded["attention_mask"])
            return model(padded, training=False).logits[:rows]

        def answer(tokens: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            probabilities = to_probabilities(logits_of(tokens), task)
            rows = tf.shape(probabilities)[0]
            if task == "multi_label":
                chosen = tf.ragged.boolean_mask(tf.tile(labels[tf.newaxis, :], [rows, 1]), probabilities > 0.5)
                label = tf.strings.reduce_join(chosen, axis=1, separator=separator)
            else:
                label = tf.gather(labels, tf.argmax(probabilities, axis=1))
            return {
                "label": label,
                "score": tf.reduce_max(probabilities, axis=1),
                "probabilities": probabilities,
                "classes": tf.tile(labels[tf.newaxis, :], [rows, 1]),
            }

        def by_example(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            names = ["text", "text_pair"] if trained.has_pairs else ["text"]
            parsed = tf.io.parse_example(inputs, {name: tf.io.FixedLenFeature([], tf.string) for name in names})
            answered = answer(self.preprocessor(*[parsed[name] for name in names]))
            return {"classes": answered["classes"], "scores": answered["probabilities"]}

        string = tf.TensorSpec([None], tf.string)
        if trained.has_pairs:
            self.serve = tf.function(
                lambda text, text_pair: answer(self.preprocessor(text, text_pair)),
                input_signature=[tf.TensorSpec([None], tf.string, "text"), tf.TensorSpec([None], tf.string, "text_pair")],
            )
        else:
            self.serve = tf.function(
                lambda text: answer(self.preprocessor(text)), input_signature=[tf.TensorSpec([None], tf.string, "text")]
            )
        spec = token_spec()
        self.tokens = tf.function(
            lambda input_ids, attention_mask, token_type_ids: {
                "logits": logits_of({"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids})
            },
            input_signature=[spec["input_ids"], spec["attention_mask"], spec["token_type_ids"]],
        )
        self.classify = tf.function(by_example, input_signature=[tf.TensorSpec(string.shape, tf.string, "inputs")])

    def signatures(self) -> dict[str, Any]:
        """By the names under which TensorFlow Serving finds them."""
        return {"serving_default": self.serve, "tokens": self.tokens, "classify": self.classify}


@dataclass
class Exported:
    """A published SavedModel, opened from its folder alone.

    Attributes:
        published: where it lies.
        manifest: its `manifest.json`.
        labels: class names in order.
        has_pairs: whether it takes two texts.
        task: `single_label` or `multi_label`.
    """

    published: Published
    manifest: dict[str, Any]
    labels: tuple[str, ...]
    has_pairs: bool
    task: str
    _loaded: Any

    @property
    def config(self) -> Config:
        """The Config of the run it was exported from."""
        return load_dict(self.manifest["config"], str(self.published.path / "manifest.json"))

    def predict(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 64, progress: bool = False
    ) -> Probabilities:
        """Probabilities float32 `[rows, classes]`, in the order of the texts."""
        result = np.zeros((len(texts), len(self.labels)), np.float32)
        lengths = np.array([len(text) for text in texts], np.int64)
        with Progress("predicting", len(texts), "texts") if progress else contextlib.nullcontext() as bar:
            for rows in batches.evaluation_plan(lengths, batch_size):
                columns = {"text": tf.constant([texts[i] for i in rows], tf.string)}
                if pairs is not None:
                    columns["text_pair"] = tf.constant([pairs[i] for i in rows], tf.string)
                result[rows] = self._loaded.signatures["serving_default"](**columns)["probabilities"].numpy()
                if bar is not None:
                    bar.update(len(rows))
        return result


def open_model(path: Path) -> Exported:
    """Opens a published model after checking every file's hash: a SavedModel is code.

    Raises:
        RegistryError: no model there, or its files are not those of its manifest.
    """
    published = open_published(path)
    published.verify()
    manifest = published.manifest
    return Exported(
        published,
        manifest,
        tuple(manifest["labels"]),
        bool(manifest["has_pairs"]),
        manifest["task"],
        tf.saved_model.load(str(published.path)),
    )


def export(run: Run, *, root: Path | None = None, name: str = "") -> Published:
    """Publishes the best model of a finished run.

    Args:
        run: a run with `metrics.json`.
        root: folder of models; default `export.root`.
        name: model name; default `export.name`, else the run's.

    Raises:
        RunError: the run is not finished.
        ExportError: parity, warm-up or the op check failed; nothing was published.
    """
    config = run.config
    if not (run.path / "metrics.json").is_file():
        raise RunError(
            f"{run.path}: is not evaluated yet (status: {run.info.get('status')}). Finish it: tfpipeline train --resume {run.path}"
        )
    metrics = read_json(run.path / "metrics.json")
    trained = load(run)
    corpus = open_prepared(run.path / "data")
    texts, pairs = _sample(corpus, config.export.parity_texts)
    registry = Registry(root or Path(config.export.root))
    with registry.publishing(name or config.export.name or config.name) as staged:
        _write(trained, staged.folder)
        ops = check_ops(staged.folder)
        reloaded = tf.saved_model.load(str(staged.folder))
        parity = check_parity(trained, reloaded, texts, pairs, config.export.parity_tolerance)
        records = write_warmup(staged.folder, trained, staged.name, texts, pairs)
        replay_warmup(staged.folder, reloaded)
        probes = _probes(trained, texts, pairs, config.export.golden_probes)
        return staged.publish(
            {
                "format": 1,
                "created": utc_now().isoformat(timespec="seconds"),
                "run": run.path.name,
                "git": git_state(),
                "versions": run.info["versions"],
                "task": trained.task,
                "has_pairs": trained.has_pairs,
                "labels": list(trained.labels),
                "signatures": {key: _describe(reloaded.signatures[key]) for key in ("serving_default", "tokens", "classify")},
                "config": config.to_dict(),
                "config_digest": config.digest(),
                "data_fingerprint": corpus.fingerprint,
                "vocabulary_sha256": sha256_of(staged.folder / "assets" / "vocab.txt"),
                "backbone": {"name": trained.backbone.name, "sha256": trained.backbone.sha256},
                "metrics": _headline(metrics),
                "gate": metrics["gate"],
                "parity": parity,
                "ops": ops,
                "warmup_records": records,
                "golden_probes": probes,
                "reference": metrics["reference"],
            }
        )


def _write(trained: Trained, folder: Path) -> None:
    assets = folder / ".assets"
    assets.mkdir()
    (assets / "vocab.txt").write_text("\n".join(trained.preprocessor.vocabulary) + "\n", encoding="utf-8")
    (assets / "labels.txt").write_text("\n".join(label.replace("\n", " ") for label in trained.labels) + "\n", encoding="utf-8")
    served = Served(trained, assets)
    tf.saved_model.save(served, str(folder), signatures=served.signatures())
    for path in assets.iterdir():
        path.unlink()
    assets.rmdir()


def check_ops(folder: Path) -> list[str]:
    """Every op of the graph and its functions, sorted.

    Raises:
        ExportError: one of them would not run in stock TensorFlow Serving (TensorFlow's and TF Text's ops, no Python, no XLA).
    """
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
    from tensorflow.python.framework import op_def_registry

    graph = SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0].graph_def
    functions = {function.signature.name for function in graph.library.function}
    ops = {node.op for node in graph.node} | {node.op for function in graph.library.function for node in function.node_def}
    bad = sorted(op for op in ops - functions if op in FORBIDDEN_OPS or op_def_registry.get(op) is None)
    bad += sorted(function.signature.name for function in graph.library.function if function.attr["_XlaMustCompile"].b)
    if bad:
        raise ExportError(
            f"{folder.parent.name}: the graph needs {', '.join(bad)}, which stock TensorFlow Serving does not have. Nothing was published."
        )
    return sorted(ops - functions)


def check_parity(trained: Trained, reloaded: Any, texts: list[str], pairs: list[str] | None, tolerance: float) -> dict[str, Any]:
    """The largest difference in probability between the trained model and each signature of the reloaded one.

    Raises:
        ExportError: naming the signature and the text that differ most.
    """
    worst: dict[str, tuple[float, str]] = {"serving_default": (0.0, ""), "tokens": (0.0, ""), "classify": (0.0, "")}
    for start in range(0, len(texts), 32):
        part = slice(start, start + 32)
        columns = [tf.constant(texts[part])] + ([tf.constant(pairs[part])] if pairs is not None else [])
        tokens = trained.preprocessor(*columns)
        eager = to_probabilities(trained.model(tokens, training=False).logits, trained.task).numpy()
        names = ["text", "text_pair"][: len(columns)]
        answers = {
            "serving_default": reloaded.signatures["serving_default"](**dict(zip(names, columns, strict=True)))["probabilities"],
            "tokens": to_probabilities(reloaded.signatures["tokens"](**tokens)["logits"], trained.task),
            "classify": reloaded.signatures["classify"](
                inputs=tf.constant([_example(row) for row in zip(*[column.numpy() for column in columns], strict=True)])
            )["scores"],
        }
        for key, value in answers.items():
            apart = np.abs(value.numpy() - eager).max(axis=1)
            row = int(apart.argmax())
            if not apart[row] <= worst[key][0]:  # also true for NaN
                worst[key] = (float(apart[row]), texts[start + row])
    for key, (difference, text) in worst.items():
        if not difference <= tolerance:
            raise ExportError(
                f"signature {key!r} of the reloaded model differs from the trained one by {difference:.3g} (allowed {tolerance:g}), most for the text "
                f"{text[:80]!r}. Nothing was published."
            )
    return {"texts": len(texts), "tolerance": tolerance, **{key: difference for key, (difference, _) in worst.items()}}


def write_warmup(folder: Path, trained: Trained, name: str, texts: list[str], pairs: list[str] | None) -> int:
    """`assets.extra/tf_serving_warmup_requests`: one Predict per length bucket, one of each other signature. Returns how many."""
    from tensorflow_serving.apis import prediction_log_pb2

    records = []
    word = next((piece for piece in trained.preprocessor.vocabulary if piece.isalpha() and piece.isascii()), "a")
    for length in trained.preprocessor.lengths:
        # As many one-piece words as just reach this bucket.
        long = [" ".join([word] * (length - 2))] if not trained.has_pairs else [" ".join([word] * max(1, length // 2 - 2))]
        log = prediction_log_pb2.PredictionLog()
        request = log.predict_log.request
        request.model_spec.name = name
        request.model_spec.signature_name = "serving_default"
        request.inputs["text"].CopyFrom(tf.make_tensor_proto(long))
        if trained.has_pairs:
            request.inputs["text_pair"].CopyFrom(tf.make_tensor_proto(long))
        records.append(log)
    tokens = trained.preprocessor(tf.constant(texts[:1]), *([tf.constant(pairs[:1])] if pairs is not None else []))
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.name = name
    log.predict_log.request.model_spec.signature_name = "tokens"
    for key, tensor in tokens.items():
        log.predict_log.request.inputs[key].CopyFrom(tf.make_tensor_proto(tensor))
    records.append(log)
    log = prediction_log_pb2.PredictionLog()
    request = log.classify_log.request
    request.model_spec.name = name
    request.model_spec.signature_name = "classify"
    row = [texts[0].encode()] + ([pairs[0].encode()] if pairs is not None else [])
    request.input.example_list.examples.append(tf.train.Example.FromString(_example(row)))
    records.append(log)
    target = folder / "assets.extra" / "tf_serving_warmup_requests"
    target.parent.mkdir()
    with tf.io.TFRecordWriter(str(target)) as writer:
        for record in records:
            writer.write(record.SerializeToString())
    return len(records)


def replay_warmup(folder: Path, reloaded: Any) -> None:
    """Runs every record as TensorFlow Serving will at load, where one failure fails the load.

    Raises:
        ExportError: naming the record.
    """
    from tensorflow_serving.apis import prediction_log_pb2

    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    for number, raw in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()):
        log = prediction_log_pb2.PredictionLog.FromString(raw)
        try:
            if log.WhichOneof("log_type") == "classify_log":
                request = log.classify_log.request
                inputs = {"inputs": tf.constant([example.SerializeToString() for example in request.input.example_list.examples])}
            else:
                request = log.predict_log.request
                inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
            reloaded.signatures[request.model_spec.signature_name](**inputs)
        except (tf.errors.OpError, KeyError, TypeError, ValueError) as error:
            raise ExportError(f"warm-up record {number} fails: {str(error).splitlines()[0][:200]}. Nothing was published.") from error


def _example(columns: Sequence[bytes]) -> bytes:
    names = ("text", "text_pair")
    features = {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value])) for name, value in zip(names, columns, strict=False)}
    serialized: bytes = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
    return serialized


def _sample(corpus: Any, count: int) -> tuple[list[str], list[str] | None]:
    """Texts of test, then validation, then train, and the awkward ones that no corpus has."""
    texts: list[str] = []
    pairs: list[str] | None = [] if corpus.has_pairs else None
    for name in ("test", "validation", "train"):
        examples = corpus.split(name)
        rows = np.arange(min(len(examples), max(0, count - len(texts))))
        more, more_pairs = examples.text_batch(rows)
        texts += more
        if pairs is not None:
            pairs += more_pairs or []
    for awkward in ("", " ", "?!", "a" * 300, "émigré 中文 🙂", "word " * 2000):
        texts.append(awkward)
        if pairs is not None:
            pairs.append(awkward)
    return texts, pairs


def _probes(trained: Trained, texts: list[str], pairs: list[str] | None, count: int) -> dict[str, Any]:
    chosen = texts[:count]
    partners = None if pairs is None else pairs[:count]
    probabilities = trained.predict(chosen, partners)
    return {
        "tolerance": PROBE_TOLERANCE,
        "texts": chosen,
        **({"text_pairs": partners} if partners is not None else {}),
        "probabilities": [[round(float(value), 7) for value in row] for row in probabilities],
    }


def _headline(metrics: dict[str, Any]) -> dict[str, Any]:
    found = metrics["metrics"]
    keys = ("accuracy", "macro_f1", "weighted_f1", "roc_auc", "log_loss", "expected_calibration_error")
    return {
        "split": metrics["split"],
        "n": found["n"],
        **{key: found[key] for key in keys},
        "temperature": found["calibration"]["temperature"],
    }


def _describe(signature: Any) -> dict[str, Any]:
    def shape(spec: Any) -> dict[str, Any]:
        return {"dtype": spec.dtype.name, "shape": [None if size is None else int(size) for size in spec.shape]}

    return {
        "inputs": {key: shape(spec) for key, spec in signature.structured_input_signature[1].items()},
        "outputs": {key: shape(spec) for key, spec in signature.structured_outputs.items()},
    }


def answers(labels: tuple[str, ...], task: str, separator: str, probabilities: Probabilities) -> Iterator[dict[str, Any]]:
    """Probabilities as a person reads them: label, score, probability of each label."""
    for row in probabilities:
        if task == "multi_label":
            label = separator.join(name for name, value in zip(labels, row, strict=True) if value > 0.5)
        else:
            label = labels[int(row.argmax())]
        yield {
            "label": label,
            "score": round(float(row.max()), 6),
            "probabilities": {name: round(float(value), 6) for name, value in zip(labels, row, strict=True)},
        }


def to_json_line(value: dict[str, Any]) -> str:
    """One line of JSON, non-ASCII text as it is."""
    return json.dumps(value, ensure_ascii=False)
