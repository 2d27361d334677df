"""Batching as a client of the server sees it: the parameters file, answers that stay one's own, and what cannot be batched."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.contract import saved_models
from tests.contract.conftest import Served, config, example, refused, until, write

Serve = Callable[..., Served]
WAIT = "batch_timeout_micros { value: 20000000 }"  # for a batch that only runs because it is full


@pytest.fixture
def batched(serve: Serve, models: Path, tmp_path: Path) -> Callable[..., Served]:
    """Starts a server with the shared models and a BatchingParameters file."""

    def start(parameters: str, *names: str, **more: Any) -> Served:
        models_file = write(tmp_path / "models.config", config(**{name: models / name for name in names}))
        file = write(tmp_path / "batching.config", parameters)
        return serve(f"--model_config_file={models_file}", "--enable_batching", f"--batching_parameters_file={file}", **more)

    return start


def _together(calls: list[Callable[[], Any]]) -> list[Any]:
    """Runs calls at once; their values, or the errors they raised."""
    results: list[Any] = [None] * len(calls)

    def run(index: int) -> None:
        try:
            results[index] = calls[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def _batches(served: Served, model: str) -> tuple[int, int]:
    """How many batches ran, and how many rows they had."""
    page = served.running.server._metrics.render()
    numbers = [re.search(rf'serving_batch_rows_{what}{{model="{model}",version="123"}} (\d+)', page) for what in ("count", "sum")]
    assert all(numbers)
    return int(numbers[0][1]), int(numbers[1][1])  # type: ignore[index]


# ---- the file


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "max_batch_size { value: 4 } allowed_batch_sizes: 3",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 3; expected 4",
        ),
        (
            "max_batch_size { value: 4 } allowed_batch_sizes: 4 allowed_batch_sizes: 2",
            "allowed_batch_sizes entries must be monotonically increasing",
        ),
        ("max_batch_size { value: 0 }", "max_batch_size must be at least 1; was 0"),
        ("num_batch_threads { value: 0 }", "num_batch_threads must be at least 1; was 0"),
    ],
)
def test_a_wrong_file_ends_the_start(models: Path, tmp_path: Path, start: Callable[..., tuple[int, str]], text: str, says: str) -> None:
    file = write(tmp_path / "batching.config", text)
    status, stdout = start(
        "--model_name=m", f"--model_base_path={models / 'half_plus_two'}", "--enable_batching", f"--batching_parameters_file={file}"
    )
    assert (status, stdout) == (255, f"Failed to start server. Error: INVALID_ARGUMENT: {says}\n")


@pytest.mark.parametrize("text", ["max_batch_size: 128", "no_such_field: 1"])
def test_a_file_that_does_not_parse_ends_the_start(
    models: Path, tmp_path: Path, start: Callable[..., tuple[int, str]], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Numbers are wrapped in messages here: `max_batch_size { value: 128 }`."""
    file = write(tmp_path / "batching.config", text)
    status, stdout = start(
        "--model_name=m", f"--model_base_path={models / 'half_plus_two'}", "--enable_batching", f"--batching_parameters_file={file}"
    )
    assert (status, stdout) == (255, f"Failed to start server. Error: INVALID_ARGUMENT: Invalid protobuf file: '{file}'\n")
    assert "Error parsing text-format tensorflow.serving.BatchingParameters: 1:" in caplog.text


def test_every_parameter_is_read(batched: Callable[..., Served]) -> None:
    served = batched(
        """
        max_batch_size { value: 8 } batch_timeout_micros { value: 1000 } max_enqueued_batches { value: 7 } num_batch_threads { value: 1 }
        thread_pool_name { value: "mine" } allowed_batch_sizes: 2 allowed_batch_sizes: 4 pad_variable_length_inputs: true
        enable_large_batch_splitting { value: true } max_execution_batch_size { value: 4 }
        """,
        "half_plus_two",
    )
    rows = [[float(number)] for number in range(8)]
    assert served.client.values("half_plus_two", {"x": rows}) == [[number / 2 + 2] for (number,) in rows]
    assert _batches(served, "half_plus_two") == (2, 8), "split in two"


def test_batching_without_a_file_uses_the_defaults(serve: Serve, models: Path) -> None:
    served = serve("--model_name=half_plus_two", f"--model_base_path={models / 'half_plus_two'}", "--enable_batching")
    assert served.client.values("half_plus_two", {"x": [[2.0]]}) == [[3.0]]
    assert _batches(served, "half_plus_two") == (1, 1)


# ---- running together


def test_a_full_batch_runs_at_once_and_everybody_gets_his_own_answer(batched: Callable[..., Served]) -> None:
    served = batched(f"max_batch_size {{ value: 4 }} {WAIT} num_batch_threads {{ value: 1 }}", "half_plus_two")
    answers = _together([lambda x=x: served.client.values("half_plus_two", {"x": [[x]]}) for x in (0.0, 2.0, 4.0, 6.0)])
    assert answers == [[[2.0]], [[3.0]], [[4.0]], [[5.0]]]
    assert _batches(served, "half_plus_two") == (1, 4)


def test_classify_and_regress_are_batched_too(batched: Callable[..., Served]) -> None:
    served = batched(f"max_batch_size {{ value: 4 }} {WAIT} num_batch_threads {{ value: 2 }}", "half_plus_two")
    client = served.client

    def regress(x: float) -> Any:
        return [
            one.value
            for one in client.regress("half_plus_two", [example(x=x), example(x=0.0)], signature="regress_x_to_y").result.regressions
        ]

    def classify(x: float) -> Any:
        found = client.classify("half_plus_two", [example(x=x), example(x=0.0)], signature="classify_labels").result.classifications
        return [[one.label for one in row.classes] for row in found]

    answers = _together([lambda: regress(2.0), lambda: regress(4.0), lambda: classify(2.0), lambda: classify(4.0)])
    assert answers == [[3.0, 2.0], [4.0, 2.0], [["low", "high"]] * 2, [["low", "high"]] * 2]
    assert _batches(served, "half_plus_two") == (2, 8)


def test_requests_for_other_outputs_are_another_batch(batched: Callable[..., Served]) -> None:
    served = batched(f"max_batch_size {{ value: 2 }} {WAIT} num_batch_threads {{ value: 2 }}", "several")
    client = served.client
    inputs = {"a": [2.0], "b": [3.0]}
    wishes = (["sum"], ["product"], ["sum"], ["product"])
    answers = _together([lambda wish=wish: client.values("several", inputs, wish[0], outputs=wish) for wish in wishes])
    assert answers == [[5.0], [6.0], [5.0], [6.0]]
    assert _batches(served, "several") == (2, 4)


def test_a_batch_is_filled_up_to_an_allowed_size_and_cut_again(batched: Callable[..., Served]) -> None:
    served = batched("max_batch_size { value: 4 } allowed_batch_sizes: 4", "half_plus_two", rest=True)
    assert served.client.values("half_plus_two", {"x": [[0.0], [2.0], [4.0]]}) == [[2.0], [3.0], [4.0]]
    status, text = served.http("/v1/models/half_plus_two:predict", {"instances": [[2.0]]})
    assert (status, "".join(text.split())) == (200, '{"predictions":[[3.0]]}')


def test_different_lengths_are_padded_when_asked_for(batched: Callable[..., Served]) -> None:
    served = batched(f"max_batch_size {{ value: 2 }} {WAIT} num_batch_threads {{ value: 1 }} pad_variable_length_inputs: true", "echo")
    answers = _together([lambda x=x: served.client.values("echo", {"x": [x]}, signature="float") for x in ([1.0], [7.0, 8.0, 9.0])])
    assert answers == [[[1.0, 1.0, 1.0]], [[7.0, 8.0, 9.0]]]
    assert _batches(served, "echo") == (1, 2)


# ---- what cannot be


@pytest.mark.parametrize(
    ("name", "inputs", "more", "code", "details"),
    [
        ("echo", {"x": 1.0}, {"signature": "float"}, "INVALID_ARGUMENT", "Batching Run() input tensors must have at least one dimension"),
        (
            "several",
            {"a": [1.0], "b": [1.0, 2.0]},
            {},
            "INVALID_ARGUMENT",
            "Batching Run() input tensors must have equal 0th-dimension size",
        ),
        ("echo", {"x": [1.0] * 5}, {"signature": "float"}, "INVALID_ARGUMENT", "Task size 5 is larger than maximum input batch size 4"),
        ("several", {"x": [1.0]}, {"signature": "scalar"}, "FAILED_PRECONDITION", "Batched output tensor has 0 dimensions"),
    ],
    ids=["scalar input", "rows differ", "too large", "scalar output"],
)
def test_what_cannot_be_batched(
    batched: Callable[..., Served], name: str, inputs: dict[str, Any], more: dict[str, Any], code: str, details: str
) -> None:
    served = batched("max_batch_size { value: 4 }", name)
    found = refused(served.client.predict, name, inputs, **more)
    assert (found.code, found.details) == (code, details)


def test_a_signature_without_inputs_answers_all_the_same(batched: Callable[..., Served]) -> None:
    served = batched("max_batch_size { value: 4 }", "counter")
    assert served.client.values("counter", {}, "output", signature="get_counter") == 0.0


def test_difference_different_shapes_fail_nobody(batched: Callable[..., Served]) -> None:
    """The real server answers FAILED_PRECONDITION to every request of such a batch; here they run one by one."""
    served = batched(f"max_batch_size {{ value: 2 }} {WAIT} num_batch_threads {{ value: 1 }}", "echo")
    answers = _together([lambda x=x: served.client.values("echo", {"x": [x]}, signature="float") for x in ([1.0], [7.0, 8.0])])
    assert answers == [[[1.0]], [[7.0, 8.0]]]


def test_difference_a_bad_request_fails_alone(batched: Callable[..., Served]) -> None:
    """In the real server all requests of a batch share its error."""
    served = batched(f"max_batch_size {{ value: 3 }} {WAIT} num_batch_threads {{ value: 1 }}", "several")
    asked = ([1.0], [5000.0], [3.0])
    answers = _together([lambda x=x: served.client.values("several", {"x": x}, "checked", signature="one") for x in asked])
    assert (answers[0], answers[2]) == ([1.0], [3.0])
    assert answers[1].code().name == "INVALID_ARGUMENT"
    assert "a is too large" in answers[1].details()
    assert _batches(served, "several") == (1, 3)


def test_difference_a_full_queue_is_resource_exhausted(batched: Callable[..., Served]) -> None:
    """UNAVAILABLE in the real server, which clients take for a server that is not there."""
    served = batched("max_batch_size { value: 1 } max_enqueued_batches { value: 1 } num_batch_threads { value: 1 }", "slow", rest=True)
    client = served.client
    running = threading.Thread(target=_together, args=([lambda: client.values("slow", {"x": np.int32([600_000])})],))
    running.start()
    until(lambda: served.users("slow", 123) == 1, "one runs")
    waiting = threading.Thread(target=_together, args=([lambda: client.values("slow", {"x": np.int32([1])})],))
    waiting.start()
    until(lambda: served.users("slow", 123) == 2, "one waits")
    found = until(lambda: _full(served), "the queue is full")
    assert "The batching queue is full" in found
    status, text = served.http("/v1/models/slow:predict", {"instances": [1]})
    assert status == 429
    assert "The batching queue is full" in text
    running.join()
    waiting.join()


def _full(served: Served) -> str:
    try:
        served.client.values("slow", {"x": np.int32([1])}, timeout_s=0.5)
    except Exception as error:
        return str(error.details()) if error.code().name == "RESOURCE_EXHAUSTED" else ""  # type: ignore[attr-defined]
    return ""


def test_difference_a_request_that_is_too_late_does_not_run(batched: Callable[..., Served]) -> None:
    """The real server runs it for nobody."""
    served = batched("max_batch_size { value: 1 } num_batch_threads { value: 1 }", "slow")
    client = served.client
    running = threading.Thread(target=_together, args=([lambda: client.values("slow", {"x": np.int32([300_000])})],))
    running.start()
    until(lambda: served.users("slow", 123) == 1, "one runs")
    found = refused(client.predict, "slow", {"x": np.int32([5])}, timeout_s=0.1)
    assert found.code == "DEADLINE_EXCEEDED"
    running.join()
    assert client.values("slow", {"x": np.int32([1])}) == [1]
    assert _batches(served, "slow")[1] == 2, "the late row was never in a batch"


# ---- parameters of a version


def test_parameters_in_the_versions_folder(serve: Serve, tmp_path: Path) -> None:
    for name in ("with", "without", "broken"):
        saved_models.plus(tmp_path / name / "123", 1)
    write(tmp_path / "with" / "123" / "batching_params.pbtxt", "max_batch_size { value: 2 }")
    write(tmp_path / "broken" / "123" / "batching_params.pbtxt", "max_batch_size { value: 4 } allowed_batch_sizes: 3")
    file = write(tmp_path / "config", config(**{"with": tmp_path / "with", "without": tmp_path / "without"}))
    served = serve(f"--model_config_file={file}", "--enable_batching", "--enable_per_model_batching_parameters")
    assert refused(served.client.predict, "with", {"x": [1.0] * 3}).details == "Task size 3 is larger than maximum input batch size 2"
    assert served.client.values("without", {"x": [1.0] * 3}) == [2.0] * 3
    assert served.client.values("without", {"x": 1.0}) == 2.0, "no file there: not batched"
    found = refused(served.client.reload, config(**{name: tmp_path / name for name in ("with", "without", "broken")}))
    assert found.code == "UNKNOWN"
    assert "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 3; expected 4" in found.details
    assert served.client.values("with", {"x": [1.0]}) == [2.0]
