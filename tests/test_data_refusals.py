"""What cannot be used - a row, a corpus, a disk - is one clear message, and nothing is left behind."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.corpus_files import labelled, labels_of, refusal, settings, texts, write
from tfpipeline.data import open_prepared, prepare
from tfpipeline.data.intake import MAX_LABELS
from tfpipeline.errors import DataError, RunError

# ---- bad rows ----

BAD = [
    ("csv", b",positive", "missing or empty", "empty text: expected a text in column 'text', received an empty cell"),
    ("csv", b"\xe2\x80\x8b ,positive", "only zero-width", "empty text: expected a text in column 'text', received '\\u200b '"),
    ("csv", b"hello,", "no label", "missing label: expected a label in column 'label', received an empty cell"),
    ("csv", b"hello,positve", "unknown label", "unknown label: expected one of ('negative', 'positive'), received 'positve'"),
    ("csv", b"hello,positive,more", "columns", "wrong column count: expected 2 columns, as in the first row, received 3 columns"),
    ("csv", b"hello", "columns-less", "wrong column count: expected 2 columns, as in the first row, received 1 columns"),
    ("csv", b"caf\xe9,positive", "bytes", "undecodable bytes: expected UTF-8 text, received 'caf\\udce9'"),
    ("csv", b"hello,caf\xe9", "bytes-label", "undecodable bytes: expected UTF-8 text, received 'caf\\udce9'"),
    (
        "csv",
        b'"a" b,positive',
        "quote",
        "not valid CSV: expected a quoted cell to end with its quote, received ',' expected after '\"', line 62",
    ),
    ("csv", b"x" * 3000 + b",positive", "long", "text too long: expected at most 2,000 bytes (data.max_text_bytes), received 3,000 bytes"),
    (
        "csv",
        "é".encode() * 1500 + b",positive",
        "long-in-bytes",
        "text too long: expected at most 2,000 bytes (data.max_text_bytes), received 3,000 bytes",
    ),
    ("jsonl", b'{"text": null, "label": "positive"}', "null", "missing text: expected a text in column 'text', received nothing"),
    ("jsonl", b'{"text": 5, "label": "positive"}', "number", "missing text: expected a text in column 'text', received int 5"),
    ("jsonl", b'{"text": "hello"}', "no-label", "missing label: expected a label in column 'label', received nothing"),
    ("jsonl", b'{"text": "hello", "label": ["a"]}', "list", "not a label: expected a text or a number in column 'label', received ['a']"),
    ("jsonl", b'{"text": "\\ud800", "label": "positive"}', "half", "undecodable bytes: expected UTF-8 text, received '\\ud800'"),
    ("jsonl", b'{"text": "hello", "label": "\\ud800"}', "half-label", "undecodable bytes: expected UTF-8 text, received '\\ud800'"),
    (
        "jsonl",
        b"no json",
        "json",
        "not a JSON object: expected one JSON object a line, received Expecting value: line 1 column 1 (char 0): 'no json'",
    ),
]


@pytest.mark.parametrize(
    ("kind", "bad", "message"), [(kind, bad, message) for kind, bad, _, message in BAD], ids=[name for _, _, name, _ in BAD]
)
def test_a_bad_row_stops_with_file_and_line_or_is_set_aside(tmp_path: Path, kind: str, bad: bytes, message: str) -> None:
    rows = labelled(texts(60))
    if kind == "csv":
        lines = [b"text,label", *(f"{text},{label}".encode() for text, label in rows), bad, b"the last row,positive"]
    else:
        lines = [
            *(json.dumps({"text": text, "label": label}).encode() for text, label in rows),
            bad,
            b'{"text": "the last row", "label": "positive"}',
        ]
    file = tmp_path / f"a.{kind}"
    file.write_bytes(b"\n".join(lines) + b"\n")
    source = f"a.{kind}:{lines.index(bad) + 1}"
    values = {"labels": ["negative", "positive"], "max_text_bytes": 2000}
    assert refusal(settings(file, **values)) == (f"{source}: {message}. Fix the row, or --set data.on_bad_row=quarantine to set it aside.")
    corpus = prepare(settings(file, on_bad_row="quarantine", **values), tmp_path / "data")
    rejects = [json.loads(line) for line in (tmp_path / "data" / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [f"{r['source']}: {r['reason']}: expected {r['expected']}, received {r['received']}" for r in rejects] == [
        f"{source}: {message}"
    ]
    assert corpus.report["rejects"] == {"rows": 1, "reasons": {rejects[0]["reason"]: 1}, "examples": rejects}
    assert corpus.report["rows_read"] == 62
    assert "the last row" in labels_of(corpus)
    assert len(labels_of(corpus)) == 61


@pytest.mark.parametrize(
    ("value", "received"), [("-1", "'-1'"), ("heavy", "'heavy'"), ("nan", "'nan'"), ("inf", "'inf'"), ("1e39", "'1e39'"), ("", "''")]
)
def test_a_bad_weight_is_a_bad_row(tmp_path: Path, value: str, received: str) -> None:
    rows = [(text, label, "1") for text, label in labelled(texts(30))]
    file = write(tmp_path / "a.csv", [*rows, ("hello", "positive", value)], ("text", "label", "weight"))
    assert refusal(settings(file, weight="weight")) == (
        f"a.csv:32: bad weight: expected a number >= 0 in column 'weight', received {received}. "
        "Fix the row, or --set data.on_bad_row=quarantine to set it aside."
    )


def test_every_rejected_row_is_in_the_file_and_only_the_first_in_the_report(tmp_path: Path) -> None:
    rows = labelled(texts(60))
    file = write(tmp_path / "a.csv", [*rows, *[("", "positive")] * 40, *[("hello", "")] * 5])
    corpus = prepare(settings(file, on_bad_row="quarantine"), tmp_path / "data")
    assert corpus.report["rejects"]["reasons"] == {"empty text": 40, "missing label": 5}
    assert corpus.report["rejects"]["rows"] == 45
    assert len(corpus.report["rejects"]["examples"]) == 20
    assert len((tmp_path / "data" / "rejects.jsonl").read_text().splitlines()) == 45


def test_files_of_the_same_name_are_told_apart_across_splits(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    train = write(tmp_path / "train" / "a.csv", labelled(texts(100)))
    test = write(tmp_path / "test" / "a.csv", [("", "positive")])
    assert refusal(settings(train, test_path=[str(test)])).startswith(f"{test}:2: empty text: ")


def test_files_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "a.csv", labelled(texts(30, len(name))))
    write(tmp_path / "two" / "a.csv", [("", "positive")])
    assert refusal(settings([tmp_path / "one" / "a.csv", tmp_path / "two" / "a.csv"])) == (
        f"{tmp_path}/two/a.csv:2: empty text: expected a text in column 'text', received an empty cell. "
        "Fix the row, or --set data.on_bad_row=quarantine to set it aside."
    )


# ---- a corpus that cannot be used ----


def test_a_label_that_only_the_test_file_has(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", labelled(texts(100)))
    test = write(tmp_path / "test.csv", [*labelled(texts(20, 2)), ("neither here nor there", "neutral")])
    assert refusal(settings(train, test_path=[str(test)])) == (
        "test.csv:22: unknown label: expected one of ('negative', 'positive'), received 'neutral'. "
        "Fix the row, or --set data.on_bad_row=quarantine to set it aside."
    )
    aside = prepare(settings(train, test_path=[str(test)], on_bad_row="quarantine"))
    assert (aside.labels, len(aside.test)) == (("negative", "positive"), 20)
    named = prepare(settings(train, test_path=[str(test)], labels=["negative", "neutral", "positive"]))
    assert (named.labels, len(named.test)) == (("negative", "neutral", "positive"), 21)
    assert named.report["absent_from_training"] == ["neutral"]


@pytest.mark.parametrize(
    ("rows", "values", "message"),
    [
        (
            [(text, "positive") for text in texts(50)],
            {},
            "FILE: a classifier needs at least 2 labels; column 'label' has only 'positive' in 50 rows. Check data.label, or add rows of another label.",
        ),
        (
            [(text, "") for text in texts(50)],
            {"task": "multi_label"},
            "FILE: a classifier needs at least 1 labels; column 'label' has none in 50 rows. Check data.label, or add rows of another label.",
        ),
        (
            [("good", "positive"), ("bad", "negative")],
            {},
            "FILE: too few rows to split: 2 usable rows gave 2 for training, 0 for validation, 0 for test. "
            "Add rows, raise data.validation_fraction / data.test_fraction, or give data.validation_path and data.test_path.",
        ),
        ([], {}, "FILE: no row. Expected at least a few labelled rows."),
        (
            [("", "positive"), ("hello", ""), ("", "negative")],
            {"on_bad_row": "quarantine"},
            "FILE: no usable row. Set aside: 2 x empty text, 1 x missing label.",
        ),
        (
            [(text, text) for text in texts(MAX_LABELS + 5)],
            {},
            f"column 'label' has more than {MAX_LABELS} different values, the last one {texts(MAX_LABELS + 5)[MAX_LABELS]!r}: "
            "it does not look like a label. Set data.label to the right column.",
        ),
    ],
    ids=["one-class", "no-label-at-all", "two-rows", "header-only", "only-bad-rows", "text-as-label"],
)
def test_a_corpus_that_cannot_be_used_is_one_message_and_no_folder(
    tmp_path: Path, rows: list[tuple[str, str]], values: dict[str, Any], message: str
) -> None:
    file = write(tmp_path / "a.csv", rows)
    assert refusal(settings(file, **values), tmp_path / "data").replace(str(file), "FILE") == message
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_training_rows_of_one_label_only_are_refused(tmp_path: Path) -> None:
    """Two labels in the files are not enough when the split leaves one for training."""
    found = texts(100)
    train = write(tmp_path / "train.csv", [(text, "positive") for text in found])
    test = write(tmp_path / "test.csv", labelled(texts(20, 2)))
    message = refusal(settings(train, test_path=[str(test)], labels=["negative", "positive"], near_duplicates="off"))
    rows = len(
        prepare(settings(train, test_path=[str(test)], labels=["negative", "positive"], task="multi_label", near_duplicates="off")).train
    )
    assert message == (
        f"{train}: the training split has only label 'positive' in {rows} rows; a classifier needs two. "
        "Add rows of another label, or change data.split_salt."
    )


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_split_that_nothing_makes_is_named(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "a.csv", labelled(texts(100)))
    assert refusal(settings(file, **{f"{name}_fraction": 0.0})) == (
        f"{file}: there is no {name} split: data.{name}_fraction is 0 and data.{name}_path is empty. "
        f"Set one of them, for example --set data.{name}_fraction=0.1."
    )


def test_an_empty_test_file_is_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", labelled(texts(100)))
    test = write(tmp_path / "test.csv", [])
    assert refusal(settings(train, test_path=[str(test)])) == f"{test}: no row. Expected at least a few labelled rows."


# ---- whole or not at all ----


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.csv", labelled(texts(100)))
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(RunError) as caught:
        prepare(settings(file), tmp_path / "run" / "data")
    assert str(caught.value) == (
        f"{tmp_path}/run/data: cannot be written: No space left on device. What was written before is intact. "
        "Free space, or fix the permissions, and run the same command again."
    )
    assert list((tmp_path / "run").iterdir()) == []


def test_a_disk_that_fills_while_rows_are_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.csv", labelled(texts(100)))
    monkeypatch.setattr(pa, "OSFile", full_disk)
    for folder in (tmp_path / "data", None):
        with pytest.raises(RunError, match=r"cannot be written: No space left on device\. .* Free space"):
            prepare(settings(file), folder)
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path: Path) -> None:
    """A file stands where the folder should go (permissions do not stop root, this does)."""
    file = write(tmp_path / "a.csv", labelled(texts(100)))
    with pytest.raises(RunError) as caught:
        prepare(settings(file), file / "data")
    assert str(caught.value) == (
        f"{file}/data: cannot be written: Not a directory. What was written before is intact. "
        "Free space, or fix the permissions, and run the same command again."
    )


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that everybody may enter, and a process that is not root: permissions do not stop root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        was = os.geteuid()
        try:
            yield Path(folder)
        finally:
            os.seteuid(was)


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_folder_without_permission_is_one_message(as_nobody: Path, mode: int) -> None:
    file = write(as_nobody / "a.csv", labelled(texts(100)))
    (as_nobody / "closed").mkdir()
    (as_nobody / "closed").chmod(mode)
    if os.geteuid() == 0:
        os.seteuid(65534)
    with pytest.raises(RunError) as caught:
        prepare(settings(file), as_nobody / "closed" / "data")
    assert str(caught.value) == (
        f"{as_nobody}/closed/data: cannot be written: Permission denied. What was written before is intact. "
        "Free space, or fix the permissions, and run the same command again."
    )


def test_a_prepared_corpus_is_never_written_over(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", labelled(texts(100)))
    before = prepare(settings(file), tmp_path / "data")
    write(file, labelled(texts(100, 2)))
    with pytest.raises(RunError) as caught:
        prepare(settings(file), tmp_path / "data")
    assert str(caught.value) == (
        f"{tmp_path}/data: is there already; a prepared corpus is never written over. Open it, remove it, or name another folder."
    )
    assert open_prepared(tmp_path / "data").fingerprint == before.fingerprint


def test_a_damaged_split_is_one_message(tmp_path: Path) -> None:
    prepare(settings(write(tmp_path / "a.csv", labelled(texts(100)))), tmp_path / "data")
    (tmp_path / "data" / "train.arrow").write_bytes(b"nothing")
    with pytest.raises(DataError) as caught:
        open_prepared(tmp_path / "data")
    assert str(caught.value).startswith(f"{tmp_path}/data/train.arrow: the prepared split cannot be read: ")
    assert str(caught.value).endswith(" Start a new run.")
