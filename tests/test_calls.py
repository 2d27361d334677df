"""What the client decides, as tables: a line is a case. And the conversation, driven by hand with a clock of its own."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest

from serving import wire
from serving.answers import Signature, TensorSpec, VersionStatus
from serving.calls import Call, Connected, Sleep, Which, availability, is_row_wise, kind_of, parts, retry_delay, translate
from serving.conversation import Conversation
from serving.errors import (
    AccessDenied,
    ConfigError,
    DeadlineExceeded,
    ModelFailed,
    ModelNotFound,
    Overloaded,
    RequestError,
    ServingError,
    Unavailable,
)

REFUSED = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote host: Connection refused"
HUNG_UP = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:1: Socket closed"
HANDSHAKE = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Tls handshake failed (TSI_PROTOCOL_FAILURE)"
TOO_LARGE = "CLIENT: Received message larger than max (5000 vs. 4096)"


@pytest.mark.parametrize(
    ("case", "attempt", "code", "details", "retry_overloaded", "remaining_s", "jitter", "delay"),
    [
        ("the first failure waits up to 0.1 s", 1, "UNAVAILABLE", "", False, 9.0, 0.5, 0.05),
        ("the ceiling doubles", 3, "UNAVAILABLE", "", False, 9.0, 0.5, 0.2),
        ("up to 2 s", 9, "UNAVAILABLE", "", False, 9.0, 0.5, 1.0),
        ("jitter may be nothing", 3, "UNAVAILABLE", "", False, 9.0, 0.0, 0.0),
        ("the attempts are used up", 10, "UNAVAILABLE", "", False, 9.0, 0.5, None),
        ("the delay would use up the budget", 3, "UNAVAILABLE", "", False, 0.2, 0.5, None),
        ("nothing is left", 1, "UNAVAILABLE", "", False, 0.0, 0.0, None),
        ("refused connections may come back", 1, "UNAVAILABLE", REFUSED, False, 9.0, 0.5, 0.05),
        ("a certificate does not change by waiting", 1, "UNAVAILABLE", HANDSHAKE, False, 9.0, 0.5, None),
        ("a full server, not asked for", 1, "RESOURCE_EXHAUSTED", "", False, 9.0, 0.5, None),
        ("a full server, asked for", 1, "RESOURCE_EXHAUSTED", "", True, 9.0, 0.5, 0.05),
        ("a message too large stays so", 1, "RESOURCE_EXHAUSTED", TOO_LARGE, True, 9.0, 0.5, None),
        ("a deadline is never repeated", 1, "DEADLINE_EXCEEDED", "", True, 9.0, 0.5, None),
        ("nor is anything else", 1, "INTERNAL", "", True, 9.0, 0.5, None),
        ("nor a missing model", 1, "NOT_FOUND", "", True, 9.0, 0.5, None),
    ],
)  # fmt: skip
def test_when_to_ask_again(
    case: str, attempt: int, code: str, details: str, retry_overloaded: bool, remaining_s: float, jitter: float, delay: float | None
) -> None:
    found = retry_delay(attempt, code, details, max_attempts=10, retry_overloaded=retry_overloaded, remaining_s=remaining_s, jitter=jitter)
    assert found == (None if delay is None else pytest.approx(delay)), case


@pytest.mark.parametrize(
    ("case", "sizes", "expected"),
    [
        ("nothing is one empty part", [], [(0, 0)]),
        ("one row", [9], [(0, 1)]),
        ("as many rows as allowed", [1, 1, 1], [(0, 3)]),
        ("one more", [1, 1, 1, 1], [(0, 3), (3, 4)]),
        ("as many bytes as allowed", [5, 5], [(0, 2)]),
        ("a byte more", [5, 6], [(0, 1), (1, 2)]),
        ("both limits", [5, 4, 1, 1, 9, 2, 0, 0, 0], [(0, 3), (3, 5), (5, 8), (8, 9)]),
        ("a row that just fits", [10, 10], [(0, 1), (1, 2)]),
    ],
)
def test_which_rows_go_together(case: str, sizes: list[int], expected: list[tuple[int, int]]) -> None:
    found = parts(np.array(sizes, np.int64), max_rows=3, max_bytes=10)
    assert [(one.start, one.stop) for one in found] == expected, case


def test_a_row_that_no_message_can_carry_is_named() -> None:
    with pytest.raises(RequestError, match=r"^here: row 1 has 11 bytes, more than the 10 that fit"):
        parts(np.array([1, 11]), max_rows=3, max_bytes=10, where="here")


def _spec(*shape: int | None) -> TensorSpec:
    return TensorSpec("float32", shape)


@pytest.mark.parametrize(
    ("case", "inputs", "outputs", "asked", "expected"),
    [
        ("rows in, rows out", {"x": _spec(None)}, {"y": _spec(None, 2)}, (), True),
        ("a fixed number of rows", {"x": _spec(8)}, {"y": _spec(None)}, (), False),
        ("a scalar beside the rows", {"x": _spec(None), "threshold": _spec()}, {"y": _spec(None)}, (), False),
        ("a mean over the rows", {"x": _spec(None)}, {"y": _spec(None), "mean": _spec()}, (), False),
        ("a mean that was not asked for", {"x": _spec(None)}, {"y": _spec(None), "mean": _spec()}, ("y",), True),
        ("an unknown rank", {"x": _spec(None)}, {"y": TensorSpec("float32", None)}, (), False),
        ("no inputs", {}, {"y": _spec(None)}, (), False),
    ],
)  # fmt: skip
def test_what_may_be_split(case: str, inputs: Any, outputs: Any, asked: tuple[str, ...], expected: bool) -> None:
    assert is_row_wise(Signature(inputs, outputs, ""), asked) is expected, case
    assert not is_row_wise(None, asked)


def _version(text: str) -> VersionStatus:
    number, state, *error = text.split()
    return VersionStatus(int(number), state, "UNKNOWN" if error else "OK", " ".join(error))


@pytest.mark.parametrize(
    ("case", "versions", "wanted", "expected"),
    [
        ("nothing there", [], None, "no version yet"),
        ("another version", ["3 AVAILABLE"], 4, "version 4 is not there yet"),
        ("there", ["3 AVAILABLE"], None, 3),
        ("the wanted one of several", ["4 AVAILABLE", "3 AVAILABLE"], 3, 3),
        ("the newest of several", ["5 LOADING", "4 AVAILABLE", "3 AVAILABLE"], None, 4),
        ("starting", ["3 START"], None, "not available yet: 3 (START)"),
        ("loading", ["3 LOADING"], 3, "not available yet: 3 (LOADING)"),
        ("going", ["3 UNLOADING"], 3, "not available yet: 3 (UNLOADING)"),
        ("merely unloaded: may come back", ["3 END"], 3, "not available yet: 3 (END)"),
        ("failed: never", ["3 END it broke"], 3, "3 END it broke"),
        ("the newest failed, an older one loads", ["4 END it broke", "3 LOADING"], None, "not available yet: 4 (END, UNKNOWN: it broke), 3 (LOADING)"),
        ("the newest failed, the older one is gone: never", ["4 END it broke", "3 END"], None, "4 END it broke"),
        ("an old failure says nothing about the newest", ["4 END", "3 END it broke"], None, "not available yet: 4 (END), 3 (END, UNKNOWN: it broke)"),
        ("a failure beside the wanted one", ["4 LOADING", "3 END it broke"], 4, "not available yet: 4 (LOADING)"),
    ],
)  # fmt: skip
def test_there_not_there_not_yet_or_never(case: str, versions: list[str], wanted: int | None, expected: Any) -> None:
    found = availability([_version(text) for text in versions], wanted)
    assert found == (_version(expected) if isinstance(found, VersionStatus) else expected), case


@pytest.mark.parametrize(
    ("code", "details", "settings", "expected"),
    [
        ("NOT_FOUND", "Servable not found for request: Latest(foo)", {}, ModelNotFound),
        ("NOT_FOUND", "Servable not found for request: Specific(foo, 9)", {}, ModelNotFound),
        ("NOT_FOUND", "Could not find any versions of model foo", {}, ModelNotFound),
        ("NOT_FOUND", "Could not find version 9 of model foo", {}, ModelNotFound),
        ("INVALID_ARGUMENT", "Unrecognized servable version label: l", {}, ModelNotFound),
        ("NOT_FOUND", "Resource localhost/_0/table does not exist.", {}, ModelFailed),
        ("INVALID_ARGUMENT", "Missing ModelSpec", {}, RequestError),
        ("FAILED_PRECONDITION", 'Serving signature key "s" not found.', {}, RequestError),
        ("OUT_OF_RANGE", "", {}, RequestError),
        ("UNIMPLEMENTED", "", {}, RequestError),
        ("RESOURCE_EXHAUSTED", TOO_LARGE, {}, RequestError),
        ("RESOURCE_EXHAUSTED", "queue full", {}, Overloaded),
        ("UNAVAILABLE", "The batch scheduling queue is full", {}, Unavailable),
        ("UNAVAILABLE", REFUSED, {"tls": True}, Unavailable),
        ("UNAVAILABLE", HUNG_UP, {"tls": False}, Unavailable),
        ("UNAVAILABLE", HUNG_UP, {"tls": True}, AccessDenied),
        ("UNAVAILABLE", HANDSHAKE, {"tls": True}, AccessDenied),
        ("CANCELLED", "", {}, Unavailable),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", {"connected": True}, DeadlineExceeded),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", {"connected": False}, Unavailable),
        ("UNAUTHENTICATED", "", {}, AccessDenied),
        ("PERMISSION_DENIED", "", {}, AccessDenied),
        *((code, "", {}, ModelFailed) for code in ("UNKNOWN", "INTERNAL", "DATA_LOSS", "ABORTED", "ALREADY_EXISTS")),
    ],
)
def test_whose_fault_it_is(code: str, details: str, settings: dict[str, bool], expected: type[ServingError]) -> None:
    assert kind_of(code, details, **settings) is expected
    assert type(translate(code, details, Which("here:1"), **settings)) is expected


@pytest.mark.parametrize(
    ("code", "details", "settings", "message"),
    [
        (
            "INVALID_ARGUMENT", "input size does not match signature: 1!=2", {},
            "here:1: model 'm' version 3: INVALID_ARGUMENT: input size does not match signature: 1!=2. "
            "Fix the request; client.metadata() says what the model takes.",
        ),
        (
            "UNAVAILABLE", HUNG_UP, {"tried": "4 attempts in 0.40 s"},
            f"here:1: model 'm' version 3: nobody answers there: UNAVAILABLE: {HUNG_UP} (4 attempts in 0.40 s). "
            "Start the server (make serve), wait for it (wait_until_available), or fix the target, give tls=Tls(...) if it speaks TLS.",
        ),
        (
            "UNAVAILABLE", HANDSHAKE, {"tls": True},
            f"here:1: model 'm' version 3: UNAVAILABLE: {HANDSHAKE}. "
            "Check Tls(ca=..., server_name=...) and, if the server wants one, the client's certificate and key; or the server speaks no TLS.",
        ),
        (
            "UNAUTHENTICATED", "who are you?", {},
            "here:1: model 'm' version 3: UNAUTHENTICATED: who are you?. "
            "Give a valid token with metadata=[('authorization', ...)], or a client certificate.",
        ),
        (
            "RESOURCE_EXHAUSTED", "queue full", {"tried": "after 0.10 s"},
            "here:1: model 'm' version 3: RESOURCE_EXHAUSTED: queue full (after 0.10 s). "
            "Send less at once, or later; retry_overloaded=True asks again within timeout_s.",
        ),
        ("INTERNAL", "it broke", {}, "here:1: model 'm' version 3: INTERNAL: it broke. Look at the server's log."),
        ("UNIMPLEMENTED", "Method not found!", {}, "here:1: model 'm' version 3: UNIMPLEMENTED: Method not found!. Check that this is the gRPC port of TensorFlow Serving."),
    ],
)  # fmt: skip
def test_errors_say_where_what_and_what_to_do(code: str, details: str, settings: dict[str, Any], message: str) -> None:
    assert str(translate(code, details, Which("here:1", "m", 3), **settings)) == message


# --- the conversation ---


class Failure(grpc.RpcError):
    def __init__(self, code: str, details: str = "") -> None:
        self._code, self._details = grpc.StatusCode[code], details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _conversation(clock: Clock, **settings: Any) -> Conversation:
    words = {
        "timeout_s": 10.0,
        "max_attempts": 4,
        "retry_overloaded": False,
        "max_message_bytes": 1 << 20,
        "rows_per_request": 64,
        **settings,
    }
    return Conversation(which=Which("here:1", "m"), clock=clock, jitter=lambda: 0.5, **words)


def _status(version: int, state: int) -> Any:
    response = wire.GetModelStatusResponse()
    response.model_version_status.add(version=version, state=state)
    return response


def test_every_attempt_gets_what_is_left_of_the_budget() -> None:
    clock = Clock()
    conversation = _conversation(clock)
    steps = conversation.status(conversation.any_version("", None), conversation.deadline(3.0))
    first = next(steps)
    assert isinstance(first, Call)
    assert (first.method, first.timeout_s) == ("GetModelStatus", 3.0)
    clock.now += 1.0
    assert steps.throw(Failure("UNAVAILABLE")) == Sleep(0.05)
    clock.now += 0.05
    second = steps.send(None)
    assert isinstance(second, Call)
    assert second.timeout_s == pytest.approx(1.95)
    clock.now += 1.9
    with pytest.raises(Unavailable, match=r"UNAVAILABLE: gone \(2 attempts in 2\.95 s\)") as caught:
        steps.throw(Failure("UNAVAILABLE", "gone"))
    assert isinstance(caught.value.__cause__, Failure), "a delay of 0.1 s does not fit into the 0.05 s that are left"


def test_a_part_that_would_start_too_late_is_not_sent() -> None:
    clock = Clock()
    conversation = _conversation(clock, rows_per_request=1)
    steps = conversation.predict(["a", "b"], None, conversation.choose("", None, ""), conversation.deadline(1.0))
    assert isinstance(next(steps), Call)
    clock.now += 2.0
    with pytest.raises(DeadlineExceeded, match=r"no time left before Predict was sent\. Allow more with timeout_s"):
        steps.send(wire.PredictResponse())


@pytest.mark.parametrize(("connected", "error"), [(True, DeadlineExceeded), (False, Unavailable)])
def test_a_deadline_asks_whether_anybody_was_there(connected: bool, error: type[ServingError]) -> None:
    clock = Clock()
    conversation = _conversation(clock)
    steps = conversation.status(conversation.any_version("", None), conversation.deadline(None))
    next(steps)
    clock.now += 10.0
    assert steps.throw(Failure("DEADLINE_EXCEEDED", "Deadline Exceeded")) == Connected()
    with pytest.raises(error):
        steps.send(connected)


def test_an_error_explains_itself_only_within_the_budget() -> None:
    clock = Clock()
    conversation = _conversation(clock)
    steps = conversation.predict("a", None, conversation.choose("", None, ""), conversation.deadline(1.0))
    next(steps)
    clock.now += 0.75
    question = steps.throw(Failure("NOT_FOUND", "Servable not found for request: Latest(m)"))
    assert isinstance(question, Call)
    assert (question.method, question.timeout_s) == ("GetModelStatus", pytest.approx(0.25))
    with pytest.raises(ModelNotFound, match=r"Versions there: 3 \(LOADING\)"):
        steps.send(_status(3, 20))

    steps = conversation.predict("a", None, conversation.choose("", None, ""), conversation.deadline(1.0))
    next(steps)
    clock.now += 1.0
    with pytest.raises(ModelNotFound, match="Check the name"):
        steps.throw(Failure("NOT_FOUND", "Servable not found for request: Latest(m)"))


def test_waiting_asks_less_and_less_often() -> None:
    clock = Clock()
    conversation = _conversation(clock)
    steps = conversation.wait_until_available(conversation.choose("", None, ""), conversation.deadline(60.0))
    effect, pauses = next(steps), []
    for _ in range(7):
        assert isinstance(effect, Call)
        assert effect.timeout_s == 5.0
        effect = steps.throw(Failure("UNAVAILABLE", REFUSED))
        assert isinstance(effect, Sleep)
        pauses.append(effect.seconds)
        clock.now += effect.seconds
        effect = steps.send(None)
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    with pytest.raises(AccessDenied):
        steps.throw(Failure("UNAVAILABLE", HANDSHAKE))


def test_a_last_question_cut_short_does_not_hide_what_was_seen_before() -> None:
    clock = Clock()
    conversation = _conversation(clock)
    steps = conversation.wait_until_available(conversation.choose("", None, ""), conversation.deadline(0.1))
    next(steps)
    assert steps.send(_status(3, 20)) == Sleep(0.05)
    clock.now += 0.05
    question = steps.send(None)
    assert isinstance(question, Call)
    clock.now += question.timeout_s
    assert steps.throw(Failure("DEADLINE_EXCEEDED")) == Connected()
    with pytest.raises(Unavailable, match=r"not available yet: 3 \(LOADING\)\. .* Waited 0\.1 s\."):
        steps.send(True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_attempts": 0, "rows_per_request": 0}, "max_attempts is 0, expected 1 or more; rows_per_request is 0, expected 1 or more"),
        ({"max_message_bytes": 100}, "max_message_bytes is 100, expected 4096 or more"),
        ({"timeout_s": 0}, "timeout_s is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_all_at_once(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _conversation(Clock(), **settings)
