"""Raw rows become a clean, split corpus: what is kept, where it goes, what is reported, and what is refused."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tfpipeline import config
from tfpipeline.data import Corpus, near_duplicates, open_prepared, prepare, read_examples
from tfpipeline.data.intake import MAX_LABELS, normalise
from tfpipeline.errors import DataError, RunError

NOUNS = ("app", "card", "loan", "branch", "transfer", "clerk", "phone", "queue", "letter", "fee")
WORDS = ("great", "lovely", "quick", "kind", "awful", "slow", "rude", "broken", "late", "dear")
SPLITS = ("train", "validation", "test")


def texts(count: int, seed: int = 1) -> list[str]:
    """Different texts, no two of them near-duplicates."""
    random_ = random.Random(seed)
    return [f"{seed} {number} " + " ".join(random_.choices((*NOUNS, *WORDS), k=8)) for number in range(count)]


def labelled(found: list[str]) -> list[tuple[str, str]]:
    """Alternating labels."""
    return [(text, "negative" if number % 2 else "positive") for number, text in enumerate(found)]


def write(file: Path, rows: list[tuple[Any, ...]], header: tuple[str, ...] = ("text", "label")) -> Path:
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])
    return file


def settings(path: Path | list[Path], **values: Any) -> config.DataConfig:
    files = [str(p) for p in (path if isinstance(path, list) else [path])]
    found = {"path": files, **values}
    return config.load(overrides=[f"data.{name}={json.dumps(value)}" for name, value in found.items()]).data


def where(corpus: Corpus) -> dict[str, str]:
    """Text to the name of its split."""
    return {text: name for name in SPLITS for text in corpus.split(name).texts.to_pylist()}


def labels_of(corpus: Corpus) -> dict[str, Any]:
    """Text to label, over all splits."""
    found = [corpus.split(name)[row] for name in SPLITS for row in range(len(corpus.split(name)))]
    return {example.text: example.label for example in found}


def refusal(wanted: config.DataConfig, folder: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        prepare(wanted, folder)
    return str(caught.value)


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


# ---- duplicates and conflicts ----


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("plain", "plain"),
        ("two  words\t\n", "two words"),
        ("caf\u0065\u0301", "café"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("bell\x07", "bell"),
        (" \u00a0\u3000x ", "x"),
        ("\ufffd\u200b", ""),
    ],
)
def test_texts_are_the_same_up_to_composition_control_and_space(text: str, same: str) -> None:
    assert normalise(text) == same
    assert normalise(same) == same


def test_exact_duplicates_go_and_the_first_one_stays_as_it_was_written(tmp_path: Path) -> None:
    rows = labelled(texts(80))
    first = ("The  app is caf\u00e9 great", "positive")
    file = write(tmp_path / "a.csv", [first, *rows, ("The app is cafe\u0301 great ", "positive"), rows[7], rows[7]])
    corpus = prepare(settings(file))
    assert corpus.report["duplicates"] == {"rows": 3}
    assert corpus.report["conflicts"] == {"texts": 0, "examples": []}
    found = labels_of(corpus)
    assert len(found) == 81
    assert found[first[0]] == "positive"


def test_conflicting_labels_are_reported_and_the_first_is_kept(tmp_path: Path) -> None:
    rows = labelled(texts(60))
    file = write(tmp_path / "a.csv", [*rows, (rows[4][0], "negative"), (rows[4][0] + " ", "positive"), (rows[5][0], rows[5][1])])
    corpus = prepare(settings(file))
    assert corpus.report["conflicts"] == {
        "texts": 1,
        "examples": [
            {
                "text": rows[4][0],
                "sources": ["a.csv:6", "a.csv:62", "a.csv:63"],
                "labels": ["positive", "negative", "positive"],
                "kept": "positive",
            }
        ],
    }
    assert corpus.report["duplicates"] == {"rows": 3}
    assert labels_of(corpus)[rows[4][0]] == "positive"


def test_the_same_labels_in_another_order_are_no_conflict(tmp_path: Path) -> None:
    rows = [(text, "b|a") for text in texts(60)]
    corpus = prepare(settings(write(tmp_path / "a.csv", [*rows, (rows[0][0], "a|b"), (rows[1][0], "a")]), task="multi_label"))
    assert corpus.report["conflicts"]["texts"] == 1
    assert corpus.report["conflicts"]["examples"][0]["labels"] == [["b", "a"], ["a"]]


# ---- near-duplicates ----


def twins(count: int) -> list[tuple[str, str]]:
    """Pairs of texts that differ in their last word, far above the threshold."""
    return [
        (f"{text} and that was all there is to say about it today", f"{text} and that was all there is to say about it now")
        for text in texts(count, 5)
    ]


def test_near_duplicates_end_on_one_side(tmp_path: Path) -> None:
    """Without the search many pairs would be parted; with it none is, and those parted went to training."""
    found = twins(200)
    shares = {"validation_fraction": 0.3, "test_fraction": 0.3}
    file = write(tmp_path / "a.csv", labelled([text for pair in found for text in pair]))
    off = where(prepare(settings(file, near_duplicates="off", **shares)))
    corpus = prepare(settings(file, **shares))
    on = where(corpus)
    parted = [pair for pair in found if off[pair[0]] != off[pair[1]]]
    assert len(parted) > 30
    assert all(on[a] == on[b] for a, b in found)
    assert all(on[a] == "train" for a, _ in parted)
    assert all(on[a] == off[a] for a, b in found if off[a] == off[b])
    near = corpus.report["near_duplicates"]
    assert (near["searched"], near["rows_searched"], near["rows_total"], near["groups"], near["rows"]) == ("all", 400, 400, 200, 400)
    assert near["rows_moved_to_train"] == sum((off[a] != "train") + (off[b] != "train") for a, b in parted)
    assert len(near["examples"]) == 20


def test_the_search_says_when_it_takes_a_sample_and_when_it_is_off(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", labelled([text for pair in twins(100) for text in pair]))
    sample = prepare(settings(file, near_duplicate_max_rows=150)).report["near_duplicates"]
    assert (sample["searched"], sample["rows_searched"], sample["rows_total"]) == ("sample", 150, 200)
    assert 0 < sample["groups"] < 100
    off = prepare(settings(file, near_duplicates="off")).report["near_duplicates"]
    assert off == {
        "searched": "off",
        "rows_searched": 0,
        "rows_total": 200,
        "groups": 0,
        "rows": 0,
        "examples": [],
        "rows_moved_to_train": 0,
    }


def jaccard(a: str, b: str) -> float:
    x, y = near_duplicates.shingles(a), near_duplicates.shingles(b)
    return len(x & y) / len(x | y) if x and y else 0.0


def test_groups_are_what_comparing_all_pairs_finds() -> None:
    """Against brute force, where a pair is far enough from the threshold for MinHash to be sure to propose it."""
    random_ = random.Random(3)
    found = []
    for text in texts(60, 9):
        words = f"{text} and more words that follow it".split()
        found.append(" ".join(words))
        for _ in range(random_.randint(0, 3)):
            other = list(words)
            other[random_.randrange(len(other))] = random_.choice(WORDS)
            found.append(" ".join(other))
    random_.shuffle(found)
    found = list(dict.fromkeys(found))
    root = list(range(len(found)))
    for i in range(len(found)):
        for j in range(i):
            if jaccard(found[i], found[j]) >= 0.65:
                low, high = sorted((root[i], root[j]))
                root = [low if r == high else r for r in root]
    expected = {frozenset(i for i, r in enumerate(root) if r == name) for name in set(root) if root.count(name) > 1}
    groups = near_duplicates.groups(found, 0.65)
    assert {frozenset(group) for group in groups} == expected
    assert len(expected) > 15
    assert max(map(len, expected)) > 2
    assert groups == sorted(sorted(group) for group in groups)


def test_a_chain_of_neighbours_is_one_group() -> None:
    """First and last share nothing; each is near to the next, in whatever order they come."""
    words = texts(20, 6)
    sequence = " ".join(words).split()
    windows = [" ".join(sequence[start : start + 24]) for start in range(60)]
    random.Random(2).shuffle(windows)
    assert near_duplicates.groups(windows, 0.85) == [list(range(60))]


@pytest.mark.parametrize(
    ("a", "b", "near"),
    [
        ("the app is not what i thought it would be", "the app is not what i thought it would be!", True),
        ("The App is not what I thought it would be", "the app is not what i thought it would be", True),
        ("the app is not what i thought it would be", "a loan is never what one hopes for at all", False),
        ("这家酒店的服务非常好，早餐也很丰富，下次还会再来", "这家酒店的服务非常好，早餐也很丰富，下次还会来", True),
        ("这家酒店的服务非常好，早餐也很丰富，下次还会再来", "房间太小而且隔音很差，晚上根本睡不着觉，不推荐", False),
        ("not good", "not good!", True),
        ("good", "good!", False),
    ],
)
def test_which_texts_are_near(a: str, b: str, near: bool) -> None:
    assert near_duplicates.groups([a, b], 0.7) == ([[0, 1]] if near else [])


def test_a_template_with_a_number_in_it_is_one_group() -> None:
    """More members than are compared with each other: neighbours chain them."""
    found = [
        f"dear customer your parcel number {number} has arrived at our office please pick it up soon thank you" for number in range(3000)
    ]
    assert near_duplicates.groups(found, 0.6) == [list(range(3000))]
    assert near_duplicates.groups(found, 0.95) == []
    assert near_duplicates.groups([], 0.8) == []


# ---- the split ----


def test_the_same_rows_in_other_files_and_another_order_give_the_same_corpus(tmp_path: Path) -> None:
    rows = labelled(texts(150) + [text for pair in twins(75) for text in pair])
    one = prepare(settings(write(tmp_path / "one.csv", rows)))
    shuffled = random.Random(4).sample(rows, len(rows))
    write(tmp_path / "b.csv", shuffled[:100])
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"label": label, "text": text}) + "\n" for text, label in shuffled[100:]))
    two = prepare(settings([tmp_path / "b.csv", tmp_path / "a.jsonl"]))
    assert two.fingerprint == one.fingerprint
    assert where(two) == where(one)
    assert [two.report["near_duplicates"][key] for key in ("groups", "rows", "rows_moved_to_train")] == [
        one.report["near_duplicates"][key] for key in ("groups", "rows", "rows_moved_to_train")
    ]
    turned = prepare(settings(write(tmp_path / "c.csv", [(rows[0][0], "negative"), *rows[1:]])))
    split = where(one)[rows[0][0]]
    assert {name for name in SPLITS if turned.fingerprint[name] != one.fingerprint[name]} == {split}


def test_a_sample_is_the_same_rows_in_any_order(tmp_path: Path) -> None:
    rows = labelled([text for pair in twins(200) for text in pair])
    one = prepare(settings(write(tmp_path / "one.csv", rows), near_duplicate_max_rows=150))
    two = prepare(settings(write(tmp_path / "two.csv", rows[::-1]), near_duplicate_max_rows=150))
    assert one.fingerprint == two.fingerprint
    assert one.report["near_duplicates"]["groups"] == two.report["near_duplicates"]["groups"] > 0


@pytest.mark.parametrize("seed", range(6))
def test_adding_rows_never_moves_a_row_from_train_to_another_split(tmp_path: Path, seed: int) -> None:
    """Near-twins, duplicates and bridges among the new rows included."""
    random_ = random.Random(seed)
    rows = [text for pair in twins(60) for text in pair] + texts(120, seed + 10)
    random_.shuffle(rows)
    before = where(prepare(settings(write(tmp_path / "a.csv", labelled(rows[:120])))))
    more = rows[120:] + [f"{random_.choice(rows)} {random_.choice(WORDS)}" for _ in range(60)] + rows[:30]
    random_.shuffle(more)
    after = where(prepare(settings([write(tmp_path / "0.csv", labelled(more)), tmp_path / "a.csv"])))
    assert len(after) > len(before)
    moved = {(before[text], after[text]) for text in before if before[text] != after[text]}
    assert moved <= {("validation", "train"), ("test", "train")}


def test_another_salt_is_another_split(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", labelled(texts(200)))
    assert where(prepare(settings(file))) == where(prepare(settings(file)))
    assert where(prepare(settings(file))) != where(prepare(settings(file, split_salt="another")))


def test_rows_cut_into_validation_are_not_leaked_into_test(tmp_path: Path) -> None:
    """A given test file that repeats all of `data.path`: those texts that training holds are leaks, those cut into validation are not."""
    file = write(tmp_path / "a.csv", labelled(texts(200)))
    test = write(tmp_path / "b.csv", labelled(texts(200)))
    corpus = prepare(settings(file, test_path=[str(test)], near_duplicates="off"))
    assert corpus.report["leakage"]["test"]["rows"] == len(corpus.train) < 200


def test_given_splits_are_left_as_they_are_and_leaks_are_reported(tmp_path: Path) -> None:
    """Exact ones and near ones, against training and between the given ones; nothing is moved or removed."""
    (near, near_twin), *_ = twins(1)
    found = texts(200)
    rows = labelled(found[:100])
    train = write(tmp_path / "train.csv", [*rows, (near, "positive")])
    validation = write(tmp_path / "dev.csv", [*labelled(found[100:120]), rows[3], (near_twin, "positive")])
    test = write(tmp_path / "test.csv", [*labelled(found[120:160]), rows[5], (found[100], "negative"), (found[121], "negative")])
    corpus = prepare(settings(train, validation_path=[str(validation)], test_path=[str(test)]))
    assert corpus.train.texts.to_pylist() == [*found[:100], near]
    assert corpus.validation.texts.to_pylist() == [*found[100:120], rows[3][0], near_twin]
    assert corpus.test.texts.to_pylist() == [*found[120:160], rows[5][0], found[100]]
    assert corpus.report["duplicates"] == {"rows": 1}
    assert corpus.report["leakage"] == {
        "validation": {
            "also_in": ["train"],
            "rows": 1,
            "examples": [{"source": "dev.csv:22", "also": "train.csv:5"}],
            "near": {"rows": 1, "examples": [{"source": "dev.csv:23", "also": "train.csv:102"}]},
        },
        "test": {
            "also_in": ["train", "validation"],
            "rows": 2,
            "examples": [{"source": "test.csv:42", "also": "train.csv:7"}, {"source": "test.csv:43", "also": "dev.csv:2"}],
            "near": {"rows": 0, "examples": []},
        },
    }
    assert corpus.report["near_duplicates"]["rows_moved_to_train"] == 0


def test_a_given_test_file_leaves_validation_to_the_hash(tmp_path: Path) -> None:
    found = texts(500)
    train = write(tmp_path / "train.csv", labelled(found[:400]))
    corpus = prepare(settings(train, test_path=[str(write(tmp_path / "test.csv", labelled(found[400:])))]))
    assert corpus.test.texts.to_pylist() == found[400:]
    assert corpus.report["leakage"]["test"]["rows"] == 0
    assert 20 < len(corpus.validation) < 70
    assert len(corpus.train) + len(corpus.validation) == 400


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
