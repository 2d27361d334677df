"""A search on several machines: Keras Tuner's chief and workers, as processes on loopback; and what an oracle does when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.search_process import TREE, settings
from tfpipeline import config as configs
from tfpipeline.errors import RunError
from tfpipeline.search import records, session, space

ROOT = Path(__file__).parents[1]
BASE = configs.load("scratch", overrides=["train.epochs=3"])


def _oracle(folder: Path, tuner: str = "random", **changed: Any) -> Any:
    from tfpipeline.search import oracles

    given: dict[str, Any] = {"direction": "max", "max_trials": 3, "max_epochs": 3, "seed": 1, "lease_seconds": 30.0, **changed}
    found = oracles.make(tuner, space.parse(TREE, "space.toml", BASE), **given)
    found._set_project_dir(str(folder), "tuner")
    return found


def _again(folder: Path, tuner: str = "random", **changed: Any) -> Any:
    """As after a kill: an oracle that knows only what lies in the folder."""
    found = _oracle(folder, tuner, **changed)
    found.reload()
    return found


def _end(oracle: Any, trial: Any, score: float = 0.5) -> None:
    """As a worker ends it: with a copy that has come over the wire."""
    from keras_tuner.engine.trial import Trial

    copy = Trial.from_proto(trial.to_proto())
    oracle.update_trial(copy.trial_id, {"objective": score})
    copy.status = "COMPLETED"
    oracle.end_trial(copy)


def _silent(oracle: Any, tuner_id: str) -> None:
    """As if nothing had been heard of it for a minute."""
    oracle._seen[tuner_id] -= 60


def test_a_worker_that_comes_back_gets_its_trial_again(tmp_path: Path) -> None:
    oracle = _oracle(tmp_path)
    first = oracle.create_trial("a")
    assert oracle.create_trial("b").trial_id != first.trial_id
    assert oracle.create_trial("a").trial_id == first.trial_id


def test_the_trial_of_a_silent_worker_goes_to_another(tmp_path: Path) -> None:
    oracle = _oracle(tmp_path)
    lost = oracle.create_trial("a")
    kept = oracle.create_trial("b")
    _silent(oracle, "a")
    _silent(oracle, "b")
    oracle.get_trial(kept.trial_id)  # a sign of life
    assert oracle.take_back() == ["a"]
    _end(oracle, kept)
    assert oracle.create_trial("b").trial_id == lost.trial_id


def test_a_trial_that_outlives_its_workers_three_times_is_failed(tmp_path: Path) -> None:
    oracle = _oracle(tmp_path, max_trials=1)
    for worker in ("a", "b", "c"):
        assert oracle.create_trial(worker).status == "RUNNING"
        _silent(oracle, worker)
    assert oracle.create_trial("d").status == "STOPPED"
    assert oracle.trials["0"].status == "FAILED"
    assert oracle.over()


def test_nobody_is_sent_home_while_others_still_run_a_trial(tmp_path: Path) -> None:
    oracle = _oracle(tmp_path, max_trials=2)
    first, second = oracle.create_trial("a"), oracle.create_trial("b")
    _end(oracle, first)
    assert oracle.create_trial("a").status == "IDLE"
    _silent(oracle, "b")
    again = oracle.create_trial("a")
    assert (again.trial_id, again.status) == (second.trial_id, "RUNNING")
    _end(oracle, again)
    assert not oracle.over()
    assert oracle.create_trial("a").status == "STOPPED"
    assert oracle.over()


def test_a_worker_that_dies_between_two_trials_is_forgotten(tmp_path: Path) -> None:
    oracle = _oracle(tmp_path, max_trials=1)
    _end(oracle, oracle.create_trial("a"))
    assert oracle.create_trial("b").status == "STOPPED"
    assert not oracle.over()
    _silent(oracle, "a")
    oracle.take_back()
    assert oracle.over()


def test_the_late_answer_of_a_worker_that_was_given_up_does_not_count(tmp_path: Path) -> None:
    oracle = _oracle(tmp_path)
    late = oracle.create_trial("a")
    _silent(oracle, "a")
    oracle.take_back()
    _end(oracle, late, 0.9)
    assert oracle.trials[late.trial_id].status == "INVALID"
    again = oracle.create_trial("b")
    _end(oracle, again, 0.4)
    assert oracle.trials[late.trial_id].score == 0.4


def test_a_restarted_chief_knows_who_runs_what(tmp_path: Path) -> None:
    oracle = _oracle(tmp_path)
    first, second = oracle.create_trial("a"), oracle.create_trial("b")
    _end(oracle, first)
    again = _again(tmp_path)
    assert {name: trial.trial_id for name, trial in again.ongoing_trials.items()} == {"b": second.trial_id}
    _end(again, second)
    assert again.trials[second.trial_id].status == "COMPLETED"
    assert again.create_trial("c").trial_id == "2"


def test_a_kill_between_the_files_of_one_step_repeats_no_finished_trial(tmp_path: Path) -> None:
    oracle = _oracle(tmp_path)
    first = oracle.create_trial("a")
    state = (tmp_path / "tuner" / "oracle.json").read_bytes()
    _end(oracle, first)
    (tmp_path / "tuner" / "oracle.json").write_bytes(state)  # trial.json says COMPLETED, oracle.json that it runs
    again = _again(tmp_path)
    assert again.create_trial("a").trial_id == "1"


def test_a_trial_of_which_only_its_own_file_is_there_is_run(tmp_path: Path) -> None:
    oracle = _oracle(tmp_path)
    oracle.save()
    state = (tmp_path / "tuner" / "oracle.json").read_bytes()
    oracle.create_trial("a")
    (tmp_path / "tuner" / "oracle.json").write_bytes(state)
    assert _again(tmp_path).create_trial("b").trial_id == "0"


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_restarted_grid_goes_on_where_it_was(after: int, tmp_path: Path) -> None:
    tree = {"model.dropout": [0.0, 0.1, 0.2], "text.strip_html": [True, False]}
    from tfpipeline.search import oracles

    def oracle() -> Any:
        found = oracles.make("grid", space.parse(tree, "space.toml", BASE), direction="max", max_trials=None, max_epochs=3, seed=1)
        found._set_project_dir(str(tmp_path), "tuner")
        return found

    tried = []
    first = oracle()
    for _ in range(after):
        trial = first.create_trial("a")
        tried.append(dict(trial.hyperparameters.values))
        _end(first, trial)
    second = oracle()
    second.reload()
    while (trial := second.create_trial("a")).status == "RUNNING":
        tried.append(dict(trial.hyperparameters.values))
        _end(second, trial)
    assert len(tried) == 6
    assert len({json.dumps(one, sort_keys=True) for one in tried}) == 6


def test_the_gaussian_process_asks_for_nothing_twice(tmp_path: Path) -> None:
    from tfpipeline.search import oracles

    tree = {"model.dropout": [0.0, 0.1, 0.2], "text.strip_html": [True, False]}
    oracle = oracles.make("bayesian", space.parse(tree, "space.toml", BASE), direction="max", max_trials=6, max_epochs=3, seed=1)
    oracle._set_project_dir(str(tmp_path), "tuner")
    tried = []
    while (trial := oracle.create_trial("a")).status == "RUNNING":
        values = trial.hyperparameters.values
        tried.append(json.dumps(dict(values), sort_keys=True))
        # One corner is far better: the process would like to stay there.
        _end(oracle, trial, 0.9 if (values["model.dropout"], values["text.strip_html"]) == ("0.0", "true") else 0.1)
    assert len(tried) > 4
    assert len(set(tried)) == len(tried)


@pytest.mark.parametrize(("direction", "worst"), [("max", 0.2), ("min", 0.8)])
def test_a_failed_trial_is_the_worst_to_the_gaussian_process(direction: str, worst: float, tmp_path: Path) -> None:
    oracle = _oracle(tmp_path, "bayesian", max_trials=4, direction=direction)
    for score in (0.2, 0.8):
        _end(oracle, oracle.create_trial("a"), score)
    failed = oracle.create_trial("a")
    failed.status = "FAILED"
    oracle.end_trial(failed)
    _, scores = oracle._vectorize_trials()
    assert [abs(score) for score in scores] == [0.2, 0.8, worst]
    assert (failed.status, failed.score) == ("FAILED", None)


# ---- as processes


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _machine(folder: Path, name: str, port: int, tuner: str = "random", trials: int = 5, **asked: str) -> subprocess.Popen[str]:
    environment = {
        "KERASTUNER_TUNER_ID": name,
        "KERASTUNER_ORACLE_IP": "127.0.0.1",
        "KERASTUNER_ORACLE_PORT": str(port),
        "FAKE_TRIALS": json.dumps({number.removeprefix("t"): what for number, what in asked.items()}),
    }
    log = (folder.parent / f"{name}.log").open("w")
    with log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.search_process", str(folder), tuner, str(trials), "0"],
            cwd=ROOT, env={**os.environ, **environment}, text=True, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip


def _until(condition: Any, what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def _started(folder: Path) -> list[tuple[str, str]]:
    path = folder / "started.txt"
    return [(line.split(" ")[0], line.split(" ")[1]) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def test_a_chief_and_two_workers_of_which_one_is_killed(tmp_path: Path) -> None:
    folder, port = tmp_path / "search", _free_port()
    machines = {name: _machine(folder, name, port, t1="wait-once") for name in ("chief", "worker-1", "worker-2")}
    try:
        _until(lambda: any(number == "001" for number, _ in _started(folder)), "trial 1 did not start")
        victim = next(name for number, name in _started(folder) if number == "001")
        machines[victim].send_signal(signal.SIGKILL)
        told, _ = machines["chief"].communicate(timeout=180)
        logs = "\n".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("*.log"))
        assert machines["chief"].returncode == 0, logs
        (survivor,) = {"worker-1", "worker-2"} - {victim}
        worker, _ = machines[survivor].communicate(timeout=60)
        assert machines[survivor].returncode == 0, logs
    finally:
        for machine in machines.values():
            machine.kill()
            machine.communicate()
    found = json.loads(told)
    assert [(one["number"], one["state"]) for one in found["trials"]] == [(number, "finished") for number in range(5)]
    # The killed worker's trial was run again by the other one, and nothing else was run twice.
    assert [name for number, name in _started(folder) if number == "001"] == [victim, survivor]
    assert sorted(number for number, _ in _started(folder)) == ["000", "001", "001", "002", "003", "004"]
    told_by_chief = (tmp_path / "chief.log").read_text(encoding="utf-8")
    assert f"chief: {victim} has been silent for 10 s" in told_by_chief
    assert f"{survivor}: trial 1: finished, accuracy " in told_by_chief
    assert json.loads(worker)["worker"] == survivor
    assert found["winner"]["value"] == max(one["value"] for one in found["trials"])
    assert (folder / "report.html").is_file()
    # What the workers trained with is what the chief chose.
    for one in found["trials"]:
        config = configs.load(file=str(records.trial_folder(folder, one["number"]) / "config.toml"))
        assert config.train.learning_rate == space.rounded(config.train.learning_rate) == one["values"]["train.learning_rate"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> int:
    port = _free_port()
    for name, value in {
        "KERASTUNER_TUNER_ID": "worker-1",
        "KERASTUNER_ORACLE_IP": "127.0.0.1",
        "KERASTUNER_ORACLE_PORT": str(port),
    }.items():
        monkeypatch.setenv(name, value)
    return port


def test_a_port_in_use(tmp_path: Path, cluster: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", cluster))
        taken.listen()
        with pytest.raises(RunError) as error:
            session.search(settings(tmp_path / "search"))
    assert str(error.value) == (
        f"127.0.0.1:{cluster}: the chief cannot listen there; the port is in use or the address is not this machine's. "
        "Stop the other process, or set KERASTUNER_ORACLE_PORT to a free port for the chief and all workers."
    )


def test_a_worker_without_the_folder_of_its_chief(tmp_path: Path, cluster: int) -> None:
    with pytest.raises(RunError, match=r"no chief has opened a search there\. All machines need the same folder"):
        session.search(settings(tmp_path / "search", worker_timeout=0.3))


def test_a_worker_whose_chief_does_not_answer(tmp_path: Path, cluster: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from keras_tuner.src.distribute import oracle_client

    monkeypatch.setattr(oracle_client, "TIMEOUT", 0.5)
    wanted = settings(tmp_path / "search")
    records.open_folder(wanted.folder, wanted.identity(), wanted.base)
    with pytest.raises(session.ChiefUnreachable, match=rf"127\.0\.0\.1:{cluster}: the chief does not answer") as error:
        session.search(wanted)
    assert error.value.exit_code == 4


def test_a_worker_with_another_space_than_its_chief(tmp_path: Path, cluster: int) -> None:
    theirs = settings(tmp_path / "search")
    records.open_folder(theirs.folder, theirs.identity(), theirs.base)
    with pytest.raises(RunError, match=r"holds another search\. Its space differs in "):
        session.search(settings(tmp_path / "search", space=space.parse({"model.dropout": [0.0, 0.3]}, "space.toml", theirs.base)))
