"""Vocabulary trimming: fewer word pieces, and so fewer rows of the embedding table, which is half of a small BERT.

Kept are the special pieces, the pieces of every text of the data, and every single-character piece (`a`, `##a`). So:

| text | what happens |
|---|---|
| one of the data | the same pieces under other numbers, hence the same answer; checked on every row, before and after |
| any other | longest match goes on over the kept pieces; a word falls apart into more, smaller pieces, at worst into single characters |
| a word whose characters have no single-character piece | spelled as before: a piece with such a character is kept |

Why a text of the data keeps its pieces: at each place of a word the longest matching piece wins; that one was kept, and whatever was dropped did not
win. One exception: a word that is [UNK] as a whole leaves no trace of the pieces tried before it failed. Rows with such a word are compared, and
where they changed, every piece that their words hold is kept too.

With `least` above 1, pieces of few texts go too: then answers of the data may change, which is counted and not refused.

It says how the model does on unseen texts as well: with the pieces of the training rows alone, on the test rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfpipeline.cleaning import LONGEST_WORD_BYTES
from tfpipeline.compress.recipes import TrimVocabulary
from tfpipeline.compress.reshape import WORD_EMBEDDINGS, arrays_of, rebuilt
from tfpipeline.data import Corpus, Examples, read_examples
from tfpipeline.errors import PipelineError
from tfpipeline.text import SPECIAL_TOKENS, Preprocessor
from tfpipeline.trained import Trained

Mask = npt.NDArray[np.bool_]
TOLERANCE = 1e-6  # the same ids through the same weights; only the order of a gather differs
_BATCH = 4096


def trim_vocabulary(trained: Trained, corpus: Corpus, settings: TrimVocabulary) -> tuple[Trained, dict[str, Any]]:
    """A model with the word pieces that the data uses.

    Args:
        trained: what to trim.
        corpus: its data.
        settings: further files.

    Returns:
        The new model, and: `pieces` ({"before", "after"}), `unspellable` (characters without single-character pieces), `rows_checked`,
        `labels_changed` (0 when every used piece is kept), `largest_difference` (of a probability), `unseen` (test rows answered with the pieces of the
        training rows alone: `rows`, `pieces`, `agreement`, `accuracy_difference`, `tokens_longer`, new tokens to old).

    Raises:
        PipelineError: a row of the data changed its answer. Nothing is kept then.
    """
    further = _further(settings.files, trained)
    texts = [*corpus.splits.values(), *further]
    vocabulary = trained.preprocessor.vocabulary
    spelled, unspellable = spelling(vocabulary)
    counts = {name: used(trained.preprocessor, examples) for name, examples in corpus.splits.items()}
    everything = np.sum([*counts.values(), *(used(trained.preprocessor, examples) for examples in further)], axis=0)
    mask = spelled | (everything >= settings.least)
    exact = settings.least == 1
    if exact:
        mask = _closed(mask, trained.preprocessor, texts)
    small = trimmed(trained, mask)
    checked = {"rows_checked": 0, "labels_changed": 0, "largest_difference": 0.0}
    answered = {}
    for name, examples in corpus.splits.items():
        before, after = (one.predict_examples(examples, batch_size=trained.config.evaluate.batch_size) for one in (trained, small))
        answered[name] = before
        checked["rows_checked"] += len(examples)
        checked["labels_changed"] += int((_decided(before, trained.task) != _decided(after, trained.task)).any(axis=1).sum())
        if len(examples):
            checked["largest_difference"] = max(checked["largest_difference"], float(np.abs(before - after).max()))
    if exact and (checked["labels_changed"] or checked["largest_difference"] > TOLERANCE):
        raise PipelineError(
            f"trim_vocabulary: of {checked['rows_checked']} rows {checked['labels_changed']} changed their label, and probabilities differ by up to "
            f"{checked['largest_difference']:.2g}; expected none, and at most {TOLERANCE:g}. The vocabulary was left as it is. Please report this with the text settings of the run."
        )
    told = {
        "pieces": {"before": len(vocabulary), "after": int(mask.sum())},
        "unspellable": unspellable,
        **checked,
        "unseen": _unseen(trained, corpus, spelled | (counts["train"] >= settings.least), answered["test"]),
    }
    return small, told


def trimmed(trained: Trained, mask: Mask) -> Trained:
    """The model with these pieces, in their old order."""
    kept = np.flatnonzero(mask)
    pieces = [trained.preprocessor.vocabulary[number] for number in kept]
    arrays = arrays_of(trained)
    arrays[WORD_EMBEDDINGS] = arrays[WORD_EMBEDDINGS][kept]
    return rebuilt(trained, arrays, vocabulary=pieces, pad_token_id=pieces.index("[PAD]"))


def spelling(vocabulary: Sequence[str]) -> tuple[Mask, int]:
    """Which pieces any word needs: the special ones, single characters, and those that hold a character without a single-character piece.

    Returns:
        bool `[pieces]`, and how many different characters lack their piece at the start of a word or inside it.
    """
    singles = {piece for piece in vocabulary if len(piece) == 1 or (len(piece) == 3 and piece.startswith("##"))}
    mask = np.zeros(len(vocabulary), bool)
    lacking: set[str] = set()
    for number, piece in enumerate(vocabulary):
        if piece in SPECIAL_TOKENS or piece in singles:
            mask[number] = True
        elif not (piece.startswith("[") and piece.endswith("]")):  # [unused12] spells nothing
            missing = set(_spelled(piece)) - singles
            lacking |= missing
            mask[number] = bool(missing)
    return mask, len(lacking)


def used(preprocessor: Preprocessor, examples: Examples) -> npt.NDArray[np.int64]:
    """How many texts of a split hold each piece, before any cut; int64 `[pieces]`."""
    size = len(preprocessor.vocabulary)
    counts = np.zeros(size, np.int64)
    for pieces in _tokens(preprocessor, examples):
        once = np.unique(pieces.value_rowids().numpy() * size + pieces.flat_values.numpy())
        counts += np.bincount(once % size, minlength=size)
    return counts


def _spelled(piece: str) -> list[str]:
    """`ab` is `a`, `##b`; `##ab` is `##a`, `##b`."""
    if piece.startswith("##") and len(piece) > 2:
        return [f"##{letter}" for letter in piece[2:]]
    return [piece[0], *(f"##{letter}" for letter in piece[1:])]


def _closed(mask: Mask, preprocessor: Preprocessor, texts: Sequence[Examples]) -> Mask:
    """The mask, and whatever rows with an [UNK] need to stay what they are (see the module's docstring)."""
    vocabulary = preprocessor.vocabulary
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    unknown = numbers["[UNK]"]
    kept = np.flatnonzero(mask)
    small = Preprocessor([vocabulary[number] for number in kept], preprocessor.config, preprocessor.lower_case)
    closed = mask.copy()
    for examples in texts:
        for column in _columns(examples):
            for batch in _batches(column):
                before = preprocessor.tokenize(batch)
                rows = np.flatnonzero(tf.reduce_any(before == unknown, axis=1).numpy())
                if not len(rows):
                    continue
                some = tf.gather(batch, rows)
                after = small.tokenize(some)
                for row, (old, new) in enumerate(zip(tf.gather(before, rows).to_list(), after.to_list(), strict=True)):
                    if old == [int(kept[number]) for number in new]:
                        continue
                    for word in preprocessor.readable(some[row : row + 1])[0].numpy().decode("utf-8").split():
                        for piece in _held(word, numbers):
                            closed[numbers[piece]] = True
    return closed


def _held(word: str, numbers: dict[str, int]) -> set[str]:
    """Every piece that the letters of a word hold."""
    word = word[:LONGEST_WORD_BYTES]
    found = {word[start:end] for start in range(len(word)) for end in range(start + 1, len(word) + 1)}
    return {piece for part in found for piece in (part, f"##{part}") if piece in numbers}


def _further(files: Sequence[str], trained: Trained) -> list[Examples]:
    return list(read_examples(files, trained.config.data, trained.labels, need_labels=False)) if files else []


def _columns(examples: Examples) -> list[Any]:
    return [column for column in (examples.texts, examples.pairs) if column is not None]


def _batches(column: Any) -> Iterable[tf.Tensor]:
    for start in range(0, len(column), _BATCH):
        yield tf.constant(column.slice(start, _BATCH).to_pylist(), tf.string)


def _tokens(preprocessor: Preprocessor, examples: Examples) -> Iterable[tf.RaggedTensor]:
    for column in _columns(examples):
        for batch in _batches(column):
            yield preprocessor.tokenize(batch)


def _decided(probabilities: npt.NDArray[np.float32], task: str) -> npt.NDArray[Any]:
    return probabilities >= 0.5 if task == "multi_label" else probabilities.argmax(axis=1)[:, np.newaxis]


def _unseen(trained: Trained, corpus: Corpus, mask: Mask, before: npt.NDArray[np.float32]) -> dict[str, Any]:
    """What trimming does to texts that had no say in it: the pieces of the training rows alone (`mask`), asked about the test rows."""
    test = corpus.test
    small = trimmed(trained, mask)
    after = small.predict_examples(test, batch_size=trained.config.evaluate.batch_size)
    decided = [_decided(answers, trained.task) for answers in (before, after)]
    truth = test.labels if trained.task == "multi_label" else test.labels[:, np.newaxis]
    right = [(answers == truth).all(axis=1) for answers in decided]
    counts = [sum(int(pieces.flat_values.shape[0]) for pieces in _tokens(one.preprocessor, test)) for one in (trained, small)]
    return {
        "rows": len(test),
        "pieces": len(small.preprocessor.vocabulary),
        "agreement": float((decided[0] == decided[1]).all(axis=1).mean()) if len(test) else None,
        "accuracy_difference": float(right[1].mean() - right[0].mean()) if len(test) else None,
        "tokens_longer": counts[1] / counts[0] if counts[0] else None,
    }
