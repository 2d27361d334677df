"""Explanations: the gradients are right, they add up, they stand at the right words, and nothing of a text is obeyed by a terminal or a browser."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from serving.registry import Published
from tfpipeline import explain as explaining
from tfpipeline import export as exporting
from tfpipeline import runs, trained
from tfpipeline.attribution import AIM, Attribution, explained
from tfpipeline.cli import main
from tfpipeline.errors import ExportError
from tfpipeline.explain import Word

TEXTS = [
    "the app was great today",
    "the clerk was rude and the loan was lost again, awful!",
    "",
    "?! 中文 émigré",
    "the app was slow " * 20,
]


@pytest.fixture(scope="module")
def loaded(tiny_model: Published) -> Any:
    return tf.saved_model.load(str(tiny_model.path))


@pytest.fixture(scope="module")
def model(tiny_run: runs.Run) -> trained.Trained:
    return trained.load(tiny_run)


def _path(model: trained.Trained, text: str, points: Any) -> tuple[Any, Any, int]:
    """By plain means: probabilities of the predicted class along the path, their gradients, the class."""
    tokens = model.preprocessor(tf.constant([text]))
    length = int(tf.reduce_sum(tokens["attention_mask"]))
    ids = tokens["input_ids"][0, :length].numpy()
    vocabulary = model.preprocessor.vocabulary
    absent = [piece if vocabulary[piece] in ("[CLS]", "[SEP]") else vocabulary.index("[MASK]") for piece in ids]
    label = int(model.predict([text])[0].argmax())
    table = model.model.bert.embeddings.weight.numpy()
    start, end = table[absent], table[ids]
    probabilities, gradients = [], []
    for point in points:
        embedded = tf.Variable((start + point * (end - start))[np.newaxis])
        ones = tf.ones([1, length], tf.int32)
        with tf.GradientTape() as tape:
            inputs = {"inputs_embeds": tf.convert_to_tensor(embedded), "attention_mask": ones, "token_type_ids": 0 * ones}
            probability = tf.nn.softmax(model.model(inputs, training=False).logits)[0, label]
        gradients.append(tf.convert_to_tensor(tape.gradient(probability, embedded))[0].numpy())
        probabilities.append(float(probability))
    return np.array(probabilities), np.array(gradients) * (end - start), label


def test_attributions_are_integrated_gradients(model: trained.Trained, loaded: Any) -> None:
    """Against the definition, with another quadrature and eagerly, step by step."""
    text = TEXTS[0]
    points, weights = np.polynomial.legendre.leggauss(64)
    _, slopes, label = _path(model, text, (points + 1) / 2)
    expected = np.einsum("s,sth->t", weights / 2, slopes)
    found = explained(loaded.signatures["explain"], [text], None)[0]
    np.testing.assert_allclose(found["attributions"], expected, atol=2e-3)
    ends, _, _ = _path(model, text, [0.0, 1.0])
    assert found["baseline_score"] == pytest.approx(ends[0], abs=1e-5)
    assert found["score"] == pytest.approx(ends[1], abs=1e-5)
    assert found["label"] == model.labels[label]
    assert max(map(abs, expected)) > 0.01  # there was something to explain


@pytest.mark.parametrize("text", TEXTS)
def test_they_add_up_to_what_the_text_changed(loaded: Any, text: str) -> None:
    found = explained(loaded.signatures["explain"], [text], None)[0]
    served = loaded.signatures["serving_default"](text=tf.constant([text]))
    assert found["score"] == pytest.approx(float(served["score"][0]), abs=1e-5)
    assert found["label"] == served["label"].numpy()[0].decode()
    assert found["gap"] == pytest.approx(found["score"] - found["baseline_score"] - sum(found["attributions"]), abs=1e-6)
    assert abs(found["gap"]) <= AIM
    assert len(found["pieces"]) == len(found["attributions"]) == int(served["tokens"][0])
    ends = [value for piece, value in zip(found["pieces"], found["attributions"], strict=True) if piece in ("[CLS]", "[SEP]")]
    assert ends == [0.0, 0.0]


def test_any_batch_is_its_rows_one_by_one(loaded: Any) -> None:
    function = loaded.signatures["explain"]
    together = function(text=tf.constant(TEXTS))
    for row, text in enumerate(TEXTS):
        alone = function(text=tf.constant([text]))
        length = int((alone["pieces"].numpy()[0] != b"").sum())
        np.testing.assert_array_equal(together["pieces"][row, :length], alone["pieces"][0, :length])
        np.testing.assert_allclose(together["attributions"][row, :length], alone["attributions"][0, :length], atol=1e-5)
        assert not together["attributions"].numpy()[row, length:].any()
        assert set(together["pieces"].numpy()[row, length:]) <= {b""}
    none = function(text=tf.constant([], tf.string))
    assert {name: value.shape[0] for name, value in none.items()} == dict.fromkeys(none, 0)


def test_the_signature_says_what_comes_out(tiny_model: Published) -> None:
    assert tiny_model.manifest["signatures"]["explain"] == {
        "inputs": {"text": {"dtype": "string", "shape": [None]}},
        "outputs": {
            "pieces": {"dtype": "string", "shape": [None, None]},
            "attributions": {"dtype": "float32", "shape": [None, None]},
            "label": {"dtype": "string", "shape": [None]},
            "score": {"dtype": "float32", "shape": [None]},
            "baseline_score": {"dtype": "float32", "shape": [None]},
            "gap": {"dtype": "float32", "shape": [None]},
        },
    }
    said = tiny_model.manifest["explanations"]
    assert said["steps"] == 32
    assert 0 <= said["largest_gap"] <= exporting.EXPLAIN_TOLERANCE


def test_the_way_is_cut_into_three_until_it_adds_up(model: trained.Trained) -> None:
    """A model so sure that its probability jumps somewhere on the way: one point cannot tell, and it is not left at one."""
    kernel = model.model.classifier.kernel
    before = kernel.numpy()
    string = tf.TensorSpec([None], tf.string)
    try:
        kernel.assign(before * 8)
        ends, _, _ = _path(model, TEXTS[0], [0.0, 1.0])
        for parts in (1, 3, 9):
            expected = _path(model, TEXTS[0], (np.arange(parts) + 0.5) / parts)[1].mean(axis=0).sum(axis=1)
            gap = abs(ends[1] - ends[0] - expected.sum())
            if gap <= AIM:
                break
        found = explained(tf.function(Attribution(model, 1), input_signature=[string]), TEXTS[:1], None)[0]
        fine = explained(tf.function(Attribution(model, 27), input_signature=[string]), TEXTS[:1], None)[0]
    finally:
        kernel.assign(before)
    assert parts > 1
    np.testing.assert_allclose(found["attributions"], expected, atol=1e-4)
    assert abs(found["gap"]) == pytest.approx(gap, abs=1e-4)
    assert abs(fine["gap"]) <= AIM


def test_pairs_and_several_labels(model: trained.Trained) -> None:
    """The most probable label is explained, and each text gets its own words."""
    config = dataclasses.replace(model.config, data=dataclasses.replace(model.config.data, task="multi_label"))
    pairs = dataclasses.replace(model, config=config, has_pairs=True)
    found = explaining.explain(pairs, ["the app was great"], ["the loan was lost"])[0]
    probabilities = pairs.predict(["the app was great"], ["the loan was lost"])[0]
    assert found["label"] == pairs.labels[int(probabilities.argmax())]
    assert found["score"] == pytest.approx(float(probabilities.max()), abs=1e-5)
    assert abs(found["gap"]) <= AIM
    assert found["text_pair"] == "the loan was lost"
    assert [(word["text"], word["segment"]) for word in found["words"]] == [
        *(("the", 0), ("app", 0), ("was", 0), ("great", 0)),
        *(("the", 1), ("loan", 1), ("was", 1), ("lost", 1)),
    ]
    assert "great" in explaining.render([found])
    assert re.search(r"great[^|]*\| .*the", explaining.render([found]))


# ---- from pieces to words ----


def _aligned(text: str, *pieces: tuple[str, float]) -> list[tuple[str, float | None]]:
    whole = [("[CLS]", 0.0), *pieces, ("[SEP]", 0.0)]
    found = explaining.align([text], [piece for piece, _ in whole], [value for _, value in whole])
    return [(word.text, word.attribution) for word in found]


@pytest.mark.parametrize(
    ("what", "text", "pieces", "expected"),
    [
        ("pieces are joined", "Unlikely!", [("un", 0.1), ("##like", 0.2), ("##ly", 0.3), ("!", 0.0)], [("Unlikely", 0.6), ("!", 0.0)]),
        ("accents and case are the text's", "Émigré", [("emi", 0.1), ("##gre", 0.1)], [("Émigré", 0.2)]),
        ("a decomposed accent stays with its letter", "e\u0301t", [("et", 0.1)], [("e\u0301t", 0.1)]),
        ("an unknown word is what lies between", "a 😤 b", [("a", 0.1), ("[UNK]", 0.2), ("b", 0.3)], [("a", 0.1), (" ", None), ("😤", 0.2), (" ", None), ("b", 0.3)]),
        ("a URL that became a word", "see https://x.io/a now", [("see", 0.1), ("ur", 0.1), ("##l", 0.1), ("now", 0.3)], [("see", 0.1), (" ", None), ("https://x.io/a", 0.2), (" ", None), ("now", 0.3)]),
        ("a dropped tag is nobody's", "a<br>b", [("a", 0.1), ("b", 0.2)], [("a", 0.1), ("<br>", None), ("b", 0.2)]),
        ("Han stands without spaces", "很干净", [("很", 0.1), ("[UNK]", 0.2), ("净", 0.3)], [("很", 0.1), ("干", 0.2), ("净", 0.3)]),
        ("not inside another word", "xᚠax a", [("[UNK]", 0.1), ("a", 0.2)], [("xᚠax", 0.1), (" ", None), ("a", 0.2)]),
        ("a word that was cut off", "so unlikely", [("so", 0.1), ("un", 0.2)], [("so", 0.1), (" ", None), ("un", 0.2), ("likely", None)]),
        ("an invented word has a place of its own", "", [("x", 0.1)], [("x", 0.1)]),
        ("what was cut off is nobody's", "a [UNK] " + "long " * 40, [("a", 0.1), ("[UNK]", 0.2)], [("a", 0.1), ("[UNK]", 0.2), (" [UNK] " + "long " * 40, None)]),
        ("a typed mark is a word", "## [SEP]", [("#", 0.1), ("#", 0.1), ("[", 0.0), ("sep", 0.2), ("]", 0.0)], [("#", 0.1), ("#", 0.1), (" ", None), ("[", 0.0), ("SEP", 0.2), ("]", 0.0)]),
    ],
)  # fmt: skip
def test_words_stand_where_they_are_written(what: str, text: str, pieces: Any, expected: Any) -> None:
    found = _aligned(text, *pieces)
    assert [word for word, _ in found] == [word for word, _ in expected], what
    for (_, value), (_, wanted) in zip(found, expected, strict=True):
        assert value == (None if wanted is None else pytest.approx(wanted)), what


def test_nothing_of_a_text_or_of_its_attributions_is_lost(model: trained.Trained) -> None:
    for one in explaining.explain(model, [*TEXTS, "The APP wasn't great &amp; <b>slow</b> http://x.io/?a=1"]):
        stretches = explaining.align([one["text"]], one["pieces"], one["attributions"])
        assert "".join(word.text for word in stretches) == one["text"]
        assert sum(word["attribution"] for word in one["words"]) == pytest.approx(sum(one["attributions"]), abs=1e-6)


# ---- terminal and page ----

EVIL = '<script>alert(1)</script> \x1b[2J\x9b31m & "quoted" </main> great'


def _explanation(text: str, words: list[tuple[str, float]], label: str = "positive") -> dict[str, Any]:
    pieces = [("[CLS]", 0.0), *words, ("[SEP]", 0.0)]
    found = {
        "text": text,
        "label": label,
        "score": 0.9,
        "baseline_score": 0.4,
        "gap": 0.001,
        "pieces": [piece for piece, _ in pieces],
        "attributions": [value for _, value in pieces],
    }
    aligned = explaining.align([text], found["pieces"], found["attributions"])
    return {**found, "words": [dataclasses.asdict(word) for word in aligned if word.attribution is not None]}


ONE = _explanation(
    "The app was great, not slow", [("the", 0.0), ("app", 0.01), ("was", -0.002), ("great", 0.4), (",", 0.0), ("not", 0.2), ("slow", -0.1)]
)


def test_the_terminal_says_it_without_colour() -> None:
    assert explaining.render([ONE]) == (
        "positive  0.900 = 0.400 with every word masked +0.500 by the words (they add up to within 0.0010)\n"
        "\n"
        "The app was great⁺⁺⁺, not⁺⁺ slow⁻\n"
        "\n"
        "  great                    +0.400 ⁺⁺⁺ ████████████████████████\n"
        "  not                      +0.200 ⁺⁺  ████████████\n"
        "  slow                     -0.100 ⁻   ██████\n"
        "  app                      +0.010     █\n"
        "  was                      -0.002     █"
    )


def test_colour_only_adds() -> None:
    coloured = explaining.render([ONE], color=True)
    assert "\x1b[38;5;16;48;5;75mgreat⁺⁺⁺\x1b[0m" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == explaining.render([ONE])


def test_a_text_cannot_command_the_terminal() -> None:
    shown = explaining.render([_explanation(EVIL, [("great", 0.5)], label="a\x1b]0;title\x07b")])
    assert not [letter for letter in shown if not letter.isprintable() and letter != "\n"]


@pytest.mark.parametrize(
    ("choice", "terminal", "environment", "wanted"),
    [
        ("auto", True, {}, True),
        ("auto", False, {}, False),
        ("auto", True, {"NO_COLOR": "1"}, False),
        ("auto", True, {"TERM": "dumb"}, False),
        ("always", False, {"NO_COLOR": "1"}, True),
        ("never", True, {}, False),
    ],
)
def test_when_colour_is_used(
    choice: str, terminal: bool, environment: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    assert explaining.wants_color(choice, stream) is wanted


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_texts_and_obeys_none(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    evil = _explanation(EVIL + "\ud800", [("great", 0.5)], label="<img src=x onerror=alert(1)>")
    explaining.write_html(path, [ONE, evil, _explanation("", [])], "models/<i>/1")
    page = _Page()
    written = path.read_text(encoding="utf-8")
    page.feed(written)
    assert not {"script", "img", "i", "b", "link", "iframe"} & set(page.tags) - {"i"}
    assert page.tags.count("i") == 1  # "(empty)", and not the one in the model's name
    assert not [name for name, _ in page.attributes if name in ("src", "href", "style") or name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text
    assert "models/<i>/1" in page.text
    assert "default-src 'none'" in written
    assert "prefers-color-scheme: dark" in written
    assert '<mark class="for level3" title="+0.4000">great<sup>+++</sup></mark>' in written
    assert '<mark class="against level1" title="-0.1000">slow<sup>-</sup></mark>' in written
    assert "http" not in written.replace("http-equiv", "")


# ---- the command ----


def test_the_command_explains_a_model_and_a_run_alike(
    tiny_model: Published, tiny_run: runs.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    answers = []
    for name in (str(tiny_model.path), str(tiny_run.path)):
        assert main(["explain", name, *TEXTS[:2], "--json", "--html", str(page)]) == 0
        answers.append(json.loads(capsys.readouterr().out)["explanations"])
    assert page.is_file()
    for by_model, by_run in zip(*answers, strict=True):
        assert by_model["pieces"] == by_run["pieces"]
        np.testing.assert_allclose(by_model["attributions"], by_run["attributions"], atol=1e-4)
        assert [word["text"] for word in by_model["words"]] == [word["text"] for word in by_run["words"]]
    assert main(["explain", str(tiny_model.path), TEXTS[0], "--color", "always"]) == 0
    assert "\x1b[38;5;16;48;5;" in capsys.readouterr().out
    assert main(["explain", str(tiny_model.path), TEXTS[0]]) == 0  # not a terminal
    assert "\x1b" not in capsys.readouterr().out


def test_the_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["explain", "--help"])
    assert "example:\n  tfpipeline explain" in capsys.readouterr().out


def test_a_run_without_explanations_says_how_to_get_them(model: trained.Trained) -> None:
    config = dataclasses.replace(model.config, export=dataclasses.replace(model.config.export, explain_steps=0))
    with pytest.raises(ExportError, match=r"export\.explain_steps = 0.*Train it with a number above 0"):
        explaining.explain(dataclasses.replace(model, config=config), ["a"])


def test_a_word_is_plain_data() -> None:
    assert dataclasses.asdict(Word("a", 0.5)) == {"text": "a", "attribution": 0.5, "segment": 0}
