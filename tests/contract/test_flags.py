"""tensorflow_model_server's flags: every one by its name, how values are written, which exclude each other, and what some of them do."""

from __future__ import annotations

import dataclasses
import logging
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from serving import cli
from serving.errors import ConfigError
from serving.server.flags import CPUS, FIELDS, Flags, parse, usage
from serving.server.grpc_edge import _channel_arguments
from tests.contract.conftest import Client, Served, free_port, refused, write

Serve = Callable[..., Served]
Start = Callable[..., "tuple[int, str]"]
BASE = "--model_base_path=/models/m"

# Name -> (default of the real server, another value, whether it has an effect here).
UPSTREAM: dict[str, tuple[Any, str, bool]] = {
    "port": (8500, "1", True),
    "grpc_socket_path": ("", "/tmp/s", True),
    "rest_api_port": (0, "1", True),
    "rest_api_num_threads": (max(64, 4 * CPUS), "3", True),
    "rest_api_timeout_in_ms": (30000, "1", True),
    "rest_api_enable_cors_support": (False, "true", True),
    "enable_batching": (False, "true", True),
    "batching_parameters_file": ("", "", True),
    "enable_per_model_batching_parameters": (False, "true", True),
    "allow_version_labels_for_unavailable_models": (False, "true", True),
    "model_config_file": ("", "f", True),
    "model_config_file_poll_wait_seconds": (0, "5", True),
    "model_name": ("default", "m", True),
    "model_base_path": ("", "/m", True),
    "num_load_threads": (0, "4", False),
    "num_unload_threads": (0, "4", False),
    "max_num_load_retries": (5, "0", True),
    "load_retry_interval_micros": (60_000_000, "1", True),
    "file_system_poll_wait_seconds": (1, "-1", True),
    "flush_filesystem_caches": (True, "false", False),
    "tensorflow_session_parallelism": (0, "2", True),
    "tensorflow_intra_op_parallelism": (0, "2", True),
    "tensorflow_inter_op_parallelism": (0, "2", True),
    "tensorflow_session_config_file": ("", "f", True),
    "use_alts_credentials": (False, "false", False),
    "ssl_config_file": ("", "f", True),
    "platform_config_file": ("", "f", False),
    "per_process_gpu_memory_fraction": (0.0, "0.5", False),
    "saved_model_tags": ("serve", "a,b", True),
    "grpc_channel_arguments": ("", "a=1", True),
    "grpc_max_threads": (max(64, 4 * CPUS), "3", True),
    "enable_model_warmup": (True, "false", True),
    "num_request_iterations_for_warmup": (0, "3", True),
    "version": (False, "true", True),
    "monitoring_config_file": ("", "f", True),
    "remove_unused_fields_from_bundle_metagraph": (True, "false", False),
    "prefer_tflite_model": (False, "true", True),
    "num_tflite_pools": (CPUS, "77", False),
    "num_tflite_interpreters_per_pool": (1, "2", False),
    "enable_signature_method_name_check": (False, "true", True),
    "xla_cpu_compilation_enabled": (False, "true", False),
    "xla_gpu_compilation_enabled": (False, "true", False),
    "enable_profiler": (True, "false", False),
    "thread_pool_factory_config_file": ("", "f", False),
    "mixed_precision": ("", "bfloat16", False),
    "skip_initialize_tpu": (False, "true", False),
    "enable_grpc_healthcheck_service": (False, "true", True),
    "enable_serialization_as_tensor_content": (False, "true", True),
}


def test_all_48_flags_are_there() -> None:
    assert len(UPSTREAM) == 48
    assert set(UPSTREAM) <= set(FIELDS)


@pytest.mark.parametrize("name", UPSTREAM)
def test_a_flag_has_its_default_takes_a_value_and_says_when_it_does_nothing(name: str) -> None:
    default, other, has_effect = UPSTREAM[name]
    assert getattr(Flags(), name) == default
    flags, ignored = parse([BASE, f"--{name}={other}"])
    kind = type(default)
    assert getattr(flags, name) == (other.lower() == "true" if kind is bool else kind(other))
    if getattr(flags, name) != default:
        assert ignored == ([] if has_effect else [name])


def test_difference_the_defaults_of_ours_listen_on_loopback_and_bound_everything() -> None:
    flags = Flags()
    assert flags.host == "127.0.0.1"
    bounds = ("max_message_bytes", "max_concurrent_requests", "max_request_rows", "max_text_bytes", "max_request_seconds", "drain_seconds")
    assert all(0 < getattr(flags, name) < 1e9 for name in bounds)


# ---- how they are written


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--enable_batching", True),
        ("--enable_batching=true", True),
        ("--enable_batching=TRUE", True),
        ("--enable_batching=1", True),
        ("--enable_batching=false", False),
        ("--enable_batching=False", False),
        ("--enable_batching=0", False),
    ],
)
def test_booleans(argument: str, expected: bool) -> None:
    assert parse([BASE, argument])[0].enable_batching is expected


def test_the_last_one_wins() -> None:
    assert parse([BASE, "--port=1", "--port=2"])[0].port == 2


def test_a_value_may_have_equals_signs() -> None:
    assert parse([BASE, "--grpc_channel_arguments=a=1,b=x"])[0].grpc_channel_arguments == "a=1,b=x"


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--port=x", "--port=x: expected a whole number."),
        ("--port=", "--port=: expected a whole number."),
        ("--port=1.5", "--port=1.5: expected a whole number."),
        ("--port=1_000", "--port=1_000: expected a whole number."),
        ("--port= 1", "--port= 1: expected a whole number."),
        ("--port=99999", "--port=99999: expected 0 to 65535."),
        ("--rest_api_port=-1", "--rest_api_port=-1: expected 0 to 65535."),
        ("--port", "--port: expected a value: --port=8500"),
        ("--drain_seconds=nan", "--drain_seconds=nan: expected a number."),
        ("--drain_seconds=-1", "--drain_seconds=-1.0: expected 0 or more."),
        ("--max_request_seconds=0", "--max_request_seconds=0.0: expected more than 0."),
        ("--max_num_load_retries=-1", "--max_num_load_retries=-1: expected 0 or more."),
        ("--max_request_rows=0", "--max_request_rows=0: expected 1 or more."),
        ("--enable_batching=yes", "--enable_batching=yes: expected true, false, 1 or 0."),
    ],
)
def test_a_value_that_does_not_parse(argument: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse([BASE, argument])
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prot=1"], "unknown flag --prot. Did you mean --port?"),
        (["--zzzzzzzz"], "unknown flag --zzzzzzzz. `python -m serving serve --help` lists them."),
        (["--port", "8500"], "--port: expected a value: --port=8500"),
        (["8500"], "argument '8500': expected --name=value. TensorFlow Serving's flags take their value after an equals sign."),
        (["-port=1"], "argument '-port=1': expected --name=value. TensorFlow Serving's flags take their value after an equals sign."),
        (["--"], "unknown flag --. `python -m serving serve --help` lists them."),
    ],
)
def test_difference_an_unknown_argument_is_an_error(arguments: list[str], says: str) -> None:
    """The real server prints its usage and goes on without it."""
    with pytest.raises(ConfigError) as caught:
        parse([BASE, *arguments])
    assert str(caught.value) == says


def test_difference_a_flag_that_is_wrong_ends_with_the_exit_status_of_a_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    """255 in the real server, which this one keeps for what goes wrong after the flags."""
    assert cli.main(["serve", "--prot=1"]) == 2
    assert "unknown flag --prot. Did you mean --port?" in capsys.readouterr().err


# ---- which go together


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing to serve"),
        ([BASE, "--batching_parameters_file=f"], "--batching_parameters_file without --enable_batching"),
        ([BASE, "--port=0"], "--port=0 switches gRPC off: give --grpc_socket_path"),
        (
            [BASE, "--tensorflow_session_parallelism=1", "--tensorflow_intra_op_parallelism=1", "--tensorflow_inter_op_parallelism=1"],
            "--tensorflow_session_parallelism excludes",
        ),
        ([BASE, "--use_alts_credentials", "--ssl_config_file=f"], "--use_alts_credentials"),
    ],
)
def test_flags_that_exclude_each_other(arguments: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=f"^{says}"):
        parse(arguments)


def test_a_config_file_makes_the_single_model_flags_void(serve: Serve, models: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "config", "")
    client = serve(f"--model_config_file={file}", "--model_name=m", f"--model_base_path={models / 'half_plus_two'}").client
    assert refused(client.predict, "m", {"x": [1.0]}).code == "NOT_FOUND"


def test_the_single_model_is_called_default(serve: Serve, models: Path) -> None:
    client = serve(f"--model_base_path={models / 'half_plus_two'}").client
    assert client.values("default", {"x": [2.0]}) == [3.0]


# ---- what they print


def test_version_prints_two_lines(start: Start) -> None:
    status, stdout = start("--version")
    assert status == 0
    assert len(stdout.splitlines()) == 2
    assert stdout.splitlines()[1].startswith("TensorFlow Library: 2.")


def test_help_lists_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown == usage() + "\n"
    assert all(f"--{field.name}" in shown for field in dataclasses.fields(Flags))


def test_flags_without_effect_are_named_in_one_warning(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    missing = f"--model_config_file={tmp_path / 'none'}"
    with caplog.at_level(logging.WARNING):
        start(missing, "--num_load_threads=4", "--mixed_precision=bfloat16", "--flush_filesystem_caches=true", "--enable_batching")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["accepted without effect here: --num_load_threads, --mixed_precision"]


# ---- what they do


@pytest.mark.parametrize(
    "flags",
    [
        ["--tensorflow_session_parallelism=1"],
        ["--tensorflow_intra_op_parallelism=1", "--tensorflow_inter_op_parallelism=1"],
        ["--tensorflow_session_config_file={file}"],
    ],
)
def test_threads_of_a_session(serve: Serve, models: Path, tmp_path: Path, flags: list[str]) -> None:
    file = write(tmp_path / "session.config", "intra_op_parallelism_threads: 1 inter_op_parallelism_threads: 1")
    served = serve(f"--model_base_path={models / 'half_plus_two'}", *[flag.format(file=file) for flag in flags])
    assert served.running.server._options.intra_op_parallelism_threads == 1
    assert served.running.server._options.inter_op_parallelism_threads == 1
    assert served.client.values("default", {"x": [2.0]}) == [3.0]


def test_a_session_config_that_does_not_parse(start: Start, models: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "session.config", "no_such_field: 1")
    status, stdout = start(f"--model_base_path={models / 'half_plus_two'}", f"--tensorflow_session_config_file={file}")
    assert status == 255
    assert stdout.startswith("Failed to start server. Error: INVALID_ARGUMENT: Error parsing text-format tensorflow.ConfigProto: ")


def test_channel_arguments_are_numbers_or_text() -> None:
    assert _channel_arguments("") == []
    assert _channel_arguments("a=1,b=-2,c=x,d=") == [("a", 1), ("b", -2), ("c", "x"), ("d", "")]


def test_channel_arguments_reach_the_server(serve: Serve, models: Path) -> None:
    client = serve(f"--model_base_path={models / 'half_plus_two'}", "--grpc_channel_arguments=grpc.max_connection_age_ms=100").client
    events: list[Any] = []
    client.channel.subscribe(events.append, try_to_connect=True)
    deadline = time.monotonic() + 20
    while grpc.ChannelConnectivity.IDLE not in events[1:]:
        assert time.monotonic() < deadline, f"the connection was never closed for its age: {events}"
        time.sleep(0.01)


def test_a_rest_request_has_a_timeout(serve: Serve, models: Path) -> None:
    served = serve(f"--model_base_path={models / 'slow'}", "--rest_api_timeout_in_ms=200", rest=True)
    status, text = served.http("/v1/models/default:predict", {"instances": [2_000_000_000]})
    assert status == 504, text


@pytest.mark.parametrize(("flags", "expected"), [([], None), (["--rest_api_enable_cors_support"], "*")])
def test_cors_headers(serve: Serve, models: Path, flags: list[str], expected: str | None) -> None:
    served = serve(f"--model_base_path={models / 'half_plus_two'}", *flags, rest=True)
    with urllib.request.urlopen(f"{served.rest}/v1/models/default", timeout=10) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == expected


def test_a_rest_port_that_is_the_grpc_port_switches_rest_off(serve: Serve, models: Path, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    served = serve(f"--model_base_path={models / 'half_plus_two'}", f"--port={port}", f"--rest_api_port={port}")
    assert "--rest_api_port is the same as --port" in caplog.text
    assert served.running.rest == 0
    assert served.client.values("default", {"x": [2.0]}) == [3.0]


def test_a_socket_instead_of_a_port(serve: Serve, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "grpc.socket"
    served = serve(f"--model_base_path={models / 'half_plus_two'}", "--port=0", f"--grpc_socket_path={path}")
    assert served.running.grpc == 0
    with Client(f"unix:{path}") as client:
        assert client.values("default", {"x": [2.0]}) == [3.0]


def test_a_socket_besides_the_port(serve: Serve, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "grpc.socket"
    served = serve(f"--model_base_path={models / 'half_plus_two'}", f"--grpc_socket_path={path}")
    assert served.client.values("default", {"x": [2.0]}) == [3.0]
    with Client(f"unix:{path}") as client:
        assert client.values("default", {"x": [2.0]}) == [3.0]


def test_difference_more_requests_at_once_than_the_limit_are_refused(serve: Serve, models: Path) -> None:
    served = serve(f"--model_base_path={models / 'slow'}", "--max_concurrent_requests=1")
    request = predict_pb2.PredictRequest(model_spec={"name": "default"})
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.int32([200_000])))
    calls = [served.client.prediction.Predict.future(request, timeout=20) for _ in range(5)]
    codes = sorted(call.code().name for call in calls)
    assert "OK" in codes
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}


def test_difference_there_is_no_profiler_service(static: Served) -> None:
    call = static.client.channel.unary_unary("/tensorflow.ProfilerService/Profile")
    assert refused(call, b"", timeout=5).code == "UNIMPLEMENTED"
