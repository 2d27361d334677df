"""The connection of a client: where to, how encrypted, with which settings of gRPC. Frees `serving.client` from addresses, certificates and channels.

In: the arguments of `Client`. Out: a gRPC channel, `grpc`'s or `grpc.aio`'s, that the first call opens. Refuses at the door, before anything is sent
(`ConfigError`): targets without a port, PEM files that cannot be read, and credentials that would cross the network readable by all.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc

from serving import wire
from serving.answers import Response
from serving.calls import Which
from serving.conversation import Conversation
from serving.errors import ConfigError, Unavailable

logger = logging.getLogger(__name__)

TIMEOUT_S = 10.0
MAX_ATTEMPTS = 4
MAX_MESSAGE_BYTES = 64 << 20
ROWS_PER_REQUEST = 64
# TensorFlow Serving answers pings that come more often than every 300 s with `too_many_pings` and hangs up.
KEEPALIVE_S, KEEPALIVE_TIMEOUT_S = 360, 20
COMPRESSION = {"": None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\s:/,\[\]@?#]+):(?P<port>[0-9]{1,5})")
_SCHEMES = ("dns", "ipv4", "ipv6", "unix", "unix-abstract")
_METADATA_KEY = re.compile(r"(?!grpc-)[0-9a-z_.-]+")
_SECRET_KEY = re.compile(r"authoriz|authentic|token|secret|passw|cookie|credential|(api|access)[-_]?key")


@dataclass(frozen=True)
class Tls:
    """An encrypted connection. The files are PEM and are read when the connection opens; their content is never kept, logged or shown.

    Attributes:
        ca: certificates to trust; None takes those that gRPC ships with or `GRPC_DEFAULT_SSL_ROOTS_FILE_PATH` names.
        certificate: the client's own, for a server that asks for one (mTLS); with `key`.
        key: its private key.
        server_name: the name in the server's certificate, when the target is called otherwise; needed for several addresses.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Trusted certificates, private key, certificate.

        Raises:
            ConfigError: a file that cannot be read or is not PEM, or half of a pair.
        """
        if (self.certificate is None) != (self.key is None):
            given, missing = ("certificate", "key") if self.key is None else ("key", "certificate")
            raise ConfigError(f"Tls: {given} without {missing}: expected both or none. Give Tls({given}=..., {missing}=...).")
        return _read_pem(self.ca, "ca"), _read_pem(self.key, "key"), _read_pem(self.certificate, "certificate")


def _read_pem(path: Path | None, what: str) -> bytes | None:
    if path is None:
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"Tls: {what} {path}: cannot be read: {error.strerror or error}. Give a PEM file that this user may read."
        ) from error
    expected = "PRIVATE KEY-----" if what == "key" else "-----BEGIN CERTIFICATE-----"
    if expected.encode() not in content:
        raise ConfigError(
            f"Tls: {what} {path}: expected PEM with a line {expected!r}, found none. Convert it with openssl, or name the right file."
        )
    return content


@dataclass(frozen=True)
class Target:
    """Where the server is.

    Attributes:
        name: as the caller wrote it; what messages call it.
        uri: as gRPC takes it; empty for several names, which `resolve` looks up.
        addresses: each `HOST:PORT`; none for a unix socket.
        spread: whether calls go round all addresses.
    """

    name: str
    uri: str
    addresses: tuple[str, ...]
    spread: bool

    @property
    def is_local(self) -> bool:
        """Whether nothing leaves this machine."""
        return all(_is_loopback(_host(address)) for address in self.addresses)


def parse_target(target: str | Sequence[str]) -> Target:
    """A target in any of its forms.

    | target | means |
    |---|---|
    | `host:8500`, `10.0.0.7:8500`, `[::1]:8500` | one server |
    | `["a:8500", "b:8500"]`, `a:8500,b:8500` | several, in turns (`round_robin`); names are looked up once, at the first call |
    | `dns:///name:8500` | all addresses of one name, in turns, looked up again by gRPC when one fails |
    | `ipv4:10.0.0.7:8500,10.0.0.8:8500`, `ipv6:[::1]:8500` | several, in turns |
    | `unix:/path/to/socket`, `unix-abstract:name` | a socket of this machine |

    Raises:
        ConfigError: none of these.
    """
    given = (
        target.split(",")
        if isinstance(target, str) and target.split(":")[0] not in _SCHEMES
        else [target]
        if isinstance(target, str)
        else list(target)
    )
    name = ",".join(given)
    scheme, _, rest = name.partition(":")
    if len(given) == 1 and scheme in _SCHEMES and rest:
        if scheme.startswith("unix"):
            return Target(name, name, (), False)
        addresses = rest.rsplit("/", 1)[-1].split(",")
    else:
        scheme, addresses = "", [address.strip() for address in given]
    for address in addresses or [""]:
        match = _ADDRESS.fullmatch(address)
        if not match or not 0 < int(match["port"]) < 65536:
            hint = "gRPC takes no http://" if "//" in address else "TensorFlow Serving's gRPC port is 8500"
            raise ConfigError(
                f"target {address!r}: expected HOST:PORT, unix:PATH or a list of HOST:PORT; {hint}. For example localhost:8500."
            )
    if scheme or len(addresses) == 1:
        return Target(name, name, tuple(addresses), bool(scheme))
    families = {_family(_host(address)) for address in addresses}
    uri = f"{families.pop()}:{','.join(addresses)}" if len(families) == 1 and families <= {"ipv4", "ipv6"} else ""
    return Target(name, uri, tuple(addresses), True)


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _family(host: str) -> str:
    try:
        return f"ipv{ipaddress.ip_address(host).version}"
    except ValueError:
        return "name"


def _is_loopback(host: str) -> bool:
    if _family(host) == "name":
        return host == "localhost" or host.endswith(".localhost")
    return ipaddress.ip_address(host).is_loopback


def resolve(target: Target) -> str:
    """The URI of a target; several names are looked up, because gRPC cannot take them. Names without an address are left out, with a warning.

    Raises:
        Unavailable: none of them has an address, or some only IPv4 and others only IPv6.
    """
    if target.uri:
        return target.uri
    found: dict[int, list[str]] = {socket.AF_INET: [], socket.AF_INET6: []}
    for address in target.addresses:
        host, port = _host(address), address.rpartition(":")[2]
        try:
            infos = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        except OSError as error:
            logger.warning("%s: no address for %r (%s); the others are asked.", target.name, host, error)
            continue
        family = socket.AF_INET if any(info[0] == socket.AF_INET for info in infos) else socket.AF_INET6
        found[family] += [
            f"{info[4][0]}:{port}" if family == socket.AF_INET else f"[{info[4][0]}]:{port}" for info in infos if info[0] == family
        ]
    if all(found.values()) or not any(found.values()):
        raise Unavailable(
            f"{target.name}: expected addresses of one family, IPv4 or IPv6; found {found}. Fix the names, or give addresses."
        )
    scheme, addresses = ("ipv4", found[socket.AF_INET]) if found[socket.AF_INET] else ("ipv6", found[socket.AF_INET6])
    return f"{scheme}:{','.join(dict.fromkeys(addresses))}"


def is_secret(key: str, value: str | bytes) -> bool:
    """Whether metadata looks like a credential, by its key or by a `Bearer` or `Basic` value."""
    text = value if isinstance(value, str) else value.decode("latin-1")
    return bool(_SECRET_KEY.search(key)) or text.lower().startswith(("bearer ", "basic "))


class Connection:
    """What both clients are made of: checked settings, and a channel that the first call opens. Arguments as in `Client`."""

    library: ModuleType = grpc

    def __init__(
        self,
        target: str | Sequence[str] = "localhost:8500",
        *,
        model: str = "",
        version: int | None = None,
        version_label: str = "",
        timeout_s: float = TIMEOUT_S,
        max_attempts: int = MAX_ATTEMPTS,
        retry_overloaded: bool = False,
        tls: Tls | None = None,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        compression: str = "",
        rows_per_request: int = ROWS_PER_REQUEST,
        on_response: Callable[[Response], None] | None = None,
        insecure_metadata: bool = False,
    ) -> None:
        self._target = parse_target(target)
        self.target = self._target.name
        if compression not in COMPRESSION:
            raise ConfigError(f"compression {compression!r}: expected one of {sorted(COMPRESSION)}.")
        if tls is not None:
            tls.read()
            if self._target.spread and not tls.server_name:
                raise ConfigError(f"{self.target}: several addresses share one certificate: give its name with Tls(server_name=...).")
        self._metadata = _checked_metadata(self._target, metadata, allowed=tls is not None or insecure_metadata)
        self._tls, self._compression, self._max_message_bytes = tls, COMPRESSION[compression], max_message_bytes
        self._conversation = Conversation(
            which=Which(self.target, model, version, version_label),
            timeout_s=timeout_s,
            max_attempts=max_attempts,
            retry_overloaded=retry_overloaded,
            max_message_bytes=max_message_bytes,
            rows_per_request=rows_per_request,
            tls=tls is not None,
            on_response=on_response,
        )
        self._lock = threading.Lock()
        self._opened_in = 0  # process id
        self._closed = False
        self._channel: Any = None
        self._methods: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._conversation.which)!r}, tls={self._tls is not None}, metadata={[key for key, _ in self._metadata]})"

    def method(self, name: str) -> Any:
        """What sends one request of that name; opens the channel if this is the first."""
        if self._opened_in != os.getpid():
            self._open()
        method = self._methods.get(name)
        if method is None:  # another thread has just closed the client
            raise self._closed_error()
        return method

    def _closed_error(self) -> ConfigError:
        return ConfigError(f"{self.target}: this client is closed. Make a new one.")

    def _open(self) -> None:
        with self._lock:
            if self._closed:
                raise self._closed_error()
            if self._opened_in == os.getpid():
                return
            if self._opened_in:
                raise ConfigError(
                    f"{self.target}: this client was used before the process forked, and gRPC does not survive a fork. "
                    f"Make a client in each process."
                )
            settings = {"options": _options(self._target, self._tls, self._max_message_bytes), "compression": self._compression}
            uri = resolve(self._target)
            if self._tls is None:
                self._channel = self.library.insecure_channel(uri, **settings)
            else:
                self._channel = self.library.secure_channel(uri, grpc.ssl_channel_credentials(*self._tls.read()), **settings)
            self._methods = {
                name: self._channel.unary_unary(
                    path, request_serializer=request.SerializeToString, response_deserializer=response.FromString
                )
                for name, (path, request, response) in wire.METHODS.items()
            }
            self._opened_in = os.getpid()

    def forget(self) -> Any:
        """The open channel, if there is one to close; no call after this."""
        with self._lock:
            channel = self._channel if self._opened_in == os.getpid() else None
            self._channel, self._methods, self._opened_in, self._closed = None, {}, 0, True
        return channel


def _checked_metadata(target: Target, metadata: Sequence[tuple[str, str | bytes]], *, allowed: bool) -> tuple[tuple[str, str | bytes], ...]:
    for key, value in metadata:
        if not _METADATA_KEY.fullmatch(key):
            raise ConfigError(f"metadata key {key!r}: expected lower-case letters, digits, '_', '-' and '.', not starting with 'grpc-'.")
        if isinstance(value, bytes) != key.endswith("-bin") or (isinstance(value, str) and not (value.isascii() and value.isprintable())):
            raise ConfigError(f"metadata {key!r}: expected printable ASCII text, or bytes under a key that ends in '-bin'.")
        if is_secret(key, value) and not allowed and not target.is_local:
            raise ConfigError(
                f"{target.name}: metadata {key!r} looks like a credential and would cross the network readable by all. "
                f"Give tls=Tls(...), or insecure_metadata=True if something else encrypts the connection."
            )
    return tuple((key, value) for key, value in metadata)


def _options(target: Target, tls: Tls | None, max_message_bytes: int) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # gRPC's own retries, and those that a service config in DNS may order, know nothing of our budget.
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
        # gRPC's first reconnect comes after 1 s, and every call before it fails with the old error: our attempts would all be used up by then.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
        # Without this, clients in one process share connections and their back-off, and closing closes nothing.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if target.spread:
        options.append(("grpc.lb_policy_name", "round_robin"))
    if target.is_local:
        options.append(("grpc.enable_http_proxy", 0))
    if tls is not None and tls.server_name:
        options += [("grpc.ssl_target_name_override", tls.server_name), ("grpc.default_authority", tls.server_name)]
    elif len(target.addresses) > 1:
        options.append(("grpc.default_authority", target.addresses[0]))
    return options
