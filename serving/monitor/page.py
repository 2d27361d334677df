"""A report as one HTML page: plots as inline SVG, no script, nothing from elsewhere. Frees the report from markup.

In: a `Report`. Out: a string that a browser shows offline, light or dark as the reader's system is. Everything that came from data is escaped, and the
page's own policy forbids scripts and requests. Holds no text of a user; of the words that tell texts apart only those that several texts share.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np

from serving.monitor.render import HEADLINES, span
from serving.monitor.statistics import histogram_quantile
from serving.monitor.verdict import MEASURES, TITLES, Check
from serving.monitor.window import Histogram, Slice

if TYPE_CHECKING:
    from serving.monitor.report import Report

WIDTH, HEIGHT = 460, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 10, 30
MOST_BARS = 30

# Contrast of text at least 4.5 and of marks at least 3 in both themes; blue and orange stay apart for the colour-blind.
STYLE = """
:root { color-scheme: light dark; --surface: #fff; --panel: #f5f6f8; --ink: #1b1f24; --muted: #59636e; --grid: #d5d9de;
  --ours: #1f6fd0; --theirs: #c25700; --ok: #1a7f37; --warn: #9a6700; --alarm: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --surface: #14171a; --panel: #1f2429; --ink: #e6e9ec; --muted: #9aa4ae; --grid: #3a4149;
  --ours: #5aa2f5; --theirs: #f0883e; --ok: #3fb950; --warn: #d29922; --alarm: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--surface); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 8px 0 4px; }
h2 { font-size: 1.15rem; margin: 32px 0 12px; padding-top: 16px; border-top: 1px solid var(--grid); }
.lead, .note, figcaption small { color: var(--muted); }
.note { font-size: 0.875rem; }
.verdict { background: var(--panel); border-left: 6px solid var(--muted); border-radius: 4px; padding: 12px 16px; margin: 16px 0; }
.verdict.ok { border-color: var(--ok); } .verdict.warn { border-color: var(--warn); } .verdict.alarm { border-color: var(--alarm); }
.verdict p { margin: 0; font-weight: 600; } .verdict ul { margin: 8px 0 0; padding-left: 20px; }
.level { font-weight: 600; white-space: nowrap; }
.level.ok { color: var(--ok); } .level.warn { color: var(--warn); } .level.alarm { color: var(--alarm); } .level.skipped { color: var(--muted); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: 100%; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px 6px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--grid); }
th { color: var(--muted); font-weight: 500; }
td.number, th.number { text-align: right; white-space: nowrap; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 24px; }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 500; margin-bottom: 4px; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--muted); font-size: 11px; }
.ours { fill: var(--ours); } .theirs { fill: var(--theirs); } .failed { fill: var(--alarm); } .axis { stroke: var(--grid); }
.key { display: inline-block; width: 10px; height: 10px; margin: 0 4px 0 12px; border-radius: 2px; }
.key.ours { background: var(--ours); } .key.theirs { background: var(--theirs); } .key.failed { background: var(--alarm); }
summary { cursor: pointer; padding: 8px 0; }
"""


def page(report: Report) -> str:
    """The whole page."""
    verdict = report.verdict
    title = f"{report.model} {report.version}"
    reasons = "".join(f"<li>{_escaped(reason)}</li>" for reason in verdict.reasons)
    notes = "".join(f'<p class="note">{_escaped(note)}</p>' for note in report.notes)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{_escaped(title)}: {verdict.level.replace("_", " ")}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{_escaped(title)}</h1>
<p class="lead">{_escaped(span(report))}</p>
<div class="verdict {verdict.level}"><p>{_escaped(HEADLINES[verdict.level])}</p>{f"<ul>{reasons}</ul>" if reasons else ""}</div>
<h2>Checks</h2>
{_checks(verdict.checks)}
<h2>What came, and what was expected</h2>
<p class="note"><span class="key ours"></span>the window<span class="key theirs"></span>the reference</p>
<div class="plots">
{"".join(_bars(check) for check in verdict.checks if check.evidence.bins)}
{_latency(report)}
{_requests(report.window.slices)}
</div>
<h2>Numbers</h2>
{_numbers(verdict.checks)}
{notes}
</main>
</body>
</html>
"""


def _checks(checks: Sequence[Check]) -> str:
    rows = "".join(
        f'<tr><td><span class="level {check.level}">{check.level}</span></td><td>{TITLES[check.name]}</td>'
        f"<td>{_escaped(check.reason.removeprefix(f'{TITLES[check.name]}: '))}</td></tr>"
        for check in checks
    )
    return (
        f'<div class="scroll"><table><thead><tr><th>level</th><th>check</th><th>found</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _numbers(checks: Sequence[Check]) -> str:
    rows = "".join(
        f"<tr><td>{TITLES[check.name]}</td><td>{_escaped(MEASURES.get(one.measure, one.measure.replace('_', ' ')))}</td>"
        + f'<td class="level">{one.level}</td>'
        + "".join(f'<td class="number">{number:.4g}</td>' for number in (one.value, one.floor, one.noise, one.p_value))
        + f"<td>{'exceeded' if one.exceeded else 'no'}</td></tr>"
        for check in checks
        for one in check.comparisons
    )
    head = (
        '<th>check</th><th>measure</th><th>level</th><th class="number">value</th><th class="number">tolerated</th>'
        '<th class="number">chance alone</th><th class="number">p</th><th>more than both</th>'
    )
    return (
        '<p class="note">A value counts when it exceeds both what is tolerated at any size and what chance alone gives for these two sample sizes, '
        "corrected for the number of tests.</p>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _bars(check: Check) -> str:
    """Shares of window and reference side by side, and the same as a table for those who do not see the picture."""
    bins = [one for one in check.evidence.bins if one[1] or one[2]]
    totals = [max(1, sum(ours for _, ours, _ in bins)), max(1, sum(theirs for _, _, theirs in bins))]
    shown = sorted(sorted(bins, key=lambda one: -(one[1] / totals[0] + one[2] / totals[1]))[:MOST_BARS], key=bins.index)
    shares = [(name, ours / totals[0], theirs / totals[1]) for name, ours, theirs in shown]
    top = max(max(ours, theirs) for _, ours, theirs in shares)
    step = (WIDTH - LEFT - RIGHT) / len(shares)
    marks = []
    for number, (name, *both) in enumerate(shares):
        for side, (kind, share) in enumerate(zip(("ours", "theirs"), both, strict=True)):
            height = share / top * (HEIGHT - TOP - BOTTOM)
            x = LEFT + number * step + step * (0.1 + 0.4 * side)
            marks.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{HEIGHT - BOTTOM - height:.1f}" width="{step * 0.4:.1f}" height="{height:.1f}">'
                f"<title>{_escaped(name)}: {share:.1%}</title></rect>"
            )
    every = max(1, -(-len(shares) // 8))
    for number in range(0, len(shares), every):
        name = shares[number][0]
        short = name if len(name) <= 14 else name[:13] + "…"
        marks.append(
            f'<text x="{LEFT + (number + 0.5) * step:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{_escaped(short.split(" to ")[0])}</text>'
        )
    unit = str(check.evidence.detail.get("unit", ""))
    caption = f"{TITLES[check.name]}{f', {unit}' if unit else ''}"
    rows = "".join(f"<tr><td>{_escaped(name)}</td><td>{ours:.2%}</td><td>{theirs:.2%}</td></tr>" for name, ours, theirs in shares)
    hidden = len(bins) - len(shares)
    more = f'<p class="note">{hidden} rarer ones are not shown.</p>' if hidden else ""
    return (
        f"<figure><figcaption>{caption} <small>against {_escaped(check.evidence.against)}</small></figcaption>"
        f"{_drawing(caption, ''.join(marks), f'{top:.0%}')}"
        f"<details><summary>as a table</summary><table><thead><tr><th>bin</th><th>window</th><th>reference</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></details>{more}</figure>"
    )


def _latency(report: Report) -> str:
    ours = report.window.latency
    if not ours:
        return ""
    theirs = report.references.earlier.latency if report.references.earlier else None
    both = [("ours", ours)] + ([("theirs", theirs)] if theirs else [])
    edges = np.asarray(ours.edges)
    used = np.flatnonzero(sum(histogram.counts for _, histogram in both))
    low, high = max(0, int(used[0]) - 1), min(len(edges) - 2, int(used[-1]) + 1)
    width = max(1, -(-(high - low + 1) // 60))
    starts = range(low, high + 1, width)
    shares = {kind: [histogram.counts[at : at + width].sum() / histogram.rows for at in starts] for kind, histogram in both}
    top = max(max(values) for values in shares.values())
    step = (WIDTH - LEFT - RIGHT) / len(starts)
    marks = []
    for kind, values in shares.items():
        points = " ".join(
            f"{LEFT + (number + side) * step:.1f},{HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM):.1f}"
            for number, value in enumerate(values)
            for side in (0, 1)
        )
        marks.append(f'<polyline points="{points}" fill="none" stroke="var(--{kind})" stroke-width="2"/>')
    for part in (0.0, 0.25, 0.5, 0.75):
        number = int(part * len(starts))
        marks.append(
            f'<text x="{LEFT + number * step:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{edges[starts[number]]:.3g} ms</text>'
        )
    told = "; ".join(f"{name} {_quantiles(histogram)}" for name, (_, histogram) in zip(("window", "earlier"), both, strict=False))
    return f"<figure><figcaption>latency <small>{told}</small></figcaption>{_drawing(f'latency: {told}', ''.join(marks), f'{top:.0%}')}</figure>"


def _quantiles(histogram: Histogram) -> str:
    return ", ".join(f"p{share * 100:.0f} {histogram_quantile(histogram.edges, histogram.counts, share):.3g} ms" for share in (0.5, 0.95))


def _requests(slices: Sequence[Slice]) -> str:
    if not slices:
        return ""
    first, length = slices[0].start, slices[0].seconds
    last = slices[-1].start + timedelta(seconds=length)
    places = round((last - first).total_seconds() / length)
    top = max(one.requests for one in slices)
    step = (WIDTH - LEFT - RIGHT) / places
    marks = []
    for one in slices:
        x = LEFT + round((one.start - first).total_seconds() / length) * step
        for kind, count in (("ours", one.requests), ("failed", one.failures)):
            height = count / top * (HEIGHT - TOP - BOTTOM)
            title = f"{one.start:%Y-%m-%d %H:%M} UTC: {one.requests:,} requests, {one.failures:,} failed"
            marks.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{HEIGHT - BOTTOM - height:.1f}" width="{max(1.0, step * 0.9):.1f}" height="{height:.1f}">'
                f"<title>{title}</title></rect>"
            )
    for time, x, anchor in ((first, LEFT, "start"), (last, WIDTH - RIGHT, "end")):
        marks.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 14}" text-anchor="{anchor}">{time:%Y-%m-%d %H:%M}</text>')
    caption = f"requests in {length:,} s each"
    key = '<small><span class="key ours"></span>all<span class="key failed"></span>failed</small>'
    return f"<figure><figcaption>{caption} {key}</figcaption>{_drawing(caption, ''.join(marks), f'{top:,}')}</figure>"


def _drawing(label: str, marks: str, top: str) -> str:
    base = HEIGHT - BOTTOM
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_escaped(label)}">'
        f'<line class="axis" x1="{LEFT}" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}"/>'
        f'<text x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">{top}</text><text x="{LEFT - 6}" y="{base}" text-anchor="end">0</text>{marks}</svg>'
    )


def _escaped(text: str) -> str:
    # Lone surrogates and control characters would make the page no UTF-8, or no XML inside SVG.
    clean = "".join(one if one.isprintable() or one == " " else "�" for one in text)
    return html.escape(clean)
