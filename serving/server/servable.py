"""A loaded version: a SavedModel, or a `.tflite` file, that runs. Frees the rest of the server from TensorFlow; only this module imports it.

In: a version's folder. Out: signatures as stored, and `run_tensors`. Refuses folders without a graph of the asked tags. A SavedModel is loaded as
TensorFlow Serving does it, into a session: that takes TensorFlow 1 and 2 exports alike, feeds by the tensor *names* in the signatures, keeps state
between requests, and fails with the runtime's own messages. Session.run would check shapes in Python first, which the real server does not do:
the C function below it is called instead.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from serving import wire
from serving.server.status import NAMES, Status
from serving.wire import Array

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # as everywhere in this house; a served graph does not depend on it
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the ops that our models use
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.client import pywrap_tf_session

tf.get_logger().setLevel("ERROR")
tf.config.list_physical_devices()  # looks for devices now, and complains now, while the server holds such noise back
TENSORFLOW_VERSION: str = tf.__version__


class Runnable(Protocol):
    """What loads and runs; a batching queue puts itself in front of one."""

    signatures: Mapping[str, Any]

    def run_tensors(self, feeds: Mapping[str, Array], fetches: Sequence[str], deadline: float | None) -> list[Array]:
        """Values of the named tensors."""

    def close(self) -> None:
        """Frees its memory."""


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """TensorFlow's errors as `Status`, with the message as the C++ side wrote it."""
    try:
        yield
    except tf.errors.OpError as error:
        raise Status(NAMES.get(error.error_code, "UNKNOWN"), str(error.message)) from error
    except UnicodeDecodeError as error:
        # The message quotes bytes of the request that are not UTF-8: the wrapper could make no Python string of it, and lost the code.
        raise Status("INVALID_ARGUMENT", error.object.decode("utf-8", "replace")) from error


class SavedModelRunnable:
    """A SavedModel in a session of its own."""

    def __init__(self, path: Path, tags: frozenset[str], options: Any = None) -> None:
        """Loads it.

        Args:
            path: folder of `saved_model.pb`.
            tags: must be exactly those of one of its graphs.
            options: a `ConfigProto`.

        Raises:
            Status: with the code and message of the load error.
        """
        _check_tags(path, tags)
        self._graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=self._graph, config=options)
        try:
            with self._graph.as_default(), _translated():
                loaded = tf.compat.v1.saved_model.load(self._session, sorted(tags), str(path))
        except Exception as error:
            self._session.close()
            if isinstance(error, Status):
                raise
            # The Python loader refuses some broken files with ValueError, KeyError, OSError and others.
            raise Status("UNKNOWN", f"{type(error).__name__}: {str(error)[:500]}") from error
        self.signatures: Mapping[str, Any] = {
            name: wire.SignatureDef.FromString(value.SerializeToString()) for name, value in loaded.signature_def.items()
        }
        self._outputs: dict[str, Any] = {}

    def run_tensors(self, feeds: Mapping[str, Array], fetches: Sequence[str], deadline: float | None) -> list[Array]:
        """Values of the tensors `fetches`, with `feeds` by tensor name.

        Raises:
            Status: what the runtime says; DEADLINE_EXCEEDED after `deadline` (of `time.monotonic`).
        """
        options = None
        if deadline is not None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise Status("DEADLINE_EXCEEDED", "Deadline exceeded before the model ran")
            run_options = tf.compat.v1.RunOptions(timeout_in_ms=max(1, int(remaining * 1000)))
            options = pywrap_tf_session.TF_NewBufferFromString(run_options.SerializeToString())
        try:
            with _translated():
                values = pywrap_tf_session.TF_SessionRun_wrapper(
                    self._session._session,
                    options,
                    {self._output(name): value for name, value in feeds.items()},
                    [self._output(name) for name in fetches],
                    [],
                    None,
                )
        finally:
            if options is not None:
                pywrap_tf_session.TF_DeleteBuffer(options)
        # The wrapper gives Python scalars for rank 0.
        return [np.asarray(value, np.object_) if isinstance(value, bytes) else np.asarray(value) for value in values]

    def _output(self, name: str) -> Any:
        found = self._outputs.get(name)
        if found is None:
            try:
                found = self._graph.get_tensor_by_name(name if ":" in name else f"{name}:0")._as_tf_output()
            except (KeyError, ValueError) as error:
                raise Status("NOT_FOUND", f"FetchOutputs or feed {name}: not found in the graph") from error
            self._outputs[name] = found
        return found

    def close(self) -> None:
        """Frees the session, its variables and the graph."""
        self._session.close()
        self._outputs.clear()


def _check_tags(path: Path, tags: frozenset[str]) -> None:
    """The loader's own checks, with the real server's messages."""
    file = path / "saved_model.pb"
    if not file.is_file():
        if (path / "saved_model.pbtxt").is_file():
            return
        raise Status("NOT_FOUND", f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {path}")
    try:
        graphs = SavedModel.FromString(file.read_bytes()).meta_graphs
    except Exception as error:  # protobuf's DecodeError class differs between its implementations
        raise Status("DATA_LOSS", f"Can't parse {file} as binary proto") from error
    if not any(frozenset(graph.meta_info_def.tags) == tags for graph in graphs):
        raise Status(
            "NOT_FOUND",
            f"Could not find meta graph def matching supplied tags: {{ {' '.join(sorted(tags))} }}. To inspect available tag-sets in the SavedModel, "
            "please use the SavedModel CLI: `saved_model_cli`",
        )


class TfliteRunnable:
    """A `.tflite` file. One interpreter, one request at a time.

    Signatures are those of the file's `signature_defs_metadata` when it has it, else the inputs and outputs of its main graph by tensor name.
    """

    def __init__(self, path: Path) -> None:
        """Loads it.

        Raises:
            Status: the file is no TensorFlow Lite model.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tf.lite.Interpreter is deprecated for a package that the server does not otherwise need
            try:
                self._interpreter = tf.lite.Interpreter(model_path=str(path))
                self._interpreter.allocate_tensors()
            except (ValueError, RuntimeError) as error:
                raise Status("INVALID_ARGUMENT", f"Failed to load TensorFlow Lite model {path}: {str(error)[:300]}") from error
        self._lock = threading.Lock()
        self._inputs = {_plain(one["name"]): one for one in self._interpreter.get_input_details()}
        self._results = {_plain(one["name"]): one for one in self._interpreter.get_output_details()}
        self.signatures: Mapping[str, Any] = _metadata_signatures(path) or {"serving_default": self._by_tensor_name()}

    def _by_tensor_name(self) -> Any:
        signature = wire.SignatureDef(method_name="tensorflow/serving/predict")
        for target, details in ((signature.inputs, self._inputs), (signature.outputs, self._results)):
            for name, one in details.items():
                info = target[name]
                info.name = name
                info.dtype = tf.as_dtype(one["dtype"]).as_datatype_enum
                for size in one["shape_signature"]:
                    info.tensor_shape.dim.add(size=int(size))
        return signature

    def run_tensors(self, feeds: Mapping[str, Array], fetches: Sequence[str], deadline: float | None) -> list[Array]:
        """Values of the tensors `fetches`.

        Raises:
            Status: wrong dtype or shape, a tensor that is not there, or a failing op.
        """
        with self._lock:
            if deadline is not None and time.monotonic() >= deadline:
                raise Status("DEADLINE_EXCEEDED", "Deadline exceeded before the model ran")
            try:
                wanted = [self._details(self._results, name) for name in fetches]
                for name, value in feeds.items():
                    self._resize(self._details(self._inputs, name), value)
                self._interpreter.allocate_tensors()
                for name, value in feeds.items():
                    self._interpreter.set_tensor(self._details(self._inputs, name)["index"], value)
                self._interpreter.invoke()
                return [np.asarray(self._interpreter.get_tensor(one["index"])) for one in wanted]
            except (ValueError, RuntimeError) as error:
                raise Status("INVALID_ARGUMENT", str(error)[:500]) from error

    def _resize(self, details: dict[str, Any], value: Array) -> None:
        if list(value.shape) != list(self._interpreter.get_tensor(details["index"]).shape):
            self._interpreter.resize_tensor_input(details["index"], list(value.shape))

    def _details(self, table: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
        try:
            return table[_plain(name)]
        except KeyError:
            raise Status("INVALID_ARGUMENT", f"Tensor {name} not found in the TensorFlow Lite model") from None

    def close(self) -> None:
        """Nothing to free before the object is gone."""


def _plain(name: str) -> str:
    return name.removesuffix(":0")


def _metadata_signatures(path: Path) -> dict[str, Any]:
    """Signatures from the metadata buffer `signature_defs_metadata`: a flexbuffer map of serialized SignatureDefs."""
    from flatbuffers import flexbuffers
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.Model.GetRootAsModel(path.read_bytes(), 0)
    for index in range(model.MetadataLength()):
        if model.Metadata(index).Name() == b"signature_defs_metadata":
            data = model.Buffers(model.Metadata(index).Buffer()).DataAsNumpy().tobytes()
            found = flexbuffers.Loads(bytearray(data))
            return {
                str(name): wire.SignatureDef.FromString(value if isinstance(value, bytes) else value.encode("latin-1"))
                for name, value in found.items()
            }
    return {}


def load(path: Path, *, tags: frozenset[str], prefer_tflite: bool, options: Any = None) -> Runnable:
    """The version in a folder, ready to run.

    Raises:
        Status: why it cannot be loaded.
    """
    if prefer_tflite and (path / "model.tflite").is_file():
        return TfliteRunnable(path / "model.tflite")
    return SavedModelRunnable(path, tags, options)


def session_options(*, intra: int, inter: int, text: str = "") -> Any:
    """A `ConfigProto` from the flags, or from its text form.

    Raises:
        Status: the text does not parse.
    """
    from google.protobuf import text_format

    options = tf.compat.v1.ConfigProto()
    if text:
        try:
            text_format.Parse(text, options)
        except text_format.ParseError as error:
            raise Status("INVALID_ARGUMENT", f"Error parsing text-format tensorflow.ConfigProto: {error}") from error
    else:
        options.intra_op_parallelism_threads, options.inter_op_parallelism_threads = intra, inter
    return options


def read_records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file.

    Raises:
        Status: DATA_LOSS when it is none.
    """
    try:
        with _translated():
            yield from tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    except Status as error:
        if error.code != "DATA_LOSS":
            raise
        raise Status("DATA_LOSS", f"{error.message}. Please verify your warmup data is in TFRecord format.") from error
