"""Does a killed pusher or server ever leave a half version behind, or a job that cannot be finished?

Fifty times `kill -9`: the pusher at each of its steps in turn (while a client keeps asking), and the server at a random moment of a push. After
each: the previous or the new version answers, whole, to who asks for `stable`; then the same push again, which has to finish the job.

    python benchmarks/crashes.py [--kills 50]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from numbered_models import number_of, publish

from serving import Client
from serving.errors import ServingError
from serving.push import STEPS, Target, push
from serving.stores import FolderStore

NAME = "numbered"
DIE_AT = (*STEPS, "label.written", "end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--pusher", nargs=4, metavar=("SOURCE", "ADDRESS", "ROOT", "STEP"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pusher:
        pusher(*options.pusher)
        return
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "models").mkdir()
        sources = [publish(root / "exports", number) for number in range(options.kills + 1)]
        world = World(root)
        world.start_server()
        try:
            push(sources[0].path, [world.target])
            killed: Counter[str] = Counter()
            broken: list[str] = []
            for turn in range(1, options.kills + 1):
                # Two of five kills hit the pusher, step by step; three the server, at any moment.
                step = DIE_AT[len(killed_steps(killed)) % len(DIE_AT)] if turn % 5 < 2 else ""
                what = f"pusher at {step}" if step else "server"
                problem = world.kill_pusher(sources[turn].path, turn, step) if step else world.kill_server(sources[turn].path, turn, chance)
                killed[f"{what} #{turn}" if step else what] += 1
                if problem:
                    broken.append(f"kill {turn} ({what}): {problem}")
        finally:
            world.stop_server()
    steps = Counter(name.split(" #")[0] for name in killed_steps(killed))
    figures = {
        "benchmark": "crashes", "kills": options.kills, "server": killed["server"], "pusher": dict(steps),
        "answers_while_the_pusher_died": world.answers, "failed_then": world.failures, "broken": broken,
        "restart_s": [round(min(world.restarts), 1), round(max(world.restarts), 1)],
    }  # fmt: skip
    print(json.dumps(figures))
    if broken or world.failures:
        raise SystemExit(1)


def killed_steps(killed: Counter[str]) -> list[str]:
    return [name for name in killed if name.startswith("pusher")]


def pusher(source: str, address: str, root: str, step: str) -> None:
    """A push that kills itself; `end` is after all is done."""

    def on_step(name: str) -> None:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    push(Path(source), [Target(address, FolderStore(Path(root)))], on_step=on_step)
    on_step("end")


class World:
    """A server that can be killed, and who asks it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = int(one.getsockname()[1])
        self.target = Target(f"127.0.0.1:{self.port}", FolderStore(root / "models"))
        self.answers = self.failures = 0
        self.restarts: list[float] = []
        self._log = (root / "server.log").open("w")
        self._server: Any = None

    def start_server(self) -> None:
        flags = [f"--models_root={self.root / 'models'}", f"--port={self.port}", "--max_num_load_retries=0"]
        started = time.monotonic()
        self._server = subprocess.Popen([sys.executable, "-m", "serving", "serve", *flags], stdout=self._log, stderr=self._log)
        while self._server.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                break
            time.sleep(0.02)
        self.restarts.append(time.monotonic() - started)

    def stop_server(self) -> None:
        self._server.terminate()
        self._server.wait(60)
        self._log.close()

    def kill_pusher(self, source: Path, turn: int, step: str) -> str:
        """Kills it at one step while a client asks; returns what is wrong afterwards."""
        stop, seen = threading.Event(), set()

        def ask() -> None:
            with Client(self.target.address, model=NAME, version_label="stable", timeout_s=20, max_attempts=1) as client:
                while not stop.is_set():
                    try:
                        seen.add(number_of(client.predict(["one"])[0]))
                        self.answers += 1
                    except ServingError:
                        self.failures += 1

        asker = threading.Thread(target=ask)
        asker.start()
        process = self._pusher(source, step)
        process.wait(120)
        stop.set()
        asker.join()
        if process.returncode != -signal.SIGKILL:
            return f"the pusher was not killed but ended with {process.returncode}"
        if not seen <= {turn - 1, turn}:
            return f"versions {seen} answered"
        return self._finish(source, turn)

    def kill_server(self, source: Path, turn: int, chance: random.Random) -> str:
        """Kills it at a random moment of a push, starts it again; returns what is wrong afterwards."""
        process = self._pusher(source, "never")
        time.sleep(chance.uniform(0.0, 1.5))
        self._server.kill()
        self._server.wait()
        # Started again first: a pusher that waits for its version goes on asking for as long as loading may take.
        self.start_server()
        process.wait(700)
        return self._finish(source, turn)

    def _pusher(self, source: Path, step: str) -> Any:
        command = [sys.executable, __file__, "--pusher", str(source), self.target.address, str(self.root / "models"), step]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _finish(self, source: Path, turn: int) -> str:
        """The old or the new version answers; the same push finishes; then the new one does."""
        try:
            with Client(self.target.address, model=NAME, version_label="stable", timeout_s=20) as client:
                number = number_of(client.predict(["one"])[0])
                if number not in (turn - 1, turn):
                    return f"version {number} answers, neither the previous nor the new one"
                push(source, [self.target])
                number = number_of(client.predict(["one"])[0])
                return "" if number == turn else f"after the repeated push version {number} answers"
        except (ServingError, ValueError) as error:
            return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
