"""The text files that TensorFlow Serving reads: models, batching, TLS, monitoring. Frees the rest from protobuf text and its errors.

In: paths. Out: small frozen dataclasses. Refuses with the real server's own messages, as `Status`; the caller decides whether that ends the
process (at start), fails a call (reload) or is logged (polling).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, message_factory, text_format

from serving import wire
from serving.server.status import Status, invalid

logger = logging.getLogger(__name__)

_TYPES = descriptor_pb2.FieldDescriptorProto


def _own_messages() -> dict[str, Any]:
    """The messages that the official package does not ship: only their text form is ever read, so the field numbers do not matter."""
    wrapped_int, wrapped_text = ".google.protobuf.Int64Value", ".google.protobuf.StringValue"
    shapes: dict[str, list[tuple[str, Any, bool]]] = {
        "SSLConfig": [
            ("server_key", _TYPES.TYPE_STRING, False),
            ("server_cert", _TYPES.TYPE_STRING, False),
            ("custom_ca", _TYPES.TYPE_STRING, False),
            ("client_verify", _TYPES.TYPE_BOOL, False),
        ],
        "PrometheusConfig": [("enable", _TYPES.TYPE_BOOL, False), ("path", _TYPES.TYPE_STRING, False)],
        "MonitoringConfig": [("prometheus_config", ".tensorflow.serving.PrometheusConfig", False)],
        "BatchingParameters": [
            ("max_batch_size", wrapped_int, False),
            ("batch_timeout_micros", wrapped_int, False),
            ("max_enqueued_batches", wrapped_int, False),
            ("num_batch_threads", wrapped_int, False),
            ("thread_pool_name", wrapped_text, False),
            ("allowed_batch_sizes", _TYPES.TYPE_INT64, True),
            ("pad_variable_length_inputs", _TYPES.TYPE_BOOL, False),
            ("enable_large_batch_splitting", ".google.protobuf.BoolValue", False),
            ("max_execution_batch_size", wrapped_int, False),
        ],
    }
    file = descriptor_pb2.FileDescriptorProto(
        name="serving/server_configs.proto", package="tensorflow.serving", syntax="proto3", dependency=["google/protobuf/wrappers.proto"]
    )
    for name, fields in shapes.items():
        added = file.message_type.add(name=name)
        for number, (field_name, kind, repeated) in enumerate(fields, 1):
            one = added.field.add(name=field_name, number=number, label=_TYPES.LABEL_REPEATED if repeated else _TYPES.LABEL_OPTIONAL)
            if isinstance(kind, str):
                one.type, one.type_name = _TYPES.TYPE_MESSAGE, kind
            else:
                one.type = kind
    wire.POOL.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(wire.POOL.FindMessageTypeByName(f"tensorflow.serving.{name}")) for name in shapes}


_OWN = _own_messages()


def read_text(path: str, kind: Any) -> Any:
    """A message from its text form.

    Where and why it does not parse is logged, as libprotobuf does: clients of a reload, and scripts that read the server's stdout, get the path.

    Raises:
        Status: the file is missing, or does not parse.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Status("NOT_FOUND", f"{path}; {getattr(error, 'strerror', None) or error}") from error
    value = kind()
    try:
        text_format.Parse(text, value)
    except text_format.ParseError as error:
        where = f"{error.GetLine() or 1}:{error.GetColumn() or 1}"
        what = str(error).partition(" : ")[2] or str(error)
        logger.error("Error parsing text-format %s: %s: %s", kind.DESCRIPTOR.full_name, where, what)
        raise invalid(f"Invalid protobuf file: '{path}'") from error
    return value


# ---- models


@dataclass(frozen=True)
class Policy:
    """Which versions to load: the `latest` n, `all`, or `specific` ones."""

    kind: str = "latest"
    latest: int = 1
    versions: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """One model of a ModelServerConfig."""

    name: str
    base_path: str
    platform: str = "tensorflow"
    policy: Policy = Policy()
    labels: Mapping[str, int] = field(default_factory=dict)


def models_of(config: Any, before: Mapping[str, ModelConfig] | None = None) -> dict[str, ModelConfig]:
    """The models of a `ModelServerConfig`, by name.

    Args:
        config: the message.
        before: the models in force; the platform of one of them cannot change.

    Raises:
        Status: INVALID_ARGUMENT with the real server's wording.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise invalid("custom_model_config: only model_config_list is supported.")
    found: dict[str, ModelConfig] = {}
    for model in config.model_config_list.config:
        if model.name in found:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        if "://" in model.base_path:
            raise invalid(
                f"model {model.name}: {model.base_path} is a URI; this server reads folders of its own machine only. Mount it, or copy the model."
            )
        if not model.base_path.startswith("/"):
            raise invalid(f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}")
        found[model.name] = ModelConfig(model.name, model.base_path, _platform(model), _policy(model), dict(model.version_labels))
        platform = found[model.name].platform
        old = (before or {}).get(model.name)
        if old and old.platform != platform:
            raise invalid(
                f"Illegal to change a model's platform. For model {model.name} platform was {old.platform} "
                f"and new platform requested is {platform}"
            )
        if platform != "tensorflow":
            raise invalid(f"Model {model.name} requests unsupported platform {platform}")
    return found


def _platform(model: Any) -> str:
    if model.model_type and model.model_platform:
        raise invalid(
            f"Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform, model name is {model.name}"
        )
    if not model.model_type and not model.model_platform:
        raise invalid(
            f"Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform, model name is {model.name}"
        )
    return "tensorflow" if model.model_type == 1 else str(model.model_platform)


def _policy(model: Any) -> Policy:
    choice = model.model_version_policy.WhichOneof("policy_choice")
    if choice == "all":
        return Policy("all")
    if choice == "specific":
        return Policy("specific", versions=tuple(model.model_version_policy.specific.versions))
    return Policy("latest", latest=max(1, int(model.model_version_policy.latest.num_versions)))


# ---- batching, TLS, monitoring


@dataclass(frozen=True)
class Batching:
    """How concurrent requests are put together. Defaults are TensorFlow Serving's, but for the bound on the queue.

    Attributes:
        max_batch_size: most rows in a batch.
        timeout_s: how long the first request of a batch waits for others; 0 takes what is there.
        max_enqueued_batches: the queue holds that many full batches; more is refused.
        threads: batches that run at once.
        allowed_sizes: batches are filled up to the next of these; empty: not at all.
        pad_variable_length: inputs of different inner shapes are padded to the largest.
        split_large: a request larger than max_batch_size is split.
        max_execution_size: most rows run at once when requests are split.
    """

    max_batch_size: int = 1000
    timeout_s: float = 0.0
    max_enqueued_batches: int = 10
    threads: int = 2
    allowed_sizes: tuple[int, ...] = ()
    pad_variable_length: bool = False
    split_large: bool = False
    max_execution_size: int = 0


def read_batching(path: str, threads: int) -> Batching:
    """A BatchingParameters file.

    Raises:
        Status: it does not parse, or its sizes do not fit together.
    """
    value = read_text(path, _OWN["BatchingParameters"])

    def given(name: str, default: int) -> int:
        return int(getattr(value, name).value) if value.HasField(name) else default

    standard = Batching()
    batching = Batching(
        max_batch_size=given("max_batch_size", standard.max_batch_size),
        timeout_s=given("batch_timeout_micros", 0) / 1e6,
        max_enqueued_batches=given("max_enqueued_batches", standard.max_enqueued_batches),
        threads=given("num_batch_threads", threads),
        allowed_sizes=tuple(value.allowed_batch_sizes),
        pad_variable_length=value.pad_variable_length_inputs,
        split_large=bool(value.enable_large_batch_splitting.value),
        max_execution_size=given("max_execution_batch_size", 0),
    )
    check_batching(batching)
    return batching


def check_batching(batching: Batching) -> None:
    """Sizes that fit together, in the real server's words.

    Raises:
        Status: INVALID_ARGUMENT.
    """
    values = {
        "max_batch_size": batching.max_batch_size,
        "max_enqueued_batches": batching.max_enqueued_batches,
        "num_batch_threads": batching.threads,
    }
    for name, value in values.items():
        least = 0 if name == "max_enqueued_batches" else 1
        if value < least:
            raise invalid(f"{name} must be at least {least}; was {value}")
    sizes = batching.allowed_sizes
    if sizes and list(sizes) != sorted(set(sizes)):
        raise invalid("allowed_batch_sizes entries must be monotonically increasing")
    most = batching.max_execution_size if batching.split_large and batching.max_execution_size else batching.max_batch_size
    if sizes and sizes[-1] != most:
        raise invalid(f"Last entry in allowed_batch_sizes must match max_batch_size; last entry was {sizes[-1]}; expected {most}")


@dataclass(frozen=True)
class Tls:
    """PEM texts of an SSLConfig. The key never appears in a representation."""

    key: bytes = field(repr=False)
    certificate: bytes
    client_ca: bytes
    verify_client: bool


def read_tls(path: str) -> Tls:
    """An SSLConfig file.

    Raises:
        Status: it does not parse, or has no key or certificate.
    """
    value = read_text(path, _OWN["SSLConfig"])
    if not value.server_key or not value.server_cert:
        raise invalid(f"{path}: server_key and server_cert must hold PEM text")
    if value.client_verify and not value.custom_ca:
        raise invalid(f"{path}: client_verify needs custom_ca, the PEM text of who signs the clients' certificates")
    return Tls(value.server_key.encode(), value.server_cert.encode(), value.custom_ca.encode(), value.client_verify)


DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"


def read_monitoring(path: str) -> str:
    """The path of the Prometheus metrics; empty when they are off.

    Raises:
        Status: the file does not parse.
    """
    value = read_text(path, _OWN["MonitoringConfig"]).prometheus_config
    return str(value.path or DEFAULT_METRICS_PATH) if value.enable else ""
