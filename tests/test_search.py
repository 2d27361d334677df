"""A search: its folder, its trials' processes, what it survives. Trials are processes of `tests/search_trial.py` but for one real training."""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY
from tests.search_process import COMMAND, settings
from tfpipeline import config as configs
from tfpipeline import runs
from tfpipeline.errors import ConfigError, GateError, RunError
from tfpipeline.search import command, final, objective, records, report, runner, session, space, tuner
from tfpipeline.search.settings import Settings

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT", "FAKE_TRIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.05)


def _asked(monkeypatch: pytest.MonkeyPatch, **what: str) -> None:
    monkeypatch.setenv("FAKE_TRIALS", json.dumps({name.removeprefix("t"): value for name, value in what.items()}))


def _started(folder: Path) -> list[str]:
    """The trials that were started, by folder, in order."""
    path = folder / "started.txt"
    return [line.split(" ")[0] for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


# ---- decisions


@pytest.mark.parametrize(
    ("words", "code", "pruned", "result", "log", "kills", "expected"),
    [
        ("a result", 0, False, {"run": "x"}, "", 0, ("finished", "")),
        ("finished just when it was to be pruned", 0, True, {"run": "x"}, "", 0, ("finished", "")),
        ("stopped by us", 130, True, {}, "", 0, ("pruned", "worse than the median of the others at this epoch")),
        (
            "stopped by us before TensorFlow was there",
            -15,
            True,
            {},
            "",
            0,
            ("pruned", "worse than the median of the others at this epoch"),
        ),
        ("NaN", 2, False, {"error": "TrainingError", "message": "the loss is nan"}, "", 0, ("failed", "TrainingError: the loss is nan")),
        ("out of memory, said", 2, False, {"error": "OutOfMemory", "message": "no room"}, "", 0, ("failed", "out of memory: no room")),
        ("out of memory, killed", -9, False, {}, "", 1, ("failed", "out of memory: the process was ended by SIGKILL")),
        (
            "out of memory, aborted",
            -6,
            False,
            {},
            "what():  std::bad_alloc",
            0,
            ("failed", "out of memory: the process was ended by SIGABRT"),
        ),
        ("killed by somebody", -9, False, {}, "epoch 1", 0, ("lost", "the process was ended by SIGKILL after: epoch 1")),
        ("a fault", 1, False, {}, "ValueError: x", 0, ("lost", "the process ended with exit code 1 after: ValueError: x")),
        ("no result", 0, False, {}, "", 0, ("lost", "the process ended with exit code 0")),
        ("interrupted, not by us", 130, False, {}, "", 0, ("lost", "the process ended with exit code 130")),
    ],
)
def test_how_a_trial_ended(
    words: str, code: int, pruned: bool, result: dict[str, Any], log: str, kills: int, expected: tuple[str, str]
) -> None:
    assert runner.verdict(code, pruned, result, log, kills) == expected, words


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "alone"),
        ({"KERASTUNER_TUNER_ID": "worker-1"}, "alone"),
        ({"KERASTUNER_TUNER_ID": "chief", "KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": "8000"}, "chief"),
        ({"KERASTUNER_TUNER_ID": "worker-1", "KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": "8000"}, "worker"),
    ],
)
def test_which_machine_this_is(given: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert tuner.role() == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"KERASTUNER_ORACLE_IP": "127.0.0.1"},
            "KERASTUNER_TUNER_ID and KERASTUNER_ORACLE_PORT must be set too: KERASTUNER_TUNER_ID is `chief` or the name of a worker, "
            "KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT are where the chief listens.",
        ),
        (
            {"KERASTUNER_TUNER_ID": "chief", "KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": "http"},
            "KERASTUNER_ORACLE_PORT=http: expected a port, a number from 1 to 65535.",
        ),
    ],
)
def test_half_a_cluster(given: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        tuner.role()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trials": 0}, "--trials 0: expected a whole number, 1 or more."),
        ({"seeds": -1}, "--seeds -1: expected a whole number, 0 or more."),
        ({"worker_timeout": 0.0}, "--worker-timeout 0: expected a number of seconds above 0."),
        (
            {"tuner": "grid", "trials": None},
            "space.toml: the grid has no end (a range without step, or conditions). Say how many trials to run: --trials 50.",
        ),
    ],
)
def test_flags_that_make_no_sense(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        session.check(settings(tmp_path, **changed))
    assert str(error.value) == message


def test_hyperband_wants_the_epochs_for_itself(tmp_path: Path) -> None:
    base = configs.load("scratch")
    searched = space.parse({"train.epochs": [2, 3]}, "space.toml", base)
    with pytest.raises(ConfigError, match=r"`train\.epochs` cannot be searched with --tuner hyperband"):
        session.check(settings(tmp_path, tuner="hyperband", space=searched))
    with pytest.raises(ConfigError, match=r"needs train\.epochs of 2 or more"):
        session.check(settings(tmp_path, tuner="hyperband", base=configs.load("scratch", overrides=["train.epochs=1"])))


# ---- the folder


@pytest.mark.parametrize("preset", ["bank", "scratch", "sst2"])
def test_a_config_as_toml_is_the_same_config(preset: str, tmp_path: Path) -> None:
    config = configs.load(preset, overrides=['data.label_separator="a\\u007f\\"\\\\ü\\n"', "train.learning_rate=1e-05"])
    records.write_config(tmp_path / "config.toml", config, "two\nlines")
    assert configs.load(file=str(tmp_path / "config.toml")) == config


def test_a_folder_of_another_search_is_refused(tmp_path: Path) -> None:
    wanted = settings(tmp_path)
    records.open_folder(tmp_path, wanted.identity(), wanted.base)
    records.open_folder(tmp_path, settings(tmp_path, trials=9, seeds=5).identity(), wanted.base)  # more of the same
    other = settings(tmp_path, space=space.parse({"model.dropout": [0.0, 0.3]}, "space.toml", wanted.base))
    with pytest.raises(RunError) as error:
        records.open_folder(tmp_path, other.identity(), other.base)
    assert str(error.value) == (
        f"{tmp_path}: holds another search. Its space differs in `model.dropout`, `train.learning_rate`, `train.schedule`, `train.weight_decay`. "
        "Choose another folder with --search, or remove this one to start over."
    )
    with pytest.raises(RunError, match=r"Its tuner is random, here it is grid\."):
        records.open_folder(tmp_path, settings(tmp_path, tuner="grid").identity(), wanted.base)
    base = configs.load("scratch", overrides=["train.epochs=3", "evaluate.bootstrap_samples=200"])
    with pytest.raises(RunError, match=r"Its base config differs in `train.epochs`\."):
        records.open_folder(tmp_path, settings(tmp_path, base=base).identity(), base)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    wanted = settings(tmp_path)
    with pytest.raises(RunError, match=r"is not empty and no folder of a search"):
        records.open_folder(tmp_path, wanted.identity(), wanted.base)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# ---- searches


@pytest.mark.parametrize("kind", ["random", "bayesian"])
def test_a_search_runs_its_trials_and_finds_the_best(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "search"
    wanted = settings(folder, tuner=kind, trials=7 if kind == "bayesian" else 3)
    found = session.search(wanted)
    assert capsys.readouterr().out == ""  # stdout belongs to the result
    assert found["counts"] == {"finished": wanted.trials, "pruned": 0, "failed": 0}
    values = [one["values"] for one in found["trials"]]
    assert len({json.dumps(one, sort_keys=True) for one in values}) == wanted.trials
    assert all(("train.weight_decay" in one) == (one["train.schedule"] == "cosine") for one in values)
    best = max(found["trials"], key=lambda one: one["value"])
    assert found["winner"]["number"] == best["number"]
    winner = configs.load(file=str(folder / "winner.toml"))
    assert winner.train.learning_rate == best["values"]["train.learning_rate"]
    assert winner.evaluate.tfidf_baseline  # the gate and the baseline of the user's own config
    again = configs.load(file=str(folder / "trials" / f"{best['number']:03d}" / "config.toml"))
    assert again.train == winner.train
    run = folder / "trials" / f"{best['number']:03d}" / "runs" / best["run"]
    assert runs.Run(run).config == again


def test_a_finished_search_repeats_nothing_and_goes_on_when_asked_for_more(tmp_path: Path) -> None:
    session.search(settings(tmp_path / "search", trials=2))
    assert _started(tmp_path / "search") == ["000", "001"]
    session.search(settings(tmp_path / "search", trials=2))
    assert _started(tmp_path / "search") == ["000", "001"]
    found = session.search(settings(tmp_path / "search", trials=3))
    assert _started(tmp_path / "search") == ["000", "001", "002"]
    assert len({json.dumps(one["values"]) for one in found["trials"]}) == 3


def test_a_grid_has_every_combination_once(tmp_path: Path) -> None:
    base = configs.load("scratch", overrides=["train.epochs=1"])
    searched = space.parse({"model.dropout": {"min": 0.0, "max": 0.1, "step": 0.1}, "text.strip_html": [True, False]}, "space.toml", base)
    wanted = settings(tmp_path / "search", tuner="grid", trials=None, base=base, space=searched)
    assert searched.combinations() == 4
    # As after a kill: the first two, then a new process that knows only the folder.
    session.search(Settings(**{**vars(wanted), "trials": 2}))
    found = session.search(wanted)
    assert sorted((one["values"]["model.dropout"], one["values"]["text.strip_html"]) for one in found["trials"]) == [
        (0.0, False), (0.0, True), (0.1, False), (0.1, True),
    ]  # fmt: skip
    assert len(_started(tmp_path / "search")) == 4


def test_hyperband_trains_the_best_longer(tmp_path: Path) -> None:
    base = configs.load("scratch", overrides=["train.epochs=3"])
    found = session.search(settings(tmp_path / "search", tuner="hyperband", trials=None, base=base))
    epochs = [one["changed"]["train.epochs"] for one in found["trials"]]
    assert sorted(set(epochs)) == [1, 3]
    short = [one for one in found["trials"] if one["changed"]["train.epochs"] == 1]
    # Each that was promoted has the values of one of the short ones, and the best short one is among them.
    promoted = [one["values"] for one in found["trials"] if one["changed"]["train.epochs"] == 3]
    assert max(short, key=lambda one: one["value"])["values"] in promoted


def test_bad_values_fail_a_trial_and_not_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _asked(monkeypatch, t0="nan", t1="oom", t3="mute")
    found = session.search(settings(tmp_path / "search", trials=5))
    states = [one["state"] for one in found["trials"]]
    assert states == ["failed", "failed", "finished", "failed", "finished"]
    assert [one["attempts"] for one in found["trials"]] == [1] * 5  # not repeated: it would happen again
    assert found["trials"][0]["reason"] == "TrainingError: step 3: the loss is nan, so training stopped."
    assert found["trials"][1]["reason"] == "out of memory: the trial ran out of memory"
    assert found["trials"][3]["reason"].startswith("reports no accuracy for the validation split")
    assert found["winner"]["number"] in (2, 4)


def test_a_failure_from_outside_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _asked(monkeypatch, t0="killed-once", t1="killed")
    found = session.search(settings(tmp_path / "search", trials=3))
    by_number = {one["number"]: one for one in found["trials"]}
    assert (by_number[0]["state"], by_number[0]["attempts"]) == ("finished", 2)
    assert (by_number[1]["state"], by_number[1]["attempts"]) == ("failed", 1 + runner.RETRIES)
    assert by_number[1]["reason"] == "the process was ended by SIGKILL (3 attempts)"
    assert by_number[2]["state"] == "finished"


def test_a_search_whose_first_trials_all_fail_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _asked(monkeypatch, all="nan")
    with pytest.raises(RunError) as error:
        session.search(settings(tmp_path / "search", trials=20))
    assert str(error.value).startswith("all 3 trials so far failed, the last because of TrainingError: step 3: the loss is nan")
    assert len(_started(tmp_path / "search")) == 3


def test_a_hopeless_trial_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _asked(monkeypatch, t4="bad")
    began = time.monotonic()
    found = session.search(settings(tmp_path / "search", trials=5, prune=True))
    assert [one["state"] for one in found["trials"]] == ["finished"] * 4 + ["pruned"]
    pruned = found["trials"][4]
    assert (pruned["value"], pruned["curve"], pruned["attempts"]) == (0.1, [0.1], 1)
    assert time.monotonic() - began < 60  # else it would have waited to be stopped
    assert found["winner"]["number"] != 4


def test_only_models_within_the_budget_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _asked(monkeypatch, t0="big")
    within = objective.Objective("accuracy", "max", max_latency_ms=20.0, max_megabytes=50.0)
    found = session.search(settings(tmp_path / "search", trials=2, objective=within))
    assert [one["overshoot"] for one in found["trials"]] == [1.5, 0.0]
    assert [one["latency_ms"] for one in found["trials"]] == [50.0, 5.0]
    assert found["winner"]["number"] == 1
    _asked(monkeypatch, all="big")
    with pytest.raises(GateError, match=r"no trial kept the budget .*The nearest is trial 0, 150 % over it"):
        session.search(settings(tmp_path / "other", trials=2, objective=within))
    assert "over the budget" in (tmp_path / "other" / "report.html").read_text(encoding="utf-8")


def test_the_winner_is_trained_anew_with_seeds_beside_the_default(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    found = session.search(settings(folder, trials=4, seeds=3))
    final = found["final"]
    assert final["n"] == 400
    assert final["seeds"] == [2, 3, 4]  # not the seed of the trials
    assert sorted(_started(folder)[4:]) == sorted(f"{role}-{seed}" for role in ("winner", "default") for seed in (2, 3, 4))
    # The default learns at 5e-4, the winner of four near 1e-4: the fake's accuracy says by how much.
    expected = sum(one["validation"]["accuracy"] for one in final["trained"]["winner"]) - sum(
        one["validation"]["accuracy"] for one in final["trained"]["default"]
    )
    assert final["difference"]["value"] == pytest.approx(expected / 3, abs=0.005)
    assert final["difference"]["low"] < final["difference"]["value"] < final["difference"]["high"]
    again = session.search(settings(folder, trials=4, seeds=4))
    assert len(_started(folder)) == 4 + 6 + 2  # only the fourth seed
    assert again["final"]["seeds"] == [2, 3, 4, 5]


def test_what_a_search_leaves_to_read(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    wanted = settings(folder, trials=9, seeds=2)
    found = session.search(wanted)
    assert runs.read_json(folder / "results.json") == json.loads(json.dumps(found))
    rows = list(csv.DictReader((folder / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert [int(row["number"]) for row in rows] == list(range(9))
    assert float(rows[3]["validation_accuracy"]) == found["trials"][3]["value"]
    text = report.render(found, wanted.space, wanted.objective)
    assert text.splitlines()[0].split()[:4] == ["trial", "state", "accuracy", "seconds"]
    assert re.search(r"Re-trained with 2 seeds each, the winner is .* the default: accuracy [+-][\d.]+\s+points\s+\[", text)
    assert max(map(len, text.splitlines()[-12:])) <= max(100, len(str(folder)) + 60)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4  # progress, values, importance, seeds
    assert not re.search(r"<script|https?://|src=", page)
    assert {row["key"] for row in found["importance"]["keys"]} == {one.key for one in wanted.space.parameters}


def test_the_trials_stand_on_tensorboards_page(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    found = session.search(settings(tmp_path / "search", trials=2))
    for one in found["trials"]:
        events = EventAccumulator(str(tmp_path / "search" / "tensorboard" / f"{one['number']:03d}"))
        events.Reload()
        said = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
        assert said.plugin_name == "hparams"
        hparams = plugin_data_pb2.HParamsPluginData.FromString(said.content).session_start_info.hparams
        assert hparams["train.learning_rate"].number_value == one["values"]["train.learning_rate"]
        assert hparams["train.schedule"].string_value == one["values"]["train.schedule"]
        assert events.Scalars("trial/accuracy")[0].value == pytest.approx(one["value"])


# ---- killed


def _search_process(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.search_process", str(folder), *arguments],
        cwd=ROOT, env={**os.environ, **environment}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _until(condition: Any, what: str, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_killed_and_started_again_it_goes_on_and_repeats_no_finished_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "search"
    with _search_process(folder, "random", "4", "0", FAKE_TRIALS='{"2": "wait"}') as process:
        _until(lambda: _started(folder) == ["000", "001", "002"], "the third trial did not start")
        trial = int((folder / "started.txt").read_text(encoding="utf-8").splitlines()[2].split(" ")[2])
        process.kill()
    _until(lambda: _gone(trial), "the trial outlived its search", 20)
    before = {path: path.read_bytes() for path in sorted(folder.glob("trials/00[01]/trial.json"))}
    assert len(before) == 2
    found = session.search(settings(folder, trials=4))
    assert _started(folder) == ["000", "001", "002", "002", "003"]
    assert [one["state"] for one in found["trials"]] == ["finished"] * 4
    assert {path: path.read_bytes() for path in before} == before
    assert len({json.dumps(one["values"]) for one in found["trials"]}) == 4


def test_ctrl_c_stops_the_trial_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    with _search_process(folder, "random", "4", "0", FAKE_TRIALS='{"1": "wait"}') as process:
        _until(lambda: _started(folder) == ["000", "001"], "the second trial did not start")
        _until(lambda: any((folder / "trials" / "001" / "runs").glob("*/events.jsonl")), "no run")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    run = runs.list_runs(folder / "trials" / "001" / "runs")[0]
    assert run.info["status"] == "interrupted"
    assert records.read_record(folder / "trials" / "001")["state"] == "running"  # type: ignore[index]


@pytest.mark.parametrize(
    ("settings_of_it", "measured", "expected"),
    [((), False, 4), ((), True, 1), (("model.backbone=scratch:mini",), False, 1)],
    ids=["smallest model", "its latency counts", "larger model"],
)
def test_only_small_trainings_share_the_machine(
    settings_of_it: tuple[str, ...], measured: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    found = [configs.load("scratch"), configs.load("scratch", overrides=list(settings_of_it))]
    assert final.at_once(found, measured=measured) == expected


def test_ctrl_c_stops_final_trainings_that_run_side_by_side(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    count = final.at_once([configs.load("scratch")], measured=False)
    waiting = json.dumps({f"{role}-{seed}": "wait" for role in final.ROLES for seed in (2, 3, 4)})
    with _search_process(folder, "random", "1", "3", FAKE_TRIALS=waiting) as process:
        _until(lambda: len(_started(folder)) == 1 + count, "they did not start side by side")
        places = [folder / "final" / name / "runs" for name in _started(folder)[1:]]
        _until(lambda: all(any(place.glob("*/events.jsonl")) for place in places), "no runs")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert [runs.list_runs(place)[0].info["status"] for place in places] == ["interrupted"] * count
    assert len(_started(folder)) == 1 + count  # and no other was begun


def test_a_final_training_that_fails_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "search"
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    _asked(monkeypatch, **{"winner-2": "late", "default-2": "wait"})
    with pytest.raises(RunError, match="re-training the winner with seed 2 did not finish: TrainingError"):
        session.search(settings(folder, trials=1, seeds=3))
    assert runs.list_runs(folder / "final" / "default-2" / "runs")[0].info["status"] == "interrupted"


def test_two_searches_in_one_folder_at_a_time_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    with _search_process(folder, "random", "4", "0", FAKE_TRIALS='{"0": "wait"}') as process:
        _until(lambda: _started(folder) == ["000"], "the first trial did not start")
        with pytest.raises(RunError, match=f"process {process.pid} is writing"):
            session.search(settings(folder, trials=4))
        process.kill()


# ---- with a real training


def _command(*arguments: str) -> tuple[dict[str, Any], str]:
    """`tfpipeline search`, without the printing."""

    def add(name: str, run: Any, summary: str, example: str) -> argparse.ArgumentParser:
        parser.description = f"{name}: {summary}: {example}"
        parser.set_defaults(run=run)
        parser.add_argument("--runs", type=Path, default=Path("runs"))
        return parser

    parser = argparse.ArgumentParser()
    command.add(add)
    options = parser.parse_args(arguments)
    return options.run(options)  # type: ignore[no-any-return]


def test_a_trial_is_a_training_and_can_be_run_again(tiny_csv: Path, tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text("train.learning_rate = [1e-3, 2e-3]", encoding="utf-8")
    fixed = [word for setting in TINY for word in ("--set", setting)]
    found, text = _command(
        *fixed, "--data", str(tiny_csv), "--space", str(tmp_path / "space.toml"), "--trials", "1", "--seeds", "0", "--runs", str(tmp_path / "runs"),
        "--max-latency-ms", "10000", "--max-megabytes", "100",
    )  # fmt: skip
    (one,) = found["trials"]
    assert one["state"] == "finished", one["reason"]
    folder = tmp_path / "runs" / "searches" / "tiny-bayesian"
    place = folder / "trials" / "000"
    run = runs.Run(place / "runs" / one["run"])
    metrics = runs.read_json(run.path / "metrics.json")
    assert one["value"] == metrics["validation"]["accuracy"]["value"]
    assert 0 < one["latency_ms"] < 10_000
    assert one["megabytes"] == pytest.approx(
        sum(path.stat().st_size for path in (run.path / "checkpoints" / "best").iterdir()) / 1e6, abs=0.01
    )
    assert len(one["curve"]) == 1
    assert run.config == configs.load(file=str(place / "config.toml"))
    assert run.config.train.learning_rate == one["values"]["train.learning_rate"]
    assert f"Next:      tfpipeline train --config {folder / 'winner.toml'}" in text
    assert configs.load(file=str(folder / "winner.toml")).train == run.config.train
    assert "Not re-trained" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--space", "nowhere.toml"), "nowhere.toml: no such space."),
        (("--objective", "f1"), "--objective f1: no run reports it."),
        (("--objective", "acc"), "--objective acc: no run reports it. Did you mean `accuracy`?"),
        (("--trials", "0"), "--trials 0: expected a whole number, 1 or more."),
        (("--set", "train.epoch=3"), "--set train.epoch=3: unknown key `train.epoch`. Did you mean `train.epochs`?"),
        (("--tuner", "grid", "--set", "model.backbone=scratch:tiny"), "scratch: the grid has no end (a range without step, or conditions). Say how many trials to run: --trials 50."),
    ],
)  # fmt: skip
def test_a_wrong_flag(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        _command(*arguments, "--runs", str(tmp_path))
    assert str(error.value).startswith(message)
    assert not list(tmp_path.iterdir())  # nothing ran, nothing is left


def test_hyperband_takes_a_ready_space_without_its_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []

    def search(given: Settings) -> dict[str, Any]:
        seen.append(given)
        return {"role": "worker", "worker": "w", "trials": 0, "folder": ""}

    monkeypatch.setattr(session, "search", search)
    _command("--preset", "scratch", "--tuner", "hyperband", "--runs", str(tmp_path))
    assert "train.epochs" not in seen[0].space.keys
    assert seen[0].trials is None
    _command("--preset", "scratch", "--runs", str(tmp_path))
    assert "train.epochs" in seen[1].space.keys
    assert seen[1].trials == 20


def test_a_loss_that_is_not_finite_fails_a_real_trial(tiny_csv: Path, tmp_path: Path) -> None:
    base = configs.load(overrides=[*TINY, f"data.path={tiny_csv}", "model.clip_norm=0", "train.optimizer=sgd"])
    ended = runner.run(tmp_path / "trial", space.with_values(base, {"train.learning_rate": 1e30}, "test"), "too fast")
    assert (ended.state, ended.reason.split(":")[0]) == ("failed", "TrainingError"), ended


def test_the_fake_takes_the_flags_of_the_real_one() -> None:
    real = subprocess.run([*runner.COMMAND, "--help"], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT).stdout
    fake = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT).stdout
    assert set(re.findall(r"--[a-z]+", real)) == set(re.findall(r"--[a-z]+", fake))
