"""Attributions of word pieces to something a person reads: words of the text, coloured lines in a terminal, one HTML page.

In: texts and what `tfpipeline.attribution` says of them. Out: plain types, a string for the terminal, a page. Colour is never the only carrier: marks
(`+++` to `---`) and numbers say the same. The page holds no script, no other file and no foreign host; texts are escaped in both.

**From pieces to words**, the rule that every page repeats:

1. `[CLS]` and `[SEP]` are left out (their attribution is 0); the first `[SEP]` ends the first text of a pair.
2. A piece that begins with `##` belongs to the word before it: texts joined without the `##`, attributions added.
3. Each word is looked for in the text from where the word before it ended, both folded (letter by letter: decomposed, marks dropped, lower case), at
   most 64 characters ahead; where more than white space lies between, only as a whole word. Found: the word is shown as written.
4. Words that are not found (`[UNK]`, a URL that became `url`) share what is left between their neighbours, as one piece of text, their attributions added;
   where nothing but white space is left, each is shown as the model read it.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from tfpipeline.attribution import Attribution, explained
from tfpipeline.errors import ExportError
from tfpipeline.evaluate.page import document
from tfpipeline.evaluate.terminal import columns, fit
from tfpipeline.runs import atomic_write
from tfpipeline.trained import Trained

FARTHEST = 64  # characters between two words that follow each other: a tag, a row of emoji
SPECIAL = ("[CLS]", "[SEP]")
LEVELS = (0.15, 0.4, 0.75)  # of the largest attribution: one, two, three marks
STRONGEST = 8  # words in the list below the text
BAR = 24  # columns

# 256-colour backgrounds with black letters, faint to strong: blue for, orange against, which stay apart for the colour-blind.
_FOR, _AGAINST = (153, 111, 75), (223, 215, 208)


@dataclass(frozen=True)
class Word:
    """A stretch of a text.

    Attributes:
        text: as written (or as the model read it, where it cannot be found in the text).
        attribution: what it adds to the probability of the explained label; None for what lies between words.
        segment: 0 for the first text, 1 for the second of a pair.
    """

    text: str
    attribution: float | None
    segment: int = 0


def explain(model: Any, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Explanations of texts by an exported model or a trained run.

    Args:
        model: an `Exported` or a `Trained`.
        texts: any number.
        pairs: the second texts, for a model of pairs.

    Returns:
        For each text `text`, (`text_pair`,) `label`, `score`, `baseline_score`, `gap`, `pieces`, `attributions`, and `words`: `Word`s as dicts, in the
        order of the text, without those that lie between words.

    Raises:
        ExportError: the model has no explanations.
    """
    found = model.explain(texts, pairs) if hasattr(model, "explain") else _explain_run(model, texts, pairs)
    result = []
    for number, one in enumerate(found):
        sent = {"text": texts[number]} | ({} if pairs is None else {"text_pair": pairs[number]})
        words = [asdict(word) for word in align(list(sent.values()), one["pieces"], one["attributions"]) if word.attribution is not None]
        result.append({**sent, **one, "words": words})
    return result


def _explain_run(trained: Trained, texts: Sequence[str], pairs: Sequence[str] | None) -> list[dict[str, Any]]:
    import tensorflow as tf

    steps = trained.config.export.explain_steps
    if not steps:
        raise ExportError(
            "this run has export.explain_steps = 0: how fine its explanations should be is not known. Train it with a number above 0."
        )
    string = tf.TensorSpec([None], tf.string)
    function = tf.function(Attribution(trained, steps), input_signature=[string] * (1 if pairs is None else 2), autograph=False)
    return explained(function, texts, pairs)


def join(pieces: Sequence[str], attributions: Sequence[float]) -> list[list[tuple[str, float]]]:
    """Rules 1 and 2 of the module's docstring: for each text of the row its words, as the model read them, with their attributions."""
    segments: list[list[tuple[str, float]]] = [[]]
    for piece, attribution in zip(pieces, attributions, strict=True):
        words = segments[-1]
        if piece == "[SEP]":
            segments.append([])
        elif piece in SPECIAL:
            continue
        elif piece.startswith("##") and words:
            words[-1] = (words[-1][0] + piece[2:], words[-1][1] + attribution)
        else:
            words.append((piece, attribution))
    return segments[:-1]  # the last [SEP] ends the row


def align(texts: Sequence[str], pieces: Sequence[str], attributions: Sequence[float]) -> list[Word]:
    """Rules 3 and 4: the texts of a row cut into words and what lies between; joined together they are the texts again, wherever words were found."""
    return [
        word
        for segment, (text, words) in enumerate(zip(texts, join(pieces, attributions), strict=True))
        for word in _align(text, words, segment)
    ]


def _align(text: str, words: list[tuple[str, float]], segment: int) -> Iterator[Word]:
    folded, places = _fold(text)
    places.append(len(text))
    cursor = 0
    lost: list[tuple[str, float]] = []
    for word, attribution in words:
        target = _fold(word)[0]
        place = -1 if word == "[UNK]" else _find(folded, target, cursor, FARTHEST * (1 + len(lost)))
        if place < 0:
            lost.append((word, attribution))
            continue
        yield from _between(text[places[cursor] : places[place]], lost, segment)
        cursor, lost = place + len(target), []
        yield Word(text[places[place] : places[cursor]], attribution, segment)
    yield from _between(text[places[cursor] :], lost, segment)


def _between(text: str, lost: list[tuple[str, float]], segment: int) -> Iterator[Word]:
    core = text.strip()
    if lost and core and len(core) <= FARTHEST * len(lost):
        before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
        stretches = [Word(before, None, segment), Word(core, sum(value for _, value in lost), segment), Word(after, None, segment)]
    else:
        stretches = [*(Word(word, value, segment) for word, value in lost), Word(text, None, segment)]
    return (stretch for stretch in stretches if stretch.text)


def _fold(text: str) -> tuple[str, list[int]]:
    """The text as words are compared, and for each of its characters the place of the original one."""
    folded, places = [], []
    for place, letter in enumerate(text):
        for part in unicodedata.normalize("NFD", letter):
            if unicodedata.category(part) not in ("Mn", "Cf"):
                for small in part.lower():
                    folded.append(small)
                    places.append(place)
    return "".join(folded), places


def _find(folded: str, target: str, cursor: int, farthest: int) -> int:
    """Where the word begins, -1 for nowhere near: right after the last one, or further on as a whole word."""
    end = cursor + farthest + len(target)
    place = folded.find(target, cursor, end) if target else -1
    while place >= 0 and folded[cursor:place].strip():
        after = place + len(target)
        if not _within(folded, place) and not _within(folded, after):
            break
        place = folded.find(target, place + 1, end)
    return place


def _within(folded: str, place: int) -> bool:
    """Whether a word goes on across this place. Han and kana stand without spaces."""
    letters = folded[max(0, place - 1) : place + 1]
    return 0 < place < len(folded) and all(letter.isalnum() and ord(letter) < 0x2E80 for letter in letters)


def wants_color(choice: str, stream: Any) -> bool:
    """`always`, `never`, or `auto`: on a terminal, unless NO_COLOR is set (https://no-color.org) or it is a dumb one."""
    if choice != "auto":
        return choice == "always"
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def render(explanations: Sequence[dict[str, Any]], *, color: bool = False) -> str:
    """For a terminal: the label, the text with its marks, the words that matter most."""
    blocks = []
    for one in explanations:
        largest = _largest(one)
        line = "".join(_painted(word, _level(word.attribution, largest), color) for word in _stretches(one))
        lines = [f"{_plain(one['label']) or '(none)'}  {_sentence(one)}", "", line or "(empty)", ""]
        for word in _strongest(one):
            value = word["attribution"]
            name = fit(word["text"], 24)
            bar = "█" * max(1, round(BAR * abs(value) / largest)) if largest else ""
            lines.append(f"  {name}{' ' * (24 - columns(name))} {value:+.3f} {_marks(_level(value, largest)):<3} {bar}".rstrip())
        blocks.append("\n".join(lines).rstrip())
    return "\n\n\n".join(blocks)


def _sentence(one: dict[str, Any]) -> str:
    return (
        f"{one['score']:.3f} = {one['baseline_score']:.3f} with every word masked {one['score'] - one['baseline_score']:+.3f} by the words"
        f" (they add up to within {abs(one['gap']):.4f})"
    )


def _stretches(one: dict[str, Any]) -> list[Word]:
    texts = [one["text"]] + ([one["text_pair"]] if "text_pair" in one else [])
    found = align(texts, one["pieces"], one["attributions"])
    second = next((place for place, word in enumerate(found) if word.segment), None)
    return found if second is None else [*found[:second], Word(" | ", None), *found[second:]]


def _strongest(one: dict[str, Any]) -> list[dict[str, Any]]:
    found = [word for word in one["words"] if word["attribution"]]
    return sorted(found, key=lambda word: -abs(word["attribution"]))[:STRONGEST]


def _largest(one: dict[str, Any]) -> float:
    return max((abs(word["attribution"]) for word in one["words"]), default=0.0)


def _level(attribution: float | None, largest: float) -> int:
    """-3 (strongly against the label) to 3 (strongly for it)."""
    if not attribution or not largest:
        return 0
    level = sum(abs(attribution) >= share * largest for share in LEVELS)
    return level if attribution > 0 else -level


def _marks(level: int) -> str:
    return ("⁺" if level > 0 else "⁻") * abs(level)


def _plain(text: str) -> str:
    """A text may hold escape sequences, which a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _painted(word: Word, level: int, color: bool) -> str:
    text = _plain(word.text) + _marks(level)
    if not level or not color:
        return text
    shade = _FOR[level - 1] if level > 0 else _AGAINST[-level - 1]
    return f"\x1b[38;5;16;48;5;{shade}m{text}\x1b[0m"


def write_html(path: Path, explanations: Sequence[dict[str, Any]], model: str) -> None:
    """The page, whole or not at all."""
    with atomic_write(path) as stream:
        stream.write(render_html(explanations, model).encode("utf-8", "replace"))  # a text may hold half a surrogate pair


def render_html(explanations: Sequence[dict[str, Any]], model: str) -> str:
    """One page that can be mailed: light and dark, no script, no request."""
    legend = (
        "<p>Blue words with + speak for the label, orange words with - against it; the more, the stronger. The numbers are differences in the label's"
        " probability (integrated gradients), so they add up to what the text changed.</p>"
    )
    return document("Explanations", f"<bdi>{escape(model)}</bdi>", [legend, *map(_section, explanations)], style=_MARKS_STYLE)


def _section(one: dict[str, Any]) -> str:
    largest = _largest(one)
    text = "".join(_marked(word, _level(word.attribution, largest)) for word in _stretches(one))
    rows = "\n".join(
        f"<tr><td><bdi>{escape(word['text'])}</bdi></td><td>{_marks(_level(word['attribution'], largest))}</td>"
        f'<td class="number">{word["attribution"]:+.4f}</td></tr>'
        for word in _strongest(one)
    )
    head = '<tr><th>word</th><th></th><th class="number">adds</th></tr>'
    table = f'<div class="scroll" tabindex="0"><table><thead>{head}</thead><tbody>\n{rows}\n</tbody></table></div>' if rows else ""
    return (
        f'<section>\n<h2><bdi>{escape(one["label"]) or "(none)"}</bdi></h2>\n<p class="note">{escape(_sentence(one))}</p>\n'
        f'<p class="explained" dir="auto">{text or "<i>(empty)</i>"}</p>\n{table}\n</section>'
    )


def _marked(word: Word, level: int) -> str:
    text = escape(word.text)
    if not level:
        return text
    kind = "for" if level > 0 else "against"
    return f'<mark class="{kind} level{abs(level)}" title="{word.attribution:+.4f}">{text}<sup>{("+" if level > 0 else "-") * abs(level)}</sup></mark>'


# Ink on the strongest shade keeps a contrast above 4.5 in both themes.
_MARKS_STYLE = """
.explained { font-size: 1.125rem; line-height: 2; white-space: pre-wrap; background: var(--panel); border-radius: 8px; padding: 12px 16px; }
mark { color: var(--ink); border-radius: 4px; padding: 2px 1px; }
mark sup { color: var(--ink); font-size: 0.65em; letter-spacing: -0.05em; }
mark.for { background: rgba(31, 111, 208, var(--shade)); border-bottom: 2px solid var(--first); }
mark.against { background: rgba(194, 87, 0, var(--shade)); border-bottom: 2px dashed var(--second); }
mark.level1 { --shade: 0.12; } mark.level2 { --shade: 0.25; } mark.level3 { --shade: 0.42; }
"""
