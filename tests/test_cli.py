"""The command line: exit codes, one JSON document, and one clear message for every mistake a user can make."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from serving.registry import Published
from tests.conftest import TINY, sentences
from tfpipeline import runs
from tfpipeline.cli import main

COMMANDS = ("data", "train", "retrain", "evaluate", "predict", "explain", "export", "search", "compress", "edge", "runs", "config")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"example:\n  tfpipeline {command}" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, tfpipeline.cli as cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\nprint(sorted({m.split('.')[0] for m in sys.modules} & {'numpy', 'tensorflow', 'transformers', 'pyarrow', 'sklearn'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_explain_prints_meaning_unit_default_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--explain", "train.warmup_fraction"]) == 0
    assert capsys.readouterr().out == (
        "train.warmup_fraction (number)\n  Share of all steps in which the learning rate rises from 0.\n  unit: none\n  default: 0.1\n  source: our choice\n"
        "  bounds: >= 0 and <= 1\n"
    )


def _fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Exit 2, nothing on stdout, no traceback; returns the message."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err.strip()


def test_a_typo_in_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    message = _fails(capsys, "train", "--set", "train.learning_rte=1e-4")
    assert message == "ConfigError: --set train.learning_rte=1e-4: unknown key `train.learning_rte`. Did you mean `train.learning_rate`?"


def test_a_typo_in_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        _fails(capsys, "train", "--preset", "bnk")
        == "ConfigError: unknown preset 'bnk'. Did you mean `bank`? Presets: bank, scratch, sst2."
    )


def test_a_typo_in_a_path(tiny_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tiny_csv.with_name("tinny.csv")
    assert _fails(capsys, "data", str(wrong)) == f"DataError: {wrong}: no such file. Did you mean '{tiny_csv}'?"


def test_a_typo_in_a_column(tiny_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = _fails(capsys, "data", str(tiny_csv), "--set", "data.text=txt", "--set", "data.header=yes")
    assert (
        message
        == f"DataError: {tiny_csv}: no column 'txt'. Did you mean 'text'? Columns: text, label. Set data.text, data.label to the right ones."
    )


def _file(tmp_path: Path, content: bytes, name: str = "data.csv") -> str:
    path = tmp_path / name
    path.write_bytes(content)
    return str(path)


GOOD = b"text,label\n" + b"".join(f"{text},{label}\n".encode() for text, label in sentences())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "DataError: {path}: the file is empty. Expected at least a few labelled rows."),
        (b"text,label\n", "DataError: {path}: no row. Expected at least a few labelled rows."),
        (
            b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
            "DataError: {path}: looks like a binary file (zero bytes at the start). Expected UTF-8 text; convert it, or set data.format.",
        ),
        (
            "text,label\nhi,a\n".encode("utf-16"),
            "DataError: {path}: looks like UTF-16 text (zero bytes at the start). Expected UTF-8 text; convert it, or set data.format.",
        ),
        (
            b"text,label\nhello,good\nbye,good\nmore,good\n",
            "DataError: {path}: a classifier needs at least 2 labels; column 'label' has only 'good' in 3 rows. Check data.label, or add rows of another label.",
        ),
        (
            b"text,label\nhello,good\nbye,bad\n",
            "DataError: {path}: too few rows to split: 2 usable rows gave 2 for training, 0 for validation, 0 for test. Add rows, raise data.validation_fraction / "
            "data.test_fraction, or give data.validation_path and data.test_path.",
        ),
        (
            GOOD + b"one,two,three\n",
            "DataError: data.csv:122: wrong column count: expected 2 columns, as in the first row, received 3 columns. "
            "Fix the row, or --set data.on_bad_row=quarantine to set it aside.",
        ),
        (
            GOOD + b",positive\n",
            "DataError: data.csv:122: empty text: expected a text in column 'text', received an empty cell. "
            "Fix the row, or --set data.on_bad_row=quarantine to set it aside.",
        ),
        (
            GOOD + b"no label,\n",
            "DataError: data.csv:122: missing label: expected a label in column 'label', received an empty cell. "
            "Fix the row, or --set data.on_bad_row=quarantine to set it aside.",
        ),
        (
            GOOD + b"caf\xe9,positive\n",
            "DataError: data.csv:122: undecodable bytes: expected UTF-8 text, received 'caf\\udce9'. "
            "Fix the row, or --set data.on_bad_row=quarantine to set it aside.",
        ),
    ],
    ids=["empty", "header only", "binary", "utf-16", "one class", "two rows", "three columns", "no text", "no label", "latin-1"],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str) -> None:
    path = _file(tmp_path, content)
    assert _fails(capsys, "data", path) == message.format(path=path)


def test_a_label_seen_only_in_the_test_file(tiny_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = _file(tmp_path, b"text,label\nfine,positive\nodd,neutral\n", "test.csv")
    message = _fails(capsys, "data", str(tiny_csv), "--set", f"data.test_path={test}")
    assert message == (
        "DataError: test.csv:3: unknown label: expected one of ('negative', 'positive'), received 'neutral'. "
        "Fix the row, or --set data.on_bad_row=quarantine to set it aside."
    )


def test_a_single_line_of_50_mb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(tmp_path, GOOD + b"x" * 50_000_000 + b",positive\n")
    assert _fails(capsys, "data", path) == (
        "DataError: data.csv:122: line too long: expected at most 13,048,576 characters a row (12 x data.max_text_bytes + 1 MiB), received a longer line. "
        "Fix the row, or --set data.on_bad_row=quarantine to set it aside."
    )


def test_a_truncated_gzip_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(tmp_path, gzip.compress(GOOD)[:-20], "data.csv.gz")
    assert _fails(capsys, "data", path).startswith(f"DataError: {path}: cannot be read: ")


def _tiny(data: object, *extra: str) -> list[str]:
    return [part for override in (*TINY, f"data.path={data}", *extra) for part in ("--set", override)]


def test_a_runs_folder_that_cannot_be_written(tiny_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "runs"
    place.write_text("a file, where a folder should be")
    message = _fails(capsys, "train", *_tiny(tiny_csv), "--runs", str(place))
    assert message.startswith(f"RunError: {place}: cannot be written: Not a directory.")


def _backbone(tmp_path: Path, **files: str) -> Path:
    folder = tmp_path / "backbone"
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"config__json": '{"model_type": "bert"}', "vocab__txt": "[PAD]\n"},
            "BackboneError: backbone '{folder}': model.safetensors missing in {folder}. A backbone folder holds config.json, vocab.txt and model.safetensors; "
            "this one holds config.json, vocab.txt.",
        ),
        (
            {"config__json": '{"model_type": "gpt2"}', "vocab__txt": "[PAD]\n", "model__safetensors": "x"},
            "BackboneError: backbone '{folder}': config.json says model_type 'gpt2'; expected 'bert' (this package trains TFBertForSequenceClassification). "
            "Choose a BERT checkpoint.",
        ),
    ],
    ids=["without weights", "another architecture"],
)
def test_a_backbone_folder_that_cannot_be_used(
    tiny_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], message: str
) -> None:
    folder = _backbone(tmp_path, **files)
    found = _fails(capsys, "train", *_tiny(tiny_csv, f"model.backbone={folder}"), "--runs", str(tmp_path / "runs"))
    assert found == message.format(folder=folder)
    assert list((tmp_path / "runs").iterdir()) == []  # nothing was trained, so nothing stays


def test_backbone_weights_with_another_hash(
    tiny_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tfpipeline import backbone

    folder = _backbone(tmp_path, config__json='{"model_type": "bert"}', vocab__txt="[PAD]\n", model__safetensors="tampered")
    monkeypatch.setattr(backbone, "KNOWN_SHA256", {str(folder): "0" * 64})
    found = _fails(capsys, "train", *_tiny(tiny_csv, f"model.backbone={folder}"), "--runs", str(tmp_path / "runs"))
    assert f"{folder / 'model.safetensors'} has sha256 " in found
    assert f"; expected {'0' * 64}. The file is damaged or not what it says: remove it and fetch it again." in found


def test_weights_that_are_no_weights(tiny_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])
    config = '{"model_type": "bert", "vocab_size": 6, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}'
    folder = _backbone(tmp_path, config__json=config, vocab__txt=vocabulary, model__safetensors="not weights")
    found = _fails(capsys, "train", *_tiny(tiny_csv, f"model.backbone={folder}"), "--runs", str(tmp_path / "runs"))
    assert f"{folder / 'model.safetensors'} cannot be loaded as BERT weights" in found


def test_an_unknown_run_names_those_that_are_there(tiny_run: runs.Run, capsys: pytest.CaptureFixture[str]) -> None:
    message = _fails(capsys, "evaluate", "nope", "--runs", str(tiny_run.path.parent))
    assert message.startswith("RunError: nope: no such run (a folder with run.json). Runs in ")
    assert tiny_run.path.name in message


def test_resume_takes_no_other_settings(tiny_run: runs.Run, capsys: pytest.CaptureFixture[str]) -> None:
    message = _fails(capsys, "train", "--resume", "latest", "--set", "train.epochs=9", "--runs", str(tiny_run.path.parent))
    assert message.startswith("ConfigError: --resume goes on with the run's own config.")


def test_json_is_one_document_also_for_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--preset", "nope", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "ConfigError"


def test_a_fault_of_ours_is_not_dressed_up_as_the_users(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that is none of ours comes out with its traceback, and Python exits with 1."""
    monkeypatch.setattr("tfpipeline.config.settings", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["config"])


def test_the_runs_are_listed(tiny_run: runs.Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--runs", str(tiny_run.path.parent), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert tiny_run.path.name in [row["run"] for row in rows if row["status"] == "finished"]


def test_one_text_is_answered_with_label_and_probabilities(tiny_model: Published, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tiny_model.path), "the app was great today"]) == 0
    label, shares = capsys.readouterr().out.strip().split("\t")
    assert label == "positive"
    assert shares.startswith("positive 0.")


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_file_is_scored_in_order_and_bad_rows_are_set_aside(
    tiny_model: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    source = tmp_path / "in.csv"
    source.write_text("text,other\n" + "".join(f"{text},1\n" for text, _ in sentences()))
    output = tmp_path / f"out{ending}"
    assert main(["predict", str(tiny_model.path), "--input", str(source), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"Scored 120 texts into {output}.\n"
    if ending == ".jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    elif ending == ".csv":
        import csv

        rows = list(csv.DictReader(output.read_text().splitlines()))
    else:
        import pyarrow.parquet as pq

        rows = pq.read_table(output).to_pylist()
    assert [row["text"] for row in rows] == [text for text, _ in sentences()]
    right = sum(row["label"] == label for row, (_, label) in zip(rows, sentences(), strict=True))
    assert right > 100


def test_scoring_leaves_nothing_when_it_stops(tiny_model: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = _file(tmp_path, b"text,n\nfine,1\n,2\n")
    output = tmp_path / "out.jsonl"
    assert "data.csv:3: empty text" in _fails(capsys, "predict", str(tiny_model.path), "--input", source, "--output", str(output))
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


def test_an_exported_model_is_evaluated_on_labelled_files(
    tiny_model: Published, tiny_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(tiny_model.path), "--data", str(tiny_csv), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["n"] == 120


def test_two_runs_are_compared_on_the_same_rows(tiny_run: runs.Run) -> None:
    from tfpipeline.judge import compare_runs

    found = compare_runs(tiny_run, tiny_run)
    assert (found["n01"], found["n10"], found["verdict"]) == (0, 0, "no difference shown")
