"""The result as one HTML file that can be mailed: no other file, no foreign host, no script; phone and desktop, light and dark.

In: what `evaluate` and `compare` returned, the history of the training, the config, the data report. Out: a page under 1 MB. Everything
that came from data or users is escaped, and the page's own policy forbids scripts and requests, should anything slip through.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from tfpipeline.evaluate import page, plots
from tfpipeline.evaluate.page import LONGEST_VALUE
from tfpipeline.evaluate.terminal import HEADLINE_ROWS, calibration_sentence, comparison_sentence, headline_rows, interval_text, number_text
from tfpipeline.runs import atomic_write

# What keeps the page under 1 MB whatever the data is; metrics.json has everything.
MOST_MISTAKES, MOST_CLASSES, MOST_SLICE_GROUPS, MOST_CONFUSIONS = 50, 200, 12, 10
CARDS = ("accuracy", "macro_f1", "expected_calibration_error")


def write_report(
    path: str | Path,
    *,
    title: str,
    metrics: dict[str, Any],
    baseline: dict[str, Any] | None = None,
    comparison: dict[str, Any] | None = None,
    history: dict[str, Any] | None = None,
    config_dict: dict[str, Any] | None = None,
    data_report: dict[str, Any] | None = None,
    compression: dict[str, Any] | None = None,
) -> None:
    """Writes the page whole or not at all. Sections whose material is None are left out.

    Args:
        path: the file; one of that name is replaced.
        title: of the page, usually the run's name.
        metrics: of the model, from `evaluate`.
        baseline: of the baseline on the same rows, from `evaluate`; a `description` in it, if any, is shown.
        comparison: of the two, from `compare`.
        history: {"epochs": [{"epoch", "loss", "accuracy", "validation_loss", "validation_accuracy", "examples_per_second"}],
            "steps": [{"step", "loss", "learning_rate"}]}; any of these may be missing.
        config_dict: the config, nested dicts of plain values.
        data_report: of `tfpipeline.data`; its `splits` give the label balance.
        compression: the report of `tfpipeline.compress`, shown as it is.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    whole = render_html(
        title=title,
        metrics=metrics,
        baseline=baseline,
        comparison=comparison,
        history=history,
        config_dict=config_dict,
        data_report=data_report,
        compression=compression,
    )
    # Texts may hold half a surrogate pair, which no encoding can write.
    with atomic_write(Path(path)) as stream:
        stream.write(whole.encode("utf-8", "replace"))


def render_html(
    *,
    title: str,
    metrics: dict[str, Any],
    baseline: dict[str, Any] | None,
    comparison: dict[str, Any] | None,
    history: dict[str, Any] | None,
    config_dict: dict[str, Any] | None,
    data_report: dict[str, Any] | None,
    compression: dict[str, Any] | None,
) -> str:
    """The page as a string; arguments as for `write_report`."""
    sections = [
        _summary(metrics, baseline, comparison),
        _learning(history),
        _labels(metrics),
        _calibration(metrics["calibration"]),
        _slices(metrics),
        _mistakes(metrics["worst_mistakes"]),
        _balance(metrics, data_report),
        page.entries("Compression", compression, opened=True),
        page.entries("Data report", data_report),
        page.entries("Configuration", config_dict),
    ]
    lead = f"{metrics['n']:,} rows, {len(metrics['labels'])} labels. Numbers in brackets are {100 * metrics['confidence']:g} % intervals."
    return page.document(page.text(title), lead, sections)


def _summary(metrics: dict[str, Any], baseline: dict[str, Any] | None, comparison: dict[str, Any] | None) -> str:
    names = comparison["names"] if comparison else ["model", "baseline"]
    shown = [metrics] if baseline is None else [metrics, baseline]
    rows = [[escape(title), *(_interval_html(key, column.get(key)) for column in shown)] for key, title in headline_rows(metrics)]
    cards = "".join(
        '<div class="card">'
        f"<span>{title}</span><b>{number_text(key, metrics[key]['value'])}</b><small>{_range(key, metrics[key])}</small></div>"
        for key, title in headline_rows(metrics)
        if key in CARDS
    )
    verdict = ""
    if comparison is not None:
        kind = {"better": "good", "worse": "bad"}.get(comparison["verdict"], "open")
        verdict = f'<p class="verdict {kind}">{page.text(comparison_sentence(comparison), 1000)}</p>'
    table = page.table(["", *map(page.text, names[: len(shown)])], rows)
    note = '<p class="note">Log loss, Brier score and calibration error: lower is better. Row weights do not enter the metrics.</p>'
    if baseline is not None and baseline.get("description"):
        note += f'<p class="note">{page.text(names[1])}: {page.text(baseline["description"], LONGEST_VALUE)}.</p>'
    return f'<section aria-label="Summary">\n<div class="cards">{cards}</div>\n{verdict}\n{table}\n{note}</section>'


def _learning(history: dict[str, Any] | None) -> str:
    drawn = plots.learning_curves(history) if history else []
    return page.section("Learning curves", f'<div class="plots">{"".join(map(page.figure, drawn))}</div>') if drawn else ""


def _labels(metrics: dict[str, Any]) -> str:
    found = metrics["per_class"]
    rows = [
        [
            f"<bdi>{page.text(row['label'])}</bdi>",
            *(number_text("accuracy", row[key]) for key in ("precision", "recall", "f1")),
            f"{row['support']:,}",
            f"{row['predicted']:,}",
        ]
        for row in found[:MOST_CLASSES]
    ]
    table = page.table(["label", "precision", "recall", "F1", "rows", "predicted"], rows) + page.more(len(found) - MOST_CLASSES, "labels")
    parts = [table]
    if metrics["confusion_matrix"] is not None:
        matrix, names = metrics["confusion_matrix"], metrics["labels"]
        drawn = plots.confusion_matrix(matrix, names)
        parts = [f'<div class="plots">{page.figure(drawn) if drawn else ""}<div>{table}</div></div>']
        swaps = sorted(
            ((count, true, said) for true, row in enumerate(matrix) for said, count in enumerate(row) if count and true != said),
            reverse=True,
        )
        if swaps and len(names) > 2:
            rows = [
                [f"<bdi>{page.text(names[true])}</bdi>", f"<bdi>{page.text(names[said])}</bdi>", f"{count:,}"]
                for count, true, said in swaps
            ]
            parts += ["<h3>Most frequent confusions</h3>", page.table(["true", "predicted", "rows"], rows[:MOST_CONFUSIONS], words=2)]
    else:
        rows = [
            [f"<bdi>{page.text(row['label'])}</bdi>", *(f"{row[cell]:,}" for cell in ("tp", "fp", "fn", "tn"))]
            for row in metrics["confusion_per_label"][:MOST_CLASSES]
        ]
        parts += [
            "<h3>Decisions per label</h3>",
            page.table(["label", "rightly given", "wrongly given", "missed", "rightly left out"], rows),
        ]
    return page.section("Labels", "\n".join(parts))


def _calibration(calibration: dict[str, Any]) -> str:
    rows = [
        [escape(title), *(_interval_html(key, calibration[when][key]) for when in ("before", "after"))]
        for key, title in HEADLINE_ROWS
        if key in ("log_loss", "brier", "expected_calibration_error")
    ]
    tempered = calibration["temperature"] != 1.0
    table = page.table(["", "before", "after"], rows) if tempered else ""
    note = "The size of a point is the share of the rows in its bin. On the dashed line 90 % confident means right in 90 % of the cases."
    text = f'<p>{escape(calibration_sentence(calibration))}</p>{table}<p class="note">{note}</p>'
    return page.section("Calibration", f'<div class="plots">{page.figure(plots.reliability_diagram(calibration))}<div>{text}</div></div>')


def _slices(metrics: dict[str, Any]) -> str:
    groups = [group for group in metrics["slices"] if group["rows"] and len(group["rows"]) <= plots.MOST_CLASSES_IN_MATRIX]
    drawn = []
    for group in groups[:MOST_SLICE_GROUPS]:
        unit = f" ({group['unit']})" if group["unit"] else ""
        figure = page.figure(plots.slice_bars(group, metrics["accuracy"]["value"]), f"by {group['by']}{unit}")
        drawn.append(figure)
    note = "Accuracy with its interval; in brackets the rows; the dashed line is the accuracy over all rows."
    skipped = len(metrics["slices"]) - len(drawn)
    return page.section(
        "Slices", f'<p class="note">{note}</p><div class="plots">{"".join(drawn)}</div>{page.more(skipped, "ways of slicing")}'
    )


def _mistakes(mistakes: list[dict[str, Any]]) -> str:
    if not mistakes:
        return ""
    items = []
    for found in mistakes[:MOST_MISTAKES]:
        true, predicted = (_names(found[key]) for key in ("true", "predicted"))
        pair = f'<p class="text" dir="auto">{escape(found["text_pair"])}</p>' if found.get("text_pair") else ""
        items.append(
            f'<li><p class="text" dir="auto">{escape(found["text"]) or "<i>(empty)</i>"}</p>{pair}<p class="said">'
            f'true <b><bdi>{true}</bdi></b>, predicted <b class="wrong"><bdi>{predicted}</bdi></b> at {100 * found["probability"]:.1f} %'
            f' <span class="source" title="{page.text(found["id"])}">{page.text(found["source"], LONGEST_VALUE)}</span></p></li>'
        )
    more = page.more(len(mistakes) - MOST_MISTAKES, "mistakes")
    return page.section("Most confident mistakes", f'<ol class="mistakes">{"".join(items)}</ol>{more}')


def _balance(metrics: dict[str, Any], data_report: dict[str, Any] | None) -> str:
    counts = {"evaluated": {row["label"]: row["support"] for row in metrics["per_class"]}}
    splits = (data_report or {}).get("splits")
    if isinstance(splits, dict):
        described = {name: split.get("labels") for name, split in splits.items() if isinstance(split, dict)}
        counts = {name: labels for name, labels in described.items() if isinstance(labels, dict)} or counts
    drawn = plots.label_bars(counts, metrics["labels"])
    return page.section("Label balance", f'<div class="plots">{page.figure(drawn)}</div>') if drawn else ""


def _interval_html(key: str, found: dict[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return f'<span title="{page.text(found.get("reason", ""), LONGEST_VALUE)}">n/a</span>' if found else ""
    return f"{number_text(key, found['value'])} <small>{_range(key, found)}</small>"


def _range(key: str, found: dict[str, Any]) -> str:
    text = interval_text(key, found)
    return text[text.index("[") :] if "[" in text else ""


def _names(names: str | list[str]) -> str:
    return page.text(names) if isinstance(names, str) else ", ".join(map(page.text, names)) or "(none)"
