"""Pushes that fail: whatever happens, what was served is served."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving import change, desired, push
from serving.errors import ConfigError, PushError, RegistryError, Unavailable
from serving.push import Target
from serving.stores import FolderStore
from tests.fake_tf_serving import FakeServer, answers, make_model, traffic
from tests.push.conftest import MODEL, journal, model, states


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
