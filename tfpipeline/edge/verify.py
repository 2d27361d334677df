"""Proof that an edge file is what it says: its hash, its description, and its answers beside those of the model it came from; and its speed here.

In: the path of a file, texts, and something to compare with. Out: plain dicts. Hash and description need LiteRT alone; a comparison with a SavedModel
needs TensorFlow.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfpipeline.edge import inspect, metadata
from tfpipeline.edge.runner import EdgeModel
from tfpipeline.errors import ConfigError, DataError, DependencyError, GateError

Probabilities = npt.NDArray[np.float32]
Predict = Callable[[Sequence[str], Sequence[str] | None], Probabilities]

FILE_NAME = "model.tflite"
# Share of texts that must keep their label, by mode. float32 may lose a tie; int8 is bounded tighter by the budget of `compress`.
AGREEMENT = {"float32": 0.995, "dynamic": 0.98, "int8": 0.90}
# The largest difference in probability that float32 may show: sums in another order.
FLOAT_DIFFERENCE = 1e-3


def find_file(path: Path) -> Path:
    """The `.tflite` itself, or the one in a version folder, or in the newest version of a model's folder.

    Raises:
        DataError: there is none.
    """
    if path.is_file():
        return path
    if path.is_dir():
        versions = sorted((folder for folder in path.iterdir() if folder.name.isdigit()), key=lambda folder: int(folder.name))
        for folder in (path, *reversed(versions)):
            if (folder / FILE_NAME).is_file():
                return folder / FILE_NAME
        raise DataError(f"{path}: holds no {FILE_NAME}. Write one: make edge, or give the path of a .tflite file.")
    raise DataError(f"{path}: no such file or folder. Give the path of a .tflite file, or of a published version that holds {FILE_NAME}.")


def check(path: Path) -> dict[str, Any]:
    """Hash, description and contents of a file.

    Raises:
        DataError: as `metadata.read`; or the description names signatures that the file does not have.
    """
    contents = metadata.read(path)
    held = inspect.signatures(contents.data)
    lengths = contents.description["lengths"]
    expected = {f"serving_{length}" for length in lengths} or {"serving_default"}
    if set(held) != expected:
        raise DataError(f"{path}: expected the signatures {sorted(expected)}, received {sorted(held)}. Write it again.")
    return {
        "file": str(path),
        "bytes": len(contents.data),
        "sha256": contents.sha256,
        "signatures": list(held),
        "matmuls": inspect.count_products(contents.data),
        "operators": inspect.operators(contents.data),
        **{key: contents.description[key] for key in ("version", "name", "mode", "form", "labels", "task", "max_length", "kept_float")},
    }


def saved_model_of(path: Path) -> tuple[Predict, dict[str, Any]] | None:
    """The SavedModel beside the file, as `predict(texts, pairs)`, and its manifest; None when there is none.

    Raises:
        DependencyError: there is one, and TensorFlow is not installed.
    """
    folder = path.parent
    if not (folder / "saved_model.pb").is_file():
        return None
    try:
        import tensorflow as tf
        import tensorflow_text  # noqa: F401  registers the ops that the model needs
    except ImportError as error:
        raise DependencyError(
            "tensorflow is not installed. Comparing with the SavedModel needs the extra: pip install 'tfpipeline[train]'. Without --verify the file "
            "is only checked against its hash."
        ) from error
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    signature = tf.saved_model.load(str(folder)).signatures["serving_default"]

    def predict(texts: Sequence[str], pairs: Sequence[str] | None) -> Probabilities:
        rows = []
        for start in range(0, len(texts), 32):
            columns = {"text": tf.constant(list(texts[start : start + 32]))}
            if pairs is not None:
                columns["text_pair"] = tf.constant(list(pairs[start : start + 32]))
            rows.append(signature(**columns)["probabilities"].numpy())
        return np.concatenate(rows)

    return predict, manifest


def compare(model: EdgeModel, reference: Predict, texts: Sequence[str], pairs: Sequence[str] | None) -> dict[str, Any]:
    """Answers beside those of the reference, on texts that both read whole.

    Raises:
        GateError: too many labels differ for the file's mode; the message shows the worst text.
    """
    whole = [row for row, length in enumerate(model.token_lengths(texts, pairs)) if length <= model.max_length]
    chosen, partners = [texts[row] for row in whole], None if pairs is None else [pairs[row] for row in whole]
    if not chosen:
        raise ConfigError(f"no text to compare on is within the {model.max_length} tokens of the file. Give shorter ones.")
    ours, theirs = model.predict(chosen, partners), reference(chosen, partners)
    same = np.all((ours > 0.5) == (theirs > 0.5), axis=1) if model.task == "multi_label" else ours.argmax(1) == theirs.argmax(1)
    apart = np.abs(ours - theirs).max(axis=1)
    mode = model.description["mode"]
    result = {
        "texts": len(chosen),
        "agreement": float(same.mean()),
        "required": AGREEMENT[mode],
        "largest_difference": float(apart.max()),
        "mean_difference": float(apart.mean()),
    }
    if not same.mean() >= AGREEMENT[mode] or (mode == "float32" and not apart.max() <= FLOAT_DIFFERENCE):
        worst = int(apart.argmax())
        raise GateError(
            f"the file answers differently from its model: {same.mean():.1%} of {len(chosen)} labels agree (mode {mode!r} needs {AGREEMENT[mode]:.1%}), "
            f"probabilities differ by up to {apart.max():.3f}, most for {chosen[worst][:80]!r}. Convert it again, or take a mode that keeps more."
        )
    return result


def measure(path: Path, texts: Sequence[str], pairs: Sequence[str] | None, threads: Sequence[int], repeats: int = 5) -> dict[str, Any]:
    """Milliseconds a text, one text at a time as a device is asked, tokenising included; and from the start of a process to its first answer."""
    rows = []
    for count in threads:
        model = EdgeModel(path, threads=count)
        model.predict(texts, pairs)  # warm: every length has been prepared once
        times = []
        for _ in range(repeats):
            for row, text in enumerate(texts):
                started = time.perf_counter()
                model.predict([text], None if pairs is None else [pairs[row]])
                times.append((time.perf_counter() - started) * 1e3)
        times.sort()
        rows.append({"threads": count, "p50_ms": statistics.median(times), "p95_ms": times[int(0.95 * (len(times) - 1))], "n": len(times)})
    cold = sorted(cold_start(path, texts[0], None if pairs is None else pairs[0]) for _ in range(3))
    return {"warm": rows, "cold_ms": {"median": cold[1], "all": cold}}


def cold_start(path: Path, text: str, pair: str | None) -> float:
    """Milliseconds from the start of a new Python process to its answer."""
    code = "import sys; from tfpipeline.edge.runner import EdgeModel; a = sys.argv; print(EdgeModel(a[1]).predict(a[2:3], a[3:] or None)[0, 0])"
    started = time.perf_counter()
    arguments = [sys.executable, "-c", code, str(path), text, *([] if pair is None else [pair])]
    subprocess.run(arguments, check=True, capture_output=True, timeout=120)  # noqa: S603  this Python running our own code
    return (time.perf_counter() - started) * 1e3
