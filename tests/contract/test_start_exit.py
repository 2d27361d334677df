"""From the start of the process to its end: what is loaded before anybody can connect, what ends the start, and how SIGTERM drains."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.contract import saved_models
from tests.contract.conftest import Client, Served, config, free_port, process, started, until, write

Start = Callable[..., "tuple[int, str]"]


def _connects(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


# ---- what ends the start


def test_a_model_whose_first_version_fails(start: Start, tmp_path: Path) -> None:
    version = saved_models.corrupt(tmp_path / "m" / "123")
    status, stdout = start(f"--model_base_path={tmp_path / 'm'}")
    assert status == 255
    assert stdout == (
        "Failed to start server. Error: UNKNOWN: 1 servable(s) did not become available: {{{name: default version: 123} due to error: "
        f"DATA_LOSS: Can't parse {version / 'saved_model.pb'} as binary proto}}, }}\n"
    )


def test_one_of_two_models_fails(start: Start, tmp_path: Path, plus_one: Path) -> None:
    saved_models.corrupt(tmp_path / "bad" / "7")
    status, stdout = start(f"--model_config_file={write(tmp_path / 'config', config(good=plus_one, bad=tmp_path / 'bad'))}")
    assert status == 255
    assert "1 servable(s) did not become available: {{{name: bad version: 7} due to error: DATA_LOSS: " in stdout


def test_only_after_the_retries(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved_models.corrupt(tmp_path / "m" / "1")
    flags = (f"--model_base_path={tmp_path / 'm'}", "--max_num_load_retries=2", "--load_retry_interval_micros=1000")
    assert start(*flags)[0] == 255
    assert len(re.findall(r"attempt \d failed", caplog.text)) == 3


@pytest.mark.parametrize("broken", [1, 2])
def test_difference_a_start_goes_well_when_one_of_a_models_versions_does(tmp_path: Path, broken: int) -> None:
    """The real server ends when the first one that it tried has failed, which is the newest."""
    saved_models.corrupt(tmp_path / "m" / str(broken))
    good = 3 - broken
    saved_models.plus(tmp_path / "m" / str(good), good)
    file = write(tmp_path / "config", config(m=(tmp_path / "m", "model_version_policy { all {} }")))
    with started(f"--model_config_file={file}") as served:
        until(lambda: served.client.states("m") == {good: "AVAILABLE", broken: "END"}, "one answers, the other has failed")


def test_all_versions_of_a_model_fail(start: Start, tmp_path: Path) -> None:
    for version in (1, 2):
        saved_models.corrupt(tmp_path / "m" / str(version))
    status, stdout = start(
        f"--model_config_file={write(tmp_path / 'config', config(m=(tmp_path / 'm', 'model_version_policy { all {} }')))}"
    )
    assert status == 255
    assert "1 servable(s) did not become available: {{{name: m version: 2} due to error: DATA_LOSS: " in stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--model_base_path=models/m"],
            "INVALID_ARGUMENT: Expected model default to have an absolute path or URI; got base_path()=models/m",
        ),
        (
            ["--model_name=m", "--model_base_path=./m"],
            "INVALID_ARGUMENT: Expected model m to have an absolute path or URI; got base_path()=./m",
        ),
        (["--model_config_file=/no/such/file"], "NOT_FOUND: /no/such/file; No such file or directory"),
        (["--model_base_path=/m", "--ssl_config_file=/no/such/file"], "NOT_FOUND: /no/such/file; No such file or directory"),
        (["--model_base_path=/m", "--monitoring_config_file=/no/such/file"], "NOT_FOUND: /no/such/file; No such file or directory"),
        (
            ["--model_base_path=/m", "--enable_batching", "--batching_parameters_file=/no/such/file"],
            "NOT_FOUND: /no/such/file; No such file or directory",
        ),
    ],
    ids=["relative", "relative with a name", "no config", "no ssl", "no monitoring", "no batching"],
)
def test_a_start_that_fails_says_why_on_stdout(start: Start, flags: list[str], message: str) -> None:
    assert start(*flags) == (255, f"Failed to start server. Error: {message}\n")


def test_a_port_that_is_taken(start: Start, plus_one: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        status, stdout = start(f"--model_base_path={plus_one}", f"--port={port}")
        assert status == 255
        assert stdout.startswith(f"Failed to start server. Error: UNKNOWN: cannot listen on 127.0.0.1:{port}")
        status, stdout = start(f"--model_base_path={plus_one}", f"--rest_api_port={port}")
        assert status == 255
        assert stdout.startswith(f"Failed to start server. Error: UNKNOWN: cannot listen on 127.0.0.1:{port}")


@pytest.mark.parametrize("exists", [False, True], ids=["a missing base path", "an empty base path"])
def test_sigterm_ends_a_start_that_waits(start: Start, tmp_path: Path, exists: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Neither is an error: the server waits for a version, with its ports closed, until it is told to stop."""
    if exists:
        (tmp_path / "m").mkdir()
    port = free_port()
    connected: list[bool] = []

    def end() -> None:
        until(lambda: "Waiting for" in caplog.text, "it waits")
        connected.append(_connects(port))
        os.kill(os.getpid(), signal.SIGTERM)

    ending = threading.Thread(target=end)
    ending.start()
    assert start(f"--model_base_path={tmp_path / 'm'}", f"--port={port}") == (0, "")
    ending.join()
    assert connected == [False]


# ---- ports


def test_models_are_loaded_before_any_port_opens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """For every model: one waits for its folder while the other is loaded already."""
    saved_models.plus(tmp_path / "there" / "1", 1)
    ports = free_port(), free_port()
    file = write(tmp_path / "config", config(there=tmp_path / "there", late=tmp_path / "late"))
    seen: list[tuple[bool, bool]] = []

    def publish() -> None:
        until(lambda: "Waiting for it" in caplog.text and "model there version 1: loaded" in caplog.text, "one waits, the other is loaded")
        seen.append((_connects(ports[0]), _connects(ports[1])))
        saved_models.plus(tmp_path / "late" / "tmp", 1)
        (tmp_path / "late" / "tmp").rename(tmp_path / "late" / "1")

    publishing = threading.Thread(target=publish)
    publishing.start()
    with (
        caplog.at_level(logging.INFO),
        started(f"--model_config_file={file}", f"--port={ports[0]}", f"--rest_api_port={ports[1]}") as served,
    ):
        assert seen == [(False, False)]
        assert served.client.states("there") == served.client.states("late") == {1: "AVAILABLE"}
        assert _connects(ports[1])
    publishing.join()


def test_difference_it_listens_on_loopback_unless_told_otherwise(plus_one: Path) -> None:
    with started(f"--model_base_path={plus_one}", rest=True) as served:
        for kernel_port in (served.running.grpc, served.running.rest):
            assert _listens(kernel_port) == {"127.0.0.1"}
    with started(f"--model_base_path={plus_one}", "--host=0.0.0.0", rest=True) as served:
        for kernel_port in (served.running.grpc, served.running.rest):
            assert _listens(kernel_port) & {"0.0.0.0", "::"}


def _listens(port: int) -> set[str]:
    """Addresses that sockets in the state LISTEN are bound to, from the kernel's tables."""
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        path = Path("/proc/net") / table
        if not path.exists():
            pytest.skip("needs /proc/net to see what a socket is bound to")
        for line in path.read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port:
                words = [bytes.fromhex(address[start : start + 8])[::-1] for start in range(0, len(address), 8)]
                found.add(socket.inet_ntop(family, b"".join(words)).removeprefix("::ffff:"))
    return found


# ---- a process of its own


@dataclass
class Life:
    """What was seen of one server's life."""

    refused_before: tuple[bool, bool] = (False, False)
    answers: list[Any] = field(default_factory=list)
    still_running_when_refused: bool = False
    status: int = -1
    stdout: str = ""
    stderr: str = ""


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    """A server that waits for its model's folder, serves, and gets SIGTERM while one gRPC and one REST request run."""
    root = tmp_path_factory.mktemp("life")
    ports = free_port(), free_port()
    flags = (
        *(f"--port={ports[0]}", f"--rest_api_port={ports[1]}", "--model_name=slow", f"--model_base_path={root / 'slow'}"),
        f"--monitoring_config_file={write(root / 'monitoring.config', 'prometheus_config { enable: true }')}",
        "--drain_seconds=60",
    )
    seen = Life()
    with process(*flags) as child:
        lines: list[str] = []
        reading = threading.Thread(target=lambda: lines.extend(child.stderr or []))
        reading.start()
        until(lambda: any("Waiting for it" in line for line in lines), "it waits", 60)
        seen.refused_before = not _connects(ports[0]), not _connects(ports[1])
        saved_models.slow(root / "tmp")
        (root / "slow").mkdir()
        (root / "tmp").rename(root / "slow" / "1")
        until(lambda: _connects(ports[0]) and _connects(ports[1]), "it listens")
        _end_while_two_requests_run(child, ports, lines, seen)
        seen.status = child.wait(60)
        reading.join()
        seen.stdout, seen.stderr = (child.stdout.read() if child.stdout else ""), "".join(lines)
    return seen


def _end_while_two_requests_run(child: subprocess.Popen[str], ports: tuple[int, int], lines: list[str], seen: Life) -> None:
    rest = http.client.HTTPConnection("127.0.0.1", ports[1], timeout=60)
    with Client(f"localhost:{ports[0]}") as client, contextlib.closing(rest):
        served = Served(client, "", f"http://127.0.0.1:{ports[1]}")
        rest.request("POST", "/v1/models/slow:predict", '{"instances": [1000000]}')
        # Answered after the request before it was read.
        assert served.http("/readyz")[0] == 200
        running = threading.Thread(target=lambda: seen.answers.append(client.values("slow", {"x": np.int32([1_000_000])}, timeout_s=60)))
        running.start()
        until(lambda: "serving_requests_in_flight 1" in served.http("/monitoring/prometheus/metrics")[1], "both run")
        child.send_signal(signal.SIGTERM)
        until(lambda: any("Stopping" in line for line in lines), "it stops")
        with Client(f"localhost:{ports[0]}") as new:
            until(lambda: _code(new) == "UNAVAILABLE", "gRPC refuses new requests")
        until(lambda: not _connects(ports[1]), "REST refuses new requests")
        seen.still_running_when_refused = not seen.answers
        answer = rest.getresponse()
        seen.answers.append((answer.status, answer.read().decode()))
        running.join()


def _code(client: Client) -> str:
    try:
        client.status("slow")
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def test_no_port_is_open_before_a_model_is_there(life: Life) -> None:
    assert life.refused_before == (True, True)


def test_it_says_once_that_it_waits(life: Life) -> None:
    assert life.stderr.count("Waiting for it") == 1


def test_grpc_opens_before_rest(life: Life) -> None:
    assert 0 < life.stderr.index("Running gRPC ModelServer at 127.0.0.1:") < life.stderr.index("Exporting HTTP/REST API at: 127.0.0.1:")


def test_difference_running_requests_finish_after_sigterm(life: Life) -> None:
    assert sorted(life.answers, key=str) == [(200, '{\n    "predictions": [1000000\n    ]\n}'), [1_000_000]]


def test_difference_new_requests_are_refused_meanwhile(life: Life) -> None:
    assert life.still_running_when_refused


def test_difference_a_drained_server_exits_with_zero(life: Life) -> None:
    assert (life.status, life.stdout) == (0, "")
    assert "Traceback" not in life.stderr


def test_a_bad_config_file_ends_the_process(tmp_path: Path) -> None:
    """Its own clients look for libprotobuf's message on stderr, and for the exit status."""
    file = write(tmp_path / "bad.config", "improper model config")
    with process(f"--port={free_port()}", f"--model_config_file={file}") as child:
        stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 255
    assert stdout == f"Failed to start server. Error: INVALID_ARGUMENT: Invalid protobuf file: '{file}'\n"
    found = re.search(r"Error parsing text-format tensorflow\.serving\.ModelServerConfig: (\d+):(\d+): (.*)", stderr)
    assert found
    assert found[3].startswith('Message type "tensorflow.serving.ModelServerConfig" has no field named "improper"')


def test_a_drain_does_not_last_for_ever(tmp_path: Path) -> None:
    saved_models.slow(tmp_path / "slow" / "1")
    codes: list[str] = []
    with started("--model_name=slow", f"--model_base_path={tmp_path / 'slow'}", "--drain_seconds=0.2", "--max_request_seconds=3") as served:

        def ask() -> None:
            try:
                served.client.predict("slow", {"x": np.int32([2_000_000_000])})
            except grpc.RpcError as error:
                codes.append(error.code().name)

        asking = threading.Thread(target=ask)
        asking.start()
        until(lambda: served.users("slow", 1), "it runs")
        begun = time.monotonic()
    asking.join()
    assert codes in (["CANCELLED"], ["UNAVAILABLE"], ["DEADLINE_EXCEEDED"])
    assert time.monotonic() - begun < 10
