"""int8 of a trained model: what stays in float, and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfpipeline import data, runs, trained
from tfpipeline.compress import integer, measure
from tfpipeline.compress.recipes import Int8Dynamic, Int8Full
from tfpipeline.edge import convert
from tfpipeline.edge.calibration import Quantizers, calibrate
from tfpipeline.edge.runner import EdgeModel

FULL = Int8Full(lengths=(16, 32), calibration_rows=30, most_float=0.2)


@pytest.fixture(scope="module")
def corpus(tiny_run: runs.Run) -> data.Corpus:
    return data.open_prepared(tiny_run.path / "data")


@pytest.fixture(scope="module")
def model(tiny_run: runs.Run) -> trained.Trained:
    return trained.load(tiny_run)


@pytest.fixture(scope="module")
def rows(model: trained.Trained, corpus: data.Corpus) -> measure.Rows:
    return measure.rows_of(model, corpus)


@pytest.fixture(scope="module")
def quantizers(model: trained.Trained, corpus: data.Corpus) -> Quantizers:
    texts, _ = corpus.train.text_batch(np.arange(30))
    return calibrate(model, texts, None, (), model.config.text.max_length)


def test_dynamic_range_answers_nearly_as_the_model(model: trained.Trained, corpus: data.Corpus, rows: measure.Rows) -> None:
    converted, told = integer.int8_dynamic(model, corpus, Int8Dynamic(calibration_rows=30))
    texts, _ = rows.examples.text_batch(np.arange(len(rows.examples)))
    np.testing.assert_allclose(EdgeModel(converted).predict(texts), rows.probabilities, atol=0.1)
    assert told["mode"] == "dynamic"
    # All products with a kernel in the two encoder layers, query, key and value being one; the factors of attention's own products are no weights.
    assert told["matmuls"]["dynamic"] == 4 * 2


def test_a_4_bit_table_is_half_as_large(model: trained.Trained, corpus: data.Corpus, rows: measure.Rows) -> None:
    whole, _ = integer.int8_dynamic(model, corpus, Int8Dynamic(calibration_rows=30))
    small, told = integer.int8_dynamic(model, corpus, Int8Dynamic(calibration_rows=30, table_bits=4))
    assert told["table_bits"] == 4
    table = model.model.bert.embeddings.weight.shape.num_elements()
    assert len(whole) - len(small) == pytest.approx(table / 2, abs=1500)  # the arithmetic behind the lookup takes some back
    texts, _ = rows.examples.text_batch(np.arange(len(rows.examples)))
    np.testing.assert_allclose(EdgeModel(small).predict(texts), rows.probabilities, atol=0.15)


def test_within_the_budget_nothing_is_kept_in_float(model: trained.Trained, corpus: data.Corpus, rows: measure.Rows) -> None:
    converted, told = integer.int8_full(model, corpus, rows, FULL, budget=100.0, threads=1)
    assert (told["kept"], told["kept_float"], told["tried"]) == ([], [], 1)
    assert told["int8_share"] > 0.8
    assert EdgeModel(converted).lengths == (16, 32)


def test_products_are_kept_one_by_one_until_the_share_is_used_up(
    model: trained.Trained, corpus: data.Corpus, rows: measure.Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    drops = iter([30.0, 20.0, 10.0, 5.0, 4.0, 3.0, 2.0])
    monkeypatch.setattr(integer, "_drop", lambda *_: next(drops))
    _, told = integer.int8_full(model, corpus, rows, FULL, budget=1.0, threads=1)
    products = told["tried"] - 1
    assert products == len(told["kept"]) == len(told["kept_float"]) >= 2
    assert [one["validation_drop_before"] for one in told["kept"]] == [30.0, 20.0, 10.0, 5.0][:products]
    harms = [one["harm"] for one in told["kept"]]
    assert harms == sorted(harms, reverse=True)
    assert sorted(one["product"] for one in told["kept"]) == sorted(told["kept_float"])


def test_the_loop_ends_as_soon_as_the_budget_holds(
    model: trained.Trained, corpus: data.Corpus, rows: measure.Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    drops = iter([3.0, 0.4])
    monkeypatch.setattr(integer, "_drop", lambda *_: next(drops))
    _, told = integer.int8_full(model, corpus, rows, FULL, budget=1.0, threads=1)
    assert (told["tried"], len(told["kept"]), told["validation_drop"]) == (2, 1, 0.4)


def test_what_the_recipe_keeps_is_kept(model: trained.Trained, corpus: data.Corpus, rows: measure.Rows) -> None:
    settings = Int8Full(lengths=(32,), calibration_rows=30, keep_float=("classifier",))
    _, told = integer.int8_full(model, corpus, rows, settings, budget=100.0, threads=1)
    assert told["kept"] == [{"product": "classifier", "why": "the recipe says so"}]
    assert told["kept_float"] == ["classifier"]


def test_the_product_that_does_harm_is_found(model: trained.Trained, corpus: data.Corpus, quantizers: Quantizers) -> None:
    """One product gets a range in which nothing is left of its factor."""
    spoilt = "layer_1/intermediate"
    assert (spoilt, "input") in quantizers.ranges
    ranges = {**quantizers.ranges, (spoilt, "input"): (-1e-3, 1e-3)}
    texts, _ = corpus.train.text_batch(np.arange(8))
    found = integer.harm(model, texts, None, Quantizers(ranges, (), quantizers.scales))
    assert found[0][1] == spoilt
    assert found[0][0] > 5 * found[1][0]
    assert {product for _, product in found} == {product for product, _ in ranges}


def test_a_model_with_learned_ranges_is_converted_once(
    model: trained.Trained, corpus: data.Corpus, rows: measure.Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def converts(one: trained.Trained, **arguments: Any) -> convert.Converted:
        seen.append(arguments)
        return honest(one, mode="dynamic", lengths=(32,))

    honest = convert.convert
    monkeypatch.setattr(convert, "is_quantized", lambda _: True)
    monkeypatch.setattr(convert, "convert", converts)
    monkeypatch.setattr(integer, "_drop", lambda *_: 50.0)
    _, told = integer.int8_full(model, corpus, rows, FULL, budget=1.0, threads=1)
    assert len(seen) == told["tried"] == 1


def test_harm_leaves_the_model_alone(model: trained.Trained, corpus: data.Corpus, quantizers: Quantizers) -> None:
    texts, _ = corpus.train.text_batch(np.arange(4))
    before = [tf.identity(variable) for variable in model.model.weights]
    integer.harm(model, texts, None, quantizers)
    for old, new in zip(before, model.model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
