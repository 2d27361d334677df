"""An edge file answers on LiteRT without TensorFlow: from Python and from the command line."""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.registry import Published
from tests.edge_files import LABELS, TEXTS, tiny
from tfpipeline.edge import command, convert, files, verify
from tfpipeline.edge.runner import EdgeModel
from tfpipeline.errors import ConfigError, DataError, GateError
from tfpipeline.trained import Trained

pytest.importorskip("ai_edge_litert", reason="LiteRT runs edge files: pip install 'tfpipeline[edge]'")

LONG = "the app was very slow and " * 12


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def path(made: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("edge") / "model.tflite"
    path.write_bytes(convert.convert(made, mode="dynamic", lengths=(8, 16, 32)).data)
    return path


@pytest.fixture(scope="module")
def pair_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    (folder / "model.tflite").write_bytes(convert.convert(tiny(folder, has_pairs=True), lengths=()).data)
    return folder / "model.tflite"


def _run(*arguments: str, runs: Path = Path("runs")) -> tuple[dict[str, Any], str]:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()

    def add(name: str, run: Any, summary: str, example: str) -> argparse.ArgumentParser:
        del summary, example
        added = commands.add_parser(name)
        added.add_argument("--runs", type=Path, default=runs)
        added.set_defaults(run=run)
        return added

    command.add(add)
    options = parser.parse_args(["edge", *arguments])
    result: tuple[dict[str, Any], str] = options.run(options)
    return result


def test_neither_tensorflow_nor_transformers_is_imported(path: Path) -> None:
    code = (
        "import sys; from tfpipeline.edge.runner import EdgeModel; m = EdgeModel(sys.argv[1]); print(m.predict(['the app']).shape);"
        "import tfpipeline.edge.files, tfpipeline.edge.verify, tfpipeline.edge.command;"
        "print(sorted({n.split('.')[0] for n in sys.modules} & {'tensorflow', 'transformers', 'tokenizers', 'pyarrow', 'tf_keras'}))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["(1, 3)", "[]"]


def test_answers_are_in_the_order_of_the_texts_and_none_is_none(path: Path) -> None:
    model = EdgeModel(path, threads=1)
    together = model.predict(TEXTS)
    np.testing.assert_array_equal(together, np.concatenate([model.predict([text]) for text in TEXTS]))
    assert together.dtype == np.float32
    np.testing.assert_allclose(together.sum(axis=1), 1.0, atol=1e-5)
    assert model.predict([]).shape == (0, 3)


def test_lengths_are_counted_before_the_cut_and_cuts_are_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = EdgeModel(path, threads=1)
    lengths = model.token_lengths(["", "the app", LONG])
    assert lengths.tolist()[:2] == [2, 4]
    assert lengths[2] > 32
    with caplog.at_level(logging.WARNING):
        answers = model.predict(["", LONG, LONG + " great"])
    assert model.truncated == 2
    assert "2 of 3 texts are longer than 32 tokens; the rest was cut off." in caplog.text
    np.testing.assert_array_equal(answers[1], answers[2])
    assert np.isfinite(answers).all()  # the empty text too
    model.predict(["the app"])
    assert model.truncated == 0


def test_each_thread_with_its_own_model_gets_its_own_answers(path: Path) -> None:
    expected = EdgeModel(path, threads=1).predict(TEXTS)
    found: list[Any] = []

    def work() -> None:
        found.append(EdgeModel(path, threads=1).predict(TEXTS))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(found) == 4
    for answers in found:
        np.testing.assert_array_equal(answers, expected)


def test_texts_and_pairs_must_fit_the_model(path: Path, pair_path: Path) -> None:
    with pytest.raises(ConfigError, match="this model takes one text a row, received two"):
        EdgeModel(path).predict(["a"], ["b"])
    with pytest.raises(ConfigError, match="this model takes two texts a row, received one"):
        EdgeModel(pair_path).predict(["a"])
    with pytest.raises(ConfigError, match=r"expected as many second texts as first ones \(2\), received 1"):
        EdgeModel(pair_path).predict(["a", "b"], ["c"])
    with pytest.raises(ConfigError, match=r"threads: expected 0 \(all cores\) or more, received -1"):
        EdgeModel(path, threads=-1)


def test_the_command_answers(path: Path, pair_path: Path, made: Trained) -> None:
    document, text = _run(str(path), "the app was great", "awful", "--threads", "1")
    assert [row["label"] for row in document["predictions"]] == [
        LABELS[row.argmax()] for row in made.predict(["the app was great", "awful"])
    ]
    assert text.splitlines()[1].endswith("\tawful")
    assert len(_run(str(path.parent), "")[0]["predictions"]) == 1
    assert len(_run(str(pair_path), "the app", "the card")[0]["predictions"]) == 1
    with pytest.raises(ConfigError, match="this model takes pairs of texts; received 1 texts"):
        _run(str(pair_path), "the app")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give texts (tfpipeline edge MODEL \"a text\"), --input FILE, --verify or --time."),
        (("--input", "a.txt"), "--input FILE and --output FILE belong together."),
        (("a", "--input", "a.txt", "--output", "b.csv"), "give texts or --input FILE, not both."),
        (("a", "--against", "latest"), "--against RUN belongs to --verify."),
        (("a", "--threads", "-2"), "--threads -2: expected 0 (all cores) or more."),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(path: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        _run(str(path), *arguments)
    assert str(error.value) == message


ROWS = {
    ".txt": "the app was great\nawful\n\n",
    ".csv": 'id,text\n1,the app was great\n2,"awful"\n3,""\n',
    ".tsv": "id\ttext\n1\tthe app was great\n2\tawful\n3\t\n",
    ".jsonl": '{"text": "the app was great"}\n{"text": "awful"}\n{"text": ""}\n',
}


@pytest.mark.parametrize("suffix", ROWS)
def test_a_file_of_texts_is_scored(path: Path, tmp_path: Path, suffix: str) -> None:
    source, output = tmp_path / f"in{suffix}", tmp_path / "out.jsonl"
    source.write_text(ROWS[suffix], encoding="utf-8")
    document, text = _run(str(path), "--input", str(source), "--output", str(output))
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == ["the app was great", "awful", ""]
    assert (document["rows"], document["truncated"]) == (3, 0)
    assert text == f"Scored 3 texts into {output}."
    expected = EdgeModel(path).predict(["the app was great", "awful", ""])
    np.testing.assert_allclose([list(row["probabilities"].values()) for row in rows], expected, atol=1e-5)
    assert rows[1]["source"].startswith(f"{source}:")


def test_scored_rows_as_csv_and_long_ones_told(path: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text(LONG + "\n", encoding="utf-8")
    _, text = _run(str(path), "--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.csv"))
    assert text.endswith("; 1 were longer than 32 tokens and were cut.")
    header, row = (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()
    assert header == "source,text,label,score,probability:good,probability:bad,probability:neither"
    assert row.startswith(f"{tmp_path / 'in.txt'}:1,the app")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "in.jsonl:2: expected a text in column 'text', received None (columns: txt)."),
        ("in.jsonl", b'{"text": "a"}\n["b"]\n', "in.jsonl:2: expected a JSON object, received list."),
        ("in.jsonl", b'{"text": "a"\n', "in.jsonl:1: not a JSON object"),
        ("in.csv", b"id,review\n1,a\n", "in.csv:2: expected a text in column 'text', received None (columns: id, review)."),
        ("in.txt", b"a\n\xff\n", "in.txt: not UTF-8 at byte"),
    ],
)
def test_a_broken_row_stops_and_nothing_is_written(path: Path, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        files.score(EdgeModel(path), tmp_path / name, tmp_path / "out.csv")
    assert message in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_other_formats_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"in\.parquet: expected a name ending in \.txt, \.csv, \.tsv, \.jsonl"):
        files.score(EdgeModel(path), tmp_path / "in.parquet", tmp_path / "out.csv")
    with pytest.raises(ConfigError, match=r"out\.xlsx: expected a name ending in \.csv or \.jsonl"):
        files.score(EdgeModel(path), tmp_path / "in.txt", tmp_path / "out.xlsx")


def test_verify_without_anything_to_compare_with_says_so(path: Path) -> None:
    document, text = _run(str(path), "--verify")
    assert document["verified"]["labels"] == list(LABELS)
    assert "not compared: no SavedModel lies beside the file" in text


def test_verify_compares_with_the_saved_model_and_with_the_run(tiny_run: Any, tiny_model: Published, tmp_path: Path) -> None:
    """A published version with an edge file of the same run in it; then with one of another model."""
    import shutil

    from tfpipeline.trained import load

    version = tmp_path / tiny_model.path.name
    shutil.copytree(tiny_model.path, version)
    trained = load(tiny_run)
    (version / "model.tflite").write_bytes(convert.convert(trained, mode="float32").data)
    document, text = _run(str(version), "--verify", runs=tiny_run.path.parent)
    parity = document["verified"]["parity"]
    assert parity["agreement"] == 1.0
    assert parity["texts"] >= 100
    assert parity["largest_difference"] < 1e-4
    assert "labels are those of the SavedModel beside it" in text
    assert _run(str(version), "--verify", runs=tmp_path)[0]["verified"]["parity"]["agreement"] == 1.0  # the run is gone: probes and samples
    against = _run(str(version), "--verify", "--against", str(tiny_run.path))[0]["verified"]["parity"]
    assert against["texts"] >= 100
    for weight in trained.model.classifier.weights:
        weight.assign(-weight)
    (version / "model.tflite").write_bytes(convert.convert(trained, mode="float32").data)
    with pytest.raises(GateError, match="the file answers differently from its model"):
        _run(str(version), "--verify", runs=tiny_run.path.parent)


def test_time_measures_warm_and_cold(path: Path) -> None:
    document, text = _run(str(path), "--time", "--threads", "1")
    (warm,) = document["time"]["warm"]
    assert 0 < warm["p50_ms"] <= warm["p95_ms"]
    assert document["time"]["cold_ms"]["median"] > warm["p50_ms"]
    assert "ms median" in text
    assert "first answer" in text


def test_a_text_form_file_tokenises_in_its_graph(made: Trained) -> None:
    """Cleaned text goes in; TensorFlow Text's operators are in the file, and their registerer runs them."""
    file = convert.convert(made, mode="dynamic", form="text")
    custom = [name for name in file.report["operators"] if "FastWordpiece" in name]
    assert custom, file.report["operators"]
    assert not any(name.startswith("Flex") for name in file.report["operators"])
    texts = [*TEXTS, "", "Caf&eacute; &amp; <b>bar</b> https://a.example", LONG]
    ours = EdgeModel(file.data, threads=1).predict(texts)
    np.testing.assert_allclose(ours, EdgeModel(convert.convert(made, mode="dynamic", lengths=()).data).predict(texts), atol=1e-4)


def test_verify_finds_a_file_whose_signatures_are_not_those_it_names(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify.inspect, "signatures", lambda data: {"serving_8": 0})
    with pytest.raises(DataError, match=r"expected the signatures \['serving_16', 'serving_32', 'serving_8'\], received \['serving_8'\]"):
        verify.check(path)
