"""A trained run to a published SavedModel that takes raw text. Frees serving from tokenizers and everybody from half-published models.

In: a `Trained` (or a compressed variant of it). Out: `models/NAME/VERSION/`. Refuses to publish when any form of the model answers differently
from the trained one, when the attributions of an explanation do not add up, when a warm-up record fails, or when the graph holds an op that stock
TensorFlow Serving does not have. The signatures are those of `tfpipeline.served`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the ops a loaded model needs

from serving.registry import Published, Registry, open_published, sha256_of
from serving.scripts import SCRIPTS, main_script
from tfpipeline import batches, judge, model_card
from tfpipeline.attribution import explained
from tfpipeline.config import Config, load_dict
from tfpipeline.data import open_prepared
from tfpipeline.errors import ExportError, RunError
from tfpipeline.progress import Progress
from tfpipeline.runs import Run, git_state, read_json, utc_now
from tfpipeline.served import Served
from tfpipeline.text import Preprocessor
from tfpipeline.trained import Trained, load, to_probabilities

Probabilities = npt.NDArray[np.float32]

# Ops that need the Python process or a compiler that stock TensorFlow Serving is built without.
FORBIDDEN_OPS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc", "XlaLaunch", "XlaLaunchV2", "XlaHostCompute"})
PROBE_TOLERANCE = 1e-3  # other processors round differently; a wrong model is off by far more
# Largest gap between what the attributions add up to and the difference of the two probabilities they explain: a twentieth of the scale.
EXPLAIN_TOLERANCE = 0.05
EXPLAIN_TEXTS = 8
TOKEN_EDGES = [0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1_000_000]
CHARACTER_EDGES = [0, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 10_000_000]


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

    def explain(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Attributions of each text, one text at a time; see `tfpipeline.attribution`.

        Raises:
            ExportError: the model was published without the signature `explain`.
        """
        if "explain" not in self._loaded.signatures:
            raise ExportError(
                f"{self.published.path}: has no signature 'explain' (has: {', '.join(sorted(self._loaded.signatures))}). "
                "Export its run again, with export.explain_steps above 0."
            )
        return explained(self._loaded.signatures["explain"], texts, pairs)


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


def export(run: Run, *, root: Path | None = None, name: str = "", variant: str = "") -> Published:
    """Publishes the best model of a finished run, or a smaller variant of it.

    A variant that was converted (int8) brings its `model.tflite` along; the SavedModel beside it is the float model that file was made from.

    Args:
        run: a run with `metrics.json`.
        root: folder of models; default `export.root`.
        name: model name; default `export.name`, else the run's.
        variant: of `tfpipeline compress`; empty: the model that was trained.

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
    trained = load(run, variant)
    corpus = open_prepared(run.path / "data")
    compression: dict[str, Any] = {}
    if variant:
        compression = read_json(run.path / "compressed" / variant / "report.json")
        metrics = judge.judge_variant(trained, corpus, metrics, compression)
    texts, pairs = _sample(corpus, config.export.parity_texts)
    registry = Registry(root or Path(config.export.root))
    with registry.publishing(name or config.export.name or config.name) as staged:
        _write(trained, staged.folder)
        if compression.get("converted"):
            shutil.copyfile(run.path / "compressed" / variant / "model.tflite", staged.folder / "model.tflite")
        ops = check_ops(staged.folder)
        reloaded = tf.saved_model.load(str(staged.folder))
        parity = check_parity(trained, reloaded, texts, pairs, config.export.parity_tolerance)
        explanations = check_explanations(reloaded, texts, pairs, config.export.explain_steps)
        records = write_warmup(staged.folder, trained, staged.name)
        replay_warmup(staged.folder, reloaded)
        probes = _probes(trained, texts, pairs, config.export.golden_probes)
        manifest = {
            "format": 1,
            "created": utc_now().isoformat(timespec="seconds"),
            "run": run.path.name,
            "git": git_state(),
            "versions": run.info["versions"],
            "task": trained.task,
            "has_pairs": trained.has_pairs,
            "labels": list(trained.labels),
            "signatures": {key: _describe(signature) for key, signature in reloaded.signatures.items()},
            "config": config.to_dict(),
            "config_digest": config.digest(),
            "data_fingerprint": corpus.fingerprint,
            "vocabulary_sha256": sha256_of(staged.folder / "assets" / "vocab.txt"),
            "backbone": {"name": trained.backbone.name, "sha256": trained.backbone.sha256},
            "metrics": _headline(metrics),
            "gate": metrics["gate"],
            "parity": parity,
            "explanations": explanations,
            "ops": ops,
            "warmup_records": records,
            "golden_probes": probes,
            **({"compression": compression} if compression else {}),
            "reference": {**metrics["reference"], **text_reference(trained.preprocessor, corpus.split(metrics["split"]))},
        }
        card = model_card.render(staged.name, manifest, metrics, corpus.report)
        (staged.folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        return staged.publish(manifest)


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


def check_explanations(reloaded: Any, texts: list[str], pairs: list[str] | None, steps: int) -> dict[str, Any]:
    """The largest gap between an explanation and what it explains, on a few texts and on an empty one.

    Raises:
        ExportError: naming the text, when the gap is over `EXPLAIN_TOLERANCE` or the explained score is not the served one.
    """
    if not steps:
        return {"steps": 0}
    rows = [*range(min(EXPLAIN_TEXTS, len(texts))), texts.index("")]
    chosen, partners = [texts[row] for row in rows], None if pairs is None else [pairs[row] for row in rows]
    columns = {"text": tf.constant(chosen)} | ({} if partners is None else {"text_pair": tf.constant(partners)})
    scores = reloaded.signatures["serving_default"](**columns)["score"].numpy()
    found = explained(reloaded.signatures["explain"], chosen, partners)
    worst = max(range(len(rows)), key=lambda row: abs(found[row]["gap"]))
    apart = max(range(len(rows)), key=lambda row: abs(found[row]["score"] - scores[row]))
    largest = abs(found[worst]["gap"])
    if not largest <= EXPLAIN_TOLERANCE:
        raise ExportError(
            f"signature 'explain': the attributions miss the difference in probability by {largest:.3g} (allowed {EXPLAIN_TOLERANCE:g}) for the text "
            f"{chosen[worst][:80]!r}. Nothing was published. Raise export.explain_steps (now {steps}), or leave explanations out with 0."
        )
    if not abs(found[apart]["score"] - scores[apart]) <= PROBE_TOLERANCE:
        raise ExportError(
            f"signature 'explain': explains the score {found[apart]['score']:.6f}, but {scores[apart]:.6f} is served for the text "
            f"{chosen[apart][:80]!r}. Nothing was published."
        )
    return {"steps": steps, "texts": len(rows), "tolerance": EXPLAIN_TOLERANCE, "largest_gap": largest, "baseline": "[MASK]"}


def text_reference(preprocessor: Preprocessor, examples: Any) -> dict[str, Any]:
    """What the texts of a split look like, as the journal of a served model records it: the other half of the manifest's `reference`.

    `tokens` is what the signature `serving_default` answers: pieces after cutting. `unknown_share` is the mean of its `unknown`, each text weighing as
    many as its tokens. `characters` and `scripts` are of the texts as sent; of a pair, of the first text.
    """
    string = tf.TensorSpec([None], tf.string)
    count = tf.function(
        lambda *columns: preprocessor.count_read(preprocessor(*columns)),
        input_signature=[string] * (1 if examples.pairs is None else 2),
        autograph=False,
    )
    tokens, unknown, characters = np.zeros(len(examples), np.int64), np.zeros(len(examples)), np.zeros(len(examples), np.int64)
    scripts = dict.fromkeys(SCRIPTS, 0)
    for start in range(0, len(examples), 1024):
        rows = np.arange(start, min(start + 1024, len(examples)))
        texts, pairs = examples.text_batch(rows)
        read = count(*[tf.constant(column, tf.string) for column in (texts, pairs) if column is not None])
        tokens[rows], unknown[rows] = read[0].numpy(), read[1].numpy()
        characters[rows] = [len(text) for text in texts]
        for text in texts:
            scripts[main_script(text)] += 1
    return {
        "tokens": {"edges": TOKEN_EDGES, "counts": np.histogram(tokens, bins=TOKEN_EDGES)[0].tolist()},
        "unknown_share": round(float((unknown * tokens).sum() / max(1, tokens.sum())), 6),
        "characters": {"edges": CHARACTER_EDGES, "counts": np.histogram(characters, bins=CHARACTER_EDGES)[0].tolist()},
        "scripts": scripts,
    }


def write_warmup(folder: Path, trained: Trained, name: str) -> int:
    """`assets.extra/tf_serving_warmup_requests`: one Predict per length bucket, one of each other signature but `explain`. Returns how many.

    Explanations are not warmed up: they are rare, and a gradient through 32 points for each bucket would make every load wait.
    The texts are made up, so that no text of the data lies in the file.
    """
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
    row = [word] * (2 if trained.has_pairs else 1)
    tokens = trained.preprocessor(*[tf.constant([text]) for text in row])
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
    request.input.example_list.examples.append(tf.train.Example.FromString(_example([text.encode() for text in row])))
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
    texts, pairs = corpus.some_texts(count)
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
