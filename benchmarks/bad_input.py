"""Does the embedded server survive requests that no honest client sends?

    python benchmarks/bad_input.py --models models [--requests 10000] [--seed 1] [--threads 8]
    python benchmarks/bad_input.py --models models --only 4711      one of them again, with its answer

Starts the server over a folder of models (NAME/VERSION) and sends it mutated requests, gRPC and REST, from several threads. Promised: an answer within
each deadline, no traceback, exception or path of the server in any answer, no code but those that a client can expect, a right answer to every
honest request in between, a process that lives, and memory that is as flat in the last quarter as in the first. One JSON line with all figures; exit 1
when a promise is broken, with the numbers of the requests that broke it on stderr.

What it does not show: requests that are right but large (see `mutations`), clients that hold connections open, many clients at once.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import mutations

from serving import wire

START_S = 180.0
CONTROL_EVERY = 20  # bad requests of a thread between two honest ones
WARM_UP = 2000  # bad requests that are not counted: the runtime keeps something for every shape that it meets, up to a bound
GROWTH_MIB = 64.0  # memory is flat: the runtime alone moves by tens of MiB from one shape of a request to the next


@dataclass
class Server:
    """The process, and how to reach it."""

    process: subprocess.Popen[bytes]
    rest_port: int
    channel: grpc.Channel

    def memory_mib(self, entry: str = "VmRSS") -> float:
        """Resident memory, or with `VmHWM` the most there ever was."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.partition(f"{entry}:")[2].split()[0]) / 1024

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.rest_port}{path}", timeout=mutations.DEADLINE_S) as answer:
            return bytes(answer.read())

    def call(self, method: str, request: Any) -> Any:
        path, _, response_class = wire.METHODS[method]
        data = self.channel.unary_unary(path)(request.SerializeToString(), timeout=mutations.DEADLINE_S)
        return response_class.FromString(data)

    def wait_ready(self) -> None:
        until = time.monotonic() + START_S
        while self.process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError):
                self.get("/readyz")
                return
            time.sleep(0.2)
        raise SystemExit(f"the server is not ready after {START_S:g} s, or ended with {self.process.poll()}")


@contextlib.contextmanager
def serving(models: Path, folder: Path, log_file: Path) -> Iterator[Server]:
    """The server as a process, with metrics, an access log and everything else that a request passes through."""
    monitoring = folder / "monitoring.config"
    monitoring.write_text("prometheus_config { enable: true }\n", encoding="utf-8")
    port, rest_port = _free_port(), _free_port()
    command = [
        sys.executable, "-m", "serving", "serve", f"--models_root={models}", f"--port={port}", f"--rest_api_port={rest_port}",
        f"--monitoring_config_file={monitoring}", f"--access_log={folder / 'access.jsonl'}",
    ]  # fmt: skip
    with log_file.open("wb") as log:
        # Should it crash, its log says where.
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONFAULTHANDLER": "1"})
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=mutations.CHANNEL_OPTIONS) as channel:
            server = Server(process, rest_port, channel)
            server.wait_ready()
            yield server
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def target_of(server: Server, models: Path) -> mutations.Target:
    """The first model of the folder."""
    folder = min(path for path in models.iterdir() if path.is_dir() and any(child.name.isdigit() for child in path.iterdir()))
    return mutations.target_of(server.channel, folder.name, folder)


class Control:
    """An honest request over each edge, and the answers from before the storm."""

    def __init__(self, server: Server, target: mutations.Target) -> None:
        self._server, self._target = server, target
        self._lock = threading.Lock()
        self._message = mutations.honest(server.channel, target)
        self.asked, self.wrong = 0, []
        self._before = self._ask()

    def check(self) -> None:
        try:
            answers = self._ask()
            wrong = (
                [] if alike(answers, self._before) else [f"honest request {self.asked}: {answers!r:.300} instead of {self._before!r:.300}"]
            )
        except (grpc.RpcError, OSError, ValueError) as error:
            wrong = [f"honest request {self.asked}: {error!r:.300}"]
        with self._lock:
            self.asked += 1
            self.wrong += wrong

    def _ask(self) -> list[Any]:
        response = self._server.call("Predict", self._message)
        outputs = {name: wire.to_array(tensor).tolist() for name, tensor in response.outputs.items()}
        return [outputs, json.loads(self._server.get(f"/v1/models/{self._target.model}"))]


def alike(one: Any, other: Any) -> bool:
    """Equal, but for the last digits of numbers."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-6)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


@dataclass
class Storm:
    """What is known so far, shared by all threads."""

    first: int
    last: int
    seed: int
    codes: collections.Counter[str] = field(default_factory=collections.Counter)
    said: collections.Counter[str] = field(default_factory=collections.Counter)
    complaints: list[str] = field(default_factory=list)
    slowest: tuple[float, int, str] = (0.0, 0, "")
    done: int = 0
    memory: list[tuple[int, float]] = field(default_factory=list)
    in_flight: set[int] = field(default_factory=set)
    suspects: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> int | None:
        with self._lock:
            if self.first >= self.last:
                return None
            self.first += 1
            self.in_flight.add(self.first - 1)
            return self.first - 1

    def note(self, request: mutations.Request, answer: mutations.Answer) -> None:
        wrong = mutations.complaint(request, answer)
        with self._lock:
            self.done += 1
            if wrong and answer.code in ("UNAVAILABLE", "refused", "closed") and not self.suspects:
                self.suspects = set(self.in_flight)
            self.in_flight.discard(request.number)
            self.codes[f"{request.edge} {answer.code}"] += 1
            if answer.code in mutations.EXPLAINED:
                self.said[f"{answer.code}: {answer.body.decode('utf-8', 'replace')[:80]}"] += 1
            self.slowest = max(self.slowest, (answer.seconds, request.number, request.kind))
            if wrong:
                self.complaints.append(f"--seed {self.seed} --only {request.number} ({request.kind}): {wrong}")


def storm(server: Server, target: mutations.Target, control: Control, first: int, last: int, options: argparse.Namespace) -> Storm:
    """Sends the requests of these numbers."""
    state = Storm(first, last, options.seed)

    def work() -> None:
        sent = 0
        while server.process.poll() is None and (number := state.next()) is not None:
            request = mutations.make(target, options.seed, number)
            state.note(request, mutations.send(request, server.channel, server.rest_port))
            sent += 1
            if sent % CONTROL_EVERY == 0:
                control.check()

    threads = [threading.Thread(target=work) for _ in range(options.threads)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with contextlib.suppress(OSError, IndexError):  # the process is gone
            state.memory.append((state.done, server.memory_mib()))
        threads[0].join(0.2) if threads[0].is_alive() else time.sleep(0.2)
    return state


def quarter(state: Storm, number: int) -> float:
    """Memory while the requests of that quarter were sent: the lowest tenth, which is what stays when no large request is at work."""
    within = sorted(mib for done, mib in state.memory if number <= 4 * done / max(1, state.done) <= number + 1)
    return within[len(within) // 10] if within else 0.0


def tracebacks(log: str) -> collections.Counter[str]:
    """The last lines of the tracebacks in the server's log: faults that it survived."""
    return collections.Counter(re.findall(r"^Traceback \(most recent call last\):\n(?:[ ].*\n|\n)*(\S.{0,150})", log, re.MULTILINE))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="send this request alone and show what comes back")
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep the server's log there")
    options = parser.parse_args()
    models = options.models.absolute()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log_file = options.log or folder / "log"
        server = stack.enter_context(serving(models, folder, log_file))
        target = target_of(server, models)
        if options.only is not None:
            request = mutations.make(target, options.seed, options.only)
            answer = mutations.send(request, server.channel, server.rest_port)
            print(request.kind, f"{len(request.data)} bytes", request.data[:2000], answer, mutations.complaint(request, answer), sep="\n")
            return 0
        control = Control(server, target)
        for first, last in ((-WARM_UP, 0), (0, options.requests)):
            started = time.monotonic()
            state = storm(server, target, control, first, last, options)
            seconds = time.monotonic() - started
            if server.process.poll() is not None:
                break
        control.check()
        alive = server.process.poll() is None
        if alive:
            server.get("/monitoring/prometheus/metrics")
        peak = server.memory_mib("VmHWM") if alive else 0.0
        log = log_file.read_text(encoding="utf-8", errors="replace")
    memory = [quarter(state, number) for number in range(4)]
    growth = memory[3] - memory[0]
    broken = state.complaints + control.wrong
    if not alive:
        fault = log[max(0, log.find("Fatal Python") - 500) :][:1000] if "Fatal Python" in log else log[-1500:]
        broken.insert(0, f"the server ended with {server.process.returncode} during one of --only {sorted(state.suspects)}: {fault}")
    if growth > GROWTH_MIB:
        broken.append(f"memory grew by {growth:.0f} MiB from the first quarter to the last; at most {GROWTH_MIB:g} is flat")
    figures = {
        "benchmark": "bad_input", "n": state.done, "seed": options.seed, "threads": options.threads, "seconds": round(seconds, 1), "alive": alive,
        "codes": dict(sorted(state.codes.items())), "internal_and_unknown": dict(state.said.most_common(20)), "broken_answers": len(state.complaints),
        "honest_requests": control.asked, "honest_requests_wrong": len(control.wrong), "tracebacks_in_log": dict(tracebacks(log)),
        "slowest_s": round(state.slowest[0], 2), "slowest": f"{state.slowest[2]} ({state.slowest[1]})",
        "memory_mib": {"quarters": [round(mib) for mib in memory], "growth": round(growth, 1), "peak": round(peak)}, "kept": not broken,
    }  # fmt: skip
    print(json.dumps(figures))
    for line in broken[:40]:
        print(line, file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
