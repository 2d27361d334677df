"""The Prometheus page under TensorFlow Serving's names, TLS with and without client certificates, large messages, health and reflection."""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.contract import saved_models
from tests.contract.conftest import Client, Served, config, example, refused, until, write
from tests.contract.saved_models import CLASSIFY

Serve = Callable[..., Served]
Start = Callable[..., "tuple[int, str]"]
PAGE = "/monitoring/prometheus/metrics"


# ---- metrics


@pytest.fixture
def monitored(serve: Serve, models: Path, tmp_path: Path) -> Served:
    file = write(tmp_path / "monitoring.config", "prometheus_config { enable: true }")
    models_file = write(tmp_path / "models.config", config(m=models / "half_plus_two"))
    return serve(f"--model_config_file={models_file}", f"--monitoring_config_file={file}", rest=True)


def _page(served: Served) -> list[str]:
    status, text = served.http(PAGE)
    assert status == 200
    return text.splitlines()


def _counts(served: Served) -> dict[str, int]:
    lines = (re.fullmatch(r":tensorflow:serving:request_count(\{.*\}) (\d+)", line) for line in _page(served))
    return {line[1]: int(line[2]) for line in lines if line}


def test_requests_are_counted_by_model_and_status(monitored: Served) -> None:
    client = monitored.client
    for _ in range(3):
        client.predict("m", {"x": [1.0]})
    client.classify("m", [example(x=1.0)], signature="classify_x_to_y")
    client.regress("m", [example(x=1.0)], signature="regress_x_to_y")
    refused(client.predict, "m", {"z": [1.0]})
    refused(client.predict, "no such model", {"x": [1.0]})
    monitored.http("/v1/models/m:predict", {"instances": [1.0]})
    monitored.http("/v1/models/none:predict", {"instances": [1.0]})
    assert _counts(monitored) == {
        '{model_name="m",status="OK"}': 6,
        '{model_name="m",status="INVALID_ARGUMENT"}': 1,
        '{model_name="no such model",status="NOT_FOUND"}': 1,
        '{model_name="none",status="NOT_FOUND"}': 1,
    }


def test_over_grpc_only_predict_classify_and_regress_are_counted(monitored: Served) -> None:
    monitored.client.metadata("m")
    monitored.client.status("m")
    monitored.client.multi_inference([({"name": "m", "signature": "classify_x_to_y"}, CLASSIFY)], [example(x=1.0)])
    assert _counts(monitored) == {}


def test_over_rest_every_call_is_counted(monitored: Served) -> None:
    monitored.http("/v1/models/m")
    monitored.http("/v1/models/m/metadata")
    monitored.http("/v1/models/m:regress", {"signature_name": "regress_x_to_y", "examples": [{"x": 1.0}]})
    assert _counts(monitored) == {'{model_name="m",status="OK"}': 3}


def test_the_latency_of_good_answers_by_api_and_entry_point(monitored: Served) -> None:
    monitored.client.predict("m", {"x": [1.0]})
    refused(monitored.client.predict, "m", {"z": [1.0]})
    monitored.http("/v1/models/m:predict", {"instances": [1.0]})
    lines = _page(monitored)
    assert "# TYPE :tensorflow:serving:request_count counter" in lines
    assert "# TYPE :tensorflow:serving:request_latency histogram" in lines
    for labels in ('model_name="m",API="Predict",entrypoint="GRPC"', 'model_name="m",API="predict",entrypoint="REST"'):
        buckets = [line for line in lines if line.startswith(f":tensorflow:serving:request_latency_bucket{{{labels},le=")]
        assert len(buckets) == 34
        assert buckets[0].startswith(f':tensorflow:serving:request_latency_bucket{{{labels},le="10"}} ')
        assert buckets[-1] == f':tensorflow:serving:request_latency_bucket{{{labels},le="+Inf"}} 1'
        assert f":tensorflow:serving:request_latency_count{{{labels}}} 1" in lines
        (total,) = (line for line in lines if line.startswith(f":tensorflow:serving:request_latency_sum{{{labels}}} "))
        assert 1 < float(total.rsplit(" ", 1)[1]) < 60e6, "microseconds"


def test_names_are_escaped(monitored: Served) -> None:
    refused(monitored.client.predict, 'a "b" \\ c\nd', {"x": [1.0]})
    assert _counts(monitored) == {'{model_name="a \\"b\\" \\\\ c\\nd",status="NOT_FOUND"}': 1}


def test_our_own_metrics_carry_the_version(monitored: Served) -> None:
    monitored.client.predict("m", {"x": [1.0]})
    lines = _page(monitored)
    assert 'serving_requests_total{model="m",version="123",method="predict",entrypoint="GRPC",code="OK"} 1' in lines
    assert 'serving_model_version_state{model="m",version="123",state="AVAILABLE"} 1' in lines
    assert "serving_ready 1" in lines


@pytest.mark.parametrize(
    ("text", "page"),
    [
        ('prometheus_config { enable: true path: "/my/page" }', "/my/page"),
        ("prometheus_config { enable: true }", PAGE),
        ('prometheus_config { path: "/my/page" }', ""),
        ("prometheus_config { enable: false }", ""),
        ("", ""),
        (None, ""),
    ],
    ids=["another path", "the usual path", "a path only", "off", "empty", "no file"],
)
def test_the_page_is_where_the_file_says(serve: Serve, models: Path, tmp_path: Path, text: str | None, page: str) -> None:
    flags = [] if text is None else [f"--monitoring_config_file={write(tmp_path / 'monitoring.config', text)}"]
    served = serve(f"--model_base_path={models / 'half_plus_two'}", *flags, rest=True)
    for path in (PAGE, "/my/page"):
        assert served.http(path)[0] == (200 if path == page else 404)


def test_a_monitoring_file_that_does_not_parse(start: Start, tmp_path: Path) -> None:
    file = write(tmp_path / "monitoring.config", "nonsense")
    status, stdout = start("--model_base_path=/m", f"--monitoring_config_file={file}")
    assert (status, stdout) == (255, f"Failed to start server. Error: INVALID_ARGUMENT: Invalid protobuf file: '{file}'\n")


# ---- TLS


@dataclass
class Pair:
    """A key and its certificate, as PEM text."""

    key: str
    certificate: str


def _pair(name: str, issuer: tuple[Pair, ec.EllipticCurvePrivateKey] | None = None) -> tuple[Pair, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(x509.load_pem_x509_certificate(issuer[0].certificate.encode()).subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
    )
    certificate = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Pair(pem.decode(), certificate.public_bytes(serialization.Encoding.PEM).decode()), key


@dataclass
class Keys:
    """An authority, and what it signed for a server and for a client."""

    ca: Pair
    server: Pair
    client: Pair
    stranger: Pair

    def credentials(self, client: Pair | None = None) -> grpc.ChannelCredentials:
        mine = (client.key.encode(), client.certificate.encode()) if client else (None, None)
        return grpc.ssl_channel_credentials(self.ca.certificate.encode(), *mine)

    def file(self, path: Path, *, verify: bool) -> Path:
        values = {"server_key": self.server.key, "server_cert": self.server.certificate, "custom_ca": self.ca.certificate}
        lines = ["{}: '{}'".format(name, pem.replace("\n", "\\n")) for name, pem in values.items()]
        return write(path, "\n".join([*lines, f"client_verify: {str(verify).lower()}"]))


@pytest.fixture(scope="module")
def keys() -> Keys:
    authority = _pair("authority")
    return Keys(authority[0], _pair("server", authority)[0], _pair("client", authority)[0], _pair("stranger", _pair("elsewhere"))[0])


def test_tls_encrypts_grpc_and_the_socket_but_not_rest(serve: Serve, models: Path, tmp_path: Path, keys: Keys) -> None:
    flags = (f"--ssl_config_file={keys.file(tmp_path / 'ssl', verify=False)}", f"--grpc_socket_path={tmp_path / 'socket'}")
    served = serve(f"--model_base_path={models / 'half_plus_two'}", *flags, credentials=keys.credentials(), rest=True)
    assert served.client.values("default", {"x": [2.0]}) == [3.0]
    with Client(served.target) as plain:
        assert refused(plain.predict, "default", {"x": [2.0]}, timeout_s=5).code == "UNAVAILABLE"
    with Client(f"unix:{tmp_path / 'socket'}", keys.credentials(), [("grpc.ssl_target_name_override", "localhost")]) as client:
        assert client.values("default", {"x": [2.0]}) == [3.0]
    with Client(f"unix:{tmp_path / 'socket'}") as plain:
        assert refused(plain.predict, "default", {"x": [2.0]}, timeout_s=5).code == "UNAVAILABLE"
    assert served.http("/v1/models/default")[0] == 200


def test_with_client_verify_only_clients_of_the_authority_get_in(serve: Serve, models: Path, tmp_path: Path, keys: Keys) -> None:
    flags = (f"--model_base_path={models / 'half_plus_two'}", f"--ssl_config_file={keys.file(tmp_path / 'ssl', verify=True)}")
    served = serve(*flags, credentials=keys.credentials(keys.client))
    assert served.client.values("default", {"x": [2.0]}) == [3.0]
    for outsider in (None, keys.stranger):
        with Client(served.target, keys.credentials(outsider)) as client:
            assert refused(client.predict, "default", {"x": [2.0]}, timeout_s=5).code == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense", "Invalid protobuf file: '{file}'"),
        ("server_key: 'k'", "{file}: server_key and server_cert must hold PEM text"),
        ("server_key: 'k' server_cert: 'c' client_verify: true", "{file}: client_verify needs custom_ca"),
    ],
)
def test_a_wrong_ssl_file_ends_the_start(start: Start, tmp_path: Path, text: str, says: str) -> None:
    file = write(tmp_path / "ssl", text)
    status, stdout = start("--model_base_path=/m", f"--ssl_config_file={file}")
    assert status == 255
    assert stdout.startswith(f"Failed to start server. Error: INVALID_ARGUMENT: {says.format(file=file)}")


def test_a_key_is_never_shown(tmp_path: Path, keys: Keys) -> None:
    from serving.server.configs import read_tls

    assert "PRIVATE KEY" not in repr(read_tls(str(keys.file(tmp_path / "ssl", verify=False))))


# ---- message sizes


def test_messages_of_more_than_four_megabytes_both_ways(static: Served) -> None:
    """Python's gRPC refuses them by default; TensorFlow Serving does not."""
    large = np.arange(2_500_000, dtype=np.float32).reshape(1, -1)
    answer = static.client.predict("echo", {"x": large}, signature="float")
    assert answer.ByteSize() > 9_000_000
    assert answer.outputs["y"].float_val[-1] == large[0, -1]


# ---- health and reflection


def _health(served: Served, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(served.client.channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status)


@pytest.mark.parametrize("flags", [[], ["--enable_grpc_healthcheck_service=true"]], ids=["as it is", "asked for"])
def test_the_health_service_knows_the_services(serve: Serve, models: Path, flags: list[str]) -> None:
    served = serve(f"--model_base_path={models / 'half_plus_two'}", *flags)
    for service in ("", "ModelService", "PredictionService", "tensorflow.serving.PredictionService"):
        assert _health(served, service) == health_pb2.HealthCheckResponse.SERVING
    assert refused(_health, served, "nonsense").code == "NOT_FOUND"


def test_difference_health_is_serving_only_while_every_model_answers(serve: Serve, models: Path, tmp_path: Path) -> None:
    """The real server says SERVING from its start on and never changes its mind."""
    saved_models.corrupt(tmp_path / "bad" / "1")
    served = serve(f"--model_config_file={write(tmp_path / 'config', config(m=models / 'half_plus_two'))}")
    assert _health(served, "") == health_pb2.HealthCheckResponse.SERVING
    refused(served.client.reload, config(m=models / "half_plus_two", bad=tmp_path / "bad"))
    until(lambda: _health(served, "") == health_pb2.HealthCheckResponse.NOT_SERVING, "a model does not answer")
    served.client.reload(config(m=models / "half_plus_two"))
    until(lambda: _health(served, "") == health_pb2.HealthCheckResponse.SERVING, "every model answers")


def test_reflection_lists_and_describes_the_services(static: Served) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(static.client.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="tensorflow.serving.PredictionService"),
    ]
    listed, described = stub.ServerReflectionInfo(iter(asked), timeout=5)
    names = {service.name for service in listed.list_services_response.service}
    assert {"tensorflow.serving.PredictionService", "tensorflow.serving.ModelService", "grpc.health.v1.Health"} <= names
    assert described.file_descriptor_response.file_descriptor_proto
