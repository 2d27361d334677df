"""Can window texts and reference texts be told apart? Frees the verdict from features and folds.

In: two lists of texts. Out: the cross-validated area under the ROC curve of a classifier that tries, what it would be by chance, and the words that
give the window away. Sees topic, language and style; does not see whether answers are right. Refuses to judge fewer than `LEAST_TEXTS` a side.

The classifier is regularised least squares on hashed character n-grams (as a kernel machine): its held-out scores are linear in the labels, so that
hundreds of permuted labellings cost one matrix product, and the chance level is measured instead of assumed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.monitor.statistics import area_under_curve, normal_tail

LEAST_TEXTS = 50
MOST_TEXTS = 500  # a side: chance alone then stays below the floor of a warning; costs grow with the cube
MOST_CHARACTERS = 2_000
LENGTHS = (1, 2, 3, 4)
BUCKETS = 4_096
FOLDS = 5
PERMUTATIONS = 300
RIDGE = 1.0  # against a kernel whose diagonal is 1 on average
CLEAR = 3.0  # deviations from chance, for a word and for showing words at all
LEAST_TEXTS_OF_A_WORD = 5  # a word of fewer texts may be somebody's name, and is not shown

Hashes = NDArray[np.uint64]

_MULTIPLIERS = np.random.default_rng(20).integers(1, 2**63, size=(max(LENGTHS) + 1, max(LENGTHS)), dtype=np.uint64) * np.uint64(
    2
) + np.uint64(1)
_WORD = re.compile(r"[^\W\d_]{3,}")
_HAN = re.compile(r"[\u3400-\u9fff]{2,}")


@dataclass(frozen=True)
class Separation:
    """How well two lists of texts are told apart.

    Attributes:
        auc: 0.5 not at all, 1 always. When a share c of the window's texts is unlike anything in the reference, it is about 0.5 + c / 2.
        chance_mean: of the permuted labellings.
        chance_deviation: their standard deviation.
        exceeding: how many of the permuted labellings reach `auc`.
        permutations: how many were tried.
        window_texts: different texts looked at.
        reference_texts: the same of the reference.
        words: what the window has more of.
    """

    auc: float
    chance_mean: float
    chance_deviation: float
    exceeding: int
    permutations: int
    window_texts: int
    reference_texts: int
    words: tuple[str, ...]

    @property
    def p_value(self) -> float:
        """From the permutations' mean and deviation: an average of five rank sums is close to normal, and hundreds of draws have no 1 in 10,000."""
        return normal_tail((self.auc - self.chance_mean) / self.chance_deviation)


def separate(window: Sequence[str], reference: Sequence[str], rng: np.random.Generator) -> Separation | None:
    """Trains on four fifths, scores the rest, five times; None with fewer than `LEAST_TEXTS` different texts on a side."""
    ours, theirs = _different(window, rng), _different(reference, rng)
    if min(len(ours), len(theirs)) < LEAST_TEXTS:
        return None
    features = _features([*ours, *theirs])
    kernel = features @ features.T
    kernel /= np.mean(np.diag(kernel)) or 1.0
    inverse = np.linalg.inv(kernel + RIDGE * np.eye(len(kernel), dtype=np.float32))
    # Stratified folds, and labels permuted inside each, so that a fold keeps its share of both sides in every labelling.
    fold = np.concatenate([np.arange(len(side)) % FOLDS for side in (ours, theirs)])
    labels = np.zeros((len(fold), PERMUTATIONS + 1), bool)
    labels[: len(ours)] = True
    for number in range(FOLDS):
        labels[fold == number, 1:] = rng.permuted(labels[fold == number, 1:], axis=0)
    targets = labels.astype(np.float32) - np.float32(len(ours) / len(fold))
    areas = np.zeros(PERMUTATIONS + 1)
    for number in range(FOLDS):
        held = fold == number
        # What a fit without the held-out rows says of them, from the one inverse of all rows (the block inverse formula).
        errors = np.linalg.solve(inverse[np.ix_(held, held)], inverse[held] @ targets)
        areas += area_under_curve(targets[held] - errors, labels[held]) / FOLDS
    chance = areas[1:]
    clear = areas[0] > chance.mean() + CLEAR * chance.std()
    return Separation(
        auc=float(areas[0]),
        chance_mean=float(chance.mean()),
        chance_deviation=float(chance.std() or 1e-9),
        exceeding=int((chance >= areas[0]).sum()),
        permutations=PERMUTATIONS,
        window_texts=len(ours),
        reference_texts=len(theirs),
        words=_telling_words(ours, theirs) if clear else (),
    )


def _different(texts: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Each text once (a repeated one would stand in several folds), in a random order, at most `MOST_TEXTS`."""
    found = list(dict.fromkeys(" ".join(text[:MOST_CHARACTERS].casefold().split()) for text in texts))
    found = [text for text in found if text]
    return [found[index] for index in rng.permutation(len(found))[:MOST_TEXTS]]


def _features(texts: Sequence[str]) -> NDArray[np.float32]:
    """Signed hashed counts of character n-grams, damped, weighted by rarity, of unit length, centred: float32 `[texts, BUCKETS]`."""
    rows = np.zeros((len(texts), BUCKETS), np.float32)
    for row, text in zip(rows, texts, strict=True):
        points = np.frombuffer(f" {text} ".encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        grams = np.concatenate([_hashed(points, length) for length in LENGTHS if length <= len(points)])
        sign = 1.0 - 2.0 * ((grams >> np.uint64(20)) & np.uint64(1)).astype(np.float64)
        row += np.bincount((grams >> np.uint64(52)).astype(np.int64), weights=sign, minlength=BUCKETS).astype(np.float32)
    rows = np.sign(rows) * np.log1p(np.abs(rows))
    rows *= np.log((1 + len(texts)) / (1 + (rows != 0).sum(axis=0))).astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return np.asarray(rows - rows.mean(axis=0), np.float32)


def _hashed(points: Hashes, length: int) -> Hashes:
    """A hash of each run of `length` characters: uint64, whose high bits are mixed best."""
    hashed: Hashes = np.zeros(len(points) - length + 1, np.uint64)
    for offset in range(length):
        hashed += points[offset : offset + len(hashed)] * _MULTIPLIERS[length, offset]
    hashed ^= hashed >> np.uint64(31)
    return hashed * np.uint64(0x9E3779B97F4A7C15)


def _telling_words(ours: Sequence[str], theirs: Sequence[str], most: int = 8) -> tuple[str, ...]:
    """Words, or pairs of Chinese characters, that more window texts hold than reference texts, the surest first."""
    mine, other = _documents(ours), _documents(theirs)
    scored: list[tuple[float, str]] = []
    for word, count in mine.items():
        pooled = (count + other[word]) / (len(ours) + len(theirs))
        difference = count / len(ours) - other[word] / len(theirs)
        deviation = float(np.sqrt(pooled * (1 - pooled) * (1 / len(ours) + 1 / len(theirs)))) or 1e-9
        if count >= LEAST_TEXTS_OF_A_WORD and difference / deviation > CLEAR:
            scored.append((difference / deviation, word))
    return tuple(word for _, word in sorted(scored, reverse=True)[:most])


def _documents(texts: Sequence[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for text in texts:
        han = {run[start : start + 2] for run in _HAN.findall(text) for start in range(len(run) - 1)}
        found.update(han | set(_WORD.findall(_HAN.sub(" ", text))))
    return found
