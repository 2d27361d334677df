"""The job of a training on several machines is valid, and its pods become workers that find each other, and come back to the run they had."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.contract.conftest import write
from tests.test_deploy_jobs import JOBS
from tfpipeline import cli, workers
from tfpipeline.errors import ConfigError, GateError

BY_KIND = JOBS["train"]
JOB = BY_KIND["Job"]["spec"]
POD = JOB["template"]["spec"]
(CONTAINER,) = POD["containers"]
GIVEN = {one["name"]: one["value"] for one in CONTAINER["env"]}


def test_every_pod_runs_at_the_same_time() -> None:
    assert JOB["completionMode"] == "Indexed"
    assert JOB["completions"] == JOB["parallelism"] == int(GIVEN["WORKERS"]) >= 2


def _called(folder: Path, index: int, **changed: str) -> tuple[list[str], dict[str, str]]:
    """The arguments and the environment that the container's command gives to Python, with a stand-in that says so."""
    folder.mkdir(exist_ok=True)
    stand_in = write(folder / "python", '#!/bin/sh\nprintf "%s\\n" "$TF_CONFIG" "$@"\n')
    stand_in.chmod(0o755)
    environment = {
        **GIVEN,
        "RUNS": str(folder / "runs"),
        "PATH": f"{folder}:{os.environ['PATH']}",
        "JOB_COMPLETION_INDEX": str(index),
        **changed,
    }
    done = subprocess.run(
        [*CONTAINER["command"], *CONTAINER["args"]], env=environment, capture_output=True, text=True, timeout=30, check=True
    )  # fmt: skip
    found, *arguments = done.stdout.splitlines()
    assert arguments[:3] == ["-m", "tfpipeline", "train"]
    return arguments[2:], {"TF_CONFIG": found}


def test_the_index_makes_the_worker(tmp_path: Path) -> None:
    clusters = [workers.read_cluster(_called(tmp_path, index)[1]) for index in range(JOB["completions"])]
    assert [cluster.index for cluster in clusters] == list(range(JOB["completions"]))
    (addresses,) = {cluster.addresses for cluster in clusters}
    job, service = BY_KIND["Job"]["metadata"]["name"], BY_KIND["Service"]
    # The pods of an indexed job are called JOB-INDEX; with the subdomain, JOB-INDEX.SERVICE.
    assert addresses == tuple(f"{job}-{index}.{service['metadata']['name']}:2222" for index in range(JOB["completions"]))
    assert workers.read_cluster(_called(tmp_path, 8, WORKERS="64")[1]).addresses[63] == "train-63.train:2222"


def test_an_index_beyond_the_workers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`task.index` is 4"):
        workers.read_cluster(_called(tmp_path, 4)[1])


def test_the_names_and_the_port_are_ones_of_the_service() -> None:
    service, job = BY_KIND["Service"], BY_KIND["Job"]["metadata"]["name"]
    assert POD["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    selectors = [
        service["spec"]["selector"],
        BY_KIND["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        BY_KIND["NetworkPolicy"]["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"],
        POD["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ]
    assert selectors == [{"job-name": job}] * 4
    assert BY_KIND["NetworkPolicy"]["spec"]["ingress"][0]["ports"] == [{"port": 2222}]
    assert [CONTAINER["ports"][0]["containerPort"], service["spec"]["ports"][0]["port"]] == [2222, 2222]


def test_a_pod_that_comes_back_goes_on_with_the_run(tmp_path: Path) -> None:
    """Only the chief says so: the others are told by it which run it is."""
    first, _ = _called(tmp_path, 0)
    assert first == ["train", "--runs", str(tmp_path / "runs"), *CONTAINER["args"]]
    (tmp_path / "runs" / "20260101-000000-sst2").mkdir(parents=True)
    write(tmp_path / "runs" / "20260101-000000-sst2" / "run.json", "{}")
    (tmp_path / "runs" / "latest").symlink_to("20260101-000000-sst2")
    assert _called(tmp_path, 0)[0] == ["train", "--runs", str(tmp_path / "runs"), "--resume", "latest"]
    assert _called(tmp_path, 1)[0] == first


def test_its_flags_make_a_training_of_several_workers() -> None:
    options = cli._parser().parse_args(["train", "--runs", GIVEN["RUNS"], *CONTAINER["args"]])
    assert cli._load_config(options).runtime.strategy == "multiworker"


def test_mistakes_end_the_job_and_lost_workers_do_not() -> None:
    (codes,) = (rule["onExitCodes"] for rule in JOB["podFailurePolicy"]["rules"] if rule["action"] == "FailJob")
    assert codes["operator"] == "In"
    assert codes["containerName"] == CONTAINER["name"]
    assert codes["values"] == [ConfigError.exit_code, GateError.exit_code]
    assert workers.WorkerLost.exit_code not in codes["values"]
    assert POD["restartPolicy"] == "Never"  # what podFailurePolicy needs; the job makes a new pod


def test_run_and_models_lie_on_the_volume_that_all_workers_see() -> None:
    for place in (GIVEN["RUNS"], GIVEN["HF_HOME"]):
        assert place.startswith("/volume/")
