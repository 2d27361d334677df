"""A manifest's `reference` -> the bins to count in, and what the window is compared with. Frees the checks from manifests of several ages.

In: the manifest of a published version. Out: a `Layout` and a `Summary` called "the manifest". What an older manifest lacks is None there. Refuses
a reference whose parts do not fit together: counts without their edges, counts that are no whole numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from serving.errors import IntegrityError
from serving.monitor.window import CONFIDENCE_EDGES, LENGTH_EDGES, NO_SCRIPT, TOKEN_EDGES, Histogram, Layout, Ratio, Summary

MANIFEST = "the manifest"


def read_reference(manifest: Mapping[str, Any]) -> tuple[Layout, Summary]:
    """The bins and the counts of a manifest.

    Raises:
        IntegrityError: its `reference` is not what an export writes.
    """
    found = manifest.get("reference") or {}
    if not isinstance(found, Mapping):
        raise _broken("reference", "an object", found)
    predicted = _shares(found, "predicted")
    scripts = _shares(found, "scripts")
    confidence, characters, tokens = (_histogram(found, name) for name in ("confidence", "characters", "tokens"))
    rows = found.get("rows", 0)
    if type(rows) is not int or rows < 0:
        raise _broken("reference.rows", "a whole number", rows)
    labels = manifest.get("labels") or list(predicted or ())
    layout = Layout(
        labels=tuple(str(label) for label in labels),
        confidence=confidence.edges if confidence else CONFIDENCE_EDGES,
        characters=characters.edges if characters else LENGTH_EDGES,
        tokens=tokens.edges if tokens else TOKEN_EDGES,
        multi_label=manifest.get("task") == "multi_label",
    )
    return layout, Summary(
        name=MANIFEST,
        rows=rows,
        predicted=predicted,
        confidence=confidence,
        characters=characters,
        tokens=tokens,
        scripts={name: count for name, count in scripts.items() if name != NO_SCRIPT} if scripts else None,
        unknown=_unknown(found, rows),
    )


def _histogram(reference: Mapping[str, Any], name: str) -> Histogram | None:
    found = reference.get(name)
    if found is None:
        return None
    edges, counts = (found.get(part) for part in ("edges", "counts")) if isinstance(found, Mapping) else (None, None)
    fits = (
        isinstance(edges, list)
        and isinstance(counts, list)
        and len(edges) == len(counts) + 1 >= 2
        and all(type(edge) in (int, float) for edge in edges)
        and all(one < two for one, two in pairwise(edges))
        and all(type(count) is int and count >= 0 for count in counts)
    )
    if not fits:
        raise _broken(f"reference.{name}", "ascending edges, and one count fewer than edges", found)
    assert isinstance(edges, list)
    return Histogram(tuple(float(edge) for edge in edges), np.asarray(counts, np.int64)) if any(counts or ()) else None


def _shares(reference: Mapping[str, Any], name: str) -> dict[str, int] | None:
    found = reference.get(name)
    if found is None:
        return None
    if not isinstance(found, Mapping) or not all(type(count) is int and count >= 0 for count in found.values()):
        raise _broken(f"reference.{name}", "an object of counts", found)
    return dict(found) if any(found.values()) else None


def _unknown(reference: Mapping[str, Any], rows: int) -> Ratio | None:
    share = reference.get("unknown_share")
    if share is None or not rows:
        return None
    if type(share) not in (int, float) or not 0 <= share <= 1:
        raise _broken("reference.unknown_share", "a number from 0 to 1", share)
    return Ratio(rows, float(share), None)


def _broken(where: str, expected: str, received: Any) -> IntegrityError:
    return IntegrityError(
        f"manifest.json: `{where}`: expected {expected}, received {str(received)[:100]!r}. "
        "The monitor cannot compare with it; export the run again with tfpipeline export."
    )
