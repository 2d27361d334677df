"""Where versions are published: whole or not at all, in a folder and in an object store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import stores
from serving.errors import ConfigError, IntegrityError, PushLocked, RegistryError
from serving.registry import Published
from serving.stores import FolderStore, ObjectStore, Store, open_store
from tests.fake_tf_serving import make_model


@pytest.fixture(params=["folder", "object"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Both kinds; the object store is fsspec's in-memory one."""
    if request.param == "folder":
        yield FolderStore(tmp_path / "served")
        return
    made = ObjectStore(f"memory://{tmp_path.name}/models")
    yield made
    made._fs.store.clear()
    made._fs.pseudo_dirs[:] = [""]


@pytest.fixture
def model(tmp_path: Path) -> Published:
    return make_model(tmp_path / "exports", 7)


def publish(store: Store, model: Published, version: int = 7, name: str = "sentiment") -> None:
    store.publish(name, version, model.path, model.manifest)


def test_a_published_version_is_there_with_its_manifest(store: Store, model: Published) -> None:
    assert (store.names(), store.versions("sentiment")) == ([], [])
    publish(store, model)
    publish(store, model, 10)
    assert (store.names(), store.versions("sentiment")) == (["sentiment"], [7, 10])
    store.verify("sentiment", 7)
    assert store.manifest("sentiment", 7) == model.manifest
    assert store.read("sentiment/7/saved_model.pb") == (model.path / "saved_model.pb").read_bytes()


def test_a_version_is_never_overwritten(store: Store, model: Published) -> None:
    publish(store, model)
    with pytest.raises(RegistryError) as raised:
        publish(store, model)
    assert str(raised.value) == (
        f"{store.base_path('sentiment')}/7: exists already and holds something else. A version is never overwritten; export the model again."
    )


def test_a_file_that_changes_while_it_is_copied_publishes_nothing(store: Store, model: Published) -> None:
    manifest = model.manifest
    (model.path / "variables" / "variables.index").write_bytes(b"x" * 100)
    with pytest.raises(IntegrityError):
        store.publish("sentiment", 7, model.path, manifest)
    assert store.versions("sentiment") == []


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "a//b", "a\\b", "."])
def test_a_manifest_that_names_files_elsewhere_is_refused(store: Store, model: Published, name: str) -> None:
    manifest = {**model.manifest, "files": {**model.manifest["files"], name: {"bytes": 1, "sha256": ""}}}
    with pytest.raises(RegistryError, match="expected a relative path without"):
        store.publish("sentiment", 7, model.path, manifest)
    assert store.versions("sentiment") == []


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "x" * 65])
def test_a_model_name_that_could_leave_the_root_is_refused(store: Store, name: str) -> None:
    for ask in (store.versions, store.base_path, store.failed):
        with pytest.raises(RegistryError, match="model name"):
            ask(name)


def test_a_version_that_failed_is_out_of_the_way_and_its_number_is_known(store: Store, model: Published) -> None:
    publish(store, model)
    where = store.set_aside("sentiment", 7, "INVALID_ARGUMENT: no such op")
    assert where == f"{store.base_path('sentiment')}/.failed-7"
    assert (store.versions("sentiment"), store.failed("sentiment")) == ([], [7])


def test_a_removed_version_is_gone(store: Store, model: Published) -> None:
    publish(store, model)
    publish(store, model, 8)
    store.remove("sentiment", 7)
    assert store.versions("sentiment") == [8]
    assert store.read("sentiment/7/manifest.json") is None


def test_small_files_are_replaced_and_lines_are_added(store: Store) -> None:
    assert store.read("sentiment/labels.json") is None
    store.write("sentiment/labels.json", b"{}")
    store.write("sentiment/labels.json", b'{"stable": 1}')
    assert store.read("sentiment/labels.json") == b'{"stable": 1}'
    store.append("sentiment/push.jsonl", b"1")
    store.append("sentiment/push.jsonl", b"2")
    assert store.read("sentiment/push.jsonl") == b"1\n2\n"


def test_only_folders_that_are_numbers_with_a_model_inside_are_versions(store: Store, model: Published) -> None:
    publish(store, model)
    for other in (
        "sentiment/007/saved_model.pb",
        "sentiment/.pushing-8/saved_model.pb",
        "sentiment/9/manifest.json",
        "sentiment/x/saved_model.pb",
    ):
        store.write(other, b"x")
    assert store.versions("sentiment") == [7]


def test_the_second_pusher_is_told_who_holds_the_lock(store: Store) -> None:
    with store.lock(0, 60), pytest.raises(PushLocked) as raised, store.lock(0.05, 60):
        pass
    assert str(raised.value).startswith(f"{store.location}/.push.lock: {stores.whoami()} (process {os.getpid()}) has been pushing since 20")
    assert str(raised.value).endswith("; waited 0.05 s. Wait for it, or allow more time with --lock-timeout.")


def test_the_second_pusher_gets_the_lock_when_the_first_is_done(store: Store) -> None:
    inside, order = threading.Event(), []

    def second() -> None:
        inside.wait(10)
        with store.lock(10, 60):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with store.lock(0, 60):
        inside.set()
        thread.join(0.2)  # not a wait for something: the second must still be outside
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    with store.lock(0, 60):
        pass


def test_a_folder_s_lock_dies_with_its_holder(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from serving.stores import FolderStore\n"
        "with FolderStore(pathlib.Path(sys.argv[1])).lock(0, 60):\n    print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(PushLocked, match=rf"process {other.pid}\)"), FolderStore(tmp_path).lock(0, 60):
            pass
        other.kill()
        with FolderStore(tmp_path).lock(10, 60):
            pass


@pytest.mark.parametrize(
    ("case", "change", "free"),
    [
        ("its process of this machine is dead", {"pid": 2**22 + 1}, True),
        ("its lease is over", {"host": "elsewhere", "expires": 1.0}, True),
        ("it is at work on another machine", {"host": "elsewhere"}, False),
        ("it is something else", {"expires": "never"}, False),
    ],
)
def test_an_object_store_s_lock_is_left_behind_when(tmp_path: Path, case: str, change: dict[str, Any], free: bool) -> None:
    store = ObjectStore(f"memory://{tmp_path.name}-lock/models")
    store.write(".push.lock", stores.to_json({**stores.holder(60), **change}))
    if free:
        with store.lock(0, 60):
            pass
        assert store.read(".push.lock") is None
    else:
        with pytest.raises(PushLocked), store.lock(0, 60):
            pass


class WithoutExclusiveWrites:
    """An fsspec file system that knows no `mode="create"`, as many do."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def pipe_file(self, path: str, value: bytes) -> None:
        self._inner.pipe_file(path, value)


def test_a_lock_works_where_nothing_can_be_created_exclusively(tmp_path: Path) -> None:
    store = ObjectStore(f"memory://{tmp_path.name}-plain/models")
    store._fs = WithoutExclusiveWrites(store._fs)
    with store.lock(0, 60), pytest.raises(PushLocked), store.lock(0, 60):
        pass
    with store.lock(0, 60):
        pass


# ---- a folder ----


def test_a_folder_shows_no_half_version_while_it_is_being_filled(tmp_path: Path, model: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(tmp_path / "served")
    seen = []
    copy = stores.shutil.copyfile

    def watching(source: Path, target: Path) -> None:
        copy(source, target)
        seen.append([path.name for path in (tmp_path / "served" / "sentiment").iterdir()])

    monkeypatch.setattr(stores.shutil, "copyfile", watching)
    publish(store, model)
    assert seen == [[".pushing-7"], [".pushing-7"]]


def test_what_a_killed_push_left_is_cleared_and_exports_under_way_are_not(tmp_path: Path, model: Published) -> None:
    store = FolderStore(tmp_path / "served")
    base = tmp_path / "served" / "sentiment"
    for left in (".pushing-7", ".pushing-6", ".retired-3-ab12", ".incoming-cd34"):
        (base / left).mkdir(parents=True)
        (base / left / "saved_model.pb").write_bytes(b"half")
    publish(store, model)
    assert sorted(path.name for path in base.iterdir()) == [".incoming-cd34", "7"]


def test_a_folder_that_takes_no_file_says_so_and_keeps_what_was_there(tmp_path: Path, model: Published) -> None:
    (tmp_path / "served").write_text("a file")
    with pytest.raises(RegistryError) as raised:
        publish(FolderStore(tmp_path / "served"), model)
    assert str(raised.value) == (
        f"{tmp_path}/served/sentiment/7: cannot be written: Not a directory. What was there before is intact. "
        "Free space or fix the permissions, and run the same command again."
    )


def test_a_changed_version_in_a_folder_is_found_out(tmp_path: Path, model: Published) -> None:
    store = FolderStore(tmp_path / "served")
    publish(store, model)
    (tmp_path / "served" / "sentiment" / "7" / "saved_model.pb").write_bytes(b"{}")
    with pytest.raises(IntegrityError, match="changed since it was published"):
        store.verify("sentiment", 7)


def test_a_folder_knows_its_own_versions(tmp_path: Path) -> None:
    model = make_model(tmp_path / "models", 7)
    assert FolderStore(tmp_path / "models").owns(model.path) == ("sentiment", 7)
    assert FolderStore(tmp_path / "elsewhere").owns(model.path) is None
    assert FolderStore(tmp_path).owns(model.path) is None


# ---- an object store ----


def test_in_an_object_store_the_model_file_comes_last_and_the_manifest_before_it(model: Published, tmp_path: Path) -> None:
    store = ObjectStore(f"memory://{tmp_path.name}-order/models")
    publish(store, model)
    times = {path.rpartition("/7/")[2]: file.created for path, file in store._fs.store.items() if f"{tmp_path.name}-order" in path}
    assert sorted(times, key=lambda name: times[name]) == ["variables/variables.index", "manifest.json", "saved_model.pb"]


def test_in_an_object_store_a_half_written_version_is_not_there_and_is_written_again(model: Published, tmp_path: Path) -> None:
    store = ObjectStore(f"memory://{tmp_path.name}-half/models")
    store.write("sentiment/7/variables/variables.index", b"half")
    store.write("sentiment/7/left.over", b"x")
    store.write("sentiment/7/manifest.json", json.dumps(model.manifest).encode())
    assert store.versions("sentiment") == []
    publish(store, model)
    assert store.versions("sentiment") == [7]
    store.verify("sentiment", 7)


def test_in_an_object_store_a_lost_file_is_found_out(model: Published, tmp_path: Path) -> None:
    store = ObjectStore(f"memory://{tmp_path.name}-lost/models")
    publish(store, model)
    store._fs.rm_file(store._full("sentiment/7/variables/variables.index"))
    with pytest.raises(IntegrityError) as raised:
        store.verify("sentiment", 7)
    assert str(raised.value) == (
        f"memory://{tmp_path.name}-lost/models/sentiment/7: does not match its manifest: variables/variables.index: missing, added or of another size. "
        "Remove this version there and push again."
    )


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (
            "nonsense://bucket/models",
            "nonsense://bucket/models: Protocol not known: nonsense. Expected a folder's URL, such as s3://bucket/models or gs://bucket/models.",
        ),
        (
            "simplecache::memory://models",
            "simplecache::memory://models: chained URLs are not for publishing. Give the address of the folder itself, such as s3://bucket/models.",
        ),
    ],
)
def test_a_location_that_is_none_is_refused(location: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        open_store(location)
    assert str(raised.value) == message


def test_without_fsspec_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ConfigError) as raised:
        open_store("s3://bucket/models")
    assert str(raised.value) == "s3://bucket/models: publishing to an object store needs fsspec. Install it: pip install fsspec"


def test_a_folder_may_be_written_as_a_url(tmp_path: Path) -> None:
    assert open_store(f"file://{tmp_path}").location == open_store(tmp_path).location == str(tmp_path)


def test_waiting_for_a_lock_takes_no_longer_than_allowed(store: Store) -> None:
    with store.lock(0, 60):
        started = time.monotonic()
        with pytest.raises(PushLocked), store.lock(0.3, 60):
            pass
        assert 0.3 <= time.monotonic() - started < 5
