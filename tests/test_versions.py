"""Which names are versions, which versions a policy wants, and what is done next to get there: tables, one line a case."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.versions import AVAILABLE, END, LOADING, START, UNLOADING, Action, next_action, versions_in, wanted


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], {}),
        (["1", "2"], {1: "1", 2: "2"}),
        (["10", "9"], {9: "9", 10: "10"}),
        (["00000123"], {123: "00000123"}),
        (["0"], {0: "0"}),
        (["01", "1"], {1: "1"}),
        (["1", "01", "001"], {1: "1"}),
        (["9223372036854775807"], {2**63 - 1: "9223372036854775807"}),
        (["9223372036854775808", "99999999999999999999"], {}),
        (["", " ", "a", "1a", "a1", "1.0", "1e3", "0x1", "1_000", " 1", "1 ", "1\n", "+1", "--1", "-", "tmp-1", ".1"], {}),
        (["٣", "①", "１"], {}),
    ],
    ids=str,
)
def test_a_name_that_is_a_number_is_a_version(names: list[str], expected: dict[int, str]) -> None:
    assert versions_in(names) == expected
    assert list(versions_in(names)) == sorted(expected)


def test_difference_negative_numbers_are_no_versions() -> None:
    """They parse as an int64, so the real server would load them; nobody publishes them, and no client here could ask for one."""
    assert versions_in(["-1", "-0005"]) == {}


@given(st.lists(st.integers(0, 2**63 - 1).map(str), unique=True))
def test_the_order_of_the_names_does_not_matter(names: list[str]) -> None:
    assert versions_in(names) == versions_in(reversed(names)) == {int(name): name for name in names}


@pytest.mark.parametrize(
    ("kind", "latest", "specific", "present", "expected"),
    [
        ("latest", 1, (), [], set()),
        ("latest", 1, (), [1, 3, 2], {3}),
        ("latest", 0, (), [1, 3, 2], {3}),
        ("latest", 2, (), [1, 3, 2], {2, 3}),
        ("latest", 9, (), [1, 3, 2], {1, 2, 3}),
        ("all", 1, (), [1, 3], {1, 3}),
        ("all", 1, (), [], set()),
        ("specific", 1, (1, 2), [1, 2, 3], {1, 2}),
        ("specific", 1, (1, 7), [1, 3], {1}),
        ("specific", 1, (7,), [1, 3], set()),
        ("specific", 1, (), [1, 3], set()),
    ],
)
def test_a_policy_wants(kind: str, latest: int, specific: Collection[int], present: list[int], expected: set[int]) -> None:
    assert wanted(kind, latest, specific, present) == expected


LOAD, UNLOAD = "load", "unload"


@pytest.mark.parametrize(
    ("case", "aspired", "states", "expected"),
    [
        ("nothing is wanted, nothing is there", [], {}, None),
        ("a first version", [1], {1: START}, (LOAD, 1)),
        ("a version nobody has seen yet", [1], {}, (LOAD, 1)),
        ("the newest first", [1, 2, 3], {1: START, 2: START, 3: START}, (LOAD, 3)),
        ("it loads: wait", [1], {1: LOADING}, None),
        ("it is loaded: rest", [1], {1: AVAILABLE}, None),
        ("a new one is loaded before the old one goes", [2], {1: AVAILABLE, 2: START}, (LOAD, 2)),
        ("the old one stays while the new one loads", [2], {1: AVAILABLE, 2: LOADING}, None),
        ("the old one goes when the new one is loaded", [2], {1: AVAILABLE, 2: AVAILABLE}, (UNLOAD, 1)),
        ("it is on its way out: wait", [2], {1: UNLOADING, 2: AVAILABLE}, None),
        ("the old one stays when the new one failed", [2], {1: AVAILABLE, 2: END}, None),
        ("a failed version is not loaded again", [1], {1: END}, None),
        ("several old ones go, the lowest first", [4], {1: AVAILABLE, 2: AVAILABLE, 4: AVAILABLE}, (UNLOAD, 1)),
        ("nothing is wanted any more: all goes", [], {1: AVAILABLE, 2: AVAILABLE}, (UNLOAD, 1)),
        ("unloading comes before loading, for the memory", [2, 3], {1: AVAILABLE, 2: AVAILABLE, 3: START}, (UNLOAD, 1)),
        ("a wanted one that serves allows others to go", [1, 3], {1: AVAILABLE, 2: AVAILABLE, 3: LOADING}, (UNLOAD, 2)),
        ("back to an older version", [1], {1: START, 2: AVAILABLE}, (LOAD, 1)),
        ("a broken new one and a good new one", [2, 3], {1: AVAILABLE, 3: END, 2: START}, (LOAD, 2)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_to_do_next(case: str, aspired: list[int], states: Mapping[int, str], expected: tuple[str, int] | None) -> None:
    assert next_action(aspired, states) == (Action(*expected) if expected else None), case


def _settle(aspired: set[int], states: dict[int, str], broken: set[int]) -> list[dict[int, str]]:
    """Obeys until nothing is left to do; every state on the way."""
    seen = [dict(states)]
    while action := next_action(aspired, states):
        if action.kind == LOAD:
            states[action.version] = END if action.version in broken else AVAILABLE
        else:
            states[action.version] = END
        seen.append(dict(states))
        assert len(seen) < 50, "it never ends"
    return seen


VERSIONS = st.sets(st.integers(1, 6))


@given(aspired=VERSIONS.filter(bool), serving=VERSIONS.filter(bool), broken=VERSIONS)
def test_a_model_that_answers_goes_on_answering(aspired: set[int], serving: set[int], broken: set[int]) -> None:
    for states in _settle(aspired, dict.fromkeys(serving, AVAILABLE), broken - serving):
        assert AVAILABLE in states.values()


@given(aspired=VERSIONS, serving=VERSIONS, broken=VERSIONS)
def test_it_ends_with_what_is_wanted(aspired: set[int], serving: set[int], broken: set[int]) -> None:
    last = _settle(aspired, dict.fromkeys(serving, AVAILABLE), broken - serving)[-1]
    loaded = {version for version, state in last.items() if state == AVAILABLE}
    good = aspired - (broken - serving)
    assert loaded == (good if good or not aspired else serving)
