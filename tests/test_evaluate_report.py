"""The table for the terminal and the HTML page: complete, escaped, self-contained, small."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tfpipeline import evaluate as room
from tfpipeline.config import Config, EvaluateConfig
from tfpipeline.data.examples import Examples
from tfpipeline.evaluate.terminal import columns

CONFIG = EvaluateConfig(bootstrap_samples=200)
EVIL = '<script>alert("1")</script>'
HISTORY = {
    "epochs": [
        {
            "epoch": number,
            "loss": 0.6 / number,
            "accuracy": 0.8,
            "validation_loss": 0.5,
            "validation_accuracy": 0.85,
            "examples_per_second": 60.0,
        }
        for number in (1, 2, 3)
    ],
    "steps": [{"step": number, "loss": 1 / (number + 1), "learning_rate": 1e-4} for number in range(5000)],
}
VOID = {"meta", "br", "img", "link", "hr"}


class Page(HTMLParser):
    """What a browser would see: elements, attributes, text; and whether every element is closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", ["document"]
        self.feed(source)
        assert self._open == ["document"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1] != "style":
            self.text += data


def measured(names: tuple[str, ...], n: int = 120, text: str = "some text", multi_label: bool = False, **more: Any) -> dict[str, Any]:
    """Metrics of random answers that are right more often than not."""
    generator = np.random.default_rng(2)
    table = {
        "id": pa.array([f"{number:032x}" for number in range(n)]),
        "text": pa.array([f"{text} {number}" for number in range(n)]),
        "source": pa.array([f"{text[:20]}.csv:{number}" for number in range(n)]),
        f"slice:{names[0]}": pa.array([names[number % len(names)] for number in range(n)]),
    }
    classes = len(names)
    if multi_label:
        labels: Any = (generator.random((n, classes)) < 0.4).astype(np.float32)
        probabilities = 0.4 * labels + 0.6 * generator.random((n, classes))
    else:
        labels = generator.integers(0, classes, n).astype(np.int32)
        logits = generator.normal(size=(n, classes))
        logits[np.arange(n), labels] += 1
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    examples = Examples(pa.table(table), labels, np.ones(n, np.float32), names)
    task = "multi_label" if multi_label else "single_label"
    found = room.evaluate(examples, probabilities, labels=names, task=task, config=CONFIG, **more)
    if not multi_label:
        found["compared"] = room.compare(
            probabilities, np.roll(probabilities, 1, axis=1), labels, task, config=CONFIG, names=("BERT", "TF-IDF")
        )
    return found


def page(tmp_path: Path, metrics: dict[str, Any], **more: Any) -> tuple[str, Page]:
    """The source of a report, and what a browser sees of it."""
    path = tmp_path / "report.html"
    arguments = dict.fromkeys(("baseline", "comparison", "history", "config_dict", "data_report"))
    room.write_report(path, **{**arguments, "title": "a run", "metrics": metrics, **more})
    source = path.read_text(encoding="utf-8")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    return source, Page(source)


def test_report_has_every_section(tmp_path: Path) -> None:
    """Summary, curves, labels, calibration, slices, mistakes, balance, compression, data and configuration; each plot has words for those who cannot see it."""
    metrics = measured(("negative", "neutral", "positive"), temperature=1.5)
    report = {"splits": {"train": {"rows": 3, "labels": {"negative": 1, "neutral": 1, "positive": 1}}}, "duplicates": {"rows": 7}}
    source, seen = page(
        tmp_path,
        metrics,
        baseline={**metrics, "description": "TF-IDF of words"},
        comparison=metrics["compared"],
        history=HISTORY,
        config_dict=Config().to_dict(),
        data_report=report,
        compression={"int8": {"bytes": 12_345}},
    )
    headings = re.findall(r"<(?:h2|summary)>([^<]+)<", source)
    assert headings == [
        "Learning curves",
        "Labels",
        "Calibration",
        "Slices",
        "Most confident mistakes",
        "Label balance",
        "Compression",
        "Data report",
        "Configuration",
    ]
    plots = [attributes for tag, attributes in seen.elements if tag == "svg"]
    assert len(plots) == 4 + 1 + 1 + 3 + 1
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    for words in (
        "BERT is better than TF-IDF",
        "duplicates.rows",
        "train.learning_rate",
        "int8.bytes",
        "TF-IDF: TF-IDF of words.",
        "Row weights do not enter the metrics.",
    ):
        assert words in seen.text


def test_report_escapes_everything_that_comes_from_data(tmp_path: Path) -> None:
    """Labels, texts, sources, columns, title and config hold a script: it is shown, never run; dollar signs are no formulas."""
    metrics = measured((EVIL, "$x_1$", "a & b"), text=EVIL)
    source, seen = page(
        tmp_path,
        metrics,
        title=EVIL,
        comparison={**metrics["compared"], "names": [EVIL, "b"]},
        baseline=metrics,
        history=HISTORY,
        config_dict={EVIL: EVIL},
        data_report={"splits": {EVIL: {"labels": {EVIL: 3}}}, "x": [EVIL]},
        compression={EVIL: EVIL},
    )
    assert not {tag for tag, _ in seen.elements} & {"script", "img", "iframe", "object", "link", "a"}
    assert not [name for _, attributes in seen.elements for name in attributes if name.startswith("on")]
    assert "<script" not in source
    assert EVIL in seen.text
    assert re.search(r"<text[^>]*>\$x_1\$</text>", source)


def test_report_stands_alone_and_fits_a_phone(tmp_path: Path) -> None:
    """No address of another host, no file beside it, a policy that forbids both; viewport, dark theme, scrolling tables; no id twice."""
    source, seen = page(tmp_path, measured(("no", "yes")), history=HISTORY)
    assert "http:" not in source
    assert "https:" not in source
    references = [
        value or "" for _, attributes in seen.elements for name, value in attributes.items() if name in ("src", "href", "xlink:href")
    ]
    assert all(reference.startswith("#") for reference in references)
    ids = [attributes["id"] for _, attributes in seen.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {reference[1:] for reference in references} <= set(ids)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in source
    assert "default-src 'none'" in source
    assert "@media (prefers-color-scheme: dark)" in source
    assert source.count("<table>") == source.count('<div class="scroll" tabindex="0"><table>')


def test_plots_follow_the_theme_of_the_page(tmp_path: Path) -> None:
    """Every colour inside a plot is a variable of the page; letters are text, not outlines."""
    source, _ = page(tmp_path, measured(("no", "yes"), temperature=2.0), history=HISTORY)
    drawn = "".join(re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) == set()
    assert "var(--first)" in drawn
    assert re.search(r"<text[^>]*>validation</text>", drawn)


@pytest.mark.parametrize("classes", [150, 1])
def test_report_stays_small_for_any_data(tmp_path: Path, classes: int) -> None:
    """150 classes, long names, long texts in three-byte letters, 1,000 mistakes: under 1 MB; one class only: no crash."""
    names = tuple(f"{'非常长的标签名称' * 20}{number}" for number in range(classes))
    config = EvaluateConfig(bootstrap_samples=100, worst_mistakes=1000)
    generator = np.random.default_rng(0)
    n = 1500
    labels = generator.integers(0, classes, n).astype(np.int32)
    table = {name: pa.array(["<&>" * 400] * n) for name in ("text", "source", *(f"slice:c{number}" for number in range(30)))}
    examples = Examples(pa.table({"id": pa.array(list(map(str, range(n)))), **table}), labels, np.ones(n, np.float32), names)
    probabilities = generator.dirichlet([1.0] * classes, n)
    metrics = room.evaluate(examples, probabilities, labels=names, task="single_label", config=config)
    source, _ = page(tmp_path, metrics, config_dict={str(number): "x" * 5000 for number in range(2000)}, history=HISTORY)
    assert len(source.encode()) < 1_000_000


def test_report_of_several_labels_and_of_an_empty_history(tmp_path: Path) -> None:
    """No confusion matrix but four counts per label; without epochs and steps there are no learning curves."""
    source, seen = page(tmp_path, measured(("a", "b"), multi_label=True), history={"epochs": [], "steps": []})
    assert "Decisions per label" in seen.text
    assert "all labels right" in seen.text
    assert "Learning curves" not in source


def test_report_survives_half_a_surrogate_pair(tmp_path: Path) -> None:
    """A title no encoding can write becomes a question mark instead of a crash."""
    assert "a ? run" in page(tmp_path, measured(("no", "yes")), title="a \ud83d run")[0]


def test_terminal_table_shows_both_rows_and_fits_100_columns() -> None:
    """The model beside the baseline with intervals, the paired difference, each label; wide letters count twice."""
    metrics = measured(("negative", "中文标签" * 20, "positive\n\x1b[31m"), temperature=1.5)
    table = room.render(metrics, metrics, metrics["compared"])
    assert max(columns(line) for line in table.split("\n")) <= 100
    assert "\x1b" not in table
    lines = table.split("\n")
    assert lines[0] == "120 rows, 3 labels, 95 % intervals"
    assert lines[2].split() == ["BERT", "TF-IDF"]
    assert re.fullmatch(r"accuracy +\d\d\.\d % \[\d\d\.\d, \d\d\.\d\] +\d\d\.\d % \[\d\d\.\d, \d\d\.\d\]", lines[3])
    assert re.search(r"BERT is better than TF-IDF: accuracy \+\d\d\.\d points \[\+", table)
    assert "with the temperature 1.50" in table.replace("\n", " ")
    assert lines[-3].startswith("negative ")


def test_terminal_table_of_one_model() -> None:
    """Without a baseline there is one column and no sentence about a difference."""
    table = room.render(measured(("a", "b"), multi_label=True))
    assert "micro F1" in table
    assert "TF-IDF" not in table
    assert "McNemar" not in table
