"""The journal: who asks never waits, what was flushed is there, what is deleted is gone."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from serving import ConfigError
from serving.journal import (
    Journal,
    delete,
    is_request_id,
    normalised,
    read,
    read_key,
    text_key,
    to_time,
)
from serving.journal.files import open_private
from tests.contract.conftest import until
from tests.journals import KEY, NOW, Disk, exchange, files, ids, request
from tfpipeline.data.intake import normalise

# ---- writing and reading


def test_what_is_appended_is_read_back_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "journal"
    with Journal(folder) as journal:
        assert all(journal.append(request(number, comment="ça va 电话\u2028\udc80")) for number in range(500))
    assert ids(folder) == [f"r{number}:0" for number in range(500)]
    assert next(read(folder))["comment"] == "ça va 电话\u2028\udc80"
    assert journal.counts == (500, 0, 0)


def test_only_the_owner_reads_it(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with Journal(tmp_path / "journal") as journal:
            journal.append(request(1))
    finally:
        os.umask(old)
    modes = {path.suffix or path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "journal").iterdir()}
    assert modes == {".jsonl": 0o600, "key": 0o600}
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o700


def test_lines_are_in_the_file_after_the_flush_interval_without_closing(tmp_path: Path) -> None:
    with Journal(tmp_path, flush_s=0.05) as journal:
        journal.append(request(1))
        until(lambda: ids(tmp_path) == ["r1:0"], "the record is in the file")
        assert journal.counts == (1, 0, 0)


def test_a_torn_last_line_is_skipped_and_counted(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(request(1))
        journal.append(request(2, comment="电话"))
    (file,) = files(tmp_path)
    file.write_bytes(file.read_bytes()[:-20])
    assert len(files(tmp_path)) == 1
    with (tmp_path / "other.jsonl").open("w") as stream:
        stream.write('{"time":"2026-01-01T00:00:00.000+00:00","id":"old:0"}\n[1]\n"x"\n{"id":"no time"}\n\x00\x00\n')
    records = read(tmp_path)
    assert [record["id"] for record in records] == ["old:0", "r1:0"]
    assert records.torn == 5
    assert list(read(tmp_path / "nowhere")) == []


def test_kill_9_loses_no_more_than_the_last_flush(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from serving.journal import Journal\n"
        "journal = Journal(sys.argv[1], flush_s=0.2)\n"
        "for number in range(10**9):\n"
        "    journal.append({'kind': 'request', 'id': f'{number}:0', 'comment': 'x' * 200})\n"
        "    time.sleep(0.001)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as process:
        until(lambda: len(ids(tmp_path)) > 500, "several flushes", 60)
        before = ids(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        killed = time.time()
    records = read(tmp_path)
    found = list(records)
    assert records.torn <= 1
    assert [record["id"] for record in found] == [f"{number}:0" for number in range(len(found))]  # a beginning without gaps
    assert [record["id"] for record in found[: len(before)]] == before
    # One interval, and the time in which a busy machine lets the writer and this test come to work.
    assert datetime.fromisoformat(found[-1]["time"]).timestamp() > killed - 5


def test_closing_writes_all_that_is_queued(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_queued=50_000)
    for number in range(20_000):
        journal.append(request(number))
    journal.close(60)
    journal.close()
    assert journal.counts == (20_000, 0, 0)
    assert len(ids(tmp_path)) == 20_000
    assert not journal.append(request(1))
    assert journal.counts.dropped == 1


def test_a_process_that_just_ends_has_written_all(tmp_path: Path) -> None:
    code = "import sys; from serving.journal import Journal; Journal(sys.argv[1], flush_s=60).append({'kind': 'feedback', 'id': 'last:0'})"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    assert ids(tmp_path) == ["last:0"]


def test_a_forked_child_writes_files_of_its_own_and_none_of_its_parent(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from serving.journal import Journal\n"
        "journal = Journal(sys.argv[1], flush_s=60)\n"
        "journal.append({'kind': 'feedback', 'id': 'parent:0'})\n"
        "child = os.fork()\n"
        "journal.append({'kind': 'feedback', 'id': ('parent' if child else 'child') + ':1'})\n"
        "journal.close()\n"
        "if not child: os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(tmp_path)], check=True, timeout=60)
    assert sorted(ids(tmp_path)) == ["child:1", "parent:0", "parent:1"]
    assert len(files(tmp_path)) == 2


# ---- disks


@pytest.fixture
def disk() -> Iterator[Disk]:
    made = Disk()
    yield made
    made.full = made.half = False
    made.goes.set()


def test_a_disk_that_hangs_delays_nobody_and_drops_are_counted_and_told(tmp_path: Path, disk: Disk) -> None:
    disk.goes.clear()
    with Journal(tmp_path, flush_s=0.01, max_queued=50, open_file=disk.open) as journal:
        journal.append(request(0))
        assert disk.entered.acquire(timeout=20)  # the thread hangs in the disk
        started = time.monotonic()
        kept = sum(journal.append(request(number)) for number in range(1, 10_001))
        assert time.monotonic() - started < 2
        assert kept == 50
        assert journal.counts == (0, 9_950, 51)
        started = time.monotonic()
        journal.close(0.05)
        assert time.monotonic() - started < 2
        disk.goes.set()
        until(lambda: journal.counts.queued == 0, "the disk takes what waited")
    records = list(read(tmp_path))
    assert [record["id"] for record in records if record["kind"] == "request"] == [f"r{number}:0" for number in range(51)]
    (drops,) = (record for record in records if record["kind"] == "drops")
    assert (drops["count"], drops["source"]) == (9_950, "client")


def test_a_full_disk_loses_nothing_that_still_fits_into_the_queue_and_leaves_no_half_line(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "serving"), Journal(tmp_path, flush_s=0.01, open_file=disk.open) as journal:
        journal.append(request(1))
        until(lambda: journal.counts.written == 1, "written")
        disk.full = True
        journal.append(request(2))
        for _ in range(3):
            assert disk.entered.acquire(timeout=20)
        assert journal.counts == (1, 0, 1)
        disk.full = False
        until(lambda: journal.counts.written == 2, "written when there is room again")
    records = read(tmp_path)
    assert [record["id"] for record in records] == ["r1:0", "r2:0"]
    assert records.torn == 0
    assert caplog.text.count("No space left on device") == 1  # said once, not at every attempt
    assert "can be written again" in caplog.text


def test_a_disk_that_stays_full_gives_up_at_closing_and_says_how_much(tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.full = True
    with caplog.at_level(logging.WARNING, "serving"), Journal(tmp_path, flush_s=0.01, open_file=disk.open) as journal:
        journal.append(request(1))
        journal.append(request(2))
    assert journal.counts == (0, 0, 2)
    assert "closed with 2 records unwritten" in caplog.text


def test_a_disk_that_takes_half_gets_the_rest(tmp_path: Path, disk: Disk) -> None:
    disk.half = True
    with Journal(tmp_path, open_file=disk.open) as journal:
        for number in range(10):
            journal.append(request(number))
    assert len(ids(tmp_path)) == 10


@pytest.mark.parametrize(("sync", "least", "most"), [("never", 0, 0), ("rotation", 1, 2), ("flush", 3, 10)])
def test_a_file_is_synced_as_the_policy_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: str, least: int, most: int) -> None:
    synced: list[int] = []
    monkeypatch.setattr("serving.journal.files.os.fsync", synced.append)
    with Journal(tmp_path, sync=sync, flush_s=0.01) as journal:
        for number in range(3):
            journal.append(request(number))
            until(lambda written=number + 1: journal.counts.written == written, "written")
        if sync == "rotation":
            assert not synced
    assert least <= len(synced) <= most


def test_a_record_that_json_cannot_say_is_dropped_and_the_next_is_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "serving"), Journal(tmp_path) as journal:
        journal.append(request(1, value=object()))
        journal.append(request(2, value=float("nan")))
        journal.append(request(3))
    assert [record["id"] for record in read(tmp_path) if record["kind"] == "request"] == ["r3:0"]
    assert journal.counts == (1, 2, 0)
    assert "could not be made" in caplog.text


def test_the_bytes_that_wait_are_bounded_too(tmp_path: Path, disk: Disk) -> None:
    disk.goes.clear()
    with Journal(tmp_path, flush_s=0.01, max_queued_bytes=1000, open_file=disk.open) as journal:
        journal.append(request(0))
        assert disk.entered.acquire(timeout=20)
        assert journal.note(exchange(), 5000)  # alone it may come, however large
        assert not journal.note(exchange(), 1)
        disk.goes.set()


# ---- files


def test_a_file_is_rotated_by_its_size(tmp_path: Path) -> None:
    with Journal(tmp_path, flush_s=0.01, max_file_bytes=2000) as journal:
        for number in range(60):
            journal.append(request(number))
            until(lambda written=number + 1: journal.counts.written == written, "written")
    assert 3 <= len(files(tmp_path)) <= 8
    assert all(path.stat().st_size < 2200 for path in files(tmp_path))
    assert ids(tmp_path) == [f"r{number}:0" for number in range(60)]


def test_a_file_is_rotated_by_its_age_even_when_nothing_more_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path, flush_s=0.01, max_file_age_s=0.2, retention_days=1) as journal:
        journal.append(request(1))
        until(lambda: journal._files._stream is None and files(tmp_path), "the file is closed")
        journal.append(request(2))
    assert len(files(tmp_path)) == 2


def test_files_go_after_their_retention_and_others_are_left_alone(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(request(1))
    (old,) = files(tmp_path)
    foreign = tmp_path / "mine.jsonl"
    foreign.write_text("{}\n")
    for path in (old, foreign):
        os.utime(path, (NOW, time.time() - 31 * 86_400))
    Journal(tmp_path, retention_days=32).close()
    assert files(tmp_path) == [old, foreign]
    Journal(tmp_path, retention_days=0).close()
    assert files(tmp_path) == [old, foreign]
    Journal(tmp_path, retention_days=30).close()
    assert files(tmp_path) == [foreign]


def test_several_writers_are_merged_by_time_and_a_window_opens_only_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Journal(tmp_path, max_file_bytes=1, flush_s=0.01), Journal(tmp_path, flush_s=0.01)
    for number in range(20):
        journal = second if number % 3 == 0 else first
        journal.append(request(number, time=to_time(NOW + number)))
        until(lambda: not first.counts.queued and not second.counts.queued, "written")
    first.close()
    second.close()
    assert ids(tmp_path) == [f"r{number}:0" for number in range(20)]
    opened: list[str] = []
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *args, **more: (opened.append(path.name), original(path, *args, **more))[1])
    window = {"since": datetime.fromtimestamp(NOW + 15, timezone.utc), "until": datetime.fromtimestamp(NOW + 17, timezone.utc)}
    assert ids(tmp_path, **window) == ["r15:0", "r16:0"]
    assert len(opened) < 10 < len(files(tmp_path))
    assert ids(tmp_path, until=datetime.fromtimestamp(NOW + 2, timezone(timedelta(hours=5)))) == ["r0:0", "r1:0"]


# ---- deleting


def test_deleting_takes_records_of_an_id_a_request_or_a_text_and_their_feedback(tmp_path: Path) -> None:
    with Journal(tmp_path, text="redacted", max_file_bytes=300, flush_s=0.01) as journal:
        key = journal.text_key("forget me")
        for number in range(6):
            journal.append(request(number, text=f"t{number}", text_key=key if number == 4 else "other"))
            journal.append({"kind": "feedback", "id": f"r{number}:0", "label": "y"})
            until(lambda: not journal.counts.queued, "written")
        journal.append({"kind": "request", "id": "r1:1"})
    untouched = {path.name: path.stat().st_ino for path in files(tmp_path)}
    assert delete(tmp_path, ids=["r0:0", "r1"], text_keys=[key]) == 7
    assert ids(tmp_path) == ["r2:0", "r2:0", "r3:0", "r3:0", "r5:0", "r5:0"]
    assert key not in "".join(path.read_text() for path in files(tmp_path))
    assert any(untouched[path.name] == path.stat().st_ino for path in files(tmp_path))
    assert {path.stat().st_mode & 0o777 for path in files(tmp_path)} == {0o600}
    assert delete(tmp_path, ids=["r0:0"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*untouched, "key"])


def test_deleting_under_a_running_writer_loses_nothing_of_what_it_writes_later(tmp_path: Path) -> None:
    with Journal(tmp_path, flush_s=0.005) as journal:
        stop = threading.Event()
        written: list[int] = []

        def write() -> None:
            while not stop.is_set():
                if journal.append(request(len(written))):
                    written.append(1)
                time.sleep(0.0005)

        thread = threading.Thread(target=write)
        thread.start()
        for number in range(20):
            until(lambda wanted=number * 10: journal.counts.written > wanted, "written")
            until(lambda wanted=f"r{number * 10}:0": delete(tmp_path, ids=[wanted]) == 1, "found and deleted")
        stop.set()
        thread.join()
    gone = {f"r{number * 10}:0" for number in range(20)}
    assert ids(tmp_path) == [f"r{number}:0" for number in range(len(written)) if f"r{number}:0" not in gone]


def test_a_writer_waits_while_its_file_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copying, go = threading.Event(), threading.Event()

    def slow(path: Path) -> io.FileIO:
        copying.set()
        assert go.wait(60)
        return open_private(path)

    monkeypatch.setattr("serving.journal.reading.open_private", slow)
    with Journal(tmp_path, flush_s=0.01) as journal:
        for number in range(3):
            journal.append(request(number))
        until(lambda: journal.counts.written == 3, "written")
        thread = threading.Thread(target=delete, args=(tmp_path,), kwargs={"ids": ["r1"]})
        thread.start()
        assert copying.wait(60)
        journal.append(request(3))  # the file is read already and not replaced yet: what came in now would be lost
        until(lambda: journal._pending, "the writer is about to write")
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            assert journal.counts.written == 3
            time.sleep(0.01)
        go.set()
        thread.join()
    assert ids(tmp_path) == ["r0:0", "r2:0", "r3:0"]
    assert len(files(tmp_path)) == 2


def test_a_torn_line_that_holds_what_is_to_go_goes_too(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(request(1))
    (file,) = files(tmp_path)
    with file.open("a") as stream:
        stream.write('{"kind":"request","id":"r2:0","text":"half')
    assert delete(tmp_path, ids=["r2"]) == 1
    assert "half" not in file.read_text()
    assert ids(tmp_path) == ["r1:0"]


def test_a_rewritten_file_keeps_the_day_on_which_it_will_go(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(request(1))
        journal.append(request(2))
    (file,) = files(tmp_path)
    os.utime(file, (NOW, NOW))
    delete(tmp_path, ids=["r1"])
    assert file.stat().st_mtime == NOW


def test_a_file_that_cannot_be_rewritten_is_said_and_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path) as journal:
        journal.append(request(1))

    def full(path: Path) -> io.FileIO:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("serving.journal.reading.open_private", full)
    with pytest.raises(ConfigError, match=r"cannot be rewritten: No space left on device\. Free space"):
        delete(tmp_path, ids=["r1"])
    assert ids(tmp_path) == ["r1:0"]


# ---- keys, texts, samples


def test_equal_texts_have_equal_keys_and_nobody_guesses_them_without_the_key() -> None:
    assert text_key(KEY, "  Hello\u200b  world \n") == text_key(KEY, "Hello world")
    assert text_key(KEY, "Hello world") != text_key(bytes(32), "Hello world")
    assert text_key(KEY, "Hello world") != text_key(KEY, "hello world")
    assert len({text_key(KEY, "a b"), text_key(KEY, "a", "b"), text_key(KEY, "a"), text_key(KEY, "b", "a")}) == 4
    assert len(text_key(KEY, "\udc80")) == 64


@pytest.mark.parametrize("text", ["", " a\tb\n", "e\u0301 \u200b x", "A\x00B", "电话　１", "\ufeffq", "ﬁ"])
def test_texts_are_the_same_here_as_in_training_data(text: str) -> None:
    assert normalised(text) == normalise(text)


def test_one_key_is_made_at_first_and_found_again_by_all(tmp_path: Path) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(read_key(tmp_path / "k" / "key"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found[0]) == 32
    assert [path.name for path in (tmp_path / "k").iterdir()] == ["key"]
    assert Journal(tmp_path / "a", key_file=tmp_path / "k" / "key").key == found[0]
    assert not (tmp_path / "a" / "key").exists()


@pytest.mark.parametrize("content", ["", "abcd", "not hexadecimal", "é"])
def test_a_file_without_a_key_in_it_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content)
    with pytest.raises(ConfigError, match="journal key"):
        Journal(tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sampling": 1.5}, "sampling is 1.5"),
        ({"text": "raw"}, "Texts are never kept unredacted"),
        ({"sync": "often"}, "sync is 'often'"),
        ({"flush_s": 0, "max_queued": -1}, "flush_s is 0, expected more than 0; max_queued is -1"),
        ({"retention_days": 0.5}, "retention_days is 0.5: expected 0 for ever, or no less than max_file_age_s"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Journal(tmp_path, **settings)
    assert words in str(caught.value)


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        Journal(tmp_path / "file" / "journal")


def test_the_id_decides_what_is_sampled_and_everybody_decides_the_same(tmp_path: Path) -> None:
    client, server = Journal(tmp_path / "a", sampling=0.25), Journal(tmp_path / "b", sampling=0.25, source="server")
    few = Journal(tmp_path / "c", sampling=0.05)
    names = [f"request-{number}" for number in range(4000)]
    sampled = {name for name in names if client.samples(name)}
    assert sampled == {name for name in names if server.samples(name)}
    assert 900 < len(sampled) < 1100
    assert {name for name in names if few.samples(name)} < sampled  # a smaller share is a part of the larger
    assert not any(Journal(tmp_path / "d", sampling=0).samples(name) for name in names)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("a", True),
        ("A-z_0.9", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("", False),
        ("a b", False),
        ("a\r\nSet-Cookie: b", False),
        ("a\n", False),
        ("é", False),
    ],
)
def test_an_id_holds_nothing_that_could_end_a_header(text: str, good: bool) -> None:
    assert is_request_id(text) is good


@pytest.mark.parametrize(("policy", "expected"), [("none", {}), ("redacted", {"text": "I am [EMAIL]", "text_pair": "x"})])
def test_a_ready_record_keeps_texts_only_as_the_journal_does_and_its_comment_redacted(
    tmp_path: Path, policy: str, expected: dict[str, str]
) -> None:
    with Journal(tmp_path, text=policy) as journal:
        journal.append({"kind": "feedback", "id": "a:0", "text": "I am a@b.example", "text_pair": "x", "comment": "ask a@b.example"})
    (record,) = read(tmp_path)
    assert {name: record[name] for name in ("text", "text_pair") if name in record} == expected
    assert record["comment"] == "ask [EMAIL]"
