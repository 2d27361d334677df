"""Where a model is weak: accuracy by length, by label and by column, and the mistakes it was surest of.

In: examples and checked rows. Out: lists of plain JSON types. Does not test whether slices differ: with many slices some interval will
stand apart by chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfpipeline.evaluate.intervals import wilson
from tfpipeline.evaluate.rows import Bools, ExamplesLike, Ints, Rows, strings

LONGEST_TEXT = 500  # characters of a mistake's text
MOST_VALUES = 20  # of one column; the rest is one slice
OTHER, MISSING = "(all others)", "(missing)"

# Texts count as written without spaces when their words are longer than this on average. English has about 5 letters a word, German 6,
# Finnish 8, running Chinese or Japanese 20 and more (a "word" is then what stands between two spaces).
LETTERS_PER_WORD_WITHOUT_SPACES = 15
TEXTS_LOOKED_AT = 2000


def slices(
    examples: ExamplesLike, rows: Rows, labels: tuple[str, ...], confidence: float, token_lengths: npt.NDArray[Any] | None
) -> list[dict[str, Any]]:
    """Accuracy per slice, with Wilson intervals.

    Returns:
        One group per way of slicing: {"by": "length" | "label" | a column, "unit": "tokens" | "words" | "characters" | None,
        "rows": [{"value", "n", "correct", "accuracy", "low", "high"}]}. Empty slices are left out. By label: the rows that carry it.
    """
    unit, lengths = ("tokens", np.asarray(token_lengths)) if token_lengths is not None else count_lengths(strings(examples.texts))
    groups: list[dict[str, Any]] = [
        {"by": "length", "unit": unit, "rows": _slice_rows(_by_length(lengths), rows.correct, confidence)},
        {"by": "label", "unit": None, "rows": _slice_rows(zip(labels, rows.truth.T, strict=True), rows.correct, confidence)},
    ]
    for column, values in examples.slices.items():
        groups.append({"by": column, "unit": None, "rows": _slice_rows(_by_value(strings(values)), rows.correct, confidence)})
    return groups


def worst_mistakes(examples: ExamplesLike, rows: Rows, labels: tuple[str, ...], most: int) -> list[dict[str, Any]]:
    """The wrong rows the model was surest of, surest first.

    Returns:
        {"id", "source", "text" (cut to 500 characters), "text_pair" (where the task has one), "true", "predicted", "probability" (of the
        worst wrong
        decision: of the predicted label, or 1 - p for a label that was missed)}. `true` and `predicted` are lists of names when
            multi-label.
    """
    if rows.task == "single_label":
        confidence = rows.probabilities.max(axis=1)
    else:
        confidence = np.where(rows.truth != rows.predicted, np.maximum(rows.probabilities, 1 - rows.probabilities), 0.0).max(axis=1)
    wrong = np.flatnonzero(~rows.correct)
    chosen = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    columns = {"id": examples.ids, "source": examples.sources, "text": examples.texts}
    if examples.pairs is not None:
        columns["text_pair"] = examples.pairs
    taken = {name: strings(column.take(chosen)) for name, column in columns.items()}
    return [
        {
            **{name: _cut(values[place]) for name, values in taken.items()},
            "true": _names(rows.truth[row], labels, rows.task),
            "predicted": _names(rows.predicted[row], labels, rows.task),
            "probability": float(confidence[row]),
        }
        for place, row in enumerate(chosen)
    ]


def count_lengths(texts: Sequence[str]) -> tuple[str, Ints]:
    """("words" or "characters", how many each text has): characters where texts are written without spaces."""
    if without_spaces(texts):
        return "characters", np.array([len(text) for text in texts], dtype=np.int64)
    return "words", np.array([len(text.split()) for text in texts], dtype=np.int64)


def without_spaces(texts: Sequence[str]) -> bool:
    """Whether most texts are in a script that does not put spaces between words (Chinese, Japanese, Thai).

    The rule: more than half of the (first 2000, not empty) texts have more than 15 characters between two spaces on average.
    """
    words = [text.split() for text in texts[:TEXTS_LOOKED_AT]]
    words = [of_text for of_text in words if of_text]
    long = sum(sum(map(len, of_text)) / len(of_text) > LETTERS_PER_WORD_WITHOUT_SPACES for of_text in words)
    return long > len(words) / 2


def _by_length(lengths: npt.NDArray[Any]) -> Iterable[tuple[str, Bools]]:
    """Slices that double in width: up to 8, 9-16, 17-32, ... The last one is closed by the longest text."""
    yield "0-8", lengths <= 8
    edge = 8
    while edge < lengths.max():
        yield f"{edge + 1}-{2 * edge}", (lengths > edge) & (lengths <= 2 * edge)
        edge *= 2


def _by_value(values: list[str]) -> Iterable[tuple[str, Bools]]:
    """The commonest values first; beyond `MOST_VALUES` the rest is one slice."""
    column = np.array([value or MISSING for value in values], dtype=object)
    common = [value for value, _ in Counter(column.tolist()).most_common()]
    kept = common if len(common) <= MOST_VALUES else common[: MOST_VALUES - 1]
    for value in kept:
        yield value, np.asarray(column == value, dtype=bool)
    if len(kept) < len(common):
        yield OTHER, ~np.isin(column, kept)


def _slice_rows(parts: Iterable[tuple[str, Bools]], correct: Bools, confidence: float) -> list[dict[str, Any]]:
    found = []
    for value, mask in parts:
        n, right = int(mask.sum()), int((mask & correct).sum())
        if n:
            interval = wilson(right, n, confidence)
            found.append(
                {"value": value, "n": n, "correct": right, "accuracy": interval["value"], "low": interval["low"], "high": interval["high"]}
            )
    return found


def _names(row: Bools, labels: tuple[str, ...], task: str) -> str | list[str]:
    names = [labels[number] for number in np.flatnonzero(row)]
    return names[0] if task == "single_label" else names


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
