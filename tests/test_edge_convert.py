"""A trained model becomes a `.tflite` that answers as it did: every mode, one length or several, one task or the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.edge_files import LABELS, TEXTS, tiny
from tfpipeline.edge import convert, flat, inspect, metadata, probe
from tfpipeline.edge.calibration import calibrate
from tfpipeline.edge.graph import EdgeGraph, dense_layers
from tfpipeline.edge.runner import EdgeModel
from tfpipeline.errors import ConfigError
from tfpipeline.trained import Trained

pytest.importorskip("ai_edge_litert", reason="LiteRT runs edge files: pip install 'tfpipeline[edge]'")

LONG = "the app was very slow and " * 12


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return tiny(tmp_path_factory.mktemp("tiny"))


def test_the_edge_graph_is_the_model(made: Trained) -> None:
    """Fused or not, one row at a time or padded: the same probabilities as the model itself gives."""
    expected = made.predict(TEXTS)
    for fuse in (True, False):
        graph = EdgeGraph(made, fuse=fuse)
        for row, text in enumerate(TEXTS):
            tokens = made.preprocessor(tf.constant([text]))
            found = graph(tokens["input_ids"], tokens["attention_mask"], tokens["token_type_ids"])
            np.testing.assert_allclose(found[0], expected[row], atol=2e-6)


def test_scales_of_columns_change_no_answer(made: Trained) -> None:
    """Balanced inputs and stretched results are the same numbers until something is rounded; and what sticks out, sticks out less."""
    rows = probe.token_rows(made, TEXTS, None, 32)
    scales = probe.column_scales(made, rows)
    assert set(scales.balance) == {f"layer_{layer}/{product}" for layer in range(2) for product in ("query", "intermediate")}
    assert set(scales.stretch) == {f"layer_{layer}/{product}" for layer in range(2) for product in ("attention_output", "output")}
    assert max(np.abs(scale - 1).max() for scale in scales.balance.values()) > 0.1
    for fuse in (True, False):
        graph = EdgeGraph(made, fuse=fuse, balance=scales.balance, stretch=scales.stretch)
        for row, expected in zip(rows, made.predict([TEXTS[number] for number in probe._spread(TEXTS, 200)]), strict=True):
            np.testing.assert_allclose(graph(*row)[0], expected, atol=2e-6)
    values = [probe.watched(made, scales)(*row) for row in rows]
    for product in scales.stretch:
        columns = np.max([np.abs(value[f"{product}:result"]).max(axis=0) for value in values], axis=0)
        np.testing.assert_allclose(columns, 1.0, rtol=1e-4)


@pytest.mark.parametrize("lengths", [(), (8, 16, 64)], ids=["any length", "three lengths"])
def test_float32_answers_as_the_model(made: Trained, lengths: tuple[int, ...]) -> None:
    file = convert.convert(made, mode="float32", lengths=lengths)
    texts = [*TEXTS, "", LONG]
    model = EdgeModel(file.data, threads=1)
    np.testing.assert_allclose(model.predict(texts), made.predict(texts), atol=1e-5)
    assert model.labels == LABELS
    assert file.report["matmuls"]["float"] > 0 == file.report["matmuls"]["int8"]
    # 64 is more than the model reads, and becomes 32.
    assert set(inspect.signatures(file.data)) == ({"serving_default"} if not lengths else {"serving_32", "serving_16", "serving_8"})


@pytest.mark.parametrize("settings", [("model.pooling=cls",), ("data.task=multi_label",)], ids=["pooler", "several labels"])
def test_other_heads_answer_as_the_model(tmp_path: Path, settings: tuple[str, ...]) -> None:
    made = tiny(tmp_path, *settings)
    model = EdgeModel(convert.convert(made, mode="float32", lengths=()).data)
    np.testing.assert_allclose(model.predict(TEXTS), made.predict(TEXTS), atol=1e-5)


def test_pairs_answer_as_the_model(tmp_path: Path) -> None:
    made = tiny(tmp_path, has_pairs=True)
    pairs = [*reversed(TEXTS[:-1]), LONG]
    for lengths in ((), (16, 32)):
        model = EdgeModel(convert.convert(made, mode="float32", lengths=lengths).data)
        np.testing.assert_allclose(model.predict(TEXTS, pairs), made.predict(TEXTS, pairs), atol=1e-5)


def test_dynamic_range_stores_int8_and_multiplies_in_int8(made: Trained) -> None:
    whole, small = convert.convert(made, mode="float32", lengths=()), convert.convert(made, mode="dynamic", lengths=())
    assert small.report["matmuls"]["dynamic"] > 0
    difference = np.abs(EdgeModel(small.data).predict(TEXTS) - made.predict(TEXTS)).max()
    assert 0 < difference < 0.1
    assert len(small.data) < len(whole.data)


def test_dynamic_range_balances_with_texts(made: Trained) -> None:
    plain, balanced = (convert.convert(made, mode="dynamic", calibration=texts) for texts in ((), TEXTS))
    assert balanced.report["matmuls"] == plain.report["matmuls"]
    assert np.abs(EdgeModel(balanced.data).predict(TEXTS) - made.predict(TEXTS)).max() < 0.1


def test_several_lengths_share_one_set_of_weights(made: Trained) -> None:
    def weights(data: bytes) -> int:
        """Bytes of all constants."""
        held = [buffer for buffer in flat.root(data).tables(4) if buffer.place(0) is not None]
        return sum(int.from_bytes(data[buffer.target(0) : buffer.target(0) + 4], "little") for buffer in held)

    one = convert.convert(made, mode="dynamic", lengths=(32,))
    three = convert.convert(made, mode="dynamic", lengths=(8, 16, 32))
    assert weights(three.data) < 1.3 * weights(one.data)


@pytest.mark.parametrize("lengths", [(), (16, 32)], ids=["any length", "two lengths"])
def test_full_integer_multiplies_everything_in_int8(made: Trained, lengths: tuple[int, ...]) -> None:
    file = convert.convert(made, mode="int8", lengths=lengths, calibration=TEXTS)
    assert file.report["int8_share"] == 1.0, file.report
    assert np.abs(EdgeModel(file.data).predict(TEXTS) - made.predict(TEXTS)).max() < 0.15


def test_products_that_are_named_stay_in_float(made: Trained) -> None:
    file = convert.convert(made, mode="int8", lengths=(), calibration=TEXTS, keep_float=("*/scores", "layer_1/output"))
    assert file.report["kept_float"] == ["layer_0/scores", "layer_1/output", "layer_1/scores"]
    assert file.report["matmuls"]["int8"] == 2 * 8 + 1 - 3
    assert metadata.read(file.data).description["kept_float"] == file.report["kept_float"]


def test_kernels_of_products_in_float_are_stored_in_int8(made: Trained) -> None:
    whole = convert.convert(made, mode="int8", lengths=(), calibration=TEXTS)
    kept = convert.convert(made, mode="int8", lengths=(), calibration=TEXTS, keep_float=("*/intermediate", "*/output", "*/query"))
    kernels = sum(
        layer.kernel.shape.num_elements()
        for name, layer in dense_layers(made.model).items()
        if name.endswith(("/intermediate", "/output", "/query"))
    )
    assert kept.report["matmuls"]["float"] == 6
    assert abs(len(kept.data) - len(whole.data)) < 0.5 * kernels  # a byte a number was there already; in float there would be three more
    expected = made.predict(TEXTS)
    assert np.abs(EdgeModel(kept.data).predict(TEXTS) - expected).max() < 0.15


def test_ranges_hold_zero_and_leave_out_what_is_rare(made: Trained) -> None:
    quantizers = calibrate(made, TEXTS, None, (), 32)
    assert all(low <= 0.0 <= high for low, high in quantizers.ranges.values())
    # After a softmax nothing is below 0 or above 1.
    low, high = quantizers.ranges["layer_0/context", "input"]
    assert low == 0.0
    assert 0.0 < high <= 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "int4"}, "mode: expected one of float32, dynamic, int8, received 'int4'."),
        ({"form": "image"}, "form: expected one of ids, text, received 'image'."),
        ({"lengths": (2, 16)}, "lengths: expected 3 tokens or more each, received [2, 16]."),
        ({"mode": "dynamic", "keep_float": ("*",)}, "keep_float belongs to mode 'int8', received mode 'dynamic'. Leave it out."),
        (
            {"mode": "int8", "calibration": ("a",)},
            "int8: expected at least 20 texts to calibrate on, received 1. Give texts of the training data.",
        ),
        (
            {"table_bits": 4},
            "table_bits: expected 8, or 4 with mode 'dynamic' or 'int8' and calibration texts, received 4 with mode 'dynamic' and 0 texts.",
        ),
        ({"mode": "int8", "calibration": TEXTS, "keep_float": ("layer_9/*",)}, "keep_float: no matrix product is called 'layer_9/*'"),
    ],
)
def test_wrong_arguments_are_refused(made: Trained, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        convert.convert(made, **arguments)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_pairs_have_no_text_form(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="form 'text' is for models of one text, received a model of pairs"):
        convert.convert(tiny(tmp_path, has_pairs=True), form="text")


def test_the_same_model_is_the_same_bytes(made: Trained) -> None:
    assert convert.convert(made, lengths=()).data == convert.convert(made, lengths=()).data
