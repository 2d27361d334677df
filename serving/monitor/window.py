"""Many journal records -> one small summary. Frees the checks from records, clocks and the size of the journal.

In: records of `serving.journal`, one by one, and the bins of the manifest. Out: `Summary`, whose size does not depend on the number of records:
counts in bins, sums, and a fixed sample of texts. Refuses nothing: what a record lacks, or holds in a wrong type, is not counted there.

Every row of a request is a record. What is answered (label, score, length, text) is counted by row; what a request is (how it ended, how long it
took) is counted once a request, from its row 0, so that a failed batch of 500 texts is one failure.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np

from serving.monitor.statistics import Counts
from serving.scripts import main_script

CHUNK = 8_192  # values that wait for numpy
SAMPLED_TEXTS = 1_000  # more than the domain classifier looks at, as some are the same
MOST_TEXT = 2_000  # characters of a sampled text
MOST_LABELS = 1_000
MOST_SLICES = 120  # of time; the slices double when there are more
FIRST_SLICE_S = 60
NO_SCRIPT = "none"  # what `main_script` says of texts without a letter
OTHER_LABEL = "(not a class of this model)"
# Milliseconds, 2 % wide: from 0.01 to 10,000,000.
LATENCY_EDGES = (0.0, *(float(edge) for edge in 10 ** (np.arange(-2, 7, math.log10(1.02)))), 1e12)
LENGTH_EDGES = (0.0, 8.0, 16.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0, 1024.0, 2048.0, 1e9)
TOKEN_EDGES = (0.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0, 1e6)
CONFIDENCE_EDGES = tuple(step / 20 for step in range(21))
# What the caller did wrong, or did not wait for; every other code but OK is the server's.
REFUSALS = frozenset(
    {"INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE", "FAILED_PRECONDITION", "UNAUTHENTICATED", "PERMISSION_DENIED", "CANCELLED"}
)


@dataclass(frozen=True)
class Histogram:
    """Counts between edges.

    Attributes:
        edges: ascending, one more than counts.
        counts: int64 `[bins]`.
    """

    edges: tuple[float, ...]
    counts: Counts

    @property
    def rows(self) -> int:
        return int(self.counts.sum())


@dataclass(frozen=True)
class Ratio:
    """A share of word pieces over many texts: sum of parts / sum of wholes.

    Attributes:
        rows: texts.
        share: in all.
        deviation: how much one text's part deviates from `share` of its whole, over the mean whole; None where only the share is known. The standard
            error of `share` is this over the root of `rows`: word pieces of one text are not independent.
    """

    rows: int
    share: float
    deviation: float | None


@dataclass(frozen=True)
class Layout:
    """Bins in which the reference was counted.

    Attributes:
        labels: class names, in order.
        confidence: edges.
        characters: edges.
        tokens: edges.
        multi_label: the answer is a set of classes; the reference then counts the likeliest one.
    """

    labels: tuple[str, ...] = ()
    confidence: tuple[float, ...] = CONFIDENCE_EDGES
    characters: tuple[float, ...] = LENGTH_EDGES
    tokens: tuple[float, ...] = TOKEN_EDGES
    multi_label: bool = False


@dataclass(frozen=True)
class Slice:
    """Requests of a stretch of time."""

    start: datetime
    seconds: int
    requests: int
    failures: int


@dataclass(frozen=True)
class Summary:
    """What is known of many rows; a part that is None is not known.

    Attributes:
        name: what it is called in sentences.
        rows: answered texts.
        predicted: rows by class.
        confidence: of the chosen class.
        characters: length of the text.
        tokens: length in word pieces.
        scripts: texts by script, those without a letter left out.
        unknown: share of word pieces that are unknown.
        requests: calls, answered or not.
        codes: calls by gRPC code.
        latency: milliseconds of answered calls.
        texts: a random sample.
        slices: calls over time.
        first: time of the first record.
        last: time of the last record.
    """

    name: str
    rows: int
    predicted: Mapping[str, int] | None = None
    confidence: Histogram | None = None
    characters: Histogram | None = None
    tokens: Histogram | None = None
    scripts: Mapping[str, int] | None = None
    unknown: Ratio | None = None
    requests: int = 0
    codes: Mapping[str, int] = field(default_factory=dict)
    latency: Histogram | None = None
    texts: tuple[str, ...] = ()
    slices: tuple[Slice, ...] = ()
    first: datetime | None = None
    last: datetime | None = None

    @property
    def failures(self) -> int:
        """Calls that the server's side did not answer."""
        return sum(count for code, count in self.codes.items() if code != "OK" and code not in REFUSALS)

    @property
    def refusals(self) -> int:
        """Calls that were refused for what the caller did."""
        return sum(count for code, count in self.codes.items() if code in REFUSALS)


class Window:
    """Takes records one by one; its memory does not grow with them.

    Args:
        layout: the bins.
        seed: of the sample of texts.
    """

    def __init__(self, layout: Layout, seed: int = 0) -> None:
        self.rows = 0
        self._layout = layout
        self._labels = dict.fromkeys(layout.labels, 0)
        self._confidence = _Bins(layout.confidence)
        self._characters = _Bins(layout.characters)
        self._tokens = _Bins(layout.tokens)
        self._latency = _Bins(LATENCY_EDGES)
        self._unknown = _RatioSums()
        self._scripts: dict[str, int] = {}
        self._codes: dict[str, int] = {}
        self._requests = 0
        self._sample = Sample(seed)
        self._time = _Timeline()

    def add(self, record: Mapping[str, Any], time_s: float, outputs: bool = True) -> None:
        """Counts one record of kind `request`.

        Args:
            record: as `serving.journal` writes it.
            time_s: its time, seconds since 1970.
            outputs: False when another version answered: then its label and score say nothing here.
        """
        code = record.get("code")
        code = code if isinstance(code, str) else "UNKNOWN"
        answered = code == "OK"
        identifier = record.get("id")
        if not isinstance(identifier, str) or identifier.endswith(":0") or ":" not in identifier:
            self._requests += 1
            if code in self._codes or len(self._codes) < MOST_LABELS:
                self._codes[code] = self._codes.get(code, 0) + 1
            self._time.add(time_s, failed=not answered and code not in REFUSALS)
            if answered:
                self._latency.add(record.get("ms"))
        if not answered:
            return
        self.rows += 1
        if outputs:
            self._add_answer(record)
        self._characters.add(record.get("length"))
        tokens = record.get("tokens")
        self._tokens.add(tokens)
        self._unknown.add(record.get("unknown"), tokens)
        text = record.get("text")
        if isinstance(text, str):
            script = main_script(text)
            if script != NO_SCRIPT:
                self._scripts[script] = self._scripts.get(script, 0) + 1
            self._sample.add(text)

    def summary(self, name: str) -> Summary:
        """What has been counted so far, called `name`."""
        return Summary(
            name=name,
            rows=self.rows,
            predicted=dict(self._labels) if any(self._labels.values()) else None,
            confidence=self._confidence.histogram(),
            characters=self._characters.histogram(),
            tokens=self._tokens.histogram(),
            scripts=dict(self._scripts) or None,
            unknown=self._unknown.ratio(),
            requests=self._requests,
            codes=dict(self._codes),
            latency=self._latency.histogram(),
            texts=tuple(self._sample.texts),
            slices=self._time.slices(),
            first=_moment(self._time.first),
            last=_moment(self._time.last),
        )

    def _add_answer(self, record: Mapping[str, Any]) -> None:
        label, score = record.get("label"), record.get("score")
        if self._layout.multi_label:
            # The reference counts the likeliest class, the answer is every class over its threshold.
            probabilities = record.get("probabilities")
            if not isinstance(probabilities, Mapping) or not probabilities:
                return
            label = max(probabilities, key=probabilities.__getitem__)
            score = probabilities[label]
        if isinstance(label, str):
            label = label if label in self._labels or not self._layout.labels else OTHER_LABEL
            if label in self._labels or len(self._labels) < MOST_LABELS:
                self._labels[label] = self._labels.get(label, 0) + 1
        self._confidence.add(score)


class _Bins:
    """Counts values between edges; what is below the first or above the last edge counts in the outermost bin."""

    def __init__(self, edges: tuple[float, ...]) -> None:
        self._edges = edges
        self._inner = np.asarray(edges[1:-1], np.float64)
        self._counts = np.zeros(len(edges) - 1, np.int64)
        self._waiting: list[float] = []

    def add(self, value: Any) -> None:
        # bool is an int, and no number here.
        if type(value) not in (float, int) or not math.isfinite(value) or value < 0:
            return
        self._waiting.append(value)
        if len(self._waiting) >= CHUNK:
            self._flush()

    def histogram(self) -> Histogram | None:
        self._flush()
        return Histogram(self._edges, self._counts.copy()) if self._counts.any() else None

    def _flush(self) -> None:
        if self._waiting:
            found = np.searchsorted(self._inner, np.asarray(self._waiting, np.float64), side="right")
            self._counts += np.bincount(found, minlength=len(self._counts))
            self._waiting.clear()


class _RatioSums:
    """Sums for a share of wholes and its standard error."""

    def __init__(self) -> None:
        self._rows = 0
        self._part = self._whole = self._part_squares = self._products = self._whole_squares = 0.0

    def add(self, share: Any, whole: Any) -> None:
        if type(whole) is not int or whole <= 0 or type(share) not in (float, int) or not 0 <= share <= 1:
            return
        part = share * whole
        self._rows += 1
        self._part += part
        self._whole += whole
        self._part_squares += part * part
        self._products += part * whole
        self._whole_squares += whole * whole

    def ratio(self) -> Ratio | None:
        if not self._rows:
            return None
        share = self._part / self._whole
        squares = self._part_squares - 2 * share * self._products + share * share * self._whole_squares
        return Ratio(self._rows, share, math.sqrt(max(0.0, squares) / self._rows) / (self._whole / self._rows))


class Sample:
    """A uniform sample of the texts that came by, of a fixed size (Vitter's algorithm R).

    Args:
        seed: of the choice.
    """

    def __init__(self, seed: int) -> None:
        self.texts: list[str] = []
        self._seen = 0
        self._random = random.Random(seed)

    def add(self, text: str) -> None:
        """Keeps the beginning of the text, or not."""
        self._seen += 1
        if len(self.texts) < SAMPLED_TEXTS:
            self.texts.append(text[:MOST_TEXT])
        elif (place := int(self._random.random() * self._seen)) < SAMPLED_TEXTS:
            self.texts[place] = text[:MOST_TEXT]


class _Timeline:
    """Requests and failures in slices of equal length, few enough to draw."""

    def __init__(self) -> None:
        self.first = math.inf
        self.last = -math.inf
        self._seconds = FIRST_SLICE_S
        self._slices: dict[int, list[int]] = {}

    def add(self, time_s: float, failed: bool) -> None:
        self.first, self.last = min(self.first, time_s), max(self.last, time_s)
        place = int(time_s // self._seconds)
        found = self._slices.get(place)
        if found is None:
            found = self._slices[place] = [0, 0]
        found[0] += 1
        found[1] += failed
        while len(self._slices) > MOST_SLICES or (self.last - self.first) / self._seconds > MOST_SLICES:
            self._double()

    def slices(self) -> tuple[Slice, ...]:
        return tuple(
            Slice(datetime.fromtimestamp(place * self._seconds, timezone.utc), self._seconds, *found)
            for place, found in sorted(self._slices.items())
        )

    def _double(self) -> None:
        self._seconds *= 2
        merged: dict[int, list[int]] = {}
        for place, (requests, failures) in self._slices.items():
            found = merged.setdefault(place // 2, [0, 0])
            found[0] += requests
            found[1] += failures
        self._slices = merged


def _moment(time_s: float) -> datetime | None:
    return datetime.fromtimestamp(time_s, timezone.utc) if math.isfinite(time_s) else None
