"""Chains of steps: what a variant's folder holds, when the budget stops a chain, what a killed one repeats."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfpipeline import runs, trained
from tfpipeline.compress import chain, recipes, reshape, variants
from tfpipeline.errors import ConfigError, GateError, RunError, TrainingError

KEEP_ALL = '[[steps]]\nkind = "keep_layers"\ncount = 2\n'
KEEP_ONE = '[[steps]]\nkind = "keep_layers"\ncount = 1\n'
# Answers of random weights, and no training after it: the budget says no.
RANDOM = '[[steps]]\nkind = "student"\nbackbone = "scratch:tiny"\n'
FINETUNE = '[[steps]]\nkind = "finetune"\ntrain.epochs = 1\ntrain.learning_rate = 1e-3\n'
TRIM = '[[steps]]\nkind = "trim_vocabulary"\n'
DYNAMIC = '[[steps]]\nkind = "int8_dynamic"\n'


def recipe(*steps: str, name: str = "mine") -> recipes.Recipe:
    return recipes.parse("".join(steps), f"{name}.toml", name)


@pytest.fixture
def run(tiny_run: runs.Run, tmp_path: Path) -> runs.Run:
    """A copy that a test may write to."""
    return runs.Run(Path(shutil.copytree(tiny_run.path, tmp_path / tiny_run.path.name)))


@pytest.fixture(scope="module")
def opened(tiny_run: runs.Run) -> chain.Original:
    return chain.Original.open(tiny_run, texts=3)


@pytest.fixture
def original(opened: chain.Original, run: runs.Run) -> chain.Original:
    return dataclasses.replace(opened, run=run)


def counted(monkeypatch: pytest.MonkeyPatch, kind: str) -> list[str]:
    """The steps of this kind that ran."""
    ran: list[str] = []
    honest = chain._TRANSFORMS[kind]

    def step(*arguments: Any) -> Any:
        ran.append(kind)
        return honest(*arguments)

    monkeypatch.setitem(chain._TRANSFORMS, kind, step)
    return ran


def visible(run: runs.Run) -> list[str]:
    return sorted(path.name for path in variants.folder_of(run).iterdir() if not path.name.startswith("."))


# ---- a variant ----


def test_a_variant_holds_its_model_and_its_report(original: chain.Original, run: runs.Run) -> None:
    report = chain.compress(original, recipe(KEEP_ALL, TRIM), max_drop=0.0)
    place = run.path / "compressed" / "mine"
    assert sorted(path.name for path in place.iterdir()) == [
        "model.json", "report.json", "vocab.txt", "weights.data-00000-of-00001", "weights.index",
    ]  # fmt: skip
    assert runs.read_json(place / "report.json") == report
    assert not (run.path / "compressed" / ".work" / "mine").exists()
    assert (report["variant"], report["parent"], report["recipe"], report["passes"]) == ("mine", run.path.name, "mine", True)
    assert [step["kind"] for step in report["steps"]] == ["keep_layers", "trim_vocabulary"]
    assert all(step["accuracy"] == report["accuracy"] for step in report["steps"])
    assert (report["agreement"], report["drop_points"]) == (1.0, 0.0)
    assert report["rows"] == len(original.corpus.validation) + len(original.corpus.test)
    low, high = report["interval"]
    assert low <= report["accuracy"] <= high
    assert report["bytes"] == sum(path.stat().st_size for path in place.iterdir() if path.name != "report.json")
    assert 0 < report["gzip_bytes"] < report["bytes"]
    assert report["latency_ms"]["texts"] == 3
    assert report["difference"]["names"] == ["mine", "original"]


def test_a_variant_answers_as_its_report_says(original: chain.Original, run: runs.Run) -> None:
    report = chain.compress(original, recipe(KEEP_ONE), max_drop=100.0)
    variant = trained.load(run, variant="mine")
    assert len(variant.model.bert.encoder.layer) == 1
    rows = original.rows.examples
    right = (variant.predict_examples(rows).argmax(axis=1) == rows.labels).mean()
    assert right == pytest.approx(report["accuracy"])


def test_an_int8_variant_is_one_file_and_the_float_model_it_came_from(original: chain.Original, run: runs.Run) -> None:
    report = chain.compress(original, recipe(DYNAMIC), max_drop=5.0)
    place = run.path / "compressed" / "mine"
    assert report["bytes"] == (place / "model.tflite").stat().st_size
    assert report["bytes_ratio"] < 0.5
    assert report["converted"]
    assert report["agreement"] > 0.9
    before, after = (reshape.arrays_of(one) for one in (original.trained, trained.load(run, variant="mine")))
    for place_of, value in before.items():
        np.testing.assert_array_equal(after[place_of], value)


def test_the_run_itself_is_left_as_it_was(original: chain.Original, run: runs.Run, tiny_run: runs.Run) -> None:
    chain.compress(original, recipe(KEEP_ONE, FINETUNE), max_drop=100.0)
    for path in sorted(tiny_run.path.rglob("*")):
        if path.is_file():
            assert (run.path / path.relative_to(tiny_run.path)).read_bytes() == path.read_bytes(), path


# ---- fine-tuning ----


def test_a_finetune_step_trains_on_from_the_step_before_it(original: chain.Original, run: runs.Run) -> None:
    report = chain.compress(original, recipe(KEEP_ONE, FINETUNE), max_drop=100.0)
    told = report["steps"][1]["told"]
    assert (told["epochs"], told["changed"]["train.epochs"]) == (1, 1)
    assert len(trained.load(run, variant="mine").model.bert.encoder.layer) == 1
    # One epoch from random layers would not come near the model it was cut from; the embeddings are the teacher's.
    assert report["accuracy"] > 0.5
    assert not list((run.path / "compressed").rglob("train-*"))


def test_a_trimmed_model_can_be_trained_on(original: chain.Original, run: runs.Run) -> None:
    report = chain.compress(original, recipe(TRIM, FINETUNE), max_drop=100.0)
    assert len(trained.load(run, variant="mine").preprocessor.vocabulary) == report["steps"][0]["told"]["pieces"]["after"]


# ---- the budget ----


def test_a_step_that_breaks_the_budget_stops_the_chain(original: chain.Original, run: runs.Run) -> None:
    with pytest.raises(GateError) as caught:
        chain.compress(original, recipe(TRIM, RANDOM, DYNAMIC), max_drop=1.0)
    told = str(caught.value)
    assert told.startswith("recipe mine, step 2 (student): accuracy ")
    assert "expected at most 1 (max_drop). The last good variant is mine-step1: " in told
    assert "with --max-drop " in told
    assert caught.value.exit_code == 3
    assert visible(run) == ["mine-step1", "mine.refused.json"]
    kept = runs.read_json(run.path / "compressed" / "mine-step1" / "report.json")
    assert (kept["variant"], kept["passes"], [step["kind"] for step in kept["steps"]]) == ("mine-step1", True, ["trim_vocabulary"])
    assert trained.load(run, variant="mine-step1").labels == original.trained.labels
    assert [(one["variant"], one["passes"]) for one in variants.reports(run)] == [("mine-step1", True), ("mine", False)]


def test_without_a_good_step_nothing_is_left(original: chain.Original, run: runs.Run) -> None:
    with pytest.raises(GateError, match="the run itself is the last good model"):
        chain.compress(original, recipe(RANDOM), max_drop=1.0)
    assert visible(run) == ["mine.refused.json"]


def test_a_larger_budget_takes_what_was_refused_without_doing_it_again(
    original: chain.Original, run: runs.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = counted(monkeypatch, "student")
    with pytest.raises(GateError):
        chain.compress(original, recipe(RANDOM, TRIM), max_drop=0.0)
    report = chain.compress(original, recipe(RANDOM, TRIM), max_drop=100.0)
    assert ran == ["student"]
    assert (report["passes"], report["max_drop"]) == (True, 100.0)
    assert visible(run) == ["mine"]


def test_a_larger_budget_takes_a_refused_last_step(original: chain.Original, run: runs.Run) -> None:
    with pytest.raises(GateError):
        chain.compress(original, recipe(RANDOM), max_drop=0.0)
    report = chain.compress(original, recipe(RANDOM), max_drop=100.0)
    assert (report["passes"], report["max_drop"]) == (True, 100.0)
    assert runs.read_json(run.path / "compressed" / "mine" / "report.json") == report


def test_a_model_that_has_yet_to_learn_is_not_judged(original: chain.Original, run: runs.Run) -> None:
    healing = FINETUNE.replace("epochs = 1", "epochs = 6")
    report = chain.compress(original, recipe(RANDOM, healing), max_drop=30.0)
    assert report["steps"][0]["drop_points"] > report["steps"][1]["drop_points"]
    assert visible(run) == ["mine"]


@pytest.mark.parametrize(("flag", "of_recipe", "budget"), [(7.0, 3.0, 7.0), (None, 3.0, 3.0), (None, None, 1.0)])
def test_whose_budget_counts(original: chain.Original, flag: float | None, of_recipe: float | None, budget: float) -> None:
    line = "" if of_recipe is None else f"max_drop = {of_recipe}\n"
    report = chain.compress(original, recipe(line, KEEP_ALL), max_drop=flag)
    assert report["max_drop"] == budget


# ---- again ----


def test_a_finished_step_is_not_repeated(original: chain.Original, run: runs.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = counted(monkeypatch, "keep_layers")
    honest = chain._TRANSFORMS["trim_vocabulary"]

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(chain._TRANSFORMS, "trim_vocabulary", killed)
    with pytest.raises(KeyboardInterrupt):
        chain.compress(original, recipe(KEEP_ALL, TRIM))
    assert visible(run) == []
    monkeypatch.setitem(chain._TRANSFORMS, "trim_vocabulary", honest)
    report = chain.compress(original, recipe(KEEP_ALL, TRIM))
    assert ran == ["keep_layers"]
    assert [step["number"] for step in report["steps"]] == [1, 2]


def test_a_killed_finetuning_goes_on_from_its_checkpoint(original: chain.Original, run: runs.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from tfpipeline import train as training

    honest: Callable[..., Any] = training._Session._end_of_epoch
    steps = recipe(FINETUNE.replace("epochs = 1", "epochs = 2"))

    def killed(session: Any, *arguments: Any) -> None:
        honest(session, *arguments)
        if session.at.epoch == 1:
            raise TrainingError("killed")

    monkeypatch.setattr(training._Session, "_end_of_epoch", killed)
    with pytest.raises(TrainingError):
        chain.compress(original, steps, max_drop=100.0)
    assert visible(run) == []
    monkeypatch.setattr(training._Session, "_end_of_epoch", honest)
    report = chain.compress(original, steps, max_drop=100.0)
    assert report["steps"][0]["told"]["epochs"] == 2
    [child] = (run.path / "compressed").rglob("train-1/*/run.json") if (run.path / "compressed" / ".work" / "mine").exists() else [None]
    assert child is None


def test_another_recipe_of_the_same_name_begins_anew(original: chain.Original, run: runs.Run) -> None:
    with pytest.raises(GateError):
        chain.compress(original, recipe(RANDOM), max_drop=0.0)
    report = chain.compress(original, recipe(KEEP_ALL), max_drop=0.0)
    assert [step["kind"] for step in report["steps"]] == ["keep_layers"]
    assert visible(run) == ["mine"]


def test_a_chain_goes_on_from_a_variant_that_began_like_it(original: chain.Original, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = counted(monkeypatch, "keep_layers")
    chain.compress(original, recipe(KEEP_ALL, name="first"))
    report = chain.compress(original, recipe(KEEP_ALL, TRIM, name="second"))
    assert ran == ["keep_layers"]
    assert [step["kind"] for step in report["steps"]] == ["keep_layers", "trim_vocabulary"]
    assert report["variant"] == "second"


def test_the_same_again_is_the_variant_that_is_there(original: chain.Original, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = counted(monkeypatch, "keep_layers")
    assert chain.compress(original, recipe(KEEP_ALL)) == chain.compress(original, recipe(KEEP_ALL))
    assert ran == ["keep_layers"]


def test_a_name_that_is_taken_by_another_recipe(original: chain.Original, run: runs.Run) -> None:
    before = chain.compress(original, recipe(KEEP_ALL, name="first"), variant="mine")
    with pytest.raises(RunError) as caught:
        chain.compress(original, recipe(TRIM))
    assert str(caught.value) == (
        f"{run.path / 'compressed' / 'mine'}: a variant of this name is there already, made by other steps (recipe first). Remove it, or give the new one "
        "another name: --as NAME."
    )
    assert variants.reports(run) == [before]


def test_a_name_that_is_no_folder(original: chain.Original) -> None:
    with pytest.raises(ConfigError, match=r"variant '../x': expected small letters"):
        chain.compress(original, recipe(KEEP_ALL), variant="../x")


def test_a_fault_leaves_no_variant(original: chain.Original, run: runs.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(chain.measure, "sparsity", breaks)
    with pytest.raises(ZeroDivisionError):
        chain.compress(original, recipe(KEEP_ALL))
    assert visible(run) == []
    assert not list((run.path / "compressed").rglob("step-*"))
    assert not list((run.path / "compressed").rglob(".incoming-*"))


def test_what_the_run_cannot_give_is_refused_before_anything_is_begun(original: chain.Original, run: runs.Run) -> None:
    with pytest.raises(ConfigError, match="a student of 3 layers is deeper than its teacher, which has 2"):
        chain.compress(original, recipe('[[steps]]\nkind = "keep_layers"\ncount = 3\n'))
    assert not list((run.path / "compressed").rglob("*"))
