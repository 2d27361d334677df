"""Texts that differ in a few words: which ones belong together, so that a split does not put one into training and its twin into test.

MinHash (Broder 1997) over 3-word shingles, or character 5-grams where words are not separated by spaces; banded locality-sensitive hashing
proposes pairs, the exact Jaccard similarity of their shingle sets decides. Texts too short for three shingles are left to exact comparison.

With 64 hashes in 16 bands of 4, a pair of similarity 0.8 is proposed with probability 1 - (1 - 0.8^4)^16 = 0.9998, one of 0.5 with 0.64.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

HASHES = 64
BANDS = 16
MIN_SHINGLES = 3
_CHUNK = 2000
# A bucket of a thousand near-equal texts: each is compared with the first few members, not with all.
_REPRESENTATIVES = 8


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
    sets = [shingles(text) for text in texts]
    rows = np.array([i for i, parts in enumerate(sets) if parts], np.int64)
    if len(rows) < 2:
        return []
    signatures = _signatures([sets[i] for i in rows])
    parent = list(range(len(texts)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    width = HASHES // BANDS
    for band in range(BANDS):
        part = np.ascontiguousarray(signatures[:, band * width : (band + 1) * width])
        keys = part.view(np.dtype((np.void, part.dtype.itemsize * width))).ravel()
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        ends = np.append(starts[1:], len(order))
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            members = rows[order[start:end]]
            for number, row in enumerate(members):
                for other in members[: min(number, _REPRESENTATIVES)]:
                    first, second = root(int(row)), root(int(other))
                    if first != second and _similar(sets[row], sets[other], threshold):
                        parent[max(first, second)] = min(first, second)
    found: dict[int, list[int]] = {}
    for row in rows.tolist():
        found.setdefault(root(row), []).append(row)
    return [members for members in found.values() if len(members) > 1]


def _similar(a: frozenset[int], b: frozenset[int], threshold: float) -> bool:
    shared = len(a & b)
    return shared >= threshold * (len(a) + len(b) - shared)


def _signatures(sets: Sequence[frozenset[int]]) -> npt.NDArray[np.uint32]:
    """MinHash signatures, uint32 `[texts, HASHES]`."""
    random = np.random.Generator(np.random.Philox(key=20260101))
    a = random.integers(1, 1 << 62, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    b = random.integers(0, 1 << 62, HASHES, dtype=np.uint64)
    result = np.empty((len(sets), HASHES), np.uint32)
    for start in range(0, len(sets), _CHUNK):
        chunk = sets[start : start + _CHUNK]
        values = np.fromiter((value for parts in chunk for value in sorted(parts)), np.uint64)
        offsets = np.cumsum([0, *[len(parts) for parts in chunk[:-1]]])
        for k in range(HASHES):
            # Multiply-shift: the high 32 bits of a * x + b modulo 2^64.
            hashed = ((values * a[k] + b[k]) >> np.uint64(32)).astype(np.uint32)
            result[start : start + len(chunk), k] = np.minimum.reduceat(hashed, offsets)
    return result
