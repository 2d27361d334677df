"""The batching queue by itself: who runs with whom, who is refused, who is dropped, and that nobody pays for another's mistake."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.server.batching import SAME_LENGTH, Batch, BatchingQueue, Task, choose, length_of
from serving.server.configs import Batching
from serving.server.status import Status
from serving.wire import Array

LONG_S = 20.0


class Model:
    """y = x + 1. Notes every run; waits for `go`; fails on negative values."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self.deadlines: list[float | None] = []
        self.fetches: list[list[str]] = []
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()

    def __call__(self, feeds: Mapping[str, Array], fetches: Sequence[str], deadline: float | None) -> list[Array]:
        self.runs.append({name: np.array(value) for name, value in feeds.items()})
        self.deadlines.append(deadline)
        self.fetches.append(list(fetches))
        self.entered.release()
        assert self.go.wait(LONG_S)
        x = next(iter(feeds.values())) if feeds else np.zeros(0, np.float32)
        if x.dtype != object and x.size and float(x.min()) < 0:
            raise Status("INVALID_ARGUMENT", f"{x.min():g} is negative")
        if "scalar" in fetches:
            return [np.float32(1.0).reshape(()) for _ in fetches]
        if "short" in fetches:
            return [x[:1] for _ in fetches]
        return [x if x.dtype == object else x + 1 for _ in fetches]

    @property
    def rows(self) -> list[int]:
        return [len(next(iter(run.values()))) for run in self.runs]


class Setup:
    """A model behind a queue, and callers in threads."""

    def __init__(self, **settings: Any) -> None:
        self.model, self.batches = Model(), list[Batch]()
        self.queue = BatchingQueue(self.model, Batching(**{"threads": 1, **settings}), self.batches.append)
        self.callers = ThreadPoolExecutor(64)

    def call(
        self, *values: Any, fetch: str = "y", deadline_s: float | None = None, feed: str = "x", dtype: Any = np.float32
    ) -> Future[Any]:
        feeds = {feed: np.array(values, dtype)}
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        waiting = self.queue.waiting_rows
        future = self.callers.submit(self.queue.run_tensors, feeds, [fetch], deadline)
        # Arrived: it waits, or has been taken, or was refused.
        _until(lambda: self.queue.waiting_rows > waiting or future.running() or future.done())
        return future

    def hold(self) -> Future[Any]:
        """Keeps the only thread busy until `model.go` is set."""
        self.model.go.clear()
        held = self.call(0.0, feed="held")
        assert self.model.entered.acquire(timeout=LONG_S)
        self.model.runs.clear()
        self.batches.clear()
        return held

    def queued(self, *values: Any, **more: Any) -> Future[Any]:
        """A call that is known to wait in the queue."""
        waiting = self.queue.waiting_rows
        future = self.call(*values, **more)
        _until(lambda: self.queue.waiting_rows > waiting)
        return future

    def close(self) -> None:
        self.model.go.set()
        self.queue.close()
        self.callers.shutdown()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def setup() -> Iterator[Callable[..., Setup]]:
    made: list[Setup] = []

    def make(**settings: Any) -> Setup:
        made.append(Setup(**settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def _values(future: Future[Any]) -> Any:
    (value,) = future.result(LONG_S)
    return value.tolist()


def _refused(future: Future[Any]) -> Status:
    error = future.exception(LONG_S)
    assert isinstance(error, Status), error
    return error


# ---- who runs with whom


def _tasks(*lengths: int, rows: int = 1) -> list[Task]:
    return [Task({}, rows, length, 0.0, None, Future()) for length in lengths]


@pytest.mark.parametrize(
    ("case", "lengths", "most", "expected"),
    [
        ("alone", [5], 8, [0]),
        ("all fit", [5, 6, 7], 8, [0, 1, 2]),
        ("the nearest fill what is left", [10, 90, 11, 80, 12], 3, [0, 2, 4]),
        ("nearest both ways", [10, 100, 9, 12], 3, [0, 2, 3]),
        ("the older of two that are equally near", [10, 12, 8, 12], 2, [0, 1]),
        ("the oldest goes, however odd it is", [1000, 1, 1, 1, 1], 2, [0, 1]),
        ("a small batch takes anything", [10, 500, 900], 8, [0, 1, 2]),
        ("a batch that is large enough takes only the like", [100] * 8 + [100, 110, 200, 50], 32, [*range(8), 8, 9]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_who_goes_with_the_oldest(case: str, lengths: list[int], most: int, expected: list[int]) -> None:
    assert sorted(choose(_tasks(*lengths), most)) == expected, case


def test_one_that_does_not_fit_lets_a_smaller_one_pass() -> None:
    tasks = [Task({}, rows, 5, 0.0, None, Future()) for rows in (2, 3, 1)]
    assert choose(tasks, 4) == [0, 2]


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3000)), min_size=1, max_size=60), st.integers(1, 64))
def test_a_choice_is_never_too_large_and_has_the_oldest(sizes: list[tuple[int, int]], most: int) -> None:
    tasks = [Task({}, min(rows, most), length, 0.0, None, Future()) for rows, length in sizes]
    chosen = choose(tasks, most)
    assert chosen[0] == 0
    assert len(set(chosen)) == len(chosen)
    assert sum(tasks[index].rows for index in chosen) <= most


def test_the_oldest_never_starves() -> None:
    """Whoever has n requests before it waits for n batches at the most, whatever lengths they have."""
    left = list(enumerate(_tasks(*[1, 1000] * 50)))
    for turn in range(100):
        if not left:
            break
        assert left[0][0] >= turn
        chosen = set(choose([task for _, task in left], 4))
        left = [one for index, one in enumerate(left) if index not in chosen]
    assert not left


@pytest.mark.parametrize(
    ("feeds", "expected"),
    [
        ({"x": np.array([b"a", b"abc"], object)}, 3),
        ({"x": np.zeros((2, 7), np.int32)}, 7),
        ({"x": np.zeros((2, 3, 5), np.float32)}, 15),
        ({"x": np.zeros(4, np.float32)}, 0),
        ({"x": np.zeros((1, 7)), "y": np.array([b"a" * 20], object)}, 20),
        ({"x": np.array([], object)}, 0),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_length_of_a_request(feeds: dict[str, Array], expected: int) -> None:
    assert length_of(feeds) == expected


def test_the_same_length_is_a_little_tolerant() -> None:
    assert 1 < SAME_LENGTH < 2


def test_concurrent_requests_run_together_and_each_gets_its_own(setup: Callable[..., Setup]) -> None:
    queue = setup(max_batch_size=8)
    held = queue.hold()
    calls = [queue.queued(float(number), float(number) + 0.5) for number in range(3)]
    queue.model.go.set()
    assert [_values(call) for call in calls] == [[1.0, 1.5], [2.0, 2.5], [3.0, 3.5]]
    assert held.result(LONG_S)
    assert queue.model.rows == [6]
    assert [(batch.rows, batch.requests) for batch in queue.batches] == [(6, 3)]
    assert queue.batches[0].waited_s > 0


def test_only_the_same_inputs_and_outputs_run_together(setup: Callable[..., Setup]) -> None:
    queue = setup(max_batch_size=8)
    queue.hold()
    calls = [queue.queued(1.0), queue.queued(1.0, fetch="z"), queue.queued(1.0, feed="other"), queue.queued(2.0)]
    queue.model.go.set()
    assert [_values(call) for call in calls] == [[2.0], [2.0], [2.0], [3.0]]
    assert sorted(queue.model.rows) == [1, 1, 2]


def test_a_batch_is_no_larger_than_the_maximum(setup: Callable[..., Setup]) -> None:
    queue = setup(max_batch_size=3, max_enqueued_batches=100)
    queue.hold()
    calls = [queue.queued(float(number)) for number in range(7)]
    queue.model.go.set()
    assert [_values(call) for call in calls] == [[number + 1.0] for number in range(7)]
    assert queue.model.rows == [3, 3, 1]


# ---- when


def test_a_full_batch_does_not_wait_for_its_timeout(setup: Callable[..., Setup]) -> None:
    queue = setup(max_batch_size=2, timeout_s=LONG_S)
    begun = time.monotonic()
    calls = [queue.call(1.0), queue.call(2.0)]
    assert [_values(call) for call in calls] == [[2.0], [3.0]]
    assert time.monotonic() - begun < LONG_S / 2
    assert queue.model.rows == [2]


def test_a_batch_that_is_not_full_runs_when_its_timeout_is_over(setup: Callable[..., Setup]) -> None:
    queue = setup(max_batch_size=100, timeout_s=0.2)
    begun = time.monotonic()
    assert _values(queue.call(1.0)) == [2.0]
    assert time.monotonic() - begun >= 0.2


def test_without_a_timeout_nobody_waits(setup: Callable[..., Setup]) -> None:
    queue = setup(max_batch_size=100, timeout_s=0.0)
    assert _values(queue.call(1.0)) == [2.0]


def test_a_full_batch_does_not_wait_for_other_inputs_timeout(setup: Callable[..., Setup]) -> None:
    queue = setup(max_batch_size=2, timeout_s=LONG_S)
    waiting = queue.queued(1.0, feed="other")
    begun = time.monotonic()
    calls = [queue.call(1.0), queue.call(2.0)]
    assert [_values(call) for call in calls] == [[2.0], [3.0]]
    assert time.monotonic() - begun < LONG_S / 2
    assert not waiting.done()


def test_several_batches_run_at_once(setup: Callable[..., Setup]) -> None:
    queue = setup(max_batch_size=1, threads=3)
    queue.model.go.clear()
    calls = [queue.call(float(number)) for number in range(3)]
    for _ in range(3):
        assert queue.model.entered.acquire(timeout=LONG_S), "each has a thread"
    queue.model.go.set()
    assert [_values(call) for call in calls] == [[1.0], [2.0], [3.0]]


# ---- what is refused


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": np.float32(1.0).reshape(())}, "Batching Run() input tensors must have at least one dimension"),
        ({"x": np.zeros(2), "y": np.zeros(3)}, "Batching Run() input tensors must have equal 0th-dimension size"),
        ({"x": np.zeros(5)}, "Task size 5 is larger than maximum input batch size 4"),
    ],
)
def test_inputs_that_cannot_be_batched(setup: Callable[..., Setup], feeds: dict[str, Array], message: str) -> None:
    queue = setup(max_batch_size=4)
    with pytest.raises(Status) as caught:
        queue.queue.run_tensors(feeds, ["y"], None)
    assert (caught.value.code, caught.value.message) == ("INVALID_ARGUMENT", message)
    assert not queue.model.runs


def test_a_full_queue_refuses_and_what_waits_is_answered(setup: Callable[..., Setup]) -> None:
    queue = setup(max_batch_size=2, max_enqueued_batches=2)
    queue.hold()
    calls = [queue.queued(float(number)) for number in range(4)]
    error = _refused(queue.call(9.0))
    assert error.code == "RESOURCE_EXHAUSTED"
    assert "4 rows wait, its limit is 4" in error.message
    queue.model.go.set()
    assert [_values(call) for call in calls] == [[1.0], [2.0], [3.0], [4.0]]
    assert _values(queue.call(9.0)) == [10.0], "there is room again"


@pytest.mark.parametrize(
    ("fetch", "message"),
    [
        ("scalar", "Batched output tensor has 0 dimensions"),
        ("short", "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input tensors"),
    ],
)
def test_outputs_that_cannot_be_cut_apart(setup: Callable[..., Setup], fetch: str, message: str) -> None:
    error = _refused(setup(max_batch_size=4).call(1.0, 2.0, fetch=fetch))
    assert (error.code, error.message) == ("FAILED_PRECONDITION", message)


def test_without_rows_or_inputs_it_runs_by_itself(setup: Callable[..., Setup]) -> None:
    queue = setup(max_batch_size=4, timeout_s=LONG_S)
    assert _values(queue.call()) == []
    assert queue.queue.run_tensors({}, ["y"], None)[0].tolist() == []
    assert not queue.batches


# ---- deadlines


def test_a_request_whose_deadline_has_passed_is_dropped_before_the_model_runs(setup: Callable[..., Setup]) -> None:
    queue = setup(max_batch_size=8)
    queue.hold()
    late, patient = queue.queued(1.0, deadline_s=0.05), queue.queued(2.0, deadline_s=LONG_S)
    assert _refused(late).code == "DEADLINE_EXCEEDED"
    queue.model.go.set()
    assert _values(patient) == [3.0]
    assert [run["x"].tolist() for run in queue.model.runs] == [[2.0]]


def test_a_batch_of_late_requests_does_not_run_at_all(setup: Callable[..., Setup]) -> None:
    queue = setup(max_batch_size=8)
    queue.hold()
    late = [queue.queued(1.0, deadline_s=0.05) for _ in range(3)]
    assert {_refused(one).code for one in late} == {"DEADLINE_EXCEEDED"}
    queue.model.go.set()
    assert _values(queue.call(5.0)) == [6.0]
    assert [run["x"].tolist() for run in queue.model.runs] == [[5.0]]


def test_a_caller_is_released_at_its_deadline_while_the_batch_still_runs(setup: Callable[..., Setup]) -> None:
    queue = setup(max_batch_size=8)
    queue.model.go.clear()
    call = queue.call(1.0, deadline_s=0.1)
    assert _refused(call).code == "DEADLINE_EXCEEDED"
    assert not queue.model.go.is_set()


@pytest.mark.parametrize(("deadlines", "bounded"), [((5.0, 10.0), True), ((5.0, None), False)])
def test_a_batch_runs_until_its_most_patient_request_gives_up(
    setup: Callable[..., Setup], deadlines: tuple[float | None, ...], bounded: bool
) -> None:
    queue = setup(max_batch_size=8)
    queue.hold()
    now = time.monotonic()
    calls = [queue.queued(1.0, deadline_s=deadline) for deadline in deadlines]
    queue.model.go.set()
    assert [_values(call) for call in calls] == [[2.0], [2.0]]
    (_, used) = queue.model.deadlines
    assert (used is not None) is bounded
    if used is not None:
        assert used > now + 9


# ---- neighbours


def test_a_bad_request_fails_alone(setup: Callable[..., Setup]) -> None:
    queue = setup(max_batch_size=8)
    queue.hold()
    calls = [queue.queued(1.0), queue.queued(-7.0), queue.queued(3.0)]
    queue.model.go.set()
    assert [_values(calls[0]), _values(calls[2])] == [[2.0], [4.0]]
    assert _refused(calls[1]).message == "-7 is negative"
    assert queue.model.rows == [3, 1, 1, 1]


def test_a_request_that_ran_alone_is_not_tried_again(setup: Callable[..., Setup]) -> None:
    queue = setup(max_batch_size=8)
    assert _refused(queue.call(-1.0)).message == "-1 is negative"
    assert queue.model.rows == [1]


@pytest.mark.parametrize(
    "odd",
    [{"dtype": np.float64}, {"values": [[1.0, 2.0, 3.0]]}, {"values": [[[1.0]]]}],
    ids=["another dtype", "another inner shape", "another rank"],
)
def test_a_request_that_does_not_fit_the_others_runs_alone(setup: Callable[..., Setup], odd: dict[str, Any]) -> None:
    queue = setup(max_batch_size=8)
    queue.hold()
    values = odd.get("values", [[1.0, 2.0]])
    calls = [queue.queued([1.0, 2.0]), queue.queued(*values, dtype=odd.get("dtype", np.float32)), queue.queued([3.0, 4.0])]
    queue.model.go.set()
    assert _values(calls[0]) == [[2.0, 3.0]]
    assert _values(calls[1]) == (np.array(values) + 1).tolist()
    assert _values(calls[2]) == [[4.0, 5.0]]


# ---- padding, sizes, splitting


def test_inner_shapes_are_padded_to_the_largest_when_asked_for(setup: Callable[..., Setup]) -> None:
    """With the first element of each tensor, as TensorFlow Serving does."""
    queue = setup(max_batch_size=8, pad_variable_length=True)
    queue.hold()
    calls = [queue.queued([1.0, 2.0]), queue.queued([5.0, 6.0, 7.0]), queue.queued([9.0])]
    queue.model.go.set()
    assert [_values(call) for call in calls] == [[[2.0, 3.0, 2.0]], [[6.0, 7.0, 8.0]], [[10.0, 10.0, 10.0]]]
    assert queue.model.runs[0]["x"].tolist() == [[1.0, 2.0, 1.0], [5.0, 6.0, 7.0], [9.0, 9.0, 9.0]]


@pytest.mark.parametrize(("rows", "ran"), [(1, 2), (2, 2), (3, 4), (4, 4)])
def test_a_batch_is_filled_up_to_the_next_allowed_size(setup: Callable[..., Setup], rows: int, ran: int) -> None:
    queue = setup(max_batch_size=4, allowed_sizes=(2, 4))
    numbers = [float(number + 1) for number in range(rows)]
    assert _values(queue.call(*numbers)) == [number + 1 for number in numbers], "the filling is cut off"
    assert queue.model.rows == [ran]
    assert queue.model.runs[0]["x"].tolist() == numbers + [1.0] * (ran - rows), "a row is repeated"


def test_a_large_request_is_split_and_joined_in_order(setup: Callable[..., Setup]) -> None:
    queue = setup(max_batch_size=10, split_large=True, max_execution_size=4)
    numbers = [float(number) for number in range(10)]
    assert _values(queue.call(*numbers)) == [number + 1 for number in numbers]
    assert sorted(queue.model.rows) == [2, 4, 4]


def test_parts_of_a_large_request_fail_as_one(setup: Callable[..., Setup]) -> None:
    queue = setup(max_batch_size=4, split_large=True)
    assert _refused(queue.call(1.0, 2.0, 3.0, 4.0, -5.0)).message == "-5 is negative"


def test_strings_are_batched_too(setup: Callable[..., Setup]) -> None:
    queue = setup(max_batch_size=8)
    queue.hold()
    calls = [queue.queued(b"a", dtype=object), queue.queued("zürich".encode(), b"", dtype=object)]
    queue.model.go.set()
    assert [_values(call) for call in calls] == [[b"a"], ["zürich".encode(), b""]]


# ---- closing


def test_what_waits_is_answered_before_it_closes(setup: Callable[..., Setup]) -> None:
    queue = setup(max_batch_size=100, timeout_s=LONG_S)
    calls = [queue.queued(1.0), queue.queued(2.0)]
    queue.queue.close()
    assert [_values(call) for call in calls] == [[2.0], [3.0]]


def test_after_it_is_closed_it_refuses(setup: Callable[..., Setup]) -> None:
    queue = setup()
    queue.queue.close()
    assert _refused(queue.call(1.0)).code == "UNAVAILABLE"
