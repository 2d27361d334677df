"""What is known of a model before a server loads it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving import checks, wire
from serving.errors import GateRefused, IntegrityError, RegistryError
from serving.registry import Published
from tests.fake_tf_serving import make_model, write_records

SIGNATURES = {
    "serving_default": {"inputs": {"text": {"dtype": "string"}}, "outputs": {}},
    "tokens": {"inputs": {"input_ids": {"dtype": "int32"}, "mask": {"dtype": "float32"}}, "outputs": {}},
    "classify": {"inputs": {"inputs": {"dtype": "string"}}, "outputs": {}},
}


def predict_log(signature: str, **inputs: Any) -> bytes:
    log = wire.PredictionLog()
    log.predict_log.request.model_spec.signature_name = signature
    for name, value in inputs.items():
        log.predict_log.request.inputs[name].CopyFrom(wire.to_tensor(value))
    return bytes(log.SerializeToString())


def classify_log(signature: str, *, examples: bool = True) -> bytes:
    log = wire.PredictionLog()
    log.classify_log.request.model_spec.signature_name = signature
    if examples:
        log.classify_log.request.input.example_list.examples.add()
    return bytes(log.SerializeToString())


def multi_log(*signatures: str) -> bytes:
    log = wire.PredictionLog()
    log.multi_inference_log.request.input.example_list.examples.add()
    for signature in signatures:
        log.multi_inference_log.request.tasks.add().model_spec.signature_name = signature
    return bytes(log.SerializeToString())


def bad_tensor_log() -> bytes:
    log = wire.PredictionLog()
    log.predict_log.request.inputs["text"].dtype = wire.DT_FLOAT
    log.predict_log.request.inputs["text"].tensor_content = b"123"
    return bytes(log.SerializeToString())


def session_log() -> bytes:
    log = wire.PredictionLog()
    log.session_run_log.SetInParent()
    return bytes(log.SerializeToString())


def test_the_checksum_is_that_of_tfrecords() -> None:
    """The published check value of CRC-32C (RFC 3720) is e3069283; masked it is this."""
    crc = 0xE3069283
    assert checks.masked_crc32c(b"123456789") == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def test_good_records_are_counted(tmp_path: Path) -> None:
    import numpy as np

    records = [
        predict_log("", text=["a"]),
        predict_log("serving_default", text=["a", "b"]),
        predict_log("tokens", input_ids=np.zeros((1, 2), np.int32), mask=np.zeros((1, 2), np.float32)),
        classify_log("classify"),
        multi_log("classify", "classify"),
        b"",
    ]
    path = write_records(tmp_path / "warmup", records)
    assert checks.check_warmup(path, SIGNATURES) == 6
    assert checks.check_warmup(tmp_path / "none", SIGNATURES) == 0


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (b"\xff\xff", "is not a PredictionLog"),
        (session_log(), "is a session_run_log, which the server does not replay"),
        (predict_log("other", text=["a"]), "asks signature 'other'; the model has classify, serving_default, tokens"),
        (predict_log("serving_default", words=["a"]), "gives signature 'serving_default' words (string); it takes text (string)"),
        (predict_log("serving_default", text=[1.0]), "gives signature 'serving_default' text (double); it takes text (string)"),
        (predict_log("tokens"), "gives signature 'tokens' nothing; it takes input_ids (int32), mask (float)"),
        (classify_log("serving_default"), "gives signature 'serving_default' inputs (string); it takes text (string)"),
        (classify_log("classify", examples=False), "has no examples"),
        (multi_log("classify", "tokens"), "gives signature 'tokens' inputs (string); it takes input_ids (int32), mask (float)"),
        (bad_tensor_log(), "input 'text': tensor_content of 3 bytes does not hold 1 values of float32"),
    ],
)
def test_a_record_that_would_fail_the_load_is_refused(tmp_path: Path, record: bytes, problem: str) -> None:
    path = write_records(tmp_path / "warmup", [predict_log("", text=["a"]), record])
    with pytest.raises(RegistryError) as raised:
        checks.check_warmup(path, SIGNATURES)
    assert str(raised.value) == f"{path}: record 1: {problem}. The server would refuse to load this version; export the run again."


def test_more_records_than_a_server_takes_are_refused(tmp_path: Path) -> None:
    path = write_records(tmp_path / "warmup", [b""] * 1000)
    assert checks.check_warmup(path, None) == 1000
    write_records(path, [b""] * 1001)
    with pytest.raises(RegistryError, match="record 1000: more than 1000 records"):
        checks.check_warmup(path, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"PK" + data[2:], "not a TFRecord file at byte 0"),
        (lambda data: b"short", "not a TFRecord file at byte 0"),
        (lambda data: data + data[:7], "not a TFRecord file at byte"),
        (lambda data: data[:-1], "not a TFRecord file at byte"),
        (lambda data: (2**63).to_bytes(8, "little") + data[8:], "not a TFRecord file at byte 0"),
        (lambda data: data[:14] + bytes([data[14] ^ 1]) + data[15:], "the record at byte 0 is damaged"),
    ],
)
def test_a_file_that_is_not_tfrecords_or_damaged_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = write_records(tmp_path / "warmup", [predict_log("", text=["a"])])
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(RegistryError, match=message):
        checks.check_warmup(path, None)


def model(tmp_path: Path, **manifest: Any) -> Published:
    return make_model(tmp_path / "models", 7, **manifest)


def test_a_good_model_passes(tmp_path: Path) -> None:
    source = checks.open_source(model(tmp_path).path)
    assert (source.name, source.version) == ("sentiment", 7)
    assert checks.check(source) == {
        "files": 2,
        "bytes": sum(entry["bytes"] for entry in source.files.values()),
        "signatures": ["serving_default"],
        "ops": 2,
        "warmup_records": 0,
    }


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"signatures": None}, "expected `signatures` with inputs and outputs"),
        ({"signatures": {"serving_default": {"inputs": {}}}}, "expected `signatures` with inputs and outputs"),
        ({"ops": None}, "expected `ops`, the list of all ops of the graph"),
        ({"ops": ["Const", "PyFunc"]}, "the graph needs PyFunc, which this server does not have"),
        ({"ops": ["XlaLaunch", "EagerPyFunc"]}, "the graph needs EagerPyFunc, XlaLaunch, which"),
        ({"golden_probes": {"tolerance": 1e-3, "texts": ["a"], "probabilities": []}}, "`golden_probes` expects as many probabilities"),
        ({"golden_probes": {"tolerance": 0, "texts": [], "probabilities": []}}, "a tolerance above 0"),
        ({"golden_probes": {"tolerance": 1, "texts": ["a"], "text_pairs": ["a", "b"], "probabilities": [[1]]}}, "as many probabilities"),
    ],
)
def test_a_manifest_that_lacks_what_a_push_needs_is_refused(tmp_path: Path, manifest: dict[str, Any], message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        checks.check(checks.open_source(model(tmp_path, **manifest).path))


def test_an_op_that_this_server_does_not_have_is_refused(tmp_path: Path) -> None:
    source = checks.open_source(model(tmp_path).path)
    with pytest.raises(RegistryError) as raised:
        checks.check(source, ["MatMul"])
    assert str(raised.value) == f"{source.path}: the graph needs MatMul, which this server does not have. Export the model without it."


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = model(tmp_path).path
    (path / "variables" / "variables.index").write_bytes(b"other")
    with pytest.raises(IntegrityError, match="changed since it was published"):
        checks.check(checks.open_source(path))


def test_a_manifest_without_a_model_is_refused(tmp_path: Path) -> None:
    made = model(tmp_path)
    (made.path / "saved_model.pb").unlink()
    manifest = made.manifest
    del manifest["files"]["saved_model.pb"]
    (made.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RegistryError, match="holds no model"):
        checks.check(checks.open_source(made.path))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    made = model(tmp_path)
    target = made.path / "variables" / "variables.index"
    moved = target.rename(tmp_path / "elsewhere")
    target.symlink_to(moved)
    with pytest.raises(IntegrityError) as raised:
        checks.check(checks.open_source(made.path))
    assert str(raised.value) == f"{target}: is a link that leads out of the folder. Copy the file itself there and export again."


def test_a_model_without_a_manifest_needs_a_reason(tmp_path: Path) -> None:
    folder = tmp_path / "anything"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"graph")
    with pytest.raises(RegistryError) as raised:
        checks.open_source(folder)
    assert str(raised.value) == (
        f"{folder}: has no manifest.json, so neither its files nor its evaluation can be checked. Export it with tfpipeline, or give a reason: "
        '--force "reason" (recorded).'
    )
    source = checks.open_source(folder, force="an experiment")
    assert (source.name, source.manifest, source.probes, sorted(source.files)) == ("anything", None, None, ["saved_model.pb"])
    assert checks.check(source) == {"files": 1, "bytes": 5, "warmup_records": 0}
    write_records(folder / checks.WARMUP, [b"\xff\xff"])
    with pytest.raises(RegistryError, match="record 0: is not a PredictionLog"):
        checks.check(checks.open_source(folder, force="an experiment"))


@pytest.mark.parametrize(
    ("case", "gate", "refused"),
    [
        ("passed", {"passed": True, "reasons": []}, ""),
        ("no gate was set", {"passed": None, "reasons": []}, ""),
        (
            "refused",
            {"passed": False, "reasons": ["accuracy 0.5 is below 0.9", "worse than before"]},
            "accuracy 0.5 is below 0.9; worse than before",
        ),
        ("refused without a reason", {"passed": False}, "the evaluation gave no reason"),
        ("something else", {"passed": "yes"}, "the evaluation gave no reason"),
        ("no verdict", None, "the manifest holds no verdict of an evaluation"),
    ],
)
def test_the_gate(tmp_path: Path, case: str, gate: Any, refused: str) -> None:
    source = checks.open_source(model(tmp_path, gate=gate).path)
    if not refused:
        assert checks.hold_gate(source) == {"passed": gate["passed"]}
        return
    with pytest.raises(GateRefused) as raised:
        checks.hold_gate(source)
    assert str(raised.value) == (
        f'{source.path}: {refused}. Nothing was changed. Train a better model, or give a reason to serve it all the same: --force "reason" (recorded).'
    )
    assert checks.hold_gate(source, "the demo is today")["forced"] == "the demo is today"


def test_what_our_export_makes_passes(tiny_model: Published) -> None:
    found = checks.check(checks.open_source(tiny_model.path))
    assert found["warmup_records"] == tiny_model.manifest["warmup_records"] > 0
    assert found["signatures"] == ["classify", "explain", "serving_default", "tokens"]
