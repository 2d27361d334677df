"""An edge file says what it is, and every way in which it can be broken is told apart."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from tests.edge_files import LABELS, TEXTS, VOCABULARY, tiny
from tfpipeline.edge import convert, flat, inspect, metadata, verify
from tfpipeline.errors import DataError

interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="LiteRT runs edge files: pip install 'tfpipeline[edge]'")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return convert.convert(tiny(tmp_path_factory.mktemp("tiny")), lengths=()).data


def test_the_file_is_a_model_and_an_archive(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.namelist() == ["vocab.txt", "labels.txt", "tfpipeline.json"]
        assert archive.read("labels.txt").decode().split() == list(LABELS)
        assert archive.testzip() is None
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())  # MediaPipe reads them in place
    contents = metadata.read(data)
    assert contents.vocabulary == VOCABULARY
    assert contents.description["labels"] == list(LABELS)
    assert interpreter.Interpreter(model_content=data).get_signature_list().keys() == {"serving_default"}


def test_the_converters_bytes_are_kept_as_they_were_aligned_as_they_were(data: bytes) -> None:
    """The new root table stands in front of the old file, on a multiple of 64."""
    start = data.index(b"TFL3", 8) - 4
    assert start % 64 == 0
    old, new = flat.root(data[start:]), flat.root(data)
    assert [len(table.tables(4)) for table in (new, old)] == [len(old.tables(4)) + 1, len(old.tables(4))]
    assert new.tables(6)[-1].text(0) == "TFLITE_METADATA"
    assert [item.text(0) for item in old.tables(6)] == [item.text(0) for item in new.tables(6)[:-1]]
    assert inspect.operators(data[start:]) == inspect.operators(data)


def test_the_metadata_buffer_is_what_the_schema_says(data: bytes) -> None:
    root = flat.root(data)
    buffer = root.tables(4)[root.tables(6)[-1].number(1)]
    start = buffer.target(0)
    assert (start + 4) % 16 == 0
    content = data[start + 4 :]
    assert content[4:8] == b"M001"
    described = flat.root(content)
    assert described.text(0) == "tiny"
    (subgraph,) = described.tables(3)
    assert sorted(tensor.text(0) for tensor in subgraph.tables(2)) == ["ids", "mask", "segment_ids"]
    assert [file.text(0) for file in subgraph.tables(3)[0].tables(6)] == ["labels.txt"]
    (unit,) = subgraph.tables(5)
    assert unit.number(0, "B") == 4  # BertTokenizerOptions
    assert flat.Table(content, unit.target(1)).tables(0)[0].text(0) == "vocab.txt"


def _changed(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _foreign(data: bytes) -> bytes:
    stream = io.BytesIO()
    stream.write(data[: data.index(b"PK\x03\x04")])
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("labels.txt", "cat\ndog\n")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda data: data[: data.index(b"PK\x03\x04")], "has no labels, vocabulary and settings at its end"),
        (lambda data: data[:-1000], "it is truncated, or was not written by this project"),
        (lambda data: data[: len(data) // 2], "it is truncated, or was not written by this project"),
        (_foreign, "written by another project: expected tfpipeline.json among its files, received labels.txt"),
        (lambda data: _changed(data, len(data) // 2), "its bytes changed after it was written"),
        (lambda data: _changed(data, len(data) - 1), "its bytes changed after it was written"),
        (lambda data: _changed(data, 40), "its bytes changed after it was written"),
        (lambda data: data + b"\n", "its bytes changed after it was written"),
        (lambda data: b"PK" + data, "not a .tflite file (expected 'TFL3' at byte 4, received b'"),
        (lambda data: b"", "not a .tflite file (expected 'TFL3' at byte 4, received b'')"),
    ],
    ids=["no metadata", "end missing", "half missing", "another project's", "a weight changed", "the hash changed", "the head changed", "a byte more", "not a model", "empty"],
)  # fmt: skip
def test_broken_files_are_refused_with_what_is_wrong(data: bytes, tmp_path: Path, broken: object, message: str) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(broken(data))  # type: ignore[operator]
    with pytest.raises(DataError) as error:
        metadata.read(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_a_newer_format_is_refused(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "FORMAT", 2)
    with pytest.raises(DataError, match=r"expected format 2 of tfpipeline, received format 1 of 'tfpipeline'"):
        metadata.read(data)


def test_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.tflite: cannot be read \(No such file or directory\)"):
        metadata.read(tmp_path / "nothing.tflite")
    with pytest.raises(DataError, match="no such file or folder"):
        verify.find_file(tmp_path / "nothing.tflite")
    with pytest.raises(DataError, match=r"holds no model\.tflite"):
        verify.find_file(tmp_path)


def test_a_version_folder_or_a_models_folder_stands_for_its_file(tmp_path: Path, data: bytes) -> None:
    for version in ("9", "10", "11"):
        (tmp_path / version).mkdir()
    (tmp_path / "9" / "model.tflite").write_bytes(data)
    (tmp_path / "10" / "model.tflite").write_bytes(data)
    assert verify.find_file(tmp_path) == tmp_path / "10" / "model.tflite"
    assert verify.find_file(tmp_path / "9") == tmp_path / "9" / "model.tflite"
    assert verify.check(tmp_path / "9" / "model.tflite")["sha256"] == metadata.read(data).sha256


def test_mediapipe_answers_from_raw_text(tmp_path: Path, data: bytes) -> None:
    """MediaPipe's own classifier reads vocabulary, labels and inputs from the metadata; on plain English it tokenises as BERT does."""
    pytest.importorskip(
        "mediapipe", reason="the test runs MediaPipe's own TextClassifier: pip install --no-deps mediapipe opencv-python-headless"
    )
    from mediapipe.tasks.python import text as mediapipe_text
    from mediapipe.tasks.python.core.base_options import BaseOptions

    from tfpipeline.edge.runner import EdgeModel

    path = tmp_path / "model.tflite"
    path.write_bytes(data)
    options = mediapipe_text.TextClassifierOptions(base_options=BaseOptions(model_asset_path=str(path)))
    ours = EdgeModel(data)
    texts = [text for text in TEXTS if "://" not in text]  # a URL is cleaned by us only
    with mediapipe_text.TextClassifier.create_from_options(options) as classifier:
        for text, expected in zip(texts, ours.predict(texts), strict=True):
            categories = classifier.classify(text).classifications[0].categories
            found = {category.category_name: category.score for category in categories}
            assert found == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-4)
