"""Classify, Regress and MultiInference: examples and contexts in, classes and values out, and what is wrong with a signature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.contract.conftest import Served, example, refused, started
from tests.contract.saved_models import CLASSIFY, REGRESS

MODEL = "half_plus_two"


def _classes(answer: Any) -> list[list[tuple[str, float]]]:
    return [[(one.label, round(one.score, 6)) for one in row.classes] for row in answer.result.classifications]


def test_one_class_per_column_neither_sorted_nor_cut(static: Served) -> None:
    answer = static.client.classify(MODEL, [example(x=0.25), example(x=2.0)], signature="classify_both")
    assert _classes(answer) == [[("low", 0.75), ("high", 0.25)], [("low", -1.0), ("high", 2.0)]]


def test_a_missing_label_is_empty(static: Served) -> None:
    assert _classes(static.client.classify(MODEL, [example(x=2.0)], signature="classify_x_to_y")) == [[("", 3.0)]]


def test_a_missing_score_is_zero(static: Served) -> None:
    assert _classes(static.client.classify(MODEL, [example(x=2.0)], signature="classify_labels")) == [[("low", 0.0), ("high", 0.0)]]


@pytest.mark.parametrize(("signature", "expected"), [("regress_x_to_y", [3.0, 4.0]), ("regress_x_to_y2", [3.0, 3.5])])
def test_regression_of_n_by_one_and_of_n(static: Served, signature: str, expected: list[float]) -> None:
    answer = static.client.regress(MODEL, [example(x=2.0), example(x=4.0, x2=1.0)], signature=signature)
    assert [one.value for one in answer.result.regressions] == expected


@pytest.mark.parametrize("call", ["classify", "regress"])
def test_the_model_spec_is_that_of_what_answered(static: Served, call: str) -> None:
    answer = getattr(static.client, call)(MODEL, [example(x=2.0)], signature=f"{call}_x_to_y")
    assert answer.model_spec.name == MODEL
    assert answer.model_spec.signature_name == f"{call}_x_to_y"
    assert answer.model_spec.version.value == 123


def test_the_default_signature_is_used_and_named(static: Served) -> None:
    found = refused(static.client.regress, MODEL, [example(x=2.0)])
    assert found.details.startswith("No regression inputs found in SignatureDef: ")


def test_a_regress_signature_that_declares_the_wrong_dtype_for_its_examples(static: Served) -> None:
    """Upstream's `saved_model_half_plus_three` does: it is fed by tensor name, whatever is declared."""
    answer = static.client.regress("half_plus_three", [example(x=2.0)], signature="tensorflow/serving/regress")
    assert [one.value for one in answer.result.regressions] == [4.0]


# ---- examples and their context


def test_a_context_is_merged_into_every_example(static: Served) -> None:
    answer = static.client.regress(MODEL, [example(x2=1.0), example(x2=3.0)], example(x=2.0), signature="regress_x_to_y")
    assert [one.value for one in answer.result.regressions] == [3.0, 3.0]


def test_the_example_wins_over_its_context(static: Served) -> None:
    answer = static.client.regress(MODEL, [example(x=4.0), example(x2=0.0)], example(x=2.0), signature="regress_x_to_y")
    assert [one.value for one in answer.result.regressions] == [4.0, 3.0]


@pytest.mark.parametrize("context", [None, example(x=2.0)], ids=["list", "list with context"])
@pytest.mark.parametrize("call", ["classify", "regress"])
def test_no_examples(static: Served, call: str, context: Any) -> None:
    found = refused(getattr(static.client, call), MODEL, [], context, signature=f"{call}_x_to_y")
    assert (found.code, found.details) == ("INVALID_ARGUMENT", "Input is empty.")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (example(x=2), "Data types don't match. Data type: int64 but expected type: float"),
        (example(x=b"2"), "Data types don't match. Data type: string but expected type: float"),
        (example(), "Feature: x (data type: float) is required but could not be found"),
        (example(x=[1.0, 2.0]), "Number of float values != expected"),
    ],
    ids=["int64", "bytes", "missing", "two values"],
)
@pytest.mark.parametrize("call", ["classify", "regress"])
def test_features_that_the_model_does_not_declare(static: Served, call: str, bad: Any, says: str) -> None:
    found = refused(getattr(static.client, call), MODEL, [example(x=1.0), bad], signature=f"{call}_x_to_y")
    assert found.code == "INVALID_ARGUMENT"
    assert says in found.details


# ---- signatures that are wrong

WRONG = [
    ("several", "serving_default", "classify", "Expected one input Tensor."),
    ("odd", "two_inputs", "classify", "Expected one input Tensor."),
    ("odd", "two_inputs", "regress", "Expected one input Tensor."),
    ("odd", "other_input", "classify", "No classification inputs found in SignatureDef: "),
    ("odd", "regress_other_input", "regress", "No regression inputs found in SignatureDef: "),
    (
        "odd",
        "no_outputs",
        "classify",
        'Expected classification signature outputs to contain at least one of "classes" or "scores". Signature was: ',
    ),
    ("odd", "regress_no_outputs", "regress", "No regression outputs found in SignatureDef: "),
    ("odd", "scores_rank", "classify", "Expected Tensor shape: [batch_size num_classes] but got scores[0]: "),
    ("odd", "classes_rank", "classify", "Expected Tensor shape: [batch_size num_classes] but got classes[0]: "),
    ("odd", "scores_dtype", "classify", "Expected scores Tensor of DT_FLOAT. Got: "),
    ("odd", "classes_dtype", "classify", "Expected classes Tensor of DT_STRING. Got: "),
    ("odd", "scores_rows", "classify", "Expected scores output batch size of 2. Got: 1"),
    ("odd", "columns", "classify", "Tensors class and score should match in dim_size(1). Got 2 vs. 3"),
    ("odd", "regress_shape", "regress", "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "),
    ("odd", "regress_dtype", "regress", "Expected output Tensor of DT_FLOAT. Got: "),
    ("odd", "regress_rows", "regress", "Input batch size did not match output batch size: 2 vs. 1"),
]


@pytest.mark.parametrize(("model", "signature", "call", "message"), WRONG, ids=lambda value: str(value)[:30])
def test_a_signature_of_another_kind_or_a_wrong_output(static: Served, model: str, signature: str, call: str, message: str) -> None:
    found = refused(getattr(static.client, call), model, [example(x=1.0)] * 2, signature=signature)
    assert found.code == "INVALID_ARGUMENT"
    assert found.details.startswith(message)


@pytest.mark.parametrize(("model", "signature", "call", "message"), WRONG, ids=lambda value: str(value)[:30])
def test_the_same_inside_a_multi_inference(static: Served, model: str, signature: str, call: str, message: str) -> None:
    task = ({"name": model, "signature": signature}, CLASSIFY if call == "classify" else REGRESS)
    found = refused(static.client.multi_inference, [task], [example(x=1.0)] * 2)
    assert found.code == "INVALID_ARGUMENT"
    assert found.details.startswith(message)


@pytest.mark.parametrize(("call", "wrong"), [("classify", "regress_x_to_y"), ("regress", "classify_x_to_y")])
def test_the_method_name_is_looked_at_only_when_asked_for(static: Served, models: Any, call: str, wrong: str) -> None:
    unchecked = refused(getattr(static.client, call), MODEL, [example(x=1.0)], signature=wrong)
    assert "method_name to be" not in unchecked.details
    flags = (f"--model_name={MODEL}", f"--model_base_path={models / MODEL}", "--enable_signature_method_name_check")
    with started(*flags) as served:
        getattr(served.client, call)(MODEL, [example(x=1.0)], signature=f"{call}_x_to_y")
        found = refused(getattr(served.client, call), MODEL, [example(x=1.0)], signature=wrong)
    assert found.code == "INVALID_ARGUMENT"
    assert "signature method_name to be tensorflow/serving/" in found.details


# ---- MultiInference


def _task(signature: str, method: str, **spec: Any) -> tuple[dict[str, Any], str]:
    return {"name": MODEL, "signature": signature, **spec}, method


def test_results_come_in_the_order_of_the_tasks(static: Served) -> None:
    tasks = [_task("regress_x_to_y", REGRESS), _task("classify_both", CLASSIFY), _task("regress_x_to_y2", REGRESS)]
    answer = static.client.multi_inference(tasks, [example(x=2.0, x2=4.0)])
    assert [one.model_spec.signature_name for one in answer.results] == ["regress_x_to_y", "classify_both", "regress_x_to_y2"]
    assert {(one.model_spec.name, one.model_spec.version.value) for one in answer.results} == {(MODEL, 123)}
    assert [one.WhichOneof("result") for one in answer.results] == ["regression_result", "classification_result", "regression_result"]
    assert answer.results[0].regression_result.regressions[0].value == 3.0
    assert [one.label for one in answer.results[1].classification_result.classifications[0].classes] == ["low", "high"]
    assert answer.results[2].regression_result.regressions[0].value == 5.0


def test_all_tasks_run_once_together(static: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with static.running.server._models.acquire(MODEL) as loaded:
        runs: list[Any] = []
        original = loaded.run_tensors
        monkeypatch.setattr(loaded, "run_tensors", lambda *args: runs.append(args[1]) or original(*args))
        static.client.multi_inference([_task("regress_x_to_y", REGRESS), _task("classify_both", CLASSIFY)], [example(x=2.0)])
    assert len(runs) == 1
    assert len(runs[0]) == 3


@pytest.mark.parametrize(
    ("tasks", "code", "details"),
    [
        (
            [_task("regress_x_to_y", REGRESS), _task("regress_x_to_y", REGRESS)],
            "INVALID_ARGUMENT",
            "Duplicate evaluation of signature: regress_x_to_y",
        ),
        (
            [_task("regress_x_to_y", REGRESS), _task("regress_x_to_y2", REGRESS, name="half_plus_three")],
            "INVALID_ARGUMENT",
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (
            [_task("regress_x_to_y", "tensorflow/serving/predict")],
            "UNIMPLEMENTED",
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
        ([_task("regress_x_to_y", "")], "UNIMPLEMENTED", "Unsupported signature method_name: "),
    ],
    ids=["twice", "two models", "predict", "no method"],
)
def test_tasks_that_do_not_go_together(static: Served, tasks: Any, code: str, details: str) -> None:
    found = refused(static.client.multi_inference, tasks, [example(x=2.0)])
    assert found.code == code
    assert found.details.startswith(details)


def test_tasks_over_different_inputs(static: Served) -> None:
    tasks = [_task("regress_x_to_y", REGRESS), _task("regress_x2_to_y3", REGRESS)]
    found = refused(static.client.multi_inference, tasks, [example(x=2.0)])
    assert found.code == "INVALID_ARGUMENT"
    assert found.details.startswith("Input tensor must be the same for all Signatures.")


def test_multi_inference_without_examples(static: Served) -> None:
    found = refused(static.client.multi_inference, [_task("regress_x_to_y", REGRESS)], [])
    assert (found.code, found.details) == ("INVALID_ARGUMENT", "Input is empty.")


def test_an_example_list_with_many_rows(static: Served) -> None:
    numbers = np.arange(100, dtype=np.float32).tolist()
    answer = static.client.regress(MODEL, [example(x=number) for number in numbers], signature="regress_x_to_y")
    assert [one.value for one in answer.result.regressions] == [number / 2 + 2 for number in numbers]
