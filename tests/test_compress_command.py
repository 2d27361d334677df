"""`tfpipeline compress`: the table, the document, the page."""

from __future__ import annotations

import argparse
import dataclasses
import html.parser
import itertools
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tfpipeline import runs
from tfpipeline.compress import chain, command, recipes, report
from tfpipeline.errors import ConfigError, GateError

KEEP_ALL = '[[steps]]\nkind = "keep_layers"\ncount = 2\n'
RANDOM = '[[steps]]\nkind = "student"\nbackbone = "scratch:tiny"\n'
DYNAMIC = '[[steps]]\nkind = "int8_dynamic"\n'


@pytest.fixture
def run(tiny_run: runs.Run, tmp_path: Path) -> runs.Run:
    """A copy that a test may write to."""
    return runs.Run(Path(shutil.copytree(tiny_run.path, tmp_path / "runs" / tiny_run.path.name)))


@pytest.fixture(scope="module")
def opened(tiny_run: runs.Run) -> chain.Original:
    return chain.Original.open(tiny_run, texts=3)


@pytest.fixture(autouse=True)
def opened_once(opened: chain.Original, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain.Original, "open", lambda run: dataclasses.replace(opened, run=run))


def call(run: runs.Run, *arguments: str) -> tuple[dict[str, Any], str]:
    parser = argparse.ArgumentParser()

    def add(name: str, run_command: Any, summary: str, example: str) -> argparse.ArgumentParser:
        del summary, example
        parser.add_argument("--json", action="store_true")
        parser.add_argument("--runs", type=Path)
        parser.set_defaults(run=run_command, command=name)
        return parser

    command.add(add)
    options = parser.parse_args([str(run.path), "--runs", str(run.path.parent), *arguments])
    result: tuple[dict[str, Any], str] = options.run(options)
    return result


def written(folder: Path, name: str, *steps: str) -> str:
    path = folder / f"{name}.toml"
    path.write_text("".join(steps))
    return str(path)


def test_two_recipes_make_one_table_one_document_and_one_page(run: runs.Run, tmp_path: Path) -> None:
    document, text = call(
        run, "--recipe", written(tmp_path, "same", KEEP_ALL), "--recipe", written(tmp_path, "small", DYNAMIC), "--max-drop", "5"
    )
    assert [row["variant"] for row in document["table"]] == ["same", "small"]
    assert document["table"][0]["passes"] is True
    assert document["table"][0]["difference"]["value"] == 0.0
    assert [one["recipe"] for one in document["variants"]] == ["same", "small"]
    lines = text.splitlines()
    assert lines[0].split() == [
        "variant",
        "accuracy",
        "difference",
        "agree",
        "MB",
        "x",
        "gzip",
        "x",
        "zeros",
        "p50",
        "p95",
        "ms",
        "faster",
        "passes",
    ]
    assert [line.split()[0] for line in lines[1:4]] == ["original", "same", "small"]
    assert re.fullmatch(
        r"same +\d+\.\d % \[\d+\.\d, \d+\.\d\] +\+0\.00 \[\+0\.00, \+0\.00\] +100\.0 % +\d+\.\d +1\.00 +\d+\.\d +0\.\d\d +0 % +\d+\.\d +\d+\.\d +\d\.\d x +yes",
        lines[2],
    )
    assert len({len(line) for line in lines[1:4]}) <= 2
    assert Path(document["report"]).is_file()
    assert f"Next:      tfpipeline export {run.path} --variant small" in text


def test_zeros_of_every_layer_on_request(run: runs.Run, tmp_path: Path) -> None:
    _, text = call(run, "--recipe", written(tmp_path, "same", KEEP_ALL), "--per-layer")
    assert "same: zeros by layer" in text
    assert len(re.findall(r"^  layer [01] \w+ \w+ +0\.0 %$", text, re.MULTILINE)) == 12


def test_without_a_recipe_it_shows_what_is_there(run: runs.Run, tmp_path: Path) -> None:
    document, text = call(run)
    assert document["table"] == []
    assert text.startswith("No variant yet. Make one: tfpipeline compress RUN --recipe int8-dynamic")
    made, _ = call(run, "--recipe", written(tmp_path, "same", KEEP_ALL), "--as", "other")
    again, _ = call(run)
    assert [row["variant"] for row in again["table"]] == ["other"]
    assert again["variants"] == made["variants"]


def test_a_refused_recipe_does_not_stop_the_others(run: runs.Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(GateError, match="recipe bad, step 1 \\(student\\)"):
        call(run, "--recipe", written(tmp_path, "bad", RANDOM), "--recipe", written(tmp_path, "same", KEEP_ALL))
    assert "bad: refused at step 1, it lost more than 1 points." in caplog.text
    assert (run.path / "compressed" / "same" / "report.json").is_file()
    assert not (run.path / "compressed" / "bad").exists()
    document, _ = call(run)
    assert [(row["variant"], row["passes"], row["refused"]) for row in document["table"]] == [("same", True, False), ("bad", False, True)]


def test_the_list_says_what_each_recipe_is_for(run: runs.Run) -> None:
    document, text = call(run, "--list")
    assert [one["name"] for one in document["recipes"]] == recipes.names()
    for name in recipes.names():
        assert re.search(rf"^{name}\n  for:  +\S", text, re.MULTILINE)
    assert not (run.path / "compressed").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--recipe", "int8-dinamic"), "recipe 'int8-dinamic': no such recipe, and no such file. Did you mean `int8-dynamic`?"),
        (("--recipe", "qat", "--recipe", "qat"), "two recipes would make the same variant: qat."),
        (("--recipe", "qat", "--recipe", "prune50", "--as", "x"), "--as x names one variant, and 2 recipes were given."),
        (("--as", "x"), "--as x names one variant, and 0 recipes were given."),
        (("--recipe", "qat", "--max-drop", "-1"), "--max-drop takes points of accuracy, 0 to 100, received -1."),
        (("--recipe", "qat", "--max-drop", "nan"), "--max-drop takes points of accuracy, 0 to 100, received nan."),
        (("--recipe", "student3"), "recipe student3, step 1 (keep_layers): a student of 3 layers is deeper than its teacher, which has 2."),
    ],
)
def test_bad_input_leaves_nothing(run: runs.Run, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call(run, *arguments)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2
    assert not list((run.path / "compressed").rglob("*"))


# ---- the page ----


class Page(html.parser.HTMLParser):
    """Whether every element is closed in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br", "path", "use", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("path", "use", "rect"):
            return
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_nobody_for_anything(run: runs.Run, tmp_path: Path) -> None:
    call(run, "--recipe", written(tmp_path, "same", KEEP_ALL))
    text = (run.path / "compressed" / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.tags.count("svg") == 2
    assert "script" not in page.tags
    assert not re.search(r"https?://", text)
    assert 'href="../evaluation/report.html"' in text
    assert "var(--first)" in text
    assert "keep_layers" in text


def test_the_report_of_the_run_knows_its_variants(run: runs.Run, tmp_path: Path) -> None:
    before = (run.path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "compressed/report.html" not in before
    call(run, "--recipe", written(tmp_path, "same", KEEP_ALL))
    after = (run.path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "compressed/report.html" in after
    assert "<code>same.accuracy</code>" in after
    assert after.count("<h2>") == before.count("<h2>")


def test_names_do_not_lie_on_one_another() -> None:
    class Axes:
        def get_ylim(self) -> tuple[float, float]:
            return 0.8, 0.9

        def get_xlim(self) -> tuple[float, float]:
            return 0.0, 100.0

    points = [(f"variant-{number}", 20.0 + number / 10, 0.85, None) for number in range(8)]
    placed = report._labels(Axes(), points)
    heights = sorted(place[1] for _, _, place, _ in placed)
    assert len(placed) == 8
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 0.8 * 0.05 * 0.1 - 1e-9
    assert 0.8 < heights[0] < heights[-1] < 0.9
