"""The files of a journal: opened, locked, rotated, synced, and deleted when they are too old. Frees the writing thread from what disks do.

In: lines. Out: files `TIME-WRITER-NUMBER.jsonl` (0600), TIME being that of the first record, WRITER one process. A write that fails leaves no half
line behind, and says so (`False`) instead of raising.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from serving.journal.records import to_time
from serving.registry import sync_folder

logger = logging.getLogger(__name__)

OpenFile = Callable[[Path], io.FileIO]

IDLE_S = 3600.0  # how often an idle journal looks for what has become too old
NAME = re.compile(r"(\d{8}T\d{6}\.\d{3})Z-(\w+)-\d{6}\.jsonl")


def open_private(path: Path) -> io.FileIO:
    """A new file that nobody else can read, for appending."""
    return io.FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600), "wb")


class Files:
    """The file that is being written, and those before it. Only the writing thread comes here."""

    def __init__(self, folder: Path, sync: str, max_bytes: int, max_age_s: float, retention_days: float, open_file: OpenFile) -> None:
        self._folder, self._sync, self._max_bytes, self._max_age_s, self._open_file = folder, sync, max_bytes, max_age_s, open_file
        self._retention_s = retention_days * 86_400
        self._stream: io.FileIO | None = None
        self._pruned = 0.0
        self.failing = False
        self.leave()

    def leave(self) -> None:
        """Closes without a word to the disk: the file is the parent's, in whose child we are."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._size, self._sequence, self._opened = None, 0, 0, 0.0
        self._writer = f"{os.getpid()}_{secrets.token_hex(4)}"

    def write(self, lines: Sequence[bytes]) -> bool:
        """All or nothing, as far as the disk allows."""
        try:
            stream = self._current(lines[0])
            with locked(stream.fileno()):
                if not is_at(stream.fileno(), self._path):  # `delete` has put another file in its place
                    stream.close()
                    self._stream = None
                    stream = self._current(lines[0])
                self._append(stream, b"".join(lines))
                if self._sync == "flush":
                    os.fsync(stream.fileno())
        except (OSError, ValueError) as error:
            if not self.failing:
                logger.error(
                    "journal %s: cannot be written: %s. Records wait, and are dropped when the queue is full.", self._folder, error
                )
            self.failing = True
            return False
        if self.failing:
            logger.warning("journal %s: can be written again.", self._folder)
        self.failing = False
        if self._size >= self._max_bytes:
            self.rotate()
        return True

    def _append(self, stream: io.FileIO, data: bytes) -> None:
        done = 0
        try:
            while done < len(data):
                done += stream.write(data[done:]) or 0
        except OSError:
            try:
                stream.truncate(self._size)  # half a line would spoil the next one, and all of it would come twice
            except OSError:
                self._stream = None
                stream.close()
            raise
        self._size += done

    def _current(self, first: bytes) -> io.FileIO:
        if self._stream is None:
            stamp = min(str(json.loads(first).get("time")), to_time(time.time()))[:23].replace("-", "").replace(":", "")
            self._sequence += 1
            self._path = self._folder / f"{stamp}Z-{self._writer}-{self._sequence:06}.jsonl"
            self._stream, self._size, self._opened = self._open_file(self._path), 0, time.monotonic()
        return self._stream

    def rotate(self) -> None:
        """Ends the file."""
        if self._stream is None:
            return
        stream, self._stream = self._stream, None
        try:
            if self._sync != "never":
                os.fsync(stream.fileno())
                sync_folder(self._folder)
            stream.close()
        except OSError as error:
            logger.error("journal %s: %s: cannot be synced: %s", self._folder, self._path.name, error)

    def rest_s(self) -> float:
        """Until `tidy` has something to do."""
        return IDLE_S if self._stream is None else max(0.0, self._opened + self._max_age_s - time.monotonic())

    def tidy(self) -> None:
        """Rotates by age, and deletes what is too old."""
        if self._stream is not None and time.monotonic() - self._opened >= self._max_age_s:
            self.rotate()
        if time.monotonic() - self._pruned >= IDLE_S:
            self.prune()

    def prune(self) -> None:
        """Deletes whole files after the retention time; a running writer rotates its file earlier, so it is none of these."""
        self._pruned = time.monotonic()
        if not self._retention_s:
            return
        oldest = time.time() - self._retention_s
        for path in self._folder.glob("*.jsonl"):
            with contextlib.suppress(OSError):  # another process was first
                if NAME.fullmatch(path.name) and path.stat().st_mtime < oldest:
                    path.unlink()


@contextlib.contextmanager
def locked(descriptor: int) -> Iterator[None]:
    """Between the processes that write a file or rewrite it; a file system without locks has only one of them at a time."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        found, mine = path.stat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)
