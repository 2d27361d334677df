"""The result as text: the model's row beside the baseline's, the paired difference, the classes. Fits 100 columns.

In: what `evaluate` and `compare` returned. Out: one string; nothing is printed here.
"""

from __future__ import annotations

import unicodedata
from typing import Any

WIDTH = 100
LABEL_WIDTH = 28
MOST_CLASSES = 30
HEADLINE_ROWS = (
    ("accuracy", "accuracy"),
    ("micro_f1", "micro F1"),
    ("macro_f1", "macro F1"),
    ("weighted_f1", "weighted F1"),
    ("roc_auc", "ROC-AUC"),
    ("pr_auc", "PR-AUC"),
    ("log_loss", "log loss"),
    ("brier", "Brier score"),
    ("expected_calibration_error", "calibration error"),
)
SHARES = ("accuracy", "micro_f1", "macro_f1", "weighted_f1", "expected_calibration_error")


def render(metrics: dict[str, Any], baseline: dict[str, Any] | None = None, comparison: dict[str, Any] | None = None) -> str:
    """A table for a terminal.

    Args:
        metrics: of the model, from `evaluate`.
        baseline: of the baseline, from `evaluate`; None: no second column.
        comparison: of the two, from `compare`; None: no sentence about the difference.
    """
    names = comparison["names"] if comparison else ["model", "baseline"]
    shown = [metrics] if baseline is None else [metrics, baseline]
    lines = [f"{metrics['n']:,} rows, {len(metrics['labels'])} labels, {metrics['confidence']:.0%} intervals".replace("%", " %")]
    lines += ["", f"{'':<20}" + "".join(f"{fit(name, 27):<29}" for name in names[: len(shown)]).rstrip()]
    for key, name in headline_rows(metrics):
        cells = "".join(f"{interval_text(key, column.get(key)):<29}" for column in shown)
        lines.append(f"{name:<20}{cells}".rstrip())
    if comparison is not None:
        lines += ["", *wrap(comparison_sentence(comparison))]
    calibration = metrics["calibration"]
    lines += ["", *wrap(calibration_sentence(calibration)), "", *_classes(metrics)]
    return "\n".join(lines)


def headline_rows(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """(key, name for people) of the metrics that this task has."""
    names = dict(HEADLINE_ROWS) | ({"accuracy": "all labels right"} if metrics["task"] == "multi_label" else {})
    return [(key, name) for key, name in names.items() if key in metrics]


def number_text(key: str, value: float | None) -> str:
    """A metric for people: shares as per cent, the rest with three digits."""
    if value is None:
        return "n/a"
    return f"{100 * value:.1f} %" if key in SHARES else f"{value:.3f}"


def interval_text(key: str, found: dict[str, Any] | None) -> str:
    """ "93.1 % [91.8, 94.4]" or "n/a"."""
    if found is None or found["value"] is None:
        return "n/a"
    if found["low"] is None:
        return number_text(key, found["value"])
    low, high = (number_text(key, found[end]).removesuffix(" %") for end in ("low", "high"))
    return f"{number_text(key, found['value'])} [{low}, {high}]"


def comparison_sentence(comparison: dict[str, Any]) -> str:
    """The paired difference in words."""
    a, b = comparison["names"]
    difference = comparison["accuracy_difference"]
    points = "{:+.1f} points [{:+.1f}, {:+.1f}]".format(*(100 * difference[part] for part in ("value", "low", "high")))
    judged = {
        "better": f"{a} is better than {b}",
        "worse": f"{a} is worse than {b}",
        "no difference shown": f"no difference shown between {a} and {b}",
    }[comparison["verdict"]]
    p_value = "p < 0.0001" if comparison["mcnemar_p"] < 0.0001 else f"p = {comparison['mcnemar_p']:.4f}"
    return (
        f"{judged[0].upper()}{judged[1:]}: accuracy {points} on the same {comparison['n']:,} rows; only {a} right {comparison['n10']:,}, "
        f"only {b} right {comparison['n01']:,}; McNemar {p_value}; same answer on {100 * comparison['label_agreement']:.1f} %."
    )


def calibration_sentence(calibration: dict[str, Any]) -> str:
    """What the temperature does, in words."""
    before, after = (number_text("accuracy", calibration[when]["expected_calibration_error"]["value"]) for when in ("before", "after"))
    if calibration["temperature"] == 1.0:
        return f"Confidence is off by {before} on average (expected calibration error); no temperature is applied."
    return (
        f"Confidence is off by {before} on average (expected calibration error); "
        f"by {after} with the temperature {calibration['temperature']:.2f} fitted on validation."
    )


def fit(text: str, width: int) -> str:
    """The text cut to `width` columns of a terminal (East Asian letters take two)."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    if columns(text) <= width:
        return text
    kept = ""
    for letter in text:
        if columns(kept + letter) > width - 1:
            break
        kept += letter
    return kept + "…"


def columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def wrap(text: str) -> list[str]:
    """Lines of at most `WIDTH` columns."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and columns(lines[-1]) + 1 + columns(word) > WIDTH:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return lines


def _classes(metrics: dict[str, Any]) -> list[str]:
    lines = [f"{'label':<{LABEL_WIDTH}}{'precision':>11}{'recall':>11}{'F1':>11}{'rows':>9}{'predicted':>11}"]
    for found in metrics["per_class"][:MOST_CLASSES]:
        name = fit(found["label"], LABEL_WIDTH - 2)
        numbers = "".join(f"{number_text('accuracy', found[key]):>11}" for key in ("precision", "recall", "f1"))
        lines.append(f"{name}{' ' * (LABEL_WIDTH - columns(name))}{numbers}{found['support']:>9,}{found['predicted']:>11,}")
    left = len(metrics["per_class"]) - MOST_CLASSES
    return [*lines, f"... and {left} more labels in metrics.json"] if left > 0 else lines
