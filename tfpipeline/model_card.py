"""The model card (Mitchell et al., arXiv:1810.03993): what a published model is, how good, for what, and what it holds of people's texts.

In: a version's manifest, its run's metrics, the report on its data. Out: one Markdown page, written beside the model and hashed with it. Only numbers
that were measured and facts that are recorded; what nobody recorded (whose texts, with whose consent) is asked of the reader in so many words. Holds
no text of the data. Everything that came from users is escaped: a label called `|` or `<b>` stays that label.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tfpipeline.evaluate.terminal import calibration_sentence, comparison_sentence, headline_rows, interval_text, number_text

MOST_CLASSES, MOST_SLICES, MOST_FILES = 50, 8, 20
FEWEST_IN_SLICE = 10  # rows; below that an interval says nothing
LONGEST_NAME = 120

# Whatever Markdown or HTML could read as its own, also GitHub's links without brackets (www., https:, user@) and its :emoji: and $math$. Plain dots and
# dashes stay readable: no text of a user stands at the beginning of a line, where they would mean something.
_SPECIAL = re.compile(r"[\\`*_{}\[\]<>|&~$@:]|(?<=www)\.")
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def render(name: str, manifest: dict[str, Any], metrics: dict[str, Any], report: dict[str, Any]) -> str:
    """The page.

    Args:
        name: of the model; its version is the name of the folder that the card lies in.
        manifest: everything of `manifest.json` but name, version and file hashes.
        metrics: the run's `metrics.json`.
        report: of `tfpipeline.data`.
    """
    sections = [
        _head(name, manifest, metrics),
        _use(manifest, report),
        _numbers(metrics),
        _data(manifest, report),
        _limits(manifest, metrics, report),
        _privacy(manifest, metrics, report),
        _form(manifest),
        _serving(name, manifest),
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def escape(value: Any, longest: int = LONGEST_NAME) -> str:
    """Any text as one line of Markdown that shows just that text, also in a cell of a table."""
    text = _UNSEEN.sub(" ", str(value)).strip()
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    return _SPECIAL.sub(r"\\\g<0>", text) or "(empty)"


def _head(name: str, manifest: dict[str, Any], metrics: dict[str, Any]) -> list[str]:
    found = metrics["metrics"]
    what = "any number of labels" if manifest["task"] == "multi_label" else "one label"
    of = "pair of texts" if manifest["has_pairs"] else "text"
    labels = manifest["labels"]
    shown = ", ".join(escape(label) for label in labels[:MOST_CLASSES]) + (
        f" and {len(labels) - MOST_CLASSES} more" if len(labels) > MOST_CLASSES else ""
    )
    return [
        f"# Model card: {escape(name)}",
        "",
        f"Gives each {of} {what} of: {shown}.",
        "",
        f"- Accuracy: {interval_text('accuracy', found['accuracy'])} on {found['n']:,} {escape(metrics['split'])} rows",
        f"- Started from: {escape(manifest['backbone']['name'])}",
        f"- Trained in run {escape(manifest['run'])}, published {manifest['created']}; the version is the name of this file's folder",
        f"- Quality gate: {_gate(manifest['gate'])}",
    ]


def _gate(gate: dict[str, Any]) -> str:
    if gate["passed"] is None:
        return "none was set"
    checks = ", ".join(escape(check) for check in gate["checks"])
    return f"passed ({checks})" if gate["passed"] else f"NOT passed: {escape('; '.join(gate['reasons']), 1000)}"


def _use(manifest: dict[str, Any], report: dict[str, Any]) -> list[str]:
    median = report["splits"]["train"].get("text_bytes", {}).get("median")
    like = f" (median length {median:,} bytes)" if median is not None else ""
    return [
        "## Use",
        "",
        f"**Intended:** texts like those it was trained on{like}: same source, language, topic and time, labelled by the same rules. To sort, count and",
        "route them, with a person who can look at single cases.",
        "",
        "**Out of scope:** decisions about single persons without a human (credit, work, health, law); texts of another language or domain; texts that",
        'somebody wrote to fool it; its score as a measure of anything but this model\'s confidence. It has no label for "none of these"'
        + (" but the empty answer." if manifest["task"] == "multi_label" else ": every text gets one."),
    ]


def _numbers(metrics: dict[str, Any]) -> list[str]:
    found, baseline, comparison = metrics["metrics"], metrics.get("baseline"), metrics.get("comparison")
    columns = [found] if baseline is None else [found, baseline]
    titles = ["this model"] if baseline is None else ["this model", "baseline"]
    lines = [
        "## How good it is",
        "",
        f"On {found['n']:,} rows of the split {escape(metrics['split'])}, which it did not see while training"
        if metrics["split"] == "test"
        else f"On {found['n']:,} rows of the split {escape(metrics['split'])}, which training used: too good for new texts",
        f"({100 * found['confidence']:g} % intervals, {found['bootstrap_samples']:,} bootstrap samples).",
        "",
        *_table(
            ["", *titles],
            [[title, *(interval_text(key, column.get(key)) for column in columns)] for key, title in headline_rows(found)],
        ),
        "",
    ]
    if baseline is not None:
        lines += [f"Baseline: {escape(baseline.get('description', 'not described'), 300)}.", ""]
    if comparison is not None:
        lines += [comparison_sentence(comparison), ""]
    lines += [
        f"Calibration: {calibration_sentence(found['calibration'])} The served score is without it.",
        "",
        "### By label",
        "",
    ]
    classes = found["per_class"]
    lines += _table(
        ["label", "precision", "recall", "F1", "rows"],
        [
            [
                escape(row["label"]),
                *(number_text("accuracy", row[key]) for key in ("precision", "recall", "f1")),
                f"{row['support']:,}",
            ]
            for row in classes[:MOST_CLASSES]
        ],
    )
    if len(classes) > MOST_CLASSES:
        lines += ["", f"{len(classes) - MOST_CLASSES} more labels are in the run's metrics."]
    worst = worst_slices(found)
    if worst:
        lines += ["", "### Where it is weakest", ""]
        lines += _table(["slice", "accuracy", "rows"], [[escape(what), said, f"{rows:,}"] for what, said, rows in worst])
        lines += [
            "",
            f"Slices of at least {FEWEST_IN_SLICE} rows below the accuracy over all, those whose interval ends lowest first; with many slices some are low by chance.",
        ]
    return lines


def worst_slices(metrics: dict[str, Any]) -> list[tuple[str, str, int]]:
    """`(slice, accuracy with its interval, rows)`, those that are most surely bad first: by the upper end of the interval."""
    rows = [
        (
            row["high"],
            f"{group['by']} {row['value']}{' ' + group['unit'] if group['unit'] else ''}",
            interval_text("accuracy", _as_interval(row)),
            row["n"],
        )
        for group in metrics["slices"]
        for row in group["rows"]
        if FEWEST_IN_SLICE <= row["n"] < metrics["n"] and row["accuracy"] < metrics["accuracy"]["value"]
    ]
    return [(what, said, n) for _, what, said, n in sorted(rows, key=lambda row: row[0])[:MOST_SLICES]]


def _as_interval(row: dict[str, Any]) -> dict[str, Any]:
    return {"value": row["accuracy"], "low": row["low"], "high": row["high"]}


def _data(manifest: dict[str, Any], report: dict[str, Any]) -> list[str]:
    files = [file for group in report["files"].values() for file in group]
    named = ", ".join(escape(file, 300) for file in files[:MOST_FILES]) + (
        f" and {len(files) - MOST_FILES} more" if len(files) > MOST_FILES else ""
    )
    labels = manifest["labels"][:MOST_CLASSES]
    lines = [
        "## Data",
        "",
        f"- Sources: {named or 'not recorded'}",
        f"- Read: {report['rows_read']:,} rows; {report['rejects']['rows']:,} unusable, {report['duplicates']['rows']:,} exact duplicates,"
        f" {report['conflicts']['texts']:,} texts with contradicting labels (the first label was kept)",
        f"- Split by a hash of the text, salt {escape(manifest['config']['data']['split_salt'])}: the same text is always on the same side",
        "",
    ]
    splits = report["splits"]
    lines += _table(
        ["split", "rows", *(escape(label) for label in labels), "fingerprint"],
        [
            [
                escape(split),
                f"{found['rows']:,}",
                *(f"{found.get('labels', {}).get(label, 0):,}" for label in labels),
                str(manifest["data_fingerprint"].get(split, ""))[:16],
            ]
            for split, found in splits.items()
        ],
    )
    scripts = {script: count for script, count in manifest["reference"].get("scripts", {}).items() if count}
    if scripts:
        total = sum(scripts.values())
        shares = ", ".join(f"{script} {100 * count / total:.1f} %" for script, count in sorted(scripts.items(), key=lambda item: -item[1]))
        lines += ["", f"Scripts of the evaluated texts: {shares}."]
    return lines


def _limits(manifest: dict[str, Any], metrics: dict[str, Any], report: dict[str, Any]) -> list[str]:
    longest = manifest["config"]["text"]["max_length"]
    lines = ["## Limits", "", f"- Reads the first {longest} word pieces of a text; what comes after is cut off."]
    tokens = report.get("tokens")
    if tokens is not None and "train" in tokens["splits"]:
        found = tokens["splits"]["train"]
        lines[-1] += f" That touched {100 * found['truncated_share']:.2f} % of the training texts."
        lines.append(
            f"- {100 * found['unknown_share']:.3f} % of the training texts' word pieces are unknown to its vocabulary; more in your texts is a warning."
        )
    few = [row["label"] for row in metrics["metrics"]["per_class"] if row["support"] < FEWEST_IN_SLICE]
    if few:
        lines.append(f"- Hardly measured (fewer than {FEWEST_IN_SLICE} rows): {', '.join(escape(label) for label in few[:MOST_CLASSES])}.")
    low, high = metrics["metrics"]["accuracy"]["low"], metrics["metrics"]["accuracy"]["high"]
    if low is not None:
        lines.append(
            f"- {metrics['metrics']['n']:,} rows tell its accuracy to within {50 * (high - low):.1f} points, for texts of this kind."
        )
    lines += [
        "- It was not measured on groups of people, nor for bias; what its pretrained weights and the labels hold of that, it may repeat.",
        "- Wrong labels in the data are in these numbers, on both sides.",
        "- It does not know what it does not know: a text from elsewhere can get a high score. Watch its traffic for drift.",
    ]
    return lines


def _privacy(manifest: dict[str, Any], metrics: dict[str, Any], report: dict[str, Any]) -> list[str]:
    probes = manifest["golden_probes"]
    config = manifest["config"]
    learned = config["model"]["backbone"].startswith("scratch:") and not config["text"]["vocabulary"]
    vocabulary = (
        "was learned from the training texts: words of theirs, names too, can be read in `assets/vocab.txt`"
        if learned
        else "was given with the pretrained weights or as a file, not learned from the training texts"
    )
    return [
        "## Privacy",
        "",
        f"- **This folder holds {len(probes['texts'])} texts of the data, word for word**: the golden probes in `manifest.json`, which the live server is",
        "  asked after each change. Who may read the model's folder may read them. Warm-up records hold made-up text only.",
        f"- The vocabulary {vocabulary}.",
        f"- The weights were fitted on {report['splits']['train']['rows']:,} texts. Such weights can give away whether a text was among them; they were not trained",
        "  with differential privacy.",
        "- Texts sent to the model are cleaned and cut in the graph and not kept by it. What client and server write down is their configuration.",
        "- Not recorded here, and yours to know: whose texts these are, and what they agreed to.",
    ]


def _form(manifest: dict[str, Any]) -> list[str]:
    explanations = manifest["explanations"]
    said = (
        f"integrated gradients, {explanations['steps']} steps; largest gap {explanations['largest_gap']:.2g} on {explanations['texts']} texts"
        if explanations["steps"]
        else "none"
    )
    parity = manifest["parity"]
    differences = max(value for key, value in parity.items() if key not in ("texts", "tolerance"))
    git = manifest["git"]
    code = f"{git['commit'][:12]}{' with uncommitted changes' if git['dirty'] else ''}" if git else "not in a repository"
    return [
        "## Form",
        "",
        "- Compression: none; the weights are as trained.",
        f"- Parity: every way in answers as the trained model did, to {differences:.1e} on {parity['texts']} texts.",
        f"- Explanations: {said}.",
        f"- Config digest {manifest['config_digest'][:16]}; code {code}.",
        "- Versions: " + ", ".join(f"{escape(name)} {escape(version)}" for name, version in manifest["versions"].items()),
    ]


def _serving(name: str, manifest: dict[str, Any]) -> list[str]:
    instance = '{"text": "...", "text_pair": "..."}' if manifest["has_pairs"] else '"..."'
    return [
        "## Serve it",
        "",
        "A SavedModel that takes raw text, for TensorFlow Serving of about the version of TensorFlow above (its image has TensorFlow Text's ops), or the embedded",
        "server:",
        "",
        "```",
        "python -m serving serve --models_root=models",
        f"python -m serving push models/{name}",
        f"curl localhost:8501/v1/models/{name}:predict -d '{{\"instances\": [{instance}]}}'",
        "```",
        "",
        f"Signatures: {', '.join(escape(signature) for signature in manifest['signatures'])}; their inputs and outputs are in `manifest.json`, beside the hash of every file.",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells are escaped already; the first column is words, the others numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]
