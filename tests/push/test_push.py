"""Pushing: what is served before, during and after, and what is pushed."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from serving import desired, push, wire
from serving.errors import ConfigError, GateRefused, IntegrityError, PushError, RegistryError
from serving.push import Target
from serving.server import configs
from serving.stores import FolderStore, ObjectStore
from tests.fake_tf_serving import FakeServer, make_model, traffic
from tests.push.conftest import MODEL, journal, model, states


def test_a_first_push_serves_the_model_as_stable(tmp_path: Path, server: FakeServer, target: Target, store: FolderStore) -> None:
    (outcome,) = push.push(model(tmp_path, 1), [target])
    assert (states(server), server.labels(MODEL)) == ({1: "AVAILABLE"}, {"stable": 1})
    assert (outcome.version, outcome.labels, outcome.published) == (1, {"stable": 1}, True)
    assert tuple(outcome.seconds) == push.STEPS
    assert desired.read_labels(store, MODEL) == {"stable": 1}


def test_old_and_new_version_are_named_before_the_label_moves_and_traffic_never_notices(
    tmp_path: Path, server: FakeServer, target: Target
) -> None:
    push.push(model(tmp_path, 1), [target])
    before = len(server.configs)
    with traffic(server.address, MODEL) as seen:
        push.push(model(tmp_path, 2), [target])
    first, second = server.configs[before:]
    named = [(list(config.model_config_list.config[0].model_version_policy.specific.versions)) for config in (first, second)]
    labels = [dict(config.model_config_list.config[0].version_labels) for config in (first, second)]
    assert named == [[1, 2], [1, 2]]
    assert labels == [{"stable": 1}, {"stable": 2}]
    assert set(seen) <= {1, 2}
    assert seen == sorted(seen), "no answer of the old version after one of the new"


def test_a_file_is_left_with_which_a_restarted_server_loads_the_same(tmp_path: Path, server: FakeServer, store: FolderStore) -> None:
    first = model(tmp_path, 1)
    with pytest.raises(PushError):
        push.push(first, [Target(server.address, store, server_path=f"/elsewhere/{MODEL}")], load_timeout_s=0.5)
    assert store.read("models.config") is None, "a push that failed leaves none"
    target = Target(server.address, store)
    push.push(first, [target])
    push.push(model(tmp_path, 2), [target])
    push.rollback([target], MODEL)
    config = configs.models_of(configs.read_text(str(store.root / "models.config"), wire.ModelServerConfig))
    assert config[MODEL].policy == configs.Policy("specific", versions=(1, 2))
    assert config[MODEL].labels == {"stable": 1}
    assert config[MODEL].base_path == store.base_path(MODEL)


def test_a_wrong_root_is_said_and_not_made(tmp_path: Path, server: FakeServer) -> None:
    wrong = Target(server.address, FolderStore(tmp_path / "typo"))
    for action in (push.promote, push.rollback):
        with pytest.raises(RegistryError, match=f"typo: has no model {MODEL!r}"):
            action([wrong], MODEL)
    assert not (tmp_path / "typo").exists()


def test_an_answer_of_ok_is_not_taken_for_loaded(tmp_path: Path, server: FakeServer, target: Target, store: FolderStore) -> None:
    push.push(model(tmp_path, 1), [target])
    server.loading.clear()
    thread = threading.Thread(target=push.push, args=(model(tmp_path, 2), [target]), kwargs={"load_timeout_s": 20}, daemon=True)
    thread.start()
    server.wait_for(MODEL, 2, "LOADING")
    assert (server.labels(MODEL), desired.read_labels(store, MODEL)) == ({"stable": 1}, {"stable": 1})
    server.loading.set()
    thread.join(20)
    assert server.labels(MODEL) == {"stable": 2}


def test_a_canary_leaves_stable_where_it_is_and_is_promoted(tmp_path: Path, server: FakeServer, target: Target, store: FolderStore) -> None:
    push.push(model(tmp_path, 1), [target])
    push.push(model(tmp_path, 2), [target], label="canary")
    assert server.labels(MODEL) == {"stable": 1, "canary": 2}
    (outcome,) = push.promote([target], MODEL)
    assert server.labels(MODEL) == {"stable": 2}
    assert outcome.labels == desired.read_labels(store, MODEL) == {"stable": 2, "previous": 1}


def test_a_rollback_is_one_call_and_takes_less_than_a_second(tmp_path: Path, server: FakeServer, target: Target) -> None:
    push.push(model(tmp_path, 1), [target])
    push.push(model(tmp_path, 2), [target])
    before = len(server.configs)
    with traffic(server.address, MODEL) as seen:
        started = time.monotonic()
        (outcome,) = push.rollback([target], MODEL)
        seconds = time.monotonic() - started
    assert seconds < 1
    assert len(server.configs) == before + 1
    assert (server.labels(MODEL), outcome.labels, outcome.retired) == ({"stable": 1}, {"stable": 1, "previous": 2}, ())
    assert set(seen) <= {1, 2}
    push.rollback([target], MODEL)
    assert server.labels(MODEL) == {"stable": 2}, "a second rollback undoes the first"


def test_a_rollback_retires_nothing(tmp_path: Path, server: FakeServer, target: Target) -> None:
    for version in (1, 2, 3):
        push.push(model(tmp_path, version), [target])
    (outcome,) = push.rollback([target], MODEL, retention=1)
    assert (outcome.retired, outcome.labels) == ((), {"stable": 2, "previous": 3})
    assert "-        versions" not in outcome.diff


def test_a_rollback_to_a_version_that_a_restarted_server_has_not_loads_it_first(tmp_path: Path, store: FolderStore) -> None:
    with FakeServer() as server:
        for version in (1, 2):
            push.push(model(tmp_path, version), [Target(server.address, store)])
    with FakeServer() as server:
        server.serve(store.root, MODEL, 2)
        push.rollback([Target(server.address, store)], MODEL)
        assert (states(server), server.labels(MODEL)) == ({1: "AVAILABLE", 2: "AVAILABLE"}, {"stable": 1})


def test_the_oldest_are_retired_and_labelled_ones_never(tmp_path: Path, server: FakeServer, target: Target, store: FolderStore) -> None:
    push.push(model(tmp_path, 1), [target])
    push.push(model(tmp_path, 2), [target], label="canary")
    for version in (3, 4, 5):
        (outcome,) = push.push(model(tmp_path, version), [target], retention=1)
    assert desired.read_labels(store, MODEL) == {"stable": 5, "canary": 2, "previous": 4}
    assert outcome.retired == (3,)
    assert store.versions(MODEL) == [2, 4, 5]
    server.wait_for(MODEL, 3, "END")
    assert [version for version, state in states(server).items() if state == "AVAILABLE"] == [2, 4, 5]


def test_what_was_exported_in_place_is_pushed_without_copying_and_never_deleted(tmp_path: Path, server: FakeServer) -> None:
    root = tmp_path / "models"
    target = Target(server.address, FolderStore(root))
    for version in (1, 2, 3):
        path = make_model(root, version).path
        (outcome,) = push.push(path if version < 3 else root, [target], retention=1)
        assert not outcome.published
    assert server.labels(MODEL) == {"stable": 3}
    assert outcome.retired == (1,)
    assert FolderStore(root).versions(MODEL) == [1, 2, 3]


def test_an_export_that_was_not_pushed_is_not_loaded(tmp_path: Path, server: FakeServer) -> None:
    root = tmp_path / "models"
    target = Target(server.address, FolderStore(root))
    push.push(make_model(root, 1).path, [target])
    make_model(root, 2, gate={"passed": False, "reasons": ["bad"]})
    push.push(make_model(root, 3).path, [target])
    assert sorted(states(server)) == [1, 3]


def test_every_other_model_under_the_root_stays_served_with_its_labels(
    tmp_path: Path, server: FakeServer, target: Target, store: FolderStore
) -> None:
    other = make_model(tmp_path / "exports", 5, name="topic").path
    push.push(other, [target])
    make_model(store.root, 9, name="unmanaged")
    server.serve(store.root, "unmanaged", 9)
    push.push(model(tmp_path, 1), [target])
    assert (server.versions("topic"), server.labels("topic")) == ({5: "AVAILABLE"}, {"stable": 5})
    assert server.versions("unmanaged") == {9: "AVAILABLE"}


def test_what_a_server_served_before_it_was_managed_can_be_returned_to(
    tmp_path: Path, server: FakeServer, target: Target, store: FolderStore
) -> None:
    make_model(store.root, 1, shift=0.1)
    server.serve(store.root, MODEL, 1)
    push.push(model(tmp_path, 2), [target])
    push.rollback([target], MODEL)
    assert server.labels(MODEL) == {"stable": 1}


def test_a_restarted_server_gets_its_labels_back_by_any_push(tmp_path: Path, store: FolderStore) -> None:
    with FakeServer() as server:
        push.push(model(tmp_path, 1), [Target(server.address, store)])
        for version in (4, 5):
            push.push(make_model(tmp_path / "exports", version, name="topic").path, [Target(server.address, store)])
    with FakeServer() as server:
        server.serve(store.root, MODEL, 1)
        server.serve(store.root, "topic", 4)  # not new to the server, so that no call waits for version 5
        push.push(model(tmp_path, 2), [Target(server.address, store)], label="canary")
        assert (server.labels(MODEL), server.labels("topic")) == ({"stable": 1, "canary": 2}, {"stable": 5})


def test_several_servers_that_read_one_folder_get_the_same(tmp_path: Path, store: FolderStore) -> None:
    with FakeServer() as one, FakeServer() as two:
        (outcome,) = push.push(model(tmp_path, 1), [Target(one.address, store), Target(two.address, store)])
        assert outcome.targets == (one.address, two.address)
        assert one.labels(MODEL) == two.labels(MODEL) == {"stable": 1}


def test_several_servers_with_folders_of_their_own_all_serve_it_or_none(tmp_path: Path) -> None:
    stores = [FolderStore(tmp_path / name) for name in ("one", "two")]
    with FakeServer() as one, FakeServer() as two:
        targets = [Target(one.address, stores[0]), Target(two.address, stores[1])]
        push.push(model(tmp_path, 1), targets)
        two.refuse_reload = ["no"]
        path = model(tmp_path, 2)
        with pytest.raises(PushError, match="no"):
            push.push(path, targets)
        for server, store in zip((one, two), stores, strict=True):
            assert (server.labels(MODEL), desired.read_labels(store, MODEL)) == ({"stable": 1}, {"stable": 1})
        push.push(path, targets)
        assert one.labels(MODEL) == two.labels(MODEL) == {"stable": 2}


def test_a_server_in_a_container_is_told_its_own_path_and_the_next_push_remembers_it(tmp_path: Path, store: FolderStore) -> None:
    inside = {f"/models/{name}": store.root / name for name in (MODEL, "topic")}
    with FakeServer(inside) as server:
        push.push(model(tmp_path, 1), [Target(server.address, store, "/models/sentiment")])
        push.push(make_model(tmp_path / "exports", 5, name="topic").path, [Target(server.address, store)])
        assert [entry.base_path for entry in server.configs[-1].model_config_list.config] == ["/models/sentiment", "/models/topic"]
        assert server.labels("topic") == {"stable": 5}


@pytest.mark.parametrize("path", ["models/sentiment", "/models/other", "/"])
def test_a_server_path_that_would_lose_models_is_refused(tmp_path: Path, target: Target, path: str) -> None:
    with pytest.raises(ConfigError) as raised:
        push.push(model(tmp_path, 1), [replace(target, server_path=path)])
    assert str(raised.value) == (
        f"--server-path {path}: expected the absolute path of the model's folder on the server, ending in /sentiment, "
        "such as /models/sentiment: the other models are looked for beside it."
    )


def test_a_model_goes_to_an_object_store_and_is_served_from_there(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/models"
    with FakeServer() as server:
        mounted = tmp_path / "mounted"
        server.outside = {f"{url}/sentiment": mounted / MODEL}
        for version in (1, 2):
            make_model(mounted, version, shift=version / 10)
            push.push(model(tmp_path, version), [Target(server.address, ObjectStore(url))])
        assert server.labels(MODEL) == {"stable": 2}
        assert [entry["outcome"] for entry in journal(ObjectStore(url))] == ["done", "done"]


def test_the_same_push_again_copies_nothing_and_changes_nothing(
    tmp_path: Path, server: FakeServer, target: Target, store: FolderStore
) -> None:
    path = model(tmp_path, 1)
    push.push(path, [target])
    (outcome,) = push.push(path, [target])
    assert (outcome.version, outcome.published, outcome.labels) == (1, False, {"stable": 1})
    assert store.versions(MODEL) == [1]


def test_a_number_that_is_not_above_all_before_is_replaced_by_one_that_is(
    tmp_path: Path, server: FakeServer, target: Target, store: FolderStore
) -> None:
    push.push(model(tmp_path, 7), [target])
    (outcome,) = push.push(model(tmp_path, 3), [target])
    assert outcome.version == 8
    manifest = store.manifest(MODEL, 8) or {}
    assert (manifest["version"], manifest["pushed"]["source_version"]) == (8, 3)
    assert server.labels(MODEL) == {"stable": 8}


def test_a_model_without_a_manifest_is_served_with_a_reason_that_is_recorded(
    tmp_path: Path, server: FakeServer, target: Target, store: FolderStore
) -> None:
    folder = tmp_path / "from-elsewhere"
    folder.mkdir()
    (folder / "saved_model.pb").write_text(json.dumps({"shift": 0.3, "broken": ""}))
    (outcome,) = push.push(folder, [target], force="a model of a friend")
    (again,) = push.push(folder, [target], force="a model of a friend")
    assert (again.version, again.published) == (outcome.version, False)
    assert server.versions("from-elsewhere") == {outcome.version: "AVAILABLE"}
    assert outcome.notes == ["there are no golden probes: the server's answers were not compared"]
    entry = journal(store, "from-elsewhere")[0]
    assert (entry["force"], entry["checks"]["gate"]["forced"]) == ("a model of a friend", "a model of a friend")


def test_the_gate_refuses_and_a_reason_overrules_it_and_is_recorded(
    tmp_path: Path, server: FakeServer, target: Target, store: FolderStore
) -> None:
    path = model(tmp_path, 1, gate={"passed": False, "reasons": ["accuracy 0.5 is below 0.9"]})
    with pytest.raises(GateRefused, match=r"accuracy 0\.5 is below 0\.9"):
        push.push(path, [target])
    assert (server.configs, store.versions(MODEL)) == ([], [])
    (outcome,) = push.push(path, [target], force="the demo is today")
    assert outcome.version == 1
    assert journal(store)[-1]["checks"]["gate"] == {
        "passed": False,
        "reasons": ["accuracy 0.5 is below 0.9"],
        "forced": "the demo is today",
    }


def test_a_damaged_folder_changes_nothing(tmp_path: Path, server: FakeServer, target: Target, store: FolderStore) -> None:
    path = model(tmp_path, 1)
    (path / "saved_model.pb").write_text("{}")
    with pytest.raises(IntegrityError, match="changed since it was published"):
        push.push(path, [target])
    assert (server.configs, store.versions(MODEL), journal(store)) == ([], [], [])
