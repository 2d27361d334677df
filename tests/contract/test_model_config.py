"""ModelServerConfig: what a file and HandleReloadConfigRequest may say, what each mistake is called, and when a reload returns."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tests.contract import saved_models
from tests.contract.conftest import Served, config, predict_log, refused, started, until, write, write_records

Start = Callable[..., "tuple[int, str]"]
NONE = "model_config_list {}"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base paths `one`, `two`, `three` of models that add that much, and `bad`, whose only version is broken."""
    root = tmp_path_factory.mktemp("bases")
    for number, name in enumerate(("one", "two", "three"), 1):
        saved_models.plus(root / name / "1", number)
    saved_models.corrupt(root / "bad" / "1")
    return root


@pytest.fixture(scope="module")
def shared(bases: Path) -> Iterator[Served]:
    """A server that tests give another configuration; each begins with its own."""
    with started(f"--model_config_file={write(bases / 'empty', '')}") as served:
        yield served


WRONG = {
    "the same name twice": (
        'config {{ name: "m" base_path: "{one}" model_platform: "tensorflow" }} config {{ name: "m" base_path: "{two}" model_platform: "tensorflow" }}',
        "Illegal to list model m multiple times in config list",
    ),
    "a relative path": (
        'config {{ name: "m" base_path: "some/where" model_platform: "tensorflow" }}',
        "Expected model m to have an absolute path or URI; got base_path()=some/where",
    ),
    "no path": (
        'config {{ name: "m" model_platform: "tensorflow" }}',
        "Expected model m to have an absolute path or URI; got base_path()=",
    ),
    "a URI (a difference: the real server reads buckets)": (
        'config {{ name: "m" base_path: "gs://bucket/m" model_platform: "tensorflow" }}',
        "model m: gs://bucket/m is a URI; this server reads folders of its own machine only. Mount it, or copy the model.",
    ),
    "no platform": (
        'config {{ name: "m" base_path: "{one}" }}',
        "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform, model name is m",
    ),
    "two platforms": (
        'config {{ name: "m" base_path: "{one}" model_type: TENSORFLOW model_platform: "tensorflow" }}',
        "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform, model name is m",
    ),
    "an unknown platform": (
        'config {{ name: "m" base_path: "{one}" model_platform: "p" }}',
        "Model m requests unsupported platform p",
    ),
}


def _wrong(case: str, bases: Path) -> tuple[str, str]:
    text, message = WRONG[case]
    return "model_config_list {\n" + text.format(one=bases / "one", two=bases / "two") + "\n}", message


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_list_is_refused_by_a_reload(shared: Served, bases: Path, case: str) -> None:
    shared.client.reload(config(kept=bases / "one"))
    text, message = _wrong(case, bases)
    found = refused(shared.client.reload, text)
    assert (found.code, found.details) == ("INVALID_ARGUMENT", message)
    assert shared.client.values("kept", {"x": [1.0]}) == [2.0], "what was in force still is"


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_list_ends_the_start(bases: Path, tmp_path: Path, case: str, start: Start) -> None:
    text, message = _wrong(case, bases)
    status, stdout = start(f"--model_config_file={write(tmp_path / 'config', text)}")
    assert (status, stdout) == (255, f"Failed to start server. Error: INVALID_ARGUMENT: {message}\n")


def test_a_changed_platform(shared: Served, bases: Path) -> None:
    shared.client.reload(config(m=bases / "one"))
    changed = config(m=bases / "one").replace('"tensorflow"', '"other"')
    found = refused(shared.client.reload, changed)
    assert found.code == "INVALID_ARGUMENT"
    assert found.details == (
        "Illegal to change a model's platform. For model m platform was tensorflow and new platform requested is other"
    )


def test_a_custom_config_is_fatal(tmp_path: Path, start: Start) -> None:
    status, stdout = start(f"--model_config_file={write(tmp_path / 'config', 'custom_model_config {}')}")
    assert status == 255
    assert stdout.startswith("Failed to start server. Error: INVALID_ARGUMENT: custom_model_config")


@pytest.mark.parametrize("text", ["", "custom_model_config {}"], ids=["nothing", "custom"])
def test_a_reload_takes_a_list_only(shared: Served, text: str) -> None:
    found = refused(shared.client.reload, text)
    assert found.code == "INVALID_ARGUMENT"
    assert found.details == (
        "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently supported"
    )


def test_every_field_of_a_model_config_is_read(shared: Served, bases: Path) -> None:
    text = f"""model_config_list {{
        config {{ name: "old" base_path: "{bases / "one"}" model_type: TENSORFLOW }}
        config {{
            name: "new" base_path: "{bases / "two"}" model_platform: "tensorflow"
            model_version_policy {{ specific {{ versions: 1 }} }}
            logging_config {{ sampling_config {{ sampling_rate: 0.1 }} }}
        }}
    }}"""
    shared.client.reload(text)
    assert shared.client.values("old", {"x": [1.0]}) == [2.0]
    assert shared.client.values("new", {"x": [1.0]}) == [3.0]


def test_an_empty_file_is_a_server_without_models(shared: Served) -> None:
    shared.client.reload(NONE)
    found = refused(shared.client.predict, "m", {"x": [1.0]})
    assert (found.code, found.details) == ("NOT_FOUND", "Servable not found for request: Latest(m)")


# ---- reloading


def test_a_reload_returns_when_the_new_models_answer(shared: Served, bases: Path) -> None:
    for text in (config(a=bases / "one"), config(b=bases / "two", c=bases / "three")):
        answer = shared.client.reload(text)
        assert (answer.status.error_code, answer.status.error_message) == (0, "")
    assert shared.client.values("b", {"x": [1.0]}) == [3.0]
    assert shared.client.values("c", {"x": [1.0]}) == [4.0]


def test_a_reload_replaces_the_whole_list(shared: Served, bases: Path) -> None:
    shared.client.reload(config(a=bases / "one", b=bases / "two"))
    shared.client.reload(config(b=bases / "two"))
    until(lambda: shared.client.states("a") == {1: "END"}, "a is unloaded")
    assert refused(shared.client.predict, "a", {"x": [1.0]}).details == "Servable not found for request: Latest(a)"
    assert shared.client.values("b", {"x": [1.0]}) == [3.0]


def test_an_empty_list_unloads_everything(shared: Served, bases: Path) -> None:
    shared.client.reload(config(a=bases / "one", b=bases / "two"))
    shared.client.reload(NONE)
    until(lambda: [shared.client.states(name) for name in "ab"] == [{1: "END"}] * 2, "both are unloaded")


def test_a_model_that_was_removed_comes_back(shared: Served, bases: Path) -> None:
    """Its END from before is not taken for the outcome of the new load."""
    for _ in range(3):
        shared.client.reload(config(again=bases / "one"))
        assert shared.client.values("again", {"x": [1.0]}) == [2.0]
        shared.client.reload(NONE)
        until(lambda: shared.client.states("again") == {1: "END"}, "it is unloaded")


def test_a_model_that_comes_back_while_a_request_still_keeps_it_is_loaded_anew(shared: Served, tmp_path: Path) -> None:
    base = tmp_path / "kept"
    saved_models.slow(base / "1")
    client = shared.client
    client.reload(config(kept_busy=base))
    running = threading.Thread(target=client.values, args=("kept_busy", {"x": np.int32([200_000])}))
    running.start()
    until(lambda: shared.users("kept_busy", 1), "a request runs")
    client.reload(NONE)
    until(lambda: client.states("kept_busy") == {1: "UNLOADING"}, "it waits for the request")
    client.reload(config(kept_busy=base))
    assert client.values("kept_busy", {"x": np.int32([1])}) == [1]
    running.join()


def test_a_new_model_that_cannot_be_loaded(shared: Served, bases: Path) -> None:
    shared.client.reload(config(a=bases / "one"))
    found = refused(shared.client.reload, config(a=bases / "one", bad=bases / "bad", b=bases / "two"))
    assert found.code == "UNKNOWN"
    reason = f"Can't parse {bases / 'bad' / '1' / 'saved_model.pb'} as binary proto"
    assert found.details == f"1 model(s) did not become available: {{{{{{name: bad version: 1}} due to error: DATA_LOSS: {reason}}}, }}"
    assert shared.client.values("a", {"x": [1.0]}) == [2.0]
    assert shared.client.values("b", {"x": [1.0]}) == [3.0], "the others are loaded all the same"


def test_a_model_that_failed_is_tried_again_when_it_is_named_anew(shared: Served, tmp_path: Path) -> None:
    saved_models.corrupt(tmp_path / "1")
    assert refused(shared.client.reload, config(mended=tmp_path)).code == "UNKNOWN"
    shared.client.reload(NONE)
    (tmp_path / "1" / "saved_model.pb").unlink()
    (tmp_path / "1").rmdir()
    saved_models.plus(tmp_path / "1", 5)
    shared.client.reload(config(mended=tmp_path))
    assert shared.client.values("mended", {"x": [1.0]}) == [6.0]


def test_a_reload_waits_for_new_models_and_not_for_new_versions(shared: Served, tmp_path: Path) -> None:
    base = tmp_path / "slow"
    saved_models.slow(base / "1")
    client = shared.client
    client.reload(config(slow=base))
    saved_models.slow(base / "2")
    write_records(base / "2", predict_log(x=np.int32([300_000])))
    client.reload(config(slow=(base, "model_version_policy { all {} }")))
    assert client.states("slow").get(2) != "AVAILABLE"
    until(lambda: client.states("slow") == {2: "AVAILABLE", 1: "AVAILABLE"}, "2 is loaded")


def test_the_base_path_of_a_model_can_change(shared: Served, bases: Path) -> None:
    shared.client.reload(config(m=bases / "one"))
    moved = bases / "moved"
    if not moved.exists():
        saved_models.plus(moved / "2", 7)
    shared.client.reload(config(m=moved))
    until(lambda: shared.client.states("m") == {2: "AVAILABLE", 1: "END"}, "the other folder's version is loaded")
    assert shared.client.values("m", {"x": [1.0]}) == [8.0]


def test_difference_a_reload_does_not_outlive_its_client(shared: Served, tmp_path: Path) -> None:
    """The real server waits for ever for a base path that does not exist."""
    found = refused(shared.client.reload, config(absent=tmp_path / "absent"), timeout_s=0.3)
    assert found.code == "DEADLINE_EXCEEDED"
    shared.client.reload(NONE)


@pytest.mark.parametrize("wait", ["0", "-1"])
def test_difference_a_reload_is_acted_on_at_once(serve: Callable[..., Served], bases: Path, tmp_path: Path, wait: str) -> None:
    """The real server finds new models at its next poll: never, with these flags (upstream issue 1519)."""
    flags = (f"--model_config_file={write(tmp_path / 'config', config(a=bases / 'one'))}", f"--file_system_poll_wait_seconds={wait}")
    client = serve(*flags).client
    assert client.values("a", {"x": [1.0]}) == [2.0]
    client.reload(config(a=bases / "one", b=bases / "two"))
    assert client.values("b", {"x": [1.0]}) == [3.0]


# ---- the file, read again and again


@pytest.fixture
def polled(bases: Path, tmp_path: Path) -> Iterator[tuple[Served, Path]]:
    """A server that reads its file every second, and the file."""
    file = write(tmp_path / "config", config(a=bases / "one"))
    stop = threading.Event()
    with started(f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=1") as served:
        waiting = threading.Thread(target=served.running.wait, args=(stop,))
        waiting.start()
        yield served, file
        stop.set()
        waiting.join()


def test_a_bad_file_is_logged_and_a_good_one_is_applied(polled: tuple[Served, Path], bases: Path, caplog: pytest.LogCaptureFixture) -> None:
    served, file = polled
    with caplog.at_level(logging.ERROR):
        write(file, "model_config_list { nonsense")
        until(lambda: "not applied" in caplog.text, "it is logged")
    assert served.client.values("a", {"x": [1.0]}) == [2.0]
    write(file, config(b=bases / "two"))
    until(lambda: served.client.states("b") == {1: "AVAILABLE"}, "b is loaded")
    until(lambda: served.client.states("a") == {1: "END"}, "a is unloaded")


def test_a_file_that_is_not_to_be_read_again_is_not(serve: Callable[..., Served], bases: Path, tmp_path: Path) -> None:
    saved_models.plus(tmp_path / "m" / "1", 1)
    file = write(tmp_path / "config", config(m=tmp_path / "m"))
    served = serve(f"--model_config_file={file}")
    stop = threading.Event()
    waiting = threading.Thread(target=served.running.wait, args=(stop,))
    waiting.start()
    write(file, config(b=bases / "two"))
    saved_models.plus(tmp_path / "m" / "2", 2)
    until(lambda: served.client.states("m") == {2: "AVAILABLE", 1: "END"}, "a new version is found, by many polls of the folder")
    assert served.client.states("b") == {}
    stop.set()
    waiting.join()


def test_requests_go_on_while_the_configuration_changes(shared: Served, bases: Path) -> None:
    client = shared.client
    client.reload(config(kept=bases / "one"))
    stop, failures = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            try:
                assert client.values("kept", {"x": [1.0]}) == [2.0]
            except (grpc.RpcError, AssertionError) as error:
                failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    for _ in range(5):
        client.reload(config(kept=bases / "one", other=bases / "two"))
        client.reload(config(kept=bases / "one"))
    stop.set()
    asking.join()
    assert not failures


def test_a_config_that_was_built_as_a_message(shared: Served, bases: Path) -> None:
    """As clients in Python build it."""
    message = model_server_config_pb2.ModelServerConfig()
    entry: Any = message.model_config_list.config.add(name="built", base_path=str(bases / "three"), model_platform="tensorflow")
    entry.model_version_policy.latest.num_versions = 1
    assert text_format.MessageToString(message)
    shared.client.reload(message)
    assert shared.client.values("built", {"x": [1.0]}) == [4.0]
