"""What tests of the journal share: records, files, and a disk that can hang, fill up, or take half."""

from __future__ import annotations

import errno
import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from serving.journal import (
    Exchange,
    read,
)
from serving.journal.files import open_private

NOW = 1_764_000_000.0
KEY = bytes(range(32))


def request(number: int, **more: Any) -> dict[str, Any]:
    return {"kind": "request", "id": f"r{number}:0", "label": "x", **more}


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def ids(folder: Path, **window: Any) -> list[str]:
    return [record["id"] for record in read(folder, **window)]


def exchange(**more: Any) -> Exchange:
    arrays = {
        "label": np.array([b"positive", b"negative"], object),
        "score": np.array([0.75, np.nan], np.float32),
        "probabilities": np.array([[0.25, 0.75], [0.5, 0.5]], np.float32),
        "classes": np.array([[b"negative", b"positive"]] * 2, object),
    }
    made = {
        "request_id": "abc", "model": "bank", "version": 7, "version_label": "stable", "code": "OK", "seconds": 0.0081234, "rows": 2,
        "inputs": {"text": np.array(["good 电话".encode(), b"\xff"], object)}, "outputs": arrays, "time": NOW,
    }  # fmt: skip
    return Exchange(**{**made, **more})


class Disk:
    """A place whose files can be made to block, to fail, or to take half of what is written."""

    def __init__(self) -> None:
        self.goes = threading.Event()
        self.goes.set()
        self.full = False
        self.half = False
        self.synced: list[str] = []
        self.entered = threading.Semaphore(0)

    def open(self, path: Path) -> io.FileIO:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        disk = self

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                disk.entered.release()
                assert disk.goes.wait(60)
                if disk.half and len(data) > 1:
                    return super().write(data[: len(data) // 2])
                if disk.full:
                    super().write(data[:7])
                    raise OSError(errno.ENOSPC, "No space left on device")
                return super().write(data)

        with open_private(path) as made:
            return File(os.dup(made.fileno()), "wb")
