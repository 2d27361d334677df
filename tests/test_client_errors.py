"""What a client asks again, how it fails, and how it waits: with both clients, against a scripted server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from serving import (
    AccessDenied,
    ConfigError,
    DeadlineExceeded,
    ModelFailed,
    ModelNotFound,
    Overloaded,
    RequestError,
    Unavailable,
)
from tests.scripted_server import Refusal, ScriptedServer, connecting, described, echo, outputs, running, sentiment, statuses, unused_port

BUSY = Refusal("UNAVAILABLE", "The batch scheduling queue is full")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    yield from running()


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    yield from connecting(request.param)


# --- asking again ---


@pytest.mark.parametrize(
    ("case", "refusal", "settings", "attempts", "error"),
    [
        ("unavailable is asked again", BUSY, {}, 3, None),
        ("until the attempts are used up", BUSY, {"max_attempts": 2}, 2, Unavailable),
        ("a full server is left alone", Refusal("RESOURCE_EXHAUSTED", "queue full"), {}, 1, Overloaded),
        ("unless it is wanted", Refusal("RESOURCE_EXHAUSTED", "queue full"), {"retry_overloaded": True}, 3, None),
        ("never after a deadline", Refusal("DEADLINE_EXCEEDED", "too slow"), {"retry_overloaded": True}, 1, DeadlineExceeded),
        ("nor a bad request", Refusal("INVALID_ARGUMENT", "Missing ModelSpec"), {}, 1, RequestError),
        ("nor a broken model", Refusal("INTERNAL", "it broke"), {}, 1, ModelFailed),
        ("nor without a credential", Refusal("UNAUTHENTICATED", "who are you"), {}, 1, AccessDenied),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_only_what_is_safe_is_asked_again(
    server: ScriptedServer, connect: Any, case: str, refusal: Refusal, settings: dict[str, Any], attempts: int, error: Any
) -> None:
    server.script("Predict", refusal, refusal, sentiment())
    client = connect(server.target, **settings)
    if error is None:
        assert client.predict("good").labels == ["positive"]
    else:
        with pytest.raises(error, match=f"{refusal.code}: {refusal.details}") as caught:
            client.predict("good")
        assert caught.value.__cause__.code().name == refusal.code
    assert len(server.of("Predict")) == attempts, case


def test_the_budget_ends_all_attempts(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", BUSY)
    started = time.monotonic()
    # The last attempt may be cut short by the deadline, or not be worth making.
    with pytest.raises((Unavailable, DeadlineExceeded), match=r"\d attempts in \d\.\d\d s\)\. "):
        connect(server.target, timeout_s=0.5, max_attempts=1000).predict("good")
    assert time.monotonic() - started < 8
    assert len(server.of("Predict")) > 1


def test_a_slow_server_is_not_asked_twice(server: ScriptedServer, connect: Any) -> None:
    answer_now = threading.Event()
    server.script("Predict", sentiment(), lambda request: answer_now.wait(30) and sentiment()(request))
    client = connect(server.target, retry_overloaded=True)
    client.predict("good")
    try:
        with pytest.raises(
            DeadlineExceeded, match=r"The server may still be computing, so it was not asked again. Allow more with timeout_s"
        ) as caught:
            client.predict("good", timeout_s=0.5)
        assert str(caught.value).startswith(f"{server.target}: model 'sentiment': DEADLINE_EXCEEDED: ")
        assert len(server.of("Predict")) <= 2
    finally:
        answer_now.set()


def test_nobody_at_the_target_is_said_within_the_budget(connect: Any) -> None:
    target = f"127.0.0.1:{unused_port()}"
    started = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        connect(target, timeout_s=10.0).predict("good")
    assert time.monotonic() - started < 8
    assert str(caught.value).startswith(f"{target}: model 'sentiment': nobody answers there: UNAVAILABLE: ")
    assert str(caught.value).endswith("Start the server (make serve), wait for it (wait_until_available), or fix the target.")


def test_a_port_that_swallows_everything_is_nobody_not_a_slow_server(connect: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never speaks
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Unavailable, match=f"^{target}: model 'sentiment': nobody answers there: DEADLINE_EXCEEDED"):
            connect(target, timeout_s=0.4).predict("good")


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_no_call_without_a_deadline(server: ScriptedServer, connect: Any, seconds: float) -> None:
    with pytest.raises(ConfigError, match="every call has a deadline"):
        connect(server.target).predict("good", timeout_s=seconds)
    with pytest.raises(ConfigError, match="every call has a deadline"):
        connect(server.target, timeout_s=seconds)


# --- errors say what is there ---


def test_an_unknown_version_names_those_that_are_there(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", Refusal("NOT_FOUND", "Servable not found for request: Specific(sentiment, 9)"))
    server.script("GetModelStatus", statuses((4, "AVAILABLE"), (3, "END", 2, "it broke")))
    with pytest.raises(ModelNotFound) as caught:
        connect(server.target).predict("good", version=9)
    assert str(caught.value) == (
        f"{server.target}: model 'sentiment' version 9: not served there: Servable not found for request: Specific(sentiment, 9). "
        f"Versions there: 4 (AVAILABLE), 3 (END, UNKNOWN: it broke). Name one of them."
    )


def test_an_unknown_model_is_said_to_be_unknown(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", Refusal("NOT_FOUND", "Servable not found for request: Latest(sentimnt)"))
    server.script("GetModelStatus", Refusal("NOT_FOUND", "Could not find any versions of model sentimnt"))
    with pytest.raises(ModelNotFound) as caught:
        connect(server.target, model="sentimnt").predict("good")
    assert str(caught.value) == (
        f"{server.target}: model 'sentimnt': not served there: Servable not found for request: Latest(sentimnt). "
        f"The server has no version of it, and cannot list its models. Check the name."
    )


def test_an_unknown_label_is_a_model_not_found(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", Refusal("INVALID_ARGUMENT", "Unrecognized servable version label: canary"))
    server.script("GetModelStatus", statuses((4, "AVAILABLE")))
    with pytest.raises(ModelNotFound) as caught:
        connect(server.target).predict("good", version_label="canary")
    assert str(caught.value) == (
        f"{server.target}: model 'sentiment' label 'canary': not served there: Unrecognized servable version label: canary. "
        f"Versions there: 4 (AVAILABLE). Name one of them, or give the label to one in the server's config."
    )


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal("FAILED_PRECONDITION", 'Serving signature key "s" not found.'),
        Refusal("INVALID_ARGUMENT", "No signature was found with the name: s"),
    ],
)
def test_an_unknown_signature_names_those_that_are_there(server: ScriptedServer, connect: Any, refusal: Refusal) -> None:
    side = {"inputs": {"x": (1, [-1])}, "outputs": {"x": (1, [-1])}}
    server.script("Predict", refusal)
    server.script("GetModelMetadata", described(3, tokens=side, serving_default=side))
    with pytest.raises(RequestError, match=r"Its signatures: serving_default, tokens\.$"):
        connect(server.target).predict_tensors({"x": [1.0]}, signature="s")


def test_a_server_that_cannot_say_what_it_has_still_gives_the_first_error(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", Refusal("NOT_FOUND", "Servable not found for request: Latest(sentiment)"))
    server.script("GetModelStatus", Refusal("INTERNAL"))
    with pytest.raises(ModelNotFound, match=r"Latest\(sentiment\). Check the name"):
        connect(server.target).predict("good")


def test_messages_that_are_too_large_are_the_callers_to_fix(server: ScriptedServer, connect: Any) -> None:
    server.script("Predict", echo)
    client = connect(server.target, max_message_bytes=10_000)
    server.script("Predict", outputs({"y": np.zeros(5000, np.float32)}, 1))
    for inputs in ({"x": 1.0}, {"x": np.zeros(5000, np.float32), "scalar": 1.0}):
        with pytest.raises(
            RequestError, match=r"larger than max.*Send fewer rows at once, or raise max_message_bytes here and on the server"
        ):
            client.predict_tensors(inputs)


# --- waiting ---


def test_waiting_ends_when_the_version_can_be_asked(server: ScriptedServer, connect: Any) -> None:
    server.script(
        "GetModelStatus",
        Refusal("UNAVAILABLE"),
        Refusal("NOT_FOUND", "Could not find any versions of model sentiment"),
        statuses((3, "START")),
        statuses((4, "LOADING"), (3, "END", 2, "it broke")),
        statuses((4, "AVAILABLE"), (3, "END", 2, "it broke")),
    )
    assert connect(server.target).wait_until_available() == 4
    assert len(server.asked) == 5


def test_waiting_for_a_server_that_is_yet_to_start(connect: Any) -> None:
    port = unused_port()
    client = connect(f"127.0.0.1:{port}")
    with pytest.raises(Unavailable):
        client.status(timeout_s=0.1)
    started: list[ScriptedServer] = []

    def start() -> None:
        server = ScriptedServer(address=f"127.0.0.1:{port}")
        server.script("GetModelStatus", statuses((1, "AVAILABLE")))
        started.append(server)

    thread = threading.Thread(target=start)
    thread.start()
    try:
        assert client.wait_until_available(timeout_s=30) == 1
    finally:
        thread.join()
        started[0].stop()


def test_a_version_that_failed_is_never_waited_for(server: ScriptedServer, connect: Any) -> None:
    server.script("GetModelStatus", statuses((4, "END", 3, "Op type not registered 'Foo'"), (3, "AVAILABLE")))
    client = connect(server.target, version=4)
    with pytest.raises(ModelFailed) as caught:
        client.wait_until_available(timeout_s=30)
    assert str(caught.value) == (
        f"{server.target}: model 'sentiment' version 4: version 4 will not become available: INVALID_ARGUMENT: Op type not registered 'Foo'. "
        f"Look at the server's log, and publish a version that loads."
    )
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("step", "error", "words"),
    [
        (Refusal("NOT_FOUND", "Could not find any versions of model sentiment"), ModelNotFound, "not served there"),
        (statuses((3, "LOADING")), Unavailable, r"not available yet: 3 \(LOADING\). Wait longer"),
        (statuses((3, "END")), Unavailable, r"not available yet: 3 \(END\)"),
    ],
)
def test_waiting_in_vain_says_what_was_seen_last(server: ScriptedServer, connect: Any, step: Any, error: Any, words: str) -> None:
    server.script("GetModelStatus", step)
    with pytest.raises(error, match=words) as caught:
        connect(server.target).wait_until_available(timeout_s=1.0)
    assert "Waited " in str(caught.value)
    assert len(server.asked) > 1
