"""Reports of variants to one table for the terminal and one page for the run.

In: what `variants.reports` returns. Out: a string; `RUN/compressed/report.html`, in the look of the run's own report, which gets a section with the summary and
a link. One row is the original, measured in the same call as the newest variant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from tfpipeline import judge, runs
from tfpipeline.compress.variants import folder_of
from tfpipeline.evaluate import page as html
from tfpipeline.evaluate import plots
from tfpipeline.evaluate.terminal import fit

HEAD = ("variant", "accuracy", "difference", "agree", "MB", "x", "gzip", "x", "zeros", "p50", "p95 ms", "faster", "passes")
NAME_WIDTH = 24
MARK_POINTS = 46  # of a plot's marks
PAGE_NAME = "report.html"


def row_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the table as plain values; what `--json` has beside the whole reports."""
    return {
        "variant": report["variant"],
        "accuracy": report["accuracy"],
        "interval": report["interval"],
        "difference": report["difference"]["accuracy_difference"],
        "drop_points": report["drop_points"],
        "agreement": report["agreement"],
        "bytes": report["bytes"],
        "bytes_ratio": report["bytes_ratio"],
        "gzip_bytes": report["gzip_bytes"],
        "gzip_ratio": report["gzip_ratio"],
        "sparsity": report["sparsity"]["encoder"],
        "latency_ms": report["latency_ms"],
        "latency_original_ms": report["latency_original_ms"],
        "speedup": report["speedup"],
        "max_drop": report["max_drop"],
        "passes": report["passes"] and not report.get("refused", False),
        "refused": report.get("refused", False),
    }


def render(reports: Sequence[Mapping[str, Any]], *, per_layer: bool = False) -> str:
    """The table for a terminal.

    Args:
        reports: of the variants.
        per_layer: also the zeros of every kernel.
    """
    if not reports:
        return "No variant yet. Make one: tfpipeline compress RUN --recipe int8-dynamic (tfpipeline compress --list shows the recipes)."
    rows = [list(HEAD), _original_cells(reports), *(_cells(report) for report in reports)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEAD))]
    lines = [
        "  ".join(
            cell.ljust(width) if not place else cell.rjust(width) for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    first = reports[0]
    lines += [
        "",
        f"Accuracy on the same {first['rows']:,} validation and test rows; x: share of the original's {first['original']['bytes'] / 1e6:.1f} MB; zeros: of the encoder's",
        f"kernels; latency of one text at its true length, {first['latency_ms']['threads']} threads, faster: against the original asked in turn.",
    ]
    for report in reports:
        if report.get("refused"):
            lines.append(f"{report['variant']}: refused at step {report['step']}, it lost more than {report['max_drop']:g} points.")
    if per_layer:
        for report in reports:
            lines += ["", f"{report['variant']}: zeros by layer"]
            lines += [f"  {place:<28} {100 * share:5.1f} %" for place, share in report["sparsity"]["layers"].items()]
    return "\n".join(line.rstrip() for line in lines)


def write_page(run: runs.Run, reports: Sequence[Mapping[str, Any]]) -> None:
    """`RUN/compressed/report.html`, and the summary in the run's own report, each whole or not at all.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    page = render_page(f"{run.config.name}: {run.path.name}", reports)
    with runs.atomic_write(folder_of(run) / PAGE_NAME) as stream:
        stream.write(page.encode("utf-8", "replace"))
    metrics = run.path / "metrics.json"
    if metrics.is_file():
        _into_report(run, runs.read_json(metrics), reports)


def render_page(title: str, reports: Sequence[Mapping[str, Any]]) -> str:
    """The page as a string."""
    cells = [_original_cells(reports), *(_cells(report) for report in reports)]
    rows = [[f"<bdi>{html.text(row[0])}</bdi>", *map(escape, row[1:])] for row in cells]
    drawn = [
        html.figure(_scatter("size", "size on disk (MB)", reports, lambda one: one["bytes"] / 1e6)),
        html.figure(_scatter("latency", "latency of one text, median (ms)", reports, lambda one: one["latency_ms"]["p50"])),
    ]
    note = (
        f"Accuracy on the same {reports[0]['rows']:,} validation and test rows, with its interval; difference to the original, paired. Latency of one text at its true "
        f"length on {reports[0]['latency_ms']['threads']} threads of the machine that made the variant; each variant was timed in turn with the original, and "
        "&ldquo;faster&rdquo; is that ratio. Zeros in the encoder&rsquo;s kernels make a compressed file smaller; they make no dense processor faster."
    )
    sections = [
        html.section("Variants", f'{html.table(HEAD, rows)}<p class="note">{note}</p>'),
        html.section("Accuracy against size and latency", f'<div class="plots">{"".join(drawn)}</div>'),
        *(_steps(report) for report in reports),
    ]
    return html.document(
        f"Variants of {html.text(title)}", '<a href="../evaluation/report.html">Report of the run</a>', sections, style=_WIDE
    )


def _into_report(run: runs.Run, result: dict[str, Any], reports: Sequence[Mapping[str, Any]]) -> None:
    """The run's report again, with what its variants are worth."""
    judge.write_report(
        run,
        result,
        runs.read_json(run.path / "data" / "report.json"),
        compression={
            "page": f"compressed/{PAGE_NAME}",
            **{
                report["variant"]: {
                    "accuracy": f"{100 * report['accuracy']:.1f} %",
                    "difference": _difference(report),
                    "size": f"{report['bytes'] / 1e6:.1f} MB ({report['bytes_ratio']:.2f} x)",
                    "gzipped": f"{report['gzip_bytes'] / 1e6:.1f} MB ({report['gzip_ratio']:.2f} x)",
                    "latency": f"{report['latency_ms']['p50']:.1f} ms ({report['speedup']:.1f} x as fast)",
                    "passes": row_of(report)["passes"],
                }
                for report in reports
            },
        },
    )


def _steps(report: Mapping[str, Any]) -> str:
    """A variant's steps, folded: what each was told to do, what it said, what was left after it."""
    rows = []
    for step in report["steps"]:
        told = step["told"]
        said = "; ".join(f"{key} {_brief(value)}" for key, value in told.items())
        rows.append(
            [
                f"{step['number']}. {escape(step['kind'])}",
                html.text(said, 600),
                f"{100 * step['accuracy']:.1f} %",
                f"{-step['drop_points']:+.2f}",
                f"{step['bytes'] / 1e6:.1f}",
                f"{step['seconds']:.0f}",
            ]
        )
    refused = f" (refused at step {report['step']})" if report.get("refused") else ""
    steps = html.table(["step", "what it says", "accuracy", "points", "MB", "seconds"], rows, words=2)
    layers = [[f"<code>{html.text(place)}</code>", f"{100 * share:.1f} %"] for place, share in report["sparsity"]["layers"].items()]
    zeros = (
        f"<details><summary>Zeros by layer</summary>{html.table(['kernel', 'zeros'], layers)}</details>"
        if report["sparsity"]["encoder"]
        else ""
    )
    return html.section(f"{report['variant']}{refused}", steps + zeros)


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} {_brief(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_brief, value)) + "]"
    return str(value)


def _original_cells(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    newest = max(reports, key=lambda report: str(report["made"]))
    facts, times = newest["original"], newest["latency_original_ms"]
    return [
        "original",
        f"{100 * facts['accuracy']:.1f} %",
        "",
        "",
        f"{facts['bytes'] / 1e6:.1f}",
        "1.00",
        f"{facts['gzip_bytes'] / 1e6:.1f}",
        f"{facts['gzip_bytes'] / facts['bytes']:.2f}",
        "",
        f"{times['p50']:.1f}",
        f"{times['p95']:.1f}",
        "1.0 x",
        "",
    ]


def _cells(report: Mapping[str, Any]) -> list[str]:
    low, high = (100 * end for end in report["interval"])
    return [
        fit(report["variant"], NAME_WIDTH),
        f"{100 * report['accuracy']:.1f} % [{low:.1f}, {high:.1f}]",
        _difference(report),
        f"{100 * report['agreement']:.1f} %",
        f"{report['bytes'] / 1e6:.1f}",
        f"{report['bytes_ratio']:.2f}",
        f"{report['gzip_bytes'] / 1e6:.1f}",
        f"{report['gzip_ratio']:.2f}",
        f"{100 * report['sparsity']['encoder']:.0f} %",
        f"{report['latency_ms']['p50']:.1f}",
        f"{report['latency_ms']['p95']:.1f}",
        f"{report['speedup']:.1f} x",
        "refused" if report.get("refused") else "yes" if report["passes"] else "no",
    ]


def _difference(report: Mapping[str, Any]) -> str:
    found = report["difference"]["accuracy_difference"]
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * found[part] for part in ("value", "low", "high")))


def _scatter(name: str, axis: str, reports: Sequence[Mapping[str, Any]], x_of: Callable[[Mapping[str, Any]], float]) -> str:
    """Accuracy with its interval against what a variant costs; the original is the other colour and the dashed line."""
    newest = max(reports, key=lambda report: str(report["made"]))
    original = {**newest["original"], "latency_ms": newest["latency_original_ms"]}
    points = [
        ("original", x_of(original), original["accuracy"], None),
        *((one["variant"], x_of(one), one["accuracy"], one["interval"]) for one in reports),
    ]

    def paint(axes: Any) -> None:
        for number, (_, x, y, interval) in enumerate(points):
            colour = plots.SECOND if number == 0 else plots.FIRST
            if interval is not None:
                axes.plot([x, x], interval, color=plots.GRID, linewidth=1.4, solid_capstyle="butt", zorder=1)
            axes.scatter([x], [y], s=MARK_POINTS, color=colour, marker="s" if number == 0 else "o", linewidth=0, zorder=3)
        axes.axhline(points[0][2], color=plots.SECOND, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        right = max(x for _, x, _, _ in points)
        axes.set_xlim(0, right * 1.12)
        axes.margins(y=0.1)
        plots.per_cent(axes.yaxis)
        axes.grid(True)
        axes.set_xlabel(axis)
        axes.set_ylabel("accuracy")
        for text, mark, place, to_left in _labels(axes, points):
            # A line leads back to the mark wherever another name pushed this one away.
            line = {"arrowstyle": "-", "color": plots.MUTED, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3}
            side = "right" if to_left else "left"
            moved = line if place[1] != mark[1] else None
            axes.annotate(text, mark, xytext=place, fontsize=8, color=plots.INK, va="center", ha=side, arrowprops=moved, zorder=4)

    told = "; ".join(f"{label} {x:.3g}, {100 * y:.1f} %" for label, x, y, _ in points)
    return plots.draw(f"compress-{name}", f"Accuracy against {axis}: {told}.", 4.2, paint)


def _labels(axes: Any, points: Sequence[tuple[str, float, float, Any]]) -> list[tuple[str, tuple[float, float], tuple[float, float], bool]]:
    """Each name with its mark, its own place, and whether it ends there: beside the mark, moved up or down as far as others force it to."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    line, letter = 0.05 * (high - low), 0.0155 * (right - left)
    # Left end, right end, height of what a name must not lie on: the dashed line, the marks, and then the other names.
    taken = [(left, right, points[0][2]), *((x - 0.5 * letter, x + 0.5 * letter, y) for _, x, y, _ in points)]
    result = []
    for label, x, y, _ in sorted(points, key=lambda point: (-point[2], point[1])):
        text = fit(label, NAME_WIDTH)
        width = letter * len(text)
        to_left = x + 2 * letter + width > right
        start = x - 1.5 * letter - width if to_left else x + 1.5 * letter
        shifts = [0.0] + [sign * step * line * 0.5 for step in range(1, 40) for sign in (1, -1)]
        height = next(
            (
                y + shift
                for shift in shifts
                if low + line / 2 < y + shift < high - line / 2
                and all(abs(y + shift - other) >= 0.8 * line or start > end or start + width < begin for begin, end, other in taken)
            ),
            y,
        )
        taken.append((start, start + width, height))
        result.append((text, (x, y), (start + width if to_left else start, height), to_left))
    return result


# The table has more columns than the run's own.
_WIDE = """
main { max-width: 1200px; }
a { color: var(--first); }
"""
