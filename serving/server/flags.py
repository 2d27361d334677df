"""tensorflow_model_server's flags under their own names, and a few of ours. Frees the rest from parsing and from unknown values.

`--name=value` only, as in the real server; booleans also bare `--name`; the last one wins. Deliberately different: a flag that does not exist, or
a value that does not parse, is an error (the real server prints its usage and goes on). A flag that has no meaning here is accepted and named in
one warning. Imports the standard library only.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.errors import ConfigError

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _flag(default: Any, meaning: str) -> Any:
    return dataclasses.field(default=default, metadata={"meaning": meaning})


def _ignored(default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"meaning": "accepted, without effect here", "ignored": True})


@dataclass(frozen=True)
class Flags:
    """Every flag by its name; defaults are the real server's unless the meaning says otherwise."""

    port: int = _flag(8500, "gRPC port; 0 = none (then grpc_socket_path must be given)")
    grpc_socket_path: str = _flag("", "also listen on this UNIX socket")
    rest_api_port: int = _flag(0, "REST port; 0 = no REST")
    rest_api_num_threads: int = _flag(max(64, 4 * CPUS), "threads for REST; more than the real default, as one waits in a batch")
    rest_api_timeout_in_ms: int = _flag(30_000, "longest time a REST request may take")
    rest_api_enable_cors_support: bool = _flag(False, "answer with CORS headers")
    enable_batching: bool = _flag(False, "run concurrent requests together")
    batching_parameters_file: str = _flag("", "text BatchingParameters")
    enable_per_model_batching_parameters: bool = _flag(False, "batching_params.pbtxt in the version's folder; none there = not batched")
    allow_version_labels_for_unavailable_models: bool = _flag(False, "new labels may name versions that are not loaded yet")
    model_config_file: str = _flag("", "text ModelServerConfig; model_name and model_base_path are then ignored")
    model_config_file_poll_wait_seconds: int = _flag(0, "read model_config_file again that often; 0 = once")
    model_name: str = _flag("default", "name of the only model")
    model_base_path: str = _flag("", "absolute folder of the only model's versions")
    num_load_threads: int = _ignored(0)
    num_unload_threads: int = _ignored(0)
    max_num_load_retries: int = _flag(5, "further attempts to load a version that failed")
    load_retry_interval_micros: int = _flag(60_000_000, "pause between the attempts")
    file_system_poll_wait_seconds: float = _flag(1.0, "look for new versions that often; 0 = once, negative = never")
    flush_filesystem_caches: bool = _ignored(True)
    tensorflow_session_parallelism: int = _flag(0, "threads inside and between ops")
    tensorflow_intra_op_parallelism: int = _flag(0, "threads inside an op; 0 = all cores")
    tensorflow_inter_op_parallelism: int = _flag(0, "threads between ops; 0 = all cores")
    tensorflow_session_config_file: str = _flag("", "text tensorflow.ConfigProto")
    use_alts_credentials: bool = _ignored(False)
    ssl_config_file: str = _flag("", "text SSLConfig: TLS on gRPC, with client_verify mutual")
    platform_config_file: str = _ignored("")
    per_process_gpu_memory_fraction: float = _ignored(0.0)
    saved_model_tags: str = _flag("serve", "comma-separated tags of the graph to load")
    grpc_channel_arguments: str = _flag("", "k=v,k=v for the gRPC server")
    grpc_max_threads: int = _flag(max(64, 4 * CPUS), "threads for gRPC; more than the real default, as one waits in a batch")
    enable_model_warmup: bool = _flag(True, "replay assets.extra/tf_serving_warmup_requests at load")
    num_request_iterations_for_warmup: int = _flag(0, "times each warm-up record is run; 0 = once")
    version: bool = _flag(False, "print versions and exit")
    monitoring_config_file: str = _flag("", "text MonitoringConfig: Prometheus metrics on the REST port")
    remove_unused_fields_from_bundle_metagraph: bool = _ignored(True)
    prefer_tflite_model: bool = _flag(False, "serve model.tflite where there is one")
    num_tflite_pools: int = _ignored(CPUS)
    num_tflite_interpreters_per_pool: int = _ignored(1)
    enable_signature_method_name_check: bool = _flag(False, "insist on method_name in Predict, Classify and Regress")
    xla_cpu_compilation_enabled: bool = _ignored(False)
    xla_gpu_compilation_enabled: bool = _ignored(False)
    enable_profiler: bool = _ignored(True)
    thread_pool_factory_config_file: str = _ignored("")
    mixed_precision: str = _ignored("")
    skip_initialize_tpu: bool = _ignored(False)
    enable_grpc_healthcheck_service: bool = _flag(False, "the health service is always on here, and tells readiness")
    enable_serialization_as_tensor_content: bool = _flag(False, "Predict answers as tensor_content instead of typed fields")
    # ---- of ours
    host: str = _flag("127.0.0.1", "(ours) address to listen on; 0.0.0.0 or :: for all")
    models_root: str = _flag("", "(ours) serve every model under this folder, the versions and labels that push left there")
    use_installed: bool = _flag(False, "(ours) with models_root: run tensorflow_model_server instead, when it is on the PATH")
    max_message_bytes: int = _flag(64 << 20, "(ours) largest request")
    max_concurrent_requests: int = _flag(256, "(ours) requests at work or waiting; more are refused with RESOURCE_EXHAUSTED")
    max_request_rows: int = _flag(4096, "(ours) largest first dimension of a request's inputs")
    max_request_ids: int = _flag(
        1 << 16, "(ours) most integers in an input of two or more dimensions: ids, whose work grows with their square"
    )
    max_text_bytes: int = _flag(1 << 20, "(ours) longest string in a request")
    max_request_seconds: float = _flag(60.0, "(ours) longest time a gRPC request may take, whatever its deadline")
    drain_seconds: float = _flag(20.0, "(ours) time for running requests after SIGTERM")
    page: str = _flag(
        "auto", "(ours) a page to try models on, at / of the REST port: on, off, or auto = off when clients need certificates"
    )
    page_hosts: str = _flag("", "(ours) further names of this server, a,b, under which a proxy on this machine may ask for the page")
    drift_report: str = _flag("", "(ours) JSON file that `serving monitor --json` leaves; its verdict is shown on the page")
    access_log: str = _flag("", "(ours) append one JSON line per request to this file; - = stderr")
    journal: str = _flag("", "(ours) keep what was asked and answered in this folder, for the monitor and for feedback")
    journal_sampling: float = _flag(1.0, "(ours) share of the requests that the journal keeps, decided by the request's id")
    journal_text: str = _flag("none", "(ours) none, or redacted: texts without mail addresses, phone, card and identity numbers")
    journal_names: str = _flag("", "(ours) with journal_text=redacted: an installed spaCy pipeline, whose names of people are redacted too")
    journal_key_file: str = _flag("", "(ours) key of the journal's text hashes; made if it is not there; empty = key in the folder")
    journal_retention_days: float = _flag(30.0, "(ours) the journal's files go after so many days; 0 = never")


FIELDS = {field.name: field for field in dataclasses.fields(Flags)}


def parse(arguments: Sequence[str]) -> tuple[Flags, list[str]]:
    """Flags from a command line, and the names of those that have no effect here.

    Raises:
        ConfigError: an unknown flag (naming the nearest one), a value that does not parse, or flags that exclude each other.
    """
    values: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name not in FIELDS:
            raise ConfigError(_unknown(argument, name))
        values[name] = _value(FIELDS[name], text, bool(equals))
    flags = Flags(**values)
    _check(flags)
    ignored = [name for name, value in values.items() if FIELDS[name].metadata.get("ignored") and value != FIELDS[name].default]
    return flags, ignored


def _unknown(argument: str, name: str) -> str:
    if not argument.startswith("--"):
        return f"argument {argument!r}: expected --name=value. TensorFlow Serving's flags take their value after an equals sign."
    nearest = difflib.get_close_matches(name, FIELDS, 1)
    hint = f" Did you mean --{nearest[0]}?" if nearest else " `python -m serving serve --help` lists them."
    return f"unknown flag --{name}.{hint}"


def _value(field: dataclasses.Field[Any], text: str, given: bool) -> Any:
    kind = str(field.type)
    if kind == "bool":
        lowered = text.lower()
        if not given or lowered in ("true", "1"):
            return True
        if lowered in ("false", "0"):
            return False
        raise ConfigError(f"--{field.name}={text}: expected true, false, 1 or 0.")
    if not given:
        raise ConfigError(f"--{field.name}: expected a value: --{field.name}={field.default or '...'}")
    if kind == "str":
        return text
    # Python would also read 1_000, blanks around a number, and nan.
    pattern = r"[+-]?\d{1,19}" if kind == "int" else r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
    if not re.fullmatch(pattern, text, re.ASCII):
        raise ConfigError(f"--{field.name}={text}: expected {'a whole number' if kind == 'int' else 'a number'}.")
    return int(text) if kind == "int" else float(text)


def _check(flags: Flags) -> None:
    """What the real server refuses at its start, and ranges of our own."""
    if not flags.port and not flags.grpc_socket_path:
        raise ConfigError("--port=0 switches gRPC off: give --grpc_socket_path, or a port.")
    if not flags.version and not (flags.model_config_file or flags.model_base_path or flags.models_root):
        raise ConfigError("nothing to serve: give --model_config_file, --model_base_path or --models_root.")
    if flags.use_installed and not flags.models_root:
        raise ConfigError("--use_installed needs --models_root.")
    if flags.batching_parameters_file and not flags.enable_batching:
        raise ConfigError("--batching_parameters_file without --enable_batching: add --enable_batching.")
    parallelism = (flags.tensorflow_session_parallelism, flags.tensorflow_intra_op_parallelism, flags.tensorflow_inter_op_parallelism)
    if all(value > 0 for value in parallelism):
        raise ConfigError(
            "--tensorflow_session_parallelism excludes --tensorflow_intra_op_parallelism with --tensorflow_inter_op_parallelism."
        )
    if flags.use_alts_credentials:
        raise ConfigError("--use_alts_credentials: ALTS exists only on Google Cloud. Use --ssl_config_file.")
    for name in ("port", "rest_api_port"):
        if not 0 <= getattr(flags, name) <= 65535:
            raise ConfigError(f"--{name}={getattr(flags, name)}: expected 0 to 65535.")
    for name in ("grpc_max_threads", "rest_api_num_threads", "max_message_bytes", "max_concurrent_requests", "max_request_rows", "max_request_ids", "max_text_bytes",
                 "rest_api_timeout_in_ms"):  # fmt: skip
        if getattr(flags, name) < 1:
            raise ConfigError(f"--{name}={getattr(flags, name)}: expected 1 or more.")
    for name in ("max_num_load_retries", "load_retry_interval_micros", "drain_seconds"):
        if not 0 <= getattr(flags, name) < 1e15:
            raise ConfigError(f"--{name}={getattr(flags, name)}: expected 0 or more.")
    _check_journal(flags)
    if flags.page not in ("auto", "on", "off"):
        raise ConfigError(f"--page={flags.page}: expected auto, on or off.")
    if not 0 < flags.max_request_seconds < 1e9:
        raise ConfigError(f"--max_request_seconds={flags.max_request_seconds}: expected more than 0.")


def _check_journal(flags: Flags) -> None:
    given = [name for name, field in FIELDS.items() if name.startswith("journal_") and getattr(flags, name) != field.default]
    if given and not flags.journal:
        raise ConfigError(f"--{given[0]} without a journal: add --journal=FOLDER.")
    if flags.journal_text not in ("none", "redacted"):
        raise ConfigError(f"--journal_text={flags.journal_text}: expected none or redacted.")
    if flags.journal_names and flags.journal_text != "redacted":
        raise ConfigError(f"--journal_names={flags.journal_names} without texts: add --journal_text=redacted.")
    if not 0 <= flags.journal_sampling <= 1:
        raise ConfigError(f"--journal_sampling={flags.journal_sampling}: expected 0 to 1.")
    if flags.journal_retention_days and not 1 <= flags.journal_retention_days < 1e6:
        raise ConfigError(f"--journal_retention_days={flags.journal_retention_days}: expected 1 or more, or 0 for ever.")


def usage() -> str:
    """All flags with default and meaning."""
    lines = ["python -m serving serve --name=value ...", "", "TensorFlow Serving's own flags, by their names:"]
    for name, field in FIELDS.items():
        if not field.metadata.get("ignored"):
            lines.append(f"  --{name}={_shown(field.default)}\n        {field.metadata['meaning']}")
    lines += ["", "Accepted without effect here:"]
    lines.append("  " + ", ".join(f"--{name}" for name, field in FIELDS.items() if field.metadata.get("ignored")))
    lines += ["", "example:", "  python -m serving serve --models_root=models --port=8500 --rest_api_port=8501 --enable_batching"]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
