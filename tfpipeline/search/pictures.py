"""The plots of a search, in the look of the evaluation report: inline SVG that follows the page between light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tfpipeline.evaluate.plots import FIRST, GRID, INK, MUTED, SECOND, SURFACE, draw
from tfpipeline.evaluate.terminal import fit
from tfpipeline.search.objective import Objective
from tfpipeline.search.space import Parameter, Space

WIDE_INCHES = 10.0
SMALL = 11


def progress(trials: Sequence[Mapping[str, Any]], objective: Objective, winner: Mapping[str, Any] | None) -> str:
    """The objective of each trial in the order they ran, and the best so far as a line. "" without a value."""
    finished = [one for one in trials if one["state"] == "finished" and not one["overshoot"]]
    over = [one for one in trials if one["state"] == "finished" and one["overshoot"]]
    pruned = [one for one in trials if one["state"] == "pruned"]
    failed = [one for one in trials if one["state"] == "failed"]
    if not finished and not over:
        return ""
    name = objective.metric.replace("_", " ")
    low, high = _ends([*finished, *over])

    def paint(axes: Any) -> None:
        axes.figure.set_size_inches(WIDE_INCHES, 3.4)
        best: list[float] = []
        for one in finished:
            best.append(one["value"] if not best or objective.better(one["value"], best[-1]) else best[-1])
        if finished:
            numbers = [one["number"] for one in finished]
            axes.step(
                [*numbers, max(numbers[-1], trials[-1]["number"])],
                [*best, best[-1]],
                where="post",
                color=MUTED,
                linewidth=1.2,
                label="best so far",
            )
        groups = (("finished", finished, FIRST, "o"), ("over the budget", over, MUTED, "^"), ("pruned", pruned, MUTED, "x"))
        for label, group, colour, marker in groups:
            if group:
                # One that was stopped early may be far off; it stands at the edge, or the others could not be told apart.
                values = [min(high, max(low, one["value"])) for one in group]
                axes.scatter(
                    [one["number"] for one in group], values, color=colour, marker=marker, s=34, label=label, zorder=3, clip_on=False
                )
        if failed:
            axes.plot(
                [one["number"] for one in failed],
                [0.02] * len(failed),
                "|",
                color=SECOND,
                markersize=9,
                transform=axes.get_xaxis_transform(),
                label="failed",
            )
        if winner is not None:
            axes.scatter(
                [winner["number"]], [winner["value"]], facecolors="none", edgecolors=SECOND, s=130, linewidths=1.8, label="winner", zorder=4
            )
        axes.set_xlim(-0.5, max(one["number"] for one in trials) + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
        room = 0.12 * (high - low) or 0.01
        axes.set_ylim(low - room, high + room)
        axes.grid(True)
        axes.set_xlabel("trial")
        axes.set_ylabel(f"{name} on validation")
        axes.figure.legend(loc="outside upper left", ncols=6, handletextpad=0.4, columnspacing=1.2)

    told = f"best {winner['value']:.4f} in trial {winner['number']}" if winner is not None else "none within the budget"
    return draw("search-progress", f"{name} of {len(trials)} trials over time; {told}.", 3.4, paint)


def parallel(trials: Sequence[Mapping[str, Any]], space: Space, objective: Objective, winner: Mapping[str, Any] | None) -> str:
    """A line through each trial's values, one axis a key, the objective as the last axis; the better, the stronger the line. "" for fewer than two trials."""
    shown = [one for one in trials if one["value"] is not None]
    keys = space.keys
    if len(shown) < 2:
        return ""
    low, high = _ends([one for one in shown if one["state"] == "finished"] or shown)

    def height(one: Mapping[str, Any]) -> float:
        return min(1.0, max(0.0, (one["value"] - low) / (high - low))) if high > low else 0.5

    def quality(one: Mapping[str, Any]) -> float:
        return height(one) if objective.direction == "max" else 1 - height(one)

    def paint(axes: Any) -> None:
        axes.figure.set_size_inches(max(5.0, 1.3 * (len(keys) + 1)), 4.6)
        last = len(keys)
        for x in range(last + 1):
            axes.axvline(x, color=GRID, linewidth=1)
        for one in sorted(shown, key=quality):
            is_winner = winner is not None and one["number"] == winner["number"]
            points = [(x, space[key].place(one["values"][key])) for x, key in enumerate(keys) if key in one["values"]]
            points.append((last, height(one)))
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=SECOND if is_winner else FIRST if one["state"] == "finished" else MUTED,
                alpha=1.0 if is_winner else round(0.15 + 0.6 * quality(one), 3),
                linewidth=2.2 if is_winner else 1.2,
                linestyle="-" if one["state"] == "finished" else (0, (3, 2)),
                marker="o",
                markersize=3.5,
                zorder=4 if is_winner else 3,
            )
        beside = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": SMALL, "zorder": 5}
        beside["bbox"] = {"facecolor": SURFACE, "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
        for x, key in enumerate(keys):
            for text, y in _ticks(space[key]):
                axes.annotate(fit(text, 12), (x, y), color=MUTED, **beside)
        for value, y in ((low, 0.0), (high, 1.0)) if high > low else ((low, 0.5),):
            axes.annotate(f"{value:.4g}", (last, y), color=INK, **beside)
        names = [key.replace(".", "\n", 1).replace("_", " ") for key in keys]
        axes.set_xticks(
            range(last + 1), [*(_wrapped(name) for name in names), _wrapped(objective.metric.replace("_", " "))], fontsize=SMALL, color=INK
        )
        axes.set_yticks([])
        axes.set_xlim(-0.15, last + 0.6)
        axes.set_ylim(-0.06, 1.06)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)

    return draw(
        "search-parallel", f"Values of {len(shown)} trials, one line each; the winner stands out. The numbers are in the table.", 4.2, paint
    )


def importance_bars(found: Mapping[str, Any]) -> str:
    """The share of each key, with its spread over the shuffles."""
    rows = found["keys"]

    def paint(axes: Any) -> None:
        for place, row in enumerate(rows):
            axes.barh(place, max(0.0, row["value"]), height=0.62, color=FIRST, alpha=0.6, linewidth=0)
            axes.plot(
                [max(0.0, row["value"] - row["spread"]), row["value"] + row["spread"]],
                [place, place],
                color=INK,
                linewidth=1.4,
                solid_capstyle="butt",
            )
        axes.set_yticks(range(len(rows)), [fit(row["key"], 26) for row in rows], color=INK)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.spines["left"].set_visible(False)
        axes.grid(True, axis="x")
        axes.set_xlabel("share of the importance")

    told = "; ".join(f"{row['key']} {100 * row['value']:.0f} %" for row in rows)
    return draw("search-importance", f"Importance of each key: {told}.", 0.9 + 0.34 * len(rows), paint)


def seeds(compared: Mapping[str, Any]) -> str:
    """The metric of each re-training on test, winner and default, their means as lines."""
    roles = ("default", "winner")

    def paint(axes: Any) -> None:
        for place, (role, colour) in enumerate(zip(roles, (MUTED, SECOND), strict=True)):
            values = compared[role]["values"]
            axes.scatter(values, [place] * len(values), color=colour, s=40, alpha=0.8, linewidth=0, zorder=3)
            mean = compared[role]["mean"]
            axes.plot([mean, mean], [place - 0.28, place + 0.28], color=INK, linewidth=2)
        axes.set_yticks(range(2), roles, color=INK)
        axes.set_ylim(-0.6, 1.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.15)
        axes.grid(True, axis="x")
        axes.set_xlabel(f"{compared['metric'].replace('_', ' ')} on test, one point a seed")

    told = ", ".join(f"{role} {compared[role]['mean']:.4f}" for role in roles)
    return draw("search-seeds", f"Means over {len(compared['seeds'])} seeds: {told}.", 1.7, paint)


def _ends(trials: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    values = [one["value"] for one in trials]
    return min(values), max(values)


def _ticks(one: Parameter) -> list[tuple[str, float]]:
    if one.values:
        shown = one.values if len(one.values) <= 7 else (one.values[0], one.values[len(one.values) // 2], one.values[-1])
        return [(f"{value:g}" if isinstance(value, float) else str(value), one.place(value)) for value in shown]
    return [(f"{one.low:.3g}", 0.0), (f"{one.high:.3g}", 1.0)]


def _wrapped(name: str) -> str:
    """A name on lines of about ten letters."""
    lines = [""]
    for word in name.replace("\n", " ").split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > 11:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return "\n".join(lines)
