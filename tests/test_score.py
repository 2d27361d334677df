"""Batch scoring in parts: every row in exactly one, whatever the number of files and shards; a part can be run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfpipeline import config, score
from tfpipeline.cli import main
from tfpipeline.errors import ConfigError


class Lengths:
    """Stands for a model: the share of the first label is the text's length over 100."""

    labels, task = ("long", "short"), "single_label"

    def predict(self, texts: list[str], pairs: Any) -> Any:
        share = np.array([len(text) / 100 for text in texts], np.float32)
        return np.stack([share, 1 - share], axis=1).reshape(-1, 2)


def _files(folder: Path, count: int, rows: int) -> list[str]:
    for number in range(count):
        lines = [json.dumps({"text": f"text {number} {row} " + "x" * row}) for row in range(rows)]
        (folder / f"part-{number:02d}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [str(folder / "part-*.jsonl")]


def _texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("files", [1, 3, 7])
@pytest.mark.parametrize("shards", [1, 2, 3, 5])
def test_each_row_is_in_exactly_one_shard(tmp_path: Path, files: int, shards: int) -> None:
    inputs, settings, output = _files(tmp_path, files, 11), config.load(), tmp_path / "out" / "scored.jsonl"
    output.parent.mkdir()
    score.score_files(Lengths(), settings, inputs, output)
    whole = output.read_text(encoding="utf-8").splitlines()
    parts = []
    for index in range(1, shards + 1):
        document, _ = score.score_files(Lengths(), settings, inputs, output, score.Shard(index, shards))
        path = output.with_name(f"scored-{index:05d}-of-{shards:05d}.jsonl")
        assert document == {"output": str(path), "rows": len(_texts(path)), "rejects": 0}
        parts.append(path.read_text(encoding="utf-8").splitlines())
    assert sorted(line for part in parts for line in part) == sorted(whole)
    assert max(map(len, parts)) - min(map(len, parts)) <= (11 if files >= shards else 1)


def test_rows_are_dealt_out_over_all_batches_of_a_file(tmp_path: Path) -> None:
    inputs, settings = _files(tmp_path, 1, 90), config.load()
    (tmp_path / "part-00.jsonl").write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(20_001)), encoding="utf-8")
    found = []
    for index in (1, 2, 3):
        score.score_files(Lengths(), settings, inputs, tmp_path / "s.jsonl", score.Shard(index, 3))
        found.append(_texts(tmp_path / f"s-0000{index}-of-00003.jsonl"))
    assert found[1][:3] == ["row 1", "row 4", "row 7"]
    assert [len(part) for part in found] == [6667, 6667, 6667]
    assert {text for part in found for text in part} == {f"row {n}" for n in range(20_001)}


def test_a_shard_is_written_whole_and_can_be_run_again(tmp_path: Path) -> None:
    inputs, settings, output = _files(tmp_path, 4, 5), config.load(), tmp_path / "s.csv"

    class Fails(Lengths):
        def predict(self, texts: list[str], pairs: Any) -> Any:
            raise RuntimeError("the machine goes down")

    with pytest.raises(RuntimeError):
        score.score_files(Fails(), settings, inputs, output, score.Shard(2, 2))
    assert not list(tmp_path.glob("s-*"))
    score.score_files(Lengths(), settings, inputs, output, score.Shard(2, 2))
    first = (tmp_path / "s-00002-of-00002.csv").read_bytes()
    score.score_files(Lengths(), settings, inputs, output, score.Shard(2, 2))
    assert (tmp_path / "s-00002-of-00002.csv").read_bytes() == first


def test_bad_rows_of_shared_files_are_set_aside_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": ""}\n{"text": "two"}\n', encoding="utf-8")
    settings = config.load(overrides=["data.on_bad_row=quarantine"])
    for index in (1, 2):
        score.score_files(Lengths(), settings, [str(tmp_path / "a.jsonl")], tmp_path / "s.jsonl", score.Shard(index, 2))
    assert [path.name for path in sorted(tmp_path.glob("*.rejects.jsonl"))] == ["s-00001-of-00002.jsonl.rejects.jsonl"]
    assert _texts(tmp_path / "s-00001-of-00002.jsonl") + _texts(tmp_path / "s-00002-of-00002.jsonl") == ["one", "two"]


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "-1/4", "1/0", "a/b", "1/4/2", "１/4", "1 /4"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected K/N"):
        score.Shard.parse(text)
    assert score.Shard.parse("3/16") == score.Shard(3, 16)


def test_the_command_says_what_it_expects(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["predict", "models", "--input", "a.csv", "--output", "b.csv", "--shard", "9/3"]) == 2
    assert "--shard 9/3: expected K/N" in capsys.readouterr().err
    assert main(["predict", "models", "a text", "--shard", "1/3"]) == 2
    assert "--shard is for --input" in capsys.readouterr().err
