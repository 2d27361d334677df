"""The files of `deploy/` are ones that the servers really take."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import compose_spec
import grpc
import pytest
import yaml

from serving import wire
from serving.monitor.verdict import EXIT_CODES
from serving.server import configs
from serving.server.flags import FIELDS, parse
from tests.contract import saved_models
from tests.contract.conftest import Served, config, started, until, write

DEPLOY = Path(__file__).parents[1] / "deploy"
OURS = {name for name, field in FIELDS.items() if str(field.metadata["meaning"]).startswith("(ours)")}
STABLE = 'version_labels { key: "stable" value: 1 }'


def _compose() -> dict[str, Any]:
    """The compose file as `docker compose` sees it when nothing is set."""
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)))


@pytest.fixture
def start_script(tmp_path: Path) -> Callable[..., list[str]]:
    """Runs serve.sh with a server that only prints its arguments; gives them."""
    server = write(tmp_path / "tensorflow_model_server", "#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    server.chmod(0o755)

    def run(*arguments: str) -> list[str]:
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CONFIG": str(DEPLOY), "MODELS": str(tmp_path / "models")}
        command = ["/bin/sh", str(DEPLOY / "serve.sh"), *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout.split()

    return run


def test_the_models_file_is_an_empty_list_that_a_server_starts_with() -> None:
    config = configs.read_text(str(DEPLOY / "models.config"), wire.ModelServerConfig)
    assert config.WhichOneof("config") == "model_config_list"
    assert configs.models_of(config) == {}


def test_the_batching_file_bounds_the_queue_and_makes_nobody_wait() -> None:
    batching = configs.read_batching(str(DEPLOY / "batching.config"), threads=3)
    assert (batching.max_batch_size, batching.timeout_s, batching.max_enqueued_batches, batching.threads) == (64, 0.0, 32, 3)


def test_the_monitoring_file_turns_the_metrics_on() -> None:
    assert configs.read_monitoring(str(DEPLOY / "monitoring.config")) == configs.DEFAULT_METRICS_PATH


def test_the_example_of_tls_parses() -> None:
    tls = configs.read_tls(str(DEPLOY / "ssl.config.example"))
    assert tls.verify_client
    assert tls.key.startswith(b"-----BEGIN PRIVATE KEY-----\n")


# ---- how the server is started


def test_the_start_script_uses_only_flags_of_the_real_server(start_script: Callable[..., list[str]]) -> None:
    names = {flag.split("=")[0].removeprefix("--") for flag in start_script()}
    assert names <= set(FIELDS) - OURS
    assert {"port", "model_config_file", "allow_version_labels_for_unavailable_models", "batching_parameters_file"} <= names


def test_the_embedded_server_takes_the_same_command_line(start_script: Callable[..., list[str]]) -> None:
    flags, ignored = parse(start_script("--grpc_max_threads=9"))
    assert (flags.port, flags.rest_api_port, flags.enable_batching, flags.grpc_max_threads, ignored) == (8500, 8501, True, 9, [])
    for file in (flags.model_config_file, flags.batching_parameters_file, flags.monitoring_config_file):
        assert Path(file).is_file(), file


@pytest.mark.parametrize(("left", "expected"), [("model_config_list {}", "models"), ("", "config"), (None, "config")])
def test_a_server_begins_with_what_the_last_push_left(
    start_script: Callable[..., list[str]], tmp_path: Path, left: str | None, expected: str
) -> None:
    (tmp_path / "models").mkdir()
    if left is not None:
        write(tmp_path / "models" / "models.config", left)
    folder = {"models": tmp_path / "models", "config": DEPLOY}[expected]
    assert f"--model_config_file={folder}/models.config" in start_script()


# ---- whether it is ready


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A server with one model, whose version 1 is labelled stable."""
    saved_models.half_plus(tmp_path / "bank" / "1")
    file = write(tmp_path / "models.config", config(bank=(tmp_path / "bank", STABLE)))
    with started(f"--model_config_file={file}", "--allow_version_labels_for_unavailable_models", rest=True) as server:
        yield server


def _ready(served: Served, *wanted: str) -> tuple[int, str]:
    environment = {"PATH": os.environ["PATH"], "PORT": served.rest.rpartition(":")[2]}
    command = ["/bin/bash", str(DEPLOY / "ready.sh"), *wanted]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert not done.stderr
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ((), ""),
        (("bank",), ""),
        (("bank:stable",), ""),
        (("bank", "bank:stable"), ""),
        (("bank:canary",), "bank: label canary points to no version that answers"),
        (("bnak",), "bnak: no version is AVAILABLE"),
        (("bank:stable", "bnak:stable"), "bnak: no version is AVAILABLE"),
    ],
)
def test_ready_means_that_every_model_named_answers(served: Served, wanted: tuple[str, ...], reason: str) -> None:
    assert _ready(served, *wanted) == (1 if reason else 0, reason)


def test_a_version_that_failed_is_not_ready_although_its_status_is_http_200(served: Served, tmp_path: Path) -> None:
    saved_models.corrupt(tmp_path / "broken" / "1")
    with pytest.raises(grpc.RpcError, match="did not become available"):
        served.client.reload(config(bank=(tmp_path / "bank", STABLE), broken=tmp_path / "broken"))
    until(lambda: served.client.states("broken") == {1: "END"}, "the broken version fails")
    assert served.http("/v1/models/broken")[0] == 200
    assert _ready(served, "broken") == (1, "broken: no version is AVAILABLE")
    assert _ready(served, "bank:stable") == (0, "")


def test_a_server_without_models_answers_and_has_none() -> None:
    with started(f"--model_config_file={DEPLOY / 'models.config'}", rest=True) as server:
        assert _ready(server) == (0, "")
        assert _ready(server, "bank")[0] == 1


def test_a_port_that_nobody_listens_on_is_not_ready() -> None:
    with started(f"--model_config_file={DEPLOY / 'models.config'}", rest=True) as server:
        pass
    code, reason = _ready(server)
    assert code == 1
    assert "no answer" in reason


# ---- the compose file


def test_the_compose_file_is_one_by_the_specification() -> None:
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(_compose()))
    with pytest.raises(ValueError, match="healthchek"):
        compose_spec.PyCompose.from_yaml("services: {a: {image: b, healthchek: {}}}")


def test_every_image_is_pinned_and_every_port_is_on_loopback() -> None:
    for name, service in _compose()["services"].items():
        assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+", service["image"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), (
            f"{name}: the gRPC port can replace models, and nothing here has a password to speak of: never publish it to the world"
        )


def test_every_service_has_a_healthcheck_and_a_limit_of_memory() -> None:
    for name, service in _compose()["services"].items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert "mem_limit" in service, name


def test_the_compose_file_mounts_what_it_and_its_files_name() -> None:
    services = _compose()["services"]
    mounted = {name: {one.split(":")[1]: one.split(":")[0] for one in service["volumes"]} for name, service in services.items()}
    for name, volumes in mounted.items():
        for path, source in volumes.items():
            assert source in ("../models", "prometheus", "grafana") or (DEPLOY / source).exists(), f"{name}: {path}"
    for name, service in services.items():
        text = yaml.safe_dump(service)
        for path in set(re.findall(r"/config/[\w./-]+", text)):
            assert any(path == inside or path.startswith(f"{inside}/") for inside in mounted[name]), f"{name}: {path}"
    script = (DEPLOY / "serve.sh").read_text(encoding="utf-8")
    assert {f"/config/{name}" for name in re.findall(r"\$config/([\w.]+)", script)} <= set(mounted["serving"])
    # Prometheus finds its rules and lists beside its own file.
    collected = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8"))
    lists = [file for job in collected["scrape_configs"] for found in job.get("file_sd_configs", []) for file in found["files"]]
    assert {f"/config/{name}" for name in [*collected["rule_files"], *lists]} <= set(mounted["prometheus"])


# ---- TLS


@pytest.mark.parametrize("with_ca", [True, False])
def test_pem_files_become_a_tls_file_that_only_its_owner_reads(tmp_path: Path, with_ca: bool) -> None:
    for name in ("server.key", "server.crt", "ca.crt"):
        (tmp_path / name).write_text(f"-----BEGIN {name}-----\nAA==\n-----END {name}-----\n")
    command = [
        sys.executable,
        str(DEPLOY / "make_ssl_config.py"),
        "--key",
        "server.key",
        "--certificate",
        "server.crt",
        "--output",
        "ssl.config",
    ]
    command += ["--client-ca", "ca.crt"] if with_ca else []
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    tls = configs.read_tls(str(tmp_path / "ssl.config"))
    assert tls.key == b"-----BEGIN server.key-----\nAA==\n-----END server.key-----\n"
    assert tls.verify_client is with_ca
    assert (tmp_path / "ssl.config").stat().st_mode & 0o777 == 0o600
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (again.returncode, again.stderr) == (2, "ssl.config: File exists\n")


def test_a_file_that_is_no_pem_is_refused(tmp_path: Path) -> None:
    (tmp_path / "server.key").write_text("secret")
    command = [
        sys.executable,
        str(DEPLOY / "make_ssl_config.py"),
        "--key",
        "server.key",
        "--certificate",
        "server.key",
        "--output",
        "ssl.config",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, "server.key: expected PEM text (-----BEGIN ...), which it has not.\n")
    assert not (tmp_path / "ssl.config").exists()


# ---- the drift metric


def _drift_metric(output: Path, text: str) -> tuple[int, str]:
    command = [sys.executable, str(DEPLOY / "drift_metric.py"), "--output", str(output)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(("level", "value"), [("ok", 0), ("warn", 1), ("alarm", 2), ("too_few", -1)])
def test_a_verdict_becomes_a_metric(tmp_path: Path, level: str, value: int) -> None:
    output = tmp_path / "serving_drift_bank.prom"
    assert _drift_metric(output, f'{{"model": "bank", "level": "{level}"}}') == (0, "")
    assert output.read_text(encoding="utf-8").splitlines()[1:] == [
        "# TYPE serving_drift_verdict gauge",
        f'serving_drift_verdict{{model="bank"}} {value}',
    ]
    assert [file.name for file in tmp_path.iterdir()] == [output.name]


def test_the_metric_knows_every_level_of_the_monitor() -> None:
    names = runpy.run_path(str(DEPLOY / "drift_metric.py"))["VALUES"]
    assert set(names) == set(EXIT_CODES)


@pytest.mark.parametrize("text", ["", "error: no journal", "[]", '{"model": "bank"}', '{"model": "bank", "level": "fine"}'])
def test_without_a_verdict_the_former_one_stays_and_grows_old(tmp_path: Path, text: str) -> None:
    output = write(tmp_path / "serving_drift_bank.prom", "serving_drift_verdict 2\n")
    code, said = _drift_metric(output, text)
    assert (code, output.read_text(encoding="utf-8")) == (2, "serving_drift_verdict 2\n")
    assert said.startswith("expected the JSON of `python -m serving monitor --json` on stdin: ")


def test_a_file_that_the_collector_would_not_read_is_refused(tmp_path: Path) -> None:
    assert _drift_metric(tmp_path / "drift.txt", "{}") == (
        2,
        f"{tmp_path / 'drift.txt'}: expected a name that ends in .prom: the collector reads no other.\n",
    )
