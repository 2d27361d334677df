"""Several processes that train one model: who they are, what they agree on, and what a lost one looks like. Frees the loop from all of it.

In: `TF_CONFIG`, as TensorFlow, Kubeflow and Vertex AI write it: `{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}`.
Out: a `Cluster` (who is there), and a `Team` (what they say to each other). Refuses a `TF_CONFIG` that TensorFlow would wait for without end, or break on.

The first worker is the chief. Only the chief writes; the others read its run directory, on a volume that all of them mount, and write nothing. All of them
take the same steps and make the same decisions, because each is a function of numbers that all of them have. Where only one of them knows something
(a signal, a clock, an error), the team asks all of them first.

A process that trains alone is a `Team` of one: the same calls, and nothing is sent.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfpipeline.errors import ConfigError, PipelineError, RunError
from tfpipeline.runs import Run, discard

# Only for a worker that lives and yet does nothing: a lost one is noticed by TensorFlow's heartbeats, within about ten seconds. Long, because the others
# wait while the chief prepares data and judges the model.
ANSWER_TIMEOUT_S = 3600

_MESSAGE_BYTES = 4096
_EXAMPLE = '{"cluster": {"worker": ["host-0:2222", "host-1:2222"]}, "task": {"type": "worker", "index": 0}}'


class WorkerLost(PipelineError):
    """Another worker died or cannot be reached. Nothing is wrong with the run: start all workers again, with --resume.

    Its exit code is that of a temporary failure (`EX_TEMPFAIL` of sysexits.h), so that whoever restarts processes can tell it from a mistake.
    """

    exit_code = 75


# ---- who is there ----


@dataclass(frozen=True)
class Cluster:
    """Who trains together.

    Attributes:
        addresses: `host:port` of each worker, the chief first.
        index: which of them this process is.
    """

    addresses: tuple[str, ...]
    index: int


def read_cluster(environment: Mapping[str, str] = os.environ) -> Cluster:
    """What `TF_CONFIG` says.

    Raises:
        ConfigError: it is missing, not JSON, or does not describe a cluster with this process in it.
    """
    text = environment.get("TF_CONFIG", "")
    if not text.strip():
        raise _wrong("it is not set", "the same list of workers on each machine, and its own index")
    try:
        value = json.loads(text)
    except ValueError as error:
        raise _wrong(f"it is not JSON ({error}): {text[:200]!r}", "a JSON object") from None
    value = value if isinstance(value, dict) else {}
    cluster, task = value.get("cluster"), value.get("task")
    if not isinstance(cluster, dict) or not (cluster.get("worker") or cluster.get("chief")):
        raise _wrong(f"it has no list of workers; `cluster` is {cluster!r}", "`cluster.worker`, a list of addresses")
    if set(cluster) - {"chief", "worker"}:
        others = ", ".join(sorted(set(cluster) - {"chief", "worker"}))
        raise _wrong(f"`cluster` has the jobs {others}", "only `worker`, and `chief` if need be: nobody has other work here")
    places: list[tuple[str, int]] = []
    addresses: list[str] = []
    for kind in ("chief", "worker"):
        listed = cluster.get(kind) or []
        if not isinstance(listed, list):
            raise _wrong(f"`cluster.{kind}` is {listed!r}", "a list of addresses")
        places += [(kind, number) for number in range(len(listed))]
        addresses += [_address(one, f"cluster.{kind}[{number}]") for number, one in enumerate(listed)]
    if len(set(addresses)) != len(addresses):
        raise _wrong(f"two workers have one address: {', '.join(addresses)}", "one address for each worker")
    if not isinstance(task, dict) or task.get("type") not in ("chief", "worker") or type(task.get("index")) is not int:
        raise _wrong(f"`task` is {task!r}", '`task`, with `type` ("worker" or "chief") and `index` (a whole number)')
    place = (task["type"], task["index"])
    if place not in places:
        there = len(cluster.get(task["type"]) or [])
        raise _wrong(
            f"`task.index` is {task['index']}, and `cluster.{task['type']}` has {there} {'address' if there == 1 else 'addresses'}",
            f"an index from 0 to {there - 1}" if there else f"a `task.type` that `cluster` has: {', '.join(sorted(cluster))}",
        )
    return Cluster(tuple(addresses), places.index(place))


def _address(value: Any, where: str) -> str:
    found = (
        re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?):(\d{1,5})", value) if isinstance(value, str) else None
    )
    if found is None or not 1 <= int(found[3]) <= 65535:
        raise _wrong(f"`{where}` is {value!r}, which is not an address", "HOST:PORT, the port from 1 to 65535")
    return str(value)


def check_port(cluster: Cluster) -> None:
    """Raises ConfigError when another process has this worker's port: TensorFlow would end the process with an assertion."""
    port = int(cluster.addresses[cluster.index].rpartition(":")[2])
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a former process that wait for their end are no obstacle
        try:
            one.bind(("", port))
        except OSError as error:
            raise ConfigError(
                f"TF_CONFIG: worker {cluster.index} listens at port {port}, which cannot be had: {error.strerror}. "
                "Stop the process that has it (perhaps a worker of a former start), or give this worker another port, in the TF_CONFIG of all."
            ) from error


def _wrong(received: str, expected: str) -> ConfigError:
    return ConfigError(
        f"TF_CONFIG: runtime.strategy = multiworker reads it, and {received}. Expected {expected}, as in TF_CONFIG='{_EXAMPLE}'."
    )


# ---- what they say to each other ----


class Team:
    """This process among the others.

    Every worker must make the same calls in the same order: each waits for all.

    Attributes:
        index: of this worker.
        count: how many there are.
    """

    def __init__(self, strategy: Any = None, cluster: Cluster | None = None) -> None:
        self._strategy = strategy
        self.index = cluster.index if cluster else 0
        self.count = len(cluster.addresses) if cluster else 1

    @property
    def is_chief(self) -> bool:
        """Whether this process writes."""
        return self.index == 0

    def first(self, make: Callable[[], Any]) -> str:
        """The chief calls `make`; the others wait for it. Returns the text that it returned, on all of them; "" for anything else.

        Raises:
            PipelineError: what `make` raised, on the chief; on the others one of the same kind.
        """
        said: dict[str, Any] = {}
        try:
            made = make() if self.is_chief else ""
            text = made if isinstance(made, str) else ""
            if self.count == 1:
                return text
            said = {"made": text}
        except BaseException as error:
            if self.count == 1:
                raise
            said = {"error": type(error).__name__, "message": str(error)[: _MESSAGE_BYTES // 6], "code": getattr(error, "exit_code", 1)}
            with contextlib.suppress(Exception):  # a lost worker is not the error to show
                self._all_say(json.dumps(said))
            raise
        said = json.loads(self._all_say(json.dumps(said))[0])
        if "error" in said:
            raise _told(said)
        return str(said["made"])

    def agree(self, problem: str) -> None:
        """Raises ConfigError on all workers when one has a problem; "" is none."""
        if self.count == 1:
            if problem:
                raise ConfigError(problem)
            return
        problems = self._all_say(problem)
        if any(problems):
            raise ConfigError("; ".join(f"worker {index}: {one}" for index, one in enumerate(problems) if one))

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag: whether one of the workers has it set."""
        if self.count == 1:
            return flags
        import tensorflow as tf

        return tuple(bool(count) for count in self._sum(tf.constant([int(flag) for flag in flags], tf.int32)))

    def _all_say(self, text: str) -> list[str]:
        import numpy as np
        import tensorflow as tf

        page = np.zeros([self.count, _MESSAGE_BYTES], np.int32)
        own = text.encode()[:_MESSAGE_BYTES]
        page[self.index, : len(own)] = list(own)
        return [bytes(row[row > 0].astype(np.uint8)).decode("utf-8", "ignore") for row in self._sum(tf.constant(page))]

    def _sum(self, value: Any) -> Any:
        import tensorflow as tf

        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, tf.identity(value), axis=None).numpy()


def _told(said: Mapping[str, Any]) -> PipelineError:
    """The chief's error as the others raise it: of a class of its own when it was none of ours, with the chief's exit code."""
    kinds = {kind.__name__: kind for kind in PipelineError.__subclasses__()}
    error = kinds.get(said["error"], PipelineError)(f"the chief stopped: {said['message'] or said['error']}")
    error.exit_code = said["code"]
    return error


class Onlooker(Run):
    """A run that the chief writes, as the other workers have it: it can be read."""

    def update(self, **values: Any) -> None:
        """Nothing."""

    def event(self, name: str, **values: Any) -> None:
        """Nothing."""

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Nothing: the chief marks the run."""
        yield


def run_of_all(team: Team, resume: Run | None, make: Callable[[], Run], root: Path, digest: str) -> Run:
    """The run that the chief opens, as this worker has it.

    Args:
        team: all workers.
        resume: a run to go on with; that of the chief counts.
        make: creates one; only the chief calls it, and only when it has none to go on with.
        root: the folder of runs; may have another path on each machine, but must be one volume.
        digest: of this worker's config, which must be that of all.

    Raises:
        ConfigError: on all workers, when one does not see the run, or was started with other settings. A new run is removed again.
    """
    made: list[Run] = []

    def once() -> str:
        made.append(resume or make())
        return made[0].path.name

    name = team.first(once)
    run: Run = made[0] if made else Onlooker(root / name)
    problem = ""
    if not made:
        try:
            if run.config.digest() != digest:
                problem = "its settings are not those of the chief. Start all workers with the same command."
        except RunError:
            problem = f"it does not see the run of the chief at {run.path}. --runs must be one folder, on a volume that all workers mount."
    try:
        team.agree(problem)
    except ConfigError:
        if made and resume is None:
            discard(run)
        raise
    return run


# ---- what a lost worker looks like ----


@contextlib.contextmanager
def watched(team: Team, run: Run | None = None) -> Iterator[None]:
    """Inside, TensorFlow's many errors for a lost worker become one of ours.

    Raises:
        WorkerLost: another worker died, or did not answer in time.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        if team.count == 1 or not is_loss(error):
            raise
        raise lost(error, run) from error


def is_loss(error: BaseException) -> bool:
    """Whether TensorFlow says with this error that another worker is gone, or that its place was taken by a new process."""
    import tensorflow as tf

    kinds = (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.FailedPreconditionError,
    )
    return isinstance(error, kinds) or ("ollective" in str(error) and isinstance(error, tf.errors.InternalError))


def lost(error: BaseException, run: Run | None) -> WorkerLost:
    """The one wording."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # In a graph the reason comes after a traceback of the graph's own.
    why = next((line for line in lines if line.startswith("Collective ops is aborted by: ")), lines[0] if lines else "no reason given")
    again = f"--resume {run.path.name}; training goes on from its last checkpoint" if run is not None else "the same command"
    return WorkerLost(
        f"another worker is gone, so this one stopped ({type(error).__name__}: {why[:300]}). Start all workers again with {again}."
    )
