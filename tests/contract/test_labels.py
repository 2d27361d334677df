"""Version labels: where they may point, and what a request with one gets, over gRPC and REST."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract import saved_models
from tests.contract.conftest import Served, config, refused, started, until, write

ALLOW = "--allow_version_labels_for_unavailable_models=true"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1, 2 and 3, that add their numbers."""
    path = tmp_path_factory.mktemp("labelled") / "m"
    for version in (1, 2, 3):
        saved_models.plus(path / str(version), version)
    return path


def _config(base: Path, *versions: int, **labels: int) -> str:
    policy = "model_version_policy { specific { " + " ".join(f"versions: {version}" for version in versions) + " } }"
    pairs = " ".join(f'version_labels {{ key: "{label}" value: {version} }}' for label, version in labels.items())
    return config(m=(base, f"{policy} {pairs}"))


@pytest.fixture(scope="module")
def shared(base: Path) -> Iterator[Served]:
    with started(f"--model_config_file={write(base.parent / 'empty', '')}", rest=True) as served:
        yield served


@pytest.fixture
def labelled(shared: Served, base: Path) -> Served:
    """Versions 1 and 2 are loaded, `stable` is 1 and `canary` is 2."""
    shared.client.reload(_config(base, 1, 2))
    until(lambda: {1, 2} <= {version for version, state in shared.client.states("m").items() if state == "AVAILABLE"}, "1 and 2 are loaded")
    shared.client.reload(_config(base, 1, 2, stable=1, canary=2))
    return shared


def _answer(served: Served, label: str) -> float:
    return float(served.client.values("m", {"x": [0.0]}, label=label)[0])


def test_a_request_reaches_the_version_of_its_label(labelled: Served) -> None:
    assert (_answer(labelled, "stable"), _answer(labelled, "canary")) == (1.0, 2.0)


def test_the_answer_names_the_version_and_not_the_label(labelled: Served) -> None:
    spec = labelled.client.predict("m", {"x": [0.0]}, label="stable").model_spec
    assert spec.WhichOneof("version_choice") == "version"
    assert spec.version.value == 1
    assert labelled.client.metadata("m", label="canary").model_spec.version.value == 2


def test_labels_over_rest(labelled: Served) -> None:
    assert labelled.http("/v1/models/m/labels/stable:predict", {"instances": [0.0]}) == (200, '{\n    "predictions": [1.0\n    ]\n}')
    status, text = labelled.http("/v1/models/m/labels/none:predict", {"instances": [0.0]})
    assert status == 400
    assert "Unrecognized servable version label: none" in text


def test_a_label_moves_to_another_loaded_version(labelled: Served, base: Path) -> None:
    labelled.client.reload(_config(base, 1, 2, stable=2, canary=2))
    assert _answer(labelled, "stable") == 2.0


def test_labels_that_the_newest_config_does_not_name_are_gone(labelled: Served, base: Path) -> None:
    labelled.client.reload(_config(base, 1, 2, stable=1))
    found = refused(labelled.client.predict, "m", {"x": [0.0]}, label="canary")
    assert (found.code, found.details) == ("INVALID_ARGUMENT", "Unrecognized servable version label: canary")
    labelled.client.reload("model_config_list {}")
    assert refused(labelled.client.predict, "m", {"x": [0.0]}, label="stable").code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("version", [3, 99], ids=["named by this very config", "not on disk"])
def test_a_label_on_a_version_that_is_not_loaded_yet_changes_nothing(labelled: Served, base: Path, version: int) -> None:
    found = refused(labelled.client.reload, _config(base, 2, version, canary=version))
    assert found.code == "FAILED_PRECONDITION"
    assert found.details == f"Request to assign label to version {version} of model m, which is not currently available for inference"
    assert (_answer(labelled, "stable"), _answer(labelled, "canary")) == (1.0, 2.0), "the old labels stay"
    assert labelled.client.states("m")[1] == "AVAILABLE", "and so does the old policy"
    assert labelled.client.states("m").get(3) != "AVAILABLE"


def test_a_label_whose_version_was_unloaded(labelled: Served, base: Path) -> None:
    labelled.client.reload(_config(base, 2, stable=1, canary=2))
    until(lambda: labelled.client.states("m")[1] == "END", "1 is unloaded")
    found = refused(labelled.client.predict, "m", {"x": [0.0]}, label="stable")
    assert (found.code, found.details) == ("NOT_FOUND", "Servable not found for request: Specific(m, 1)")


def test_labels_at_the_start_are_refused(base: Path, tmp_path: Path, start: Callable[..., tuple[int, str]]) -> None:
    status, stdout = start(f"--model_config_file={write(tmp_path / 'config', _config(base, 1, stable=1))}")
    assert status == 255
    assert stdout == (
        "Failed to start server. Error: FAILED_PRECONDITION: "
        "Request to assign label to version 1 of model m, which is not currently available for inference\n"
    )


def test_labels_at_the_start_when_they_are_allowed(base: Path, tmp_path: Path) -> None:
    with started(f"--model_config_file={write(tmp_path / 'config', _config(base, 1, 2, stable=1, lost=99))}", ALLOW) as served:
        until(lambda: served.client.states("m").get(2) == "AVAILABLE", "both are loaded")
        assert _answer(served, "stable") == 1.0
        found = refused(served.client.predict, "m", {"x": [0.0]}, label="lost")
        assert (found.code, found.details) == ("NOT_FOUND", "Servable not found for request: Specific(m, 99)")


def test_even_then_a_label_that_exists_cannot_move_to_a_version_that_is_not_loaded(base: Path, tmp_path: Path) -> None:
    with started(f"--model_config_file={write(tmp_path / 'config', _config(base, 1, stable=1))}", ALLOW) as served:
        found = refused(served.client.reload, _config(base, 1, 3, stable=3))
        assert found.code == "FAILED_PRECONDITION"
        assert found.details == "Request to assign label to version 3 of model m, which is not currently available for inference"
        assert _answer(served, "stable") == 1.0
        served.client.reload(_config(base, 1, 3, stable=1, canary=3))
        until(lambda: served.client.states("m").get(3) == "AVAILABLE", "3 is loaded")
        assert _answer(served, "canary") == 3.0
        served.client.reload(_config(base, 1, 3, stable=3))
        assert _answer(served, "stable") == 3.0


@pytest.mark.parametrize("label", ["a-b", "v1.2", "größe", "a b"])
def test_labels_are_not_only_letters_and_digits(shared: Served, base: Path, label: str) -> None:
    """`[a-zA-Z0-9_]+`, says upstream's documentation; its code takes anything."""
    shared.client.reload(_config(base, 1))
    until(lambda: shared.client.states("m").get(1) == "AVAILABLE", "1 is loaded")
    shared.client.reload(_config(base, 1, **{label: 1}))
    assert _answer(shared, label) == 1.0
    from urllib.parse import quote

    status, _ = shared.http(f"/v1/models/m/labels/{quote(label)}:predict", {"instances": [0.0]})
    assert status == 200
