"""Every rule of TensorFlow Serving's JSON: what a body may be, what its values become, how an answer looks, and the words of every refusal."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import wire
from serving.server import rest_json
from serving.server.status import Status

DTYPES = {name: number for number, name in wire.DTYPE_NAMES.items()}


def _signature(*, outputs: dict[str, str] | None = None, **inputs: str) -> Any:
    signature = wire.SignatureDef()
    for name, dtype in inputs.items():
        signature.inputs[name].dtype = DTYPES[dtype]
    for name, dtype in (outputs or {}).items():
        signature.outputs[name].dtype = DTYPES[dtype]
    return signature


def _predict(body: bytes | str, **inputs: str) -> tuple[dict[str, Any], bool]:
    document = rest_json.parse_object(body.encode() if isinstance(body, str) else body)
    return rest_json.predict_inputs(document, _signature(**inputs), rest_json.signature_name(document))


def _array(body: str, dtype: str = "float") -> Any:
    arrays, _ = _predict(body, x=dtype)
    return arrays["x"]


def _refused(action: Callable[[], Any]) -> Status:
    with pytest.raises(Status) as caught:
        action()
    return caught.value


def _outcome(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Status as error:
        return error


def _same(array: Any, expected: Any, dtype: Any) -> None:
    assert array.dtype == np.dtype(dtype)
    assert array.shape == np.shape(expected)
    assert array.tolist() == expected


# ---- the document


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b" \n\t ", "JSON Parse error: The document is empty. at offset: 4"),
        (b"nope", "JSON Parse error: Invalid value. at offset: 0"),
        (b'{"a": tru}', "JSON Parse error: Invalid value. at offset: 6"),
        ('{"é": tru}'.encode(), "JSON Parse error: Invalid value. at offset: 7"),
        (b'{"a": [1,]}', "JSON Parse error: Invalid value. at offset: "),
        (b"{", "JSON Parse error: Missing a name for object member. at offset: 1"),
        (b"{1: 2}", "JSON Parse error: Missing a name for object member. at offset: 1"),
        (b'{"a" 1}', "JSON Parse error: Missing a colon after a name of object member. at offset: 5"),
        (b'{"a": 1 "b"}', "JSON Parse error: Missing a comma or } after an object member. at offset: 8"),
        (b'{"a": {"]": [1 2]}}', "JSON Parse error: Missing a comma or ] after an array element. at offset: 15"),
        (b'{"a": "x', "JSON Parse error: Missing a closing quotation mark in string. at offset: "),
        (b'{"a": "\x01"}', "JSON Parse error: Invalid encoding in string. at offset: "),
        (b'{"a": "\\q"}', "JSON Parse error: Invalid escape character in string. at offset: "),
        (b'{"a": "\\u12g4"}', "JSON Parse error: Incorrect hex digit after \\u escape in string. at offset: "),
        (b'{"a": 1.}', "JSON Parse error: Miss fraction part in number. at offset: "),
        (b'{"a": 1e}', "JSON Parse error: Miss exponent in number. at offset: "),
        (b'{"a": "\\ud800"}', "JSON Parse error: The surrogate pair in string is invalid. at offset: 7"),
        (b'{"a": "\xff"}', "JSON Parse error: Invalid encoding in string. at offset: 7"),
        (b'{"a": ' + b"9" * 5000 + b"}", "JSON Parse error: Number too big to be stored in double."),
        (b"[1]", "JSON Value: [\n    1\n] Is not object"),
        (b'"x"', 'JSON Value: "x" Is not object'),
        (b"0.1", "JSON Value: 0.1 Is not object"),
        (b"NaN", "JSON Value: NaN Is not object"),
        (b"null", "JSON Value: null Is not object"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused_in_rapidjsons_words(body: bytes, message: str) -> None:
    error = _refused(lambda: rest_json.parse_object(body))
    assert error.code == "INVALID_ARGUMENT"
    assert error.message.startswith(message)


@pytest.mark.parametrize("body", [
    b"[" * 500_000, b"[" * 500_000 + b"]" * 500_000, b'{"a":' * 500_000, b'{"instances": ' + b"[" * 500_000 + b"]" * 500_000 + b"}",
    b'{"a": "\\ud83d\\ude00", "instances": ' + b"[" * 900 + b"]" * 900 + b"}",
])  # fmt: skip
def test_half_a_million_brackets_are_an_ordinary_refusal(body: bytes) -> None:
    error = _refused(lambda: _predict(body, x="float"))
    assert error.code == "INVALID_ARGUMENT"
    assert len(error.message) < 3000


@pytest.mark.parametrize("tail", [b" garbage", b"}}}", b'{"instances": [9]}', b"\xff\xfe", b"\x00"])
def test_what_follows_the_first_document_is_ignored(tail: bytes) -> None:
    arrays, _ = _predict(b'{"instances": [1]}' + tail, x="float")
    assert arrays["x"].tolist() == [1]


def test_a_byte_order_mark_and_leading_blanks_are_skipped() -> None:
    assert rest_json.parse_object(b'\xef\xbb\xbf \r\n{"a": 1}') == {"a": 1}


def test_the_first_of_equal_keys_wins_at_every_level() -> None:
    arrays, _ = _predict('{"instances": [{"x": 1, "x": 2}], "instances": [{"x": 3}]}', x="float")
    assert arrays["x"].tolist() == [1]


def test_text_beyond_ascii_and_escaped_pairs_arrive_as_utf8() -> None:
    assert _array('{"instances": ["你好", "\\ud83d\\ude00", "a\\u0000b"]}', "string").tolist() == ["你好".encode(), "😀".encode(), b"a\0b"]


@pytest.mark.parametrize(("document", "name"), [({}, ""), ({"signature_name": "s"}, "s"), ({"signature_name": ""}, "")])
def test_signature_name_is_optional(document: dict[str, Any], name: str) -> None:
    assert rest_json.signature_name(document) == name


@pytest.mark.parametrize("value", [1, None, True, ["s"], {"b64": "cw=="}])
def test_signature_name_that_is_no_string_is_refused(value: Any) -> None:
    error = _refused(lambda: rest_json.signature_name({"signature_name": value}))
    assert error.message.endswith(" not formatted correctly. 'signature_name' key must be a string value.")
    assert error.message.startswith('JSON Value: {\n    "signature_name": ')


def test_a_value_quoted_in_an_error_is_cut() -> None:
    error = _refused(lambda: rest_json.parse_object(json.dumps(["x" * 100_000]).encode()))
    assert len(error.message) < 1200
    assert "...TRUNCATED" in error.message


# ---- predict: the format


@pytest.mark.parametrize(("body", "message"), [
    ("{}", "Missing 'inputs' or 'instances' key"),
    ('{"inputs": 1, "instances": [1]}', "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "),
    ('{"instances": {"x": 1}}', "Expecting 'instances' to be an list/array"),
    ('{"instances": 5}', "Expecting 'instances' to be an list/array"), ('{"instances": []}', "No values in 'instances' array"),
])  # fmt: skip
def test_exactly_one_of_instances_and_inputs_is_needed(body: str, message: str) -> None:
    error = _refused(lambda: _predict(body, x="float"))
    assert error.code == "INVALID_ARGUMENT"
    assert error.message.endswith(message)


@pytest.mark.parametrize(("asked", "shown"), [("", "DEFAULT"), ("s", "s")])
def test_a_signature_without_inputs_cannot_be_called(asked: str, shown: str) -> None:
    error = _refused(lambda: rest_json.predict_inputs({"instances": [1]}, _signature(), asked))
    assert str(error) == f"INVALID_ARGUMENT: Failed to get input map for signature: {shown}"


@pytest.mark.parametrize("key", ["instances", "inputs"])
def test_inputs_with_a_default_in_the_signature_must_be_given_all_the_same(key: str) -> None:
    signature = _signature(a="float", b="float")
    signature.defaults["b"].CopyFrom(wire.to_tensor(np.float32(1)))
    value = [{"a": 1}] if key == "instances" else {"a": 1}
    assert _refused(lambda: rest_json.predict_inputs({key: value}, signature, "")).code == "INVALID_ARGUMENT"


# ---- predict: rows


@pytest.mark.parametrize(
    ("instances", "dtype", "expected", "numpy_dtype"),
    [
        ("[1.0, 2, 5]", "float", [1, 2, 5], np.float32),
        ("[[1, 2], [3, 4]]", "int32", [[1, 2], [3, 4]], np.int32),
        ('[{"x": [1, 2]}, {"x": [3, 4]}]', "int64", [[1, 2], [3, 4]], np.int64),
        ('["a", {"b64": "Yg=="}]', "string", [b"a", b"b"], object),
        ('[{"x": {"b64": "Yg=="}}]', "string", [b"b"], object),
        ("[[]]", "float", [[]], np.float32),
        ("[[[], []]]", "int32", [[[], []]], np.int32),
        ("[[[1], [2]], [[3], [4]]]", "double", [[[1], [2]], [[3], [4]]], np.float64),
    ],
)
def test_rows_are_stacked_along_a_new_first_dimension(instances: str, dtype: str, expected: Any, numpy_dtype: Any) -> None:
    arrays, row = _predict(f'{{"instances": {instances}}}', x=dtype)
    assert row
    _same(arrays["x"], expected, numpy_dtype)


def test_rows_of_several_inputs_are_objects_with_exactly_their_names() -> None:
    arrays, row = _predict('{"instances": [{"a": [1, 2], "b": "x"}, {"b": "y", "a": [3, 4]}]}', a="float", b="string")
    assert row
    _same(arrays["a"], [[1, 2], [3, 4]], np.float32)
    _same(arrays["b"], [b"x", b"y"], object)


_PLAIN = "instances is a plain list, but expecting list of objects as multiple input tensors required as per tensorinfo_map"


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ("[1]", _PLAIN),
        ('[{"b64": "YQ=="}]', _PLAIN),
        ('[{"a": 1, "b": 2}, 3]', "Expecting object but got list at item 1 of input list"),
        (
            '[{"a": 1}]',
            "Failed to process element: 0 of 'instances' list. JSON object: {\n    \"a\": 1\n} keys must be equal to: a,b",
        ),
        (
            '[{"a": 1, "b": 2}, {"a": 1, "z": 2, "b": 3}]',
            "Failed to process element: 1 key: z of 'instances' list. Error: INVALID_ARGUMENT: JSON object: does not have named input: z",
        ),
        (
            '[{"a": "x", "b": 2}]',
            "Failed to process element: 0 key: a of 'instances' list. Error: INVALID_ARGUMENT: "
            'JSON Value: "x" Type: String is not of expected type: float',
        ),
        (
            '[{"a": [1, 2], "b": 2}, {"a": [1, 2, 3], "b": 2}]',
            "Failed to process element: 1 key: a of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: 2 but got: 3",
        ),
    ],
)
def test_wrong_rows_of_several_inputs_are_refused(instances: str, message: str) -> None:
    error = _refused(lambda: _predict(f'{{"instances": {instances}}}', a="float", b="float"))
    assert str(error) == f"INVALID_ARGUMENT: {message}"


_ELEMENT = "Failed to process element: {} of 'instances' list. Error: INVALID_ARGUMENT: {}"


@pytest.mark.parametrize(("instances", "dtype", "message"), [
    ('[1, {"x": 1}]', "float", "Expecting value/list but got object at item 1 of input list"),
    ("[[1, 2], [1, 2, 3]]", "float", _ELEMENT.format(1, "Expecting tensor size: 2 but got: 3")),
    ("[[1, 2], [[1, 2]]]", "float", _ELEMENT.format(1, "Expecting shape [2] but got: [1,2]")),
    ( "[[[1, 2], [3]]]", "float", _ELEMENT.format(0, "Encountered list at unexpected size: 1 at level: 1 expected size: 2"), ),
    ("[[1, [2]]]", "float", _ELEMENT.format(0, "Encountered list at unexpected level: 1 expected < 1")),
    ( "[[[1], 2]]", "float", _ELEMENT.format(0, "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"), ),
    ('["x"]', "float", _ELEMENT.format(0, 'JSON Value: "x" Type: String is not of expected type: float')),
    ("[null]", "float", _ELEMENT.format(0, "JSON Value: null Type: Null is not of expected type: float")),
    ("[1, true]", "double", _ELEMENT.format(1, "JSON Value: true Type: True is not of expected type: double")),
    ("[1.0]", "int32", _ELEMENT.format(0, "JSON Value: 1.0 Type: Number is not of expected type: int32")),
    ("[0]", "bool", _ELEMENT.format(0, "JSON Value: 0 Type: Number is not of expected type: bool")),
    ("[1]", "string", _ELEMENT.format(0, "JSON Value: 1 Type: Number is not of expected type: string")),
    ( '[{"b64": "YQ=="}]', "float", _ELEMENT.format(0, 'JSON Value: {\n    "b64": "YQ=="\n} Type: Object is not of expected type: float'), ),
    ('[{"b64": "!"}]', "string", _ELEMENT.format(0, "Unable to base64 decode")),
    ( "[1]", "half", "Failed to process element: 0 of 'instances' list. Error: UNIMPLEMENTED: Conversion of JSON Value: 1 to type: half", ),
])  # fmt: skip
def test_wrong_plain_rows_are_refused(instances: str, dtype: str, message: str) -> None:
    error = _refused(lambda: _predict(f'{{"instances": {instances}}}', x=dtype))
    assert str(error) == f"INVALID_ARGUMENT: {message}"


def test_more_dimensions_than_an_array_has_are_refused() -> None:
    for count in (wire.MAX_RANK, 200):
        body = '{"instances": [' + "[" * count + "1" + "]" * count + "]}"
        assert "tensor parsing error: x" in _refused(lambda body=body: _predict(body, x="float")).message
        body = body.replace("instances", "inputs")
        assert _refused(lambda body=body: _predict(body, x="float")).message == "tensor parsing error: x"
    deepest = "[" * (wire.MAX_RANK - 1) + "1" + "]" * (wire.MAX_RANK - 1)
    assert _array(f'{{"instances": [{deepest}]}}').ndim == wire.MAX_RANK


# ---- predict: columns


@pytest.mark.parametrize(
    ("inputs", "dtype", "expected", "numpy_dtype"),
    [
        ("5", "float", 5, np.float32),
        ('"a"', "string", b"a", object),
        ('{"b64": "YQ=="}', "string", b"a", object),
        ("[1, 2]", "int32", [1, 2], np.int32),
        ("[]", "int32", [], np.int32),
        ('{"x": [[true], [false]]}', "bool", [[True], [False]], np.bool_),
        ('{"x": 1, "ignored": [[], 3]}', "uint8", 1, np.uint8),
    ],
)
def test_columns_are_whole_tensors_and_further_names_are_ignored(inputs: str, dtype: str, expected: Any, numpy_dtype: Any) -> None:
    arrays, row = _predict(f'{{"inputs": {inputs}}}', x=dtype)
    assert not row
    _same(arrays["x"], expected, numpy_dtype)


@pytest.mark.parametrize(("inputs", "message"), [
    ("[1]", "inputs is a plain value/list, but expecting an object as multiple input tensors required as per tensorinfo_map"),
    ( '{"b64": "YQ=="}', "inputs is a plain value/list, but expecting an object as multiple input tensors required as per tensorinfo_map", ),
    ('{"a": 1}', "Missing named input: b in 'inputs' object."),
    ('{"a": [[1, 2], [3]], "b": 1}', "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    ('{"a": 1, "b": "x"}', 'JSON Value: "x" Type: String is not of expected type: float'),
    ('{"a": 1, "b": {"c": 1}}', 'JSON Value: {\n    "c": 1\n} Type: Object is not of expected type: float'),
])  # fmt: skip
def test_wrong_columns_are_refused_without_a_wrapper(inputs: str, message: str) -> None:
    error = _refused(lambda: _predict(f'{{"inputs": {inputs}}}', a="float", b="float"))
    assert str(error) == f"INVALID_ARGUMENT: {message}"


def test_an_object_that_is_no_base64_is_no_string() -> None:
    error = _refused(lambda: _predict('{"inputs": {"x": {"b64": 1}}}', x="string"))
    assert error.message == 'JSON Value: {\n    "b64": 1\n} not formatted correctly for base64 data'


@pytest.mark.parametrize("dtype", ["half", "bfloat16", "uint16", "complex64", "complex128"])
def test_columns_of_types_that_json_does_not_carry_are_unimplemented(dtype: str) -> None:
    error = _refused(lambda: _predict('{"inputs": [1]}', x=dtype))
    assert str(error) == f"UNIMPLEMENTED: Conversion of JSON Value: 1 to type: {dtype}"


# ---- values


@pytest.mark.parametrize(("dtype", "text", "expected"), [
    ("float", "3", 3.0), ("float", "1e39", math.inf), ("float", "-1e39", -math.inf), ("float", "Infinity", math.inf),
    ("float", "-Infinity", -math.inf), ("float", "0.1", float(np.float32(0.1))), ("float", "16777217", 16777216.0),
    ("double", "1e39", 1e39), ("double", "123456789012345678901234567890", 123456789012345678901234567890.0), ("int8", "127", 127),
    ("int8", "300", 44), ("uint8", "-1", 255), ("int16", "-32769", 32767), ("int32", "-2147483648", -2147483648),
    ("int64", "9223372036854775807", 2**63 - 1), ("uint32", "4294967295", 2**32 - 1), ("uint64", "18446744073709551615", 2**64 - 1),
    ("bool", "true", True), ("string", '""', b""),
])  # fmt: skip
def test_values_of_each_type(dtype: str, text: str, expected: Any) -> None:
    for body in (f'{{"instances": [{text}]}}', f'{{"inputs": [{text}]}}'):
        assert _array(body, dtype).tolist() == [expected]


def test_nan_is_a_number() -> None:
    assert math.isnan(_array('{"instances": [NaN]}').item())


@pytest.mark.parametrize(("dtype", "text"), [
    ("int8", "2147483648"), ("uint8", "-2147483649"), ("int16", "1e3"), ("int32", "2147483648"), ("int64", "9223372036854775808"),
    ("int64", "1.0"), ("uint32", "-1"), ("uint32", "4294967296"), ("uint64", "-1"), ("uint64", "18446744073709551616"), ("int32", "true"),
    ("int32", "NaN"), ("bool", '"true"'), ("float", "false"), ("string", "null"),
])  # fmt: skip
def test_values_of_another_type_or_out_of_range_are_refused(dtype: str, text: str) -> None:
    for value in (text, f"[{text}]"):
        error = _refused(lambda value=value: _predict(f'{{"inputs": {value}}}', x=dtype))
        assert error.message.endswith(f" is not of expected type: {dtype}")
        assert error.message.startswith("JSON Value: ")


@pytest.mark.parametrize("text", ["1e400", "-1e400", "9" * 400, "[NaN, 1e400]"])
def test_a_number_that_fits_no_double_is_refused(text: str) -> None:
    for dtype in ("float", "double"):
        error = _refused(lambda dtype=dtype: _predict(f'{{"inputs": {text}}}', x=dtype))
        assert error.message == "JSON Parse error: Number too big to be stored in double."


@pytest.mark.parametrize(("text", "expected"), [
    ("", b""), ("YQ==", b"a"), ("YQ", b"a"), ("Y Q =\n=", b"a"), ("YWI=", b"ab"), ("+/+/", b"\xfb\xff\xbf"),
])  # fmt: skip
def test_base64_with_and_without_padding_and_blanks(text: str, expected: bytes) -> None:
    assert _array(json.dumps({"instances": [{"b64": text}]}), "string").tolist() == [expected]


@pytest.mark.parametrize("text", ["a", "YQ=", "YQ===", "=", "Y=Q=", "-_-_", "Y\u00a0Q", "Yé=="])
def test_bad_base64_is_refused(text: str) -> None:
    error = _refused(lambda: _predict(json.dumps({"inputs": {"b64": text}}), x="string"))
    assert error.message == "Unable to base64 decode"


_nested = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3) | st.just({"b64": "YQ=="}),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.sampled_from(["a", "x", "b64"]), values, max_size=2),
    max_leaves=8,
)


@given(value=_nested, dtype=st.sampled_from(["float", "int32", "bool", "string", "half"]), key=st.sampled_from(["instances", "inputs"]))
def test_any_json_becomes_an_array_or_a_refusal(value: Any, dtype: str, key: str) -> None:
    result = _outcome(lambda: _predict(json.dumps({key: value}), x=dtype))
    if isinstance(result, Status):
        assert result.code in ("INVALID_ARGUMENT", "UNIMPLEMENTED")
        return
    arrays, row = result
    whole = value["x"] if type(value) is dict and not row and "x" in value else value
    assert arrays["x"].shape[:1] == ((len(whole),) if type(whole) is list else ())


@given(body=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_an_object_or_a_refusal(body: bytes) -> None:
    result = _outcome(lambda: rest_json.parse_object(body))
    assert type(result) is dict or result.code == "INVALID_ARGUMENT"


# ---- classify and regress: requests


def _examples(body: str) -> Any:
    return rest_json.example_input(rest_json.parse_object(body.encode()))


def test_features_follow_the_json_types() -> None:
    found = _examples(
        '{"examples": [{"i": 1, "f": 1.0, "e": 1e2, "s": ["a", {"b64": "Yg=="}], "b": [true, 2, false], "none": [], "big": 1e39}]}'
    )
    feature = found.example_list.examples[0].features.feature
    assert list(feature["i"].int64_list.value) == [1]
    assert list(feature["f"].float_list.value) == [1.0]
    assert list(feature["e"].float_list.value) == [100.0]
    assert list(feature["s"].bytes_list.value) == [b"a", b"b"]
    assert list(feature["b"].int64_list.value) == [1, 2, 0]
    assert list(feature["big"].float_list.value) == [math.inf]
    assert "none" in feature
    assert feature["none"].WhichOneof("kind") is None


def test_a_context_makes_an_example_list_with_context() -> None:
    found = _examples('{"context": {"c": 1}, "examples": [{"x": 2}, {}]}')
    assert found.WhichOneof("kind") == "example_list_with_context"
    assert list(found.example_list_with_context.context.features.feature["c"].int64_list.value) == [1]
    assert len(found.example_list_with_context.examples) == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{}", "When method is classify, key 'examples' is expected and was not found"),
        ('{"context": {}}', "When method is classify, key 'examples' is expected and was not found"),
        ('{"examples": {}}', "Expecting 'examples' value to be an list/array"),
        ('{"examples": []}', "'examples' value is an empty array"),
        ('{"examples": [[1]]}', "Example must be JSON object but got JSON Array"),
        ('{"examples": [{}], "context": 5}', "Example must be JSON object but got JSON Number"),
        ('{"examples": [{"x": [1, 2.5]}]}', "Unexpected element type in feature: x expecting type: int64"),
        ('{"examples": [{"x": [1.5, "a"]}]}', "Unexpected element type in feature: x expecting type: float"),
        ('{"examples": [{"x": ["a", true]}]}', "Unexpected element type in feature: x expecting type: bytes"),
        ('{"examples": [{"x": null}]}', "Feature: x has element with unexpected JSON type: Null"),
        ('{"examples": [{"x": [[1]]}]}', "Feature: x has element with unexpected JSON type: Array"),
        ('{"examples": [{"x": {"y": 1}}]}', "Feature: x has element with unexpected JSON type: Object"),
        ('{"examples": [{"x": 9223372036854775808}]}', "Feature: x has uint64 element. Only int64 is supported."),
        ('{"examples": [{"x": {"b64": "!"}}]}', "Unable to base64 decode"),
        ('{"examples": [{"x": 1e400}]}', "JSON Parse error: Number too big to be stored in double."),
    ],
)
def test_wrong_examples_are_refused(body: str, message: str) -> None:
    error = _refused(lambda: _examples(body))
    assert error.code == "INVALID_ARGUMENT"
    assert error.message.endswith(message)


# ---- answers


def _strings(*values: bytes) -> Any:
    array = np.empty(len(values), object)
    array[:] = values
    return array


@pytest.mark.parametrize(("dtype", "value", "text"), [
    (np.float32, 3, "3.0"), (np.float32, 9e6, "9e+06"), (np.float32, 3e-5, "3e-05"), (np.float32, 0.1, "0.1"),
    (np.float32, 1 / 3, "0.333333343"), (np.float32, 16777217, "16777216.0"), (np.float32, -0.0, "-0.0"),
    (np.float32, np.finfo(np.float32).max, "3.40282347e+38"), (np.float32, math.nan, "NaN"), (np.float32, math.inf, "Infinity"),
    (np.float32, -math.inf, "-Infinity"), (np.float64, 0.1, "0.1"), (np.float64, 1 / 3, "0.33333333333333331"),
    (np.float64, 123456.0, "123456.0"), (np.float64, 1e6, "1e+06"), (np.float64, math.nan, "NaN"), (np.int8, -5, "-5"),
    (np.uint8, 200, "200"), (np.int16, 7, "7"), (np.int32, 7, "7"), (np.int64, 2**53 + 1, "9007199254740993"),
    (np.uint32, 2**32 - 1, "4294967295"), (np.uint64, 2**64 - 1, "18446744073709551615"), (np.bool_, True, "true"),
    (np.bool_, False, "false"),
])  # fmt: skip
def test_numbers_are_written_in_the_shortest_form_that_reads_back(dtype: Any, value: Any, text: str) -> None:
    assert rest_json.predict_json({"y": np.array(value, dtype)}, _signature(), row=False).decode() == f'{{\n    "outputs": {text}\n}}'


@given(st.lists(st.floats(width=32), min_size=1) | st.lists(st.floats(), min_size=1))
def test_every_float_reads_back(values: list[float]) -> None:
    for dtype in (np.float32, np.float64):
        with np.errstate(over="ignore"):
            array = np.array(values).astype(dtype)
        read = json.loads(rest_json.predict_json({"y": array}, _signature(), row=False))["outputs"]
        assert all(type(value) is float for value in read)
        np.testing.assert_array_equal(np.array(read).astype(dtype), array)


def test_strings_are_text_unless_their_output_is_named_bytes() -> None:
    values = _strings(b'a"\\\n\x01', "é".encode(), b"\xff")
    plain = rest_json.predict_json({"y": values}, _signature(), row=True)
    assert plain == b'{\n    "predictions": ["a\\"\\\\\\n\\u0001", "\xc3\xa9", "\xff"\n    ]\n}'
    coded = json.loads(rest_json.predict_json({"y_bytes": values}, _signature(), row=True))
    assert [base64.b64decode(one["b64"]) for one in coded["predictions"]] == values.tolist()
    number = json.loads(rest_json.predict_json({"y_bytes": np.array([1])}, _signature(), row=True))
    assert number == {"predictions": [1]}


def test_one_output_in_rows_is_bare() -> None:
    body = rest_json.predict_json({"y": np.array([[1, 2], [3, 4]], np.float32)}, _signature(), row=True)
    assert body == b'{\n    "predictions": [[1.0, 2.0], [3.0, 4.0]\n    ]\n}'


def test_several_outputs_in_rows_are_objects() -> None:
    outputs = {"s_bytes": _strings(b"a", b"b"), "n": np.array([[[1], [2]], [[3], [4]]])}
    body = rest_json.predict_json(outputs, _signature(), row=True).decode()
    assert body.startswith(
        '{\n    "predictions": [\n        {\n            "n": [[1], [2]],\n            "s_bytes": {\n                "b64": "YQ=="\n'
    )
    assert json.loads(body) == {
        "predictions": [{"n": [[1], [2]], "s_bytes": {"b64": "YQ=="}}, {"n": [[3], [4]], "s_bytes": {"b64": "Yg=="}}]
    }


def test_columns_are_pretty_printed_with_four_spaces() -> None:
    one = rest_json.predict_json({"y": np.array([[1, 2], [3, 4]])}, _signature(), row=False).decode()
    assert one == json.dumps({"outputs": [[1, 2], [3, 4]]}, indent=4)
    outputs = {"b": np.zeros((2, 0, 3)), "a_bytes": _strings(b"a"), "c": np.array(7)}
    several = rest_json.predict_json(outputs, _signature(), row=False).decode()
    assert several == json.dumps({"outputs": {"a_bytes": [{"b64": "YQ=="}], "b": [[], []], "c": 7}}, indent=4)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "Cannot convert empty tensor map to JSON"),
        ({"s": np.float32(1)}, "Tensor name: s has no shape information "),
        ({"a": np.zeros((2, 1)), "b": np.zeros(1)}, "Tensor name: b has inconsistent batch size: 1 expecting: 2"),
        ({"s": np.zeros((0, 2))}, "Tensor name: s has invalid batch size: 0"),
        ({"h": np.zeros(1, np.float16)}, "Failed to write JSON value for tensor type: half"),
        ({"h": np.zeros(1, np.uint16)}, "Failed to write JSON value for tensor type: uint16"),
        ({"h": np.zeros(1, np.complex64)}, "Failed to write JSON value for tensor type: complex64"),
        ({"brain": np.zeros(1, np.float32)}, "Failed to write JSON value for tensor type: bfloat16"),
    ],
)
def test_outputs_that_cannot_be_rows_or_json_are_refused(outputs: dict[str, Any], message: str) -> None:
    signature = _signature(outputs={"brain": "bfloat16"})
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    assert str(_refused(lambda: rest_json.predict_json(arrays, signature, row=True))) == f"INVALID_ARGUMENT: {message}"


def test_classifications_are_pairs_of_label_and_score_under_results() -> None:
    result = wire.ClassificationResponse().result
    assert _refused(lambda: rest_json.classification_json(result)).message == "Cannot convert empty ClassificationResults to JSON"
    for scores in ([("a", 0.5), ('"', 0.1)], [("", 0.0)], []):
        classes = result.classifications.add().classes
        for label, score in scores:
            classes.add(label=label, score=score)
    body = rest_json.classification_json(result)
    assert body == b'{\n    "results": [[["a", 0.5], ["\\"", 0.1]], [["", 0.0]], []\n    ]\n}'


def test_regressions_are_values_under_results() -> None:
    result = wire.RegressionResponse().result
    assert _refused(lambda: rest_json.regression_json(result)).message == "Cannot convert empty RegressionResults to JSON"
    for value in (1.0, 0.1):
        result.regressions.add(value=value)
    assert rest_json.regression_json(result) == b'{\n    "results": [1.0, 0.1]\n}'


def test_status_prints_every_field_with_version_as_text_and_enums_by_name() -> None:
    response = wire.GetModelStatusResponse()
    response.model_version_status.add(version=123, state=30).status.SetInParent()
    assert json.loads(rest_json.status_json(response)) == {
        "model_version_status": [{"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}]
    }


def test_metadata_unpacks_the_signatures_with_proto_names_and_defaults() -> None:
    stored = wire.SignatureDefMap()
    signature = stored.signature_def["serving_default"]
    signature.method_name = "tensorflow/serving/predict"
    signature.inputs["x"].dtype = 1
    signature.inputs["x"].name = "x:0"
    signature.inputs["x"].tensor_shape.dim.add(size=-1)
    signature.defaults["x"].CopyFrom(wire.to_tensor(np.float32(1), typed_fields=True))
    response = wire.GetModelMetadataResponse()
    response.model_spec.name = "m"
    response.model_spec.version.value = 123
    response.metadata["signature_def"].Pack(stored)
    read = json.loads(rest_json.metadata_json(response))
    assert read["model_spec"] == {"name": "m", "signature_name": "", "version": "123"}
    described = read["metadata"]["signature_def"]["signature_def"]["serving_default"]
    tensor_shape = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    assert described["inputs"] == {"x": {"dtype": "DT_FLOAT", "tensor_shape": tensor_shape, "name": "x:0"}}
    assert described["outputs"] == {}
    assert described["method_name"] == "tensorflow/serving/predict"
    assert described["defaults"]["x"]["float_val"] == [1.0]


def test_metadata_without_signatures_is_an_internal_error() -> None:
    assert _refused(lambda: rest_json.metadata_json(wire.GetModelMetadataResponse())).code == "INTERNAL"


@pytest.mark.parametrize("message", ["plain", 'with "quotes" \\ and\nlines', "你好", "\ud800"])
def test_errors_are_pretty_printed_with_four_spaces(message: str) -> None:
    body = rest_json.error_json(message)
    assert body.startswith(b'{\n    "error": "')
    assert body.endswith(b'"\n}')
    assert json.loads(body) == {"error": message.encode("utf-8", "replace").decode()}
