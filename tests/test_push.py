"""Pushing to a server that behaves like TensorFlow Serving: what is served before, during and after, and after every kind of failure."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving import change, desired, push, wire
from serving.errors import ConfigError, GateRefused, IntegrityError, ModelNotFound, PushError, PushLocked, RegistryError, Unavailable
from serving.push import Target
from serving.server import configs
from serving.stores import FolderStore, ObjectStore
from tests.fake_tf_serving import FakeServer, answers, make_model, traffic

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


# ---- what a push does ----


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


# ---- what is pushed ----


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


# ---- failures ----


def test_a_version_that_does_not_load_is_set_aside_with_the_server_s_words_and_its_number_is_never_used_again(
    tmp_path: Path, server: FakeServer, target: Target, store: FolderStore
) -> None:
    push.push(model(tmp_path, 1), [target])
    with traffic(server.address, MODEL) as seen, pytest.raises(PushError) as raised:
        push.push(model(tmp_path, 2, broken="INVALID_ARGUMENT: no such op"), [target])
    assert "failed at wait" in str(raised.value)
    assert "INVALID_ARGUMENT: no such op" in str(raised.value)
    assert str(raised.value).endswith(
        f"{store.root}/sentiment serves as before: stable 1. The version was moved to {store.root}/sentiment/.failed-2. Export a better one and push that."
    )
    assert (server.labels(MODEL), desired.read_labels(store, MODEL), store.versions(MODEL)) == ({"stable": 1}, {"stable": 1}, [1])
    assert list(server.configs[-1].model_config_list.config[0].model_version_policy.specific.versions) == [1]
    assert set(seen) == {1}
    (outcome,) = push.push(make_model(tmp_path / "better", 2).path, [target])
    assert outcome.version == 3


def test_a_first_version_that_does_not_load_fails_with_its_own_message(tmp_path: Path, server: FakeServer, target: Target) -> None:
    """Here the call itself fails, because the model is new in the list."""
    with pytest.raises(PushError, match="no such op"):
        push.push(model(tmp_path, 1, broken="no such op"), [target])
    assert len(server.configs[-1].model_config_list.config) == 0


def test_another_model_that_does_not_load_does_not_stop_a_push(
    tmp_path: Path, server: FakeServer, target: Target, store: FolderStore
) -> None:
    make_model(store.root, 5, name="topic", broken="old and broken")
    (outcome,) = push.push(model(tmp_path, 1), [target])
    assert server.labels(MODEL) == {"stable": 1}
    assert "old and broken" in outcome.notes[0]


def test_other_answers_than_at_export_are_refused(tmp_path: Path, server: FakeServer, target: Target, store: FolderStore) -> None:
    push.push(model(tmp_path, 1), [target])
    with traffic(server.address, MODEL) as seen, pytest.raises(PushError) as raised:
        push.push(model(tmp_path, 2, probe_shift=0.5), [target])
    assert "failed at ask" in str(raised.value)
    assert "the answers differ from those at export" in str(raised.value)
    assert (server.labels(MODEL), store.failed(MODEL)) == ({"stable": 1}, [2])
    assert set(seen) == {1}


def test_probabilities_that_are_no_numbers_are_refused(tmp_path: Path, server: FakeServer, target: Target) -> None:
    with pytest.raises(PushError, match="the answers differ"):
        push.push(model(tmp_path, 1, probe_shift=float("nan")), [target])


def test_answers_for_other_classes_are_refused(tmp_path: Path, target: Target) -> None:
    probes = {"tolerance": 1, "texts": ["a"], "probabilities": [[0.2, 0.3, 0.5]]}
    with pytest.raises(PushError, match=r"expected probabilities of shape \[1, 3\], received \[1, 2\]"):
        push.push(model(tmp_path, 1, golden_probes=probes), [target])


@pytest.mark.parametrize("step", ["load", "label"])
def test_a_refused_config_puts_everything_back_and_the_same_push_finishes_later(
    tmp_path: Path, server: FakeServer, target: Target, store: FolderStore, step: str
) -> None:
    push.push(model(tmp_path, 1), [target])

    def refuse(now: str) -> None:
        if now == step:
            server.refuse_reload.append("out of memory")

    path = model(tmp_path, 2)
    with pytest.raises(PushError, match=rf"failed at {step}: .*out of memory.*The same command run again goes on where this one stopped\."):
        push.push(path, [target], on_step=refuse)
    assert (server.labels(MODEL), desired.read_labels(store, MODEL)) == ({"stable": 1}, {"stable": 1})
    assert store.versions(MODEL) == [1, 2], "the version is not at fault"
    (outcome,) = push.push(path, [target])
    assert (outcome.version, outcome.published, server.labels(MODEL)) == (2, False, {"stable": 2})


def test_a_failure_after_the_labels_file_was_written_puts_that_back_too(
    tmp_path: Path, server: FakeServer, target: Target, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    push.push(model(tmp_path, 1), [target])

    def fail(change: Any, probes: Any) -> None:
        assert desired.read_labels(store, MODEL)["stable"] == 2
        raise PushError("somebody else moved the label.")

    monkeypatch.setattr(push.Change, "_confirm", fail)
    with pytest.raises(PushError, match="failed at label: somebody else moved the label"):
        push.push(model(tmp_path, 2), [target])
    assert (server.labels(MODEL), desired.read_labels(store, MODEL)) == ({"stable": 1}, {"stable": 1})


def test_a_load_that_takes_too_long_is_given_up(tmp_path: Path, server: FakeServer, target: Target, store: FolderStore) -> None:
    push.push(model(tmp_path, 1), [target])
    server.loading.clear()
    with pytest.raises(PushError) as raised:
        push.push(model(tmp_path, 2), [target], load_timeout_s=0.5)
    assert "LOADING" in str(raised.value)
    assert f"Check that the server sees {store.root}/sentiment/2 (--server-path)." in str(raised.value)
    assert desired.read_labels(store, MODEL) == {"stable": 1}
    assert store.versions(MODEL) == [1, 2]


def test_a_server_that_was_started_again_meanwhile_is_told_again(
    tmp_path: Path, server: FakeServer, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    push.push(model(tmp_path, 1), [target])
    monkeypatch.setattr(change, "FORGOTTEN_S", 0.3)

    def restart(step: str) -> None:
        if step == "wait":
            server.wait_for(MODEL, 2, "AVAILABLE")
            server.forget(MODEL, 2)

    (outcome,) = push.push(model(tmp_path, 2), [target], on_step=restart)
    assert server.labels(MODEL) == {"stable": 2}
    assert any("was it started again?" in note for note in outcome.notes)


def test_ctrl_c_puts_everything_back_and_says_so(tmp_path: Path, server: FakeServer, target: Target, store: FolderStore) -> None:
    push.push(model(tmp_path, 1), [target])

    def interrupt(step: str) -> None:
        if step == "ask":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"sentiment version 2: stopped at ask\. .* serves as before: stable 1\."):
        push.push(model(tmp_path, 2), [target], on_step=interrupt)
    assert list(server.configs[-1].model_config_list.config[0].model_version_policy.specific.versions) == [1]
    assert journal(store)[-1]["outcome"] == "undone"


def test_ctrl_c_after_the_label_has_moved_leaves_it_there(tmp_path: Path, server: FakeServer, target: Target, store: FolderStore) -> None:
    push.push(model(tmp_path, 1), [target])

    def interrupt(step: str) -> None:
        if step == "retire":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push.push(model(tmp_path, 2), [target], on_step=interrupt)
    assert (server.labels(MODEL), desired.read_labels(store, MODEL)["stable"], journal(store)[-1]["outcome"]) == ({"stable": 2}, 2, "done")


def test_nobody_there_changes_nothing(tmp_path: Path, store: FolderStore) -> None:
    with FakeServer() as gone:
        pass
    with pytest.raises(Unavailable):
        push.push(model(tmp_path, 1), [Target(gone.address, store)])
    assert store.versions(MODEL) == []


def test_a_served_version_whose_answers_are_asked_again_and_differ_is_not_taken_away(
    tmp_path: Path, server: FakeServer, target: Target, store: FolderStore
) -> None:
    path = model(tmp_path, 1)
    push.push(path, [target])
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["golden_probes"]["probabilities"] = answers(manifest["golden_probes"]["texts"], 0.7)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PushError, match="the answers differ"):
        push.push(path, [target])
    assert (states(server), server.labels(MODEL), store.versions(MODEL)) == ({1: "AVAILABLE"}, {"stable": 1}, [1])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (push.promote, "has no canary (stable 1). Push one: python -m serving push --label canary, or name a version."),
        (push.rollback, "has no previous version (stable 1). Push or promote the version that should serve."),
        (
            lambda targets, name: push.promote(targets, name, version=9),
            "version 9 cannot be promoted: it is not there or was never pushed. Pushed and there: 1.",
        ),
    ],
)
def test_there_is_nothing_to_move_to(
    tmp_path: Path, server: FakeServer, target: Target, store: FolderStore, command: Any, message: str
) -> None:
    push.push(model(tmp_path, 1), [target])
    with pytest.raises(RegistryError) as raised:
        command([target], MODEL)
    assert str(raised.value) == f"{store.root}/sentiment: {message}" if "has no" in message else message in str(raised.value)
    assert server.labels(MODEL) == {"stable": 1}


def test_settings_that_cannot_work_are_refused(tmp_path: Path, target: Target) -> None:
    path = model(tmp_path, 1)
    for settings, message in (
        ({"label": "best"}, "label 'best': expected one of stable, canary."),
        ({"retention": 0}, "--keep 0: expected 1 or more versions."),
    ):
        with pytest.raises(ConfigError) as raised:
            push.push(path, [target], **settings)  # type: ignore[arg-type]
        assert str(raised.value) == message
    with pytest.raises(ConfigError, match="no target"):
        push.push(path, [])
    with pytest.raises(ConfigError, match="named twice"):
        push.push(path, [target, target])
    with pytest.raises(ConfigError, match="stands for several servers"):
        push.push(path, [replace(target, address="a:8500,b:8500")])


def test_what_could_not_be_retired_does_not_undo_a_push_and_the_next_one_retires_it(
    tmp_path: Path, server: FakeServer, target: Target, store: FolderStore
) -> None:
    for version in (1, 2):
        push.push(model(tmp_path, version), [target], retention=1)

    def refuse(now: str) -> None:
        if now == "retire":
            server.refuse_reload.append("busy")

    (outcome,) = push.push(model(tmp_path, 3), [target], retention=1, on_step=refuse)
    assert "nothing more was retired, the next push tries again" in outcome.notes[0]
    assert (server.labels(MODEL), store.versions(MODEL), journal(store)[-1]["outcome"]) == ({"stable": 3}, [1, 2, 3], "done")
    push.push(model(tmp_path, 4), [target], retention=1)
    assert store.versions(MODEL) == [3, 4]


# ---- plan, lock, journal, status ----


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
