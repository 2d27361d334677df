"""The process of one trial, watched: started, pruned, stopped with the search, and judged by how it ended.

In: a Config and a folder. Out: an `Ended`. The judgement is `verdict`, a pure function; the loop around it only waits and reads `events.jsonl`.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfpipeline import runs
from tfpipeline.config import Config
from tfpipeline.search import records
from tfpipeline.search.trial import OUT_OF_MEMORY

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "tfpipeline.search.trial")
POLL_SECONDS = 0.25
BEAT_SECONDS = 5.0  # between two signs of life, at most
GRACE_SECONDS = 60.0  # to finish a step and write a checkpoint
LOCK_SECONDS = 90.0  # for a trial whose search was killed to notice it and to let go of its run
RETRIES = 2
# What the C++ side of TensorFlow says last when an allocation fails.
NO_MEMORY_WORDS = ("bad_alloc", "out of memory", "OOM when allocating", "Cannot allocate memory")


@dataclass(frozen=True)
class Ended:
    """How a training ended.

    Attributes:
        state: "finished", "pruned", "failed" (its own fault: do not repeat it), or "lost" (the fault of something else: repeat it).
        reason: why, for all but the first.
        result: what the trial wrote about itself; {} when it wrote nothing.
        curve: the objective after each epoch.
        seconds: of this attempt.
    """

    state: str
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    curve: list[float] = field(default_factory=list)
    seconds: float = 0.0


def run(
    place: Path,
    config: Config,
    title: str,
    *,
    command: Sequence[str] = COMMAND,
    measure: bool = False,
    epoch_key: str = "",
    hopeless: Callable[[list[float]], bool] | None = None,
    beat: Callable[[], None] | None = None,
    beat_seconds: float = BEAT_SECONDS,
) -> Ended:
    """One attempt at a training, in a process of its own.

    Args:
        place: its folder; an attempt that was stopped there is gone on with.
        config: what is trained.
        title: comment in the config file.
        command: takes `--config --runs --result` and maybe `--measure`.
        measure: whether the model is timed.
        epoch_key: what the events of an epoch call the objective; "" for none.
        hopeless: asked after each epoch with the objective so far; True ends the trial.
        beat: called now and then.
        beat_seconds: how often.

    Raises:
        KeyboardInterrupt: after the process has written its checkpoint and ended.
        PipelineError: the folder cannot be written.
    """
    started = time.monotonic()
    place.mkdir(parents=True, exist_ok=True)
    root, result_path = place / "runs", place / "result.json"
    records.write_config(place / "config.toml", config, title)
    result_path.unlink(missing_ok=True)
    if not _let_go(root, beat):
        return Ended("lost", "another process is still writing its run", seconds=time.monotonic() - started)
    arguments = [*command, "--config", str(place / "config.toml"), "--runs", str(root), "--result", str(result_path)]
    kills, pruned, curve, next_beat = oom_kills(), False, list[float](), 0.0
    with (place / "log.txt").open("ab") as log, _process([*arguments, *(["--measure"] if measure else [])], log) as process:
        while process.poll() is None:
            if beat is not None and time.monotonic() >= next_beat:
                beat()
                next_beat = time.monotonic() + beat_seconds
            now = epoch_values(root, epoch_key)
            if now != curve:
                curve = now
                if hopeless is not None and hopeless(curve):
                    pruned = True
                    stop(process)
                    break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
        code = process.wait()
    curve = epoch_values(root, epoch_key)
    result = runs.read_json(result_path) if result_path.is_file() else {}
    state, reason = verdict(code, pruned, result, records.tail(place / "log.txt"), oom_kills() - kills)
    return Ended(state, reason, result, curve, round(time.monotonic() - started, 1))


def verdict(code: int, pruned: bool, result: dict[str, Any], log: str, killed_for_memory: int) -> tuple[str, str]:
    """State and reason from how the process ended.

    | exit code | what else | state |
    |---|---|---|
    | 0 | a result | finished, also when it was just to be pruned |
    | any | we stopped it | pruned |
    | 2, 3 | our own message: NaN, out of memory, a bad setting or file | failed |
    | any other | the kernel killed for memory meanwhile, or the log ends with a failed allocation | failed |
    | 0 | no result | lost |
    | -9, -15, 1, 130, ... | nothing that explains it by the settings | lost |
    """
    if code == 0 and result:
        return "finished", ""
    if pruned:
        return "pruned", "worse than the median of the others at this epoch"
    if code in (2, 3):
        error = "out of memory" if result.get("error") == OUT_OF_MEMORY else result.get("error", f"exit {code}")
        return "failed", f"{error}: {result.get('message') or log or 'no message'}"
    if killed_for_memory > 0 or any(word in log for word in NO_MEMORY_WORDS):
        return "failed", f"out of memory: {_ending(code)}"
    return "lost", f"{_ending(code)}{f' after: {log.splitlines()[-1]}' if log else ''}"


def epoch_values(root: Path, key: str) -> list[float]:
    """The metric after each epoch of the newest run under the root; of an epoch that was done again, the last value."""
    found = runs.list_runs(root) if key else []
    by_epoch: dict[int, float] = {}
    for event in found[-1].events("epoch") if found else ():
        if isinstance(event.get(key), int | float):
            by_epoch[event["epoch"]] = float(event[key])
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def oom_kills() -> int:
    """How often the kernel has killed for memory in this control group so far; 0 where nobody counts."""
    for path in (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control")):
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text(encoding="ascii").splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the process to end after this step, with a checkpoint; after `GRACE_SECONDS` it is killed with all it started."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def _process(arguments: Sequence[str], log: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Of a session of its own, so that Ctrl-C reaches the search alone, which then stops it in order.

    Its standard input is a pipe that nobody writes to: when the search is killed, the pipe closes, and the trial stops by itself.
    """
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True) as process:  # noqa: S603  our own command
        try:
            yield process
        except BaseException:
            stop(process)
            raise


def _let_go(root: Path, beat: Callable[[], None] | None) -> bool:
    """Waits until no process writes the newest run under the root any more."""
    found = runs.list_runs(root)
    if not found or not (found[-1].path / ".lock").is_file():
        return True
    deadline = time.monotonic() + LOCK_SECONDS
    descriptor = os.open(found[-1].path / ".lock", os.O_RDWR)
    try:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if beat is not None:
                    beat()
                time.sleep(POLL_SECONDS)
        return False
    finally:
        os.close(descriptor)


def _ending(code: int) -> str:
    if code >= 0:
        return f"the process ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process was ended by signal {-code}"
