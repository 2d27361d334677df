"""Bad gRPC requests, of all seven methods: a valid message with something done to its bytes, to any of its fields, or to its tensors and names."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from serving import wire

from .values import DEADLINE_S, ENUMS, FLOATS, INTEGERS, MOST_BYTES, MOST_ROWS, Request, Target, bad_name, bad_text, mutated_bytes, text

SHORT_S = 0.5  # of a reload that waits for models that never come
MOST_ELEMENTS = 1 << 15  # of a tensor that may fit the signature: more of them is work, not bad input
METHODS = {
    "Predict": 48, "Classify": 14, "Regress": 8, "MultiInference": 10, "GetModelMetadata": 10, "GetModelStatus": 9, "HandleReloadConfigRequest": 9,
}  # fmt: skip


def grpc_request(target: Target, rng: random.Random, number: int) -> Request:
    method = rng.choices(list(METHODS), list(METHODS.values()))[0]
    while True:
        kind, data = _grpc_data(target, rng, method)
        if not _is_load(method, data):
            break
    deadline_s, may_time_out = DEADLINE_S, False
    if method == "HandleReloadConfigRequest":
        data, waits = _harmless(target, data)
        deadline_s, may_time_out = (SHORT_S, True) if waits else (DEADLINE_S, False)
    elif rng.random() < 0.02:
        kind, deadline_s, may_time_out = "deadline", rng.choice((0.0001, 0.001, 0.01)), True
    return Request(number, "grpc", f"{method}/{kind}", method, data, deadline_s, may_time_out)


def _grpc_data(target: Target, rng: random.Random, method: str) -> tuple[str, bytes]:
    message = valid(target, rng, method)
    kind = rng.choices(
        ("bytes", "field", "fields", "tensor", "names", "many", "deep", "noise", "other method", "huge"),
        (22, 20, 12, 32, 8, 4, 3, 4, 3, 0.4),
    )[0]
    if kind == "bytes":
        return kind, mutated_bytes(rng, message.SerializeToString(deterministic=True))
    if kind in ("field", "fields"):
        for _ in range(1 if kind == "field" else rng.randrange(2, 6)):
            mutate_field(rng, target, message)
    elif kind == "tensor" and method == "Predict" and message.inputs:
        kind = f"tensor {mutate_tensor(rng, message.inputs[rng.choice(sorted(message.inputs))])}"
    elif kind in ("tensor", "names"):
        kind = "names"
        _rename(target, rng, message)
    elif kind == "many":
        _multiply(target, rng, message)
    elif kind == "deep":
        return kind, _deep(rng)
    elif kind == "noise":
        return kind, rng.choice(
            (b"", rng.randbytes(rng.randrange(1, 2000)), b"\0" * 1000, b"\xff" * 1000, json.dumps({"instances": ["x"]}).encode())
        )
    elif kind == "other method":
        return kind, valid(target, rng, rng.choice(sorted(METHODS))).SerializeToString(deterministic=True)
    elif kind == "huge" and hasattr(message, "model_spec"):
        message.model_spec.name = "h" * rng.choice((20 << 20, (64 << 20) + 1))
    return kind, message.SerializeToString(deterministic=True)


def _rename(target: Target, rng: random.Random, message: Any) -> None:
    if hasattr(message, "metadata_field") and rng.random() < 0.5:
        message.metadata_field.extend(bad_name(rng, target) for _ in range(rng.choice((1, 3))))
    if hasattr(message, "output_filter") and rng.random() < 0.5:
        message.output_filter.extend(bad_name(rng, target) for _ in range(rng.choice((1, 2, 1000))))
        return
    if hasattr(message, "config"):
        message.config.model_config_list.config[0].base_path = rng.choice(
            ("relative", "/nowhere/" + bad_name(rng, target)[:2000], "/no\0where", "", "s3://x/y")
        )
        return
    specs = [message.model_spec] if hasattr(message, "model_spec") else [task.model_spec for task in message.tasks]
    for spec in specs:
        field = rng.choice(("name", "signature_name", "version_label", "version"))
        if field == "version":
            spec.version.value = rng.choice([number for number in INTEGERS if -(2**63) <= number < 2**63])
        else:
            setattr(spec, field, bad_name(rng, target))


def _multiply(target: Target, rng: random.Random, message: Any) -> None:
    """Thousands of what there is one of."""
    count = rng.choice((1000, 5000))
    if hasattr(message, "inputs"):
        for number in range(count):
            message.inputs[f"extra {number}"].dtype = 1
    elif hasattr(message, "tasks"):
        message.tasks.extend([message.tasks[0]] * count)
    elif hasattr(message, "input"):
        message.input.example_list.examples.extend([wire.Example()] * count)
    elif hasattr(message, "metadata_field"):
        message.metadata_field.extend(["signature_def"] * count)
    elif hasattr(message, "config"):
        for number in range(200):
            message.config.model_config_list.config.add(
                name=f"m{number}", base_path=rng.choice(("/nowhere", "")), model_platform="tensorflow"
            )


def _is_load(method: str, data: bytes) -> bool:
    """Whether a server that obeyed would just be busy: see the module's docstring."""
    if method not in ("Predict", "Classify", "MultiInference", "Regress"):
        return False
    try:
        message = wire.METHODS[method][1].FromString(data)
    except Exception:  # protobuf's DecodeError class differs between its implementations
        return False
    if method != "Predict":
        kind = message.input.WhichOneof("kind")
        return bool(kind) and MOST_ROWS < len(getattr(message.input, kind).examples) <= 4096
    return any(MOST_ELEMENTS < _elements(tensor) < 1 << 30 or MOST_ROWS < _rows(tensor) <= 4096 for tensor in message.inputs.values())


def _rows(tensor: Any) -> int:
    return int(tensor.tensor_shape.dim[0].size) if tensor.tensor_shape.dim else 1


def _elements(tensor: Any) -> int:
    count = 1
    for dim in tensor.tensor_shape.dim:
        count *= dim.size
    return count


def _harmless(target: Target, data: bytes) -> tuple[bytes, bool]:
    """A reload that leaves the model alone, and whether the server may obey it: then it waits for models that never come.

    Two messages one after the other are one message with the lists of both, so the model can be put back behind whatever came before.
    """
    try:
        request = wire.ReloadConfigRequest.FromString(data)
    except Exception:  # protobuf's DecodeError class differs between its implementations
        return data, False
    if request.config.WhichOneof("config") != "model_config_list":
        return data, False
    kept = wire.ReloadConfigRequest()
    kept.config.model_config_list.config.add(name=target.model, base_path=target.base_path, model_platform="tensorflow")
    return data + kept.SerializeToString(), True


# ---- valid messages


def _array(rng: random.Random, dtype: int, rank: int) -> Any:
    """A small tensor that fits."""
    rows, length = rng.choice((1, 1, 2, 3)), rng.choice((1, 4, 9))
    shape = [rows, *[length] * (rank - 1)] if rank else []
    count = 1
    for size in shape:
        count *= size
    tensor = wire.TensorProto(dtype=dtype)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    if dtype == wire.DT_STRING:
        tensor.string_val.extend(text(rng) for _ in range(count))
    else:
        field = {1: "float_val", 2: "double_val", 9: "int64_val", 10: "bool_val", 22: "uint32_val", 23: "uint64_val"}.get(dtype, "int_val")
        getattr(tensor, field).extend([1] * rng.choice((1, count)))
    return tensor


def _spec(target: Target, rng: random.Random, spec: Any, signature: str) -> None:
    spec.name = target.model
    spec.signature_name = "" if signature == "serving_default" else signature
    if rng.random() < 0.3:
        spec.version.value = target.version


def _add_example(rng: random.Random, examples: Any) -> None:
    feature = examples.add().features.feature
    feature["text"].bytes_list.value.append(text(rng))
    if rng.random() < 0.3:
        feature["x"].float_list.value.append(1.5)
        feature["n"].int64_list.value.append(3)


def valid(target: Target, rng: random.Random, method: str) -> Any:
    """A message that an honest client could send."""
    request = wire.METHODS[method][1]()
    if method == "Predict":
        name = rng.choice(sorted(target.signatures))
        _spec(target, rng, request.model_spec, name)
        for alias, info in target.signatures[name].inputs.items():
            rank = rng.choice((0, 1, 2)) if info.tensor_shape.unknown_rank else len(info.tensor_shape.dim)
            request.inputs[alias].CopyFrom(_array(rng, info.dtype, rank))
    elif method in ("Classify", "Regress"):
        _spec(target, rng, request.model_spec, rng.choice(sorted(target.signatures)))
        _add_example(rng, request.input.example_list.examples)
        if rng.random() < 0.3:
            _add_example(rng, request.input.example_list_with_context.examples)
            request.input.example_list_with_context.context.features.feature["text"].bytes_list.value.append(text(rng))
    elif method == "MultiInference":
        for name in sorted(target.signatures)[: rng.choice((1, 2))]:
            task = request.tasks.add(method_name=rng.choice(("tensorflow/serving/classify", "tensorflow/serving/regress")))
            _spec(target, rng, task.model_spec, name)
        _add_example(rng, request.input.example_list.examples)
    elif method == "GetModelMetadata":
        _spec(target, rng, request.model_spec, "")
        request.metadata_field.append("signature_def")
    elif method == "GetModelStatus":
        _spec(target, rng, request.model_spec, "")
    else:
        added = request.config.model_config_list.config.add(name="another", base_path="/nowhere/another", model_platform="tensorflow")
        added.model_version_policy.latest.num_versions = 1
    return request


# ---- any field of a message


def _fields(message: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    """Every (message, field) below a message: also the fields that are not set, of the messages that are."""
    found = []
    for field in message.DESCRIPTOR.fields:
        found.append((message, field))
        if field.cpp_type != field.CPPTYPE_MESSAGE or depth > 8:
            continue
        value = getattr(message, field.name)
        if _is_map(field):
            below = (
                [value[key] for key in sorted(value)]
                if field.message_type.fields_by_name["value"].cpp_type == field.CPPTYPE_MESSAGE
                else []
            )
        elif _is_repeated(field):
            below = list(value)[:3]
        else:
            below = [value] if message.HasField(field.name) else []
        for one in below:
            found += _fields(one, depth + 1)
    return found


def _is_repeated(field: Any) -> bool:
    # `label` is on its way out of protobuf, and `is_repeated` is not in its older versions.
    return bool(field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED)


def _is_map(field: Any) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def _edge_value(rng: random.Random, target: Target, field: Any) -> Any:
    """A value at an edge of a field's type; one that does not fit is wrapped, as a C++ client would do without asking."""
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        return bad_text(rng) if field.type == field.TYPE_BYTES else bad_name(rng, target)
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice(FLOATS)
    if kind == field.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind == field.CPPTYPE_ENUM:
        return rng.choice(ENUMS)
    bits = 32 if kind in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
    value = rng.choice(INTEGERS) % (1 << bits)
    unsigned = kind in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64)
    return value if unsigned or value < 1 << (bits - 1) else value - (1 << bits)


def mutate_field(rng: random.Random, target: Target, request: Any) -> str:
    """Does something to one field, anywhere in a message; returns its name."""
    message, field = rng.choice(_fields(request))
    name = str(field.full_name).rpartition("serving.")[2].removeprefix("tensorflow.")
    value = getattr(message, field.name)
    # Some are large; many of them would fill the memory of whoever makes them.
    count = rng.choice((1, 1, 2, 50, 300, 3000)) if request.ByteSize() < MOST_BYTES else 1
    if _is_map(field):
        key_field, value_field = (field.message_type.fields_by_name[part] for part in ("key", "value"))
        if len(value) and rng.random() < 0.4:
            del value[rng.choice(sorted(value))]
        for number in range(count):
            key = f"k{number}" if number else _edge_value(rng, target, key_field)
            if value_field.cpp_type == field.CPPTYPE_MESSAGE:
                value[key].SetInParent()
            else:
                value[key] = _edge_value(rng, target, value_field)
    elif _is_repeated(field):
        choice = rng.randrange(4)
        if choice == 0:
            del value[:]
        elif choice == 1 and len(value):
            value.extend(list(value) * min(count, 50))
        elif field.cpp_type == field.CPPTYPE_MESSAGE:
            for _ in range(count):
                value.add()
        else:
            value.extend([_edge_value(rng, target, field)] * min(count, 50))
            value.append(_edge_value(rng, target, field))
    elif field.cpp_type == field.CPPTYPE_MESSAGE:
        if message.HasField(field.name) and rng.random() < 0.5:
            message.ClearField(field.name)
        else:
            value.SetInParent()
    else:
        setattr(message, field.name, _edge_value(rng, target, field))
    return name


# ---- tensors


def mutate_tensor(rng: random.Random, tensor: Any) -> str:
    """Does one of the things to a tensor that only a tensor can suffer; returns which."""
    kind = rng.choice(
        (
            "dtype",
            "shape",
            "rank",
            "content",
            "too few",
            "too many",
            "other field",
            "text",
            "scalar",
            "nothing",
            "nested",
            "zero",
            "half shape",
        )
    )
    if kind == "dtype":
        tensor.dtype = rng.choice((*range(24), 101, 107, *ENUMS))
    elif kind == "shape":
        sizes = rng.choice(
            (
                [-1],
                [-5, 2],
                [2**62],
                [2**62, 4],
                [2**62, 0],
                [2**31, 2**31],
                [2**32, 2**32],
                [0, -1],
                [4097],
                [1 << 22],
                [1 << 40],
                [-(2**63)],
                [7] * 3,
            )
        )
        _reshape(tensor, sizes)
    elif kind == "rank":
        _reshape(tensor, [1] * rng.choice((0, 3, 9, 33, 65, 254, 255, 1000)))
    elif kind == "content":
        tensor.tensor_content = rng.randbytes(rng.choice((1, 3, 4, 8, 100, 70_000)))
    elif kind == "too few":
        _reshape(tensor, [rng.choice((2, 5, 100))] * max(1, min(2, len(tensor.tensor_shape.dim))))
    elif kind == "too many":
        tensor.string_val.extend([b"x"] * 5000)
        tensor.int_val.extend([rng.choice((7, -1, 2**31 - 1))] * 5000)
    elif kind == "other field":
        for name in ("float_val", "double_val", "int_val", "string_val", "int64_val", "bool_val", "half_val"):
            tensor.ClearField(name)
        tensor.double_val.extend(rng.choices(FLOATS, k=4))
        tensor.half_val.extend([70_000, -1])
        tensor.scomplex_val.extend([1.0, 2.0, 3.0])
    elif kind == "text":
        tensor.dtype = wire.DT_STRING
        del tensor.string_val[:]
        tensor.string_val.extend(bad_text(rng) for _ in range(rng.choice((1, 2, 20))))
        _reshape(tensor, [len(tensor.string_val)])
    elif kind == "scalar":
        tensor.ClearField("tensor_shape")
    elif kind == "nothing":
        tensor.Clear()
    elif kind == "nested":
        inner = tensor
        for _ in range(rng.choice((3, 45, 48))):
            inner = inner.variant_val.add().tensors.add()
        tensor.dtype = rng.choice((tensor.dtype, 21))
    elif kind == "zero":
        _reshape(tensor, rng.choice(([0], [0, 5], [5, 0], [0, 0])))
    else:
        tensor.tensor_shape.unknown_rank = True
    return kind


def _reshape(tensor: Any, sizes: Sequence[int]) -> None:
    tensor.ClearField("tensor_shape")
    for size in sizes:
        tensor.tensor_shape.dim.add(size=size)


def _deep(rng: random.Random) -> bytes:
    """Message in message in message, far deeper than any parser follows; the length of each is right."""
    depth = rng.choice((90, 110, 2000))
    data = b""
    for _ in range(depth):
        for tag in (b"\x7a", b"\x1a"):  # TensorProto.variant_val (15), VariantTensorDataProto.tensors (3)
            data = tag + _varint(len(data)) + data
    return rng.choice(
        (b"\x12" + _varint(len(data) + len(_varint(len(data))) + 1) + b"\x12" + _varint(len(data)) + data, b"\x0b" * 50_000, data)
    )


def _varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])
