"""The domain classifier tells other topics and languages, and chance from a difference."""

from __future__ import annotations

import random

import numpy as np
import pytest

from serving.monitor import domain
from serving.monitor.domain import separate

BANK = ("card", "loan", "branch", "transfer", "clerk", "fee", "account", "statement", "cash", "payment", "app", "queue")
FILM = ("plot", "actor", "scene", "director", "drama", "script", "comedy", "screen", "story", "camera", "cast", "ending")
COMMON = ("the", "was", "and", "very", "good", "bad", "today", "not", "again", "so", "that", "with")


def texts(words: tuple[str, ...], count: int, seed: int) -> list[str]:
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(words + COMMON, k=8)) for _ in range(count)]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_texts_of_one_kind_cannot_be_told_apart() -> None:
    deviations = []
    for seed in range(10):
        found = separate(texts(BANK, 120, seed), texts(BANK, 200, seed + 100), np.random.default_rng(seed))
        assert found is not None
        deviations.append((found.auc - found.chance_mean) / found.chance_deviation)
        assert found.chance_mean == pytest.approx(0.5, abs=0.02)
        assert found.words == ()
    assert max(map(abs, deviations)) < 3.5
    assert abs(sum(deviations)) / 10 < 1


def test_another_topic_is_told_with_the_words_that_give_it_away() -> None:
    found = separate(texts(FILM, 100, 1), texts(BANK, 300, 2), rng())
    assert found is not None
    assert found.auc > 0.98
    assert found.p_value < 1e-9
    assert found.exceeding == 0
    assert set(found.words) <= set(FILM)
    assert len(found.words) == 8


@pytest.mark.parametrize(("share", "low", "high"), [(0.2, 0.55, 0.68), (0.6, 0.72, 0.86)])
def test_a_share_of_foreign_texts_shows_as_about_half_of_it_above_a_half(share: float, low: float, high: float) -> None:
    foreign = texts(FILM, int(300 * share), 1)
    found = separate(foreign + texts(BANK, 300 - len(foreign), 2), texts(BANK, 400, 3), rng())
    assert found is not None
    assert low < found.auc < high


def test_another_script_is_told_with_pairs_of_characters() -> None:
    chooser = random.Random(0)
    chinese = ["房间很大，" + "".join(chooser.choices("服务不错酒店早餐差非常", k=12)) for _ in range(60)]
    found = separate(chinese, texts(BANK, 60, 2), rng())
    assert found is not None
    assert found.auc == pytest.approx(1.0)
    assert "房间" in found.words


def test_fewer_texts_than_can_be_judged_are_not_judged() -> None:
    assert separate(texts(FILM, domain.LEAST_TEXTS - 1, 1), texts(BANK, 300, 2), rng()) is None
    assert separate(texts(FILM, 300, 1), texts(BANK, domain.LEAST_TEXTS - 1, 2), rng()) is None


def test_a_text_that_is_sent_again_and_again_counts_once() -> None:
    assert separate(["is the service up"] * 500, texts(BANK, 300, 2), rng()) is None
    many = texts(BANK, 100, 1)
    found = separate([*many, *many, "  " + many[0].upper()], texts(BANK, 300, 2), rng())
    assert found is not None
    assert found.window_texts == len(set(many))


def test_a_word_of_few_texts_is_not_shown() -> None:
    window = texts(FILM, 100, 1)
    for number in range(domain.LEAST_TEXTS_OF_A_WORD - 1):
        window[number] += " Johanna"
    assert "johanna" not in _words(window)
    window[50] += " Johanna"
    assert domain._documents([text.casefold() for text in window])["johanna"] == domain.LEAST_TEXTS_OF_A_WORD


def _words(window: list[str]) -> tuple[str, ...]:
    return domain._telling_words([text.casefold() for text in window], texts(BANK, 100, 2), most=1_000)


def test_the_same_texts_and_seed_give_the_same_answer() -> None:
    assert separate(texts(FILM, 80, 1), texts(BANK, 80, 2), rng()) == separate(texts(FILM, 80, 1), texts(BANK, 80, 2), rng())


def test_held_out_scores_from_one_inverse_are_those_of_a_fit_without_the_held_out_rows() -> None:
    features = domain._features(texts(FILM, 40, 1) + texts(BANK, 60, 2)).astype(np.float64)
    kernel = features @ features.T
    targets = np.r_[np.full(40, 0.6), np.full(60, -0.4)]
    held = np.arange(100) % 5 == 0
    inverse = np.linalg.inv(kernel + np.eye(100))
    short = targets[held] - np.linalg.solve(inverse[np.ix_(held, held)], inverse[held] @ targets)
    fitted = np.linalg.solve(kernel[np.ix_(~held, ~held)] + np.eye(80), targets[~held])
    assert short == pytest.approx(kernel[np.ix_(held, ~held)] @ fitted)


@pytest.mark.parametrize("text", ["", " ", "x", "\ud800 lone surrogate", "🙂", "a\x00b", "长" * 10_000])
def test_strange_texts_are_features_too(text: str) -> None:
    assert np.isfinite(domain._features([text, "an ordinary text"])).all()
