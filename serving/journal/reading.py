"""Reads a journal back, and takes single records out of it. Frees the monitor and the feedback from files, crashes and several writers.

In: a folder. Out: records in the order of time. Refuses no line: one that is no record is skipped and counted.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import secrets
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import groupby
from pathlib import Path

from serving.errors import ConfigError
from serving.journal.files import NAME, is_at, open_private
from serving.journal.records import Record, to_time
from serving.registry import sync_folder


class Records(Iterator[Record]):
    """Records in the order of time, one pass. Several processes' files are merged; a few milliseconds' disorder between threads stays.

    Attributes:
        torn: lines so far that were no record, such as the last one before a crash.
    """

    def __init__(self, folder: Path, since: datetime | None, until: datetime | None) -> None:
        self.torn = 0
        self._low = to_time(since.timestamp())[:23] if since else ""
        self._high = to_time(until.timestamp())[:23] if until else "~"
        # Threads overtake one another by less than this, so a file may end a little after the next one begins.
        self._early = to_time(since.timestamp() - 5)[:23] if since else ""
        self._records = self._merged(deque(self._streams(folder)))

    def __iter__(self) -> Iterator[Record]:
        return self._records

    def __next__(self) -> Record:
        return next(self._records)

    def _streams(self, folder: Path) -> list[tuple[str, list[Path]]]:
        """What each writer wrote, with the time of its first record; files that are wholly outside the window are left out."""
        files = sorted((_writer_of(path), _start_of(path), path) for path in folder.glob("*.jsonl"))
        streams = []
        for _, group in groupby(files, key=lambda one: one[0]):
            each = [(start, path) for _, start, path in group]
            ends = [start for start, _ in each[1:]] + ["~"]
            kept = [(start, path) for (start, path), end in zip(each, ends, strict=True) if end >= self._early and start < self._high]
            if kept:
                streams.append((kept[0][0], [path for _, path in kept]))
        return sorted(streams)

    def _merged(self, waiting: deque[tuple[str, list[Path]]]) -> Iterator[Record]:
        """Opens a writer's files only when its time has come: there may be thousands of former ones."""
        heap: list[tuple[str, int, Record, Iterator[Record]]] = []
        number = 0
        while heap or waiting:
            if waiting and (not heap or waiting[0][0] <= heap[0][0]):
                number += 1
                records = self._lines(waiting.popleft()[1])
                if (record := next(records, None)) is not None:
                    heapq.heappush(heap, (record["time"], number, record, records))
                continue
            _, order, record, records = heapq.heappop(heap)
            yield record
            end = min(heap[0][0] if heap else "~", waiting[0][0] if waiting else "~")
            for record in records:
                if record["time"] > end:
                    heapq.heappush(heap, (record["time"], order, record, records))
                    break
                yield record

    def _lines(self, paths: Iterable[Path]) -> Iterator[Record]:
        low, high, loads = self._low, self._high, json.loads
        for path in paths:
            try:
                stream = path.open(encoding="utf-8", errors="replace", newline="\n")
            except FileNotFoundError:
                continue  # its retention ended meanwhile
            with stream:
                for line in stream:
                    try:
                        record = loads(line)
                        time_ = record["time"]
                        if low <= time_ < high:
                            yield record
                    except (ValueError, TypeError, KeyError, RecursionError):
                        self.torn += 1


def read(folder: str | Path, *, since: datetime | None = None, until: datetime | None = None) -> Records:
    """The records of a journal, oldest first, as a stream: memory does not grow with their number.

    Args:
        folder: of the journal; one that is not there has no records.
        since: leave out what is older; whole files are not even opened.
        until: leave out this moment and what is younger.
    """
    return Records(Path(folder), since, until)


def _writer_of(path: Path) -> str:
    match = NAME.fullmatch(path.name)
    return match[2] if match else path.name


def _start_of(path: Path) -> str:
    """By its name; a file from elsewhere is asked for its first record."""
    if match := NAME.fullmatch(path.name):
        day, clock = match[1][:8], match[1][9:]
        return f"{day[:4]}-{day[4:6]}-{day[6:]}T{clock[:2]}:{clock[2:4]}:{clock[4:]}"
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            return str(json.loads(stream.readline())["time"])[:23]
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def delete(folder: str | Path, *, ids: Iterable[str] = (), text_keys: Iterable[str] = ()) -> int:
    """Takes records out for good; the files they were in are rewritten whole and put in place at once. Returns how many went.

    Processes that are writing go on; what they have not flushed yet (`flush_s`) is not seen, so call it again for what is that young.

    Args:
        folder: of the journal.
        ids: of records (`<request id>:<row>`), or of requests for all their rows; feedback to them goes, too.
        text_keys: of texts; feedback to their records goes, too.

    Raises:
        ConfigError: a file cannot be rewritten; those before it are done.
    """
    unwanted, keys = set(ids), set(text_keys)
    if keys:
        unwanted |= {str(record.get("id")) for record in read(folder) if record.get("text_key") in keys}
    count = 0
    for path in sorted(Path(folder).glob("*.jsonl")):
        try:
            count += _rewritten(path, unwanted, keys)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be rewritten: {error.strerror}. Free space or fix the permissions, and delete again."
            ) from error
    return count


def _rewritten(path: Path, ids: set[str], keys: set[str]) -> int:
    with path.open("rb") as stream:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX)
        if not is_at(stream.fileno(), path):
            return _rewritten(path, ids, keys)  # somebody else has just rewritten it
        kept, gone, needles = [], 0, [one.encode() for one in ids | keys]
        for line in stream:
            try:
                record = json.loads(line)
                whole = str(record.get("id"))
                wanted = not ({whole, whole.rpartition(":")[0]} & ids or record.get("text_key") in keys)
            except (ValueError, AttributeError):
                wanted = not any(needle in line for needle in needles)  # a torn line, which may hold what is to go
            kept += [line] if wanted else []
            gone += not wanted
        if gone:
            temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
            try:
                with open_private(temporary) as copy:
                    for line in kept:
                        copy.write(line)
                    os.fsync(copy.fileno())
                age = os.fstat(stream.fileno())
                os.utime(temporary, (age.st_atime, age.st_mtime))  # its retention does not begin anew
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync_folder(path.parent)
    return gone
