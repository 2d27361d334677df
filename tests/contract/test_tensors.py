"""Tensors there and back: every dtype, every way to write one in a request, and the typed fields of the answers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2

from tests.contract.conftest import Served, refused
from tests.contract.saved_models import ECHO_DTYPES

VALUES: dict[str, Any] = {
    "float": np.array([0.1, -1.5, np.inf], np.float32),
    "double": np.array([0.1, -1e300], np.float64),
    "int32": np.array([-(2**31), 2**31 - 1], np.int32),
    "uint8": np.array([0, 255], np.uint8),
    "int16": np.array([-(2**15), 2**15 - 1], np.int16),
    "int8": np.array([-128, 127], np.int8),
    "string": np.array([b"", b"\xff\x00", "zürich".encode()], object),
    "complex64": np.array([1 + 2j, -0.5j], np.complex64),
    "int64": np.array([-(2**63), 2**63 - 1], np.int64),
    "bool": np.array([True, False]),
    "bfloat16": np.array([0.1, -3.0, 1e38], ml_dtypes.bfloat16),
    "uint16": np.array([0, 65535], np.uint16),
    "complex128": np.array([1 + 2j, -0.1j], np.complex128),
    "half": np.array([0.1, -65504.0], np.float16),
    "uint32": np.array([0, 2**32 - 1], np.uint32),
    "uint64": np.array([0, 2**64 - 1], np.uint64),
}
FIELDS = {
    "float": "float_val", "double": "double_val", "int32": "int_val", "uint8": "int_val", "int16": "int_val", "int8": "int_val", "string": "string_val",
    "complex64": "scomplex_val", "int64": "int64_val", "bool": "bool_val", "bfloat16": "half_val", "uint16": "int_val", "complex128": "dcomplex_val",
    "half": "half_val", "uint32": "uint32_val", "uint64": "uint64_val",
}  # fmt: skip


def _content(dtype: str, value: Any) -> Any:
    """A tensor that carries its values in `tensor_content`; strings cannot."""
    tensor = _typed(dtype, FIELDS[dtype], value.tolist() if dtype == "string" else [], [len(value)])
    if dtype != "string":
        tensor.tensor_content = value.tobytes()
    return tensor


def _typed(dtype: str, field: str, values: Any, shape: list[int] | None) -> Any:
    tensor = tensor_pb2.TensorProto(dtype=tf.as_dtype(dtype).as_datatype_enum)
    if shape is not None:
        tensor.tensor_shape.CopyFrom(
            tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in shape])
        )
    getattr(tensor, field).extend(values)
    return tensor


@pytest.mark.parametrize("form", ["typed", "content"])
@pytest.mark.parametrize("dtype", ECHO_DTYPES)
def test_every_dtype_there_and_back(static: Served, dtype: str, form: str) -> None:
    value = VALUES[dtype]
    sent = _content(dtype, value) if form == "content" else _typed_from(dtype, value)
    answer = static.client.predict("echo", {"x": sent}, signature=dtype).outputs["y"]
    assert answer.dtype == tf.as_dtype(dtype).as_datatype_enum
    assert answer.tensor_content == b""
    assert len(getattr(answer, FIELDS[dtype])) == len(value) * (2 if dtype.startswith("complex") else 1)
    received = tf.make_ndarray(answer)
    assert received.dtype == value.dtype
    assert received.tolist() == value.tolist()


def _typed_from(dtype: str, value: Any) -> Any:
    if dtype.startswith("complex"):
        flat = value.view(np.float32 if dtype == "complex64" else np.float64).tolist()
    elif dtype in ("half", "bfloat16"):
        flat = value.view(np.uint16).tolist()
    else:
        flat = value.tolist()
    return _typed(dtype, FIELDS[dtype], flat, [len(value)])


@pytest.mark.parametrize("shape", [[], [0], [1], [2, 3], [1, 0, 2], [1, 1, 1, 1, 1]], ids=str)
@pytest.mark.parametrize("dtype", ["float", "string", "int64"])
def test_every_shape_there_and_back(static: Served, dtype: str, shape: list[int]) -> None:
    value = np.zeros(shape, {"float": np.float32, "string": object, "int64": np.int64}[dtype])
    if dtype == "string":
        value[...] = b"a"
    answer = static.client.predict("echo", {"x": _typed(dtype, FIELDS[dtype], value.ravel().tolist(), shape)}, signature=dtype).outputs["y"]
    assert [dim.size for dim in answer.tensor_shape.dim] == shape
    assert tf.make_ndarray(answer).tolist() == value.tolist()


def test_no_shape_is_a_scalar(static: Served) -> None:
    answer = static.client.predict("echo", {"x": _typed("float", "float_val", [2.5], None)}, signature="float").outputs["y"]
    assert len(answer.tensor_shape.dim) == 0
    assert list(answer.float_val) == [2.5]


@pytest.mark.parametrize(
    ("dtype", "given", "expected"),
    [
        ("float", [1.0, 2.0], [1.0, 2.0, 2.0, 2.0]),
        ("float", [], [0.0, 0.0, 0.0, 0.0]),
        ("float", [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0]),
        ("int8", [3], [3, 3, 3, 3]),
        ("bool", [True], [True] * 4),
        ("uint64", [], [0, 0, 0, 0]),
        ("string", [b"a", b"b"], [b"a", b"b", b"b", b"b"]),
        ("string", [], [b"", b"", b"", b""]),
        ("string", [b"a", b"b", b"c", b"d", b"e"], [b"a", b"b", b"c", b"d"]),
    ],
    ids=str,
)
def test_too_few_values_repeat_the_last_and_too_many_are_ignored(static: Served, dtype: str, given: Any, expected: Any) -> None:
    assert static.client.values("echo", {"x": _typed(dtype, FIELDS[dtype], given, [4])}, signature=dtype) == expected


@pytest.mark.parametrize(
    ("dtype", "given", "expected"),
    [("complex64", [1.0, 2.0], [1 + 2j] * 2), ("half", [0x3C00], [1.0, 1.0]), ("bfloat16", [0x3F80], [1.0, 1.0])],
)
def test_the_same_for_types_that_are_packed(static: Served, dtype: str, given: Any, expected: Any) -> None:
    assert static.client.values("echo", {"x": _typed(dtype, FIELDS[dtype], given, [2])}, signature=dtype) == expected


def _broken(**fields: Any) -> Any:
    return tensor_pb2.TensorProto(**fields)


@pytest.mark.parametrize(
    "tensor",
    [
        _broken(float_val=[1.0]),
        _broken(dtype=types_pb2.DT_FLOAT, tensor_content=b"\x00" * 5),
        _broken(dtype=types_pb2.DT_FLOAT, tensor_content=b"\x00" * 8),
        _broken(dtype=types_pb2.DT_STRING, tensor_content=b"abc"),
        _broken(dtype=types_pb2.DT_FLOAT, tensor_shape={"unknown_rank": True}, float_val=[1.0]),
        _broken(dtype=types_pb2.DT_FLOAT, tensor_shape={"dim": [{"size": -1}]}, float_val=[1.0]),
        _broken(dtype=types_pb2.DT_RESOURCE, tensor_shape={"dim": [{"size": 1}]}),
        _broken(dtype=999),
        _broken(dtype=types_pb2.DT_FLOAT, tensor_shape={"dim": [{"size": 2**40}, {"size": 2**40}]}, float_val=[1.0]),
    ],
    ids=[
        "no dtype",
        "five bytes",
        "two floats in a scalar",
        "string content",
        "unknown rank",
        "negative size",
        "resource",
        "no such dtype",
        "enormous",
    ],
)
def test_a_tensor_that_cannot_be_read(static: Served, tensor: Any) -> None:
    found = refused(static.client.predict, "echo", {"x": tensor}, signature="float")
    assert (found.code, found.details) == ("INVALID_ARGUMENT", "tensor parsing error: x")


def test_difference_a_few_bytes_cannot_claim_a_huge_tensor(static: Served) -> None:
    """The real server allocates what a shape claims, because a missing value repeats the last one."""
    claims = _typed("float", "float_val", [1.0], [100_000_000])
    found = refused(static.client.predict, "echo", {"x": claims}, signature="float")
    assert (found.code, found.details) == ("INVALID_ARGUMENT", "tensor parsing error: x")


def test_a_signature_without_inputs(static: Served) -> None:
    assert static.client.predict("counter", {}, signature="get_counter").outputs["output"].dtype == types_pb2.DT_FLOAT
