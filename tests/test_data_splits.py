"""Which rows are the same, which belong together, and on which side of the split a row falls."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.corpus_files import SPLITS, WORDS, labelled, labels_of, settings, texts, twins, where, write
from tfpipeline.data import near_duplicates, prepare
from tfpipeline.data.intake import normalise

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
