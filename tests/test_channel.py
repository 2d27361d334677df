"""Where a client connects to and how: targets, certificates, credentials, several servers."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import ipaddress
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from serving import AccessDenied, Client, ConfigError, Tls, Unavailable
from serving.channel import is_secret, parse_target, resolve
from tests.scripted_server import ScriptedServer, connecting, running, sentiment, unused_port

TOKEN = ("authorization", "Bearer 1234-secret")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    yield from running()


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    yield from connecting(request.param)


# --- targets ---


@pytest.mark.parametrize(
    ("target", "uri", "addresses", "spread", "local"),
    [
        ("localhost:8500", "localhost:8500", ["localhost:8500"], False, True),
        ("model.example:8500", "model.example:8500", ["model.example:8500"], False, False),
        ("127.0.0.1:8500", "127.0.0.1:8500", ["127.0.0.1:8500"], False, True),
        ("[::1]:8500", "[::1]:8500", ["[::1]:8500"], False, True),
        ("10.0.0.7:1", "10.0.0.7:1", ["10.0.0.7:1"], False, False),
        ("dns:///model.example:8500", "dns:///model.example:8500", ["model.example:8500"], True, False),
        ("dns:localhost:8500", "dns:localhost:8500", ["localhost:8500"], True, True),
        ("ipv4:127.0.0.1:1,10.0.0.7:2", "ipv4:127.0.0.1:1,10.0.0.7:2", ["127.0.0.1:1", "10.0.0.7:2"], True, False),
        (["10.0.0.7:1", "10.0.0.8:2"], "ipv4:10.0.0.7:1,10.0.0.8:2", ["10.0.0.7:1", "10.0.0.8:2"], True, False),
        ("10.0.0.7:1, 10.0.0.8:2", "ipv4:10.0.0.7:1,10.0.0.8:2", ["10.0.0.7:1", "10.0.0.8:2"], True, False),
        (["[::1]:1", "[::1]:2"], "ipv6:[::1]:1,[::1]:2", ["[::1]:1", "[::1]:2"], True, True),
        (["a.example:1", "b.example:1"], "", ["a.example:1", "b.example:1"], True, False),
        (["localhost:1"], "localhost:1", ["localhost:1"], False, True),
        ("unix:/run/serving.sock", "unix:/run/serving.sock", [], False, True),
        ("unix-abstract:serving", "unix-abstract:serving", [], False, True),
    ],
)  # fmt: skip
def test_targets_in_all_their_forms(target: Any, uri: str, addresses: list[str], spread: bool, local: bool) -> None:
    found = parse_target(target)
    assert (found.uri, list(found.addresses), found.spread, found.is_local) == (uri, addresses, spread, local)


@pytest.mark.parametrize(
    "target",
    [
        "",
        "localhost",
        "localhost:",
        ":8500",
        "localhost:0",
        "localhost:65536",
        "a b:1",
        "::1:8500",
        [],
        ["a:1", ""],
        "unix:",
        "dns:",
        "a:1/x",
    ],
)
def test_what_is_no_target_is_refused_with_an_example(target: Any) -> None:
    with pytest.raises(ConfigError, match=r"expected HOST:PORT, unix:PATH or a list of HOST:PORT; .* For example localhost:8500\.$"):
        parse_target(target)


def test_a_web_address_is_told_that_it_is_one() -> None:
    with pytest.raises(ConfigError, match=r"target 'http://localhost:8501': .*gRPC takes no http://"):
        parse_target("http://localhost:8501")


def test_names_in_a_list_are_looked_up_and_those_without_an_address_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known = {"a.example": ["10.0.0.1", "10.0.0.2"], "six.example": ["fd00::1"]}

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        if host not in known:
            raise socket.gaierror(f"no {host}")
        return [(socket.AF_INET6 if ":" in one else socket.AF_INET, 0, 0, "", (one, port)) for one in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert resolve(parse_target(["a.example:1", "gone.example:1"])) == "ipv4:10.0.0.1:1,10.0.0.2:1"
    assert "no address for 'gone.example'" in caplog.text
    assert resolve(parse_target(["six.example:1", "six.example:2"])) == "ipv6:[fd00::1]:1,[fd00::1]:2"
    for names in (["a.example:1", "six.example:1"], ["gone.example:1", "gone.example:2"]):
        with pytest.raises(Unavailable, match="expected addresses of one family"):
            resolve(parse_target(names))


def test_several_servers_are_asked_in_turns_and_one_may_be_down(connect: Any) -> None:
    servers = [ScriptedServer(), ScriptedServer()]
    try:
        for one in servers:
            one.script("Predict", sentiment())
        client = connect([servers[0].target, f"127.0.0.1:{unused_port()}", servers[1].target.replace("127.0.0.1", "localhost")])
        client.predict("good")
        deadline = threading.Event()
        for _ in range(200):  # the second connection may still be being made
            client.predict("good")
            if all(one.asked for one in servers):
                break
            deadline.wait(0.01)
        assert all(one.asked for one in servers)
    finally:
        for one in servers:
            one.stop()


def test_a_unix_socket(tmp_path: Path, connect: Any) -> None:
    server = ScriptedServer(address=f"unix:{tmp_path}/s.sock")
    try:
        server.script("Predict", sentiment())
        assert connect(server.target, metadata=[TOKEN]).predict("good").labels == ["positive"]
    finally:
        server.stop()


# --- metadata ---


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("authorization", "x", True), ("proxy-authorization", "x", True), ("x-api-key", "x", True), ("apikey", "x", True),
        ("x-access_key", "x", True), ("session-token", "x", True), ("cookie", "x", True), ("password", "x", True), ("client-secret-bin", b"x", True),
        ("x-custom", "Bearer x", True), ("x-custom", "basic x", True), ("x-request-id", "x", False), ("author", "x", False), ("tenant-bin", b"x", False),
    ],
)  # fmt: skip
def test_what_looks_like_a_credential(key: str, value: Any, expected: bool) -> None:
    assert is_secret(key, value) is expected


def test_credentials_do_not_cross_the_network_readable_by_all() -> None:
    with pytest.raises(ConfigError) as caught:
        Client("model.example:8500", metadata=[("x-tenant", "bank"), TOKEN])
    assert str(caught.value) == (
        "model.example:8500: metadata 'authorization' looks like a credential and would cross the network readable by all. "
        "Give tls=Tls(...), or insecure_metadata=True if something else encrypts the connection."
    )
    for settings in ({"insecure_metadata": True}, {"tls": Tls()}):
        client = Client("model.example:8500", metadata=[TOKEN], **settings)
        assert "secret" not in repr(client)
        assert "authorization" in repr(client)
    Client("model.example:8500", metadata=[("x-request-id", "7")])
    with pytest.raises(ConfigError, match="looks like a credential"):
        Client(["127.0.0.1:1", "10.0.0.7:1"], metadata=[TOKEN])


@pytest.mark.parametrize(
    ("key", "value"),
    [("Authorization", "x"), ("grpc-x", "x"), ("a b", "x"), ("", "x"), ("x", "ü"), ("x", "a\nb"), ("x", b"x"), ("x-bin", "x")],
)
def test_metadata_that_grpc_cannot_send_is_refused_at_the_door(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="metadata"):
        Client(metadata=[(key, value)])


def test_metadata_goes_with_every_request(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", sentiment())
    connect(server.target, rows_per_request=1, metadata=[TOKEN, ("trace-bin", b"\x00\xff")]).predict(["good", "bad"])
    assert [(one.metadata["authorization"], one.metadata["trace-bin"]) for one in server.asked] == [("Bearer 1234-secret", b"\x00\xff")] * 2


# --- compression ---


class CountingProxy:
    """Passes bytes on to a server and counts those that go there."""

    def __init__(self, target: str) -> None:
        self.sent = 0
        self._target = (target.split(":")[0], int(target.split(":")[1]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._run)]
        self._threads[0].start()

    def _run(self) -> None:
        client, _ = self._listener.accept()
        with client, socket.create_connection(self._target) as server:
            back = threading.Thread(target=self._copy, args=(server, client, False))
            back.start()
            self._copy(client, server, True)
            back.join()

    def _copy(self, source: socket.socket, sink: socket.socket, count: bool) -> None:
        while data := source.recv(1 << 16):
            self.sent += len(data) if count else 0
            sink.sendall(data)
        with contextlib.suppress(OSError):  # the other side may be gone already
            sink.shutdown(socket.SHUT_WR)

    def stop(self) -> None:
        self._threads[0].join(30)
        self._listener.close()


@pytest.mark.parametrize("compression", ["", "gzip", "deflate"])
def test_compression_makes_requests_smaller(server: ScriptedServer, compression: str) -> None:
    server.script("Predict", sentiment())
    proxy = CountingProxy(server.target)
    text = "good " * 40_000
    with Client(proxy.target, model="sentiment", compression=compression, timeout_s=30) as client:
        assert client.predict(text).labels == ["positive"]
    proxy.stop()
    assert (proxy.sent < len(text) / 10) is bool(compression)
    assert len(gzip.compress(text.encode())) < len(text) / 10


def test_an_unknown_compression_is_refused() -> None:
    with pytest.raises(ConfigError, match=re.escape("compression 'zstd': expected one of ['', 'deflate', 'gzip'].")):
        Client(compression="zstd")


# --- TLS ---


@dataclass
class Certificates:
    """PEM files of two authorities: `ca` issued `server` and `client`, `other` issued `stranger`."""

    folder: Path

    def path(self, name: str, kind: str = "crt") -> Path:
        return self.folder / f"{name}.{kind}"

    def bytes(self, name: str, kind: str = "crt") -> bytes:
        return self.path(name, kind).read_bytes()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    now = datetime.datetime.now(datetime.timezone.utc)
    names = x509.SubjectAlternativeName(
        [x509.DNSName("model.example"), x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    )
    issued: dict[str, tuple[Any, Any]] = {}
    for name, issuer in (("ca", "ca"), ("other", "other"), ("server", "ca"), ("client", "ca"), ("stranger", "other")):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer_key, issuer_name = issued.get(issuer, (key, subject))
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
            .add_extension(names, critical=False)
            .sign(issuer_key, hashes.SHA256())
        )
        issued[name] = (key, subject)
        made.path(name).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        made.path(name, "key").write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
    return made


@pytest.fixture
def tls_server(certificates: Certificates) -> Iterator[ScriptedServer]:
    pair = (certificates.bytes("server", "key"), certificates.bytes("server"))
    for running_server in running(credentials=grpc.ssl_server_credentials([pair])):
        running_server.script("Predict", sentiment())
        yield running_server


@pytest.fixture
def mtls_server(certificates: Certificates) -> Iterator[ScriptedServer]:
    pair = (certificates.bytes("server", "key"), certificates.bytes("server"))
    for running_server in running(credentials=grpc.ssl_server_credentials([pair], certificates.bytes("ca"), require_client_auth=True)):
        running_server.script("Predict", sentiment())
        yield running_server


def test_an_encrypted_connection_carries_tokens(tls_server: ScriptedServer, certificates: Certificates, connect: Any) -> None:
    client = connect(tls_server.target, tls=Tls(ca=certificates.path("ca")), metadata=[TOKEN])
    assert client.predict("good").labels == ["positive"]
    assert tls_server.asked[0].metadata["authorization"] == "Bearer 1234-secret"


def test_several_encrypted_servers_share_a_name(tls_server: ScriptedServer, certificates: Certificates, connect: Any) -> None:
    targets = [tls_server.target, tls_server.target.replace("127.0.0.1", "localhost")]
    with pytest.raises(ConfigError, match=r"several addresses share one certificate: give its name with Tls\(server_name=...\)"):
        connect(targets, tls=Tls(ca=certificates.path("ca")))
    client = connect(targets, tls=Tls(ca=certificates.path("ca"), server_name="model.example"))
    assert client.predict("good").labels == ["positive"]


@pytest.mark.parametrize(
    ("case", "tls"),
    [
        ("an authority that is not ours", {"ca": "other"}),
        ("a name that is not in the certificate", {"ca": "ca", "server_name": "bank.example"}),
    ],
)
def test_a_server_that_cannot_be_trusted_is_refused_at_once(
    tls_server: ScriptedServer, certificates: Certificates, connect: Any, case: str, tls: dict[str, str]
) -> None:
    client = connect(tls_server.target, tls=Tls(ca=certificates.path(tls["ca"]), server_name=tls.get("server_name", "")))
    with pytest.raises(AccessDenied, match=r"\(after \d\.\d\d s\)\. Check Tls\(ca=..., server_name=...\)"):
        client.predict("good")
    with pytest.raises(AccessDenied):
        client.wait_until_available(timeout_s=60)
    assert not tls_server.asked, case


def test_a_server_without_tls_is_told_apart(server: ScriptedServer, certificates: Certificates, connect: Any) -> None:
    with pytest.raises(AccessDenied, match="or the server speaks no TLS"):
        connect(server.target, tls=Tls(ca=certificates.path("ca"))).predict("good")


def test_a_server_with_tls_hints_at_it(tls_server: ScriptedServer, connect: Any) -> None:
    with pytest.raises(Unavailable, match=r"give tls=Tls\(...\) if it speaks TLS"):
        connect(tls_server.target).predict("good")


def test_mutual_tls(mtls_server: ScriptedServer, certificates: Certificates, connect: Any) -> None:
    ours = Tls(ca=certificates.path("ca"), certificate=certificates.path("client"), key=certificates.path("client", "key"))
    assert connect(mtls_server.target, tls=ours).predict("good").labels == ["positive"]
    theirs = Tls(ca=certificates.path("ca"), certificate=certificates.path("stranger"), key=certificates.path("stranger", "key"))
    for tls in (theirs, Tls(ca=certificates.path("ca"))):
        with pytest.raises(AccessDenied, match="if the server wants one, the client's certificate and key"):
            connect(mtls_server.target, tls=tls).predict("good")
    assert len(mtls_server.asked) == 1


def test_certificates_that_cannot_work_are_refused_at_the_door(certificates: Certificates, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Tls: ca .*/none\.crt: cannot be read: No such file or directory\. Give a PEM file"):
        Client(tls=Tls(ca=certificates.path("none")))
    (tmp_path / "der").write_bytes(b"\x30\x82")
    with pytest.raises(ConfigError, match=r"Tls: ca .*/der: expected PEM with a line '-----BEGIN CERTIFICATE-----', found none"):
        Client(tls=Tls(ca=tmp_path / "der"))
    with pytest.raises(ConfigError, match=r"Tls: key .*/client\.crt: expected PEM with a line 'PRIVATE KEY-----'"):
        Client(tls=Tls(certificate=certificates.path("client"), key=certificates.path("client")))
    with pytest.raises(ConfigError, match=r"Tls: certificate without key: expected both or none\. Give Tls\(certificate=..., key=...\)\."):
        Client(tls=Tls(certificate=certificates.path("client")))


def test_private_keys_are_nowhere_to_be_seen(certificates: Certificates) -> None:
    tls = Tls(certificate=certificates.path("client"), key=certificates.path("client", "key"))
    secret = certificates.bytes("client", "key").decode().splitlines()[1]
    client = Client(tls=tls)
    assert secret not in repr(tls) + repr(client) + repr(vars(client))
