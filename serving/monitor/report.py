"""Records and a manifest -> a `Report`. The loop around the pure verdict: reads once, sorts records into windows, keeps what is needed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from serving.errors import ConfigError
from serving.monitor import render
from serving.monitor.checks import References
from serving.monitor.limits import DEFAULT, Limits
from serving.monitor.reference import read_reference
from serving.monitor.statistics import histogram_quantile
from serving.monitor.verdict import Verdict, to_dict, verdict
from serving.monitor.window import Layout, Sample, Summary, Window

EARLIER = "the earlier window"
SOURCES = ("server", "client")
MOST_OTHERS = 20  # other models and versions that are named
_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True)
class Report:
    """A verdict and what it was made from.

    Attributes:
        model: name.
        version: number.
        verdict: the answer.
        window: what was judged.
        references: what it was compared with.
        limits: what was tolerated.
        since: start of the window; None: from the first record.
        until: end of the window, not in it; None: to the last.
        notes: what a reader should know about the records, such as those that were not counted.
    """

    model: str
    version: int
    verdict: Verdict
    window: Summary
    references: References
    limits: Limits
    since: datetime | None = None
    until: datetime | None = None
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """3 for an alarm, else 0; `too_few` and `warn` speak in the text only, so that cron wakes nobody for them."""
        return self.verdict.exit_code

    def to_dict(self) -> dict[str, Any]:
        """Everything but the texts, as JSON has it."""
        return {
            "model": self.model,
            "version": self.version,
            **to_dict(self.verdict),
            "since": _iso(self.since),
            "until": _iso(self.until),
            "window": _summary(self.window),
            "earlier": _summary(self.references.earlier) if self.references.earlier else None,
            "limits": dict(vars(self.limits)),
            "notes": list(self.notes),
        }

    def text(self) -> str:
        """For a terminal or a mail."""
        return render.text(self)

    def html(self) -> str:
        """One page with plots, without scripts or anything from elsewhere."""
        from serving.monitor.page import page

        return page(self)


def monitor(
    records: Iterable[Mapping[str, Any]],
    manifest: Mapping[str, Any],
    *,
    reference_texts: Iterable[str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    reference_since: datetime | None = None,
    reference_until: datetime | None = None,
    limits: Limits = DEFAULT,
    seed: int = 0,
) -> Report:
    """Compares a window of the journal with what the model was made for.

    Args:
        records: of `serving.journal`; read once. Feedback, and requests of other models or versions, are passed over.
        manifest: of the version that is judged.
        reference_texts: texts the model was made for, such as those of its training file, for the domain classifier.
        since: start of the window; a time without a zone is UTC.
        until: end of the window, not in it.
        reference_since: start of an earlier window of the journal. It is the reference for latency and errors, and for what the manifest lacks. Of
            other versions of the model its inputs count, and not their answers.
        reference_until: its end, not in it; without it the earlier window ends where the window starts.
        limits: what is tolerated.
        seed: of samples and permutations: the same records give the same report.

    Raises:
        IntegrityError: the manifest's reference is broken.
        ConfigError: the windows are empty or overlap.
    """
    layout, reference = read_reference(manifest)
    spans = _spans(since, until, reference_since, reference_until)
    model, version = str(manifest.get("name", "")), int(manifest.get("version", 0))
    reader = _Reader(model, version, layout, spans, seed)
    for record in records:
        reader.add(record)
    source = max(SOURCES, key=lambda one: reader.seen[one])
    window = reader.windows[source][0].summary("the window")
    earlier = reader.windows[source][1].summary(EARLIER) if spans[1] else None
    sample = Sample(seed)
    for text in reference_texts or ():
        sample.add(text)
    references = References(reference, earlier, tuple(sample.texts))
    return Report(
        model=model,
        version=version,
        verdict=verdict(window, references, limits, seed),
        window=window,
        references=references,
        limits=limits,
        since=since,
        until=until,
        notes=reader.notes(source, torn=getattr(records, "torn", 0)),
    )


def moment(text: str, now: datetime | None = None) -> datetime:
    """A time as people give it to a command: `2026-11-24`, `2026-11-24T13:00`, `2026-11-24T13:00+01:00`, or as long ago: `90m`, `24h`, `7d`.

    Raises:
        ConfigError: anything else.
    """
    now = now or datetime.now(timezone.utc)
    try:
        if ago := _AGO.fullmatch(text.strip()):
            return now - timedelta(seconds=float(ago[1]) * _UNITS[ago[2]])
        # Python 3.10 does not know Z.
        return _aware(datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text.strip())))
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{text!r} is no time. Expected such as 2026-11-24, 2026-11-24T13:00 (UTC), or how long ago: 90m, 24h, 7d."
        ) from None


Span = tuple[float, float]


def _spans(
    since: datetime | None, until: datetime | None, reference_since: datetime | None, reference_until: datetime | None
) -> tuple[Span, Span | None]:
    """Start and end of the window and of the earlier window, in seconds since 1970."""
    window = (_seconds(since, -float("inf")), _seconds(until, float("inf")))
    if window[0] >= window[1]:
        raise ConfigError(f"The window is empty: since {_iso(since)} is not before until {_iso(until)}. Give them the other way round.")
    if reference_since is None and reference_until is None:
        return window, None
    earlier = (_seconds(reference_since, -float("inf")), _seconds(reference_until, window[0]))
    if earlier[0] >= earlier[1]:
        raise ConfigError(
            f"The earlier window is empty: it starts at {_iso(reference_since) or 'the first record'} and ends at "
            f"{_iso(reference_until) or _iso(since) or 'the first record'}. Let it end later, or give the window a `since` after it."
        )
    if earlier[0] < window[1] and window[0] < earlier[1]:
        raise ConfigError(
            f"The earlier window, to {_iso(reference_until) or 'the last record'}, overlaps the window, from {_iso(since) or 'the first record'}. "
            "A window cannot be compared with itself: let the earlier one end where the window starts."
        )
    return window, earlier


@dataclass
class _Reader:
    """Sorts records into windows and counts those that belong to none."""

    model: str
    version: int
    layout: Layout
    spans: tuple[Span, Span | None]
    seed: int
    windows: dict[str, tuple[Window, Window]] = field(init=False)
    seen: dict[str, int] = field(init=False)
    timeless: int = 0
    dropped: int = 0
    others: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.windows = {source: (Window(self.layout, self.seed), Window(self.layout, self.seed + 1)) for source in SOURCES}
        self.seen = dict.fromkeys(SOURCES, 0)

    def add(self, record: Mapping[str, Any]) -> None:
        kind = record.get("kind")
        if kind not in ("request", "drops"):
            return
        time_s = _record_time(record.get("time"))
        if time_s is None:
            self.timeless += 1
            return
        span, earlier = self.spans
        current = span[0] <= time_s < span[1]
        if kind == "drops":
            count = record.get("count")
            self.dropped += count if current and type(count) is int else 0
            return
        if not current and not (earlier and earlier[0] <= time_s < earlier[1]):
            return
        version = record.get("version")
        # A call by version label that failed may not know which version would have answered.
        mine = version == self.version or (record.get("code") != "OK" and not version)
        if record.get("model") != self.model or (current and not mine):
            other = f"{record.get('model')} {version}"
            if other in self.others or len(self.others) < MOST_OTHERS:
                self.others[other] = self.others.get(other, 0) + 1
            return
        source = record.get("source")
        source = source if source in self.windows else SOURCES[0]
        self.seen[source] += current
        self.windows[source][0 if current else 1].add(record, time_s, outputs=mine)

    def notes(self, source: str, torn: int) -> tuple[str, ...]:
        found = []
        other = next(one for one in SOURCES if one != source)
        if self.seen[other]:
            found.append(
                f"Judged by the {self.seen[source]:,} records of the {source}; the {self.seen[other]:,} of the {other} may be of the same requests."
            )
        if self.others:
            most = sorted(self.others.items(), key=lambda item: -item[1])[:5]
            found.append(f"Passed over, of other models and versions: {', '.join(f'{name} ({count:,})' for name, count in most)}.")
        if self.timeless:
            found.append(f"Passed over, without a readable time: {self.timeless:,}.")
        if self.dropped:
            found.append(
                f"The journal dropped {self.dropped:,} records of the window, as its disk or queue was full; what they were is not known."
            )
        if torn:
            found.append(f"Skipped, as they are no whole records: {torn:,} lines.")
        return tuple(found)


def _record_time(value: Any) -> float | None:
    if not isinstance(value, str):
        return None
    try:
        found = datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith("Z") else value)
    except ValueError:
        return None
    return _aware(found).timestamp()


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


def _seconds(time: datetime | None, otherwise: float) -> float:
    return _aware(time).timestamp() if time else otherwise


def _iso(time: datetime | None) -> str | None:
    return _aware(time).isoformat(timespec="seconds") if time else None


def _summary(summary: Summary) -> dict[str, Any]:
    latency = summary.latency
    return {
        "rows": summary.rows,
        "requests": summary.requests,
        "codes": dict(summary.codes),
        "failures": summary.failures,
        "refusals": summary.refusals,
        "sampled_texts": len(summary.texts),
        "first": _iso(summary.first),
        "last": _iso(summary.last),
        **{
            f"p{share:.0f}_ms": round(histogram_quantile(latency.edges, latency.counts, share / 100), 3) if latency else None
            for share in (50, 95, 99)
        },
    }
