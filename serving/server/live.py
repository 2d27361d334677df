"""What the server does right now, as one JSON-ready dict: models, versions, rates, latencies. Frees the page from metrics and models.

In: the server's handlers and the text that Prometheus reads. Out: numbers over the last minute, without any path of the server. Counts nothing itself:
rates are differences between two looks at the counters, so nobody pays for them while nobody looks.

| looks | window |
|---|---|
| the first | since the server started |
| the second, and all within the first minute | since the first |
| later ones | the last 60 to 65 seconds |
| the first after an hour without any | since the last one an hour ago |
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from serving import wire
from serving.errors import RegistryError
from serving.registry import Published
from serving.server.status import Status

WINDOW_S = 60.0
KEPT_EVERY_S = 5.0  # looks that later ones are compared with
LOOK_EVERY_S = 0.5  # more looks than that, by many open pages, get the same answer
INFERENCE = frozenset({"predict", "classify", "regress", "multiinference"})
MAX_CLASSES = 1000
NAME_LENGTH = 100  # a longer name is cut in the metrics
_SAMPLE = re.compile(r"(serving_requests_total|serving_request_seconds_bucket|serving_requests_in_flight)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")

Series = tuple[str, str]  # model, version; "" for a request that no version answered


class Entry(Protocol):
    """One version of a model."""

    version: int
    path: Any
    state: str
    message: str


class Models(Protocol):
    """What is configured, and what became of it."""

    def summary(self) -> Mapping[str, Mapping[str, Any]]: ...
    def statuses(self, name: str, version: int | None = None) -> Sequence[Any]: ...


class Metrics(Protocol):
    """Counters."""

    def record(self, model: str, method: str, entrypoint: str, code: str, seconds: float, version: int | None) -> None: ...
    def render(self) -> str: ...


class Handlers(Protocol):
    """What this room asks of the server."""

    @property
    def models(self) -> Models: ...
    @property
    def metrics(self) -> Metrics: ...
    def acquire(self, name: str, version: int | None, version_label: str) -> AbstractContextManager[Any]: ...
    def is_ready(self) -> bool: ...


@dataclass
class Counts:
    """The counters at one moment.

    Attributes:
        moment: of the clock.
        requests: answered, by series and gRPC code; inference only.
        buckets: answered within each bound of seconds, cumulative, by series.
        in_flight: at work over gRPC.
    """

    moment: float = 0.0
    requests: dict[Series, dict[str, float]] = field(default_factory=dict)
    buckets: dict[Series, dict[float, float]] = field(default_factory=dict)
    in_flight: int = 0


def read_counts(text: str, moment: float = 0.0) -> Counts:
    """The counters in a Prometheus text of `serving.server.metrics`."""
    counts = Counts(moment)
    for match in map(_SAMPLE.fullmatch, text.splitlines()):
        if match is None:
            continue
        name, inside, number = match.groups()
        labels = {key: _ESCAPE.sub(_unescaped, value) for key, value in _LABEL.findall(inside or "")}
        series = (labels.get("model", ""), labels.get("version", ""))
        if name == "serving_requests_in_flight":
            counts.in_flight = int(float(number))
        elif name == "serving_request_seconds_bucket":
            counts.buckets.setdefault(series, {})[float(labels["le"])] = float(number)
        elif labels.get("method") in INFERENCE:
            by_code = counts.requests.setdefault(series, {})
            by_code[labels["code"]] = by_code.get(labels["code"], 0.0) + float(number)
    return counts


def _unescaped(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]


def quantile(before: Mapping[float, float], after: Mapping[float, float], share: float) -> float | None:
    """The time within which `share` of the requests between two looks were answered; None when there were none.

    Within a bucket the requests are taken as evenly spread; over the last bound, the last bound is the answer (as Prometheus does it).
    """
    bounds = sorted(after)
    cumulative = [after[bound] - before.get(bound, 0.0) for bound in bounds]
    if not cumulative or cumulative[-1] <= 0:
        return None
    wanted, low, below = share * cumulative[-1], 0.0, 0.0
    for bound, count in zip(bounds, cumulative, strict=True):
        if count >= wanted:
            return low if bound == float("inf") else low + (bound - low) * (wanted - below) / max(count - below, 1e-12)
        low, below = bound, count
    return low


class Window:
    """Two looks at the counters: one now, and one to compare with."""

    def __init__(self, render: Callable[[], str], clock: Callable[[], float] = time.monotonic) -> None:
        self._render, self._clock = render, clock
        self._lock = threading.Lock()
        self._kept: deque[Counts] = deque([Counts(clock())])
        self._latest: tuple[Counts, Counts] | None = None

    def look(self) -> tuple[Counts, Counts]:
        """The look to compare with, and the one now."""
        with self._lock:
            moment = self._clock()
            if self._latest is not None and moment - self._latest[1].moment < LOOK_EVERY_S:
                return self._latest
            now = read_counts(self._render(), moment)
            while len(self._kept) > 1 and moment - self._kept[0].moment > WINDOW_S + KEPT_EVERY_S:
                self._kept.popleft()
            before = self._kept[0]
            if len(self._kept) == 1 and moment - before.moment > WINDOW_S + KEPT_EVERY_S:
                self._kept.clear()
            elif len(self._kept) == 1 and self._latest is None:
                self._kept.clear()  # the start has served as long as nobody had looked
            if not self._kept or moment - self._kept[-1].moment >= KEPT_EVERY_S:
                self._kept.append(now)
            self._latest = (before, now)
            return self._latest


class Live:
    """The state of one server."""

    def __init__(self, handlers: Handlers, clock: Callable[[], float] = time.monotonic) -> None:
        self._handlers = handlers
        self._window = Window(handlers.metrics.render, clock)
        self._described: dict[tuple[str, int], dict[str, Any]] = {}

    def state(self) -> dict[str, Any]:
        """Everything, JSON-ready; versions are text, because JavaScript's numbers do not hold all of them.

        Returns:
            `ready`, `window_s`, `in_flight`, `models` (with `labels` and `versions`), and `other`: requests for models that are not configured.
        """
        before, now = self._window.look()
        seconds = max(now.moment - before.moment, 1e-9)
        rows = {series: _rates(series, before, now, seconds) for series in now.requests}
        summary = self._handlers.models.summary()
        self._described = {key: value for key, value in self._described.items() if key[1] in summary.get(key[0], {}).get("versions", {})}
        models = [self._model(name, model["labels"], rows, seconds) for name, model in sorted(summary.items())]
        configured = {name[:NAME_LENGTH] for name in summary}
        return {
            "ready": self._handlers.is_ready(),
            "window_s": round(seconds, 1),
            "in_flight": now.in_flight,
            "models": models,
            "other": _total([row for (name, _), row in rows.items() if name not in configured]),
        }

    def _model(self, name: str, labels: Mapping[str, int], rows: Mapping[Series, dict[str, Any]], seconds: float) -> dict[str, Any]:
        shown = name[:NAME_LENGTH]
        none = _rates((shown, ""), Counts(), Counts(), seconds)
        try:
            entries = self._handlers.models.statuses(name)
        except Status:  # no version was found yet
            entries = []
        return {
            "name": name,
            "labels": {label: str(version) for label, version in sorted(labels.items())},
            "versions": [
                {
                    "version": str(entry.version),
                    "state": entry.state,
                    "message": entry.message,
                    **rows.get((shown, str(entry.version)), none),
                    **self._answers(name, entry),
                }
                for entry in entries
            ],
            "unanswered": rows.get((shown, ""), none),
        }

    def _answers(self, name: str, entry: Entry) -> dict[str, Any]:
        """What a version can be asked; nothing while it does not answer."""
        key = (name, entry.version)
        if entry.state != "AVAILABLE":
            self._described.pop(key, None)
            return {}
        if key not in self._described:
            try:
                with self._handlers.acquire(name, entry.version, "") as loaded:
                    self._described[key] = {**describe(loaded.signatures), **_of_manifest(Published(entry.path, name, entry.version))}
            except Status:  # gone since
                return {}
        return self._described[key]


def _rates(series: Series, before: Counts, now: Counts, seconds: float) -> dict[str, Any]:
    codes = now.requests.get(series, {})
    old = before.requests.get(series, {})
    errors = {code: int(count - old.get(code, 0)) for code, count in codes.items() if code != "OK" and count > old.get(code, 0)}
    new = sum(codes.values()) - sum(old.values())
    buckets = before.buckets.get(series, {}), now.buckets.get(series, {})
    return {
        "requests": int(sum(codes.values())),
        "rate": round(new / seconds, 3),
        "errors": errors,
        "p50_ms": _milliseconds(quantile(*buckets, 0.5)),
        "p95_ms": _milliseconds(quantile(*buckets, 0.95)),
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 2)


def _total(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    errors: dict[str, int] = {}
    for row in rows:
        for code, count in row["errors"].items():
            errors[code] = errors.get(code, 0) + count
    return {"requests": sum(row["requests"] for row in rows), "rate": round(sum(row["rate"] for row in rows), 3), "errors": errors}


def describe(signatures: Mapping[str, Any]) -> dict[str, Any]:
    """What the page can ask of a version.

    Args:
        signatures: SignatureDefs by key.

    Returns:
        `inputs`: names of its text inputs, `text` first, and empty when `serving_default` takes anything else than columns of text;
        `explain`: `gradients`, `left_out` (probabilities of texts with one word less can be compared) or empty.
    """
    default = signatures.get("serving_default")
    inputs = sorted(default.inputs, key=lambda name: (name != "text", name)) if default is not None else []
    if default is None or not all(_is_text_column(default.inputs[name]) for name in inputs):
        return {"inputs": [], "explain": ""}
    explain = signatures.get("explain")
    if explain is not None and set(explain.inputs) <= set(inputs) and {"pieces", "attributions"} <= set(explain.outputs):
        return {"inputs": inputs, "explain": "gradients"}
    return {"inputs": inputs, "explain": "left_out" if inputs[:1] == ["text"] and "probabilities" in default.outputs else ""}


def _is_text_column(info: Any) -> bool:
    return info.dtype == wire.DT_STRING and (info.tensor_shape.unknown_rank or len(info.tensor_shape.dim) == 1)


def _of_manifest(published: Published) -> dict[str, Any]:
    """Class names, and how several of them are joined; empty for a model that was published by something else."""
    try:
        manifest = published.manifest
    except RegistryError:
        manifest = {}
    classes = manifest.get("labels")
    if not isinstance(classes, list) or not all(isinstance(one, str) for one in classes):
        classes = []
    separator = ""
    if manifest.get("task") == "multi_label":
        *_, separator = _walk(manifest, "config", "data", "label_separator")
    return {"classes": classes[:MAX_CLASSES], "separator": separator if isinstance(separator, str) else ""}


def _walk(value: Any, *keys: str) -> Iterator[Any]:
    for key in keys:
        value = value.get(key, "") if isinstance(value, dict) else ""
        yield value
