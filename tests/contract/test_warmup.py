"""Warm-up records: replayed at load before anybody can ask, and a version that cannot replay them is not served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorflow_serving.apis import prediction_log_pb2

from tests.contract import saved_models
from tests.contract.conftest import Client, Served, config, example, predict_log, refused, write, write_records

Serve = Callable[..., Served]


def _log(kind: str, **request: Any) -> Any:
    log = prediction_log_pb2.PredictionLog()
    target = getattr(log, kind).request
    target.SetInParent()
    target.model_spec.name = "a name that no model has"
    target.model_spec.signature_name = request.pop("signature", "")
    target.input.example_list.examples.extend(request.pop("examples", [example(x=2.0)]))
    return log


def _multi_log() -> Any:
    log = prediction_log_pb2.PredictionLog()
    request = log.multi_inference_log.request
    for signature, method in (("regress_x_to_y", saved_models.REGRESS), ("classify_x_to_y", saved_models.CLASSIFY)):
        task = request.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = "another name", signature
    request.input.example_list.examples.extend([example(x=2.0)])
    return log


def _count_log() -> Any:
    log = predict_log()
    log.predict_log.request.model_spec.signature_name = "incr_counter"
    return log


@pytest.fixture
def load(serve: Serve, tmp_path: Path) -> Callable[..., Client]:
    """Starts a server over nothing, and returns a client that can load models into it."""
    return lambda *flags: serve(f"--model_config_file={write(tmp_path / 'config', '')}", *flags).client


def _counted(client: Client, base: Path) -> float:
    client.reload(config(counter=base))
    return float(client.values("counter", {}, "output", signature="get_counter"))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], 2.0),
        (["--num_request_iterations_for_warmup=1"], 2.0),
        (["--num_request_iterations_for_warmup=3"], 6.0),
        (["--enable_model_warmup=false"], 0.0),
    ],
)
def test_every_record_is_replayed_before_the_version_answers(
    load: Callable[..., Client], tmp_path: Path, flags: list[str], expected: float
) -> None:
    """A counter that the records count up tells how often they ran."""
    saved_models.counter(tmp_path / "m" / "1")
    write_records(tmp_path / "m" / "1", _count_log(), _count_log())
    assert _counted(load(*flags), tmp_path / "m") == expected


@pytest.mark.parametrize(
    "log",
    [
        predict_log(x=[2.0]),
        _log("classify_log", signature="classify_x_to_y"),
        _log("regress_log", signature="regress_x_to_y"),
        _multi_log(),
        prediction_log_pb2.PredictionLog(),
    ],
    ids=["predict", "classify", "regress", "multi_inference", "unset"],
)
def test_every_kind_of_record_loads_whatever_model_it_names(load: Callable[..., Client], tmp_path: Path, log: Any) -> None:
    saved_models.half_plus(tmp_path / "m" / "1")
    write_records(tmp_path / "m" / "1", log)
    client = load()
    client.reload(config(m=tmp_path / "m"))
    assert client.values("m", {"x": [2.0]}) == [3.0]


def _session_run() -> Any:
    log = prediction_log_pb2.PredictionLog()
    log.session_run_log.SetInParent()
    return log


def _streamed() -> Any:
    log = prediction_log_pb2.PredictionLog()
    log.predict_streamed_log.SetInParent()
    return log


def _unknown_signature() -> Any:
    log = predict_log(x=[2.0])
    log.predict_log.request.model_spec.signature_name = "s"
    return log


@pytest.mark.parametrize(
    ("records", "code", "says"),
    [
        ([predict_log(x=[2.0]), predict_log(z=[2.0])], "INVALID_ARGUMENT", "Signature input alias: x(feed name: x:0) not found"),
        ([predict_log(x=np.int32([2]))], "INVALID_ARGUMENT", "Expects arg[0] to be float but int32 is provided"),
        ([_unknown_signature()], "FAILED_PRECONDITION", 'Serving signature key "s" not found.'),
        (
            [_log("regress_log", signature="regress_x_to_y", examples=[example(x=b"text")])],
            "INVALID_ARGUMENT",
            "Name: <unknown>, Key: x, Index: 0.  Data types don't match",
        ),
        ([_log("classify_log", signature="classify_x_to_y", examples=[])], "INVALID_ARGUMENT", "Input is empty."),
        ([_session_run()], "UNIMPLEMENTED", "Unsupported log_type for warmup: session_run_log"),
        ([_streamed()], "UNIMPLEMENTED", "Unsupported log_type for warmup: predict_streamed_log"),
        ([predict_log(x=[2.0])] * 1001, "INVALID_ARGUMENT", "Number of warmup records exceeds the maximum (1000)"),
        ([b"\xff\xffnot a PredictionLog"], "INVALID_ARGUMENT", "Failed to parse warmup record"),
    ],
    ids=["an input", "a dtype", "a signature", "a feature", "no examples", "session_run", "predict_streamed", "too many", "no message"],
)
def test_a_record_that_fails_fails_the_load(load: Callable[..., Client], tmp_path: Path, records: Any, code: str, says: str) -> None:
    saved_models.half_plus(tmp_path / "m" / "1")
    write_records(tmp_path / "m" / "1", *records)
    found = refused(load().reload, config(m=tmp_path / "m"))
    assert found.code == "UNKNOWN"
    assert f"due to error: {code}: {says}" in found.details


def test_a_thousand_records_are_not_too_many(load: Callable[..., Client], tmp_path: Path) -> None:
    saved_models.counter(tmp_path / "m" / "1")
    write_records(tmp_path / "m" / "1", *[_count_log()] * 1000)
    assert _counted(load(), tmp_path / "m") == 1000.0


def test_a_file_of_another_format_fails_the_load(load: Callable[..., Client], tmp_path: Path) -> None:
    saved_models.half_plus(tmp_path / "m" / "1")
    write_records(tmp_path / "m" / "1").write_bytes(b"this is no TFRecord file, and longer than a header")
    client = load()
    found = refused(client.reload, config(m=tmp_path / "m"))
    assert found.code == "UNKNOWN"
    assert "due to error: DATA_LOSS: " in found.details
    assert ". Please verify your warmup data is in TFRecord format." in found.details


def test_an_empty_file_is_no_records(load: Callable[..., Client], tmp_path: Path) -> None:
    saved_models.half_plus(tmp_path / "m" / "1")
    write_records(tmp_path / "m" / "1")
    client = load()
    client.reload(config(m=tmp_path / "m"))
    assert client.states("m") == {1: "AVAILABLE"}


def test_the_records_are_not_batched_nor_counted_as_requests(serve: Serve, tmp_path: Path) -> None:
    saved_models.half_plus(tmp_path / "m" / "1")
    write_records(tmp_path / "m" / "1", predict_log(x=[[2.0]] * 3))
    file = write(tmp_path / "batching", "max_batch_size { value: 2 }")
    served = serve("--model_name=m", f"--model_base_path={tmp_path / 'm'}", "--enable_batching", f"--batching_parameters_file={file}")
    assert served.client.states("m") == {1: "AVAILABLE"}
    assert 'model_name="m"' not in served.running.server._metrics.render()
