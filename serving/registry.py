"""Published models on disk, the folder TensorFlow Serving watches. Frees the others from versions, manifests, hashes and half-written models.

    models/sentiment/                    only numeric names count for TensorFlow Serving
      20261123144012/                    version = UTC yyyymmddHHMMSS; never changed once published
        saved_model.pb  variables/  assets/  assets.extra/  manifest.json
      .incoming-<random>/                being written; fsynced, hashed, then renamed into place whole

In: a filled folder and a manifest. Out: a `Published` version. Refuses names that could leave the root, versions that are not newer than all
before, and folders whose files are not those of their manifest. Imports the standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from serving.errors import IntegrityError, RegistryError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
VERSION = re.compile(r"[0-9]{1,18}")
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Published:
    """One published version."""

    path: Path
    name: str
    version: int

    @property
    def manifest(self) -> dict[str, Any]:
        """The lineage on one page. Raises IntegrityError when it is missing or not a JSON object."""
        file = self.path / MANIFEST
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise IntegrityError(
                f"{file}: cannot be read: {error}. This folder was not published by tfpipeline; export the run again."
            ) from error
        if not isinstance(value, dict):
            raise IntegrityError(f"{file}: expected a JSON object, received {type(value).__name__}. Export the run again.")
        return value

    def verify(self) -> None:
        """Every file is there, has its hash, and there is no other.

        Raises:
            IntegrityError: naming up to five files that are wrong, and how.
        """
        expected = self.manifest.get("files", {})
        present = {
            path.relative_to(self.path).as_posix(): path
            for path in files_of(self.path)
            if path.name != MANIFEST or path.parent != self.path
        }
        wrong = [f"{name}: missing" for name in expected if name not in present]
        wrong += [f"{name}: not in the manifest" for name in present if name not in expected]
        for name, path in present.items():
            if name in expected and (path.stat().st_size, sha256_of(path)) != (expected[name]["bytes"], expected[name]["sha256"]):
                wrong.append(f"{name}: changed since it was published")
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise IntegrityError(
                f"{self.path}: does not match its manifest: {'; '.join(wrong[:5])}{more}. Do not load it; export the run again."
            )


@dataclass(frozen=True)
class Registry:
    """All models under one root folder."""

    root: Path

    def names(self) -> list[str]:
        """Models with at least one version."""
        if not self.root.is_dir():
            return []
        return sorted(entry.name for entry in self.root.iterdir() if NAME.fullmatch(entry.name) and self.versions(entry.name))

    def versions(self, name: str) -> list[Published]:
        """Oldest first."""
        folder = self.root / checked_name(name)
        if not folder.is_dir():
            return []
        numbers = sorted(int(entry.name) for entry in folder.iterdir() if VERSION.fullmatch(entry.name) and (entry / MANIFEST).is_file())
        return [Published(folder / str(number), name, number) for number in numbers]

    def newest(self, name: str = "") -> Published:
        """The newest version of a model, or of all models when no name is given.

        Raises:
            RegistryError: nothing is published, naming what is.
        """
        names = [name] if name else self.names()
        found = [versions[-1] for one in names if (versions := self.versions(one))]
        if not found:
            known = ", ".join(self.names()) or "none"
            what = f"model {name!r}" if name else "any model"
            raise RegistryError(
                f"{self.root}: no published version of {what}. Models there: {known}. Publish one: tfpipeline export latest --to {self.root}/NAME"
            )
        return max(found, key=lambda published: published.version)

    @contextlib.contextmanager
    def publishing(self, name: str) -> Iterator[Staged]:
        """A private folder to fill; `Staged.publish` renames it into place, and without that call nothing is left.

        Raises:
            RegistryError: the folder cannot be written.
        """
        parent = self.root / checked_name(name)
        folder = parent / f".incoming-{secrets.token_hex(4)}"
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise RegistryError(
                f"{parent}: cannot be written: {error.strerror or error}. Fix the permissions or choose another folder with --to."
            ) from error
        try:
            yield Staged(self, name, folder)
        except OSError as error:
            raise RegistryError(f"{folder}: cannot be written: {error.strerror or error}. Nothing was published.") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Staged:
    """A version that is being written."""

    registry: Registry
    name: str
    folder: Path

    def publish(self, manifest: dict[str, Any]) -> Published:
        """Adds name, version and the hash of every file to the manifest, makes all of it durable, and renames it into place."""
        files = {
            path.relative_to(self.folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in files_of(self.folder)
        }
        before = [published.version for published in self.registry.versions(self.name)]
        version = max([int(f"{datetime.now(timezone.utc):%Y%m%d%H%M%S}"), *(number + 1 for number in before[-1:])])
        complete = {"name": self.name, "version": version, "parent": before[-1] if before else None, **manifest, "files": files}
        text = json.dumps(complete, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (self.folder / MANIFEST).write_text(text, encoding="utf-8")
        for path in files_of(self.folder):
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        for path in [*(entry for entry in self.folder.rglob("*") if entry.is_dir()), self.folder]:
            sync_folder(path)
        final = self.folder.parent / str(version)
        self.folder.rename(final)
        sync_folder(final.parent)
        return Published(final, self.name, version)


def open_published(path: Path) -> Published:
    """A version by its folder, a model by its folder (newest version), or a root of models (newest of all).

    Raises:
        RegistryError: the folder is none of these.
    """
    path = path.resolve()
    if VERSION.fullmatch(path.name) and (path / MANIFEST).is_file():
        return Published(path, path.parent.name, int(path.name))
    if path.is_dir():
        if NAME.fullmatch(path.name) and Registry(path.parent).versions(path.name):
            return Registry(path.parent).newest(path.name)
        return Registry(path).newest()
    raise RegistryError(f"{path}: no such folder. Give models/NAME/VERSION, models/NAME, or models; `tfpipeline export latest` makes one.")


def checked_name(name: str) -> str:
    """The name, if it can safely be a folder."""
    if not NAME.fullmatch(name):
        raise RegistryError(f"model name {name!r}: expected letters, digits, _ and -, starting with a letter or digit, at most 64 long.")
    return name


def sha256_of(path: Path) -> str:
    """Hex digest of a file of any size."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_of(folder: Path) -> list[Path]:
    """All files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
