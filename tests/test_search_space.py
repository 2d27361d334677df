"""Spaces: what they mean, and one clear message for every mistake."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest

from tfpipeline import config as configs
from tfpipeline.errors import ConfigError
from tfpipeline.search import objective, space

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BASE = configs.load("sst2", overrides=["model.r_drop_alpha=0"])


def _space(text: str, base: configs.Config = BASE) -> space.Space:
    return space.parse(tomllib.loads(text), "space.toml", base)


def _refused(text: str, base: configs.Config = BASE) -> str:
    with pytest.raises(ConfigError) as error:
        _space(text, base)
    return str(error.value)


def test_every_form_of_a_parameter() -> None:
    found = _space(
        """
        "train.learning_rate" = {min = 1e-5, max = 2e-4, log = true}
        "train.epochs" = {min = 2, max = 4}
        "model.dropout" = {min = 0.0, max = 0.3, step = 0.1}
        "train.batch_size" = {min = 8, max = 64, step = 2, log = true}
        "train.optimizer" = ["adamw", "sgd"]
        "text.strip_html" = {values = [true, false]}
        "text.length_buckets" = [[16, 32, 64], [64]]
        """
    )
    by_key = {one.key: one for one in found.parameters}
    assert (by_key["train.learning_rate"].low, by_key["train.learning_rate"].high, by_key["train.learning_rate"].log) == (1e-5, 2e-4, True)
    assert by_key["train.epochs"].whole
    assert by_key["model.dropout"].values == (0.0, 0.1, 0.2, 0.3)
    assert by_key["train.batch_size"].values == (8, 16, 32, 64)
    assert by_key["train.optimizer"].values == ("adamw", "sgd")
    assert by_key["text.strip_html"].values == (True, False)
    assert by_key["text.length_buckets"].values == ([16, 32, 64], [64])
    assert found.combinations() is None


def test_keys_without_quotes_mean_the_same() -> None:
    assert _space("train.epochs = [2, 3]").digest() == _space('"train.epochs" = [2, 3]').digest()


def test_a_condition_holds_or_not() -> None:
    found = _space(
        '"train.weight_decay" = {values = [0.0, 0.1], when = {"train.optimizer" = "adamw"}}\n"train.optimizer" = ["adamw", "sgd"]'
    )
    parent, child = found.parameters
    assert (parent.key, child.key) == ("train.optimizer", "train.weight_decay")  # the parent comes first, whatever the file's order
    assert child.active({"train.optimizer": "adamw"})
    assert not child.active({"train.optimizer": "sgd"})
    assert not child.active({})


def test_a_condition_on_a_number_is_written_as_its_key_writes_it() -> None:
    found = _space('"model.dropout" = [0, 1e-1]\n"train.epochs" = {min = 1, max = 3, when = {"model.dropout" = 0}}')
    assert found["train.epochs"].when == (("model.dropout", (0.0,)),)
    assert repr(found["train.epochs"].when[0][1][0]) == "0.0"


def test_values_survive_keras_tuner_and_its_protocol() -> None:
    keras_tuner = pytest.importorskip("keras_tuner")
    found = _space(
        '"train.learning_rate" = {min = 1e-5, max = 2e-4, log = true}\n"model.dropout" = [0.1, 0.3]\n"text.strip_html" = [true, false]\n'
        '"train.epochs" = {min = 2, max = 4}\n"text.length_buckets" = [[16, 32, 64], [64]]'
    )
    chosen = found.hyperparameters()
    chosen.values = {
        "train.learning_rate": 1.23456e-4,
        "model.dropout": "0.3",
        "text.strip_html": "true",
        "train.epochs": 3,
        "text.length_buckets": "[64]",
    }
    back = keras_tuner.HyperParameters.from_proto(chosen.to_proto())
    expected = {
        "train.learning_rate": 1.23456e-4,
        "model.dropout": 0.3,
        "text.strip_html": True,
        "train.epochs": 3,
        "text.length_buckets": [64],
    }
    assert found.decode(back.values) == found.decode(chosen.values) == expected


def test_where_a_value_stands() -> None:
    found = _space(
        '"train.learning_rate" = {min = 1e-5, max = 1e-3, log = true}\n"train.epochs" = {min = 2, max = 4}\n"train.batch_size" = [16, 32, 64]'
    )
    assert found["train.learning_rate"].place(1e-4) == pytest.approx(0.5)
    assert [found["train.epochs"].place(value) for value in (2, 3, 4)] == [0.0, 0.5, 1.0]
    assert [found["train.batch_size"].place(value) for value in (16, 32, 64)] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("preset", ["bank", "sst2", "scratch"])
def test_the_ready_spaces_fit_the_presets(preset: str) -> None:
    base = configs.load(preset)
    found = space.load("", base)
    assert found.name == ("scratch" if preset == "scratch" else "bert")
    assert "train.learning_rate" in found.keys
    generator = random.Random(1)
    for chosen, _ in zip(space._drawn(found, generator), range(50), strict=False):
        space.with_values(base, chosen, "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "space.toml: is empty. Name at least one key to search."),
        (
            '"train.learning_rte" = {min = 1e-5, max = 1e-4}',
            "space.toml: unknown key `train.learning_rte`. Did you mean `train.learning_rate`? `tfpipeline config` lists all keys.",
        ),
        ('"train.epochs" = {min = 4, max = 2}', "space.toml: `train.epochs` has min 4 above max 2. Swap them."),
        (
            '"train.learning_rate" = {min = 1e-4, max = 1e-4}',
            "space.toml: `train.learning_rate` has min = max = 0.0001: nothing to search. To fix it for all trials: --set train.learning_rate=0.0001",
        ),
        (
            '"train.weight_decay" = {min = 0.0, max = 0.1, log = true}',
            "space.toml: `train.weight_decay` has a log scale from 0: the logarithm of 0 and below does not exist. Start above 0, or leave out log.",
        ),
        (
            '"train.learning_rate" = {min = -1e-4, max = 1e-4, log = true}',
            "space.toml: `train.learning_rate` takes number > 0, received -0.0001.",
        ),
        ('"train.epochs" = {min = 2.5, max = 4}', "space.toml: `train.epochs` takes integer, received 2.5."),
        ('"train.epochs" = ["two", 3]', "space.toml: `train.epochs` takes integer, received 'two'."),
        ('"train.epochs" = [2]', "space.toml: `train.epochs` needs a list of at least two values to choose from, received [2]."),
        ('"train.epochs" = [2, 2]', "space.toml: `train.epochs` names a value twice: [2, 2]."),
        (
            '"train.epochs" = 3',
            "space.toml: `train.epochs` takes a list of choices or a table with min and max, received 3. To fix it for all trials: --set train.epochs=3",
        ),
        ('"train.epochs" = {min = 2}', "space.toml: `train.epochs` lacks `max`. Give values, or min and max."),
        ('"train.epochs" = {values = [2, 3], max = 4}', "space.toml: `train.epochs` has both `values` and a range. Keep one of the two."),
        (
            '"train.epochs" = {minn = 2, max = 4}',
            "space.toml: `train.epochs` has an unknown field `minn`. Did you mean `min`? Fields: values, min, max, step, log, when.",
        ),
        (
            '"train.optimizer" = {min = 1, max = 2}',
            "space.toml: `train.optimizer` is no number (string), so it has no range. List its values: {values = [...]}.",
        ),
        (
            '"train.optimizer" = ["adamw", "addam"]',
            "space.toml: `train.optimizer` takes one of adamw, adam, sgd, adafactor, lion, received 'addam'. Did you mean `adam`?",
        ),
        ('"train.epochs" = {min = 2, max = 4, step = 0}', "space.toml: `train.epochs` has step = 0; it must be above 0."),
        (
            '"train.epochs" = {min = 2, max = 4, step = 5}',
            "space.toml: `train.epochs` has step = 5, which is larger than the range (2 to 4).",
        ),
        (
            '"train.epochs" = {min = 2, max = 4, step = 0.5}',
            "space.toml: `train.epochs` takes whole numbers, so its step must be one; received 0.5.",
        ),
        (
            '"train.learning_rate" = {min = 1e-5, max = 1e-4, step = 1, log = true}',
            "space.toml: `train.learning_rate` has a log scale, where each value is `step` times the one before: 1 must be above 1.",
        ),
        ('"train.epochs" = {min = 2, max = 4, log = "yes"}', "space.toml: `train.epochs` has log = 'yes'; it takes true or false."),
        (
            '"train.epochs" = {values = [2, 3], when = {"train.optimizer" = "sgd"}}',
            "space.toml: `train.epochs` is conditional on `train.optimizer`, which is not searched. Add `train.optimizer` to the space, or leave out the condition.",
        ),
        (
            '"train.optimizer" = ["adamw", "sgd"]\n"train.epochs" = {values = [2, 3], when = {"train.optimizer" = "lion"}}',
            "space.toml: `train.epochs` is conditional on `train.optimizer` = ['lion'], which the space never tries.",
        ),
        (
            '"train.learning_rate" = {min = 1e-5, max = 1e-4}\n"train.epochs" = {values = [2, 3], when = {"train.learning_rate" = 1e-5}}',
            "space.toml: `train.epochs` is conditional on `train.learning_rate`, a range of numbers. Conditions need listed values.",
        ),
        (
            '"train.epochs" = {values = [2, 3], when = {"train.optimizer" = "sgd"}}\n"train.optimizer" = {values = ["adamw", "sgd"], when = {"train.epochs" = 2}}',
            "space.toml: the conditions of `train.epochs`, `train.optimizer` go round in a circle. Leave one of them out.",
        ),
        (
            '"data.test_fraction" = [0.1, 0.2]',
            "space.toml: `data.test_fraction` changes what is measured or where it is kept, not how well the model learns, so trials could not be compared. "
            "Search keys of text, model, train, data.class_weights, data.limit, runtime.precision; set this one for all trials with --set.",
        ),
    ],
)
def test_a_wrong_space(text: str, message: str) -> None:
    assert _refused(text) == message


def test_all_problems_at_once() -> None:
    message = _refused('"train.epoch" = [2, 3]\n"model.dropout" = {min = 0.5, max = 0.1}\n"train.batch_size" = [0, 16]')
    assert [line.split("`")[1] for line in message.splitlines()] == ["train.epoch", "model.dropout", "train.batch_size"]


def test_combinations_that_no_config_takes() -> None:
    message = _refused('"model.fgm_epsilon" = [0.0, 1.0]\n"model.r_drop_alpha" = [0.0, 1.0]')
    first, second = message.splitlines()
    assert first == "space.toml: some combinations are no valid config; keep them apart with a condition (when = {...}):"
    assert second.startswith(
        "  `model.fgm_epsilon` and `model.r_drop_alpha` are two ways to the same end; choose one. For example model.fgm_epsilon = 1.0,"
    )
    _space('"model.fgm_epsilon" = [0.0, 1.0]\n"model.r_drop_alpha" = {values = [0.5, 1.0], when = {"model.fgm_epsilon" = 0.0}}')


def test_a_space_that_is_not_there_or_no_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"spaec\.toml: no such space\. Give a TOML file like .*, or one of bert, scratch\."):
        space.load("spaec.toml", BASE)
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("train.epochs = ", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"wrong\.toml: not valid TOML"):
        space.load(str(wrong), BASE)


# ---- the objective


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            "acuracy",
            "--objective acuracy: no run reports it. Did you mean `accuracy`? Reported for the validation split: accuracy, macro_f1, ",
        ),
        ("val_accuracy", "--objective val_accuracy: no run reports it. Did you mean `accuracy`?"),
        ("micro_f1", "--objective micro_f1: no run reports it."),  # only with several labels a text
    ],
)
def test_an_objective_that_no_run_reports(metric: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        objective.check(metric, "", None, None, BASE)
    assert str(error.value).startswith(message)


def test_a_budget_without_meaning() -> None:
    with pytest.raises(ConfigError, match=r"--max-latency-ms 0: expected a number above 0\."):
        objective.check("accuracy", "", 0.0, None, BASE)
    with pytest.raises(
        ConfigError, match=r"a budget needs an objective between 0 and 1 of which more is better \(accuracy, .*received the lowest log loss"
    ):
        objective.check("log_loss", "", None, 10.0, BASE)


def test_directions() -> None:
    assert objective.check("log_loss", "", None, None, BASE).direction == "min"
    assert objective.check("accuracy", "", None, None, BASE).direction == "max"
    assert objective.check("accuracy", "min", None, None, BASE).direction == "min"


def test_a_model_over_its_budget_is_below_every_model_within() -> None:
    wanted = objective.Objective("accuracy", "max", max_latency_ms=10.0, max_megabytes=50.0)
    assert wanted.overshoot(5.0, 50.0) == 0.0
    assert wanted.overshoot(15.0, 60.0) == pytest.approx(0.5)
    assert wanted.overshoot(5.0, 100.0) == pytest.approx(1.0)
    assert wanted.score(0.6, 0.0) == 0.6
    assert wanted.score(0.99, 0.5) < wanted.score(0.99, 0.1) < wanted.score(0.0, 0.0)


@pytest.mark.parametrize(
    ("words", "curve", "others", "direction", "expected"),
    [
        ("nothing yet", [], [[0.8], [0.8], [0.8], [0.8]], "max", False),
        ("too few others", [0.1], [[0.8], [0.8], [0.8]], "max", False),
        ("worse than the median", [0.1], [[0.8], [0.8], [0.8], [0.8]], "max", True),
        ("at the median", [0.8], [[0.8], [0.8], [0.8], [0.9]], "max", False),
        ("between the others", [0.75], [[0.7], [0.7], [0.8], [0.9]], "max", False),
        ("its best so far counts", [0.9, 0.1], [[0.8, 0.8]] * 4, "max", False),
        ("others are compared at the same epoch", [0.5], [[0.4, 0.9]] * 4, "max", False),
        ("others that ended before do not count", [0.5, 0.5], [[0.8]] * 4, "max", False),
        ("less is better", [0.9], [[0.2]] * 4, "min", True),
        ("less is better, and it is less", [0.1], [[0.2]] * 4, "min", False),
    ],
)
def test_when_a_trial_is_hopeless(words: str, curve: list[float], others: list[list[float]], direction: str, expected: bool) -> None:
    assert objective.hopeless(curve, others, direction) is expected, words


def _trial(number: int, state: str, value: float | None, overshoot: float = 0.0) -> dict[str, Any]:
    return {"number": number, "state": state, "value": value, "overshoot": overshoot}


def test_the_winner_finished_within_the_budget() -> None:
    wanted = objective.Objective()
    trials = [
        _trial(0, "finished", 0.8),
        _trial(1, "pruned", 0.95),
        _trial(2, "failed", None),
        _trial(3, "finished", 0.9, 0.2),
        _trial(4, "finished", 0.8),
    ]
    assert objective.winner_of(trials, wanted) is trials[0]  # of two equals the earlier
    assert objective.winner_of(trials[1:4], wanted) is None
