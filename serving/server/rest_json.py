"""TensorFlow Serving's JSON, both ways. Frees the REST edge from shapes, dtypes, base64 and the exact look of an answer.

Pure functions: bytes of a request body in, arrays and messages out; arrays and messages in, bytes of an answer out. Nothing here knows of the
network or of loaded models. Refuses (with `Status`, in TensorFlow Serving's words) what is not JSON or not a request, ragged lists, values of
another type than the signature's, and output types that JSON does not carry.

| JSON | tensor |
|---|---|
| any number | float, double; float overflows to infinity |
| integer | int8/16/32, uint8 (in the range of int32, then wrapped), int64, uint32, uint64 |
| `true`, `false` | bool |
| string, `{"b64": "..."}` | string |

Deliberately not as the original: brackets nested deeper than Python's parser follows, and text that is not UTF-8, are refused as parse errors
(the original answers 400 to the former later, and takes any bytes); a value quoted in an error is cut after 1024 characters.
"""

from __future__ import annotations

import binascii
import itertools
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from google.protobuf import json_format

from serving import wire
from serving.server.status import Status, invalid
from serving.wire import Array

# Of a larger body only that something is wrong with it is said: looking for it takes microseconds an element.
MAX_EXPLAINED = 50_000
MAX_QUOTED = 1024
_INDENT = "    "
_INT32 = (-(1 << 31), (1 << 31) - 1)
# DataType number -> (numpy dtype, smallest and largest JSON integer). The small types travel as int32 and wrap around, as in TensorFlow.
_INTEGERS: dict[int, tuple[Any, tuple[int, int]]] = {
    3: (np.int32, _INT32),
    4: (np.uint8, _INT32),
    5: (np.int16, _INT32),
    6: (np.int8, _INT32),
    9: (np.int64, (-(1 << 63), (1 << 63) - 1)),
    22: (np.uint32, (0, (1 << 32) - 1)),
    23: (np.uint64, (0, (1 << 64) - 1)),
}
_FLOATS: dict[int, Any] = {1: np.float32, 2: np.float64}
_DT_BOOL = 10
_BASE64 = re.compile(r"[A-Za-z0-9+/]*")
_BLANKS, _WHITESPACE = re.compile(r"[ \t-\r]+"), re.compile(r"[ \t\n\r]*")
_SURROGATE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|\\u[dD][c-fC-F]")
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_TOO_BIG = "JSON Parse error: Number too big to be stored in double."
# Python's words -> rapidjson's, which clients of TensorFlow Serving see.
_PARSE_ERRORS = {
    "Expecting value": "Invalid value.",
    "Expecting property name": "Missing a name for object member.",
    "Illegal trailing comma before end of object": "Missing a name for object member.",
    "Illegal trailing comma before end of array": "Invalid value.",
    "Expecting ':'": "Missing a colon after a name of object member.",
    "Unterminated string": "Missing a closing quotation mark in string.",
    "Invalid control character": "Invalid encoding in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX": "Incorrect hex digit after \\u escape in string.",
}


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else dict(reversed(pairs))


# An infinity that is none of these objects is a number that did not fit: told apart without a Python call per number.
_CONSTANTS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_DECODER = json.JSONDecoder(object_pairs_hook=_first_wins, parse_constant=_CONSTANTS.__getitem__)
_ENCODER = json.JSONEncoder(ensure_ascii=False, indent=4)


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object at the start of a request body; what follows it is ignored, the first of equal keys wins.

    Args:
        body: the bytes as they came, already inflated.

    Returns:
        The object, made of Python's own dict, list, str, int, float, bool and None.

    Raises:
        Status: INVALID_ARGUMENT; nothing there, not JSON, not UTF-8, nested too deeply, or not an object.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    body = body.removeprefix(b"\xef\xbb\xbf")
    try:
        document = _parse(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        # What follows the first document is ignored, whatever it is.
        text = body[: error.start].decode("utf-8")
        try:
            document = _parse(text)
        except Status:
            raise _parse_error("Invalid encoding in string.", text, len(text)) from None
    if type(document) is not dict:
        raise _refusal(document, "Is not object")
    return document


def _parse(text: str) -> Any:
    start = _WHITESPACE.match(text).end()  # type: ignore[union-attr]  # matches the empty text too
    if start == len(text):
        raise _parse_error("The document is empty.", text, start)
    surrogate = _SURROGATE.search(text)
    try:
        document = _DECODER.raw_decode(text, start)[0]
        if surrogate:
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise invalid(f"JSON Parse error: Brackets are nested too deeply; a tensor has at most {wire.MAX_RANK} dimensions.") from None
    except json.JSONDecodeError as error:
        raise _parse_error(_words(text, error), text, error.pos) from None
    except UnicodeEncodeError:  # which is a ValueError
        raise _parse_error("The surrogate pair in string is invalid.", text, surrogate.start() if surrogate else 0) from None
    except ValueError:
        # Python refuses to read integers of thousands of digits.
        raise invalid(_TOO_BIG) from None
    return document


def _words(text: str, error: json.JSONDecodeError) -> str:
    for python, words in _PARSE_ERRORS.items():
        if error.msg.startswith(python):
            return words
    before, at = text[error.pos - 1 : error.pos], text[error.pos : error.pos + 1]
    if before.isdigit() and at in (".", "e", "E"):
        return "Miss fraction part in number." if at == "." else "Miss exponent in number."
    opened: list[str] = []
    for bracket in re.findall(r"[\[\]{}]", _STRING.sub("", text[max(0, error.pos - 20 * MAX_EXPLAINED) : error.pos])):
        if bracket in "[{":
            opened.append(bracket)
        else:
            opened[-1:] = []
    return "Missing a comma or ] after an array element." if opened[-1:] == ["["] else "Missing a comma or } after an object member."


def _fits(number: int | float) -> bool:
    if type(number) is int:
        return abs(number) <= sys.float_info.max
    return not math.isinf(number) or any(number is constant for constant in _CONSTANTS.values())


def _parse_error(words: str, text: str, position: int) -> Status:
    return invalid(f"JSON Parse error: {words} at offset: {len(text[:position].encode('utf-8'))}")


def signature_name(document: Mapping[str, Any]) -> str:
    """What `signature_name` says, or the empty string.

    Raises:
        Status: INVALID_ARGUMENT; it is not a string.
    """
    name = document.get("signature_name", "")
    if type(name) is not str:
        raise _refusal(document, "not formatted correctly. 'signature_name' key must be a string value.")
    return name


def _refusal(value: Any, words: str) -> Status:
    return invalid(f"JSON Value: {_quoted(value)} {words}")


def _quoted(value: Any) -> str:
    """A value as an error message shows it."""
    if type(value) is float:
        within = math.isfinite(value) and abs(value) <= float(np.finfo(np.float32).max)
        return _decimals(np.array([value], np.float32 if within else np.float64))[0]
    text = ""
    for part in _ENCODER.iterencode(value):
        text += part
        if len(text) > MAX_QUOTED:
            return text[:MAX_QUOTED] + "...TRUNCATED"
    return text


def predict_inputs(document: Mapping[str, Any], signature: Any, name: str) -> tuple[dict[str, Array], bool]:
    """The tensors of a predict request.

    Args:
        document: what `parse_object` made of the body.
        signature: the `SignatureDef` that is called.
        name: its name as it was asked for, for the error message; empty when none was.

    Returns:
        Arrays by input name (object arrays of bytes for strings), and whether the request was in row format (`instances`).

    Raises:
        Status: INVALID_ARGUMENT; UNIMPLEMENTED for an input type that JSON does not carry.
    """
    types = {key: signature.inputs[key].dtype for key in sorted(signature.inputs)}
    if not types:
        raise invalid(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    if "instances" in document:
        instances = document["instances"]
        if "inputs" in document:
            raise _refusal(document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ")
        if type(instances) is not list:
            raise _refusal(document, "Expecting 'instances' to be an list/array")
        if not instances:
            raise _refusal(document, "No values in 'instances' array")
        return _rows(instances, types), True
    if "inputs" in document:
        return _columns(document["inputs"], types), False
    raise invalid("Missing 'inputs' or 'instances' key")


def _is_base64(value: Any) -> bool:
    return type(value) is dict and len(value) == 1 and type(value.get("b64")) is str


def _is_object(value: Any) -> bool:
    return type(value) is dict and not _is_base64(value)


def _rows(instances: list[Any], types: dict[str, int]) -> dict[str, Array]:
    objects = _is_object(instances[0])
    if not objects and len(types) > 1:
        raise invalid("instances is a plain list, but expecting list of objects as multiple input tensors required as per tensorinfo_map")
    columns: dict[str, list[Any]] = {}
    if all(_is_object(element) == objects and (not objects or element.keys() == types.keys()) for element in instances):
        columns = {name: [element[name] for element in instances] for name in types} if objects else {next(iter(types)): instances}
    arrays = {name: array for name, column in columns.items() if (array := _dense(column, types[name])) is not None}
    if not columns or len(arrays) < len(columns):
        _refuse_rows(instances, types, objects)
    return arrays


def _refuse_rows(instances: list[Any], types: dict[str, int], objects: bool) -> NoReturn:
    """Says what is wrong with the first wrong element, in the order in which TensorFlow Serving reads them."""
    shapes: dict[str, tuple[list[int], int]] = {}
    steps = itertools.count()
    for number, element in enumerate(instances):
        if _is_object(element) != objects:
            wrong = "object but got list" if objects else "value/list but got object"
            raise invalid(f"Expecting {wrong} at item {number} of input list")
        named = element if objects else {next(iter(types)): element}
        for name, value in named.items():
            key = f" key: {name}" if objects else ""
            try:
                if name not in types:
                    raise invalid(f"JSON object: does not have named input: {name}")
                shape = _shape_of(value, name)
                size = _check(value, 0, shape, types[name], steps)
                first, first_size = shapes.setdefault(name, (shape, size))
                if size != first_size:
                    raise invalid(f"Expecting tensor size: {first_size} but got: {size}")
                if shape != first:
                    raise invalid(f"Expecting shape {first} but got: {shape}".replace(", ", ","))
            except Status as error:
                raise invalid(f"Failed to process element: {number}{key} of 'instances' list. Error: {error}") from None
        if objects and element.keys() != types.keys():
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. JSON object: {_quoted(element)} keys must be equal to: "
                + ",".join(types)
            )
    # All that is left is one dimension too many, that of the rows.
    raise invalid(f"tensor parsing error: {next(iter(types))}")


def _columns(inputs: Any, types: dict[str, int]) -> dict[str, Array]:
    if not _is_object(inputs):
        if len(types) > 1:
            raise invalid("inputs is a plain value/list, but expecting an object as multiple input tensors required as per tensorinfo_map")
        inputs = {next(iter(types)): inputs}
    arrays: dict[str, Array] = {}
    for name, dtype in types.items():
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        array = _dense(inputs[name], dtype)
        if array is None:
            _check(inputs[name], 0, _shape_of(inputs[name], name), dtype, itertools.count())
            raise invalid(f"tensor parsing error: {name}")
        arrays[name] = array
    return arrays


def _dense(value: Any, dtype: int) -> Array | None:
    """The array of a value, level by level rather than element by element; None when something is wrong with it."""
    flat, shape = ([value], []) if type(value) is not list else (value, [len(value)])
    while shape and flat and type(flat[0]) is list:
        size = len(flat[0])
        if len(shape) == wire.MAX_RANK or set(map(type, flat)) != {list} or set(map(len, flat)) != {size}:
            return None
        shape.append(size)
        flat = list(itertools.chain.from_iterable(flat))
    array = _elements(flat, dtype)
    return None if array is None else array.reshape(shape)


def _elements(flat: list[Any], dtype: int) -> Array | None:
    kinds = set(map(type, flat))
    if dtype in _FLOATS:
        if not kinds <= {int, float}:
            return None
        try:
            array = np.array(flat, np.float64)
        except OverflowError:
            return None
        if not np.isfinite(array).all() and not all(map(_fits, flat)):
            return None
        with np.errstate(over="ignore"):
            return array.astype(_FLOATS[dtype], copy=False)
    if dtype in _INTEGERS:
        final, (smallest, largest) = _INTEGERS[dtype]
        if not kinds <= {int} or (flat and not (smallest <= min(flat) and max(flat) <= largest)):
            return None
        return np.array(flat, np.uint64 if final is np.uint64 else np.int64).astype(final, copy=False)
    if dtype == _DT_BOOL:
        return np.array(flat, np.bool_) if kinds <= {bool} else None
    if dtype == wire.DT_STRING and kinds <= {str, dict}:
        try:
            values = [value.encode("utf-8") if type(value) is str else _from_base64(value) for value in flat]
        except Status:
            return None
        array = np.empty(len(values), np.object_)
        array[:] = values
        return array
    return None


def _from_base64(value: Any) -> bytes:
    if not _is_base64(value):
        raise _refusal(value, "not formatted correctly for base64 data")
    text = _BLANKS.sub("", value["b64"])
    bare = text.rstrip("=")
    padding = len(text) - len(bare)
    missing = -len(bare) % 4
    # Padding may be left out, but not be wrong.
    if not _BASE64.fullmatch(bare) or missing == 3 or padding not in (0, missing):
        raise invalid("Unable to base64 decode")
    return binascii.a2b_base64(bare + "=" * missing)


def _shape_of(value: Any, name: str) -> list[int]:
    shape: list[int] = []
    while type(value) is list:
        shape.append(len(value))
        value = value[0] if value else None
    if len(shape) > wire.MAX_RANK:
        raise invalid(f"tensor parsing error: {name}")
    return shape


def _check(value: Any, level: int, shape: Sequence[int], dtype: int, steps: Iterator[int]) -> int:
    """The number of elements, or what is wrong with the first wrong one. No deeper than `wire.MAX_RANK`."""
    if next(steps) > MAX_EXPLAINED:
        raise invalid("tensor parsing error")
    rank = len(shape)
    if type(value) is list:
        if level >= rank:
            raise invalid(f"Encountered list at unexpected level: {level} expected < {rank}")
        if len(value) != shape[level]:
            raise invalid(f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}")
        return sum(_check(element, level + 1, shape, dtype, steps) for element in value)
    if level != rank:
        raise _refusal(value, f"found at incorrect level: {level + 1} in the JSON DOM. Expected at level: {rank}")
    if type(value) is dict and dtype == wire.DT_STRING:
        _from_base64(value)
    elif type(value) is not dict and dtype not in _FLOATS and dtype not in _INTEGERS and dtype not in (_DT_BOOL, wire.DT_STRING):
        raise Status("UNIMPLEMENTED", f"Conversion of JSON Value: {_quoted(value)} to type: {wire.DTYPE_NAMES.get(dtype, dtype)}")
    elif type(value) in (int, float) and not _fits(value):
        raise invalid(_TOO_BIG)
    elif _elements([value], dtype) is None:
        raise _refusal(value, f"Type: {_json_type(value)} is not of expected type: {wire.DTYPE_NAMES.get(dtype, dtype)}")
    return 1


def _json_type(value: Any) -> str:
    names = {dict: "Object", list: "Array", str: "String", int: "Number", float: "Number", bool: str(value)}
    return names.get(type(value), "Null")


def example_input(document: Mapping[str, Any]) -> Any:
    """The `Input` of a classify or regress request: its examples, with the context when one is given.

    Raises:
        Status: INVALID_ARGUMENT; no examples, or features of more than one kind or of no kind that an Example carries.
    """
    found = wire.Input()
    examples = found.example_list.examples
    if "context" in document:
        _example(document["context"], found.example_list_with_context.context)
        examples = found.example_list_with_context.examples
    if "examples" not in document:
        raise _refusal(document, "When method is classify, key 'examples' is expected and was not found")
    values = document["examples"]
    if type(values) is not list:
        raise _refusal(document, "Expecting 'examples' value to be an list/array")
    if not values:
        raise _refusal(document, "'examples' value is an empty array")
    for value in values:
        _example(value, examples.add())
    return found


def _example(value: Any, example: Any) -> None:
    if type(value) is not dict:
        raise invalid(f"Example must be JSON object but got JSON {_json_type(value)}")
    for name, content in value.items():
        # Made also for an empty list, as in the original.
        feature = example.features.feature[name]
        first_kind, values = "", []
        for element in content if type(content) is list else [content]:
            kind = _feature_kind(name, element)
            if kind != (first_kind := first_kind or kind):
                raise invalid(f"Unexpected element type in feature: {name} expecting type: {first_kind}")
            values.append(_from_base64(element) if type(element) is dict else element.encode("utf-8") if kind == "bytes" else element)
        if first_kind == "bytes":
            feature.bytes_list.value.extend(values)
        elif first_kind == "int64":
            feature.int64_list.value.extend(map(int, values))
        elif first_kind == "float":
            with np.errstate(over="ignore"):
                feature.float_list.value.extend(np.array(values, np.float64).astype(np.float32).tolist())


def _feature_kind(name: str, value: Any) -> str:
    if type(value) is str or _is_base64(value):
        return "bytes"
    if type(value) is bool or (type(value) is int and -(1 << 63) <= value < 1 << 63):
        return "int64"
    if type(value) is int and 0 < value < 1 << 64:
        raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
    if type(value) in (int, float):
        if not _fits(value):
            raise invalid(_TOO_BIG)
        return "float"
    raise invalid(f"Feature: {name} has element with unexpected JSON type: {_json_type(value)}")


def error_json(message: str) -> bytes:
    """The body of every error."""
    return f'{{\n{_INDENT}"error": {_ENCODER.encode(message)}\n}}'.encode("utf-8", "replace")


def predict_json(outputs: Mapping[str, Array], signature: Any, *, row: bool) -> bytes:
    """The answer to a predict request, in the format it came in.

    Args:
        outputs: arrays by output name, of which there is at least one.
        signature: the `SignatureDef` that was called; tells bfloat16 from float32.
        row: `predictions`, one per row; otherwise `outputs`, whole tensors.

    Raises:
        Status: INVALID_ARGUMENT; no outputs, rows that do not match, or a type that JSON does not carry.
    """
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    names = sorted(outputs)
    one = len(names) == 1
    if not row:
        depth = 1 if one else 2
        values = [_nested(outputs[name], name, signature, depth, 0)[0] for name in names]
        body = values[0] if one else "{" + _members(names, values, 2) + "\n" + _INDENT + "}"
        return f'{{\n{_INDENT}"outputs": {body}\n}}'.encode("utf-8", "surrogateescape")
    batch = 0
    for name in names:
        size = outputs[name].shape[0] if outputs[name].ndim else None
        if size is None:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if size < 1:
            raise invalid(f"Tensor name: {name} has invalid batch size: {size}")
        if size != (batch := batch or size):
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {size} expecting: {batch}")
    columns = [_nested(outputs[name], name, signature, 2 if one else 3, 1) for name in names]
    if one:
        # rapidjson, switched to single-line arrays inside the list, puts its first element on the line of the bracket.
        rows = ", ".join(columns[0])
    else:
        start, end = f"\n{_INDENT * 2}{{", f"\n{_INDENT * 2}}}"
        rows = ",".join(start + _members(names, values, 3) + end for values in zip(*columns, strict=True))
    return f'{{\n{_INDENT}"predictions": [{rows}\n{_INDENT}]\n}}'.encode("utf-8", "surrogateescape")


def _members(names: Sequence[str], values: Iterable[str], depth: int) -> str:
    return ",".join(f"\n{_INDENT * depth}{_ENCODER.encode(name)}: {value}" for name, value in zip(names, values, strict=True))


def _nested(array: Array, name: str, signature: Any, depth: int, skipped: int) -> list[str]:
    """One text per value of the first `skipped` dimensions; single-line lists when there are any, one element a line when not.

    `depth` is the number of brackets around each text, for the indentation.
    """
    shape = array.shape[skipped:]
    texts = _tokens(array, name, signature, depth + len(shape))
    for level in range(len(shape) - 1, -1, -1):
        size, count = shape[level], math.prod(array.shape[: skipped + level])
        if size == 0:
            texts = ["[]"] * count
            continue
        if skipped:
            start, separator, end = "[", ", ", "]"
        else:
            inner = "\n" + _INDENT * (depth + level + 1)
            start, separator, end = "[" + inner, "," + inner, "\n" + _INDENT * (depth + level) + "]"
        texts = [start + separator.join(texts[index * size : (index + 1) * size]) + end for index in range(count)]
    return texts


def _tokens(array: Array, name: str, signature: Any, depth: int) -> list[str]:
    if array.size == 0:
        return []
    kind = array.dtype.name
    if kind == "float32" and name in signature.outputs and signature.outputs[name].dtype == wire.DT_BFLOAT16:
        kind = "bfloat16"
    if kind in ("float32", "float64"):
        return _decimals(array)
    if kind in ("int8", "int16", "int32", "int64", "uint8", "uint32", "uint64"):
        return list(map(str, array.ravel().tolist()))
    if kind == "bool":
        return ["true" if value else "false" for value in array.ravel().tolist()]
    if kind != "object":
        raise invalid(f"Failed to write JSON value for tensor type: {'half' if kind == 'float16' else kind}")
    values = array.ravel().tolist()
    if not name.endswith("_bytes"):
        # Bytes that are not UTF-8 leave as they are, like the original's.
        return [_ENCODER.encode(value.decode("utf-8", "surrogateescape")) for value in values]
    start, end = f'{{\n{_INDENT * (depth + 1)}"b64": "', f'"\n{_INDENT * depth}}}'
    return [start + binascii.b2a_base64(value, newline=False).decode("ascii") + end for value in values]


def _decimals(array: Array) -> list[str]:
    """Six digits where they are enough to read the number back, all of them otherwise; whole numbers keep a `.0`."""
    flat = array.ravel()
    values = flat.tolist()
    texts = [f"{value:g}" for value in values]
    with np.errstate(over="ignore"):
        back = np.array(list(map(float, texts))).astype(flat.dtype)
    digits = 9 if flat.dtype == np.float32 else 17
    for index in np.flatnonzero(back != flat).tolist():
        texts[index] = f"{values[index]:.{digits}g}"
    texts = [text if "." in text or "e" in text else text + ".0" for text in texts]
    for index in np.flatnonzero(~np.isfinite(flat)).tolist():
        value = values[index]
        texts[index] = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return texts


def classification_json(result: Any) -> bytes:
    """The answer to a classify request: label and score of each class, per example.

    Raises:
        Status: INVALID_ARGUMENT; there is no classification in the result.
    """
    if not result.classifications:
        raise invalid("Cannot convert empty ClassificationResults to JSON")
    rows = []
    for classifications in result.classifications:
        scores = _decimals(np.array([one.score for one in classifications.classes], np.float32))
        labels = [_ENCODER.encode(one.label) for one in classifications.classes]
        rows.append("[" + ", ".join(f"[{label}, {score}]" for label, score in zip(labels, scores, strict=True)) + "]")
    return f'{{\n{_INDENT}"results": [{", ".join(rows)}\n{_INDENT}]\n}}'.encode()


def regression_json(result: Any) -> bytes:
    """The answer to a regress request: one value per example.

    Raises:
        Status: INVALID_ARGUMENT; there is no regression in the result.
    """
    if not result.regressions:
        raise invalid("Cannot convert empty RegressionResults to JSON")
    values = _decimals(np.array([one.value for one in result.regressions], np.float32))
    return f'{{\n{_INDENT}"results": [{", ".join(values)}]\n}}'.encode()


def _message_json(message: Any) -> str:
    # One space and a newline at the end: this is libprotobuf's writer, not rapidjson's.
    options: dict[str, Any] = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True, "ensure_ascii": False}
    return json_format.MessageToJson(message, indent=1, **options) + "\n"


def status_json(response: Any) -> bytes:
    """A `GetModelStatusResponse` with all its fields."""
    return _message_json(response).encode("utf-8")


def metadata_json(response: Any) -> bytes:
    """A `GetModelMetadataResponse` with its signatures unpacked.

    Raises:
        Status: INTERNAL; there are no signatures in it.
    """
    signatures = wire.SignatureDefMap()
    if not response.metadata["signature_def"].Unpack(signatures):
        raise Status("INTERNAL", "Failed to unpack 'Any' object to 'SignatureDefMap'.")
    spec = _message_json(response.model_spec)
    return f'{{\n"model_spec":{spec},\n"metadata": {{"signature_def": {_message_json(signatures)}}}\n}}\n'.encode()
