"""`--prefer_tflite_model`: a model.tflite instead of a SavedModel, its signatures, and the SavedModel when there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
import tensorflow as tf
from flatbuffers import flexbuffers
from tensorflow.lite.python import schema_py_generated as schema

from serving.server.status import Status
from tests.contract import saved_models
from tests.contract.conftest import Served, refused

Serve = Callable[..., Served]


def _tflite_graph() -> dict[str, Any]:
    """The same function as a SavedModel that adds 100 instead."""
    x = saved_models.v1.placeholder(np.float32, [None, 2])
    return {"serving_default": saved_models.signature({"x": x}, {"y": 2.0 * x + 100.0})}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version with both kinds of model: 2 x + 5 in the .tflite, 2 x + 100 in the SavedModel."""
    path = tmp_path_factory.mktemp("tflite") / "m"
    saved_models.export(path / "1", _tflite_graph)
    saved_models.tflite(path / "1")
    return path


@pytest.fixture
def preferred(serve: Serve, base: Path) -> Served:
    return serve("--model_name=m", f"--model_base_path={base}", "--prefer_tflite_model")


def _only(names: Any) -> str:
    (name,) = names
    return str(name)


def _ask(served: Served, x: Any) -> Any:
    signature = served.client.signatures("m")["serving_default"]
    return served.client.values("m", {_only(signature.inputs): x}, _only(signature.outputs))


def test_it_is_served_when_preferred(preferred: Served) -> None:
    assert _ask(preferred, [[1.0, 2.0], [3.0, 4.0]]) == [[7.0, 9.0], [11.0, 13.0]]


def test_any_number_of_rows(preferred: Served) -> None:
    for rows in (1, 3, 2):
        assert _ask(preferred, [[1.0, 2.0]] * rows) == [[7.0, 9.0]] * rows


def test_without_preference_the_saved_model_is_served(serve: Serve, base: Path) -> None:
    assert _ask(serve("--model_name=m", f"--model_base_path={base}"), [[1.0, 2.0]]) == [[102.0, 104.0]]


def test_without_a_tflite_file_the_saved_model_is_served(serve: Serve, models: Path) -> None:
    client = serve(f"--model_base_path={models / 'half_plus_two'}", "--prefer_tflite_model").client
    assert client.values("default", {"x": [2.0]}) == [3.0]


def test_inputs_and_outputs_are_named_by_their_tensors(preferred: Served) -> None:
    signature = preferred.client.signatures("m")["serving_default"]
    (alias, info) = next(iter(signature.inputs.items()))
    assert info.name.removesuffix(":0") == alias.removesuffix(":0")
    assert info.dtype == 1
    assert [dim.size for dim in info.tensor_shape.dim] == [-1, 2]


@pytest.mark.parametrize("x", [np.int32([[1, 2]]), np.float64([[1.0, 2.0]]), [[b"a", b"b"]]], ids=["int32", "double", "string"])
def test_a_wrong_dtype_is_refused_and_harms_nobody(preferred: Served, x: Any) -> None:
    signature = preferred.client.signatures("m")["serving_default"]
    found = refused(preferred.client.predict, "m", {_only(signature.inputs): tf.make_tensor_proto(x)})
    assert found.code == "INVALID_ARGUMENT"
    assert "type" in found.details
    assert _ask(preferred, [[1.0, 2.0]]) == [[7.0, 9.0]]


def test_another_shape_runs_when_the_kernels_can(preferred: Served) -> None:
    assert _ask(preferred, [[1.0, 2.0, 3.0]]) == [[7.0, 9.0, 11.0]]
    assert _ask(preferred, [[1.0, 2.0]]) == [[7.0, 9.0]]


def test_a_file_that_is_no_model(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.tflite").write_bytes(b"nonsense" * 10)
    with pytest.raises(Status, match="Failed to load TensorFlow Lite model"):
        serve("--model_name=m", f"--model_base_path={tmp_path / 'm'}", "--prefer_tflite_model")


def _with_signatures(content: bytes, signatures: dict[str, bytes]) -> bytes:
    """The same model with the metadata buffer that upstream's converter wrapper writes."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    builder = flexbuffers.Builder()
    with builder.Map():
        for name, value in signatures.items():
            builder.String(name, value.decode("latin-1"))
    buffer, metadata = schema.BufferT(), schema.MetadataT()
    buffer.data = list(builder.Finish())
    model.buffers.append(buffer)
    metadata.name, metadata.buffer = "signature_defs_metadata", len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), metadata]
    packed = flatbuffers.Builder(1024)
    packed.Finish(model.Pack(packed), b"TFL3")
    return bytes(packed.Output())


def test_signatures_in_the_files_metadata(serve: Serve, tmp_path: Path) -> None:
    """With `:0` behind the tensors' names, which the file itself does not have."""
    version = saved_models.tflite(tmp_path / "m" / "1")
    plain = serve("--model_name=m", f"--model_base_path={tmp_path / 'm'}", "--prefer_tflite_model").client.signatures("m")[
        "serving_default"
    ]
    signature = type(plain)(method_name=saved_models.PREDICT)
    signature.inputs["numbers"].CopyFrom(next(iter(plain.inputs.values())))
    signature.outputs["doubled"].CopyFrom(next(iter(plain.outputs.values())))
    for info in (signature.inputs["numbers"], signature.outputs["doubled"]):
        info.name = info.name.removesuffix(":0") + ":0"
    file = version / "model.tflite"
    file.write_bytes(_with_signatures(file.read_bytes(), {"mine": signature.SerializeToString()}))
    client = serve("--model_name=m", f"--model_base_path={tmp_path / 'm'}", "--prefer_tflite_model").client
    assert client.signatures("m") == {"mine": signature}
    assert client.values("m", {"numbers": [[1.0, 2.0]]}, "doubled", signature="mine") == [[7.0, 9.0]]
