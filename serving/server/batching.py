"""Runs concurrent requests together. Frees the model from small batches, and neighbours from each other's errors.

TensorFlow's own batching op was the alternative. It cannot drop a request whose deadline has passed, fails every request of a batch when one is
bad, and takes requests in order of arrival, so that short texts pay for the longest of their batch: docs/decisions/0006-batching.md has the measures.

One queue per (inputs, outputs), one set of threads for all. A thread takes the oldest request and, with it, those of nearest length: text of
similar length needs the least padding. When a batch fails, its requests run again one by one, so that each gets its own answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from serving.server.configs import Batching
from serving.server.status import Status, invalid
from serving.wire import Array

# A batch of this many rows is nearly as fast a row as a larger one (docs/decisions/0006-batching.md): beyond it only rows of about the same length join.
ENOUGH_ROWS = 8
SAME_LENGTH = 1.15

Run = Callable[[Mapping[str, Array], Sequence[str], "float | None"], "list[Array]"]
Key = tuple[tuple[str, ...], tuple[str, ...]]


@dataclass
class Task:
    """One request, or a part of one, waiting for its answer."""

    feeds: Mapping[str, Array]
    rows: int
    length: int
    arrived: float
    deadline: float | None
    answer: Future[list[Array]]


@dataclass(frozen=True)
class Batch:
    """What was put together: for metrics."""

    rows: int
    requests: int
    waited_s: float


def choose(tasks: Sequence[Task], most: int) -> list[int]:
    """Which tasks to run next: indices into `tasks`, oldest first in the queue.

    The oldest always goes, so nobody starves. Others join by nearness of length: any while the batch is small, then only those of about the same.
    """
    oldest = tasks[0]
    chosen, rows = [0], oldest.rows
    by_nearness = sorted(range(1, len(tasks)), key=lambda index: (abs(tasks[index].length - oldest.length), index))
    for index in by_nearness:
        task = tasks[index]
        if rows + task.rows > most:
            continue
        near = max(task.length, oldest.length) <= SAME_LENGTH * max(1, min(task.length, oldest.length))
        if rows >= ENOUGH_ROWS and not near:
            break
        chosen.append(index)
        rows += task.rows
    return chosen


def length_of(feeds: Mapping[str, Array]) -> int:
    """How long a row is, in bytes for strings, in elements for numbers: a stand-in for the work it makes."""
    longest = 0
    for value in feeds.values():
        if value.dtype == np.object_:
            longest = max(longest, max((len(item) for item in value.ravel().tolist()), default=0))
        elif value.ndim > 1:
            longest = max(longest, int(np.prod(value.shape[1:])))
    return longest


class BatchingQueue:
    """A bounded queue in front of one loaded version."""

    def __init__(self, run: Run, settings: Batching, observe: Callable[[Batch], None] = lambda batch: None) -> None:
        """Starts its threads.

        Args:
            run: runs one batch.
            settings: sizes, times, bounds.
            observe: told of every batch.
        """
        self._run = run
        self._settings = settings
        self._observe = observe
        self._most = settings.max_execution_size if settings.split_large and settings.max_execution_size else settings.max_batch_size
        self._limit_rows = max(1, settings.max_enqueued_batches) * settings.max_batch_size
        self._waiting: dict[Key, list[Task]] = {}
        self._rows = 0
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name=f"batch-{number}", daemon=True) for number in range(settings.threads)]
        for thread in self._threads:
            thread.start()

    def run_tensors(self, feeds: Mapping[str, Array], fetches: Sequence[str], deadline: float | None) -> list[Array]:
        """The same as the model's own, answered together with others.

        Raises:
            Status: RESOURCE_EXHAUSTED when the queue is full; what TensorFlow Serving says of inputs that cannot be batched; the model's own errors.
        """
        rows = self._rows_of(feeds)
        if not feeds or rows == 0:
            return self._run(feeds, fetches, deadline)
        key = (tuple(sorted(feeds)), tuple(fetches))
        parts = [feeds]
        if rows > self._most:
            if not self._settings.split_large:
                raise invalid(f"Task size {rows} is larger than maximum input batch size {self._most}")
            parts = [{name: value[start : start + self._most] for name, value in feeds.items()} for start in range(0, rows, self._most)]
        now = time.monotonic()
        tasks = [Task(part, len(next(iter(part.values()))), length_of(part), now, deadline, Future()) for part in parts]
        with self._changed:
            if self._closed:
                raise Status("UNAVAILABLE", "The model is being unloaded")
            if self._rows and self._rows + rows > self._limit_rows:
                raise Status(
                    "RESOURCE_EXHAUSTED",
                    f"The batching queue is full: {self._rows} rows wait, its limit is {self._limit_rows}. Try again later, or raise max_enqueued_batches.",
                )
            self._waiting.setdefault(key, []).extend(tasks)
            self._rows += rows
            self._changed.notify(len(tasks))
        answers = [self._wait(task) for task in tasks]
        if len(answers) == 1:
            return answers[0]
        return [np.concatenate(values) for values in zip(*answers, strict=True)]

    @property
    def waiting_rows(self) -> int:
        return self._rows

    def close(self) -> None:
        """Answers what waits, then stops the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _rows_of(self, feeds: Mapping[str, Array]) -> int:
        if any(value.ndim == 0 for value in feeds.values()):
            raise invalid("Batching Run() input tensors must have at least one dimension")
        sizes = {value.shape[0] for value in feeds.values()}
        if len(sizes) > 1:
            raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
        return int(sizes.pop()) if sizes else 0

    def _wait(self, task: Task) -> list[Array]:
        try:
            return task.answer.result(None if task.deadline is None else max(0.0, task.deadline - time.monotonic()) + 0.05)
        except TimeoutError:
            # It may still be waiting: a cancelled future is skipped by the thread that takes it.
            task.answer.cancel()
            raise Status("DEADLINE_EXCEEDED", "Deadline exceeded while waiting for the batch") from None

    def _work(self) -> None:
        while True:
            with self._changed:
                tasks = self._next()
            if tasks is None:
                return
            key, batch = tasks
            now = time.monotonic()
            alive = []
            for task in batch:
                if task.deadline is not None and task.deadline <= now:
                    if task.answer.set_running_or_notify_cancel():
                        task.answer.set_exception(Status("DEADLINE_EXCEEDED", "Deadline exceeded before the model ran"))
                elif task.answer.set_running_or_notify_cancel():
                    alive.append(task)
            if alive:
                self._observe(Batch(sum(task.rows for task in alive), len(alive), now - min(task.arrived for task in alive)))
                self._answer(alive, key[1])

    def _next(self) -> tuple[Key, list[Task]] | None:
        """Waits for the next batch; None when the queue is closed and empty. Called with the lock held."""
        while True:
            if not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
                continue
            oldest = min(self._waiting, key=lambda one: self._waiting[one][0].arrived)
            rest = self._waiting[oldest][0].arrived + self._settings.timeout_s - time.monotonic()
            if rest > 0 and not self._closed:
                # A full batch runs at once, also while older requests for something else still wait for company.
                full = [one for one, tasks in self._waiting.items() if sum(task.rows for task in tasks) >= self._most]
                if not full:
                    self._changed.wait(rest)
                    continue
                oldest = min(full, key=lambda one: self._waiting[one][0].arrived)
            key, tasks = oldest, self._waiting[oldest]
            chosen = set(choose(tasks, self._most))
            batch = [tasks[index] for index in sorted(chosen)]
            left = [task for index, task in enumerate(tasks) if index not in chosen]
            if left:
                self._waiting[key] = left
            else:
                del self._waiting[key]
            self._rows -= sum(task.rows for task in batch)
            return key, batch

    def _answer(self, tasks: list[Task], fetches: Sequence[str]) -> None:
        try:
            values = self._together(tasks, fetches)
        except Exception as error:
            if len(tasks) == 1:
                tasks[0].answer.set_exception(error)
                return
            # One bad request must not fail its neighbours.
            for task in tasks:
                self._answer([task], fetches)
            return
        for task, value in zip(tasks, values, strict=True):
            task.answer.set_result(value)

    def _together(self, tasks: list[Task], fetches: Sequence[str]) -> list[list[Array]]:
        joined = {name: self._joined([task.feeds[name] for task in tasks]) for name in tasks[0].feeds}
        rows = sum(task.rows for task in tasks)
        target = next((size for size in self._settings.allowed_sizes if size >= rows), rows)
        if target > rows:
            joined = {name: np.concatenate([value, np.repeat(value[:1], target - rows, axis=0)]) for name, value in joined.items()}
        # The batch runs until its most patient request gives up.
        deadlines = [task.deadline for task in tasks]
        known = [deadline for deadline in deadlines if deadline is not None]
        outputs = self._run(joined, fetches, max(known) if len(known) == len(deadlines) else None)
        for value in outputs:
            if value.ndim == 0:
                raise Status("FAILED_PRECONDITION", "Batched output tensor has 0 dimensions")
            if value.shape[0] != target:
                raise Status(
                    "FAILED_PRECONDITION",
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input tensors",
                )
        answers, start = [], 0
        for task in tasks:
            answers.append([value[start : start + task.rows] for value in outputs])
            start += task.rows
        return answers

    def _joined(self, values: list[Array]) -> Array:
        if len(values) == 1:
            return values[0]
        if len({value.dtype for value in values}) > 1:
            raise invalid("Tensors of one batch must have the same dtype")
        inner = {value.shape[1:] for value in values}
        if len(inner) > 1:
            if not self._settings.pad_variable_length or len({len(shape) for shape in inner}) > 1:
                raise Status(
                    "FAILED_PRECONDITION",
                    "Tensors with name must have same shape except the first dimension. Set pad_variable_length_inputs",
                )
            largest = [max(sizes) for sizes in zip(*inner, strict=True)]
            values = [self._padded(value, largest) for value in values]
        return np.concatenate(values)

    @staticmethod
    def _padded(value: Array, inner: Sequence[int]) -> Array:
        # TensorFlow Serving pads with the first element of each tensor.
        filler = value.ravel()[0] if value.size else (b"" if value.dtype == np.object_ else 0)
        result = np.full((value.shape[0], *inner), filler, value.dtype)
        result[tuple(slice(size) for size in value.shape)] = value
        return result
