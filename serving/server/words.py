"""Which words of one text mattered for a model's answer. Frees the page from word pieces and signatures.

In: a loaded version and one text (with its pair, if the model takes one). Out: words with what each adds to the score, JSON-ready. Two ways:

* `gradients`: the version has a signature `explain` (integrated gradients over the word embeddings); its pieces are joined to words here, and what
  the words add up to is the score less the score with every word hidden, up to `gap`.
* `left_out`: the version has none. The text is asked again once per word, without that word, and the word gets what the probability of the answer
  loses. An approximation: words that say the same hide each other, and the sum means nothing.

Nothing of this is written to a journal. Refuses models that have neither way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.server.status import Status, invalid
from serving.wire import Array

MAX_LEFT_OUT = 100  # words; each costs one more row in the model
# Han and kana have no spaces: each character for itself.
_WORD = re.compile(r"[㐀-䶿一-鿿豈-﫿぀-ヿ]|(?:(?![㐀-䶿一-鿿豈-﫿぀-ヿ])[^\W_])+(?:['’-](?:(?![㐀-䶿一-鿿豈-﫿぀-ヿ])[^\W_])+)*")
_SPECIAL = frozenset({"[CLS]", "[SEP]", "[PAD]", ""})


def explained(loaded: Any, inputs: Mapping[str, str], way: str, deadline: float | None) -> dict[str, Any]:
    """Words and what each adds.

    Args:
        loaded: an acquired version.
        inputs: one text per input of `serving_default`.
        way: `gradients` or `left_out`.
        deadline: of `time.monotonic`.

    Returns:
        `way`, `label`, `score`, `words` (each `text` and `value`); for `gradients` also `baseline_score`, `gap` and `other` (what the marks
        around the text add); for `left_out` also `cut`: the text has more words than were looked at.

    Raises:
        Status: the model says no, or has no such way.
    """
    columns = {name: [text.encode("utf-8")] for name, text in inputs.items()}
    if way == "gradients":
        answer = _gradients(loaded, columns, deadline)
    elif way == "left_out":
        answer = _left_out(loaded, inputs, columns, deadline)
    else:
        raise invalid(
            "This model cannot say which words mattered: it has no signature 'explain' and gives no probabilities. Export it again."
        )
    numbers = [*(word["value"] for word in answer["words"]), *(value for value in answer.values() if isinstance(value, float))]
    if not all(map(math.isfinite, numbers)):
        raise Status("INTERNAL", "The model answers with numbers that are not finite: which words mattered cannot be said.")
    return answer


def _gradients(loaded: Any, columns: Mapping[str, list[bytes]], deadline: float | None) -> dict[str, Any]:
    signature = loaded.signatures["explain"]
    asked = {name: _column(columns[name]) for name in signature.inputs}
    wanted = sorted({"pieces", "attributions", "label", "score", "baseline_score", "gap"} & set(signature.outputs))
    answer = loaded.run("explain", asked, wanted, deadline)
    pieces = [_decoded(piece) for piece in answer["pieces"].ravel().tolist()]
    words, other = joined(pieces, answer["attributions"].ravel().tolist())
    numbers = {name: _number(answer[name]) for name in ("score", "baseline_score", "gap") if name in answer}
    label = {"label": _decoded(answer["label"].ravel().tolist()[0])} if "label" in answer else {}
    return {"way": "gradients", **label, **numbers, "words": words, "other": other}


def joined(pieces: Sequence[str], values: Sequence[float]) -> tuple[list[dict[str, Any]], float]:
    """Word pieces as words, and the sum of the marks that are not part of the text.

    | pieces | words |
    |---|---|
    | `[CLS] un ##like ##ly [SEP] [PAD]` | `unlikely`, the sum of its three |
    | `##s` with nothing before it | `##s` |
    | `[UNK]` | `[UNK]`: a word the model does not know, which may matter all the same |
    """
    words: list[dict[str, Any]] = []
    other, can_join = 0.0, False
    for piece, value in zip(pieces, values, strict=True):
        if piece in _SPECIAL:
            other += value
            can_join = False
        elif piece.startswith("##") and len(piece) > 2 and can_join:
            words[-1]["text"] += piece[2:]
            words[-1]["value"] += value
        else:
            words.append({"text": piece, "value": value})
            can_join = True
    return words, other


def _left_out(loaded: Any, inputs: Mapping[str, str], columns: Mapping[str, list[bytes]], deadline: float | None) -> dict[str, Any]:
    signature = loaded.signatures["serving_default"]
    text = inputs["text"]
    spans = [match.span() for match in _WORD.finditer(text)]
    shown = spans[:MAX_LEFT_OUT]
    texts = [text, *(text[:start] + text[end:] for start, end in shown)]
    asked = {name: _column([one.encode("utf-8") for one in texts] if name == "text" else columns[name] * len(texts)) for name in inputs}
    answer = loaded.run("serving_default", asked, sorted({"classes", "label", "probabilities"} & set(signature.outputs)), deadline)
    probabilities = answer["probabilities"]
    if probabilities.ndim != 2 or probabilities.shape[0] != len(texts) or not probabilities.shape[1]:
        raise Status(
            "UNIMPLEMENTED", f"This model's probabilities are of shape {list(probabilities.shape)}; expected [{len(texts)}, classes]."
        )
    chosen = int(np.argmax(probabilities[0]))
    losses = (probabilities[0, chosen] - probabilities[1:, chosen]).tolist()
    named = answer["classes"][0, chosen] if "classes" in answer else answer["label"].ravel()[0] if "label" in answer else str(chosen)
    return {
        "way": "left_out",
        "label": _decoded(named),
        "score": float(probabilities[0, chosen]),
        "words": [{"text": text[start:end], "value": loss} for (start, end), loss in zip(shown, losses, strict=True)],
        "cut": len(spans) > len(shown),
    }


def _column(values: list[bytes]) -> Array:
    array = np.empty(len(values), np.object_)
    array[:] = values
    return array


def _decoded(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _number(value: Array) -> float:
    return float(value.ravel()[0])
