"""Counters and histograms as Prometheus text. Frees the server from a client library, whose naming rules forbid TensorFlow Serving's names.

TensorFlow Serving's own metrics come under their own names (`:tensorflow:serving:...`), so dashboards and alerts fit both servers; they carry no
version. Ours (`serving_...`) do.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Mapping
from typing import Any

# TensorFlow Serving: 33 buckets from 10 microseconds, each 1.8 times the one before (util/prometheus_exporter, servables/tensorflow/util.cc).
LATENCY_BUCKETS_US = tuple(10 * 1.8**power for power in range(33))
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
MAX_SERIES = 2000  # a client that asks for ever new models must not fill the memory

Labels = tuple[tuple[str, str], ...]


class _Metric:
    def __init__(self, name: str, kind: str, meaning: str, buckets: tuple[float, ...] = ()) -> None:
        self.name, self.kind, self.meaning, self.buckets = name, kind, meaning, buckets
        self.values: dict[Labels, Any] = {}

    def add(self, labels: Mapping[str, str], value: float) -> None:
        key = tuple(labels.items())
        if key not in self.values:
            if len(self.values) >= MAX_SERIES:
                return
            self.values[key] = [[0] * (len(self.buckets) + 1), 0.0] if self.buckets else 0.0
        if self.buckets:
            series = self.values[key]
            series[0][bisect.bisect_left(self.buckets, value)] += 1
            series[1] += value
        else:
            self.values[key] += value

    def lines(self) -> list[str]:
        found = [f"# HELP {self.name} {self.meaning}"] if self.meaning else []
        found.append(f"# TYPE {self.name} {self.kind}")
        for labels, value in self.values.items():
            if not self.buckets:
                found.append(f"{self.name}{_braces(labels)} {_number(value)}")
                continue
            total = 0
            for bound, count in zip([*self.buckets, float("inf")], value[0], strict=True):
                total += count
                found.append(f"{self.name}_bucket{_braces((*labels, ('le', _number(bound))))} {total}")
            found.append(f"{self.name}_sum{_braces(labels)} {_number(value[1])}")
            found.append(f"{self.name}_count{_braces(labels)} {total}")
        return found


class Metrics:
    """What a server counts."""

    def __init__(
        self, models: Callable[[], Mapping[str, Mapping[str, Any]]] = dict, gauges: Callable[[], Mapping[str, float]] = dict
    ) -> None:
        """Counts nothing yet.

        Args:
            models: configured models with the states of their versions, asked at every scrape.
            gauges: further values asked at every scrape, by metric name.
        """
        self._models, self._gauges = models, gauges
        self._lock = threading.Lock()
        self._count = _Metric(":tensorflow:serving:request_count", "counter", "")
        self._latency = _Metric(":tensorflow:serving:request_latency", "histogram", "", LATENCY_BUCKETS_US)
        self._requests = _Metric("serving_requests_total", "counter", "Requests by model, version, method, entry point and gRPC code.")
        self._seconds = _Metric(
            "serving_request_seconds", "histogram", "Time to answer, in seconds, by model and version.", LATENCY_BUCKETS_S
        )
        self._batches = _Metric("serving_batch_rows", "histogram", "Rows that ran together.", tuple(float(size) for size in ROW_BUCKETS))
        self._waits = _Metric("serving_batch_wait_seconds", "histogram", "Longest wait in the queue, per batch.", LATENCY_BUCKETS_S)

    def record(self, model: str, method: str, entrypoint: str, code: str, seconds: float, version: int | None) -> None:
        """One answered request.

        Args:
            model: as the request names it.
            method: `Predict` (gRPC) or `predict` (REST), and its like.
            entrypoint: `GRPC` or `REST`.
            code: name of the gRPC status.
            seconds: time it took.
            version: that answered; None when none did.
        """
        model = model[:100]  # as sent: anybody can send anything
        with self._lock:
            # The real server counts inference over gRPC, and everything over REST; latency only of what went well.
            if entrypoint == "REST" or method in ("Predict", "Classify", "Regress"):
                self._count.add({"model_name": model, "status": code}, 1)
                if code == "OK":
                    self._latency.add({"model_name": model, "API": method, "entrypoint": entrypoint}, seconds * 1e6)
            shown = "" if version is None else str(version)
            self._requests.add({"model": model, "version": shown, "method": method.lower(), "entrypoint": entrypoint, "code": code}, 1)
            if version is not None:
                self._seconds.add({"model": model, "version": shown}, seconds)

    def batch(self, model: str, version: int, rows: int, waited_s: float) -> None:
        """One batch that ran."""
        with self._lock:
            self._batches.add({"model": model, "version": str(version)}, rows)
            self._waits.add({"model": model, "version": str(version)}, waited_s)

    def render(self) -> str:
        """Prometheus' text format."""
        with self._lock:
            lines = [
                line
                for metric in (self._count, self._latency, self._requests, self._seconds, self._batches, self._waits)
                for line in metric.lines()
            ]
        states = _Metric("serving_model_version_state", "gauge", "1 for the state that a configured model's version is in.")
        labels = _Metric("serving_model_label", "gauge", "The version that a version label points to.")
        for name, model in self._models().items():
            for version, state in model["versions"].items():
                states.add({"model": name, "version": str(version), "state": state}, 1)
            for label, version in model["labels"].items():
                labels.add({"model": name, "label": label}, version)
        for name, value in self._gauges().items():
            gauge = _Metric(name, "gauge", "")
            gauge.add({}, value)
            lines += gauge.lines()
        return "\n".join([*lines, *states.lines(), *labels.lines()]) + "\n"


def _braces(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value[:200].replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if float(value).is_integer() else f"{value:.9g}"
