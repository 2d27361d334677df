"""The model card: what it says is what was measured, whatever the labels are called."""

from __future__ import annotations

import copy
import html
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from markdown_it import MarkdownIt

from serving.registry import Published
from tfpipeline import model_card, runs
from tfpipeline.data import open_prepared

EVIL = [
    "a|b",
    "<script>alert(1)</script>",
    "`*x*`_y_[z](http://evil.example)",
    "line\nbreak",
    "\\|",
    "",
    "&amp; $x$ www.evil.example :smile: ~~a~~",
]


class _Cells(HTMLParser):
    """The text of every cell, row by row, and which tags occur."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self._open = False

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._open = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            self.rows[-1][-1] += data


def _read(card: str) -> _Cells:
    found = _Cells()
    found.feed(MarkdownIt("gfm-like", {"linkify": False}).enable("table").render(card))
    return found


@pytest.fixture(scope="module")
def material(tiny_run: runs.Run, tiny_model: Published) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    return tiny_model.manifest, runs.read_json(tiny_run.path / "metrics.json"), open_prepared(tiny_run.path / "data").report


def test_the_card_lies_in_the_version_and_is_hashed_like_every_file(tiny_model: Published) -> None:
    assert "MODEL_CARD.md" in tiny_model.manifest["files"]
    tiny_model.verify()


def test_numbers_of_the_card_are_those_of_the_run(tiny_model: Published, material) -> None:  # type: ignore[no-untyped-def]
    _, metrics, report = material
    found = _read((tiny_model.path / "MODEL_CARD.md").read_text(encoding="utf-8"))
    rows = {row[0]: row[1:] for row in found.rows}
    accuracy = metrics["metrics"]["accuracy"]
    assert rows["accuracy"][0] == f"{100 * accuracy['value']:.1f} % [{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]"
    assert rows["accuracy"][1].startswith(f"{100 * metrics['baseline']['accuracy']['value']:.1f} %")
    for split in ("train", "validation", "test"):
        assert rows[split][0] == str(report["splits"][split]["rows"])
    support = {row["label"]: row["support"] for row in metrics["metrics"]["per_class"]}
    assert {label: int(rows[label][3]) for label in support} == support


def test_it_says_which_texts_of_people_are_in_the_folder(tiny_model: Published, material) -> None:  # type: ignore[no-untyped-def]
    manifest, _, _ = material
    card = (tiny_model.path / "MODEL_CARD.md").read_text(encoding="utf-8")
    probes = manifest["golden_probes"]["texts"]
    assert f"holds {len(probes)} texts of the data, word for word" in card
    assert "vocabulary was learned from the training texts" in card
    assert not [text for text in probes if text in card]
    # What the card says of the warm-up records is so.
    warmup = (tiny_model.path / "assets.extra" / "tf_serving_warmup_requests").read_bytes()
    assert not [text for text in probes if text.encode() in warmup]


def test_labels_show_as_they_are_called_and_as_nothing_else(material) -> None:  # type: ignore[no-untyped-def]
    manifest, metrics, report = copy.deepcopy(material)
    manifest["labels"] = EVIL
    metrics["metrics"]["per_class"] = [
        {"label": label, "precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 11, "predicted": 3} for label in EVIL
    ]
    for split in report["splits"].values():
        split["labels"] = dict.fromkeys(EVIL, 7)
    report["files"] = {"train": ["/data/<b>&|`x`.csv"]}
    card = model_card.render("tiny", manifest, metrics, report)
    found = _read(card)
    shown = [label.replace("\n", " ") or "(empty)" for label in EVIL]
    by_label = [row for row in found.rows if row[1:] == ["50.0 %", "25.0 %", "33.3 %", "11"]]
    assert [row[0] for row in by_label] == shown
    header = next(row for row in found.rows if row[:2] == ["split", "rows"])
    assert header[2:-1] == shown
    # Every table has as many cells in each row as in its head: no label broke out of its cell.
    for table in re.findall(r"(?:^\|.*\n)+", card, re.M):
        assert len({len(row) for row in _read(table).rows}) == 1
    assert not found.tags & {"script", "a", "b", "em", "s", "img"}
    assert html.escape("/data/<b>&|`x`.csv") in MarkdownIt("gfm-like", {"linkify": False}).render(card)


def test_slices_are_listed_worst_first_and_small_ones_left_out() -> None:
    def row(value: str, n: int, accuracy: float, high: float) -> dict[str, Any]:
        return {"value": value, "n": n, "accuracy": accuracy, "low": 0.1, "high": high}

    metrics = {
        "n": 100,
        "accuracy": {"value": 0.8},
        "slices": [
            {"by": "topic", "unit": None, "rows": [row("small", 9, 0.0, 0.3), row("sure", 50, 0.5, 0.6), row("good", 50, 0.9, 0.95)]},
            {"by": "length", "unit": "tokens", "rows": [row("0-8", 20, 0.4, 0.7), row("all", 100, 0.7, 0.9)]},
        ],
    }
    assert [what for what, _, _ in model_card.worst_slices(metrics)] == ["topic sure", "length 0-8 tokens"]


def test_a_run_without_baseline_explanations_or_pretrained_vocabulary_has_a_card_too(material) -> None:  # type: ignore[no-untyped-def]
    manifest, metrics, report = copy.deepcopy(material)
    manifest["explanations"], metrics["baseline"], metrics["comparison"] = {"steps": 0}, None, None
    manifest["config"]["model"]["backbone"] = "sentence-transformers/all-MiniLM-L6-v2"
    metrics["split"], manifest["git"] = "train", {}
    del report["tokens"]
    card = model_card.render("tiny", manifest, metrics, report)
    assert "Explanations: none" in card
    assert "not learned from the training texts" in card
    assert "which training used: too good for new texts" in card
    assert "aseline" not in card


def test_multi_label_and_pairs_are_said(material) -> None:  # type: ignore[no-untyped-def]
    manifest, metrics, report = copy.deepcopy(material)
    manifest["task"], manifest["has_pairs"] = "multi_label", True
    card = model_card.render("tiny", manifest, metrics, report)
    assert "Gives each pair of texts any number of labels of: negative, positive." in card
    assert '"text_pair"' in card
