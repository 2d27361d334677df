"""A run directory: whole files, one writer, an honest status."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfpipeline import config, runs
from tfpipeline.errors import RunError

CONFIG = config.load(overrides=["name=demo"])


def test_a_new_run_has_config_lineage_and_is_the_latest(tmp_path: Path) -> None:
    run = runs.create(CONFIG, tmp_path)
    assert run.config == CONFIG
    assert run.path.name.endswith(f"-demo-{CONFIG.digest()[:6]}")
    assert run.info["status"] == "created"
    assert [runs.find(name, tmp_path).path.name for name in ("latest", run.path.name, str(run.path))] == [run.path.name] * 3


def test_two_runs_of_one_second_do_not_meet(tmp_path: Path) -> None:
    paths = {runs.create(CONFIG, tmp_path).path for _ in range(3)}
    assert len(paths) == len(runs.list_runs(tmp_path)) == 3


def test_the_status_says_how_it_ended(tmp_path: Path) -> None:
    run = runs.create(CONFIG, tmp_path)
    with run.writing():
        assert run.info["status"] == "running"
    assert run.info["status"] == "finished"
    with pytest.raises(ValueError, match="broken"), run.writing():
        raise ValueError("broken")
    assert (run.info["status"], run.info["reason"]) == ("failed", "broken")
    with pytest.raises(KeyboardInterrupt), run.writing():
        raise KeyboardInterrupt
    assert run.info["status"] == "interrupted"
    assert len(run.info["sessions"]) == 3


def test_only_one_process_writes_a_run(tmp_path: Path) -> None:
    run = runs.create(CONFIG, tmp_path)
    code = f"from pathlib import Path; from tfpipeline.runs import Run\nwith Run(Path({str(run.path)!r})).writing(): pass"
    with run.writing():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == (
        f"tfpipeline.errors.RunError: {run.path}: process {os.getpid()} is writing this run. Wait for it, or stop it, and try again."
    )


def test_a_torn_last_event_is_skipped(tmp_path: Path) -> None:
    run = runs.create(CONFIG, tmp_path)
    run.event("epoch", loss=1.0)
    with (run.path / "events.jsonl").open("a") as stream:
        stream.write('{"event": "epo')
    assert [event["loss"] for event in run.events("epoch")] == [1.0]


def test_an_unknown_run_names_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        runs.find("nope", tmp_path)
    assert (
        str(caught.value) == f"nope: no such run (a folder with run.json). There is no run in {tmp_path} yet; `tfpipeline train` makes one."
    )


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    root.write_text("")
    with pytest.raises(RunError, match=r"runs: cannot be written: Not a directory\. What was written before is intact\."):
        runs.create(CONFIG, root)


def _no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    runs.write_json(path, {"a": 1})
    monkeypatch.setattr(os, "fsync", _no_space)
    with pytest.raises(RunError, match=r"a.json: cannot be written: No space left on device\."):
        runs.write_json(path, {"a": 2})
    assert runs.read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with runs.atomic_folder(tmp_path / "whole") as folder:
        (folder / "x").write_text("x")
        assert not (tmp_path / "whole").exists()
    assert (tmp_path / "whole" / "x").read_text() == "x"
    with pytest.raises(ValueError, match="stop"), runs.atomic_folder(tmp_path / "half") as folder:
        (folder / "x").write_text("x")
        raise ValueError("stop")
    monkeypatch.setattr(os, "fsync", _no_space)
    with pytest.raises(RunError), runs.atomic_folder(tmp_path / "full") as folder:
        (folder / "x").write_text("x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["whole"]


def test_a_kill_in_the_middle_leaves_no_half_folder(tmp_path: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from tfpipeline.runs import atomic_folder\n"
        f"with atomic_folder(Path({str(tmp_path)!r}) / 'model') as folder:\n    (folder / 'x').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -9
    assert not (tmp_path / "model").exists()


def test_json_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[1]")
    with pytest.raises(RunError, match=r"x.json: expected a JSON object, received list\.$"):
        runs.read_json(path)


def test_a_discarded_run_gives_latest_back(tmp_path: Path) -> None:
    first = runs.create(CONFIG, tmp_path)
    second = runs.create(CONFIG, tmp_path)
    runs.discard(second)
    assert runs.find("latest", tmp_path).path.resolve() == first.path.resolve()
    runs.discard(first)
    assert list(tmp_path.iterdir()) == []
