"""Trimmed vocabularies, students, structured pruning: what the new model must have in common with the old one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import tensorflow as tf

from tfpipeline import data, runs, trained
from tfpipeline.compress import measure, reshape, trim
from tfpipeline.compress.layers import keep_layers, spread, student
from tfpipeline.compress.recipes import KeepLayers, Structured, Student, TrimVocabulary
from tfpipeline.compress.structured import importance, keep, structured
from tfpipeline.config import TextConfig
from tfpipeline.errors import PipelineError
from tfpipeline.model import layer_shapes
from tfpipeline.techniques import zeros
from tfpipeline.text import SPECIAL_TOKENS, Preprocessor
from tfpipeline.trained import Trained

UNUSED = ("cobra", "cob", "##bra", "quokka", "##okka", "[unused7]")


@pytest.fixture(scope="module")
def corpus(tiny_run: runs.Run) -> data.Corpus:
    return data.open_prepared(tiny_run.path / "data")


@pytest.fixture(scope="module")
def model(tiny_run: runs.Run) -> Trained:
    return trained.load(tiny_run)


@pytest.fixture(scope="module")
def wordy(model: Trained) -> Trained:
    """The tiny model with word pieces that no text of its data has, in the middle of its vocabulary."""
    pieces = list(model.preprocessor.vocabulary)
    middle = len(pieces) // 2
    arrays = reshape.arrays_of(model)
    table = arrays[reshape.WORD_EMBEDDINGS]
    extra = np.random.default_rng(0).normal(size=(len(UNUSED), table.shape[1])).astype(np.float32)
    arrays[reshape.WORD_EMBEDDINGS] = np.concatenate([table[:middle], extra, table[middle:]])
    return reshape.rebuilt(model, arrays, vocabulary=[*pieces[:middle], *UNUSED, *pieces[middle:]])


def examples_of(*texts: str) -> data.Examples:
    table = pa.table({"id": [str(number) for number in range(len(texts))], "text": list(texts), "source": [""] * len(texts)})
    return data.Examples(table, np.zeros(len(texts), np.int32), np.ones(len(texts), np.float32), ("a", "b"))


def answers(one: Trained, corpus: data.Corpus) -> npt.NDArray[np.float32]:
    return np.concatenate([one.predict_examples(split) for split in corpus.splits.values()])


def words(preprocessor: Preprocessor, text: str) -> list[str]:
    return [preprocessor.vocabulary[number] for number in preprocessor.tokenize(tf.constant([text]))[0].numpy()]


# ---- the vocabulary ----


def test_texts_of_the_data_are_answered_as_before(wordy: Trained, corpus: data.Corpus) -> None:
    small, told = trim.trim_vocabulary(wordy, corpus, TrimVocabulary())
    rows = sum(map(len, corpus.splits.values()))
    assert told["pieces"]["after"] == len(small.preprocessor.vocabulary) <= told["pieces"]["before"] - len(UNUSED)
    assert (told["rows_checked"], told["labels_changed"]) == (rows, 0)
    assert told["largest_difference"] <= 1e-6
    np.testing.assert_allclose(answers(small, corpus), answers(wordy, corpus), atol=1e-6)
    assert small.model.bert.embeddings.weight.shape[0] == small.backbone.architecture["vocab_size"] == told["pieces"]["after"]


def test_their_pieces_are_the_same_ones(wordy: Trained, corpus: data.Corpus) -> None:
    small, _ = trim.trim_vocabulary(wordy, corpus, TrimVocabulary())
    for text in corpus.test.texts.to_pylist():
        assert words(small.preprocessor, text) == words(wordy.preprocessor, text)


def test_unseen_words_are_still_spelled(wordy: Trained, corpus: data.Corpus) -> None:
    small, told = trim.trim_vocabulary(wordy, corpus, TrimVocabulary())
    assert not set(UNUSED) & set(small.preprocessor.vocabulary)
    letters = {piece for piece in wordy.preprocessor.vocabulary if len(piece) == 1 and f"##{piece}" in wordy.preprocessor.vocabulary}
    unseen = [word for word in ("cobra", "quokka", "brabra", "tomato", "clerkless") if set(word) <= letters]
    assert len(unseen) >= 2
    for word in unseen:
        assert "[UNK]" not in words(wordy.preprocessor, word)
        spelled = words(small.preprocessor, word)
        assert "".join(piece.removeprefix("##") for piece in spelled) == word
    assert told["unseen"]["rows"] == len(corpus.test)
    assert 0 <= told["unseen"]["agreement"] <= 1


def test_more_files_keep_more_pieces(wordy: Trained, corpus: data.Corpus, tmp_path: Any) -> None:
    file = tmp_path / "more.csv"
    file.write_text("text\na cobra\n")
    small, _ = trim.trim_vocabulary(wordy, corpus, TrimVocabulary(files=(str(file),)))
    assert "cobra" in small.preprocessor.vocabulary
    assert "quokka" not in small.preprocessor.vocabulary


def test_pieces_are_counted_by_text() -> None:
    preprocessor = Preprocessor([*SPECIAL_TOKENS, "a", "b"], TextConfig(), lower_case=True)
    assert trim.used(preprocessor, examples_of("a a b", "a", "")).tolist() == [0, 0, 0, 0, 0, 2, 1]


def test_pieces_of_few_texts_may_go_and_changes_are_counted(wordy: Trained, corpus: data.Corpus) -> None:
    small, told = trim.trim_vocabulary(wordy, corpus, TrimVocabulary(least=10_000))
    assert told["pieces"]["after"] == int(trim.spelling(wordy.preprocessor.vocabulary)[0].sum())
    assert told["labels_changed"] > 0
    assert "[UNK]" not in words(small.preprocessor, "the app was great today")


def test_a_piece_whose_characters_cannot_be_spelled_stays() -> None:
    mask, lacking = trim.spelling([*SPECIAL_TOKENS, "a", "##b", "ab", "##bx", "xb", "[unused1]"])
    kept = dict(zip((*SPECIAL_TOKENS, "a", "##b", "ab", "##bx", "xb", "[unused1]"), mask, strict=True))
    assert all(kept[piece] for piece in (*SPECIAL_TOKENS, "a", "##b", "##bx", "xb"))
    assert not kept["ab"]
    assert not kept["[unused1]"]
    assert lacking == 2  # x inside a word, x at its start


def test_a_word_that_was_unknown_stays_unknown() -> None:
    """`abx`: `ab` wins, then nothing fits: [UNK]. Without `ab`, `a` and `##bx` would spell it, and the row would change."""
    vocabulary = [*SPECIAL_TOKENS, "a", "##b", "ab", "##bx"]
    before = Preprocessor(vocabulary, TextConfig(), lower_case=True)
    examples = examples_of("abx", "ab a")
    assert words(before, "abx") == ["[UNK]"]
    mask = trim.spelling(vocabulary)[0] | (trim.used(before, examples_of("abx")) > 0)
    assert not mask[vocabulary.index("ab")]
    closed = trim._closed(mask, before, [examples])
    assert closed[vocabulary.index("ab")]


def test_a_changed_answer_is_refused(wordy: Trained, corpus: data.Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = trim.trimmed

    def shuffled(one: Trained, mask: npt.NDArray[np.bool_]) -> Trained:
        small = honest(one, mask)
        table = small.model.bert.embeddings.weight
        table.assign(tf.reverse(table, axis=[0]))
        return small

    monkeypatch.setattr(trim, "trimmed", shuffled)
    with pytest.raises(PipelineError, match=r"trim_vocabulary: of \d+ rows \d+ changed their label"):
        trim.trim_vocabulary(wordy, corpus, TrimVocabulary())


# ---- students ----


@pytest.mark.parametrize(
    ("count", "depth", "layers"),
    [(3, 6, [0, 2, 5]), (6, 6, [0, 1, 2, 3, 4, 5]), (2, 6, [0, 5]), (1, 6, [0]), (1, 2, [0]), (6, 12, [0, 2, 4, 7, 9, 11])],
)
def test_layers_are_spread_from_the_lowest_to_the_highest(count: int, depth: int, layers: list[int]) -> None:
    assert spread(count, depth) == layers


def test_a_student_has_the_layers_of_its_teacher(model: Trained, corpus: data.Corpus) -> None:
    small, told = keep_layers(model, corpus, KeepLayers(layers=(1,)))
    assert told == {"layers": [1], "of": 2}
    assert small.backbone.architecture["num_hidden_layers"] == len(small.model.bert.encoder.layer) == 1
    theirs, ours = reshape.arrays_of(model), reshape.arrays_of(small)
    for place, value in ours.items():
        np.testing.assert_array_equal(value, theirs[place.replace("layer/0/", "layer/1/")])
    assert small.predict(["the app was great today"]).shape == (1, 2)


def test_a_student_of_all_layers_answers_like_its_teacher(model: Trained, corpus: data.Corpus) -> None:
    same, _ = keep_layers(model, corpus, KeepLayers(count=2))
    np.testing.assert_allclose(answers(same, corpus), answers(model, corpus), atol=1e-6)


def test_a_new_student_reads_the_ids_of_its_teacher(model: Trained, corpus: data.Corpus) -> None:
    small, told = student(model, corpus, Student(backbone="scratch:tiny"))
    assert small.preprocessor.vocabulary == model.preprocessor.vocabulary
    assert small.labels == model.labels
    assert told["hidden_size"] == 128
    assert not np.allclose(answers(small, corpus), answers(model, corpus), atol=1e-3)


# ---- structured ----


@pytest.fixture(scope="module")
def idle(model: Trained) -> Trained:
    """The tiny model with a head of each layer, and half of the feed-forward columns, that nothing reads."""
    arrays = reshape.arrays_of(model)
    for number, head in ((0, 1), (1, 0)):
        prefix = reshape.LAYER.format(number)
        arrays[f"{prefix}{reshape.HEAD_OUTPUT}kernel"][64 * head : 64 * (head + 1)] = 0
        arrays[f"{prefix}{reshape.FEED_FORWARD_OUTPUT}kernel"][number::2] = 0
    return reshape.rebuilt(model, arrays)


def test_what_nothing_reads_goes_first_and_no_answer_changes(idle: Trained, corpus: data.Corpus) -> None:
    small, told = structured(idle, corpus, Structured(heads=0.5, feed_forward=0.5, rows=64))
    assert told["layer_shapes"]["before"] == [{"heads": 2, "intermediate": 512}] * 2
    assert told["layer_shapes"]["after"] == layer_shapes(small.backbone.architecture) == [{"heads": 1, "intermediate": 256}] * 2
    np.testing.assert_allclose(answers(small, corpus), answers(idle, corpus), atol=1e-5)
    before, after = (sum(value.size for value in reshape.arrays_of(one).values()) for one in (idle, small))
    assert after < 0.75 * before


def test_a_smaller_model_can_be_made_smaller_again(idle: Trained, corpus: data.Corpus) -> None:
    once, _ = structured(idle, corpus, Structured(feed_forward=0.5, rows=32))
    twice, told = structured(once, corpus, Structured(feed_forward=0.5, rows=32))
    assert sum(shape["intermediate"] for shape in told["layer_shapes"]["after"]) == 256
    one_layer, _ = keep_layers(twice, corpus, KeepLayers(layers=(1,)))
    assert one_layer.backbone.architecture["layer_shapes"] == [told["layer_shapes"]["after"][1]]
    assert one_layer.predict(["the app was great today"]).shape == (1, 2)


def test_importance_is_the_gradient_by_a_gate(model: Trained, corpus: data.Corpus) -> None:
    """Against the difference quotient: scale what reads a head a little up and down, and look at the loss of the same batch."""
    few = data.Corpus(corpus.task, corpus.has_pairs, corpus.labels, corpus.train.take(np.arange(8)), corpus.validation, corpus.test, {}, {})
    heads, columns, rows = importance(model, few, 8)
    assert rows == 8
    arrays = reshape.arrays_of(model)

    def loss(place: str, chosen: slice, scale: float) -> float:
        changed = {**arrays, place: arrays[place].copy()}
        changed[place][chosen] *= scale
        probabilities = reshape.rebuilt(model, changed).predict_examples(few.train).astype(np.float64)
        return float(-np.log(probabilities[np.arange(8), few.train.labels]).mean())

    step = 0.05
    for place, chosen, expected in (
        (f"{reshape.LAYER.format(1)}{reshape.HEAD_OUTPUT}kernel", slice(0, 64), heads[1][0]),
        (f"{reshape.LAYER.format(0)}{reshape.HEAD_OUTPUT}kernel", slice(64, 128), heads[0][1]),
    ):
        slope = abs(loss(place, chosen, 1 + step) - loss(place, chosen, 1 - step)) / (2 * step)
        assert expected == pytest.approx(slope, rel=0.05, abs=1e-4)
    assert [len(one) for one in columns] == [512, 512]


@pytest.mark.parametrize(
    ("case", "dropped", "least", "multiple", "kept"),
    [
        ("nothing", 0.0, 1, 1, [[0, 1, 2, 3], [0, 1, 2, 3]]),
        ("the least of all layers", 0.5, 1, 1, [[1, 2, 3], [0]]),
        ("a layer keeps its best", 0.875, 1, 1, [[3], [0]]),
        ("in pairs", 0.6, 2, 2, [[2, 3], [0, 3]]),
        ("at least all there is", 0.9, 8, 8, [[0, 1, 2, 3], [0, 1, 2, 3]]),
    ],
)
def test_all_layers_compete(case: str, dropped: float, least: int, multiple: int, kept: list[list[int]]) -> None:
    scores = [np.array([1.0, 2.0, 3.0, 4.0]), np.array([90.0, 1.0, 2.0, 30.0])]
    assert [one.tolist() for one in keep(scores, dropped, least=least, multiple=multiple)] == kept, case


# ---- what is measured ----


def test_zeros_are_counted_by_layer(idle: Trained) -> None:
    found = measure.sparsity(idle)
    assert found["layers"]["layer 0 attention output"] == pytest.approx(0.5)
    assert found["layers"]["layer 1 feed_forward out"] == pytest.approx(0.5)
    assert found["layers"]["layer 0 attention query"] == 0.0
    # One quarter of the attention's four kernels is half empty, and one of the two of the feed-forward part.
    assert (found["attention"], found["feed_forward"]) == (pytest.approx(0.125), pytest.approx(0.25))
    assert 0.125 < found["encoder"] < 0.25


def test_two_of_four_is_counted_along_the_inputs_of_an_output() -> None:
    kernel = np.ones((8, 3), np.float32)
    kernel[[0, 1, 4]] = 0
    assert zeros.in_fours(kernel).tolist() == [2, 1] * 3


def test_models_are_timed_in_turn(corpus: data.Corpus) -> None:
    order: list[str] = []
    found = measure.latency({"a": lambda text, pair: order.append("a"), "b": lambda text, pair: order.append("b")}, corpus.test, 5, 2)
    assert order[-10:] == ["a", "b"] * 5
    assert found["a"].keys() == {"p50", "p95", "texts", "threads"}
    assert found["b"]["texts"] == 5
