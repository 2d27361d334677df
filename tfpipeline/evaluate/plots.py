"""Numbers in, inline SVG out: plots that scale to a phone and follow the page between light and dark.

matplotlib draws with stand-in colours; afterwards each becomes a CSS variable of the page (`COLOURS`), so one picture serves both
themes. Text stays text: it can be searched, read aloud and set in the reader's font. matplotlib's global state is not touched (no
pyplot, settings in a context).
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from tfpipeline.errors import DependencyError
from tfpipeline.evaluate.terminal import fit

# Stand-in colour -> CSS variable. Any colours do, as long as matplotlib would not write them by itself or shorten them.
INK, MUTED, GRID, FIRST, SECOND, SURFACE = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f", "#101112"
COLOURS = {INK: "ink", MUTED: "muted", GRID: "grid", FIRST: "first", SECOND: "second", SURFACE: "surface"}

WIDTH_INCHES = 5.0  # 360 points: the width of a phone, so that letters there keep their size
FONT_POINTS = 11
LABEL_COLUMNS = 18  # letters of a label beside an axis
MOST_POINTS = 300  # of a curve; more are averaged in groups
MOST_CLASSES_IN_MATRIX = 30
MOST_CLASSES_WITH_NUMBERS = 10

SETTINGS = {
    "svg.fonttype": "none",
    "svg.image_inline": True,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same measures everywhere; the page's own font replaces it
    "font.size": FONT_POINTS,
    "text.parse_math": False,  # a label may hold a dollar sign
    "text.usetex": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.axisbelow": True,
    "axes.titlesize": FONT_POINTS,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": FONT_POINTS - 1,
    "lines.linewidth": 1.8,
    "path.simplify": True,
}


def learning_curves(history: dict[str, Any]) -> list[str]:
    """Loss and accuracy over the epochs, loss and learning rate over the steps; only what the history has.

    Args:
        history: {"epochs": [{"epoch", "loss", "accuracy", "validation_loss", "validation_accuracy", ...}], "steps": [{"step", "loss",
            "learning_rate"}]}.
    """
    epochs, steps = list(history.get("epochs") or []), list(history.get("steps") or [])
    found = []
    for name, key, per_cent in (("loss", "loss", False), ("accuracy", "accuracy", True)):
        curves = [(label, _points(epochs, "epoch", source)) for label, source in (("training", key), ("validation", f"validation_{key}"))]
        curves = [(label, points) for label, points in curves if points]
        if curves:
            found.append(_curves(f"{name} per epoch", "epoch", name, curves, per_cent))
    for name, key in (("training loss per step", "loss"), ("learning rate per step", "learning_rate")):
        points = _thinned(_points(steps, "step", key))
        if len(points) > 1:
            found.append(_curves(name, "step", name.removesuffix(" per step"), [("", points)], False))
    return found


def confusion_matrix(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Rows true, columns predicted; the tint is the share of the row. "" for too many classes to see anything."""
    classes = len(labels)
    if classes > MOST_CLASSES_IN_MATRIX:
        return ""

    def paint(axes: Any) -> None:
        from matplotlib.patches import Rectangle

        for true, row in enumerate(matrix):
            for predicted, count in enumerate(row):
                share = count / max(1, sum(row))
                axes.add_patch(
                    Rectangle(
                        (predicted, true), 1, 1, facecolor=FIRST, alpha=round(0.04 + 0.56 * share, 3), edgecolor=SURFACE, linewidth=1.5
                    )
                )
                if classes <= MOST_CLASSES_WITH_NUMBERS:
                    text = f"{count:,}\n{100 * share:.0f} %" if classes <= 5 else f"{count:,}"
                    axes.text(
                        predicted + 0.5, true + 0.5, text, ha="center", va="center", color=INK, fontsize=FONT_POINTS if classes <= 6 else 8
                    )
        axes.set_xlim(0, classes)
        axes.set_ylim(classes, 0)
        names = [fit(label, LABEL_COLUMNS if classes > 3 else 12) for label in labels]
        size = FONT_POINTS if classes <= 6 else 9 if classes <= 18 else 6
        slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if classes > 3 else {}
        axes.set_xticks([number + 0.5 for number in range(classes)], names, fontsize=size, **slanted)
        axes.set_yticks([number + 0.5 for number in range(classes)], names, fontsize=size)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")

    return draw(
        "confusion", f"Confusion matrix of {classes} labels, rows true, columns predicted; the numbers stand in the table.", 4.4, paint
    )


def reliability_diagram(calibration: dict[str, Any]) -> str:
    """Accuracy against confidence, before and after the temperature; the size of a point is its share of the decisions."""
    tempered = calibration["temperature"] != 1.0
    series = [("before temperature" if tempered else "model", calibration["before"]["bins"], FIRST, "o")]
    if tempered:
        series.append((f"after, T = {calibration['temperature']:.2f}", calibration["after"]["bins"], SECOND, "s"))

    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="perfect")
        for name, bins, colour, marker in series:
            filled = [found for found in bins if found["n"]]
            total = sum(found["n"] for found in filled)
            x, y = [found["confidence"] for found in filled], [found["accuracy"] for found in filled]
            axes.plot(x, y, color=colour, linewidth=1.2)
            sizes = [20 + 180 * found["n"] / total for found in filled]
            axes.scatter(x, y, s=sizes, color=colour, marker=marker, alpha=0.75, linewidth=0, zorder=3)
            axes.plot([], [], color=colour, marker=marker, label=name)
        low = min((found["confidence"] for _, bins, _, _ in series for found in bins if found["n"]), default=0.0)
        axes.set_xlim(max(0.0, low - 0.05), 1.03)
        axes.set_ylim(-0.03, 1.05)
        per_cent(axes.xaxis)
        per_cent(axes.yaxis)
        axes.grid(True)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        axes.legend(loc="best")

    error = calibration["before"]["expected_calibration_error"]["value"]
    label = f"Reliability diagram: accuracy against confidence; expected calibration error {100 * error:.1f} per cent."
    return draw("reliability", label, 3.8, paint)


def slice_bars(group: dict[str, Any], overall: float) -> str:
    """Accuracy of each slice with its interval, the overall accuracy as a line."""
    rows = group["rows"]

    def paint(axes: Any) -> None:
        for place, row in enumerate(rows):
            axes.barh(place, row["accuracy"], height=0.62, color=FIRST, alpha=0.5, linewidth=0)
            axes.plot([row["low"], row["high"]], [place, place], color=INK, linewidth=1.4, solid_capstyle="butt")
            for end in ("low", "high"):
                axes.plot([row[end]] * 2, [place - 0.16, place + 0.16], color=INK, linewidth=1.4)
        axes.axvline(overall, color=SECOND, linewidth=1.2, linestyle=(0, (4, 3)))
        names = [f"{fit(row['value'], LABEL_COLUMNS)}  ({row['n']:,})" for row in rows]
        axes.set_yticks(range(len(rows)), names, color=INK)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1.0)
        axes.spines["left"].set_visible(False)
        per_cent(axes.xaxis)
        axes.grid(True, axis="x")
        axes.set_xlabel("accuracy")

    told = "; ".join(f"{row['value']} {100 * row['accuracy']:.0f} % of {row['n']}" for row in rows[:8])
    return draw(f"slice-{group['by']}", f"Accuracy by {group['by']}: {told}.", 0.75 + 0.33 * len(rows), paint)


def label_bars(counts: dict[str, dict[str, int]], labels: Sequence[str]) -> str:
    """How the labels are spread in each split: {split: {label: rows}}, as shares of the split. "" for no rows or too many labels."""
    shown = [(name, of_split) for name, of_split in counts.items() if sum(of_split.values())]
    if not shown or len(labels) > MOST_CLASSES_IN_MATRIX:
        return ""
    # At most three splits (training, validation, test): two hues and a grey.
    colours = [FIRST, SECOND, MUTED]

    def paint(axes: Any) -> None:
        height = 0.8 / len(shown)
        for place, (split, of_split) in enumerate(shown):
            total = sum(of_split.values())
            y = [number - 0.4 + height * (place + 0.5) for number in range(len(labels))]
            shares = [of_split.get(label, 0) / total for label in labels]
            axes.barh(y, shares, height=height * 0.9, color=colours[place % 3], alpha=0.7, linewidth=0, label=f"{split} ({total:,})")
        axes.set_yticks(range(len(labels)), [fit(label, LABEL_COLUMNS) for label in labels], color=INK)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.spines["left"].set_visible(False)
        per_cent(axes.xaxis)
        axes.grid(True, axis="x")
        axes.set_xlabel("share of the labels")
        axes.figure.legend(loc="outside upper left", ncols=min(3, len(shown)), handlelength=1, columnspacing=1)

    return draw(
        "labels", f"Share of each label in {', '.join(split for split, _ in shown)}.", 1.2 + (0.2 + 0.14 * len(shown)) * len(labels), paint
    )


def _curves(title: str, x: str, y: str, curves: list[tuple[str, list[tuple[float, float]]]], shares: bool) -> str:
    def paint(axes: Any) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        for (name, points), colour, marker in zip(curves, (FIRST, SECOND), ("o", "s"), strict=False):
            few = len(points) <= 30
            axes.plot(*zip(*points, strict=True), color=colour, label=name, marker=marker if few else None, markersize=5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_xlabel(x)
        axes.set_title(y, loc="left", color=INK)
        axes.grid(True)
        axes.margins(x=0.04, y=0.12)
        if shares:
            per_cent(axes.yaxis)
        else:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        if any(name for name, _ in curves):
            axes.legend(loc="best")

    last = "; ".join(f"{name or y} ends at {points[-1][1]:.4g}" for name, points in curves)
    return draw(title, f"Curve of {title}: {last}.", 2.9, paint)


def _points(rows: list[dict[str, Any]], x: str, y: str) -> list[tuple[float, float]]:
    return [(float(row[x]), float(row[y])) for row in rows if row.get(x) is not None and row.get(y) is not None]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS`, each the mean of a run of neighbours."""
    size = -(-len(points) // MOST_POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def per_cent(axis: Any) -> None:
    """Shares as per cent along an axis."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=6))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g} %"))


def draw(name: str, label: str, height: float, paint: Callable[[Any], None]) -> str:
    """One `<svg role="img">` for inside HTML, without namespaces, foreign addresses or ids that another plot could have too."""
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError("the plots of the report need matplotlib: pip install 'tfpipeline[train]'") from error
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}), warnings.catch_warnings():
        # Labels may be in any script; the reader's fonts draw them, matplotlib's only measures.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        figure.patch.set_alpha(0.0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0.0)
        paint(axes)
        drawn = io.StringIO()
        FigureCanvasSVG(figure).print_svg(drawn, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_html(drawn.getvalue(), name, label)


def _for_html(svg: str, name: str, label: str) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    prefix = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + f"-{sum(name.encode()) % 9973}-"
    body = re.sub(r'\bid="', f'id="{prefix}', body)
    body = re.sub(r'(href="|url\()#', rf"\1#{prefix}", body)
    for stand_in, variable in COLOURS.items():
        body = body.replace(stand_in, f"var(--{variable})")
    body = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", body)
    body = re.sub(r"font-family: [^;\"]+;?", "", body)
    box = re.search(r'viewBox="([^"]+)"', body)
    opening = f'<svg viewBox="{box.group(1) if box else ""}" role="img" aria-label="{escape(label)}">'
    return opening + re.sub(r"\n\s*", "\n", body[body.index(">") + 1 :]).strip()
