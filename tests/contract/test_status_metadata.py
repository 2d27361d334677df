"""GetModelMetadata and GetModelStatus: signatures as they are stored, and the state of every version that ever was."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests.contract import saved_models
from tests.contract.conftest import Served, config, predict_log, refused, until, write, write_records

OK, NOT_FOUND, DATA_LOSS = 0, 5, 15


# ---- metadata


@pytest.mark.parametrize("name", ["half_plus_two", "several", "module", "keras", "odd"])
def test_the_signatures_are_those_in_the_saved_model(static: Served, models: Path, name: str) -> None:
    """Tensor names, defaults and the init op's signature included: nothing is added, left out or made up."""
    stored = saved_model_pb2.SavedModel.FromString((models / name / "00000123" / "saved_model.pb").read_bytes())
    expected = dict(stored.meta_graphs[0].signature_def)
    assert static.client.signatures(name) == expected
    assert expected


def test_what_a_client_reads_out_of_it(static: Served) -> None:
    found = static.client.signatures("half_plus_two")["regress_x_to_y"]
    assert found.method_name == "tensorflow/serving/regress"
    assert found.inputs["inputs"].name == "tf_example:0"
    assert found.inputs["inputs"].dtype == tf.string.as_datatype_enum
    assert found.outputs["outputs"].name == "y:0"
    assert "__saved_model_init_op" in static.client.signatures("module")
    assert static.client.signatures("several")["defaults"].defaults["b"].float_val[0] == 10.0


def test_the_model_spec_has_a_name_and_a_version_only(static: Served) -> None:
    spec = static.client.metadata("half_plus_two", signature="regress_x_to_y").model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("half_plus_two", 123, "")
    assert spec.WhichOneof("version_choice") == "version"


def test_the_metadata_of_a_named_version(static: Served) -> None:
    assert static.client.metadata("half_plus_two", version=123).model_spec.version.value == 123


@pytest.mark.parametrize("name", ["half_plus_two", "no such model", ""])
@pytest.mark.parametrize(
    ("fields", "details"),
    [
        ([], "GetModelMetadataRequest must specify at least one metadata_field"),
        (["zz"], "Metadata field zz is not supported"),
        (["signature_def", "zz"], "Metadata field zz is not supported"),
    ],
)
def test_fields_are_checked_before_the_model_is_looked_up(static: Served, name: str, fields: list[str], details: str) -> None:
    found = refused(static.client.metadata, name, fields)
    assert (found.code, found.details) == ("INVALID_ARGUMENT", details)


def test_a_missing_model_spec_is_found_before_a_missing_field(static: Served) -> None:
    assert refused(static.client.metadata, None, []).details == "Missing ModelSpec"


# ---- status


def test_a_loaded_version(static: Served) -> None:
    (only,) = static.client.status("half_plus_two").model_version_status
    assert (only.version, only.state, only.status.error_code, only.status.error_message) == (123, 30, OK, "")


def test_versions_come_in_descending_order(serve: Callable[..., Served], tmp_path: Path) -> None:
    for version in (2, 10, 9):
        saved_models.plus(tmp_path / "m" / str(version), version)
    file = write(tmp_path / "config", config(m=(tmp_path / "m", "model_version_policy { all {} }")))
    client = serve(f"--model_config_file={file}").client
    until(lambda: client.states("m") == dict.fromkeys((10, 9, 2), "AVAILABLE"), "all loaded")
    assert list(client.states("m")) == [10, 9, 2]
    assert [one.version for one in client.status("m", version=9).model_version_status] == [9]


def test_a_label_is_ignored(static: Served) -> None:
    assert len(static.client.status("half_plus_two", label="no such label").model_version_status) == 1


def test_the_states_of_a_version_from_its_loading_to_its_end(serve: Callable[..., Served], tmp_path: Path) -> None:
    """LOADING while it loads, AVAILABLE, UNLOADING while a request still runs on it, END; each with OK."""
    base = tmp_path / "slow"
    saved_models.slow(base / "1")
    write_records(base / "1", predict_log(x=np.int32([300_000])))
    served = serve(f"--model_config_file={write(tmp_path / 'config', '')}")
    client = served.client
    reloading = threading.Thread(target=client.reload, args=(config(slow=base),))
    reloading.start()
    until(lambda: client.states("slow") == {1: "LOADING"}, "it loads")
    found = refused(client.predict, "slow", {"x": np.int32([1])})
    assert (found.code, found.details) == ("NOT_FOUND", "Servable not found for request: Latest(slow)")
    until(lambda: client.states("slow") == {1: "AVAILABLE"}, "it is loaded")
    reloading.join()
    answers: list[Any] = []
    running = threading.Thread(target=lambda: answers.append(client.values("slow", {"x": np.int32([150_000])})))
    running.start()
    until(lambda: served.users("slow", 1), "the request runs")
    client.reload("model_config_list {}")
    until(lambda: client.states("slow") == {1: "UNLOADING"}, "it is being unloaded")
    assert refused(client.predict, "slow", {"x": np.int32([1])}).code == "NOT_FOUND"
    running.join()
    assert answers == [[150_000]]
    until(lambda: client.states("slow") == {1: "END"}, "it is unloaded")
    (only,) = client.status("slow").model_version_status
    assert (only.status.error_code, only.status.error_message) == (OK, "")


def test_a_version_that_failed_keeps_its_error_also_when_its_model_is_gone(serve: Callable[..., Served], tmp_path: Path) -> None:
    base = tmp_path / "m"
    saved_models.plus(base / "1", 1)
    client = serve("--model_name=m", f"--model_base_path={base}").client
    saved_models.corrupt(base / "2")
    until(lambda: client.states("m") == {2: "END", 1: "AVAILABLE"}, "2 has failed, 1 serves")
    failed = client.status("m", version=2).model_version_status[0].status
    assert failed.error_code == DATA_LOSS
    assert "Can't parse" in failed.error_message
    client.reload("model_config_list {}")
    until(lambda: client.states("m") == {2: "END", 1: "END"}, "all is unloaded")
    errors = {one.version: one.status.error_code for one in client.status("m").model_version_status}
    assert errors == {2: DATA_LOSS, 1: OK}


def test_the_error_of_a_version_without_a_graph_file(serve: Callable[..., Served], tmp_path: Path) -> None:
    base = tmp_path / "m"
    saved_models.plus(base / "1", 1)
    (base / "2").mkdir()
    client = serve(f"--model_config_file={write(tmp_path / 'config', '')}").client
    refused(client.reload, config(m=base))
    failed = client.status("m", version=2).model_version_status[0].status
    assert failed.error_code == NOT_FOUND
    assert failed.error_message == f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {base / '2'}"
