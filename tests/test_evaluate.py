"""Metrics, intervals, calibration, baseline, comparison, predictions: what `tfpipeline.evaluate` promises about numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tfpipeline import evaluate as room
from tfpipeline.config import EvaluateConfig
from tfpipeline.data.examples import Examples
from tfpipeline.errors import DataError
from tfpipeline.evaluate.intervals import mcnemar, resample_counts, wilson
from tfpipeline.evaluate.slices import without_spaces

CONFIG = EvaluateConfig(bootstrap_samples=200)
LABELS = ("negative", "neutral", "positive")


def rows(
    texts: list[str], labels: Any, names: tuple[str, ...] = LABELS, *, weights: Any = None, pairs: Any = None, **columns: Any
) -> Examples:
    """A split as `tfpipeline.data` makes it, from a few lists."""
    n = len(texts)
    table: dict[str, Any] = {
        "id": pa.array([f"{number:032x}" for number in range(n)], pa.string()),
        "text": pa.array(texts, pa.string()),
        "source": pa.array([f"rows.csv:{number + 2}" for number in range(n)], pa.string()),
    }
    if pairs is not None:
        table["text_pair"] = pa.array(pairs, pa.string())
    table.update({f"slice:{name}": pa.array(values, pa.string()) for name, values in columns.items()})
    weights = np.ones(n, np.float32) if weights is None else np.asarray(weights, np.float32)
    return Examples(pa.table(table), np.asarray(labels), weights, names)


def random_rows(n: int, classes: int = 3, seed: int = 0) -> tuple[Examples, np.ndarray]:
    """A model that is right more often than not."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n).astype(np.int32)
    logits = generator.normal(size=(n, classes))
    logits[np.arange(n), labels] += 1.2
    raised = np.exp(logits)
    names = tuple(f"label {number}" for number in range(classes))
    return rows([f"text {number}" for number in range(n)], labels, names), (raised / raised.sum(1, keepdims=True)).astype(np.float32)


def measure(examples: Examples, probabilities: Any, **more: Any) -> dict[str, Any]:
    """`evaluate`, and that every number of it is JSON without NaN."""
    task = "multi_label" if examples.labels.ndim == 2 else "single_label"
    found = room.evaluate(examples, probabilities, **{"labels": examples.names, "task": task, "config": CONFIG, **more})
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def one_hot(labels: Any, classes: int = 3, confidence: float = 1.0) -> np.ndarray:
    """Says `labels`, with this confidence."""
    rest = (1 - confidence) / (classes - 1)
    return np.where(np.eye(classes)[np.asarray(labels)] == 1, confidence, rest).astype(np.float32)


def test_headline_metrics_equal_those_of_scikit_learn() -> None:
    """Accuracy, F1, ROC-AUC, average precision and log loss agree with scikit-learn to rounding, ties included."""
    from sklearn import metrics

    examples, probabilities = random_rows(400)
    probabilities = np.round(probabilities, 2)  # many equal scores
    probabilities[:, 2] = 1 - probabilities[:, 0] - probabilities[:, 1]
    probabilities = np.clip(probabilities, 0, 1)
    found, truth, said = measure(examples, probabilities), examples.labels, probabilities.argmax(1)
    binary = np.eye(3)[truth]
    expected = {
        "accuracy": metrics.accuracy_score(truth, said),
        "macro_f1": metrics.f1_score(truth, said, average="macro"),
        "weighted_f1": metrics.f1_score(truth, said, average="weighted"),
        "roc_auc": metrics.roc_auc_score(binary, probabilities, average="macro"),
        "pr_auc": metrics.average_precision_score(binary, probabilities, average="macro"),
        "brier": ((probabilities.astype(np.float64) - binary) ** 2).sum(1).mean(),
    }
    assert {name: found[name]["value"] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert found["log_loss"]["value"] == pytest.approx(
        -np.log(np.clip(probabilities.astype(np.float64)[np.arange(400), truth], 1.2e-7, 1)).mean(), abs=1e-6
    )
    assert found["confusion_matrix"] == metrics.confusion_matrix(truth, said).tolist()
    precision, recall, f1, support = metrics.precision_recall_fscore_support(truth, said)
    for number, row in enumerate(found["per_class"]):
        got = [row["precision"], row["recall"], row["f1"], row["support"]]
        assert got == pytest.approx([precision[number], recall[number], f1[number], support[number]])


def test_multi_label_metrics_equal_those_of_scikit_learn() -> None:
    """Subset accuracy, micro / macro / weighted F1 and the areas agree with scikit-learn; each label has its four counts."""
    from sklearn import metrics

    generator = np.random.default_rng(3)
    truth = (generator.random((300, 4)) < 0.4).astype(np.float32)
    probabilities = np.clip(0.4 * truth + 0.6 * generator.random((300, 4)), 0, 1).astype(np.float32)
    examples = rows(["x"] * 300, truth, ("a", "b", "c", "d"))
    found, said = measure(examples, probabilities), probabilities >= 0.5
    expected = {
        "accuracy": metrics.accuracy_score(truth, said),
        "micro_f1": metrics.f1_score(truth, said, average="micro"),
        "macro_f1": metrics.f1_score(truth, said, average="macro"),
        "weighted_f1": metrics.f1_score(truth, said, average="weighted"),
        "roc_auc": metrics.roc_auc_score(truth, probabilities),
        "pr_auc": metrics.average_precision_score(truth, probabilities),
    }
    assert {name: found[name]["value"] for name in expected} == pytest.approx(expected)
    assert found["confusion_matrix"] is None
    cells = metrics.multilabel_confusion_matrix(truth, said)
    assert [[[row["tn"], row["fp"]], [row["fn"], row["tp"]]] for row in found["confusion_per_label"]] == cells.tolist()


def test_calibration_error_is_the_weighted_gap_of_the_bins() -> None:
    """Eight of ten right at 0.9 and one of two right at 0.6: 10/12 * 0.1 + 2/12 * 0.1; the bins say the same."""
    said = [0] * 12
    truth = np.array([0] * 8 + [1] * 2 + [0, 1], dtype=np.int32)
    probabilities = np.array([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 2)
    found = measure(rows(["x"] * 12, truth, ("no", "yes")), probabilities)
    assert len(said) == found["n"]
    assert found["expected_calibration_error"]["value"] == pytest.approx(0.1)
    filled = [(row["n"], row["accuracy"], row["confidence"]) for row in found["calibration"]["before"]["bins"] if row["n"]]
    assert filled == [(2, pytest.approx(0.5), pytest.approx(0.6)), (10, pytest.approx(0.8), pytest.approx(0.9))]
    for row in found["calibration"]["before"]["bins"]:
        assert row["n"] == 0 or row["low"] < row["confidence"] <= row["high"] + 1e-6


def test_bootstrap_interval_of_accuracy_is_near_the_binomial_one() -> None:
    """On 1,000 rows the percentile interval is that of a binomial share to half a point, holds the value, and follows the seed."""
    examples, probabilities = random_rows(1000)
    config = EvaluateConfig(bootstrap_samples=2000)
    found = measure(examples, probabilities, config=config)["accuracy"]
    spread = 1.96 * math.sqrt(found["value"] * (1 - found["value"]) / 1000)
    assert found["low"] == pytest.approx(found["value"] - spread, abs=0.005)
    assert found["high"] == pytest.approx(found["value"] + spread, abs=0.005)
    again, other = (measure(examples, probabilities, config=config, seed=seed)["log_loss"] for seed in (1, 2))
    assert again == measure(examples, probabilities, config=config)["log_loss"]
    assert (again["low"], again["high"]) != (other["low"], other["high"])


def test_every_metric_lies_inside_its_interval() -> None:
    """All headline metrics come with low <= value <= high."""
    found = measure(*random_rows(500))
    for name in ("accuracy", "macro_f1", "weighted_f1", "roc_auc", "pr_auc", "log_loss", "brier"):
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"], name


def test_each_resample_draws_as_many_rows_as_there_are() -> None:
    """Counts are whole, sum to the number of rows, and come in blocks that add up to the resamples asked for."""
    blocks = list(resample_counts(3000, 2500, seed=1))
    assert len(blocks) > 1
    assert sum(map(len, blocks)) == 2500
    assert all((block.sum(axis=1) == 3000).all() and (block == block.astype(int)).all() for block in blocks)


def test_thousand_resamples_of_two_thousand_rows_take_under_three_seconds() -> None:
    """The bootstrap is a matrix product, not a loop over rows."""
    examples, probabilities = random_rows(2000)
    started = time.perf_counter()
    measure(examples, probabilities, config=EvaluateConfig())
    assert time.perf_counter() - started < 3.0


@pytest.mark.parametrize(
    ("case", "truth", "said"),
    [
        ("a class absent from the rows", [0, 1, 0, 1], [0, 1, 1, 1]),
        ("a class never predicted", [0, 1, 2, 2], [0, 1, 1, 0]),
        ("a class predicted but absent", [0, 1, 0, 1], [0, 1, 2, 1]),
        ("one row, right", [1], [1]),
        ("one row, wrong", [1], [0]),
        ("one class only", [2, 2, 2], [2, 2, 0]),
        ("all right", [0, 1, 2], [0, 1, 2]),
        ("all wrong", [0, 1, 2], [1, 2, 0]),
    ],
)
@pytest.mark.parametrize("confidence", [1.0, 0.8])
def test_degenerate_rows_get_defined_results(case: str, truth: list[int], said: list[int], confidence: float) -> None:
    """No crash, no warning, no NaN: a number, or None with a reason; a table and a temperature too."""
    examples, probabilities = rows([case] * len(truth), np.array(truth, np.int32)), one_hot(said, confidence=confidence)
    found = measure(examples, probabilities, temperature=room.fit_temperature(probabilities, examples.labels, "single_label"))
    assert found["accuracy"]["value"] == pytest.approx(np.mean(np.equal(truth, said)))
    if len(set(truth)) == 1:
        assert found["roc_auc"] == {
            "value": None,
            "low": None,
            "high": None,
            "reason": "no label has both rows that carry it and rows that do not",
        }
    assert room.render(found)
    against_itself = room.compare(probabilities, probabilities, examples.labels, "single_label", config=CONFIG)
    assert (against_itself["verdict"], against_itself["mcnemar_p"]) == ("no difference shown", 1.0)


def test_absent_labels_are_named_and_do_not_pull_the_average_down() -> None:
    """A label without a row that nobody predicted is in no average; its numbers are None; `skipped_labels` says that it is in no AUC."""
    found = measure(rows(["x"] * 4, np.array([0, 1, 0, 1], np.int32)), one_hot([0, 1, 0, 1], confidence=0.8))
    assert found["macro_f1"]["value"] == 1.0
    assert found["roc_auc"]["value"] == 1.0
    assert found["skipped_labels"] == ["positive"]
    assert found["per_class"][2] == {"label": "positive", "precision": None, "recall": None, "f1": None, "support": 0, "predicted": 0}


def test_multi_label_rows_without_any_label_are_defined() -> None:
    """Nothing to find and nothing said: every row is right, and F1 is None with its reason."""
    found = measure(rows(["x"] * 3, np.zeros((3, 2), np.float32), ("a", "b")), np.full((3, 2), 0.1, np.float32))
    assert found["accuracy"]["value"] == 1.0
    assert found["macro_f1"] == {"value": None, "low": None, "high": None, "reason": "no row carries a label and none was predicted"}
    assert "n/a" in room.render(found)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([], np.zeros((0, 3)), "There are no rows to evaluate: 0 probabilities. Give a split with at least one labelled row."),
        ([0], [[math.nan, 0.5, 0.5]], "probabilities of 1 of 1 rows are not finite (NaN or infinite), first in row 0."),
        ([0, 1], [[0.2, 0.3, 0.5], [2.0, -1.0, 0.0]], "probabilities of 1 of 2 rows are outside [0, 1], first in row 1."),
        ([0], [[0.9, 0.9, 0.9]], "probabilities of 1 of 1 rows are not summing to 1 (are these logits?), first in row 0."),
        ([0], [[0.5, 0.5]], "probabilities have 2 columns, expected 3, one per label. Were the labels of another model given?"),
        (
            [0, -1],
            [[1, 0, 0]] * 2,
            "1 of 2 rows have no label, first row 1: they can be predicted, not evaluated.",
        ),
        ([7], [[1, 0, 0]], "labels of 1 of 1 rows are not in [0, 3), first in row 0."),
        (
            [0, 1],
            [[1, 0, 0]],
            "labels have shape [2], expected [1] for 1 rows of probabilities and task single_label. "
            "Rows without labels can be predicted but not evaluated.",
        ),
    ],
)
def test_unusable_input_is_one_clear_message(labels: list[int], probabilities: Any, message: str) -> None:
    """What is no probability or no label is refused at the door, with the row."""
    examples = rows(["x"] * len(labels), np.array(labels, np.int32))
    with pytest.raises(DataError) as caught:
        room.evaluate(examples, np.asarray(probabilities), labels=LABELS, task="single_label", config=CONFIG)
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_several_labels_with_an_impossible_probability_are_refused(value: float) -> None:
    """Multi-label rows need not sum to 1, but each value is a probability."""
    with pytest.raises(DataError, match=r"of 1 of 2 rows are (outside \[0, 1\]|not finite \(NaN or infinite\)), first in row 1\."):
        measure(rows(["x", "y"], np.zeros((2, 2), np.float32), ("a", "b")), np.array([[0.9, 0.9], [0.5, value]]))


def test_wilson_interval_is_the_textbook_one() -> None:
    """Compared with scipy's; defined at 0 of n, n of n and 0 of 0."""
    from scipy.stats import binomtest

    for right, n in ((0, 10), (10, 10), (37, 50), (1, 1)):
        expected = binomtest(right, n).proportion_ci(method="wilson")
        assert wilson(right, n, 0.95) == pytest.approx({"value": right / n, "low": expected.low, "high": expected.high}, abs=1e-9)
    assert wilson(0, 0, 0.95) == {"value": None, "low": None, "high": None}


def test_mcnemar_is_the_exact_binomial_test() -> None:
    """Compared with scipy's binomial test, also where binomial coefficients do not fit a float."""
    from scipy.stats import binomtest

    for a, b in ((0, 0), (1, 0), (5, 5), (3, 12), (40, 61), (2400, 2550)):
        expected = binomtest(a, a + b).pvalue if a + b else 1.0
        assert mcnemar(a, b) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_fitted_temperature_is_the_one_that_was_applied(task: str, temperature: float) -> None:
    """Labels drawn from the model's own probabilities, which are then sharpened: the temperature that undoes it is found, and log loss falls."""
    generator = np.random.default_rng(5)
    if task == "single_label":
        probabilities = generator.dirichlet([1.0] * 3, 6000)
        labels: Any = (probabilities.cumsum(axis=1) > generator.random((6000, 1))).argmax(axis=1)
    else:
        probabilities = generator.random((3000, 3))
        labels = (generator.random((3000, 3)) < probabilities).astype(np.float32)
    sharpened = room.apply_temperature(probabilities, 1 / temperature, task)
    assert room.fit_temperature(sharpened, labels, task) == pytest.approx(temperature, rel=0.08)


def test_temperature_changes_confidence_but_no_answer() -> None:
    """`after` has another log loss and calibration error; accuracy and the headline stay those of the model itself."""
    examples, probabilities = random_rows(600)
    sharp = room.apply_temperature(probabilities, 0.25, "single_label")
    temperature = room.fit_temperature(sharp, examples.labels, "single_label")
    plain, tempered = measure(examples, sharp), measure(examples, sharp, temperature=temperature)
    before, after = tempered["calibration"]["before"], tempered["calibration"]["after"]
    assert after["log_loss"]["value"] < before["log_loss"]["value"]
    assert after["expected_calibration_error"]["value"] < before["expected_calibration_error"]["value"] / 2
    assert {name: tempered[name] for name in ("accuracy", "log_loss")} == {name: plain[name] for name in ("accuracy", "log_loss")}
    assert (room.apply_temperature(sharp, temperature, "single_label").argmax(1) == sharp.argmax(1)).all()
    assert plain["calibration"]["after"] == plain["calibration"]["before"]


def test_temperature_is_one_where_the_rows_do_not_determine_it() -> None:
    """Every row right, every row wrong, or all classes equally likely: there is no best temperature, so none is applied."""
    for said, truth in (([0, 1, 2], [0, 1, 2]), ([0, 1, 2], [1, 2, 0])):
        assert room.fit_temperature(one_hot(said, confidence=0.9), np.array(truth), "single_label") == 1.0
    assert room.fit_temperature(np.full((4, 2), 0.5), np.array([0, 1, 0, 1]), "single_label") == 1.0


def test_slices_by_length_label_and_column() -> None:
    """Each slice has its rows, its accuracy and a Wilson interval; a missing value is a slice too; given token lengths replace words."""
    texts = ["one two", "one two three", "w " * 20, "w " * 12]
    examples = rows(texts, np.array([0, 1, 2, 0], np.int32), channel=["app", "app", None, "mail"])
    found = measure(examples, one_hot([0, 1, 0, 0], confidence=0.9))
    length, label, channel = found["slices"]
    assert (length["by"], length["unit"]) == ("length", "words")
    assert [(row["value"], row["n"], row["correct"]) for row in length["rows"]] == [("0-8", 2, 2), ("9-16", 1, 1), ("17-32", 1, 0)]
    assert [(row["value"], row["n"], row["accuracy"]) for row in label["rows"]] == [
        ("negative", 2, 1.0),
        ("neutral", 1, 1.0),
        ("positive", 1, 0.0),
    ]
    assert [(row["value"], row["n"]) for row in channel["rows"]] == [("app", 2), ("(missing)", 1), ("mail", 1)]
    assert {name: channel["rows"][0][name] for name in ("low", "high")} == {name: wilson(2, 2, 0.95)[name] for name in ("low", "high")}
    by_tokens = measure(examples, one_hot([0, 1, 0, 0], confidence=0.9), token_lengths=np.array([5, 8, 9, 130]))["slices"][0]
    assert (by_tokens["unit"], [row["value"] for row in by_tokens["rows"]]) == ("tokens", ["0-8", "9-16", "129-256"])


def test_column_of_many_values_keeps_the_commonest_and_sums_up_the_rest() -> None:
    """A free-text column cannot blow up the report: 20 slices at most, all rows in them."""
    values = [f"v{number // 2}" for number in range(100)]
    examples = rows(["x"] * 100, np.zeros(100, np.int32), who=values)
    found = measure(examples, one_hot([0] * 100))["slices"][2]["rows"]
    assert (len(found), found[-1]["value"], sum(row["n"] for row in found)) == (20, "(all others)", 100)


def test_worst_mistakes_are_the_surest_wrong_rows() -> None:
    """Surest first, text cut to 500 characters, with id and source; right rows never; as many as configured."""
    examples = rows(["fine", "a" * 900, "bad", "worse"], np.array([0, 0, 0, 0], np.int32), pairs=["p0", "p1", "p2", "p3"])
    probabilities = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.4, 0.6, 0], [0.05, 0.0, 0.95]], np.float32)
    found = measure(examples, probabilities, config=dataclasses.replace(CONFIG, worst_mistakes=2))["worst_mistakes"]
    assert found == [
        {
            "id": f"{3:032x}",
            "source": "rows.csv:5",
            "text": "worse",
            "text_pair": "p3",
            "true": "negative",
            "predicted": "positive",
            "probability": pytest.approx(0.95),
        },
        {
            "id": f"{1:032x}",
            "source": "rows.csv:3",
            "text": "a" * 499 + "…",
            "text_pair": "p1",
            "true": "negative",
            "predicted": "neutral",
            "probability": pytest.approx(0.8),
        },
    ]


def test_worst_mistakes_of_several_labels_name_both_sets() -> None:
    """The probability is that of the worst wrong decision: here a label that was missed at 0.1."""
    examples = rows(["x", "y"], np.array([[1, 1], [1, 0]], np.float32), ("a", "b"))
    (found,) = measure(examples, np.array([[0.9, 0.1], [0.9, 0.1]], np.float32))["worst_mistakes"]
    assert (found["true"], found["predicted"], found["probability"]) == (["a", "b"], ["a"], pytest.approx(0.9))


def test_row_weights_do_not_enter_the_metrics() -> None:
    """Weights steer training; two runs with other weights stay comparable."""
    texts, labels, said = ["x"] * 4, np.array([0, 1, 2, 0], np.int32), one_hot([0, 1, 1, 1], confidence=0.9)
    assert measure(rows(texts, labels, weights=[9, 0, 1, 1]), said) == measure(rows(texts, labels), said)


def test_comparison_sees_a_paired_difference_that_separate_intervals_hide() -> None:
    """20 rows of 1,000 repaired and none broken: intervals overlap, the paired test says better; the other way round it says worse."""
    generator = np.random.default_rng(7)
    truth = generator.integers(0, 2, 1000).astype(np.int32)
    wrong = np.arange(1000) < 200
    worse = one_hot(np.where(wrong, 1 - truth, truth), 2, 0.8)
    better = one_hot(np.where(wrong & (np.arange(1000) >= 20), 1 - truth, truth), 2, 0.8)
    found = room.compare(better, worse, truth, "single_label", config=CONFIG, names=("new", "old"))
    assert (found["verdict"], found["n10"], found["n01"], found["names"]) == ("better", 20, 0, ["new", "old"])
    assert found["accuracy_difference"]["value"] == pytest.approx(0.02)
    assert 0 < found["accuracy_difference"]["low"] < 0.02 < found["accuracy_difference"]["high"]
    assert found["label_agreement"] == pytest.approx(0.98)
    assert found["mcnemar_p"] == pytest.approx(2 * 0.5**20)
    assert room.compare(worse, better, truth, "single_label", config=CONFIG)["verdict"] == "worse"
    few = slice(15, 60)
    assert room.compare(better[few], worse[few], truth[few], "single_label", config=CONFIG)["verdict"] == "no difference shown"


def test_models_of_other_shapes_are_not_compared() -> None:
    """The message names both models and shapes."""
    with pytest.raises(DataError) as caught:
        room.compare(one_hot([0]), one_hot([0, 1]), np.array([0]), "single_label", config=CONFIG, names=("new", "old"))
    assert str(caught.value) == (
        "the two models cannot be compared: probabilities of new have shape [1, 3], of old [2, 3]. Both must be about the same rows and labels."
    )


def test_rows_are_aligned_by_id() -> None:
    """The place of each id of `a` in `b`, for plain lists and Arrow columns."""
    assert room.align(pa.chunked_array([["x", "y"], ["z"]]), ["z", "x", "y"]).tolist() == [1, 2, 0]


def test_rows_that_do_not_match_are_counted_and_named() -> None:
    """Missing on either side and repeated ids: all in one message."""
    with pytest.raises(DataError) as caught:
        room.align(["a", "b", "c", "d", "e"], ["e", "x", "x"], names=("new", "old"))
    assert str(caught.value) == (
        "the rows of new (5) and old (3) are not the same: 1 ids occur more than once in old (x); 4 ids are only in new (a, b, c, ...); "
        "2 ids are only in old (x, x). Evaluate both on the same file and split."
    )


GOOD, BAD = ["good", "great service", "very good app", "love it", "great"], ["bad", "awful service", "very bad app", "hate it", "awful"]


def test_baseline_learns_words() -> None:
    """A few clear texts are enough; probabilities are float32 rows that sum to 1; the description says what was fitted."""
    train = rows(GOOD + BAD, np.array([1] * 5 + [0] * 5, np.int32), ("negative", "positive"))
    test = rows(["good service", "awful app"], np.array([1, 0], np.int32), ("negative", "positive"))
    probabilities, described = room.tfidf_baseline(train, test, ("negative", "positive"), "single_label", 1)
    assert (probabilities.dtype, probabilities.argmax(1).tolist()) == (np.float32, [1, 0])
    assert probabilities.sum(1) == pytest.approx([1, 1])
    assert described == ("TF-IDF of words and word pairs (1-2-grams), 18 features, logistic regression (C=10), 10 training rows")


def test_baseline_reads_characters_where_texts_have_no_spaces() -> None:
    """Chinese is read as 1 to 4 characters; the rule is the length of what stands between two spaces."""
    good, bad = (
        ["房间非常好，服务也很好，下次还会再来的", "很好的酒店，非常满意，推荐给大家入住"],
        ["房间太差了，服务很差，再也不会来住了", "很糟糕的酒店，非常失望，不推荐大家住"],
    )
    train = rows(good + bad, np.array([1, 1, 0, 0], np.int32), ("no", "yes"))
    probabilities, described = room.tfidf_baseline(
        train, rows(["非常满意，推荐给大家", "非常失望，太差了"], np.array([1, 0])), ("no", "yes"), "single_label", 1
    )
    assert probabilities.argmax(1).tolist() == [1, 0]
    assert described.startswith("TF-IDF of character 1-4-grams")
    assert without_spaces(good + bad)
    assert not without_spaces([*GOOD, "", "https://example.org/a/very/long/address/indeed"])
    assert measure(rows(good, np.array([0, 1], np.int32)), one_hot([0, 1]))["slices"][0]["unit"] == "characters"


def test_baseline_honours_weights() -> None:
    """The same text with both labels goes to the heavier one; a row of weight 0 teaches nothing."""
    for weights, expected in (([9, 1, 1], 0), ([1, 9, 1], 1), ([1, 0, 0], 0)):
        train = rows(["so so", "so so", "other thing"], np.array([0, 1, 0], np.int32), ("a", "b"), weights=weights)
        probabilities, _ = room.tfidf_baseline(train, rows(["so so"], [0]), ("a", "b"), "single_label", 1)
        assert probabilities.argmax(1).tolist() == [expected], weights


def test_baseline_of_several_labels_is_one_regression_each() -> None:
    """A text can get both labels; a label that every row has gets probability 1."""
    train = rows(
        ["red", "blue", "red blue", "green"] * 3, np.array([[1, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]] * 3, np.float32), ("r", "b", "x")
    )
    probabilities, described = room.tfidf_baseline(train, rows(["blue red", "green"], [0, 0]), ("r", "b", "x"), "multi_label", 1)
    assert (probabilities > 0.5).tolist() == [[True, True, True], [False, False, True]]
    assert "one-versus-rest" in described


@pytest.mark.parametrize(
    ("case", "texts", "labels", "expected"),
    [
        ("a class with one row", ["a b", "a c", "z"], [0, 0, 2], [1, 0, 0]),
        ("one class only", ["a", "b", "c"], [1, 1, 1], [0, 1, 0]),
        ("punctuation only", ["!!", "??", "!!"], [0, 1, 0], [1, 0, 0]),
        ("empty texts", ["", "", ""], [0, 1, 0], [1, 0, 0]),
        ("spaces only", [" ", " ", " "], [0, 1, 0], [1, 0, 0]),
    ],
)
def test_baseline_answers_for_degenerate_training_rows(case: str, texts: list[str], labels: list[int], expected: list[int]) -> None:
    """A class without a row gets 0, and no warning comes out."""
    train = rows(texts, np.array(labels, np.int32))
    probabilities, described = room.tfidf_baseline(train, rows([texts[0]], [0]), LABELS, "single_label", 1)
    assert np.isfinite(probabilities).all(), case
    assert np.eye(3, dtype=int)[probabilities.argmax(1)].tolist() == [expected], described
    assert probabilities[0][[label for label in range(3) if label not in labels]].sum() == 0


def test_baseline_without_a_usable_row_says_so() -> None:
    """No labels or no weight: one message."""
    train = rows(["a", "b"], np.array([-1, 0], np.int32), weights=[1, 0])
    with pytest.raises(DataError) as caught:
        room.tfidf_baseline(train, train, LABELS, "single_label", 1)
    assert str(caught.value) == (
        "the TF-IDF baseline has nothing to learn from: none of the 2 training rows has a label and a weight above 0."
    )


@pytest.mark.parametrize(
    ("task", "labels"), [("single_label", np.array([2, -1], np.int32)), ("multi_label", np.array([[1, 0, 1], [0, 0, 0]], np.float32))]
)
def test_predictions_come_back_as_they_were_saved(task: str, labels: np.ndarray, tmp_path: Any) -> None:
    """Ids, sources, targets and probabilities survive bit by bit, and no temporary file stays behind."""
    examples = rows(["x", "y"], labels)
    probabilities = np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]], np.float32)
    path = tmp_path / "deep" / "predictions.parquet"
    for _ in range(2):  # a second time replaces the file
        room.save_predictions(path, examples, probabilities, LABELS)
    found = room.load_predictions(path)
    assert (found.labels, found.task, found.sources) == (LABELS, task, ["rows.csv:2", "rows.csv:3"])
    assert found.ids == examples.ids.to_pylist()
    assert (found.targets == labels).all()
    assert found.targets.dtype == labels.dtype
    assert (found.probabilities == probabilities).all()
    assert [entry.name for entry in path.parent.iterdir()] == ["predictions.parquet"]
    table = pa.parquet.read_table(path)
    assert table.column_names == ["id", "source", "label", "predicted", "probabilities"]
    assert table["predicted"].to_pylist() == (["positive", "negative"] if task == "single_label" else [["positive"], ["negative"]])


def test_foreign_prediction_files_are_refused(tmp_path: Any) -> None:
    """No file, no Parquet, another's Parquet: three messages that start with the path."""
    import pyarrow.parquet

    missing, text, foreign = tmp_path / "none.parquet", tmp_path / "text.parquet", tmp_path / "foreign.parquet"
    text.write_text("id,label\n")
    pyarrow.parquet.write_table(pa.table({"id": [1]}), foreign)
    for path, start in (
        (missing, "there is no such file of predictions."),
        (text, "not readable as Parquet ("),
        (foreign, "a Parquet file, but without our columns or metadata; it has id. Expected a Parquet file"),
    ):
        with pytest.raises(DataError) as caught:
            room.load_predictions(path)
        assert str(caught.value).startswith(f"{path}: {start}")


def test_a_failed_write_leaves_the_old_file(tmp_path: Any) -> None:
    """Whole or not at all: what was there stays, nothing half-written stands beside it."""
    path = tmp_path / "predictions.parquet"
    path.write_text("old")
    with pytest.raises(DataError):
        room.save_predictions(path, rows(["x"], [0]), np.zeros((2, 3)), LABELS)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("predictions.parquet", "old")]


def test_the_room_needs_no_tensorflow_and_imports_heavy_packages_late() -> None:
    """Importing it loads neither TensorFlow nor scikit-learn, matplotlib, scipy or pyarrow."""
    heavy = "tensorflow", "transformers", "sklearn", "matplotlib", "scipy", "pyarrow"
    code = f"import sys, tfpipeline.evaluate; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
