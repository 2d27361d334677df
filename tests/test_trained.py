"""A model on disk: what is saved comes back with the same answers, in every shape that training and compression give it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfpipeline import runs, trained
from tfpipeline.errors import BackboneError, RunError
from tfpipeline.model import build
from tfpipeline.techniques import quantization

TEXTS = ["the app was great today", "the clerk was rude again", "", "the loan was kind"]


def _of_shape(model: trained.Trained, **architecture: Any) -> trained.Trained:
    """A model of random weights in another architecture, otherwise like the given one."""
    backbone = replace(model.backbone, architecture={**model.backbone.architecture, **architecture})
    other = build(
        backbone,
        model.config.model,
        vocabulary_size=len(model.preprocessor.vocabulary),
        labels=model.labels,
        task=model.task,
        seed=3,
        load_weights=False,
    )
    return replace(model, model=other, backbone=backbone)


@pytest.mark.parametrize(
    "architecture",
    [
        {"num_hidden_layers": 1},
        {"layer_shapes": [{"heads": 1, "intermediate": 100}, {"heads": 2, "intermediate": 512}]},
        {"num_hidden_layers": 1, "layer_shapes": [{"heads": 1, "intermediate": 7}]},
    ],
)
def test_every_shape_comes_back_with_the_same_answers(tiny_run: runs.Run, tmp_path: Path, architecture: dict[str, Any]) -> None:
    model = _of_shape(trained.load(tiny_run), **architecture)
    trained.save(tmp_path, model)
    again = trained.load_folder(tmp_path, tiny_run.config)
    np.testing.assert_array_equal(again.predict(TEXTS), model.predict(TEXTS))
    assert again.backbone.architecture == model.backbone.architecture
    shapes = [
        (place.num_attention_heads, place.query.kernel.shape[1])
        for place in (x.attention.self_attention for x in again.model.bert.encoder.layer)
    ]
    assert all(width == heads * 64 for heads, width in shapes)
    assert len(shapes) == again.model.config.num_hidden_layers


def test_a_variant_is_loaded_by_its_name(tiny_run: runs.Run, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.path, tmp_path / "run")
    run = runs.Run(tmp_path / "run")
    with pytest.raises(
        RunError, match=rf"^{run.path}: has no variant 'small'. It has none yet; make some: tfpipeline compress {run.path}\.$"
    ):
        trained.load(run, "small")
    small = _of_shape(trained.load(run), num_hidden_layers=1)
    (run.path / "compressed" / "small").mkdir(parents=True)
    trained.save(run.path / "compressed" / "small", small)
    np.testing.assert_array_equal(trained.load(run, "small").predict(TEXTS), small.predict(TEXTS))
    assert trained.load(run).model.config.num_hidden_layers == 2
    for name in ("tiny", "../checkpoints/best", "small/"):
        with pytest.raises(RunError, match=r": has no variant .* It has: small\.$"):
            trained.load(run, name)


def test_a_quantized_model_is_quantized_when_it_comes_back(tiny_run: runs.Run, tmp_path: Path) -> None:
    model = trained.load(tiny_run)
    before = model.predict(TEXTS)
    model = trained.load(tiny_run)
    quantization.quantize(model.model)
    quantization.calibrate(model.model, [model.preprocessor(TEXTS)])
    trained.save(tmp_path, model)
    again = trained.load_folder(tmp_path, tiny_run.config)
    assert dict(again.model.quantization or {}) == quantization.DESCRIPTION
    np.testing.assert_array_equal(again.predict(TEXTS), model.predict(TEXTS))
    np.testing.assert_allclose(again.predict(TEXTS), before, atol=0.1)
    assert np.abs(again.predict(TEXTS) - before).max() > 0
    trained.save(tmp_path, again)  # and once more: what was loaded can be saved


def test_a_run_from_before_shapes_and_pooling_were_described_is_read(tiny_run: runs.Run, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.path, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "best" / "model.json"
    description = json.loads(file.read_text())
    del description["pooling"]
    file.write_text(json.dumps(description))
    np.testing.assert_array_equal(trained.load(runs.Run(tmp_path / "run")).predict(TEXTS), trained.load(tiny_run).predict(TEXTS))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": None}, RunError, r"model.json: does not describe a model"),
        (
            {"layer_shapes": [{"heads": 1, "intermediate": 7}]},
            BackboneError,
            r"^layer_shapes must give each of 2 layers 1 to 2 heads and 1 to 512",
        ),
        ({"layer_shapes": [{"heads": 3, "intermediate": 7}] * 2}, BackboneError, r"^layer_shapes must give each of 2 layers"),
        ({"num_hidden_layers": 4}, RunError, r": the weights cannot be read \("),
        ({"hidden_size": 64}, RunError, r": the weights cannot be read \("),
        ({"weights": None}, RunError, r": the weights cannot be read \("),
    ],
)
def test_files_that_do_not_fit_together_are_refused(
    tiny_run: runs.Run, tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_run.path / "checkpoints" / "best", folder)
    description = json.loads((folder / "model.json").read_text())
    if "labels" in change:
        del description["labels"]
    elif "weights" in change:
        (folder / "weights.index").unlink()
    else:
        description["backbone"]["architecture"] |= change
    (folder / "model.json").write_text(json.dumps(description))
    with pytest.raises(error, match=message):
        trained.load_folder(folder, tiny_run.config)


def test_what_is_saved_holds_the_weights_and_no_optimizer(tiny_run: runs.Run) -> None:
    import tensorflow as tf

    model = trained.load(tiny_run).model
    stored = tf.train.load_checkpoint(str(tiny_run.path / "checkpoints" / "best" / "weights"))
    sizes = [int(np.prod(shape)) for shape in stored.get_variable_to_shape_map().values()]
    assert sum(sizes) < 1.01 * sum(int(np.prod(variable.shape)) for variable in model.variables) + 10
