"""The data report says in 100 columns what a person wants to know before training, and the same as JSON."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.corpus_files import labelled, settings, texts, twins, write
from tfpipeline.data import add_token_statistics, prepare, render
from tfpipeline.data.report import describe_split


def report_of_a_messy_corpus(tmp_path: Path) -> dict[str, Any]:
    """Every kind of finding once; training, validation and test files are given, so that the numbers are known."""
    found = texts(160)
    (near, near_twin), (one, two), *_ = twins(2)
    rows = labelled(found[:100])
    train = write(
        tmp_path / "train.csv",
        [*rows, rows[0], (rows[1][0], "positive"), ("", "positive"), (near, "negative"), (one, "positive"), (two, "positive")],
    )
    validation = write(tmp_path / "dev.csv", [*labelled(found[100:120]), (near_twin, "negative")])
    test = write(tmp_path / "test.csv", [*labelled(found[120:150]), rows[2], ("hello", "neutral")])
    labels = ["negative", "positive", "absent"]
    chosen = settings(train, validation_path=[str(validation)], test_path=[str(test)], on_bad_row="quarantine", labels=labels)
    return prepare(chosen).report


def test_a_messy_corpus_is_described_line_by_line(tmp_path: Path) -> None:
    report = report_of_a_messy_corpus(tmp_path)
    found = texts(160)
    (near, _), (one, _), *_ = twins(2)
    assert render(report).splitlines() == [
        "Rows read: 159",
        "  set aside: 1 x empty text",
        "  set aside: 1 x unknown label",
        "    train.csv:104: empty text: an empty cell",
        "    test.csv:33: unknown label: 'neutral'",
        "Exact duplicates removed: 2",
        "Texts with conflicting labels: 1 (the first label is kept)",
        f"    train.csv:3, train.csv:103: negative / positive: {found[1]}",
        "Near-duplicates (all rows searched): 2 groups, 4 rows; 0 moved to train",
        f"    train.csv:105 ~ dev.csv:22: {near[:59]}…",
        f"    train.csv:106 ~ train.csv:107: {one[:59]}…",
        "Leakage: 0 validation texts are also in train",
        "Leakage: 1 validation texts have a near-duplicate in train",
        "    dev.csv:22 ~ train.csv:105",
        "Leakage: 1 test texts are also in train or validation (given splits are left as they are)",
        "    test.csv:32 = train.csv:4",
        "Leakage: 0 test texts have a near-duplicate in train",
        "Labels without a training row: absent",
        "",
        "                     train        validation              test",
        "rows                   103                21                31",
        "negative       51 (49.5 %)       11 (52.4 %)       15 (48.4 %)",
        "positive       52 (50.5 %)       10 (47.6 %)       16 (51.6 %)",
        "absent          0 ( 0.0 %)        0 ( 0.0 %)        0 ( 0.0 %)",
    ]


def test_the_report_is_json(tmp_path: Path) -> None:
    report = report_of_a_messy_corpus(tmp_path)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert set(report) == {
        "files", "task", "labels", "rows_read", "rejects", "duplicates", "conflicts", "near_duplicates", "leakage", "splits", "absent_from_training",
    }  # fmt: skip
    assert set(report["splits"]["train"]) == {"rows", "labels", "text_bytes"}


def test_a_sample_and_no_search_are_said(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", labelled(texts(200)))
    assert "Near-duplicates (a sample of 50 of 200 rows searched): 0 groups, 0 rows; 0 moved to train" in render(
        prepare(settings(file, near_duplicate_max_rows=50)).report
    )
    assert "Near-duplicates: not searched (data.near_duplicates = off)" in render(prepare(settings(file, near_duplicates="off")).report)


def tokens(lengths: dict[str, list[int]], unknown: dict[str, list[int]], max_length: int) -> dict[str, Any]:
    report: dict[str, Any] = {}
    add_token_statistics(
        report,
        {name: np.array(found) for name, found in lengths.items()},
        {name: np.array(found) for name, found in unknown.items()},
        max_length,
    )
    return dict(report["tokens"])


def test_token_lengths_truncation_and_unknown_words_are_counted(tmp_path: Path) -> None:
    """[CLS] and [SEP] are no words: 4 tokens with one [UNK] are half unknown."""
    found = tokens(
        {"train": [4, 4, 8, 16, 17, 40], "test": [600], "validation": []}, {"train": [1, 0, 0, 0, 0, 5], "test": [0], "validation": []}, 16
    )
    assert found["max_length"] == 16
    assert found["splits"] == {
        "train": {"min": 4, "median": 12, "p95": 34, "max": 40, "truncated_share": 0.333333, "unknown_share": round(6 / 77, 6)},
        "test": {"min": 600, "median": 600, "p95": 600, "max": 600, "truncated_share": 1.0, "unknown_share": 0.0},
    }
    assert [(bar["from"], bar["to"], bar["rows"]) for bar in found["histogram"] if bar["rows"]] == [
        (2, 8, 3),
        (9, 16, 1),
        (17, 24, 1),
        (33, 48, 1),
        (513, None, 1),
    ]
    assert sum(bar["rows"] for bar in found["histogram"]) == 7


@pytest.mark.parametrize("length", [2, 8, 9, 512, 513, 514, 100_000])
def test_every_length_is_in_one_bar(length: int) -> None:
    (bar,) = [bar for bar in tokens({"train": [length]}, {"train": [0]}, 128)["histogram"] if bar["rows"]]
    assert bar["from"] <= length
    assert bar["to"] is None or length <= bar["to"]


def test_the_histogram_is_drawn(tmp_path: Path) -> None:
    report = prepare(settings(write(tmp_path / "a.csv", labelled(texts(200))))).report
    lengths = {"train": np.array([5] * 80 + [12] * 20 + [30]), "test": np.array([5, 600])}
    add_token_statistics(report, lengths, {name: np.zeros(len(found), int) for name, found in lengths.items()}, 16)
    assert render(report).split("\n\n")[-1].splitlines() == [
        "Tokens a text (with [CLS] and [SEP]; the model sees 16)",
        "       2-8        81 ########################################",
        "      9-16        20 ##########",
        "     17-24         0 ",
        "     25-32         1 #",
        "     33-48         0 ",
        "     49-64         0 ",
        "     65-96         0 ",
        "    97-128         0 ",
        "   129-192         0 ",
        "   193-256         0 ",
        "   257-384         0 ",
        "   385-512         0 ",
        "      513+         1 #",
        "  train: median 5, 95 % under 12, longest 30; cut off 0.99 %, unknown pieces 0.000 %",
        "  test: median 302, 95 % under 570, longest 600; cut off 50.00 %, unknown pieces 0.000 %",
    ]


def test_many_labels_and_long_names_stay_readable(tmp_path: Path) -> None:
    rows = [(text, f"{'a very long label name indeed, number'} {number % 40:02}") for number, text in enumerate(texts(2000))]
    lines = render(prepare(settings(write(tmp_path / "a.csv", rows), near_duplicates="off")).report).splitlines()
    assert lines[-1] == "... and 10 more labels"
    assert all(len(line) <= 100 for line in lines)


def test_sizes_are_in_bytes() -> None:
    assert describe_split(2, Counter({"a": 2}), ["a", "b"], [3, 5]) == {
        "rows": 2,
        "labels": {"a": 2, "b": 0},
        "text_bytes": {"min": 3, "median": 4, "p95": 4, "max": 5},
    }
