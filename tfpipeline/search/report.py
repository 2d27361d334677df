"""What a search found: as text, as CSV, as one HTML page. In: the document of `session.search`. Out: strings; files are written by `write`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfpipeline.evaluate import page as html
from tfpipeline.evaluate.terminal import columns, fit, wrap
from tfpipeline.runs import atomic_write, write_json
from tfpipeline.search import pictures
from tfpipeline.search.objective import Objective
from tfpipeline.search.space import Space

MOST_LINES = 15
MOST_ROWS = 200
VALUE_COLUMNS = 16
NUMBERS = ("number", "state", "value", "overshoot", "best_epoch", "latency_ms", "megabytes", "seconds", "attempts")


def write(folder: Path, found: Mapping[str, Any], space: Space, objective: Objective) -> None:
    """`results.json`, `results.csv` and `report.html`, each whole or not at all."""
    write_json(folder / "results.json", dict(found))
    for name, text in (("results.csv", table_csv(found, space)), ("report.html", page(found, space, objective))):
        with atomic_write(folder / name) as stream:
            stream.write(text.encode("utf-8", "replace"))


def ranked(trials: Sequence[Mapping[str, Any]], objective: Objective) -> list[Mapping[str, Any]]:
    """Finished trials within the budget, best first; then those over it, the pruned, the failed."""
    sign = -1 if objective.direction == "max" else 1

    def place(one: Mapping[str, Any]) -> tuple[int, float, int]:
        group = {"finished": 1 if one["overshoot"] else 0, "pruned": 2}.get(one["state"], 3)
        return group, sign * one["value"] if one["value"] is not None else 0.0, one["number"]

    return sorted(trials, key=place)


def render(found: Mapping[str, Any], space: Space, objective: Objective) -> str:
    """For a terminal: the best trials, the sentence about the winner, where everything lies."""
    keys = space.keys
    heads = ["trial", "state", objective.metric, *(["ms"] if objective.max_latency_ms is not None else []), "seconds", *_short(keys)]
    rows = [heads]
    for one in ranked(found["trials"], objective)[:MOST_LINES]:
        rows.append(
            [
                str(one["number"]),
                "over budget" if one["overshoot"] else one["state"],
                f"{one['value']:.4f}" if one["value"] is not None else "-",
                *([f"{one['latency_ms']:.1f}" if one["latency_ms"] is not None else "-"] if objective.max_latency_ms is not None else []),
                f"{one['seconds']:.0f}",
                *(fit(_value(one["values"].get(key)), VALUE_COLUMNS) for key in keys),
            ]
        )
    widths = [max(columns(row[place]) for row in rows) for place in range(len(heads))]
    lines = ["  ".join(cell + " " * (width - columns(cell)) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    left = len(found["trials"]) - MOST_LINES
    lines += [f"... and {left} more in results.csv"] if left > 0 else []
    lines += ["", *wrap(summary(found, objective))]
    if found["final"] is not None:
        lines += ["", *wrap(final_sentence(found["final"]))]
    lines += ["", f"Report:    {found['folder']}/report.html", f"Table:     {found['folder']}/results.csv"]
    lines += [f"HParams:   tensorboard --logdir {found['folder']}/tensorboard"]
    if found["winner"] is not None:
        lines += ["", f"Next:      tfpipeline train --config {found['winner']['config']}"]
    return "\n".join(lines)


def summary(found: Mapping[str, Any], objective: Objective) -> str:
    """What ran, and which trial won."""
    counts = ", ".join(f"{count} {state}" for state, count in found["counts"].items() if count)
    told = f"{len(found['trials'])} trials ({counts}), {found['tuner']}, {objective.words()}."
    winner = found["winner"]
    if winner is None:
        return f"{told} No trial finished within the budget." if objective.has_budget else f"{told} No trial finished."
    return (
        f"{told} Winner: trial {winner['number']} with {objective.metric} {winner['value']:.4f} on validation: {_spoken(winner['values'])}."
    )


def final_sentence(final: Mapping[str, Any]) -> str:
    """By how much the winner beats the default, in words."""
    share = final["metric"] not in ("log_loss", "brier")
    scale, unit, digits = (100, " points", 2) if share else (1, "", 4)
    difference = final["difference"]
    value, low, high = (
        f"{scale * difference[part]:+.{digits}f}" if difference[part] is not None else "?" for part in ("value", "low", "high")
    )
    judged = {"better": "better than", "worse": "worse than", "no difference shown": "not shown to differ from"}[final["verdict"]]
    means = {role: f"{scale * final[role]['mean']:.{digits}f}{' %' if share else ''}" for role in ("winner", "default")}
    return (
        f"Re-trained with {len(final['seeds'])} seeds each, the winner is {judged} the default: {final['metric'].replace('_', ' ')} {value}{unit} "
        f"[{low}, {high}] on the same {final['n']:,} test rows ({means['winner']} against {means['default']}); the {100 * final['confidence']:g} % interval is over rows and seeds."
    )


def table_csv(found: Mapping[str, Any], space: Space) -> str:
    """One line a trial, in the order they ran."""
    keys = space.keys
    metrics = sorted({name for one in found["trials"] for name in one["validation"]})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*NUMBERS, *keys, *(f"validation_{name}" for name in metrics), "run", "reason"])
    for one in found["trials"]:
        numbers = ["" if one[name] is None else one[name] for name in NUMBERS]
        values = [_value(one["values"].get(key), "") for key in keys]
        writer.writerow([*numbers, *values, *(one["validation"].get(name, "") for name in metrics), one["run"], one["reason"]])
    return text.getvalue()


def page(found: Mapping[str, Any], space: Space, objective: Objective) -> str:
    """One file that can be mailed: no other file, no foreign host, no script."""
    title = f"Search: {found['name']}"
    sections = [
        _verdict(found, objective),
        html.section("Objective over the trials", _wide(pictures.progress(found["trials"], objective, found["winner"]))),
        html.section(
            "Values", _wide(pictures.parallel(found["trials"], space, objective, found["winner"])) + f'<p class="note">{_PARALLEL_NOTE}</p>'
        ),
        _importance(found["importance"]),
        _trials(found, space, objective),
        html.entries("Space", {one["key"]: _spec(one) for one in space.describe()}),
        html.entries("Default configuration", found["config"]),
    ]
    return html.document(html.text(title), html.text(summary(found, objective), 2000), sections, style=_WIDE_FIGURES)


_WIDE_FIGURES = "figure.wide { max-width: none; overflow-x: auto; }\nfigure.wide svg { min-width: 720px; }\n"
_PARALLEL_NOTE = "One line a trial, drawn stronger the better it was; the winner in orange, pruned trials dashed and, where they were far off, at the edge. A key whose condition did not hold is left out of the line."


def _verdict(found: Mapping[str, Any], objective: Objective) -> str:
    winner, final = found["winner"], found["final"]
    if winner is None:
        return (
            '<section aria-label="Summary"><p class="verdict bad">No trial is a winner: see the reasons in the table below.</p></section>'
        )
    cards = [(f"best {objective.metric.replace('_', ' ')}, validation", f"{winner['value']:.4f}", f"trial {winner['number']}")]
    told = ""
    if final is not None:
        kind = {"better": "good", "worse": "bad"}.get(final["verdict"], "open")
        cards += [(f"{role}, test, {len(final['seeds'])} seeds", f"{final[role]['mean']:.4f}", "") for role in ("winner", "default")]
        told = f'<p class="verdict {kind}">{html.text(final_sentence(final), 1000)}</p>'
        rows = [
            [f"seed {seed}", *(f"{final[role]['values'][place]:.4f}" for role in ("winner", "default"))]
            for place, seed in enumerate(final["seeds"])
        ]
        told += f'<div class="plots">{html.figure(pictures.seeds(final))}<div>{html.table(["", "winner", "default"], rows)}</div></div>'
    else:
        told = '<p class="verdict open">Not re-trained: one lucky training of many looks like a winner. Run the same command with --seeds 3.</p>'
    shown = "".join(
        f'<div class="card"><span>{html.text(name)}</span><b>{value}</b><small>{small}</small></div>' for name, value, small in cards
    )
    command = f"<p>Again: <code>tfpipeline train --config {html.text(winner['config'], 300)}</code></p>"
    return f'<section aria-label="Summary">\n<div class="cards">{shown}</div>\n{told}\n{command}</section>'


def _importance(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return html.section(
            "Importance of the keys", '<p class="note">Not computed: it takes 8 finished trials with different results.</p>'
        )
    explained = found["explained"]
    told = (
        f"A random forest learned the objective from the values of {found['n']} finished trials; a key is important when shuffling it spoils the forest. "
        f"On trials that a tree had not seen, it explains {100 * max(0.0, explained):.0f} % of the differences"
        + ("." if explained > 0.3 else ": too little to believe the order of the keys.")
    )
    return html.section(
        "Importance of the keys", f'<div class="plots">{html.figure(pictures.importance_bars(found))}<p class="note">{told}</p></div>'
    )


def _trials(found: Mapping[str, Any], space: Space, objective: Objective) -> str:
    keys = space.keys
    budget = [("ms", "latency_ms")] if objective.max_latency_ms is not None else []
    budget += [("MB", "megabytes")] if objective.max_megabytes is not None else []
    rows = []
    for one in ranked(found["trials"], objective)[:MOST_ROWS]:
        state = "over budget" if one["overshoot"] else one["state"]
        reason = f'<br><small title="{html.text(one["reason"], 500)}">{html.text(one["reason"], 60)}</small>' if one["reason"] else ""
        numbers = [f"{one['value']:.4f}" if one["value"] is not None else ""]
        numbers += [f"{one[field]:.1f}" if one[field] is not None else "" for _, field in budget]
        rows.append(
            [
                str(one["number"]),
                state + reason,
                *numbers,
                f"{one['seconds']:.0f}",
                *(html.text(_value(one["values"].get(key)), 40) for key in keys),
            ]
        )
    heads = ["trial", "state", objective.metric.replace("_", " "), *(name for name, _ in budget), "seconds", *map(html.text, _short(keys))]
    left = len(found["trials"]) - MOST_ROWS
    more = f'<p class="note">{left:,} more trials in results.csv.</p>' if left > 0 else ""
    return html.section("Trials", html.table(heads, rows, words=2) + more)


def _wide(svg: str) -> str:
    return f'<figure class="wide" tabindex="0">{svg}</figure>' if svg else '<p class="note">Nothing to draw yet.</p>'


def _short(keys: Sequence[str]) -> list[str]:
    """The names without their section, where that leaves them different."""
    bare = [key.rpartition(".")[2] for key in keys]
    return [name if bare.count(name) == 1 else key for name, key in zip(bare, keys, strict=True)]


def _value(value: Any, missing: str = "-") -> str:
    if value is None:
        return missing
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _spoken(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {_value(value)}" for key, value in values.items())


def _spec(one: Mapping[str, Any]) -> str:
    words = ", ".join(map(_value, one["values"])) if "values" in one else f"{one['min']:g} to {one['max']:g}{', log' if one['log'] else ''}"
    when = " and ".join(f"{key} is {' or '.join(map(_value, wanted))}" for key, wanted in one.get("when", {}).items())
    return f"{words}; when {when}" if when else words
