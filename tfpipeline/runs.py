"""A run directory: where one training keeps everything. Frees the other rooms from paths, half-written files and "what happened".

    runs/20261123-144012-sst2-3f9a1c/
      config.json    the whole Config           run.json      lineage and status
      events.jsonl   what happened, when        metrics.json  the result
      data/  checkpoints/  evaluation/  tensorboard/
    runs/latest      points to the newest

In: a `Config` and a root folder. Out: a `Run`. Refuses: folders that cannot be written, names that are not runs, a run that another process
is writing. Files appear whole or not at all: temporary name, fsync, rename.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from tfpipeline.config import Config, load_dict
from tfpipeline.errors import PipelineError, RunError

_PACKAGES = ("tensorflow", "tf_keras", "tensorflow-text", "transformers", "numpy", "pyarrow", "tfpipeline")


@dataclass
class Run:
    """One run directory, open for reading, or for writing inside `writing()`."""

    path: Path

    @property
    def config(self) -> Config:
        """The Config this run was started with."""
        return load_dict(read_json(self.path / "config.json"), str(self.path / "config.json"))

    @property
    def info(self) -> dict[str, Any]:
        """`run.json`: name, created, status, git commit, versions, command, sessions."""
        return read_json(self.path / "run.json")

    def update(self, **values: Any) -> None:
        """Merges values into `run.json`."""
        write_json(self.path / "run.json", {**self.info, **values})

    def event(self, name: str, **values: Any) -> None:
        """Appends one line to `events.jsonl`. A line is written with one call, so a crash tears at most the last one."""
        line = json.dumps({"time": utc_now().isoformat(timespec="milliseconds"), "event": name, **values}, ensure_ascii=False)
        try:
            with (self.path / "events.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise cannot_write(self.path / "events.jsonl", error) from error

    def events(self, name: str = "") -> Iterator[dict[str, Any]]:
        """The events so far, a torn last line skipped; only those called `name` if given."""
        path = self.path / "events.jsonl"
        if not path.is_file():
            return
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if not name or event.get("event") == name:
                    yield event

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Marks the run as running and, at the end, finished, failed or interrupted; only one process may be inside.

        Raises:
            RunError: another process is writing this run.
        """
        with lock(self.path):
            session = {"started": utc_now().isoformat(timespec="seconds"), "pid": os.getpid(), "command": sys.argv}
            self.update(status="running", sessions=[*self.info["sessions"], session])
            started = time.monotonic()
            try:
                yield
            except BaseException as error:
                interrupted = isinstance(error, KeyboardInterrupt)
                with contextlib.suppress(PipelineError):  # the disk may be full: the first error is the one to show
                    self.update(status="interrupted" if interrupted else "failed", reason=str(error) or type(error).__name__)
                raise
            else:
                self.update(status="finished", reason="", seconds=round(time.monotonic() - started, 1))


def create(config: Config, root: Path = Path("runs")) -> Run:
    """A new run directory, complete with config and lineage, and `latest` pointing to it.

    Raises:
        RunError: the folder cannot be written.
    """
    now = utc_now()
    for attempt in range(100):
        suffix = f"-{attempt}" if attempt else ""
        path = root / f"{now:%Y%m%d-%H%M%S}-{config.name}-{config.digest()[:6]}{suffix}"
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            if not path.is_dir():
                raise RunError(f"{root}: is a file, not a folder for runs. Remove it or choose another place with --runs.") from None
        except OSError as error:
            raise cannot_write(root, error) from error
    else:
        raise RunError(f"{root}: a hundred runs called {config.name} were started in this second. Wait a second.")
    try:
        write_json(path / "config.json", config.to_dict())
        write_json(
            path / "run.json",
            {
                "name": config.name,
                "created": now.isoformat(timespec="seconds"),
                "config_digest": config.digest(),
                "git": git_state(),
                "versions": {name: version for name in _PACKAGES if (version := _version(name))},
                "python": sys.version.split()[0],
                "status": "created",
                "reason": "",
                "sessions": [],
            },
        )
        _point_latest(root, path.name)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    run = Run(path)
    run.event("created", model=config.name)
    return run


def find(name: str, root: Path = Path("runs")) -> Run:
    """A run by path, by the name of its folder, or `latest`.

    Raises:
        RunError: naming the runs that are there.
    """
    for path in (Path(name), root / name):
        if (path / "run.json").is_file():
            return Run(path.resolve() if path.name == "latest" else path)
    known = [run.path.name for run in list_runs(root)]
    there = f"Runs in {root}: {', '.join(known[-5:])}." if known else f"There is no run in {root} yet; `tfpipeline train` makes one."
    raise RunError(f"{name}: no such run (a folder with run.json). {there}")


def list_runs(root: Path = Path("runs")) -> list[Run]:
    """All runs under the root, oldest first."""
    if not root.is_dir():
        return []
    return [Run(path) for path in sorted(root.iterdir()) if (path / "run.json").is_file() and not path.is_symlink()]


def discard(run: Run) -> None:
    """Removes a run that never began; `latest` points to the newest that is left."""
    root = run.path.parent
    shutil.rmtree(run.path, ignore_errors=True)
    left = list_runs(root)
    if left:
        _point_latest(root, left[-1].path.name)
    else:
        (root / "latest").unlink(missing_ok=True)


def utc_now() -> datetime:
    """The time as it stands in file names and records."""
    return datetime.now(timezone.utc)


def git_state() -> dict[str, Any]:
    """Commit and whether the work tree differs from it; empty outside a repository."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)  # noqa: S607
        status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5, check=True)  # noqa: S607
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}


def read_json(path: Path) -> dict[str, Any]:
    """Raises RunError when the file is missing or not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: expected a JSON object, received {type(value).__name__}.")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    with atomic_write(path) as stream:
        stream.write((json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream that becomes `path` when the block ends well, and nothing when it does not.

    Raises:
        RunError: the file cannot be written (no space, no permission).
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill; it becomes `path` (which must not exist) when the block ends well, and is removed when it does not."""
    temporary = path.with_name(f".incoming-{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
            else:
                sync_folder(file)
        sync_folder(temporary)
        temporary.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Makes a rename inside the folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> RunError:
    """The one wording for a disk that does not take a file."""
    return RunError(
        f"{path}: cannot be written: {error.strerror or error}. What was written before is intact. Free space, or fix the permissions, and run the same command again."
    )


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """One process at a time writes a folder; the kernel lets go when it dies.

    Raises:
        RunError: another process has it.
    """
    try:
        descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 64, 0).decode() or "unknown"
            raise RunError(f"{path}: process {holder} is writing this run. Wait for it, or stop it, and try again.") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)  # the kernel drops the lock, also when the process dies


def _point_latest(root: Path, name: str) -> None:
    temporary = root / f".latest-{secrets.token_hex(4)}"
    try:
        temporary.symlink_to(name)
        temporary.replace(root / "latest")
    except OSError as error:
        raise cannot_write(root / "latest", error) from error


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
