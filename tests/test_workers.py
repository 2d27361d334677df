"""Who trains together is checked before TensorFlow waits for somebody who never comes; what the chief does is known to all."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from tfpipeline import config, runs, runtime, workers
from tfpipeline.config import RuntimeConfig
from tfpipeline.errors import ConfigError, DataError, GateError, PipelineError
from tfpipeline.train import train

TWO = ["host-0:2222", "host-1:2222"]


def _environment(cluster: Any = None, task: Any = None) -> dict[str, str]:
    return {
        "TF_CONFIG": json.dumps(
            {"cluster": {"worker": TWO} if cluster is None else cluster, "task": {"type": "worker", "index": 1} if task is None else task}
        )
    }


def test_workers_are_numbered_as_they_stand_and_a_chief_comes_first() -> None:
    assert workers.read_cluster(_environment()) == workers.Cluster(tuple(TWO), 1)
    with_chief = {"worker": ["w0:1", "w1:1"], "chief": ["c:1"]}
    assert workers.read_cluster(_environment(with_chief, {"type": "chief", "index": 0})).index == 0
    assert workers.read_cluster(_environment(with_chief)) == workers.Cluster(("c:1", "w0:1", "w1:1"), 2)
    assert workers.read_cluster(_environment({"worker": ["[::1]:2222", "10.0.0.7:2222"]})).addresses == ("[::1]:2222", "10.0.0.7:2222")


@pytest.mark.parametrize(
    ("environment", "received"),
    [
        ({}, "it is not set"),
        ({"TF_CONFIG": "  "}, "it is not set"),
        ({"TF_CONFIG": "{'cluster': 1}"}, "it is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
        ({"TF_CONFIG": "[]"}, "it has no list of workers; `cluster` is None"),
        (_environment({}), "it has no list of workers; `cluster` is {}"),
        (_environment({"worker": []}), "it has no list of workers; `cluster` is {'worker': []}"),
        (_environment({"worker": "host-0:2222"}), "`cluster.worker` is 'host-0:2222'"),
        (_environment({"worker": TWO, "ps": ["p:1"]}), "`cluster` has the jobs ps"),
        (_environment({"worker": ["host-0:2222", "host-1"]}), "`cluster.worker[1]` is 'host-1', which is not an address"),
        (_environment({"worker": ["host-0:2222", "http://host-1:2222"]}), "`cluster.worker[1]` is 'http://host-1:2222', which is not an address"),
        (_environment({"worker": ["host-0:2222", "host-1:70000"]}), "`cluster.worker[1]` is 'host-1:70000', which is not an address"),
        (_environment({"worker": ["host-0:2222", 7]}), "`cluster.worker[1]` is 7, which is not an address"),
        (_environment({"worker": ["host-0:2222", "host-0:2222"]}), "two workers have one address: host-0:2222, host-0:2222"),
        (_environment(task={}), "`task` is {}"),
        (_environment(task={"type": "worker", "index": "1"}), "`task` is {'type': 'worker', 'index': '1'}"),
        (_environment(task={"type": "worker", "index": True}), "`task` is {'type': 'worker', 'index': True}"),
        (_environment(task={"type": "evaluator", "index": 0}), "`task` is {'type': 'evaluator', 'index': 0}"),
        (_environment(task={"type": "worker", "index": 2}), "`task.index` is 2, and `cluster.worker` has 2 addresses. Expected an index from 0 to 1,"),
        (_environment(task={"type": "worker", "index": -1}), "`task.index` is -1, and `cluster.worker` has 2 addresses"),
        (_environment(task={"type": "chief", "index": 0}), "`task.index` is 0, and `cluster.chief` has 0 addresses. Expected a `task.type` that `cluster`"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_cluster_is_refused(environment: dict[str, str], received: str) -> None:
    with pytest.raises(ConfigError) as caught:
        workers.read_cluster(environment)
    message = str(caught.value)
    assert message.startswith(f"TF_CONFIG: runtime.strategy = multiworker reads it, and {received}")
    assert "Expected " in message
    assert message.endswith('"task": {"type": "worker", "index": 0}}\'.')  # the corrected call


def _in_use() -> socket.socket:
    listener = socket.socket()
    listener.bind(("", 0))
    listener.listen()
    return listener


def test_a_port_in_use_is_refused_and_a_free_one_is_not() -> None:
    with _in_use() as listener:
        cluster = workers.Cluster(("elsewhere:1", f"localhost:{listener.getsockname()[1]}"), 1)
        with pytest.raises(
            ConfigError, match=r"^TF_CONFIG: worker 1 listens at port \d+, which cannot be had: Address already in use\. Stop "
        ):
            workers.check_port(cluster)
    workers.check_port(cluster)


def test_a_training_without_tf_config_leaves_nothing(tiny_config: config.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = config.load_dict(tiny_config.to_dict(), "test", ["runtime.strategy=multiworker"])
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ConfigError, match=r"^TF_CONFIG: runtime.strategy = multiworker reads it, and it is not set"):
        train(loaded, root=tmp_path)
    with _in_use() as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        for name, value in _environment({"worker": [address]}, {"type": "worker", "index": 0}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match="which cannot be had"):
            train(loaded, root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_workers_that_come_too_late_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tf.constant(1.0) + 1.0
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("TF_CONFIG", _environment({"worker": [f"127.0.0.1:{port}"]}, {"type": "worker", "index": 0})["TF_CONFIG"])
    with pytest.raises(
        ConfigError, match=r"^`runtime.strategy` = multiworker comes too late: TensorFlow has already started in this process"
    ):
        runtime.apply(RuntimeConfig(strategy="multiworker"))


def test_going_on_from_a_model_is_for_one_process(tiny_run: runs.Run, tmp_path: Path) -> None:
    from tfpipeline.trained import load

    loaded = config.load_dict(tiny_run.config.to_dict(), "test", ["runtime.strategy=multiworker"])
    with pytest.raises(ConfigError, match=r"is the work of one process. Add --set runtime.strategy=one"):
        train(loaded, root=tmp_path, start=load(tiny_run))
    loaded = config.load_dict(loaded.to_dict(), "test", ["compress.quantize_aware=true"])
    with pytest.raises(ConfigError, match=r"ranges, which workers do not share"):
        train(loaded, root=tmp_path)


# ---- the team, with the sum over processes replaced by one over threads' notes ----


class _Pages(workers.Team):
    """A worker among others whose messages are already known."""

    def __init__(self, index: int, others: dict[int, str]) -> None:
        super().__init__(None, workers.Cluster(("a:1", "b:1", "c:1"), index))
        self.others = others
        self.said: list[str] = []

    def _all_say(self, text: str) -> list[str]:
        self.said.append(text)
        return [text if index == self.index else self.others.get(index, "") for index in range(self.count)]


def _raise(error: BaseException) -> Any:
    raise error


def test_only_the_chief_acts_and_all_know_the_answer() -> None:
    chief, other = _Pages(0, {}), _Pages(1, {0: json.dumps({"made": "run-7"})})
    assert chief.first(lambda: "run-7") == "run-7"
    assert json.loads(chief.said[0]) == {"made": "run-7"}
    assert other.first(lambda: pytest.fail("not the chief")) == "run-7"
    assert workers.Team().first(lambda: "alone") == "alone"
    assert workers.Team().first(lambda: 7) == ""


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (DataError("x.csv:3: bad"), DataError, 2),
        (GateError("too low"), GateError, 3),
        (workers.WorkerLost("gone"), workers.WorkerLost, 75),
        (ZeroDivisionError("a fault"), PipelineError, 1),
    ],
)
def test_an_error_of_the_chief_is_one_of_all(error: Exception, kind: type[PipelineError], code: int) -> None:
    chief = _Pages(0, {})
    with pytest.raises(type(error)):
        chief.first(lambda: _raise(error))
    with pytest.raises(kind, match=rf"^the chief stopped: {error}$") as caught:
        _Pages(2, {0: chief.said[0]}).first(lambda: pytest.fail("not the chief"))
    assert caught.value.exit_code == code
    assert kind("x").exit_code == getattr(kind, "exit_code", 2)  # the class is as it was


def test_a_problem_of_one_is_one_of_all() -> None:
    _Pages(0, {}).agree("")
    for index, own in ((0, ""), (1, "no such folder.")):
        others = {} if own else {1: "no such folder."}
        with pytest.raises(ConfigError, match=r"^worker 1: no such folder\.$"):
            _Pages(index, others).agree(own)
    with pytest.raises(ConfigError, match=r"^alone$"):
        workers.Team().agree("alone")


def test_a_worker_that_does_not_see_the_run_or_has_other_settings_is_named(tiny_config: config.Config, tmp_path: Path) -> None:
    run = runs.create(tiny_config, tmp_path / "here")
    told = {0: json.dumps({"made": run.path.name})}

    class Second(_Pages):
        def _all_say(self, text: str) -> list[str]:
            self.others = told if not self.said else {}
            return super()._all_say(text)

    def opened(root: Path, digest: str) -> runs.Run:
        return workers.run_of_all(Second(1, {}), None, lambda: pytest.fail("not the chief"), root, digest)

    with pytest.raises(ConfigError, match=r"^worker 1: it does not see the run of the chief at .*there.*\. --runs must be one folder"):
        opened(tmp_path / "there", tiny_config.digest())
    with pytest.raises(
        ConfigError, match=r"^worker 1: its settings are not those of the chief\. Start all workers with the same command\.$"
    ):
        opened(tmp_path / "here", "another")
    seen = opened(tmp_path / "here", tiny_config.digest())
    before = (run.path / "run.json").read_text()
    with seen.writing():
        seen.update(status="changed")
        seen.event("step")
    assert (run.path / "run.json").read_text() == before
    assert [event["event"] for event in run.events()] == ["created"]


def test_a_new_run_that_not_all_can_use_is_removed(tiny_config: config.Config, tmp_path: Path) -> None:
    def opened(resume: runs.Run | None, others: dict[int, str]) -> runs.Run:
        return workers.run_of_all(_Pages(0, others), resume, lambda: runs.create(tiny_config, tmp_path), tmp_path, tiny_config.digest())

    with pytest.raises(ConfigError, match=r"^worker 2: no\.$"):
        opened(None, {2: "no."})
    assert not runs.list_runs(tmp_path)
    run = opened(None, {})
    with pytest.raises(ConfigError):
        opened(run, {2: "no."})
    assert [one.path for one in runs.list_runs(tmp_path)] == [run.path]


def test_tensorflow_errors_of_a_lost_worker_become_one_of_ours(tiny_config: config.Config, tmp_path: Path) -> None:
    run = runs.create(tiny_config, tmp_path)
    gone = tf.errors.UnavailableError(None, None, "Graph execution error:\n\nCollective ops is aborted by: connection refused\nmore")
    with pytest.raises(workers.WorkerLost) as caught, workers.watched(_Pages(1, {}), run):
        raise gone
    assert str(caught.value) == (
        "another worker is gone, so this one stopped (UnavailableError: Collective ops is aborted by: connection refused). "
        f"Start all workers again with --resume {run.path.name}; training goes on from its last checkpoint."
    )
    assert caught.value.exit_code == 75
    assert "(UnavailableError: no reason given)" in str(workers.lost(tf.errors.UnavailableError(None, None, ""), None))
    fault = tf.errors.InvalidArgumentError(None, None, "shapes")
    for team, error in ((_Pages(1, {}), fault), (workers.Team(), gone)):
        with pytest.raises(type(error)), workers.watched(team, run):
            raise error
