"""What should be served, decided from snapshots: tables, one line a case."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format

from serving import desired
from serving.desired import Snapshot, Wanted
from serving.errors import RegistryError
from serving.stores import FolderStore
from tests.fake_tf_serving import make_model


def snapshot(
    versions: tuple[int, ...] = (),
    labels: dict[str, int] | None = None,
    pushed: tuple[int, ...] = (),
    copied: tuple[int, ...] = (),
    available: tuple[int, ...] = (),
    loading: tuple[int, ...] = (),
) -> Snapshot:
    return Snapshot(
        "m",
        versions,
        labels or {},
        frozenset(pushed),
        frozenset(copied),
        max(versions, default=0),
        frozenset(available),
        frozenset(loading),
    )


@pytest.mark.parametrize(
    ("case", "state", "retention", "versions", "labels"),
    [
        ("nothing there", snapshot(), 3, (), {}),
        ("never pushed, server has none of it: the newest", snapshot((1, 2)), 3, (2,), {}),
        ("never pushed, server has an older one: that one", snapshot((1, 2), available=(1,)), 3, (1,), {}),
        ("never pushed, server has one that is gone from disk", snapshot((2,), available=(1,)), 3, (2,), {}),
        ("the newest pushed ones", snapshot((1, 2, 3, 4), pushed=(1, 2, 3, 4)), 2, (3, 4), {}),
        ("an export that was never pushed is not loaded", snapshot((1, 2, 3), {"stable": 1}, pushed=(1,)), 3, (1,), {"stable": 1}),
        ("labelled ones beyond the retention", snapshot((1, 2, 3), {"stable": 1}, pushed=(1, 2, 3)), 1, (1, 3), {"stable": 1}),
        (
            "previous is loaded, and not a label of the server",
            snapshot((1, 2), {"previous": 1, "stable": 2}, pushed=(2,)),
            1,
            (1, 2),
            {"stable": 2},
        ),
        ("a label on a version that is gone", snapshot((2,), {"canary": 3, "stable": 2}, pushed=(2,)), 1, (2,), {"stable": 2}),
    ],
)
def test_what_a_model_that_nobody_changes_should_have(
    case: str, state: Snapshot, retention: int, versions: tuple[int, ...], labels: dict[str, int]
) -> None:
    assert desired.wanted(state, retention) == Wanted(versions, labels), case


@pytest.mark.parametrize(
    ("case", "state", "label", "version", "expected"),
    [
        ("the first", snapshot(), "stable", 1, {"stable": 1}),
        ("the next", snapshot((1,), {"stable": 1}), "stable", 2, {"stable": 2, "previous": 1}),
        ("again", snapshot((1, 2), {"stable": 2, "previous": 1}), "stable", 2, {"stable": 2, "previous": 1}),
        ("back", snapshot((1, 2), {"stable": 2, "previous": 1}), "stable", 1, {"stable": 1, "previous": 2}),
        ("a canary", snapshot((1,), {"stable": 1}), "canary", 2, {"stable": 1, "canary": 2}),
        ("another canary", snapshot((1, 2), {"stable": 1, "canary": 2}), "canary", 3, {"stable": 1, "canary": 3}),
        ("the canary becomes stable", snapshot((1, 2), {"stable": 1, "canary": 2}), "stable", 2, {"stable": 2, "previous": 1}),
        (
            "the canary stays beside another stable one",
            snapshot((1, 2), {"stable": 1, "canary": 2}),
            "stable",
            3,
            {"stable": 3, "canary": 2, "previous": 1},
        ),
        ("what is stable is no canary", snapshot((1,), {"stable": 1}), "canary", 1, {"stable": 1}),
        ("a server that served before it was managed", snapshot((1,), available=(1,)), "stable", 2, {"stable": 2, "previous": 1}),
        ("an export nobody served is nothing to return to", snapshot((1,)), "stable", 2, {"stable": 2}),
    ],
)
def test_where_labels_go(case: str, state: Snapshot, label: str, version: int, expected: dict[str, int]) -> None:
    assert desired.relabelled(state, label, version) == expected, case


@pytest.mark.parametrize(
    ("case", "state", "retention", "expected"),
    [
        ("nothing beyond", snapshot((1, 2), pushed=(1, 2)), 2, ()),
        ("the oldest beyond", snapshot((1, 2, 3, 4), pushed=(1, 2, 3, 4)), 2, (1, 2)),
        ("never a labelled one", snapshot((1, 2, 3, 4), {"previous": 1, "stable": 4}, pushed=(1, 2, 3, 4)), 1, (2, 3)),
        ("never one that is being loaded", snapshot((1, 2, 3), pushed=(1, 2, 3), loading=(1,)), 1, (2,)),
        ("never an export that was not pushed", snapshot((1, 2, 3), pushed=(3,)), 1, ()),
        ("what the server had before it was managed", snapshot((1, 2, 3), {"stable": 3}, pushed=(3,), available=(1, 3)), 1, (1,)),
        ("the copy of a push that never finished", snapshot((1, 2, 3), {"stable": 3}, pushed=(3,), copied=(2, 3)), 1, (2,)),
    ],
)
def test_what_is_retired(case: str, state: Snapshot, retention: int, expected: tuple[int, ...]) -> None:
    assert desired.retire(state, retention) == expected, case


def test_a_push_names_old_and_new_before_it_moves_the_label_and_drops_the_oldest_last() -> None:
    state = snapshot((1, 2, 3), {"stable": 3, "previous": 2}, pushed=(1, 2, 3), copied=(2, 3), available=(1, 2, 3))
    plan = desired.plan_push(state, 4, 2, "stable")
    assert plan.before == Wanted((2, 3), {"stable": 3})
    assert plan.load == Wanted((2, 3, 4), {"stable": 3})
    assert plan.after == Wanted((2, 3, 4), {"stable": 4})
    assert plan.final == Wanted((3, 4), {"stable": 4})
    assert (plan.labels, plan.retire, plan.remove) == ({"stable": 4, "previous": 3}, (1, 2), (2,))


def test_what_push_did_not_copy_it_does_not_delete() -> None:
    state = snapshot((1, 2), {"stable": 2}, pushed=(1, 2), available=(1, 2))
    plan = desired.plan_push(state, 3, 1, "stable")
    assert (plan.retire, plan.remove) == ((1,), ())


@pytest.mark.parametrize(
    ("case", "used", "asked", "expected"),
    [("above all", 5, 9, 9), ("the same", 5, 5, 6), ("below", 5, 3, 6), ("the first", 0, 20261124120000, 20261124120000)],
)
def test_numbers_only_grow(case: str, used: int, asked: int, expected: int) -> None:
    assert desired.next_version(Snapshot("m", used=used), asked) == expected, case


def test_the_config_names_every_model_by_version_and_label() -> None:
    config = desired.desired_config(
        [("b", "/models/b", Wanted((1, 2), {"stable": 2})), ("a", "/models/a", Wanted((7,), {})), ("none", "/models/none", Wanted((), {}))]
    )
    assert text_format.MessageToString(config, as_one_line=True) == (
        'model_config_list { config { name: "a" base_path: "/models/a" model_platform: "tensorflow" model_version_policy { specific { versions: 7 } } } '
        'config { name: "b" base_path: "/models/b" model_platform: "tensorflow" model_version_policy { specific { versions: 1 versions: 2 } } '
        'version_labels { key: "stable" value: 2 } } }'
    )


def test_no_model_is_a_list_without_models_which_a_server_accepts() -> None:
    assert desired.desired_config([]).WhichOneof("config") == "model_config_list"


def test_labels_that_a_server_would_refuse_are_left_out() -> None:
    assert desired.only_available(Wanted((1, 2), {"stable": 1, "canary": 2}), {1}) == Wanted((1, 2), {"stable": 1})


def test_the_diff_shows_what_changes_and_nothing_when_nothing_does() -> None:
    before = desired.desired_config([("a", "/m/a", Wanted((1,), {}))])
    after = desired.desired_config([("a", "/m/a", Wanted((1, 2), {}))])
    assert "+        versions: 2" in desired.config_diff(before, after).splitlines()
    assert desired.config_diff(before, before) == ""


def test_a_snapshot_is_what_lies_on_disk(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for version in (3, 5):
        make_model(tmp_path, version, name="m", **({"pushed": {}} if version == 5 else {}))
    (tmp_path / "m" / ".failed-9").mkdir()
    (tmp_path / "m" / "4").mkdir()  # a folder without a model is no version
    desired.write_labels(store, "m", {"stable": 5, "previous": 3})
    desired.append_journal(store, "m", {"version": 3, "outcome": "done"})
    desired.append_journal(store, "m", {"version": 12, "outcome": "refused"})
    desired.append_journal(store, "m", {"version": 2, "outcome": "done"})
    desired.append_journal(store, "m", {"version": 10, "outcome": "undone"})
    found = desired.read_snapshot(store, "m")
    assert found == Snapshot("m", (3, 5), {"stable": 5, "previous": 3}, frozenset({3}), frozenset({5}), 10)


@pytest.mark.parametrize("content", ["", "[]", '{"stable": "5"}', '{"stable": true}', '{"stable": -1}', '{"best": 5}', "{"])
def test_a_labels_file_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "labels.json").write_text(content)
    with pytest.raises(RegistryError) as raised:
        desired.read_labels(FolderStore(tmp_path), "m")
    assert str(raised.value) == (
        f'{tmp_path}/m/labels.json: expected {{"stable": VERSION, "canary": VERSION, "previous": VERSION}}, received {content!r}. '
        "Write it again, or remove it and push the version that should be stable."
    )


def test_a_torn_last_line_of_the_journal_is_skipped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    desired.append_journal(store, "m", {"version": 1, "outcome": "done"})
    with (tmp_path / "m" / "push.jsonl").open("ab") as stream:
        stream.write(b'{"version": 2, "outc')
    assert [entry["version"] for entry in desired.read_journal(store, "m")] == [1]
    desired.append_journal(store, "m", {"version": 3, "outcome": "done"})
    assert [entry["version"] for entry in desired.read_journal(store, "m")] == [1, 3]
