"""The way TensorFlow Serving's own end-to-end tests start a server and talk to it: a process, its flags, the official stubs, HTTP by urllib."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from tests.contract import saved_models
from tests.contract.conftest import Client, Served, config, example, free_port, process, started, until, write
from tests.contract.saved_models import CLASSIFY, REGRESS

RPC_TIMEOUT_S = 5.0
VERSION = 123


def _wait_for_server_ready(client: Client) -> None:
    """Taken as ready once a Predict for a model that does not exist fails with details containing `Servable`."""

    def is_ready() -> bool:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "intentionally_missing_model"
        with pytest.raises(grpc.RpcError) as caught:
            client.prediction.Predict(request, RPC_TIMEOUT_S)
        return "Servable" in (caught.value.details() or "")

    until(is_ready, "the server is ready", 60)


@pytest.fixture(scope="module")
def upstream(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Started as `RunServer` does it."""
    root = tmp_path_factory.mktemp("upstream")
    names = ("half_plus_two", "half_plus_three", "counter", "keras", "module", "text")
    port, rest_port = free_port(), free_port()
    flags = (
        f"--port={port}",
        f"--rest_api_port={rest_port}",
        "--rest_api_timeout_in_ms=5000",
        f"--grpc_socket_path={root / 'grpc.sock'}",
        "--grpc_channel_arguments=grpc.max_connection_age_ms=2000",
        f"--model_config_file={write(root / 'models.config', config(**{name: models / name for name in names}))}",
        f"--monitoring_config_file={write(root / 'monitoring.config', 'prometheus_config { enable: true }')}",
        "--enable_batching",
        f"--batching_parameters_file={write(root / 'batching.config', 'max_batch_size { value: 8 } batch_timeout_micros { value: 0 }')}",
    )
    with process(*flags), Client(f"localhost:{port}") as client:
        _wait_for_server_ready(client)
        yield Served(client, f"unix:{root / 'grpc.sock'}", f"http://localhost:{rest_port}")


def _verify_predict(client: Client, expected: float, name: str, *, specify_output: bool = True) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].dtype = types_pb2.DT_FLOAT
    request.inputs["x"].float_val.append(2.0)
    request.inputs["x"].tensor_shape.dim.add().size = 1
    if specify_output:
        request.output_filter.append("y")
    result = client.prediction.Predict(request, RPC_TIMEOUT_S)
    assert "y" in result.outputs
    assert result.outputs["y"].dtype == types_pb2.DT_FLOAT
    assert list(result.outputs["y"].float_val) == [expected]
    _verify_spec(result.model_spec, name, "serving_default")


def _verify_spec(spec: Any, name: str, signature: str) -> None:
    assert (spec.name, spec.signature_name, spec.version.value) == (name, signature, VERSION)


@pytest.mark.parametrize("specify_output", [True, False])
@pytest.mark.parametrize(("name", "expected"), [("half_plus_two", 3.0), ("half_plus_three", 4.0)])
def test_predict(upstream: Served, name: str, expected: float, specify_output: bool) -> None:
    _verify_predict(upstream.client, expected, name, specify_output=specify_output)


def test_predict_over_the_unix_socket(upstream: Served) -> None:
    with Client(upstream.target) as client:
        _verify_predict(client, 3.0, "half_plus_two")


def test_get_model_status(upstream: Served) -> None:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "half_plus_two"
    (only,) = upstream.client.model.GetModelStatus(request, RPC_TIMEOUT_S).model_version_status
    assert (only.version, only.status.error_code) == (VERSION, 0)


def test_classify(upstream: Served) -> None:
    result = upstream.client.classify("half_plus_two", [example(x=2.0)], signature="classify_x_to_y")
    assert len(result.result.classifications) == 1
    assert [one.score for one in result.result.classifications[0].classes] == [3.0]
    _verify_spec(result.model_spec, "half_plus_two", "classify_x_to_y")


def test_regress(upstream: Served) -> None:
    result = upstream.client.regress("half_plus_two", [example(x=2.0)], signature="regress_x_to_y")
    assert [one.value for one in result.result.regressions] == [3.0]
    _verify_spec(result.model_spec, "half_plus_two", "regress_x_to_y")


def test_multi_inference(upstream: Served) -> None:
    tasks = [
        ({"name": "half_plus_two", "signature": "regress_x_to_y"}, REGRESS),
        ({"name": "half_plus_two", "signature": "classify_x_to_y"}, CLASSIFY),
    ]
    result = upstream.client.multi_inference(tasks, [example(x=2.0)])
    assert result.results[0].regression_result.regressions[0].value == 3.0
    assert result.results[1].classification_result.classifications[0].classes[0].score == 3.0
    for one, signature in zip(result.results, ("regress_x_to_y", "classify_x_to_y"), strict=True):
        _verify_spec(one.model_spec, "half_plus_two", signature)


def test_get_model_metadata(upstream: Served) -> None:
    result = upstream.client.metadata("half_plus_two")
    stored = get_model_metadata_pb2.SignatureDefMap()
    assert result.metadata["signature_def"].Unpack(stored)
    assert stored.signature_def["regress_x_to_y"].method_name == REGRESS
    assert stored.signature_def["serving_default"].inputs["x"].dtype == types_pb2.DT_FLOAT


def test_a_keras_sequential_model(upstream: Served) -> None:
    (alias,) = upstream.client.signatures("keras")["serving_default"].inputs
    answer = upstream.client.predict("keras", {alias: np.float32([[1.0, 2.0]])})
    assert list(answer.outputs["sum"].float_val) == [3.0]


def test_a_model_with_tensorflow_text(upstream: Served) -> None:
    answer = upstream.client.predict("text", {"text": ["hello world"]})
    assert list(answer.outputs["words"].string_val) == [b"hello", b"world"]


def test_a_scalar_answer_is_not_for_a_batching_server(upstream: Served) -> None:
    """Upstream asks its signatures that return scalars without batching."""
    with pytest.raises(grpc.RpcError) as caught:
        upstream.client.predict("module", {"x": 2.0}, signature="triple")
    assert caught.value.details() == "Batching Run() input tensors must have at least one dimension"


def test_several_signatures_that_return_scalars(static: Served) -> None:
    for signature, inputs, output, expected in (("serving_default", {"x": [1.0]}, "total", 4.0), ("triple", {"x": 2.0}, "tripled", 6.0)):
        result = static.client.predict("module", inputs, signature=signature)
        assert list(result.outputs[output].float_val) == [expected]
        _verify_spec(result.model_spec, "module", signature)


# ---- HTTP, as `CallREST`


def _rest(served: Served, path: str, body: Any = None) -> Any:
    status, text = served.http(path, body)
    assert status == 200, text
    return json.loads(text)


@pytest.mark.parametrize("selector", ["", f"/versions/{VERSION}"])
def test_predict_over_rest(upstream: Served, selector: str) -> None:
    path = f"/v1/models/half_plus_two{selector}:predict"
    assert _rest(upstream, path, {"instances": [2.0, 3.0, 4.0]}) == {"predictions": [3.0, 3.5, 4.0]}
    assert _rest(upstream, path, {"inputs": [2.0, 3.0, 4.0]}) == {"outputs": [3.0, 3.5, 4.0]}


def test_classify_over_rest(upstream: Served) -> None:
    body = {"signature_name": "classify_x_to_y", "examples": [{"x": 2.0}]}
    assert _rest(upstream, "/v1/models/half_plus_two:classify", body) == {"results": [[["", 3.0]]]}


def test_regress_over_rest(upstream: Served) -> None:
    """`results`, not `result` as upstream's documentation says."""
    body = {"signature_name": "regress_x_to_y", "examples": [{"x": 2.0}]}
    assert _rest(upstream, "/v1/models/half_plus_two:regress", body) == {"results": [3.0]}


def test_status_over_rest(upstream: Served) -> None:
    expected = {"model_version_status": [{"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}]}
    assert _rest(upstream, "/v1/models/half_plus_two") == expected


def test_a_label_is_ignored_by_the_status_over_rest(upstream: Served) -> None:
    """Upstream's documentation says that it selects."""
    assert _rest(upstream, "/v1/models/half_plus_two/labels/none") == _rest(upstream, "/v1/models/half_plus_two")


def test_metadata_over_rest(upstream: Served) -> None:
    found = _rest(upstream, "/v1/models/half_plus_two/metadata")
    assert found["model_spec"] == {"name": "half_plus_two", "signature_name": "", "version": "123"}
    stored = json_format.ParseDict(found["metadata"]["signature_def"], get_model_metadata_pb2.SignatureDefMap(), ignore_unknown_fields=True)
    assert stored.signature_def["regress_x_to_y"].method_name == REGRESS


def test_errors_over_rest_are_pretty_printed(upstream: Served) -> None:
    """With four spaces; upstream's documentation shows one line."""
    status, text = upstream.http("/v1/models/none:predict", {"instances": [1.0]})
    assert (status, text) == (404, '{\n    "error": "Servable not found for request: Latest(none)"\n}')


def test_the_prometheus_page(upstream: Served) -> None:
    upstream.client.predict("half_plus_two", {"x": [2.0]})
    status, text = upstream.http("/monitoring/prometheus/metrics")
    assert status == 200
    assert "# TYPE :tensorflow:serving:request_count counter" in text
    assert '\n:tensorflow:serving:request_count{model_name="half_plus_two",status="OK"} ' in text


# ---- reloading


def test_the_configuration_is_reloaded(upstream: Served, models: Path) -> None:
    """As `testModelConfigReload...`: over the call; whole lists; asked at once."""
    with started(f"--model_config_file={write(models / 'reload.config', config(half_plus_two=models / 'half_plus_two'))}") as served:
        _verify_predict(served.client, 3.0, "half_plus_two")
        served.client.reload(config(half_plus_two=models / "half_plus_two", half_plus_three=models / "half_plus_three"))
        _verify_predict(served.client, 3.0, "half_plus_two")
        _verify_predict(served.client, 4.0, "half_plus_three")


@pytest.mark.parametrize("prefer", [[], ["--prefer_tflite_model=true"]], ids=["SavedModel", "tflite"])
def test_a_version_with_both_kinds_of_model(serve: Callable[..., Served], tmp_path: Path, prefer: list[str]) -> None:
    saved_models.plus(tmp_path / "m" / str(VERSION), 1)
    saved_models.tflite(tmp_path / "m" / str(VERSION))
    served = serve("--model_name=m", f"--model_base_path={tmp_path / 'm'}", *prefer)
    signature = served.client.signatures("m")["serving_default"]
    ((alias, _),) = signature.inputs.items()
    ((output, _),) = signature.outputs.items()
    assert served.client.values("m", {alias: [[1.0, 2.0]]}, output) == ([[7.0, 9.0]] if prefer else [[2.0, 3.0]])
