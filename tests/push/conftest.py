"""A server that behaves like TensorFlow Serving, its folder and what is pushed to it: shared by the tests of pushing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import desired
from serving.push import Target
from serving.stores import FolderStore
from tests.fake_tf_serving import FakeServer, make_model

MODEL = "sentiment"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "served")


@pytest.fixture
def target(server: FakeServer, store: FolderStore) -> Target:
    return Target(server.address, store)


def model(tmp_path: Path, version: int, **settings: Any) -> Path:
    """A model where it was exported, not where it is served."""
    return make_model(tmp_path / "exports", version, shift=version / 10, **settings).path


def journal(store: Any, name: str = MODEL) -> list[dict[str, Any]]:
    return list(desired.read_journal(store, name))


def states(server: FakeServer) -> dict[int, str]:
    return server.versions(MODEL)
