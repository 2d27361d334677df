"""The manifests of `deploy/k8s` are valid, fit each other, and keep the promises that their comments make."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import numpy as np
import pytest
import yaml

from serving import wire
from serving.client import Client
from serving.errors import ConfigError
from serving.push import default_client
from serving.server import configs
from serving.server.app import running
from serving.server.flags import FIELDS, parse
from tests.contract import saved_models
from tests.contract.conftest import free_port, write

DEPLOY = Path(__file__).parents[1] / "deploy"
K8S = DEPLOY / "k8s"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text(encoding="utf-8"))
# Not a manifest: values of a chart.
MANIFESTS = sorted(file for file in K8S.glob("*.yaml") if file.name != "prometheus-adapter.yaml")
# The oldest that still gets fixes from some vendor, and the newest known to the validator.
VERSIONS = ("1.30", "1.37")


def _documents(file: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(file.read_text(encoding="utf-8")) if one]


def _the(kind: str, name: str = "serving") -> dict[str, Any]:
    (found,) = (one for file in MANIFESTS for one in _documents(file) if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


POD = _the("Deployment")["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
LABELS = POD["metadata"]["labels"]
PORTS = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_a_manifest_is_valid(file: Path, version: str) -> None:
    for document in _documents(file):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_validator_notices_a_wrong_field() -> None:
    document = _the("Deployment") | {"spec": _the("Deployment")["spec"] | {"replcas": 2}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replcas"):
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


def test_kustomize_has_every_manifest_but_what_is_started_by_hand() -> None:
    assert sorted(KUSTOMIZATION["resources"]) == [
        f"k8s/{file.name}" for file in MANIFESTS if file.stem not in ("pusher", "search", "train")
    ]


@pytest.mark.skipif(
    not shutil.which("kubectl"), reason="kubectl is missing: it renders kustomization.yaml; see kubernetes.io/docs/tasks/tools"
)
def test_kubectl_renders_it() -> None:
    done = subprocess.run(["kubectl", "kustomize", str(DEPLOY)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    rendered = list(yaml.safe_load_all(done.stdout))
    for document in rendered:
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
    (config,) = (one for one in rendered if one["kind"] == "ConfigMap")
    (deployment,) = (one for one in rendered if one["kind"] == "Deployment")
    volumes = {one["name"]: one for one in deployment["spec"]["template"]["spec"]["volumes"]}
    assert volumes["config"]["configMap"]["name"] == config["metadata"]["name"] != "serving"  # its hash: a changed file rolls the pods
    assert {one["metadata"]["namespace"] for one in rendered if one["kind"] != "Namespace"} == {"serving"}


def test_the_pod_starts_and_asks_with_the_files_of_its_config() -> None:
    (generator,) = KUSTOMIZATION["configMapGenerator"]
    assert all((DEPLOY / file).is_file() for file in generator["files"])
    volumes = {one["name"]: one for one in POD["spec"]["volumes"]}
    assert volumes["config"]["configMap"]["name"] == generator["name"]
    mounts = {one["name"]: one for one in CONTAINER["volumeMounts"]}
    assert set(mounts) == set(volumes)
    assert mounts["config"]["mountPath"] == "/config"
    named = re.findall(r"/config/([\w.]+)", json.dumps(CONTAINER))
    needed = re.findall(r"\$config/([\w.]+)", (DEPLOY / "serve.sh").read_text(encoding="utf-8"))
    assert {*named, *needed} == set(generator["files"])


def test_the_further_flags_are_ones_of_the_real_server() -> None:
    shell, script, *flags = CONTAINER["command"]
    assert (shell, script) == ("/bin/sh", "/config/serve.sh")
    parsed, ignored = parse(["--model_base_path=/models/bank", *flags])
    assert not ignored
    assert not any(str(FIELDS[flag.split("=")[0].removeprefix("--")].metadata["meaning"]).startswith("(ours)") for flag in flags)
    assert "grpc.max_connection_age_ms" in parsed.grpc_channel_arguments


def test_the_same_server_as_in_the_compose_file() -> None:
    compose = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    assert CONTAINER["image"] == re.sub(r"\$\{\w+:-(.*)\}", r"\1", re.findall(r"image: (tensorflow/serving:\S+)", compose)[0])


def test_readiness_asks_the_models_and_liveness_does_not() -> None:
    assert CONTAINER["readinessProbe"]["exec"]["command"][:2] == ["/bin/bash", "/config/ready.sh"]
    assert len(CONTAINER["readinessProbe"]["exec"]["command"]) > 2  # at least one model: without one, ready.sh asks for none
    assert set(CONTAINER["livenessProbe"]) & {"exec", "httpGet"} == set()
    for probe in ("startupProbe", "livenessProbe"):
        assert PORTS[CONTAINER[probe]["tcpSocket"]["port"]] == 8500


def test_a_pod_ends_only_after_it_has_left_the_services() -> None:
    slept = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    assert 15 <= slept < POD["spec"]["terminationGracePeriodSeconds"]
    rolling = _the("Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert (rolling["maxUnavailable"], rolling["maxSurge"]) == (0, 1)


@pytest.mark.parametrize("pod", [POD["spec"], _the("Pod", "pusher")["spec"]], ids=["server", "pusher"])
def test_a_pod_gets_as_little_as_a_pod_can_have(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    assert re.search(r":[\w.]+$", container["image"])


def test_memory_is_promised_and_processors_are_not_throttled() -> None:
    resources = CONTAINER["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert "cpu" not in resources["limits"]


def test_only_a_push_may_write_the_models() -> None:
    assert next(one for one in CONTAINER["volumeMounts"] if one["name"] == "models")["readOnly"] is True
    pusher = _the("Pod", "pusher")["spec"]
    assert not next(one for one in pusher["containers"][0]["volumeMounts"] if one["name"] == "models").get("readOnly")
    assert _the("PersistentVolumeClaim", "models")["spec"]["accessModes"] == ["ReadWriteMany"]
    assert pusher["securityContext"]["runAsUser"] == POD["spec"]["securityContext"]["runAsUser"]  # the server can read what it writes


def test_everything_selects_the_pods() -> None:
    selectors = [
        _the("Deployment")["spec"]["selector"]["matchLabels"],
        _the("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        _the("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(_the("Service", name)["spec"]["selector"] for name in ("serving", "serving-rest", "serving-push")),
        *(one["labelSelector"]["matchLabels"] for one in POD["spec"]["topologySpreadConstraints"]),
    ]
    assert all(selector == LABELS for selector in selectors)
    assert _the("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "serving"}
    # The job `serving` of Prometheus finds them by the same label, and by the port's name.
    found = yaml.safe_load((DEPLOY / "prometheus/kubernetes.yml").read_text(encoding="utf-8"))["scrape_configs"][0]["relabel_configs"]
    assert [one["regex"] for one in found if one.get("action") == "keep"] == [LABELS["app.kubernetes.io/name"], "rest"]
    assert "rest" in PORTS


@pytest.mark.parametrize(
    ("name", "headless", "not_ready_too", "port"),
    [("serving", True, False, 8500), ("serving-rest", False, False, 8501), ("serving-push", True, True, 8500)],
)
def test_a_service_leads_to_the_right_port(name: str, headless: bool, not_ready_too: bool, port: int) -> None:
    spec = _the("Service", name)["spec"]
    assert (spec.get("clusterIP") == "None") is headless
    assert spec.get("publishNotReadyAddresses", False) is not_ready_too
    (only,) = spec["ports"]
    assert (only["port"], PORTS[only["targetPort"]]) == (port, port)


def test_only_who_is_let_in_reaches_grpc_and_nothing_leaves() -> None:
    spec = _the("NetworkPolicy")["spec"]
    assert (spec["policyTypes"], spec["egress"]) == (["Ingress", "Egress"], [])
    for rule in spec["ingress"]:
        ports = {port["port"] for port in rule["ports"]}
        for source in rule["from"]:
            assert source["podSelector"]["matchLabels"], "an empty selector lets everybody in"
            if 8500 in ports:
                assert source["podSelector"]["matchLabels"] == {"serving-access": "grpc"}
    assert _the("Pod", "pusher")["metadata"]["labels"]["serving-access"] == "grpc"


def test_the_autoscaler_asks_for_what_the_adapter_offers() -> None:
    spec = _the("HorizontalPodAutoscaler")["spec"]
    (metric,) = spec["metrics"]
    (rule,) = yaml.safe_load((K8S / "prometheus-adapter.yaml").read_text(encoding="utf-8"))["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert 2 <= spec["minReplicas"] < spec["maxReplicas"]
    assert "replicas" not in _the("Deployment")["spec"]  # or every `apply` would undo what the autoscaler did


# ---- pushing


@pytest.mark.parametrize("address", ["dns:///serving-push.serving:8500", "a:8500,b:8500"])
def test_a_push_to_a_name_for_many_pods_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=re.escape("each has to be told. Give --target once for each")):
        default_client(address)


def test_the_pusher_image_copies_what_the_package_needs() -> None:
    root = DEPLOY.parent
    lines = (DEPLOY / "pusher.Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1] if not word.startswith("--")]
    assert all((root / word).exists() for word in copied)
    # What is installed there is the base: the client and the push work without TensorFlow.
    code = "import sys; sys.modules['tensorflow'] = None; import serving.push, serving.client, serving.cli"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=root)


def _pods(folder: Path, addresses: str, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """pods.sh with a name service that knows these addresses."""
    lines = "".join(f"{address} STREAM\\n" for address in addresses.split())
    getent = write(folder / "getent", f"#!/bin/sh\nprintf '{lines}'\n")
    getent.chmod(0o755)
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["/bin/sh", str(DEPLOY / "pods.sh"), *command], env={**os.environ, "PATH": path, **environment}, capture_output=True, text=True,
        timeout=120, check=False, cwd=DEPLOY.parent,
    )  # fmt: skip


def test_one_command_reaches_every_pod_and_a_new_pod_begins_with_the_same(tmp_path: Path) -> None:
    saved_models.half_plus(tmp_path / "incoming" / "bank" / "20260101000000")
    (tmp_path / "models").mkdir()
    port = free_port()
    addresses = ("127.0.0.2", "127.0.0.3")
    flags = [f"--model_config_file={DEPLOY / 'models.config'}", "--file_system_poll_wait_seconds=0.05"]
    with contextlib.ExitStack() as pods:
        for address in addresses:
            pods.enter_context(running(parse([f"--host={address}", f"--port={port}", *flags])[0]))
        done = _pods(
            tmp_path, " ".join([*addresses, addresses[0]]), "push", str(tmp_path / "incoming" / "bank" / "20260101000000"), "--name", "bank", "--force", "a test",
            PORT=str(port), MODELS=str(tmp_path / "models"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        for address in addresses:
            with Client(f"{address}:{port}", model="bank", version_label="stable") as client:
                assert client.predict_tensors({"x": np.array([2.0], np.float32)}).outputs["y"].tolist() == [3.0]
    left = configs.models_of(configs.read_text(str(tmp_path / "models" / "models.config"), wire.ModelServerConfig))
    assert set(left) == {"bank"}


@pytest.mark.parametrize(
    ("addresses", "command", "code", "message"),
    [
        ("", ("status",), 4, "serving-push has no address"),
        ("10.0.0.1", (), 2, "expected a command of python -m serving"),
        ("fd00::1", ("status", "--timeout=no"), 2, "unrecognized arguments"),
    ],
)
def test_pods_says_what_it_needs(tmp_path: Path, addresses: str, command: tuple[str, ...], code: int, message: str) -> None:
    done = _pods(tmp_path, addresses, *command)
    assert done.returncode == code
    assert message in done.stderr
