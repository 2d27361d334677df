"""Raw rows become a prepared corpus: what is kept and how it reads back, and rows that are not a training corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.corpus_files import SPLITS, labelled, labels_of, refusal, settings, texts, where, write
from tfpipeline.data import open_prepared, prepare, read_examples
from tfpipeline.errors import DataError

# ---- what comes out ----


def test_a_prepared_folder_opens_as_what_prepare_returned(tmp_path: Path) -> None:
    rows = [(text, label, number) for number, (text, label) in enumerate(labelled(texts(300)))]
    file = write(tmp_path / "a.csv", rows, ("text", "label", "branch"))
    returned = prepare(settings(file, slice_columns=["branch"]), tmp_path / "data")
    opened = open_prepared(tmp_path / "data")
    in_memory = prepare(settings(file, slice_columns=["branch"]))
    for corpus in (opened, in_memory):
        assert (corpus.task, corpus.has_pairs, corpus.labels) == ("single_label", False, ("negative", "positive"))
        assert corpus.fingerprint == returned.fingerprint
        assert corpus.report == returned.report
        for name in SPLITS:
            assert corpus.split(name).table.equals(returned.split(name).table)
            assert np.array_equal(corpus.split(name).labels, returned.split(name).labels)
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == sorted(
        ["train.arrow", "validation.arrow", "test.arrow", "labels.json", "report.json", "rejects.jsonl", "fingerprint.json"]
    )
    for number, (text, label, _) in enumerate(rows):
        split = opened.split(where(opened)[text])
        example = split[split.texts.to_pylist().index(text)]
        assert (example.label, example.source, example.weight) == (label, f"a.csv:{number + 2}", 1.0)
        assert split.slices["branch"][split.texts.to_pylist().index(text)].as_py() == str(number)


def test_rows_are_found_in_a_split_of_many_chunks(tmp_path: Path) -> None:
    """What training asks for at every step, across the pieces the file was written in."""
    found = texts(25_000)
    corpus = prepare(settings(write(tmp_path / "a.csv", labelled(found)), near_duplicates="off"), tmp_path / "data")
    train = corpus.train
    assert train.texts.num_chunks > 1
    whole = train.texts.to_pylist()
    rows = np.array([len(train) - 1, 0, 8191, 8192, 0, 12_345])
    assert train.text_batch(rows) == ([whole[row] for row in rows], None)
    assert train.take(rows).texts.to_pylist() == [whole[row] for row in rows]
    assert train[8192].text == whole[8192]
    assert train.text_batch(np.array([], np.int64)) == ([], None)
    order = {text: number for number, text in enumerate(found)}
    assert [order[text] for text in whole] == sorted(order[text] for text in whole)


def test_shares_come_out_as_configured(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", labelled(texts(4000)))
    corpus = prepare(settings(file, near_duplicates="off", validation_fraction=0.2, test_fraction=0.1))
    assert len(corpus.train) + len(corpus.validation) + len(corpus.test) == 4000
    assert abs(len(corpus.validation) - 800) < 100
    assert abs(len(corpus.test) - 400) < 80


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    corpus = prepare(settings(write(tmp_path / "a.csv", labelled(texts(100)))))
    with pytest.raises(DataError) as caught:
        corpus.split("dev")
    assert str(caught.value) == "split 'dev': expected one of train, validation, test."


def test_label_names_keep_the_order_of_the_config_and_sort_without_one(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", labelled(texts(200)))
    assert prepare(settings(file)).labels == ("negative", "positive")
    turned = prepare(settings(file, labels=["positive", "negative", "neutral"]))
    assert turned.labels == ("positive", "negative", "neutral")
    assert labels_of(turned) == labels_of(prepare(settings(file)))
    assert turned.report["absent_from_training"] == ["neutral"]


def test_several_labels_at_once(tmp_path: Path) -> None:
    """Cells of names with a separator; an empty cell is a text without labels."""
    cells = ("fees|app", "app", "", " app | fees ", "app|app", "staff")
    found = texts(120)
    file = write(tmp_path / "a.csv", [(text, cells[number % 6]) for number, text in enumerate(found)])
    corpus = prepare(settings(file, task="multi_label", near_duplicates="off"))
    assert corpus.labels == ("app", "fees", "staff")
    assert corpus.train.labels.dtype == np.float32
    assert corpus.train.labels.shape == (len(corpus.train), 3)
    expected = (("app", "fees"), ("app",), (), ("app", "fees"), ("app",), ("staff",))
    assert labels_of(corpus) == {text: expected[number % 6] for number, text in enumerate(found)}


def test_several_labels_as_lists_in_json(tmp_path: Path) -> None:
    cells: tuple[Any, ...] = (["fees", "app"], [], None, "app|fees", ["app", 7])
    lines = [{"text": text, "label": cells[number % 5]} for number, text in enumerate(texts(100))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpus = prepare(settings(tmp_path / "a.jsonl", task="multi_label"))
    assert corpus.labels == ("7", "app", "fees")
    expected = (("app", "fees"), (), (), ("app", "fees"), ("7", "app"))
    assert labels_of(corpus) == {line["text"]: expected[number % 5] for number, line in enumerate(lines)}


def test_nothing_in_a_list_of_labels_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "hello", "label": ["app", null]}\n')
    assert refusal(settings(tmp_path / "a.jsonl", task="multi_label")) == (
        "a.jsonl:1: not a label: expected label names in column 'label', received ['app', None]. "
        "Fix the row, or --set data.on_bad_row=quarantine to set it aside."
    )


def test_pairs_are_rows_of_two_texts(tmp_path: Path) -> None:
    """The same first text with another second one is another row; the same two are a duplicate."""
    found = texts(100)
    rows = [(text, f"{text} too", "yes") for text in found] + [(text, "not this one", "no") for text in found]
    file = write(tmp_path / "a.csv", [*rows, rows[3]], ("first", "second", "label"))
    corpus = prepare(settings(file, text="first", text_pair="second", near_duplicates="off"))
    assert corpus.has_pairs
    assert corpus.report["duplicates"] == {"rows": 1}
    got = [corpus.split(name)[row] for name in SPLITS for row in range(len(corpus.split(name)))]
    assert sorted((example.text, example.text_pair, example.label) for example in got) == sorted(rows)
    first, second = corpus.train.text_batch(np.array([0]))
    assert (first[0], second[0] if second else None) == (corpus.train[0].text, corpus.train[0].text_pair)


def test_row_weights_and_balanced_class_weights_multiply_in_training_only(tmp_path: Path) -> None:
    found = texts(400)
    rows = [(text, "rare" if number % 4 == 0 else "common", 0.5 if number % 2 else 2) for number, text in enumerate(found)]
    file = write(tmp_path / "a.csv", rows, ("text", "label", "trust"))
    corpus = prepare(settings(file, weight="trust", class_weights="balanced", near_duplicates="off"))
    counts = corpus.report["splits"]["train"]["labels"]
    weight = {label: len(corpus.train) / (2 * count) for label, count in counts.items()}
    assert corpus.report["class_weights"] == pytest.approx(weight)
    own = {text: row_weight for text, _, row_weight in rows}
    for example in (corpus.train[row] for row in range(len(corpus.train))):
        assert example.weight == pytest.approx(own[example.text] * weight[str(example.label)], rel=1e-6)
    for example in (corpus.test[row] for row in range(len(corpus.test))):
        assert example.weight == own[example.text]
    assert corpus.train.weights.dtype == np.float32


def test_given_class_weights_follow_the_order_of_the_labels(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", labelled(texts(100)))
    corpus = prepare(settings(file, class_weights="given", class_weight_values=[0.5, 3.0]))
    assert {(example.label, example.weight) for example in (corpus.train[row] for row in range(len(corpus.train)))} == {
        ("negative", 0.5),
        ("positive", 3.0),
    }
    assert refusal(settings(file, class_weights="given", class_weight_values=[1.0])) == (
        "data.class_weight_values has 1 numbers for 2 labels ('negative', 'positive'). Give one per label."
    )


def test_a_multi_label_row_weighs_as_much_as_its_heaviest_label(tmp_path: Path) -> None:
    cells = ("app|fees", "app", "")
    file = write(tmp_path / "a.csv", [(text, cells[number % 3]) for number, text in enumerate(texts(90))])
    corpus = prepare(settings(file, task="multi_label", class_weights="given", class_weight_values=[0.5, 3.0]))
    assert {(example.label, example.weight) for example in (corpus.train[row] for row in range(len(corpus.train)))} == {
        (("app", "fees"), 3.0),
        (("app",), 0.5),
        ((), 1.0),
    }


def test_ids_are_the_columns_or_the_contents(tmp_path: Path) -> None:
    rows = [(text, label, f"row-{number}" if number else "") for number, (text, label) in enumerate(labelled(texts(60)))]
    file = write(tmp_path / "a.csv", rows, ("text", "label", "key"))
    corpus = prepare(settings(file, id="key"))
    ids = {
        text: name
        for split in SPLITS
        for text, name in zip(corpus.split(split).texts.to_pylist(), corpus.split(split).ids.to_pylist(), strict=True)
    }
    assert all(ids[text] == name for text, _, name in rows[1:])
    assert len(ids[rows[0][0]]) == 32


def test_a_limit_takes_the_same_training_rows_whatever_comes_after(tmp_path: Path) -> None:
    found = texts(300)
    small = prepare(settings(write(tmp_path / "a.csv", labelled(found)), limit=50))
    smaller = prepare(settings(tmp_path / "a.csv", limit=20))
    assert len(small.train) == 50
    assert set(smaller.train.texts.to_pylist()) < set(small.train.texts.to_pylist())
    assert len(small.test) == len(smaller.test)
    turned = prepare(settings(write(tmp_path / "b.csv", labelled(found)[::-1]), limit=50))
    assert set(turned.train.texts.to_pylist()) == set(small.train.texts.to_pylist())


# ---- rows that are not a training corpus ----


def test_rows_to_score_stream_in_order_and_keep_their_duplicates(tmp_path: Path) -> None:
    found = texts(9000)
    (tmp_path / "a.csv").write_text("text\n" + "".join(f"{text}\n" for text in [*found, found[0]]))
    batches = list(read_examples([str(tmp_path / "a.csv")], settings(tmp_path / "a.csv"), ("a", "b"), need_labels=False))
    assert [len(batch) for batch in batches] == [8192, 809]
    assert [text for batch in batches for text in batch.texts.to_pylist()] == [*found, found[0]]
    assert batches[1].sources[808].as_py() == "a.csv:9002"
    assert set(batches[0].labels.tolist()) == {-1}
    assert batches[0][0].label is None


def test_rows_to_evaluate_on_carry_the_models_labels(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", [("one", "positive"), ("", "negative"), ("two", "negative"), ("three", "other")])
    names = ("positive", "negative")
    rejects: list[dict[str, Any]] = []
    wanted = settings(file, on_bad_row="quarantine")
    (batch,) = read_examples([str(file)], wanted, names, need_labels=True, rejects=rejects)
    assert [batch[row].label for row in range(len(batch))] == ["positive", "negative"]
    assert batch.labels.tolist() == [0, 1]
    assert [(reject["source"], reject["reason"]) for reject in rejects] == [("a.csv:3", "empty text"), ("a.csv:5", "unknown label")]
    with pytest.raises(DataError, match=r"^a\.csv:3: empty text: "):
        list(read_examples([str(file)], settings(file), names, need_labels=True))


def test_rows_left_out_without_a_place_for_them_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path / "a.csv", [("one", "positive"), ("", "negative"), ("two", "other")])
    list(read_examples([str(file)], settings(file, on_bad_row="quarantine"), ("positive",), need_labels=True))
    assert [record.getMessage() for record in caplog.records if record.name == "tfpipeline.data.prepare"] == [
        "2 of 3 rows were left out (1 x empty text, 1 x unknown label), the first of them a.csv:3"
    ]
