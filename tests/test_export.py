"""A published model: it answers as the trained one did, from its folder alone, or it is not published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from serving.errors import IntegrityError, RegistryError
from serving.registry import Published, Registry
from tfpipeline import export as exporting
from tfpipeline import runs, trained
from tfpipeline.errors import ExportError, RunError

AWKWARD = ["", " ", "?!", "great " * 500, "a" * 300, "émigré 中文 🙂", "the app was great today"]


@pytest.fixture(scope="module")
def loaded(tiny_model: Published):  # type: ignore[no-untyped-def]
    return tf.saved_model.load(str(tiny_model.path))


def test_the_folder_holds_what_tensorflow_serving_and_people_need(tiny_model: Published) -> None:
    for name in (
        "saved_model.pb",
        "variables/variables.index",
        "assets/vocab.txt",
        "assets/labels.txt",
        "assets.extra/tf_serving_warmup_requests",
        "manifest.json",
    ):
        assert (tiny_model.path / name).is_file(), name
    assert sorted(path.name for path in tiny_model.path.parent.iterdir()) == [str(tiny_model.version)]
    tiny_model.verify()


def test_three_signatures_with_their_names_and_types(tiny_model: Published) -> None:
    found = tiny_model.manifest["signatures"]
    assert found["serving_default"] == {
        "inputs": {"text": {"dtype": "string", "shape": [None]}},
        "outputs": {
            "classes": {"dtype": "string", "shape": [None, 2]},
            "label": {"dtype": "string", "shape": [None]},
            "probabilities": {"dtype": "float32", "shape": [None, 2]},
            "score": {"dtype": "float32", "shape": [None]},
        },
    }
    assert set(found["tokens"]["inputs"]) == {"input_ids", "attention_mask", "token_type_ids"}
    assert set(found["classify"]["outputs"]) == {"classes", "scores"}


def test_the_exported_model_answers_as_the_trained_one(tiny_run: runs.Run, tiny_model: Published) -> None:
    model = exporting.open_model(tiny_model.path)
    np.testing.assert_allclose(model.predict(AWKWARD), trained.load(tiny_run).predict(AWKWARD), atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_any_batch_size_by_text_by_ids_and_by_example(loaded, rows: int) -> None:  # type: ignore[no-untyped-def]
    texts = AWKWARD[-rows:] if rows else []
    answer = loaded.signatures["serving_default"](text=tf.constant(texts, tf.string))
    assert answer["label"].shape == (rows,)
    assert answer["probabilities"].shape == answer["classes"].shape == (rows, 2)
    examples = [
        tf.train.Example(
            features=tf.train.Features(feature={"text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))})
        )
        for text in texts
    ]
    classified = loaded.signatures["classify"](inputs=tf.constant([example.SerializeToString() for example in examples], tf.string))
    np.testing.assert_allclose(classified["scores"], answer["probabilities"], atol=1e-6)
    ids = tf.zeros([rows, 8], tf.int32)
    logits = loaded.signatures["tokens"](input_ids=ids, attention_mask=tf.ones_like(ids), token_type_ids=ids)["logits"]
    assert logits.shape == (rows, 2)


def test_a_row_does_not_depend_on_its_neighbours(loaded) -> None:  # type: ignore[no-untyped-def]
    serve = loaded.signatures["serving_default"]
    together = serve(text=tf.constant(AWKWARD))["probabilities"].numpy()
    alone = np.concatenate([serve(text=tf.constant([text]))["probabilities"].numpy() for text in AWKWARD])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_manifest_is_the_lineage_on_one_page(tiny_run: runs.Run, tiny_model: Published) -> None:
    manifest = tiny_model.manifest
    assert manifest["run"] == tiny_run.path.name
    assert manifest["labels"] == ["negative", "positive"]
    assert manifest["config_digest"] == tiny_run.config.digest()
    assert manifest["parity"]["texts"] >= 20
    assert max(manifest["parity"][key] for key in ("serving_default", "tokens", "classify")) <= 1e-5
    assert manifest["metrics"]["accuracy"]["low"] <= manifest["metrics"]["accuracy"]["value"]
    assert manifest["warmup_records"] == len(trained.load(tiny_run).preprocessor.lengths) + 2
    assert not set(manifest["ops"]) & exporting.FORBIDDEN_OPS
    probes = manifest["golden_probes"]
    model = exporting.open_model(tiny_model.path)
    np.testing.assert_allclose(model.predict(probes["texts"]), probes["probabilities"], atol=probes["tolerance"])


def test_warm_up_reaches_every_length_bucket(tiny_run: runs.Run, tiny_model: Published) -> None:
    from tensorflow_serving.apis import prediction_log_pb2

    preprocessor = trained.load(tiny_run).preprocessor
    reached = set()
    for raw in tf.data.TFRecordDataset(str(tiny_model.path / "assets.extra" / "tf_serving_warmup_requests")).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(raw)
        inputs = log.predict_log.request.inputs
        if "text" in inputs:
            reached.add(preprocessor(tf.constant(tf.make_ndarray(inputs["text"])))["input_ids"].shape[1])
    assert reached == set(preprocessor.lengths)


def test_a_new_version_is_greater_and_knows_its_parent(tiny_run: runs.Run, tiny_model: Published) -> None:
    second = exporting.export(tiny_run, root=tiny_model.path.parents[1])
    try:
        assert second.version > tiny_model.version
        assert second.manifest["parent"] == tiny_model.version
    finally:
        shutil.rmtree(second.path)


def test_a_changed_weight_is_found_by_the_parity_check(tiny_run: runs.Run, loaded) -> None:  # type: ignore[no-untyped-def]
    model = trained.load(tiny_run)
    model.model.classifier.bias.assign([3.0, -3.0])
    with pytest.raises(
        ExportError, match=r"^signature 'serving_default' of the reloaded model differs from the trained one by 0\.\d+ \(allowed 1e-05\)"
    ):
        exporting.check_parity(model, loaded, AWKWARD, None, 1e-5)


def test_a_graph_that_needs_python_is_refused(tmp_path: Path) -> None:
    module = tf.Module()
    module.f = tf.function(lambda x: tf.py_function(lambda y: y, [x], tf.float32), input_signature=[tf.TensorSpec([None], tf.float32)])
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.f)
    with pytest.raises(
        ExportError, match=r"^.*the graph needs EagerPyFunc, which stock TensorFlow Serving does not have. Nothing was published.$"
    ):
        exporting.check_ops(tmp_path / "m")


def test_a_failing_warm_up_record_is_found(tiny_model: Published, loaded, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from tensorflow_serving.apis import prediction_log_pb2

    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.signature_name = "serving_default"
    log.predict_log.request.inputs["text"].CopyFrom(tf.make_tensor_proto([1.0]))
    (tmp_path / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(tmp_path / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        writer.write(log.SerializeToString())
    with pytest.raises(ExportError, match=r"^warm-up record 0 fails: "):
        exporting.replay_warmup(tmp_path, loaded)


def test_nothing_is_left_when_publishing_fails(tiny_run: runs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ExportError("no")

    monkeypatch.setattr(exporting, "check_parity", fail)
    with pytest.raises(ExportError):
        exporting.export(tiny_run, root=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.name != "tiny"]


def test_an_unevaluated_run_is_not_exported(tiny_run: runs.Run, tmp_path: Path) -> None:
    run = runs.create(tiny_run.config, tmp_path)
    with pytest.raises(RunError, match=r"is not evaluated yet \(status: created\)\. Finish it: tfpipeline train --resume "):
        exporting.export(run, root=tmp_path / "models")


@pytest.fixture
def copy(tiny_model: Published, tmp_path: Path) -> Published:
    target = tmp_path / "models" / "tiny" / str(tiny_model.version)
    shutil.copytree(tiny_model.path, target)
    return Published(target, "tiny", tiny_model.version)


def test_a_changed_file_is_not_loaded(copy: Published) -> None:
    """A SavedModel is code: one changed byte is enough to refuse it."""
    target = copy.path / "saved_model.pb"
    data = bytearray(target.read_bytes())
    data[100] ^= 1
    target.write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        exporting.open_model(copy.path)
    assert str(caught.value) == (
        f"{copy.path}: does not match its manifest: saved_model.pb: changed since it was published. Do not load it; export the run again."
    )


def test_a_missing_and_an_added_file_are_named(copy: Published) -> None:
    (copy.path / "assets" / "labels.txt").unlink()
    (copy.path / "extra.py").write_text("")
    with pytest.raises(IntegrityError, match=r"assets/labels.txt: missing; extra.py: not in the manifest"):
        copy.verify()


def test_a_folder_without_models_says_what_it_wants(tmp_path: Path) -> None:
    with pytest.raises(
        RegistryError, match=r"no published version of any model\. Models there: none\. Publish one: tfpipeline export latest --to "
    ):
        exporting.open_model(tmp_path)


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "x" * 65])
def test_a_name_cannot_leave_the_root(tmp_path: Path, name: str) -> None:
    with pytest.raises(RegistryError, match="expected letters, digits, _ and -"), Registry(tmp_path).publishing(name):
        pass


def test_versions_only_grow_also_when_the_clock_does_not(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    versions = []
    for _ in range(3):
        with registry.publishing("m") as staged:
            (staged.folder / "file").write_text("x")
            versions.append(staged.publish({}).version)
    assert versions == sorted(set(versions))
    assert [published.version for published in registry.versions("m")] == versions


def test_a_folder_that_is_being_written_is_no_version(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    with registry.publishing("m") as staged:
        (staged.folder / "file").write_text("x")
        assert registry.versions("m") == []
    assert list((tmp_path / "m").iterdir()) == []


def test_the_manifest_is_json_that_anything_can_read(tiny_model: Published) -> None:
    assert json.loads((tiny_model.path / "manifest.json").read_text())["format"] == 1
