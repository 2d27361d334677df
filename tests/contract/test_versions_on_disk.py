"""A base path's children: which of them are versions, which are loaded, and what happens while they come and go."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving.server.status import Status
from tests.contract import saved_models
from tests.contract.conftest import Client, Served, config, predict_log, refused, until, write, write_records

Serve = Callable[..., Served]


def _versions(base: Path, *names: str) -> Path:
    """Models that add their version's number, under these folder names."""
    for name in names:
        saved_models.plus(base / name, int(name))
    return base


def _publish(base: Path, name: str, constant: int) -> None:
    """Appears whole, by a rename, as a push does it."""
    saved_models.plus(base / f"tmp-{name}", constant)
    (base / f"tmp-{name}").rename(base / name)


def _answer(client: Client, **spec: Any) -> float:
    return float(client.values("m", {"x": [0.0]}, **spec)[0])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "m"
    path.mkdir()
    return path


@pytest.fixture
def serve_base(serve: Serve, base: Path, tmp_path: Path) -> Callable[..., Client]:
    """Starts a server over `base` as model `m`, with a policy."""

    def start(policy: str = "", *flags: str) -> Client:
        file = write(tmp_path / "config", config(m=(base, f"model_version_policy {{ {policy} }}" if policy else "")))
        return serve(f"--model_config_file={file}", *flags).client

    return start


# ---- which are versions


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["00000123"], 123),
        (["9", "10"], 10),
        (["2", "0010"], 10),
        (["1", "0"], 1),
        (["9223372036854775807", "5"], 9223372036854775807),
    ],
    ids=str,
)
def test_the_highest_number_is_the_latest(base: Path, serve_base: Callable[..., Client], names: list[str], expected: int) -> None:
    _versions(base, *names)
    client = serve_base()
    assert client.states("m") == {expected: "AVAILABLE"}
    assert client.predict("m", {"x": [0.0]}).model_spec.version.value == expected


def test_other_names_are_not_versions(base: Path, serve_base: Callable[..., Client]) -> None:
    _versions(base, "1")
    for name in ("v2", "3.0", "tmp", "4 copy", ".5", "1e3", "0x10", "9223372036854775808", "٣"):
        (base / name).mkdir()
    client = serve_base("all {}")
    assert client.states("m") == {1: "AVAILABLE"}


def test_of_two_names_for_a_number_the_later_one_wins(base: Path, serve_base: Callable[..., Client]) -> None:
    saved_models.plus(base / "1", 10)
    saved_models.plus(base / "01", 20)
    client = serve_base()
    assert client.states("m") == {1: "AVAILABLE"}
    assert _answer(client) == 10.0


def test_a_file_with_a_number_for_a_name_counts_and_fails(base: Path, serve_base: Callable[..., Client]) -> None:
    _versions(base, "1")
    client = serve_base()
    (base / "2").write_text("not a folder", encoding="utf-8")
    until(lambda: client.states("m") == {2: "END", 1: "AVAILABLE"}, "2 has failed")
    assert _answer(client) == 1.0


# ---- policies


@pytest.mark.parametrize(
    ("policy", "loaded"),
    [
        ("", {3}),
        ("latest {}", {3}),
        ("latest { num_versions: 0 }", {3}),
        ("latest { num_versions: 2 }", {3, 2}),
        ("latest { num_versions: 9 }", {3, 2, 1}),
        ("all {}", {3, 2, 1}),
        ("specific { versions: 1 }", {1}),
        ("specific { versions: 1 versions: 3 }", {3, 1}),
    ],
)
def test_a_policy_chooses(base: Path, serve_base: Callable[..., Client], policy: str, loaded: set[int]) -> None:
    _versions(base, "1", "2", "3")
    client = serve_base(policy)
    until(lambda: client.states("m") == dict.fromkeys(loaded, "AVAILABLE"), "exactly these are loaded")
    for version in loaded:
        assert _answer(client, version=version) == float(version)
    assert _answer(client) == float(max(loaded))


def test_a_specific_version_that_is_not_there_is_a_warning(
    base: Path, serve_base: Callable[..., Client], caplog: pytest.LogCaptureFixture
) -> None:
    _versions(base, "1")
    with caplog.at_level(logging.WARNING):
        client = serve_base("specific { versions: 1 versions: 7 }")
        assert client.states("m") == {1: "AVAILABLE"}
        until(lambda: "version 7 is configured but not in" in caplog.text, "it is logged")


def test_a_changed_policy_is_applied(base: Path, serve_base: Callable[..., Client]) -> None:
    _versions(base, "1", "2", "3")
    client = serve_base()
    for policy, expected in (
        ("all {}", {3: "AVAILABLE", 2: "AVAILABLE", 1: "AVAILABLE"}),
        ("specific { versions: 2 }", {3: "END", 2: "AVAILABLE", 1: "END"}),
        ("latest { num_versions: 2 }", {3: "AVAILABLE", 2: "AVAILABLE", 1: "END"}),
    ):
        client.reload(config(m=(base, f"model_version_policy {{ {policy} }}")))
        until(lambda expected=expected: client.states("m") == expected, policy)


# ---- coming and going


def test_a_new_version_is_loaded_before_the_old_one_is_unloaded(base: Path, serve_base: Callable[..., Client]) -> None:
    """At no moment does nothing answer."""
    _versions(base, "1")
    client = serve_base()
    stop, answers = threading.Event(), [_answer(client)]

    def ask() -> None:
        while not stop.is_set():
            answers.append(_answer(client))

    asking = threading.Thread(target=ask)
    asking.start()
    for version in range(2, 8):
        _publish(base, str(version), version)
        until(lambda version=version: client.states("m").get(version) == "AVAILABLE", f"{version} is loaded")
        until(lambda: list(client.states("m").values()).count("AVAILABLE") == 1, "the one before is unloaded")
    until(lambda: answers[-1] == 7.0, "the newest answers")
    stop.set()
    asking.join()
    assert set(answers) <= {float(version) for version in range(1, 8)}
    assert answers == sorted(answers)


def test_requests_on_the_old_version_finish_before_it_is_unloaded(serve: Serve, tmp_path: Path) -> None:
    base = tmp_path / "slow"
    saved_models.slow(base / "1")
    served = serve("--model_name=slow", f"--model_base_path={base}")
    client = served.client
    answers: list[Any] = []
    running = threading.Thread(target=lambda: answers.append(client.predict("slow", {"x": np.int32([400_000])}).model_spec.version.value))
    running.start()
    until(lambda: served.users("slow", 1), "the request runs")
    saved_models.slow(tmp_path / "next")
    (tmp_path / "next").rename(base / "2")
    until(lambda: client.states("slow") == {2: "AVAILABLE", 1: "UNLOADING"}, "2 is loaded, 1 waits")
    assert client.predict("slow", {"x": np.int32([1])}).model_spec.version.value == 2
    assert not answers
    running.join()
    assert answers == [1]
    until(lambda: client.states("slow") == {2: "AVAILABLE", 1: "END"}, "1 is unloaded")


def test_latest_is_the_highest_that_is_available(serve: Serve, tmp_path: Path) -> None:
    """While the next one still loads, the one before answers, also to requests that name no version."""
    base = tmp_path / "slow"
    saved_models.slow(base / "1")
    client = serve("--model_name=slow", f"--model_base_path={base}").client
    saved_models.slow(tmp_path / "next")
    write_records(tmp_path / "next", predict_log(x=np.int32([300_000])))
    (tmp_path / "next").rename(base / "2")
    until(lambda: client.states("slow") == {2: "LOADING", 1: "AVAILABLE"}, "2 loads")
    assert client.predict("slow", {"x": np.int32([1])}).model_spec.version.value == 1
    found = refused(client.predict, "slow", {"x": np.int32([1])}, version=2)
    assert (found.code, found.details) == ("NOT_FOUND", "Servable not found for request: Specific(slow, 2)")
    until(lambda: client.states("slow") == {2: "AVAILABLE", 1: "END"}, "2 is loaded")
    assert client.predict("slow", {"x": np.int32([1])}).model_spec.version.value == 2


def test_a_version_whose_folder_is_taken_away_gives_way_to_the_one_before(base: Path, serve_base: Callable[..., Client]) -> None:
    _versions(base, "1", "2")
    client = serve_base()
    assert client.states("m") == {2: "AVAILABLE"}
    shutil.rmtree(base / "2")
    until(lambda: client.states("m") == {2: "END", 1: "AVAILABLE"}, "1 is loaded again")
    assert _answer(client) == 1.0
    _publish(base, "2", 22)
    until(lambda: client.states("m") == {2: "AVAILABLE", 1: "END"}, "what was merely unloaded is loaded anew")
    assert _answer(client) == 22.0


def test_without_versions_in_its_folder_everything_is_unloaded(base: Path, serve_base: Callable[..., Client]) -> None:
    _versions(base, "1")
    client = serve_base()
    shutil.rmtree(base / "1")
    until(lambda: client.states("m") == {1: "END"}, "it is unloaded")
    found = refused(client.predict, "m", {"x": [0.0]})
    assert (found.code, found.details) == ("NOT_FOUND", "Servable not found for request: Latest(m)")


def test_difference_a_missing_base_path_freezes_its_own_model_only(serve: Serve, base: Path, tmp_path: Path) -> None:
    """The real server stops to look at all of them (upstream issue 2189)."""
    _versions(base, "1")
    other = tmp_path / "other"
    saved_models.plus(other / "1", 1)
    client = serve(f"--model_config_file={write(tmp_path / 'config', config(m=base, other=other))}").client
    until(lambda: client.states("m") == client.states("other") == {1: "AVAILABLE"}, "both are loaded")
    base.rename(tmp_path / "away")
    _publish(other, "2", 2)
    until(lambda: client.states("other") == {2: "AVAILABLE", 1: "END"}, "the other model goes on")
    assert client.states("m") == {1: "AVAILABLE"}
    assert _answer(client) == 1.0
    (tmp_path / "away").rename(base)
    _publish(base, "2", 2)
    until(lambda: client.states("m") == {2: "AVAILABLE", 1: "END"}, "it is looked at again")


# ---- failures


def test_a_version_that_fails_leaves_the_older_one_alone_and_is_not_tried_again(
    base: Path, serve_base: Callable[..., Client], caplog: pytest.LogCaptureFixture
) -> None:
    _versions(base, "1")
    client = serve_base()
    saved_models.corrupt(base / "2")
    until(lambda: client.states("m") == {2: "END", 1: "AVAILABLE"}, "2 has failed")
    assert _answer(client) == 1.0
    _publish(base, "3", 3)
    until(lambda: client.states("m") == {3: "AVAILABLE", 2: "END", 1: "END"}, "a higher version is loaded as ever")
    assert _answer(client) == 3.0
    attempts = [record for record in caplog.records if "version 2: attempt" in record.getMessage()]
    assert len(attempts) == 1, "many polls of the folder later"


def test_difference_a_failed_version_is_tried_again_when_it_was_taken_away_and_put_back(
    base: Path, serve_base: Callable[..., Client]
) -> None:
    """The real server never does, under `latest`; a higher number works with both."""
    _versions(base, "1")
    client = serve_base()
    saved_models.corrupt(base / "2")
    until(lambda: client.states("m") == {2: "END", 1: "AVAILABLE"}, "2 has failed")
    (base / "2").rename(base / "broken")
    _publish(base, "3", 3)
    until(lambda: client.states("m").get(3) == "AVAILABLE", "the absence of 2 was seen")
    shutil.rmtree(base / "3")
    _publish(base, "2", 2)
    until(lambda: client.states("m").get(2) == "AVAILABLE", "2 is loaded")
    assert _answer(client) == 2.0


def test_a_failure_is_tried_again_in_place_and_is_loading_meanwhile(
    base: Path, serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ("--model_name=m", f"--model_base_path={base}", "--max_num_load_retries=1000000", "--load_retry_interval_micros=20000")
    _versions(base, "1")
    client = serve(*flags).client
    with caplog.at_level(logging.ERROR):
        saved_models.corrupt(base / "2")
        until(lambda: "version 2: attempt 3 failed" in caplog.text, "it is tried again")
    assert client.states("m") == {2: "LOADING", 1: "AVAILABLE"}
    assert _answer(client) == 1.0
    saved_models.plus(tmp_path / "good", 2)
    (base / "2" / "saved_model.pb").write_bytes((tmp_path / "good" / "saved_model.pb").read_bytes())
    until(lambda: client.states("m") == {2: "AVAILABLE", 1: "END"}, "the next attempt succeeds")
    status = client.status("m", version=2).model_version_status[0].status
    assert (status.error_code, status.error_message) == (0, "")


def test_the_number_of_attempts_is_one_more_than_the_retries(base: Path, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    flags = ("--model_name=m", f"--model_base_path={base}", "--max_num_load_retries=2", "--load_retry_interval_micros=1000")
    _versions(base, "1")
    client = serve(*flags).client
    saved_models.corrupt(base / "2")
    until(lambda: client.states("m").get(2) == "END", "it gives up")
    assert len([record for record in caplog.records if "version 2: attempt" in record.getMessage()]) == 3


def test_a_broken_model_leaves_the_other_models_alone(serve: Serve, base: Path, tmp_path: Path) -> None:
    _versions(base, "1")
    bad = tmp_path / "bad"
    saved_models.plus(bad / "1", 1)
    client = serve(f"--model_config_file={write(tmp_path / 'config', config(m=base, bad=bad))}").client
    until(lambda: client.states("bad") == {1: "AVAILABLE"}, "both are loaded")
    saved_models.corrupt(bad / "2")
    until(lambda: client.states("bad") == {2: "END", 1: "AVAILABLE"}, "2 has failed")
    _publish(base, "2", 2)
    until(lambda: client.states("m") == {2: "AVAILABLE", 1: "END"}, "the other model goes on")


@pytest.mark.parametrize(
    ("stored", "asked", "fits"),
    [
        (("serve",), "serve", True),
        (("serve", "other"), "serve,other", True),
        (("serve", "other"), "other,serve", True),
        (("serve", "other"), "serve", False),
        (("serve",), "serve,other", False),
        (("train",), "serve", False),
    ],
)
def test_the_tags_must_be_exactly_those_of_a_graph(serve: Serve, base: Path, stored: tuple[str, ...], asked: str, fits: bool) -> None:
    def graph() -> dict[str, Any]:
        x = saved_models.v1.placeholder(np.float32)
        return {"serving_default": saved_models.signature({"x": x}, {"y": x + 2.0})}

    saved_models.export(base / "1", graph, stored)
    flags = ("--model_name=m", f"--model_base_path={base}", f"--saved_model_tags={asked}")
    if fits:
        assert _answer(serve(*flags).client) == 2.0
        return
    with pytest.raises(Status) as caught:
        serve(*flags)
    wanted = " ".join(sorted(asked.split(",")))
    assert f"NOT_FOUND: Could not find meta graph def matching supplied tags: {{ {wanted} }}. To inspect" in caught.value.message


def test_a_request_that_names_a_version_gets_that_one_or_none(base: Path, serve_base: Callable[..., Client]) -> None:
    _versions(base, "1", "2")
    client = serve_base("all {}")
    until(lambda: len(client.states("m")) == 2 and set(client.states("m").values()) == {"AVAILABLE"}, "both are loaded")
    assert (_answer(client, version=1), _answer(client, version=2), _answer(client)) == (1.0, 2.0, 2.0)
    with pytest.raises(grpc.RpcError):
        _answer(client, version=0)
