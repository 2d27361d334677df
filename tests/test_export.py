"""A published model: it answers as the trained one did, from its folder alone, or it is not published."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from serving.errors import IntegrityError, RegistryError
from serving.registry import Published, Registry
from serving.scripts import SCRIPTS
from tfpipeline import export as exporting
from tfpipeline import runs, sagemaker, trained
from tfpipeline.cli import main
from tfpipeline.data import open_prepared
from tfpipeline.errors import ExportError, RunError
from tfpipeline.served import Served

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
        "MODEL_CARD.md",
    ):
        assert (tiny_model.path / name).is_file(), name
    assert sorted(path.name for path in tiny_model.path.parent.iterdir()) == [str(tiny_model.version)]
    tiny_model.verify()


def test_signatures_with_their_names_and_types(tiny_model: Published) -> None:
    found = tiny_model.manifest["signatures"]
    assert found["serving_default"] == {
        "inputs": {"text": {"dtype": "string", "shape": [None]}},
        "outputs": {
            "classes": {"dtype": "string", "shape": [None, 2]},
            "label": {"dtype": "string", "shape": [None]},
            "probabilities": {"dtype": "float32", "shape": [None, 2]},
            "score": {"dtype": "float32", "shape": [None]},
            "tokens": {"dtype": "int32", "shape": [None]},
            "unknown": {"dtype": "float32", "shape": [None]},
        },
    }
    assert set(found) == {"serving_default", "tokens", "classify", "explain"}
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


def test_tokens_and_unknown_are_counted_after_cutting(tiny_run: runs.Run, loaded) -> None:  # type: ignore[no-untyped-def]
    texts = ["", "the app", "the app 中文 中文", "中", "great " * 500]
    answer = loaded.signatures["serving_default"](text=tf.constant(texts))
    preprocessor = trained.load(tiny_run).preprocessor
    counted = [count.numpy().tolist() for count in preprocessor.count(tf.constant(texts))]
    assert answer["tokens"].numpy().tolist() == [*counted[0][:4], preprocessor.config.max_length]
    shares = [unknown / max(1, tokens - 2) for tokens, unknown in zip(*counted, strict=True)]
    np.testing.assert_allclose(answer["unknown"], shares, atol=1e-6)
    assert shares[:2] == [0.0, 0.0]
    assert shares[3] == 1.0


def test_a_pair_is_counted_with_both_texts_and_three_marks(tiny_run: runs.Run) -> None:
    preprocessor = trained.load(tiny_run).preprocessor
    tokens = preprocessor(tf.constant(["the app", ""]), tf.constant(["中", ""]))
    read, unknown = preprocessor.count_read(tokens)
    assert read.numpy()[1] == 3
    assert unknown.numpy().tolist() == pytest.approx([1 / (int(read[0]) - 3), 0.0])


def test_the_reference_is_what_the_served_model_answers_on_the_same_texts(tiny_run: runs.Run, tiny_model: Published, loaded) -> None:  # type: ignore[no-untyped-def]
    examples = open_prepared(tiny_run.path / "data").test
    texts, _ = examples.text_batch(np.arange(len(examples)))
    answer = {key: value.numpy() for key, value in loaded.signatures["serving_default"](text=tf.constant(texts)).items()}
    reference = tiny_model.manifest["reference"]
    assert reference["rows"] == len(texts)
    labels = answer["label"].astype(str).tolist()
    assert reference["predicted"] == {label: labels.count(label) for label in tiny_model.manifest["labels"]}
    for name, values in (("tokens", answer["tokens"]), ("characters", [len(text) for text in texts]), ("confidence", answer["score"])):
        assert reference[name]["counts"] == np.histogram(values, bins=reference[name]["edges"])[0].tolist()
        assert sum(reference[name]["counts"]) == len(texts)
    share = (answer["unknown"] * answer["tokens"]).sum() / answer["tokens"].sum()
    assert reference["unknown_share"] == pytest.approx(share, abs=1e-6)
    assert reference["scripts"] == {**dict.fromkeys(SCRIPTS, 0), "Latin": len(texts)}


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


def _explaining(gap: float, score: float) -> SimpleNamespace:
    """Signatures that explain a score of 0.75 as if it were `score`, with this gap."""

    def answer(text: tf.Tensor) -> dict[str, tf.Tensor]:
        one = tf.ones(tf.shape(text))
        return {
            "pieces": tf.fill([tf.size(text), 1], "[CLS]"),
            "attributions": tf.zeros([tf.size(text), 1]),
            "label": tf.fill(tf.shape(text), "positive"),
            "score": score * one,
            "baseline_score": 0.5 * one,
            "gap": gap * one,
        }

    return SimpleNamespace(signatures={"explain": answer, "serving_default": lambda text: {"score": 0.75 * tf.ones(tf.shape(text))}})


def test_explanations_that_do_not_add_up_are_not_published() -> None:
    assert exporting.check_explanations(_explaining(0.01, 0.75), AWKWARD, None, 32)["largest_gap"] == pytest.approx(0.01)
    assert exporting.check_explanations(_explaining(9.0, 0.75), AWKWARD, None, 0) == {"steps": 0}
    with pytest.raises(
        ExportError,
        match=r"^signature 'explain': the attributions miss the difference in probability by 0\.06 \(allowed 0\.05\) for the text ''\. Nothing was "
        r"published\. Raise export\.explain_steps \(now 32\), or leave explanations out with 0\.$",
    ):
        exporting.check_explanations(_explaining(-0.06, 0.75), AWKWARD, None, 32)
    with pytest.raises(
        ExportError,
        match=r"^signature 'explain': explains the score 0\.700000, but 0\.750000 is served for the text ''\. Nothing was published\.$",
    ):
        exporting.check_explanations(_explaining(0.0, 0.7), AWKWARD, None, 32)
    with pytest.raises(ExportError, match="miss the difference in probability by nan"):
        exporting.check_explanations(_explaining(float("nan"), 0.75), AWKWARD, None, 32)


def test_a_model_without_explanations_says_so(tiny_model: Published, loaded) -> None:  # type: ignore[no-untyped-def]
    older = exporting.open_model(tiny_model.path)
    older._loaded = SimpleNamespace(signatures={"serving_default": loaded.signatures["serving_default"]})
    with pytest.raises(
        ExportError,
        match=r"has no signature 'explain' \(has: serving_default\)\. Export its run again, with export\.explain_steps above 0\.$",
    ):
        older.explain(["a"])


def test_no_steps_no_signature(tiny_run: runs.Run, tmp_path: Path) -> None:
    model = trained.load(tiny_run)
    config = dataclasses.replace(model.config, export=dataclasses.replace(model.config.export, explain_steps=0))
    (tmp_path / "vocab.txt").write_text("x")
    (tmp_path / "labels.txt").write_text("x")
    assert set(Served(dataclasses.replace(model, config=config), tmp_path).signatures()) == {"serving_default", "tokens", "classify"}


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


def test_the_sagemaker_archive_is_what_its_container_looks_for(tiny_model: Published, tmp_path: Path) -> None:
    target = tmp_path / "new" / "model.tar.gz"
    sagemaker.pack(tiny_model, target)
    first = target.read_bytes()
    with tarfile.open(target) as archive:
        entries = archive.getmembers()
        archive.extractall(tmp_path / "opt", filter="data")
    prefix = f"{tiny_model.name}/{tiny_model.version}/"
    assert f"{prefix}saved_model.pb" in [entry.name for entry in entries]
    assert [entry.name for entry in entries] == sorted(
        (prefix + name for name in [*tiny_model.manifest["files"], "manifest.json"]), key=Path
    )
    assert {(entry.mtime, entry.uid, entry.gid, entry.uname, entry.mode, entry.isfile()) for entry in entries} == {
        (0, 0, 0, "", 0o644, True)
    }
    unpacked = Published(tmp_path / "opt" / tiny_model.name / str(tiny_model.version), tiny_model.name, tiny_model.version)
    unpacked.verify()
    # The same version is the same archive, whenever and wherever it is packed.
    copied = tmp_path / "elsewhere" / str(tiny_model.version)
    shutil.copytree(tiny_model.path, copied, copy_function=shutil.copyfile)
    sagemaker.pack(Published(copied, tiny_model.name, tiny_model.version), target)
    assert target.read_bytes() == first
    assert [path.name for path in target.parent.iterdir()] == ["model.tar.gz"]


def test_a_changed_version_is_not_packed(copy: Published, tmp_path: Path) -> None:
    (copy.path / "extra.py").write_text("")
    with pytest.raises(IntegrityError, match=r"extra\.py: not in the manifest"):
        sagemaker.pack(copy, tmp_path / "model.tar.gz")
    assert not (tmp_path / "model.tar.gz").exists()


def test_another_name_for_the_archive_is_refused_before_anything_is_exported(
    tmp_path: Path, tiny_run: runs.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tiny_run.path), "--to", str(tmp_path / "m"), "--sagemaker", "model.zip"]) == 2
    assert capsys.readouterr().err.strip() == (
        "ConfigError: --sagemaker model.zip: expected a name ending in .tar.gz, as SageMaker asks for, such as model.tar.gz."
    )
    assert not list(tmp_path.iterdir())


def test_the_command_writes_the_archive(tmp_path: Path, tiny_run: runs.Run, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "model.tar.gz"
    assert main(["export", str(tiny_run.path), "--to", str(tmp_path / "m"), "--sagemaker", str(target), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["sagemaker"] == str(target)
    with tarfile.open(target) as archive:
        assert f"m/{said['version']}/MODEL_CARD.md" in archive.getnames()


def test_the_manifest_is_json_that_anything_can_read(tiny_model: Published) -> None:
    assert json.loads((tiny_model.path / "manifest.json").read_text())["format"] == 1
