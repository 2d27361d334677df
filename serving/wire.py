"""TensorFlow Serving's messages without TensorFlow. Frees everybody from the half-gigabyte import behind the official package.

The message classes are built from `tensorflow_serving_api.binpb`, the official package's own descriptors, in a *private* pool: registering the
same names in protobuf's default pool would clash as soon as the process imports TensorFlow too. Bytes from either side parse on the other.

In: numpy arrays, method names. Out: `TensorProto` messages and back, method paths. Refuses arrays and tensors of a type that TensorFlow Serving
does not carry, and tensors whose bytes do not fit their shape.

| dtype | array | tensor |
|---|---|---|
| string | object array of `bytes` (in: `str` too) | `string_val` |
| bool, integers, float16, float32, float64, complex | the same dtype | `tensor_content`, or the typed fields |
| bfloat16 | float32 in and out; packed as bfloat16 only when asked | `half_val`, `tensor_content` |
"""

from __future__ import annotations

import contextlib
import math
import types
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

Array = npt.NDArray[Any]


def _pool() -> tuple[descriptor_pool.DescriptorPool, tuple[Any, ...]]:
    pool = descriptor_pool.DescriptorPool()
    data = (Path(__file__).parent / "tensorflow_serving_api.binpb").read_bytes()
    files = descriptor_pb2.FileDescriptorSet.FromString(data).file
    for file in files:
        pool.AddSerializedFile(file.SerializeToString())
    found = [message for file in files for message in pool.FindFileByName(file.name).message_types_by_name.values()]
    for message in found:
        found.extend(message.nested_types)  # the list grows while it is walked
    return pool, tuple(message_factory.GetMessageClass(message) for message in found)


# Every class, of nested messages and map entries too, is held for as long as the process lives. protobuf keeps them by addresses that do not count
# as references: a class of which only messages are left can be collected while another thread makes a message of it, and that thread then crashes
# the process (protobuf 7.36.2, PyUpb_Descriptor_GetDef on a cleared class; seen in a server under load).
POOL, _CLASSES = _pool()


def message(name: str) -> Any:
    """The class of a message by its full name, such as `tensorflow.serving.PredictRequest`."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))


TensorProto = message("tensorflow.TensorProto")
TensorShapeProto = message("tensorflow.TensorShapeProto")
Example = message("tensorflow.Example")
SignatureDef = message("tensorflow.SignatureDef")
ModelSpec = message("tensorflow.serving.ModelSpec")
Input = message("tensorflow.serving.Input")
PredictRequest = message("tensorflow.serving.PredictRequest")
PredictResponse = message("tensorflow.serving.PredictResponse")
ClassificationRequest = message("tensorflow.serving.ClassificationRequest")
ClassificationResponse = message("tensorflow.serving.ClassificationResponse")
RegressionRequest = message("tensorflow.serving.RegressionRequest")
RegressionResponse = message("tensorflow.serving.RegressionResponse")
MultiInferenceRequest = message("tensorflow.serving.MultiInferenceRequest")
MultiInferenceResponse = message("tensorflow.serving.MultiInferenceResponse")
GetModelMetadataRequest = message("tensorflow.serving.GetModelMetadataRequest")
GetModelMetadataResponse = message("tensorflow.serving.GetModelMetadataResponse")
SignatureDefMap = message("tensorflow.serving.SignatureDefMap")
GetModelStatusRequest = message("tensorflow.serving.GetModelStatusRequest")
GetModelStatusResponse = message("tensorflow.serving.GetModelStatusResponse")
ModelVersionStatus = message("tensorflow.serving.ModelVersionStatus")
ReloadConfigRequest = message("tensorflow.serving.ReloadConfigRequest")
ReloadConfigResponse = message("tensorflow.serving.ReloadConfigResponse")
ModelServerConfig = message("tensorflow.serving.ModelServerConfig")
PredictionLog = message("tensorflow.serving.PredictionLog")

# (service, method) -> (path, request class, response class); the path is what gRPC puts on the wire.
METHODS: dict[str, tuple[str, Any, Any]] = {
    method.name: (
        f"/{service}/{method.name}",
        message_factory.GetMessageClass(method.input_type),
        message_factory.GetMessageClass(method.output_type),
    )
    for service in ("tensorflow.serving.PredictionService", "tensorflow.serving.ModelService")
    for method in POOL.FindServiceByName(service).methods
}

# DataType numbers (tensorflow/core/framework/types.proto), both ways, by their lower-case names: `float`, `int32`, `string`.
DTYPE_NAMES: types.MappingProxyType[int, str] = types.MappingProxyType(
    {value.number: value.name.removeprefix("DT_").lower() for value in POOL.FindEnumTypeByName("tensorflow.DataType").values}
)
STATES: types.MappingProxyType[int, str] = types.MappingProxyType(
    {value.number: value.name for value in POOL.FindEnumTypeByName("tensorflow.serving.ModelVersionStatus.State").values}
)
DT_FLOAT, DT_STRING, DT_INT64, DT_HALF, DT_BFLOAT16 = 1, 7, 9, 19, 14

# DataType number -> (numpy dtype, typed field). bfloat16 is read as float32 through its bits.
_FIELDS: dict[int, tuple[Any, str]] = {
    1: (np.float32, "float_val"),
    2: (np.float64, "double_val"),
    3: (np.int32, "int_val"),
    4: (np.uint8, "int_val"),
    5: (np.int16, "int_val"),
    6: (np.int8, "int_val"),
    7: (np.object_, "string_val"),
    8: (np.complex64, "scomplex_val"),
    9: (np.int64, "int64_val"),
    10: (np.bool_, "bool_val"),
    14: (np.uint16, "half_val"),
    17: (np.uint16, "int_val"),
    18: (np.complex128, "dcomplex_val"),
    19: (np.float16, "half_val"),
    22: (np.uint32, "uint32_val"),
    23: (np.uint64, "uint64_val"),
}
_NUMBERS: dict[Any, int] = {np.dtype(dtype): number for number, (dtype, _) in _FIELDS.items() if number not in (DT_BFLOAT16, DT_STRING)}
MAX_ELEMENTS = 1 << 31
MAX_RANK = 32  # numpy 1 has no more, and TensorFlow crashes on string arrays of more


def to_tensor(values: Any, *, dtype: int = 0, typed_fields: bool = False) -> Any:
    """An array as a `TensorProto`.

    Args:
        values: an array of any supported dtype, or what `numpy.asarray` makes one of; `str` is encoded as UTF-8.
        dtype: DataType number to send; 0 takes the array's own. `DT_BFLOAT16` rounds float32 to nearest even.
        typed_fields: `float_val` and its like, as TensorFlow Serving answers, instead of the faster `tensor_content`.

    Raises:
        ValueError: a dtype that TensorFlow Serving does not carry, complex values or dates for a real type, or an object array with something else
            than text in it.
    """
    array = _as_array(values)
    if dtype == DT_STRING or array.dtype.kind in "OSU":
        return _string_tensor(array)
    number = dtype or _NUMBERS.get(array.dtype.newbyteorder("="), 0)
    if array.dtype.name == "bfloat16":
        number, array = dtype or DT_BFLOAT16, array.astype(np.float32)
    if number not in _FIELDS:
        raise ValueError(f"dtype {array.dtype}: TensorFlow Serving carries strings, bool, integers, float16/32/64, bfloat16 and complex.")
    numpy_dtype, field = _FIELDS[number]
    if array.dtype.kind not in "biufc" or (array.dtype.kind == "c" and np.dtype(numpy_dtype).kind != "c"):
        raise ValueError(f"dtype {array.dtype} as {DTYPE_NAMES[number]}: the values would lose their meaning. Convert the array first.")
    array = _to_bfloat16_bits(array) if number == DT_BFLOAT16 else np.ascontiguousarray(array, numpy_dtype).reshape(array.shape)
    tensor = TensorProto(dtype=number, tensor_shape=_shape(array.shape))
    if not typed_fields:
        tensor.tensor_content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    elif array.dtype.kind == "c":
        getattr(tensor, field).extend(array.ravel().view(np.float32 if number == 8 else np.float64).tolist())
    elif field == "half_val":
        tensor.half_val.extend(array.ravel().view(np.uint16).tolist())
    else:
        getattr(tensor, field).extend(array.ravel().tolist())
    return tensor


def _as_array(values: Any) -> Array:
    if isinstance(values, np.ndarray):
        return values
    with contextlib.suppress(UnicodeDecodeError):  # bytes and text mixed
        array = np.asarray(values)
        if array.dtype.kind not in "SU":
            return array
    # numpy's own string types drop NULs at the end.
    return np.array(values, np.object_)


def to_array(tensor: Any, *, max_elements: int = MAX_ELEMENTS) -> Array:
    """A `TensorProto` as an array: `bytes` objects for strings, float32 for bfloat16.

    As in TensorFlow, fewer typed values than elements repeat the last one (none: zeros), more are ignored, and no shape is a scalar.

    Raises:
        ValueError: no or unknown dtype, an impossible shape, or content of the wrong size.
    """
    if tensor.dtype not in _FIELDS:
        raise ValueError(f"tensor of dtype {DTYPE_NAMES.get(tensor.dtype, tensor.dtype)}: not a type that can be read.")
    dtype, field = _FIELDS[tensor.dtype]
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    count = math.prod(shape) if len(shape) <= MAX_RANK else 0
    if tensor.tensor_shape.unknown_rank or len(shape) > MAX_RANK or any(size < 0 for size in shape) or count >= max_elements:
        raise ValueError(f"tensor of shape {list(shape)}: expected at most 32 sizes of 0 and more, and fewer than {max_elements} elements.")
    if tensor.tensor_content and tensor.dtype != DT_STRING:
        if len(tensor.tensor_content) != count * np.dtype(dtype).itemsize:
            raise ValueError(
                f"tensor_content of {len(tensor.tensor_content)} bytes does not hold {count} values of {np.dtype(dtype).name}."
            )
        array = np.frombuffer(tensor.tensor_content, np.dtype(dtype).newbyteorder("<")).astype(dtype, copy=False)
    else:
        if tensor.tensor_content:
            raise ValueError("string tensor with tensor_content: strings are read from string_val.")
        array = _from_values(getattr(tensor, field), dtype, field, count)
    if tensor.dtype == DT_BFLOAT16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.reshape(shape)


def _from_values(values: Any, dtype: Any, field: str, count: int) -> Array:
    if dtype is np.object_:
        # Repeating one huge string costs nothing: all elements are the same object.
        strings = list(values[:count])
        strings += [strings[-1] if strings else b""] * (count - len(strings))
        array = np.empty(count, np.object_)
        array[:] = strings
        return array
    if field in ("scomplex_val", "dcomplex_val"):
        parts = np.array(values[: 2 * count], np.float32 if field == "scomplex_val" else np.float64)
        given = parts[: len(parts) // 2 * 2].view(dtype)
    elif field == "half_val":
        given = (np.array(values[:count], np.int64) & 0xFFFF).astype(np.uint16).view(dtype)
    else:
        # int_val is int32 on the wire and carries the small types; like TensorFlow, what does not fit wraps around.
        given = np.array(values[:count], np.int64).astype(dtype) if field == "int_val" else np.array(values[:count], dtype)
    if len(given) == count:
        return given
    array = np.zeros(count, dtype)
    array[: len(given)] = given
    if len(given):
        array[len(given) :] = given[-1]
    return array


def _string_tensor(array: Array) -> Any:
    tensor = TensorProto(dtype=DT_STRING, tensor_shape=_shape(array.shape))
    for value in array.ravel().tolist():
        if isinstance(value, str):
            # Bytes that were not UTF-8 travel as surrogates in Python; on the wire they are bytes again.
            value = value.encode("utf-8", "surrogateescape")
        if not isinstance(value, bytes):
            raise ValueError(f"expected text (str or bytes), received {type(value).__name__}: {str(value)[:40]!r}.")
        tensor.string_val.append(value)
    return tensor


def _shape(shape: tuple[int, ...]) -> Any:
    return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])


def _to_bfloat16_bits(array: Array) -> Array:
    bits = np.ascontiguousarray(array, np.float32).reshape(array.shape).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(np.asarray(array, np.float32)), np.uint16(0x7FC0), rounded)
