"""The journal as those see it who answer: a bounded queue, and a thread that empties it. Frees them from disks; see `serving.journal`."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import logging
import os
import threading
import time
import weakref
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from serving.errors import ConfigError
from serving.journal.files import IDLE_S, Files, OpenFile, open_private
from serving.journal.records import Answered, Exchange, Record, new_request_id, read_key, records_of, text_key, to_time
from serving.redact import Names, redact

logger = logging.getLogger(__name__)

SYNC = ("rotation", "flush", "never")
TEXT = ("none", "redacted")
GATHER_S = 0.05  # after something came: more may come, and one waking serves all
STEP_S, REST_S = 0.0003, 0.0005  # the writer lets go of the interpreter that often, so that an answer waits for one step at most
MOST_PENDING = 4 << 20  # bytes that wait for the disk, beside the queue
EXIT_S = 2.0
_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class Counts(NamedTuple):
    """Records so far; `queued` is now, in the queue or waiting for the disk."""

    written: int
    dropped: int
    queued: int


class Journal:
    """Appends to a folder; to be shared by all threads. Several processes may share a folder too: each writes files of its own.

    Args:
        folder: made (0700) if it is not there.
        sampling: share of the requests that are kept, decided by the request id alone, so that a client and a server keep the same ones.
            Feedback is always kept.
        text: `none`, or `redacted`.
        names: also redacts what this finds, such as `serving.redact.spacy_names()`; it runs in the writing thread.
        source: `client` or `server`, as it stands in the records.
        key_file: of the key for `text_key`; "" is `key` in the folder. Made with a new key (0600) if it is not there.
        flush_s: longest time between an answer and its line in the file.
        sync: see the module.
        max_file_bytes: a file is rotated when it is that large,
        max_file_age_s: or that old.
        retention_days: files whose last line is older are deleted; 0 keeps all.
        max_queued: records that may wait; more are dropped.
        max_queued_bytes: of the messages that wait.
        open_file: opens a new file for appending, unbuffered; tests give broken disks.

    Raises:
        ConfigError: a setting that cannot work, a folder that cannot be written, or a key file that holds none.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        sampling: float = 1.0,
        text: str = "none",
        names: Names | None = None,
        source: str = "client",
        key_file: str | Path = "",
        flush_s: float = 1.0,
        sync: str = "rotation",
        max_file_bytes: int = 64 << 20,
        max_file_age_s: float = 86_400.0,
        retention_days: float = 30.0,
        max_queued: int = 10_000,
        max_queued_bytes: int = 64 << 20,
        open_file: OpenFile | None = None,
    ) -> None:
        self.folder = Path(folder)
        _check(self.folder, sampling, text, sync)
        positive = {"flush_s": flush_s, "max_file_bytes": max_file_bytes, "max_file_age_s": max_file_age_s, "max_queued": max_queued}
        wrong = [f"{name} is {value}, expected more than 0" for name, value in positive.items() if not 0 < value < 1e12]
        if not 0 <= retention_days < 1e6 or 0 < retention_days * 86_400 < max_file_age_s:
            wrong.append(f"retention_days is {retention_days}: expected 0 for ever, or no less than max_file_age_s ({max_file_age_s} s)")
        if wrong:
            raise ConfigError(f"journal {self.folder}: {'; '.join(wrong)}.")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"journal {self.folder}: cannot be made: {error.strerror}. Choose a folder that can be written.") from error
        self.key = read_key(Path(key_file) if key_file else self.folder / "key")
        self._sampling, self._keep_text, self._names, self._source = sampling, text == "redacted", names, source
        self._flush_s, self._max_queued, self._max_queued_bytes = flush_s, max_queued, max_queued_bytes
        self._files = Files(self.folder, sync, max_file_bytes, max_file_age_s, retention_days, open_file or open_private)
        self._files.prune()
        self._closed = False
        self._begin()
        _watch_forks()
        _JOURNALS.add(self)

    def _begin(self) -> None:
        """An empty queue and no thread; also in the child of a fork, where the locks may be held by threads that are not there."""
        self._lock = threading.RLock()  # re-entrant: a signal handler may append, too
        self._wake, self._stop = threading.Event(), threading.Event()
        self._queue: deque[tuple[Any, int, int]] = deque()
        self._rows = self._bytes = self._written = self._dropped = self._told = 0
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._thread: threading.Thread | None = None
        self._files.leave()

    # ---- whoever answers

    def samples(self, request_id: str) -> bool:
        """Whether a request is kept: the same for all who ask with the same share."""
        if self._sampling >= 1:
            return True
        digest = hashlib.blake2b(request_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self._sampling * 2**64

    def on_response(self, response: Answered) -> None:
        """For `Client(on_response=...)`: one record a row, of failed requests too."""
        request_id = response.request_id or new_request_id()
        if not self.samples(request_id):
            return
        size = response.request.ByteSize() + (response.response.ByteSize() if response.response is not None else 0)
        self.note(
            Exchange(
                request_id, response.model, response.version, response.version_label, response.code, response.seconds, response.rows,
                response.request, response.response, time.time(),
            ), size,
        )  # fmt: skip

    def note(self, exchange: Exchange, size_bytes: int = 0) -> bool:
        """A request that is over; False when it is dropped. Whether it is sampled is asked before (`samples`)."""
        return self._put(exchange, max(1, exchange.rows), size_bytes)

    def append(self, record: Record) -> bool:
        """A ready record, such as feedback; False when it is dropped. Never blocks; do not change the record afterwards.

        Its `text` and `text_pair` are kept only as the journal keeps texts, and its `comment` is redacted; without a `time` it gets the present one.
        """
        return self._put(record if "time" in record else {**record, "time": to_time(time.time())}, 1, 0)

    def text_key(self, text: str, text_pair: str = "") -> str:
        """The keyed hash by which this journal's records of a text are found."""
        return text_key(self.key, text, text_pair)

    @property
    def counts(self) -> Counts:
        with self._lock:
            return Counts(self._written, self._dropped, self._rows + len(self._pending))

    def close(self, timeout_s: float = 5.0) -> None:
        """Writes what is queued, syncs and ends the thread; safe to repeat. A disk that does not answer is given up after `timeout_s`."""
        atexit.unregister(self._at_exit)
        with self._lock:
            self._closed = True
            thread = self._thread
        self._stop.set()
        self._wake.set()
        if thread is None or thread is threading.current_thread():
            return
        thread.join(timeout_s)
        if lost := self.counts.queued:
            logger.warning("journal %s: closed with %d records unwritten: the disk did not take them in time.", self.folder, lost)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _at_exit(self) -> None:
        self.close(EXIT_S)

    def _put(self, item: Exchange | Record, rows: int, size: int) -> bool:
        with self._lock:
            full = self._rows + rows > self._max_queued or (self._bytes + size > self._max_queued_bytes and self._queue)
            if full or self._closed:
                self._dropped += rows
                return False
            self._queue.append((item, rows, size))
            self._rows += rows
            self._bytes += size
            if self._thread is None:
                self._start()
        if not self._wake.is_set():
            self._wake.set()
        return True

    def _start(self) -> None:
        thread = threading.Thread(target=self._write_all, name="journal", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the limit of threads, or the interpreter is ending; the next record tries again
            logger.error("journal %s: %s: records wait.", self.folder, error)
            return
        self._thread = thread
        atexit.register(self._at_exit)

    # ---- the writing thread

    def _write_all(self) -> None:
        flushed = time.monotonic()
        while True:
            stopping = self._stop.is_set()
            if not stopping and not (self._queue and not self._pending):
                due = flushed + self._flush_s - time.monotonic() if self._pending else self._files.rest_s()
                self._wake.wait(max(0.0, min(due, IDLE_S)))
                self._wake.clear()
                stopping = self._stop.wait(GATHER_S)
            self._take()
            full = self._pending_bytes >= MOST_PENDING and not self._files.failing
            if stopping or full or time.monotonic() - flushed >= self._flush_s:
                self._flush()
                flushed = time.monotonic()
            if stopping and (self._files.failing or not self._queue):
                self._files.rotate()
                return
            self._files.tidy()

    def _take(self) -> None:
        """Makes lines of what is queued, as far as there is room, in small steps."""
        step = time.perf_counter()
        while self._queue and self._pending_bytes < MOST_PENDING:
            item, rows, size = self._queue[0]
            try:
                made = (
                    self._cleaned(item)
                    if isinstance(item, dict)
                    else records_of(item, self._source, self.key, self._redacted if self._keep_text else None)
                )
                for record in made:
                    line = (_ENCODE(record) + "\n").encode("utf-8", "backslashreplace")
                    self._pending.append(line)
                    self._pending_bytes += len(line)
                    if time.perf_counter() - step > STEP_S:
                        if self._rows < self._max_queued / 2 and not self._stop.is_set():  # else nothing must be lost
                            time.sleep(REST_S)
                        step = time.perf_counter()
            except Exception:
                # Whatever a caller or a model made of it: one record less, and the next one is written.
                logger.exception("journal %s: a record could not be made", self.folder)
                with self._lock:
                    self._dropped += rows
            with self._lock:
                self._queue.popleft()
                self._rows -= rows
                self._bytes -= size

    def _cleaned(self, record: Record) -> list[Record]:
        kept = {key: value for key, value in record.items() if self._keep_text or key not in ("text", "text_pair")}
        return [kept | {key: self._redacted(kept[key]) for key in ("text", "text_pair", "comment") if isinstance(kept.get(key), str)}]

    def _redacted(self, text: str) -> str:
        return redact(text, self._names)

    def _flush(self) -> None:
        dropped = self._dropped
        lines = list(self._pending)
        if dropped > self._told:
            drops = {"kind": "drops", "time": to_time(time.time()), "source": self._source, "count": dropped - self._told}
            lines.append((_ENCODE(drops) + "\n").encode())
        if lines and self._files.write(lines):
            with self._lock:
                self._written += len(self._pending)
                self._pending, self._pending_bytes = [], 0
                self._told = dropped


def _check(folder: Path, sampling: float, text: str, sync: str) -> None:
    if not 0 <= sampling <= 1:
        raise ConfigError(f"journal {folder}: sampling is {sampling}: expected a share from 0 to 1.")
    if text not in TEXT:
        raise ConfigError(f"journal {folder}: text is {text!r}: expected one of {TEXT}. Texts are never kept unredacted.")
    if sync not in SYNC:
        raise ConfigError(f"journal {folder}: sync is {sync!r}: expected one of {SYNC}.")


_JOURNALS: weakref.WeakSet[Journal] = weakref.WeakSet()  # of this process, for the child of a fork


@functools.cache  # once a process, and not by importing
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_begin_again)


def _begin_again() -> None:
    for journal in list(_JOURNALS):
        journal._begin()
