"""A report in lines of text. Frees terminals and mails from the numbers' JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving.monitor.statistics import histogram_quantile
from serving.monitor.verdict import TITLES

if TYPE_CHECKING:
    from serving.monitor.report import Report

HEADLINES = {
    "ok": "OK: nothing has moved more than chance and the limits allow.",
    "warn": "WARN: something to look at.",
    "alarm": "ALARM: what the model sees or answers is not what it was made for, or the service is not well.",
    "too_few": "TOO FEW requests to judge.",
}


def span(report: Report) -> str:
    """From when to when, and how much, in one line."""
    window = report.window
    if not window.first or not window.last:
        return "no requests in the window"
    first, last = (time.isoformat(sep=" ", timespec="minutes").removesuffix("+00:00") for time in (window.first, window.last))
    return f"{window.rows:,} answered texts in {window.requests:,} requests, {first} to {last} UTC"


def text(report: Report) -> str:
    """Headline, reasons, one line a check, notes."""
    lines = [f"{report.model} {report.version}: {HEADLINES[report.verdict.level]}", f"  {span(report)}"]
    if latency := report.window.latency:
        p50, p95 = (histogram_quantile(latency.edges, latency.counts, share) for share in (0.5, 0.95))
        lines.append(f"  latency p50 {p50:.3g} ms, p95 {p95:.3g} ms; {report.window.failures:,} failed, {report.window.refusals:,} refused")
    if report.verdict.reasons:
        lines += ["", "Why:", *(f"  - {reason}" for reason in report.verdict.reasons)]
    lines += ["", "Checks:"]
    lines += [
        f"  {check.level:8} {check.reason if check.comparisons else f'{TITLES[check.name]}: {check.reason}'}"
        for check in report.verdict.checks
    ]
    if report.notes:
        lines += ["", *report.notes]
    return "\n".join(lines)
