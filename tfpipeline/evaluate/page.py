"""What every report is made of: one style sheet, two themes, the frame of a page, and its parts. No font, picture or script from elsewhere.

Everything that came from data or users goes through `text`; the page's own policy forbids scripts and requests, should anything slip through.

Colours were chosen so that text reaches a contrast of 4.5 and marks 3 against the page in both themes (WCAG 2.2, 1.4.3 and 1.4.11), and
so that blue and orange stay apart for the colour-blind; plots use the same variables.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

LONGEST_NAME, LONGEST_VALUE, MOST_ENTRIES = 80, 200, 300

STYLE = """
:root {
  color-scheme: light dark;
  --surface: #ffffff; --panel: #f5f6f8; --ink: #1b1f24; --muted: #59636e; --grid: #d5d9de;
  --first: #1f6fd0; --second: #c25700; --good: #1a7f37; --bad: #cf222e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --surface: #14171a; --panel: #1f2429; --ink: #e6e9ec; --muted: #9aa4ae; --grid: #3a4149;
    --first: #5aa2f5; --second: #f0883e; --good: #3fb950; --bad: #ff7b72;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--surface); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", sans-serif;
}
main { max-width: 960px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 8px 0 4px; }
h2 { font-size: 1.2rem; margin: 40px 0 12px; padding-top: 16px; border-top: 1px solid var(--grid); }
h3 { font-size: 1rem; margin: 24px 0 8px; }
p { margin: 0 0 12px; }
.lead, .note { color: var(--muted); }
.note { font-size: 0.875rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 16px 0; }
.card { background: var(--panel); border-radius: 8px; padding: 12px 16px; display: flex; flex-direction: column; }
.card span, small { color: var(--muted); }
.card b { font-size: 1.6rem; line-height: 1.3; }
small { font-size: 0.85em; white-space: nowrap; }
.verdict { background: var(--panel); border-left: 4px solid var(--muted); border-radius: 4px; padding: 12px 16px; }
.verdict.good { border-color: var(--good); }
.verdict.bad { border-color: var(--bad); }
.scroll { overflow-x: auto; margin: 0 0 12px; }
table { border-collapse: collapse; min-width: 100%; font-size: 0.9375rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px 6px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--grid); overflow-wrap: normal; }
th { color: var(--muted); font-weight: 500; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; padding: 6px 0 6px 12px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 24px; align-items: start; }
.plots > * { min-width: 0; }
figure { margin: 0; max-width: 480px; }
figcaption { font-weight: 500; margin-bottom: 4px; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
.mistakes { list-style: none; margin: 0; padding: 0; }
.mistakes li { background: var(--panel); border-radius: 8px; padding: 12px 16px; margin-bottom: 12px; }
.mistakes .text { white-space: pre-line; margin-bottom: 6px; }
.mistakes .said { margin: 0; font-size: 0.875rem; color: var(--muted); }
.mistakes b { color: var(--ink); }
.mistakes b.wrong { color: var(--bad); }
.source { display: block; font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 0.8rem; }
summary { cursor: pointer; font-size: 1.1rem; font-weight: 600; padding: 12px 0; }
section:has(> details) { border-top: 1px solid var(--grid); margin-top: 16px; }
details td { max-width: 480px; overflow-wrap: anywhere; }
@media (max-width: 600px) {
  td.number small { display: block; }
  .card b { font-size: 1.3rem; }
  .cards { grid-template-columns: repeat(3, 1fr); gap: 8px; }
  .card { padding: 8px 10px; }
  .card span { font-size: 0.8125rem; line-height: 1.3; flex: 1; }
  th, td { padding-right: 8px; }
  td.number, th.number { padding-left: 8px; }
}
code { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 0.875em; }
"""


def document(title: str, lead: str, sections: Iterable[str], *, style: str = "") -> str:
    """A whole page.

    Args:
        title: HTML, of the tab and the heading.
        lead: HTML, the paragraph below the heading.
        sections: HTML; empty ones are left out.
        style: after the common style sheet.
    """
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>\n{STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        f'<h1 dir="auto">{title}</h1>\n<p class="lead">{lead}</p>\n{body}\n</main>\n</body>\n</html>\n'
    )


def section(title: str, body: str) -> str:
    """A headed part of the page; `body` is HTML."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def figure(svg: str, caption: str = "") -> str:
    """A drawing, with words above it."""
    told = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f"<figure>{told}{svg}</figure>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """Cells are HTML already; the first `words` columns are words (left), the others numbers (right)."""
    kinds = ["" if place < words else ' class="number"' for place in range(len(head))]
    top = "".join(f"<th{kind}>{cell}</th>" for cell, kind in zip(head, kinds, strict=True))
    body = "\n".join("<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def entries(title: str, values: dict[str, Any] | None, *, opened: bool = False) -> str:
    """Any nested dict as a folded table of dotted keys."""
    if not values:
        return ""
    flat = list(_flattened("", values))
    rows = [[f"<code>{text(key, LONGEST_VALUE)}</code>", f'<span dir="auto">{text(value, LONGEST_VALUE)}</span>'] for key, value in flat]
    shown = table(["key", "value"], rows[:MOST_ENTRIES], words=2) + more(len(rows) - MOST_ENTRIES, "entries")
    return f"<section><details{' open' if opened else ''}><summary>{escape(title)}</summary>{shown}</details></section>"


def _flattened(prefix: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flattened(f"{prefix}.{key}" if prefix else str(key), inner)
    elif isinstance(value, str):
        yield prefix, value
    else:
        yield prefix, json.dumps(value, ensure_ascii=False, default=str)


def more(left: int, things: str) -> str:
    """How many were left out; "" for none."""
    return f'<p class="note">{left:,} more {things} in metrics.json.</p>' if left > 0 else ""


def text(value: Any, longest: int = LONGEST_NAME) -> str:
    """Anything as escaped text, cut where it is longer."""
    whole = str(value)
    return escape(whole if len(whole) <= longest else whole[: longest - 1] + "…")
