"""The results of a client, and the messages they are read from and asked with. Frees `serving.conversation` from protobuf and numpy.

In: what a caller passes (texts, arrays, dicts of features); responses of TensorFlow Serving. Out: columns and `tf.Example`s to send; small
dataclasses. Refuses what cannot be sent (`RequestError`) and answers that cannot be read (`ModelFailed`), naming the input, row or output.
Does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serving import wire
from serving.errors import ModelFailed, RequestError
from serving.wire import Array

CODES = {value.number: value.name for value in wire.POOL.FindEnumTypeByName("tensorflow.error.Code").values}
NUMPY_NAMES = {"float": "float32", "double": "float64", "half": "float16"}


@dataclass(frozen=True)
class Response:
    """One request that is over, answered or not, for `on_response`.

    Attributes:
        version: that answered; 0 when none did.
        method: `Predict`, `Classify` or `Regress`.
        seconds: from sending the attempt that was answered to its answer; of a request that failed, from the first attempt to the end.
        rows: texts, examples, or the first axis of the inputs (1 when they share none).
        request: the message sent; it is the caller's data, so do not log it blindly.
        response: the message received; None when the request failed.
        request_id: under which it was sent.
        code: name of the gRPC status: `OK`, or why it failed.
        version_label: by which the caller asked for the version, or "".
    """

    model: str
    version: int
    method: str
    seconds: float
    rows: int
    request: Any = field(repr=False)
    response: Any = field(repr=False)
    request_id: str = ""
    code: str = "OK"
    version_label: str = ""


@dataclass(frozen=True)
class Prediction:
    """The answer for one text; `id` is that of its record in the journals, to which feedback is given."""

    label: str
    score: float
    probabilities: dict[str, float]
    id: str = field(default="", compare=False)


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers for all texts, in their order. Iterating or indexing gives one `Prediction`.

    Attributes:
        labels: one a text; several joined by the model's separator if it is a multi-label one.
        scores: float32 `[texts]`.
        probabilities: float32 `[texts, classes]`.
        classes: names of the second axis; empty for no texts, because then the server names none.
        version: the one version that answered all of them.
        request_id: of the call, as the journals have it; a call that went in several requests sent `<request_id>.1` and so on with the later ones.
        ids: of each text's record in the journals, `<request id>:<row>`.
    """

    labels: list[str]
    scores: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    classes: tuple[str, ...]
    model: str
    version: int
    request_id: str = ""
    ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Prediction:
        row = self.probabilities[index]
        return Prediction(
            self.labels[index],
            float(self.scores[index]),
            {name: float(p) for name, p in zip(self.classes, row, strict=True)},
            self.ids[index] if self.ids else "",
        )

    def __iter__(self) -> Iterator[Prediction]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, eq=False)
class TensorResult:
    """Outputs of a signature as arrays (text as `bytes` objects); `result["name"]` is one of them."""

    outputs: dict[str, Array]
    model: str
    version: int
    signature: str
    request_id: str = ""

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]


class Class(NamedTuple):
    """One class of one example."""

    label: str
    score: float


@dataclass(frozen=True, eq=False)
class Classifications:
    """One tuple of classes an example, as the model orders them (not by score). `version` is 0 when nobody was asked: no examples."""

    rows: tuple[tuple[Class, ...], ...]
    model: str
    version: int
    request_id: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Class, ...]:
        return self.rows[index]


@dataclass(frozen=True, eq=False)
class Regressions:
    """float32 `[examples]`. `version` is 0 when nobody was asked: no examples."""

    values: npt.NDArray[np.float32]
    model: str
    version: int
    request_id: str = ""

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> float:
        return float(self.values[index])


@dataclass(frozen=True)
class VersionStatus:
    """`state` is START, LOADING, AVAILABLE, UNLOADING or END; `code` and `message` say why a load failed (`OK` and empty if it did not)."""

    version: int
    state: str
    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.version} ({self.state})" if self.code == "OK" else f"{self.version} ({self.state}, {self.code}: {self.message})"


class TensorSpec(NamedTuple):
    """`shape`: None for an axis of any size; None as a whole for any rank."""

    dtype: str
    shape: tuple[int | None, ...] | None


class Signature(NamedTuple):
    """What a signature takes and gives, by name."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    method_name: str


@dataclass(frozen=True)
class ModelMetadata:
    """The signatures of one version, without TensorFlow's internal ones (`__saved_model_...`)."""

    model: str
    version: int
    signatures: dict[str, Signature]


def text_column(name: str, values: Any) -> Array:
    """Texts as bytes objects `[texts]`; one text is a list of one."""
    texts = [values] if isinstance(values, str | bytes) else list(values)
    for row, text in enumerate(texts):
        if not isinstance(text, str | bytes):
            raise RequestError(f"predict: {name}[{row}] is {type(text).__name__}: expected str. Turn it into text, or leave the row out.")
    array = np.empty(len(texts), np.object_)
    try:
        array[:] = [text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text for text in texts]
    except UnicodeEncodeError as error:
        raise RequestError(f"predict: {name}: {error}. Replace the half of a character that is alone.") from error
    return array


def to_input(which: object, name: str, value: Any) -> Any:
    """An array, or a `TensorProto` as it is. Python's own numbers become float32 and int32 as in TensorFlow, arrays keep their dtype."""
    if hasattr(value, "tensor_content"):
        return value if isinstance(value, wire.TensorProto) else wire.TensorProto.FromString(value.SerializeToString())
    array = _as_array(which, f"input {name!r}", value)
    if not hasattr(value, "__array__"):
        if array.dtype == np.float64:
            return array.astype(np.float32)
        if array.dtype == np.int64 and np.array_equal(small := array.astype(np.int32), array):
            return small
    return array


def _as_array(which: object, what: str, value: Any) -> Array:
    try:
        array = np.asarray(value)
        # numpy's fixed-width text drops trailing zero bytes; object arrays keep them.
        return np.array(value, np.object_) if array.dtype.kind in "SU" and not hasattr(value, "__array__") else array
    except UnicodeDecodeError:  # str and bytes in one list
        return np.array(value, np.object_)
    except ValueError as error:
        raise RequestError(f"{which}: {what}: {error}. Give a rectangular array.") from error


def row_sizes(columns: Mapping[str, Any]) -> npt.NDArray[np.int64] | None:
    """Bytes of each row; None when the inputs are not all arrays with the same first axis."""
    arrays = [value for value in columns.values() if isinstance(value, np.ndarray) and value.ndim]
    if not arrays or len(arrays) < len(columns) or len({len(array) for array in arrays}) != 1:
        return None
    sizes = np.zeros(len(arrays[0]), np.int64)
    for array in arrays:
        if array.dtype.kind == "O":
            each = np.array([_bytes_of(value) + 8 for value in array.ravel().tolist()], np.int64)  # 8: the framing of one string
            sizes += each.reshape(len(array), array.size // max(1, len(array))).sum(axis=1)
        else:
            sizes += array.nbytes // max(1, len(array))
    return sizes


def _bytes_of(value: Any) -> int:
    return len(value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else len(value) if isinstance(value, bytes) else 0


def to_example(which: object, what: str, values: Mapping[str, Any]) -> Any:
    """A `tf.Example`: text and bytes, floats, or integers (bool as 0 and 1); a single value is a list of one."""
    message = wire.Example()
    for name, value in values.items():
        feature = message.features.feature[name]
        array = _as_array(which, f"{what}, feature {name!r}", value)
        try:
            if not array.size:
                continue  # an empty list has no kind; the server takes it as missing
            if array.dtype.kind in "OSU":
                feature.bytes_list.value.extend(wire.to_tensor(array).string_val)
            elif array.dtype.kind in "biu":
                feature.int64_list.value.extend(int(value) for value in array.ravel().tolist())
            elif array.dtype.kind == "f":
                feature.float_list.value.extend(array.ravel().tolist())
            else:
                raise ValueError(f"expected text, numbers or booleans, received {array.dtype}")
        except ValueError as error:
            raise RequestError(f"{which}: {what}, feature {name!r}: {error}") from error
    return message


def to_arrays(which: object, response: Any, rows: int | None) -> dict[str, Array]:
    """The outputs of a `PredictResponse`, each with one answer a row when `rows` says how many were asked."""
    answers = {}
    for name, tensor in response.outputs.items():
        try:
            answers[name] = array = wire.to_array(tensor)
        except ValueError as error:
            raise ModelFailed(
                f"{which}: output {name!r} cannot be read: {error} Look at the model's signature: client.metadata()."
            ) from error
        if rows is not None and (not array.ndim or len(array) != rows):
            raise ModelFailed(f"{which}: output {name!r} has shape {list(array.shape)} for {rows} rows: expected one answer a row.")
    return answers


def joined(which: object, answers: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The outputs of all parts, one after the other on the first axis."""
    if len(answers) == 1:
        return dict(answers[0])
    whole = {}
    for name in answers[0]:
        arrays = [answer[name] for answer in answers]
        try:
            whole[name] = np.concatenate(arrays)
        except ValueError as error:
            shapes = sorted({str(list(array.shape[1:])) for array in arrays})
            raise RequestError(
                f"{which}: output {name!r}: rows of the shapes {', '.join(shapes)} came in several requests and cannot be joined. "
                f"Raise rows_per_request, so that all rows go in one."
            ) from error
    return whole


def version_of(responses: Sequence[Any]) -> int:
    """The version that answered, 0 if none did or the server does not say."""
    return int(responses[0].model_spec.version.value) if responses else 0


def to_text(value: bytes) -> str:
    """UTF-8; what is not stays as surrogates, which go back as the same bytes."""
    return value.decode("utf-8", "surrogateescape")


def to_statuses(response: Any) -> tuple[VersionStatus, ...]:
    """A `GetModelStatusResponse`, newest version first."""
    found = [
        VersionStatus(
            one.version, wire.STATES.get(one.state, str(one.state)), CODES.get(one.status.error_code, "UNKNOWN"), one.status.error_message
        )
        for one in response.model_version_status
    ]
    return tuple(sorted(found, key=lambda status: -status.version))


def to_metadata(model: str, response: Any) -> ModelMetadata:
    """A `GetModelMetadataResponse`."""

    def specs(tensors: Any) -> dict[str, TensorSpec]:
        found = {}
        for name, info in tensors.items():
            dtype = wire.DTYPE_NAMES.get(info.dtype, str(info.dtype))
            dims = tuple(None if dim.size < 0 else int(dim.size) for dim in info.tensor_shape.dim)
            found[name] = TensorSpec(NUMPY_NAMES.get(dtype, dtype), None if info.tensor_shape.unknown_rank else dims)
        return found

    stored = wire.SignatureDefMap.FromString(response.metadata["signature_def"].value).signature_def
    signatures = {
        name: Signature(specs(one.inputs), specs(one.outputs), one.method_name)
        for name, one in stored.items()
        if not name.startswith("__saved_model_")
    }
    return ModelMetadata(model, int(response.model_spec.version.value), signatures)
