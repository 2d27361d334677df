"""What every job in deploy/k8s has to be: valid for the Kubernetes versions of today, all pods at once, and pods that may do as little as a pod can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "deploy" / "k8s"
JOBS: dict[str, dict[str, dict[str, Any]]] = {
    name: {document["kind"]: document for document in yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))}
    for name in ("search", "train")
}


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in JOBS.items() for kind in sorted(kinds)])
def test_it_is_valid(name: str, kind: str, version: str) -> None:
    kubernetes_validate.validate(JOBS[name][kind], version, strict=True)


@pytest.mark.parametrize(("name", "wrong"), [("search", "completionMod"), ("train", "parallelsm")])
def test_the_validator_notices_a_wrong_field(name: str, wrong: str) -> None:
    job = JOBS[name]["Job"]
    with pytest.raises(kubernetes_validate.ValidationError, match=wrong):
        kubernetes_validate.validate(job | {"spec": job["spec"] | {wrong: 4}}, "1.37", strict=True)


@pytest.mark.parametrize("name", JOBS)
def test_a_pod_gets_as_little_as_a_pod_can_have(name: str) -> None:
    pod = JOBS[name]["Job"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", JOBS)
def test_the_runs_lie_where_all_pods_see_them(name: str) -> None:
    pod = JOBS[name]["Job"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    volumes = {one["name"]: one for one in pod["volumes"]}
    claim = JOBS[name]["PersistentVolumeClaim"]
    place = {"search": "/runs", "train": "/volume"}[name]
    assert volumes[mounts[place]]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
