"""The job of a search on several machines is valid, and its pods become a chief and workers that find each other."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import write
from tests.test_deploy_jobs import JOBS
from tfpipeline.search import command, tuner

BY_KIND = JOBS["search"]
JOB = BY_KIND["Job"]["spec"]
POD = JOB["template"]["spec"]
(CONTAINER,) = POD["containers"]


def test_every_pod_runs_at_the_same_time_and_has_a_name_of_its_own() -> None:
    assert JOB["completionMode"] == "Indexed"
    assert JOB["completions"] == JOB["parallelism"] >= 2  # a chief without workers waits for ever


def _environment(folder: Path, index: int) -> dict[str, str]:
    """What the container's command gives to Python, with a stand-in that says so."""
    stand_in = write(folder / "python", '#!/bin/sh\nenv | grep ^KERASTUNER_; printf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    given = {one["name"]: one["value"] for one in CONTAINER["env"]}
    done = subprocess.run(
        [*CONTAINER["command"], *CONTAINER["args"]],
        env={**given, "PATH": f"{folder}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": str(index)}, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[-len(CONTAINER["args"]) - 3 :] == ["-m", "tfpipeline", "search", *CONTAINER["args"]]
    return dict(line.split("=", 1) for line in lines if line.startswith("KERASTUNER_"))


@pytest.mark.parametrize(("index", "role"), [(0, "chief"), (1, "worker"), (3, "worker")])
def test_the_index_makes_the_role(index: int, role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _environment(tmp_path, index).items():
        monkeypatch.setenv(name, value)
    assert tuner.role() == role


def test_workers_find_the_chief(tmp_path: Path) -> None:
    worker, other, chief = _environment(tmp_path, 1), _environment(tmp_path, 2), _environment(tmp_path, 0)
    assert worker["KERASTUNER_TUNER_ID"] != other["KERASTUNER_TUNER_ID"]
    service = BY_KIND["Service"]
    # The pods of an indexed job are called JOB-INDEX; with the subdomain, JOB-INDEX.SERVICE.
    assert worker["KERASTUNER_ORACLE_IP"] == f"{BY_KIND['Job']['metadata']['name']}-0.{service['metadata']['name']}"
    assert POD["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert (
        service["spec"]["selector"]
        == BY_KIND["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
        == {"job-name": BY_KIND["Job"]["metadata"]["name"]}
    )
    assert chief["KERASTUNER_ORACLE_IP"] == "0.0.0.0"
    ports = {
        chief["KERASTUNER_ORACLE_PORT"],
        worker["KERASTUNER_ORACLE_PORT"],
        str(CONTAINER["ports"][0]["containerPort"]),
        str(service["spec"]["ports"][0]["port"]),
    }
    assert ports == {"8000"}
    assert BY_KIND["NetworkPolicy"]["spec"]["ingress"][0]["ports"] == [{"port": 8000}]


def test_its_flags_are_ones_of_the_command() -> None:
    def added(name: str, run: Any, summary: str, example: str) -> argparse.ArgumentParser:
        parser.description = f"{name} {summary} {example}"
        parser.add_argument("--runs", type=Path)
        return parser

    parser = argparse.ArgumentParser()
    command.add(added)
    options = parser.parse_args(CONTAINER["args"])
    assert options.runs == Path("/runs")
