"""Where versions are published for a server: a folder, or an object store. Frees `push` from disks, buckets, locks and half-written files.

    ROOT/                        what the server watches: one base path per model
      .push.lock                 who is pushing: the config of a server names all models, so one push at a time under a root
      sentiment/                 a base path
        20261123144012/          a version: complete, or not there
        labels.json              which version is stable, canary, previous
        push.jsonl               what was pushed by whom, and how it went
        .failed-20261120101010   a version that did not load, moved aside; its number is never used again

| | `FolderStore` | `ObjectStore` |
|---|---|---|
| a version appears | by one rename | when `saved_model.pb` is there: it is written last, `manifest.json` before it |
| lock | `flock`, which dies with its holder | an object with a lease, because nothing else dies with its holder there |
| `push.jsonl` | appended and fsynced | rewritten with one line more |

In: a root, and names and numbers. Refuses names that could leave the root and versions that exist. Every other name found there is ignored.
The standard library only; `ObjectStore` imports fsspec.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import json
import os
import secrets
import shutil
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

from serving.errors import ConfigError, IntegrityError, PushLocked, RegistryError
from serving.registry import MANIFEST, NAME, VERSION, Published, checked_name, files_of, sha256_of, sync_folder

MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt", "model.tflite")
LOCK = ".push.lock"
FAILED = ".failed-"
_PUSHING, _RETIRED = ".pushing-", ".retired-"
_POLL_S = 0.1


class Store(ABC):
    """A root of base paths. All methods take a model's name and, where one is meant, a version.

    Attributes:
        location: the root as a person writes it, and as a server on this machine sees it.
    """

    location: str

    def base_path(self, name: str) -> str:
        """The base path of a model as a server would see it that shares our view of the root."""
        return f"{self.location}/{checked_name(name)}"

    @abstractmethod
    def names(self) -> list[str]:
        """Models with at least one complete version."""

    @abstractmethod
    def versions(self, name: str) -> list[int]:
        """Complete versions, oldest first."""

    @abstractmethod
    def failed(self, name: str) -> list[int]:
        """Versions that were set aside."""

    @abstractmethod
    def read(self, path: str) -> bytes | None:
        """A small file by its path under the root, such as `sentiment/labels.json`; None when there is none."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Whole or not at all."""

    @abstractmethod
    def append(self, path: str, line: bytes) -> None:
        """Adds one line, durably."""

    @abstractmethod
    def publish(self, name: str, version: int, source: Path, manifest: Mapping[str, Any]) -> None:
        """Copies a local folder so that the version is there whole or not at all; what an interrupted push left is removed first.

        Args:
            name: the model.
            version: a number that is not there yet.
            source: the local folder.
            manifest: written as `manifest.json`; its `files` name what is copied, and the copies have these hashes afterwards.

        Raises:
            IntegrityError: a file changed while it was copied.
            RegistryError: the version exists, or the place cannot be written.
        """

    @abstractmethod
    def verify(self, name: str, version: int) -> None:
        """Raises IntegrityError when a published version is not what its manifest says."""

    @abstractmethod
    def set_aside(self, name: str, version: int, reason: str) -> str:
        """Takes a version away from the servers; returns where it is now."""

    @abstractmethod
    def remove(self, name: str, version: int) -> None:
        """Deletes a version; it is gone for the servers at once."""

    @abstractmethod
    def lock(self, timeout_s: float, lease_s: float) -> contextlib.AbstractContextManager[None]:
        """One push at a time under this root.

        Args:
            timeout_s: how long to wait for another push.
            lease_s: how long this push can take at most; only where a lock outlives its holder.

        Raises:
            PushLocked: another push is at work, saying whose and since when.
        """

    @abstractmethod
    def owns(self, source: Path) -> tuple[str, int] | None:
        """Name and version, when this local folder already is a version of this store."""

    def manifest(self, name: str, version: int) -> dict[str, Any] | None:
        """A version's manifest; None when it has none that can be read (a SavedModel from elsewhere)."""
        data = self.read(f"{checked_name(name)}/{version}/{MANIFEST}")
        with contextlib.suppress(ValueError):
            value = json.loads(data or b"")
            return value if isinstance(value, dict) else None
        return None


class FolderStore(Store):
    """A local or mounted folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()  # not resolved: a server that was started with the same words has the same path
        self.location = str(self.root)

    def names(self) -> list[str]:
        return sorted(entry.name for entry in _entries(self.root) if NAME.fullmatch(entry.name) and self.versions(entry.name))

    def versions(self, name: str) -> list[int]:
        found = [entry for entry in _entries(self._base(name)) if is_version(entry.name)]
        return sorted(int(entry.name) for entry in found if any((entry / file).is_file() for file in MODEL_FILES))

    def failed(self, name: str) -> list[int]:
        return sorted(number for entry in _entries(self._base(name)) if (number := failed_version(entry.name)))

    def read(self, path: str) -> bytes | None:
        try:
            return self._inside(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise RegistryError(
                f"{self.root / path}: cannot be read: {error.strerror or error}. Fix its permissions and run the command again."
            ) from error

    def write(self, path: str, data: bytes) -> None:
        final = self._inside(path)
        temporary = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
        with _writing(final):
            try:
                final.parent.mkdir(parents=True, exist_ok=True)
                with temporary.open("wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                temporary.replace(final)
                sync_folder(final.parent)
            finally:
                temporary.unlink(missing_ok=True)

    def append(self, path: str, line: bytes) -> None:
        final = self._inside(path)
        with _writing(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            with final.open("ab+") as stream:
                # A line that a crash tore must not swallow this one.
                torn = stream.tell() > 0 and (stream.seek(-1, os.SEEK_END), stream.read(1))[1] != b"\n"
                stream.write((b"\n" if torn else b"") + line + b"\n")
                stream.flush()
                os.fsync(stream.fileno())

    def publish(self, name: str, version: int, source: Path, manifest: Mapping[str, Any]) -> None:
        base = self._base(name)
        final, stage = base / str(version), base / f"{_PUSHING}{version}"
        if final.exists():
            raise RegistryError(
                f"{final}: exists already and holds something else. A version is never overwritten; export the model again."
            )
        with _writing(final):
            base.mkdir(parents=True, exist_ok=True)
            for entry in _entries(base):
                if entry.name.startswith((_PUSHING, _RETIRED)):  # we hold the lock: nobody is writing these any more
                    _delete(entry)
            stage.mkdir()
            try:
                for file in manifest["files"]:
                    target = stage / checked_path(file)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source / file, target)
                (stage / MANIFEST).write_bytes(to_json(manifest))
                Published(stage, name, version).verify()
                for path in files_of(stage):
                    with path.open("rb") as stream:
                        os.fsync(stream.fileno())
                for path in [*(entry for entry in stage.rglob("*") if entry.is_dir()), stage]:
                    sync_folder(path)
                stage.rename(final)
                sync_folder(base)
            finally:
                shutil.rmtree(stage, ignore_errors=True)

    def verify(self, name: str, version: int) -> None:
        Published(self._base(name) / str(version), name, version).verify()

    def set_aside(self, name: str, version: int, reason: str) -> str:
        base = self._base(name)
        aside = base / f"{FAILED}{version}"
        with _writing(aside):
            if aside.exists():
                _delete(aside)
            (base / str(version)).rename(aside)
            sync_folder(base)
        return str(aside)

    def remove(self, name: str, version: int) -> None:
        base = self._base(name)
        aside = base / f"{_RETIRED}{version}-{secrets.token_hex(4)}"
        with _writing(aside):
            (base / str(version)).rename(aside)  # a server that looks now must not see half a version
            _delete(aside)

    @contextlib.contextmanager
    def lock(self, timeout_s: float, lease_s: float) -> Iterator[None]:
        path = self.root / LOCK
        with _writing(path):
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            deadline = time.monotonic() + timeout_s
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno not in (errno.EAGAIN, errno.EACCES):
                        raise RegistryError(
                            f"{path}: cannot be locked: {error.strerror}. Use a file system that has file locks."
                        ) from error
                    if time.monotonic() >= deadline:
                        raise _locked(str(path), os.pread(descriptor, 4096, 0), timeout_s) from None
                    time.sleep(min(_POLL_S, max(0.0, deadline - time.monotonic())))
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, to_json(holder(lease_s)), 0)
            yield
        finally:
            os.close(descriptor)  # the kernel drops the lock, also when the process dies

    def owns(self, source: Path) -> tuple[str, int] | None:
        path = source.resolve()
        name = path.parent.name
        if path.parent.parent == self.root.resolve() and NAME.fullmatch(name) and is_version(path.name):
            return name, int(path.name)
        return None

    def _base(self, name: str) -> Path:
        return self.root / checked_name(name)

    def _inside(self, path: str) -> Path:
        return self.root / checked_path(path)


class ObjectStore(Store):
    """A bucket, or any other place fsspec has a file system for, by URL."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise ConfigError(f"{url}: publishing to an object store needs fsspec. Install it: pip install fsspec") from error
        if "::" in url:
            raise ConfigError(
                f"{url}: chained URLs are not for publishing. Give the address of the folder itself, such as s3://bucket/models."
            )
        try:
            self._fs, path = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise ConfigError(f"{url}: {error}") from error
        except ValueError as error:
            raise ConfigError(f"{url}: {error}. Expected a folder's URL, such as s3://bucket/models or gs://bucket/models.") from error
        self._root = path.rstrip("/")
        self.location = url.rstrip("/")

    def names(self) -> list[str]:
        return sorted(name for name in self._children("") if NAME.fullmatch(name) and self.versions(name))

    def versions(self, name: str) -> list[int]:
        base = checked_name(name)
        found = [int(child) for child in self._children(base) if is_version(child)]
        return sorted(version for version in found if set(MODEL_FILES) & set(self._children(f"{base}/{version}")))

    def failed(self, name: str) -> list[int]:
        return sorted(number for child in self._children(checked_name(name)) if (number := failed_version(child)))

    def read(self, path: str) -> bytes | None:
        try:
            return bytes(self._fs.cat_file(self._full(path)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise RegistryError(f"{self.location}/{path}: cannot be read: {error}. Fix the address or the credentials.") from error

    def write(self, path: str, data: bytes) -> None:
        with _writing(f"{self.location}/{path}"):
            self._fs.pipe_file(self._full(path), data)

    def append(self, path: str, line: bytes) -> None:
        before = self.read(path) or b""
        if before and not before.endswith(b"\n"):
            before += b"\n"
        self.write(path, before + line + b"\n")

    def publish(self, name: str, version: int, source: Path, manifest: Mapping[str, Any]) -> None:
        base = f"{checked_name(name)}/{version}"
        if version in self.versions(name):
            raise RegistryError(
                f"{self.location}/{base}: exists already and holds something else. A version is never overwritten; export the model again."
            )
        last = [file for file in MODEL_FILES if file in manifest["files"]]
        with _writing(f"{self.location}/{base}"):
            self._delete(base)
            for file in sorted(set(manifest["files"]) - set(last)):
                self._put(f"{base}/{checked_path(file)}", source / file)
            for file in manifest["files"]:
                # Sizes and hashes of what was read; an object store checks what it received itself.
                if sha256_of(source / file) != manifest["files"][file]["sha256"]:
                    raise IntegrityError(f"{source / file}: changed while it was copied. Nothing was published; run the command again.")
            self._fs.pipe_file(self._full(f"{base}/{MANIFEST}"), to_json(manifest))
            for file in reversed(last):  # the first of MODEL_FILES last: a version is there when the server could load it, not before
                self._put(f"{base}/{file}", source / file)
        self.verify(name, version)

    def verify(self, name: str, version: int) -> None:
        base = f"{checked_name(name)}/{version}"
        expected = {file: entry["bytes"] for file, entry in ((self.manifest(name, version) or {}).get("files") or {}).items()}
        self._fs.invalidate_cache()
        full = self._full(base)
        present = {path[len(full) + 1 :]: info["size"] for path, info in self._fs.find(full, detail=True).items()}
        present.pop(MANIFEST, None)
        if present != expected:
            wrong = sorted(file for file in {*present, *expected} if present.get(file) != expected.get(file))
            raise IntegrityError(
                f"{self.location}/{base}: does not match its manifest: {', '.join(wrong[:5])}: missing, added or of another size. "
                "Remove this version there and push again."
            )

    def set_aside(self, name: str, version: int, reason: str) -> str:
        """There is no rename: the reason stays in an object that keeps the number, and the version is deleted."""
        aside = f"{checked_name(name)}/{FAILED}{version}"
        self.write(aside, to_json({"time": utc_now(), "reason": reason}))
        self.remove(name, version)
        return f"{self.location}/{aside}"

    def remove(self, name: str, version: int) -> None:
        base = f"{checked_name(name)}/{version}"
        with _writing(f"{self.location}/{base}"):
            self._delete(base)

    @contextlib.contextmanager
    def lock(self, timeout_s: float, lease_s: float) -> Iterator[None]:
        path = self._full(LOCK)
        mine = to_json({**holder(lease_s), "token": secrets.token_hex(8)})
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                with _writing(f"{self.location}/{LOCK}"):
                    self._create(path, mine)
                break
            except FileExistsError:
                theirs = self.read(LOCK) or b""
                if theirs and _expired(theirs):
                    self._fs.rm_file(path)
                elif time.monotonic() >= deadline:
                    raise _locked(f"{self.location}/{LOCK}", theirs, timeout_s) from None
                else:
                    time.sleep(min(_POLL_S, max(0.0, deadline - time.monotonic())))
        try:
            yield
        finally:
            if self.read(LOCK) == mine:
                self._fs.rm_file(path)

    def owns(self, source: Path) -> tuple[str, int] | None:
        return None

    def _create(self, path: str, data: bytes) -> None:
        """Where the file system cannot create exclusively, two that start at once are told apart by what is there afterwards."""
        try:
            self._fs.pipe_file(path, data, mode="create")
        except (TypeError, NotImplementedError, ValueError):
            if self._fs.exists(path):
                raise FileExistsError(path) from None
            self._fs.pipe_file(path, data)
        if self.read(LOCK) != data:
            raise FileExistsError(path)

    def _put(self, path: str, source: Path) -> None:
        with source.open("rb") as reader, self._fs.open(self._full(path), "wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)

    def _delete(self, base: str) -> None:
        """What makes it a version first."""
        self._fs.invalidate_cache()
        full = self._full(base)
        if not self._fs.exists(full):
            return
        for file in MODEL_FILES:
            if self._fs.exists(f"{full}/{file}"):
                self._fs.rm_file(f"{full}/{file}")
        if self._fs.exists(full):
            self._fs.rm(full, recursive=True)

    def _children(self, path: str) -> list[str]:
        full = self._full(path) if path else self._root
        self._fs.invalidate_cache()
        try:
            return [PurePosixPath(entry.rstrip("/")).name for entry in self._fs.ls(full, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise RegistryError(f"{self.location}/{path}: cannot be listed: {error}. Fix the address or the credentials.") from error

    def _full(self, path: str) -> str:
        return f"{self._root}/{checked_path(path)}"


def open_store(location: str | Path) -> Store:
    """The store behind a folder or a URL.

    Raises:
        ConfigError: a URL that fsspec has nothing for, or fsspec is missing.
    """
    text = str(location)
    if text.startswith("file://"):
        return FolderStore(Path(text.removeprefix("file://")))
    return ObjectStore(text) if "://" in text else FolderStore(Path(text))


def is_version(name: str) -> bool:
    """Whether a folder of this name is a version: a number as we write it, without leading zeros."""
    return bool(VERSION.fullmatch(name)) and str(int(name)) == name


def failed_version(name: str) -> int:
    """The number of a version that was set aside, 0 for any other name."""
    number = name.removeprefix(FAILED)
    return int(number) if name.startswith(FAILED) and is_version(number) else 0


def checked_path(path: str) -> str:
    """A relative path of plain parts; a manifest from elsewhere could name anything.

    Raises:
        RegistryError: it could lead out of its folder.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise RegistryError(
            f"file name {path!r}: expected a relative path without '..'. This folder was not made by an export; do not use it."
        )
    return path


def to_json(value: Mapping[str, Any]) -> bytes:
    """As all our small files are written."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")


def utc_now() -> str:
    """The time as it stands in journals."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def whoami() -> str:
    """`user@host`; the number of a user that has no name, as in containers."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def holder(lease_s: float) -> dict[str, Any]:
    """What a lock says about who holds it."""
    return {"by": whoami(), "host": socket.gethostname(), "pid": os.getpid(), "since": utc_now(), "expires": time.time() + lease_s}


def _locked(path: str, data: bytes, timeout_s: float) -> PushLocked:
    try:
        value = json.loads(data)
        who = f"{value['by']} (process {value['pid']}) has been pushing since {value['since']}"
    except (ValueError, KeyError, TypeError):
        who = "another push is at work"
    return PushLocked(f"{path}: {who}; waited {timeout_s:g} s. Wait for it, or allow more time with --lock-timeout.")


def _expired(data: bytes) -> bool:
    """The lease is over, or its holder was a process of this machine that is dead."""
    try:
        value = json.loads(data)
        if time.time() > float(value["expires"]):
            return True
        if value["host"] == socket.gethostname():
            os.kill(int(value["pid"]), 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, PermissionError, OverflowError):
        return False
    return False


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _delete(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)


@contextlib.contextmanager
def _writing(what: Path | str) -> Iterator[None]:
    """The one wording for a place that does not take a file."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise RegistryError(
            f"{what}: cannot be written: {error.strerror or error}. What was there before is intact. Free space or fix the permissions, and run the same command again."
        ) from error
