"""The look of the report: one style sheet, two themes, no font or picture from elsewhere.

Colours were chosen so that text reaches a contrast of 4.5 and marks 3 against the page in both themes (WCAG 2.2, 1.4.3 and 1.4.11), and
so that blue and orange stay apart for the colour-blind; plots use the same variables.
"""

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
