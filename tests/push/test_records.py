"""Plan, lock, journal and status of pushes."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from serving import desired, push
from serving.errors import ModelNotFound, PushError, PushLocked
from serving.push import Target
from serving.stores import FolderStore
from tests.fake_tf_serving import FakeServer
from tests.push.conftest import MODEL, journal, model


def test_a_dry_run_shows_plan_and_diff_and_changes_nothing(tmp_path: Path, server: FakeServer, target: Target, store: FolderStore) -> None:
    push.push(model(tmp_path, 1), [target])
    configs, lines = len(server.configs), len(journal(store))
    (outcome,) = push.push(model(tmp_path, 2), [target], dry_run=True)
    assert (outcome.version, outcome.published, outcome.before, outcome.labels) == (2, True, {"stable": 1}, {"stable": 2, "previous": 1})
    assert [line for line in outcome.diff.splitlines()[2:] if line[0] in "+-"] == [
        "+        versions: 2",
        "-      value: 1",
        "+      value: 2",
    ]
    assert (len(server.configs), store.versions(MODEL), len(journal(store))) == (configs, [1], lines)


def test_the_second_of_two_pushes_waits(tmp_path: Path, server: FakeServer, target: Target, store: FolderStore) -> None:
    push.push(model(tmp_path, 1), [target])
    server.loading.clear()
    paths = [model(tmp_path, 2), model(tmp_path, 3)]
    threads = [threading.Thread(target=push.push, args=(path, [target]), kwargs={"load_timeout_s": 20}, daemon=True) for path in paths]
    threads[0].start()
    server.wait_for(MODEL, 2, "LOADING")
    threads[1].start()
    with pytest.raises(PushLocked, match="has been pushing since"):
        push.push(paths[1], [target], lock_timeout_s=0.1, load_timeout_s=1)
    server.loading.set()
    for thread in threads:
        thread.join(20)
    assert server.labels(MODEL) == {"stable": 3}
    assert [entry["version"] for entry in journal(store)] == [1, 2, 3]


def test_the_journal_says_who_what_from_to_and_how_it_went(tmp_path: Path, server: FakeServer, target: Target, store: FolderStore) -> None:
    path = model(tmp_path, 1)
    push.push(path, [target])
    with pytest.raises(PushError):
        push.push(model(tmp_path, 2, broken="no such op"), [target])
    first, second = journal(store)
    assert first | {"time": "", "by": "", "seconds": {}, "checks": {}} == {
        "time": "",
        "by": "",
        "command": "push",
        "source": str(path),
        "hash": desired.content_hash(json.loads((path / "manifest.json").read_text())["files"]),
        "force": "",
        "model": MODEL,
        "version": 1,
        "from": {},
        "to": {"stable": 1},
        "targets": [server.address],
        "server_paths": {server.address: f"{store.root}/sentiment"},
        "checks": {},
        "seconds": {},
        "outcome": "done",
        "error": "",
    }
    assert "@" in first["by"]
    assert tuple(first["seconds"]) == push.STEPS
    assert (second["outcome"], second["from"], second["to"]) == ("undone", {"stable": 1}, {"stable": 1})
    assert "no such op" in second["error"]


def test_status_says_what_is_served_and_what_labels_lack(tmp_path: Path, server: FakeServer, target: Target, store: FolderStore) -> None:
    push.push(model(tmp_path, 1), [target])
    desired.write_labels(store, MODEL, {"stable": 1, "canary": 9})
    (found,) = push.server_status([target])["targets"]
    (one,) = found["models"]
    assert (one["name"], one["labels"], one["on_disk"]) == (MODEL, {"stable": 1, "canary": 9}, [1])
    assert one["versions"] == [{"version": 1, "state": "AVAILABLE", "code": "OK", "message": ""}]
    assert one["notes"] == ["label 'canary' is on version 9, which is not there"]
    assert (one["last"]["command"], one["last"]["outcome"]) == ("push", "done")
    with pytest.raises(ModelNotFound):
        push.server_status([target], name="topic")
