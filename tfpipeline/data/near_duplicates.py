"""Texts that differ in a few words: which ones belong together, so that a split does not put one into training and its twin into test.

MinHash (Broder 1997) over 3-word shingles, or character 5-grams where words are not separated by spaces; banded locality-sensitive hashing
proposes pairs, the exact Jaccard similarity of their shingle sets decides. Texts too short for three shingles are left to exact comparison.

With 64 hashes in 16 bands of 4, a pair of similarity 0.8 is proposed with probability 1 - (1 - 0.8^4)^16 = 0.9998, one of 0.5 with 0.64.
All pairs of a bucket of up to 65 texts are compared; in a larger one (a template with a number in it) each text with the 8 that follow it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

HASHES = 64
BANDS = 16
MIN_SHINGLES = 3
_NEIGHBOURS = 64
_NEIGHBOURS_IN_LARGE = 8
_CHUNK = 2000
_PAIRS = 50_000  # compared at once


def shingles(text: str) -> frozenset[int]:
    """Hashes of the shingles of an already normalised text; empty when there are too few."""
    words = text.lower().split()
    if len(words) >= 3:
        parts = {zlib.crc32(" ".join(words[i : i + 3]).encode()) for i in range(len(words) - 2)}
    else:
        joined = "".join(words)
        parts = {zlib.crc32(joined[i : i + 5].encode()) for i in range(len(joined) - 4)}
    return frozenset(parts) if len(parts) >= MIN_SHINGLES else frozenset()


def groups(texts: Sequence[str], threshold: float) -> list[list[int]]:
    """Row numbers of near-duplicates, each group sorted, groups by their first row.

    Args:
        texts: normalised texts.
        threshold: Jaccard similarity from which two texts are the same for our purpose.
    """
    values, starts, rows = _shingle_table(texts)
    if len(rows) < 2:
        return []
    bands = _bands(values, starts)
    joined = _Joined(len(rows))
    for band in range(BANDS):
        keys = bands[:, band]
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        size = _NEIGHBOURS + 1  # a key `size` places on that is the same means: a large bucket
        in_large = np.zeros(len(rows), bool)
        for position in np.flatnonzero(ordered[size:] == ordered[:-size]).tolist() if len(rows) > size else ():
            in_large[position : position + size + 1] = True
        for distance in range(1, min(_NEIGHBOURS, len(rows) - 1) + 1):
            equal = ordered[distance:] == ordered[:-distance]
            at = np.flatnonzero(equal & ~in_large[:-distance] if distance > _NEIGHBOURS_IN_LARGE else equal)
            if not len(at):
                break
            roots = joined.roots()
            first, second = order[at], order[at + distance]
            apart = roots[first] != roots[second]
            first, second = first[apart], second[apart]
            for start in range(0, len(first), _PAIRS):
                a, b = first[start : start + _PAIRS], second[start : start + _PAIRS]
                same = _similar(values, starts, a, b, threshold)
                joined.join(a[same], b[same])
    found: dict[int, list[int]] = {}
    for row, root in zip(rows.tolist(), joined.roots().tolist(), strict=True):
        found.setdefault(root, []).append(row)
    return [members for members in found.values() if len(members) > 1]


class _Joined:
    """Which texts are one group by now (union-find; the smallest number of a group is its root)."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count)

    def join(self, a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> None:
        for first, second in zip(a.tolist(), b.tolist(), strict=True):
            x, y = self._root(first), self._root(second)
            if x != y:
                self._parent[max(x, y)] = min(x, y)

    def roots(self) -> npt.NDArray[np.int64]:
        while not np.array_equal(flat := self._parent[self._parent], self._parent):
            self._parent = flat
        return self._parent

    def _root(self, row: int) -> int:
        while (above := int(self._parent[row])) != row:
            row = above
        return row


def _shingle_table(texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All shingles one after the other, where each text's begin (and the end), and which texts these are: those with enough shingles."""
    parts: list[npt.NDArray[np.uint32]] = []
    sizes: list[int] = [0]
    rows: list[int] = []
    for row, text in enumerate(texts):
        found = shingles(text)
        if found:
            parts.append(np.fromiter(found, np.uint32, len(found)))
            sizes.append(len(found))
            rows.append(row)
    values = np.concatenate(parts) if parts else np.empty(0, np.uint32)
    return values, np.cumsum(sizes), np.array(rows, np.int64)


def _similar(
    values: npt.NDArray[np.uint32], starts: npt.NDArray[np.int64], a: npt.NDArray[np.int64], b: npt.NDArray[np.int64], threshold: float
) -> npt.NDArray[np.bool_]:
    """Whether text `a[i]` and text `b[i]` are similar enough."""
    shared = np.empty(len(a), np.int64)
    for i, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        shared[i] = len(set(values[starts[x] : starts[x + 1]].tolist()) & set(values[starts[y] : starts[y + 1]].tolist()))
    sizes = np.diff(starts)
    return shared >= threshold * (sizes[a] + sizes[b] - shared)


def _bands(values: npt.NDArray[np.uint32], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """One number for each band of each text's MinHash signature, uint64 `[texts, BANDS]`: equal where the band's hashes are."""
    random = np.random.Generator(np.random.Philox(key=20260101))
    a = random.integers(1, 1 << 62, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    b = random.integers(0, 1 << 62, HASHES, dtype=np.uint64)
    mix = np.uint64(0x9E3779B97F4A7C15)
    count = len(starts) - 1
    result = np.zeros((count, BANDS), np.uint64)
    for start in range(0, count, _CHUNK):
        end = min(start + _CHUNK, count)
        chunk = values[starts[start] : starts[end]].astype(np.uint64)
        offsets = starts[start:end] - starts[start]
        for k in range(HASHES):
            # Multiply-shift: the high 32 bits of a * x + b modulo 2^64.
            least = np.minimum.reduceat((chunk * a[k] + b[k]) >> np.uint64(32), offsets)
            band = result[start:end, k // (HASHES // BANDS)]
            # Odd multiplier and a fold of the high half: a chance collision only costs a comparison.
            band[:] = (band ^ least) * mix
            band ^= band >> np.uint64(29)
    return result
