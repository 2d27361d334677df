"""Prometheus takes the files of `deploy/prometheus` and fires the alerts; dashboard and rules name only metrics that a server really exports.

promtool and Prometheus come from Debian: apt-get install --no-install-recommends prometheus prometheus-blackbox-exporter.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.server import configs
from serving.server.status import HTTP_CODES
from tests.contract import saved_models
from tests.contract.conftest import Served, config, free_port, started, until, write

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/serving.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RUNBOOK = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
HISTOGRAM = ("_bucket", "_sum", "_count")

# What only the real server exports, or something beside it, and where its name is written.
FOREIGN = {
    ":tensorflow:cc:saved_model:load_attempt_count": "tensorflow/tensorflow tensorflow/cc/saved_model/loader.cc; as Prometheus shows it: tensorflow/serving issue 462",
    ":tensorflow:serving:batching_session:queuing_latency": "tensorflow/serving tensorflow_serving/batching/batching_session.cc",
    "up": "Prometheus, for each target it collects",
    "ALERTS": "Prometheus, for each alert that is pending or firing",
    "probe_success": "prometheus/blackbox_exporter README.md",
    "kube_deployment_status_replicas_available": "kubernetes/kube-state-metrics docs, Deployment metrics",
    "node_textfile_mtime_seconds": "prometheus/node_exporter, textfile collector",
    "serving_drift_verdict": "the cron job in docs/operations.md",
}
# What stands in a query of Grafana for what a person chose.
CHOSEN = {"$__rate_interval": "30s", "$datasource": "prometheus", "$job": "serving", "$model": ".*"}

promtool = pytest.mark.skipif(
    not (shutil.which("promtool") and shutil.which("prometheus")),
    reason="promtool and prometheus are missing: apt-get install --no-install-recommends prometheus",
)
blackbox = pytest.mark.skipif(
    not shutil.which("prometheus-blackbox-exporter"),
    reason="prometheus-blackbox-exporter is missing: apt-get install --no-install-recommends prometheus-blackbox-exporter",
)


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _rules() -> list[dict[str, Any]]:
    return [rule for group in _yaml(ALERTS)["groups"] for rule in group["rules"]]


def _alerts() -> list[dict[str, Any]]:
    return [rule for rule in _rules() if "alert" in rule]


def _chosen(query: str) -> str:
    for variable, value in CHOSEN.items():
        query = query.replace(variable, value)
    return query


def _queries() -> dict[str, str]:
    """Every query of the dashboard by the panel's title and its letter."""
    return {f"{panel['title']} {target['refId']}": _chosen(target["expr"]) for panel in PANELS for target in panel["targets"]}


def _metrics(query: str) -> set[str]:
    """The names of metrics in a query: what is left without strings, selectors, ranges, label lists, functions and words of the language."""
    query = re.sub(r'"(?:[^"\\]|\\.)*"', '""', query)
    query = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", query)
    query = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", query)
    query = re.sub(r"\boffset\s+\w+|\b\d[\w.]*", " ", query)
    names = re.findall(r"[a-zA-Z_:][\w:]*(?!\s*\()\b(?!\s*\()", query)
    return set(names) - {"and", "or", "unless", "bool", "atan2"}


def _run(*command: str, **more: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- by Prometheus' own tool


@promtool
def test_promtool_takes_the_configuration_and_its_rules() -> None:
    _run("promtool", "check", "config", str(DEPLOY / "prometheus/prometheus.yml"))


@promtool
def test_promtool_takes_the_configuration_for_kubernetes(tmp_path: Path) -> None:
    # Debian builds Prometheus without the discovery of Kubernetes; the rest of the file is checked with a list in its place.
    collected = _yaml(DEPLOY / "prometheus/kubernetes.yml")
    for job in collected["scrape_configs"]:
        if found := job.pop("kubernetes_sd_configs", None):
            assert found == [{"role": "pod", "namespaces": {"names": ["serving"]}}]
            job["static_configs"] = [{"targets": ["a:8501"]}]
    shutil.copy(ALERTS, tmp_path)
    _run("promtool", "check", "config", str(write(tmp_path / "kubernetes.yml", yaml.safe_dump(collected))))


@promtool
def test_the_alerts_fire_when_they_should_and_not_before() -> None:
    _run("promtool", "test", "rules", "alerts_test.yml", cwd=ALERTS.parent)


@promtool
def test_an_alert_that_fires_at_another_value_is_noticed(tmp_path: Path) -> None:
    shutil.copy(ALERTS.parent / "alerts_test.yml", tmp_path)
    write(tmp_path / "alerts.yml", ALERTS.read_text(encoding="utf-8").replace("fault_ratio:rate5m > 0.05", "fault_ratio:rate5m > 0.5"))
    done = subprocess.run(["promtool", "test", "rules", "alerts_test.yml"], cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert done.returncode != 0


@promtool
def test_every_query_of_the_dashboard_and_the_autoscaler_parses(tmp_path: Path) -> None:
    queries = [*_queries().values(), _adapter_query()]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    _run("promtool", "check", "rules", str(write(tmp_path / "queries.yml", yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))))


def _adapter_query() -> str:
    """The autoscaler's query as prometheus-adapter fills it in for two pods."""
    (rule,) = _yaml(DEPLOY / "k8s/prometheus-adapter.yaml")["rules"]["custom"]
    query = str(rule["metricsQuery"])
    for name, value in {
        "<<.Series>>": str(rule["seriesQuery"]).partition("{")[0],
        "<<.LabelMatchers>>": 'namespace="serving",pod=~"a|b"',
        "<<.GroupBy>>": "pod",
    }.items():
        assert name in query
        query = query.replace(name, value)
    assert "<<" not in query
    return query


@blackbox
def test_the_prober_tells_a_model_that_answers_from_one_that_does_not(served: Served) -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    command = ["prometheus-blackbox-exporter", f"--config.file={DEPLOY / 'prometheus/blackbox.yml'}", f"--web.listen-address={address}"]
    with _process(command):
        until(lambda: _get(f"http://{address}/-/healthy"), "the prober starts")

        def success(label: str) -> str:
            target = f"{served.rest}/v1/models/bank/labels/{label}/metadata"
            page = _get(f"http://{address}/probe?{urllib.parse.urlencode({'module': 'model', 'target': target})}")
            return re.findall(r"^probe_success (\d)$", page, re.MULTILINE)[0]

        assert (success("stable"), success("canary")) == ("1", "0")


# ---- names


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names on the page of a server that has answered over gRPC and REST."""
    with _deployed(tmp_path_factory.mktemp("exported")) as server:
        server.client.predict("bank", {"x": [1.0]})
        server.http("/v1/models/bank:predict", {"instances": [1.0]})
        return set(re.findall(r"^([a-zA-Z_:][\w:]*)", server.http(configs.DEFAULT_METRICS_PATH)[1], re.MULTILINE))


@pytest.mark.parametrize("name", sorted({name for query in _queries().values() for name in _metrics(query)}))
def test_the_dashboard_names_metrics_that_exist(name: str, exported: set[str]) -> None:
    assert name in exported or _foreign(name)


@pytest.mark.parametrize("name", sorted({name for rule in _rules() for name in _metrics(rule["expr"])}))
def test_the_rules_name_metrics_that_exist(name: str, exported: set[str]) -> None:
    assert name in exported or _foreign(name) or name in {rule.get("record") for rule in _rules()}


def _foreign(name: str) -> bool:
    return name in FOREIGN or any(name == one + end for one in FOREIGN if one.startswith(":tensorflow") for end in HISTOGRAM)


def test_names_are_found_in_queries() -> None:
    query = 'sum by (a) (rate(:tf:x_count{b="c d", e=~"(?i:f)"}[5m] offset 1h)) / 1e6 unless on (g) up == 0 and max(h_i) > 0.5'
    assert _metrics(query) == {":tf:x_count", "up", "h_i"}
    assert _foreign("up")
    assert not _foreign("up_count")


def test_every_status_is_counted_in_exactly_one_way() -> None:
    expressions = {rule["record"]: rule["expr"] for rule in _rules() if "record" in rule}
    counted = [
        status
        for name in ("faults", "refusals", "caller_errors")
        for status in re.findall(r'status=~"([A-Z_|]+)"', expressions[f"serving:{name}:rate5m"])[0].split("|")
    ]
    assert sorted([*counted, "OK"]) == sorted(HTTP_CODES)


# ---- alerts and runbook


@pytest.mark.parametrize("rule", _alerts(), ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_an_alert_says_what_is_wrong_and_where_to_read_on(rule: dict[str, Any]) -> None:
    annotations = rule["annotations"]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert "$value" in annotations["description"] or "$labels" in annotations["description"]
    assert annotations["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"
    assert f"\n### {rule['alert']}\n" in RUNBOOK


def test_the_runbook_has_no_section_without_an_alert() -> None:
    assert sorted(re.findall(r"^### (Serving\w+)$", RUNBOOK, re.MULTILINE)) == sorted({rule["alert"] for rule in _alerts()})


def test_every_alert_has_a_case() -> None:
    cases = _yaml(ALERTS.parent / "alerts_test.yml")["tests"]
    fired = {test["alertname"] for case in cases for test in case.get("alert_rule_test", []) if test.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in _alerts()}


# ---- the dashboard


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_and_in_which_unit(panel: dict[str, Any]) -> None:
    assert len(panel["description"]) > 20
    assert panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_dashboard_is_found_and_asks_the_provisioned_source() -> None:
    compose = _yaml(DEPLOY / "compose.yaml")["services"]["grafana"]
    (provider,) = _yaml(DEPLOY / "grafana/provisioning/dashboards/serving.yml")["providers"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in compose["volumes"]
    (source,) = _yaml(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "job", "model"}
    jobs = {job["job_name"] for job in _yaml(DEPLOY / "prometheus/prometheus.yml")["scrape_configs"]}
    assert jobs == {"serving", "serving-ready"}


# ---- all of it, on real processes


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[None]:
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        child.terminate()
        child.wait(timeout=20)


def _get(url: str) -> str:
    """The page; empty while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, ConnectionError):
        return ""


@contextlib.contextmanager
def _deployed(folder: Path) -> Iterator[Served]:
    """A server as deployed, with batches, metrics and a journal, and one model whose version 1 is labelled stable."""
    saved_models.half_plus(folder / "bank" / "1")
    file = write(folder / "models.config", config(bank=(folder / "bank", 'version_labels { key: "stable" value: 1 }')))
    flags = [
        f"--model_config_file={file}",
        "--allow_version_labels_for_unavailable_models",
        "--enable_batching",
        f"--batching_parameters_file={DEPLOY / 'batching.config'}",
        f"--monitoring_config_file={DEPLOY / 'monitoring.config'}",
        f"--journal={folder / 'journal'}",
    ]
    with started(*flags, rest=True) as server:
        yield server


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with _deployed(tmp_path) as server:
        yield server


@promtool
def test_prometheus_collects_a_server_draws_the_dashboard_and_notices_its_end(served: Served, tmp_path: Path) -> None:
    collected = _yaml(DEPLOY / "prometheus/prometheus.yml")
    collected["global"] = {"scrape_interval": "200ms", "evaluation_interval": "200ms"}
    (job,) = (job for job in collected["scrape_configs"] if job["job_name"] == "serving")
    job["static_configs"] = [{"targets": [served.rest.removeprefix("http://")]}]
    collected["scrape_configs"] = [job]
    collected["rule_files"] = [str(ALERTS)]
    file = write(tmp_path / "prometheus.yml", yaml.safe_dump(collected))
    address = f"127.0.0.1:{free_port()}"
    api = f"http://{address}/api/v1"

    def ask(query: str) -> list[dict[str, Any]]:
        answer = json.loads(_get(f"{api}/query?{urllib.parse.urlencode({'query': query})}") or '{"data": {"result": []}}')
        return [one for one in answer["data"]["result"] if one["value"][1] != "NaN"]

    def states() -> dict[str, str]:
        return {alert["labels"]["alertname"]: alert["state"] for alert in json.loads(_get(f"{api}/alerts"))["data"]["alerts"]}

    # Without what only the real server, or something beside it, could tell.
    absent = set(FOREIGN) - {"up", "ALERTS"}
    expected = {title: query for title, query in _queries().items() if {name.removesuffix("_bucket") for name in _metrics(query)} - absent}
    assert len(expected) >= 20
    missing = dict(expected)

    def drawn() -> bool:
        served.client.predict("bank", {"x": [1.0]})
        served.http("/v1/models/bank:predict", {"instances": [1.0]})
        for title in [title for title, query in missing.items() if ask(query)]:
            del missing[title]
        return not missing

    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={tmp_path / 'tsdb'}", f"--web.listen-address={address}"]
    with _process(command):
        until(lambda: _get(f"http://{address}/-/ready"), "Prometheus starts")
        with contextlib.suppress(AssertionError):
            until(drawn, "the dashboard has its numbers")
        assert not missing
        assert states() == {}
        (answers,) = until(lambda: ask("serving:answers:rate5m"), "the rules are evaluated")
        assert answers["metric"]["model_name"] == "bank"
        served.running.server.stop()
        until(lambda: states().get("ServingDown"), "the server is missed")
        health = {rule["name"]: rule["health"] for group in json.loads(_get(f"{api}/rules"))["data"]["groups"] for rule in group["rules"]}
        assert set(health.values()) == {"ok"}
