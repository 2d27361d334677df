"""Which versions of a model should be loaded, and what to do next to get there. Pure decisions; the loop that obeys them is the server's.

A child of the base path is a version iff its name is an int64 (`00000123` is 123); of two names for one number the later in string order wins.
A new version is loaded before an old one is unloaded, so a model that answers goes on answering
(TensorFlow Serving's availability-preserving policy).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

_NUMBER = re.compile(r"-?[0-9]{1,19}")

START, LOADING, AVAILABLE, UNLOADING, END = "START", "LOADING", "AVAILABLE", "UNLOADING", "END"


@dataclass(frozen=True)
class Action:
    """Load or unload one version."""

    kind: str
    version: int


def versions_in(names: Iterable[str]) -> dict[int, str]:
    """Version -> folder name, of the names of a base path's children."""
    found: dict[int, str] = {}
    for name in sorted(names):
        if _NUMBER.fullmatch(name) and 0 <= (number := int(name)) < 2**63:
            found[number] = name
    return dict(sorted(found.items()))


def wanted(kind: str, latest: int, specific: Collection[int], present: Collection[int]) -> set[int]:
    """The versions that a policy asks for, of those that are present."""
    if kind == "all":
        return set(present)
    if kind == "specific":
        return set(specific) & set(present)
    return set(sorted(present)[-max(1, latest) :])


def next_action(aspired: Collection[int], states: Mapping[int, str]) -> Action | None:
    """What to do next for one model, or None when nothing is to be done or something is still going on.

    Args:
        aspired: versions that should be loaded.
        states: state of every version that was ever aspired; one that is missing is new. END means loaded no more, or failed for good.
    """
    serving = [version for version, state in states.items() if state == AVAILABLE]
    unneeded = sorted(set(serving) - set(aspired))
    if unneeded and (not aspired or set(serving) & set(aspired)):
        return Action("unload", unneeded[0])
    new = [version for version in aspired if states.get(version, START) == START]
    if new:
        return Action("load", max(new))
    return None
