"""Recipes: what a TOML file may say, and what is refused before anything is begun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tfpipeline import config
from tfpipeline.compress import recipes
from tfpipeline.errors import ConfigError

SIX_LAYERS = {"num_hidden_layers": 6, "hidden_size": 384}


def parse(text: str) -> recipes.Recipe:
    return recipes.parse(text, "mine.toml", "mine")


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return str(caught.value)


@pytest.mark.parametrize("name", recipes.names())
def test_every_ready_recipe_opens_with_what_it_is_for_and_fits_a_six_layer_run(name: str) -> None:
    recipe = recipes.load(name)
    assert recipe.name == name
    assert [line.split(":")[0] for line in recipe.summary.splitlines()] == ["for", "does", "time", "result"]
    recipes.check_against(recipe, config.load(), SIX_LAYERS, Path("runs/one"))


def test_the_promised_recipes_are_there() -> None:
    promised = {
        "int8-dynamic",
        "int8-full",
        "qat",
        "prune50",
        "prune-2-4",
        "prune80",
        "prune80-int8",
        "student3",
        "trim-vocabulary",
        "trim-int8",
    }
    assert promised | {"structured", "smallest"} <= set(recipes.names())


def test_a_file_is_read_as_a_chain(tmp_path: Path) -> None:
    path = tmp_path / "half-and-int8.toml"
    path.write_text(
        '# for: a test\n# second line\n\nmax_drop = 2\n[[steps]]\nkind = "keep_layers"\nlayers = [0, 2]\n'
        '[[steps]]\nkind = "finetune"\ntrain.epochs = 2\n[[steps]]\nkind = "int8_dynamic"\n'
    )
    recipe = recipes.load(str(path))
    assert (recipe.name, recipe.summary, recipe.max_drop) == ("half-and-int8", "for: a test\nsecond line", 2.0)
    assert [step.kind for step in recipe.steps] == ["keep_layers", "finetune", "int8_dynamic"]
    assert recipe.steps[0].settings == recipes.KeepLayers(layers=(0, 2))
    assert recipe.steps[1].sections == {"train": {"epochs": 2}}
    assert [recipe.heals(number) for number in range(3)] == [True, False, False]


def test_equal_first_steps_have_equal_digests() -> None:
    assert recipes.load("prune80-int8").digest(1) == recipes.load("prune80").digest() == recipes.load("smallest").digest(1)
    assert recipes.load("prune50").digest() != recipes.load("prune80").digest()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int8-dynamo", "recipe 'int8-dynamo': no such recipe, and no such file. Did you mean `int8-dynamic`? Recipes: int8-dynamic, "),
        ("nowhere/mine.toml", "nowhere/mine.toml: no such recipe file. Give the path of a TOML file, or one of int8-dynamic, "),
    ],
)
def test_a_recipe_that_does_not_exist(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipes.load(name)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("case", "text", "message"),
    [
        ("no step", 'name = "x"', 'mine.toml: has no step. Add at least one: [[steps]] with kind = "int8_dynamic" ('),
        ("an empty chain", "steps = []", "mine.toml: has no step."),
        ("not TOML", "[[steps", "mine.toml: not valid TOML: "),
        ("no kind", "[[steps]]\nheads = 0.5", "mine.toml, step 1: kind None is not one of trim_vocabulary, "),
        ("a kind that does not exist", '[[steps]]\nkind = "finetun"', "Did you mean `finetune`?"),
        (
            "a key that does not exist",
            '[[steps]]\nkind = "structured"\nhead = 0.5',
            "mine.toml, step 1 (structured): unknown key `head`. Did you mean `heads`? It takes heads, feed_forward, rows.",
        ),
        ("a top-level key that does not exist", 'drop = 1\n[[steps]]\nkind = "int8_dynamic"', "mine.toml: unknown key `drop`."),
        (
            "a section that finetune does not take",
            '[[steps]]\nkind = "finetune"\ndata.limit = 5',
            "mine.toml, step 1 (finetune): unknown key `data`. A finetune step takes train.*, compress.*, model.*, as in a config.",
        ),
        (
            "a setting that does not exist",
            '[[steps]]\nkind = "finetune"\ntrain.epoch = 5',
            "mine.toml, step 1 (finetune): unknown key `train.epoch`. Did you mean `train.epochs`?",
        ),
        ("another backbone", '[[steps]]\nkind = "finetune"\nmodel.backbone = "scratch:tiny"', "`model.backbone` cannot be set here"),
        (
            "sparsity of everything",
            '[[steps]]\nkind = "finetune"\ncompress.sparsity = 1.0',
            "`compress.sparsity` takes number >= 0 and < 1, received 1.0.",
        ),
        (
            "negative sparsity",
            '[[steps]]\nkind = "finetune"\ncompress.sparsity = -0.5',
            "`compress.sparsity` takes number >= 0 and < 1, received -0.5.",
        ),
        ("dropping all heads", '[[steps]]\nkind = "structured"\nheads = 1.0', "`heads` takes number >= 0 and < 1, received 1.0."),
        ("dropping nothing", '[[steps]]\nkind = "structured"', "drops nothing. Set `heads` or `feed_forward`"),
        ("no layers", '[[steps]]\nkind = "keep_layers"', "give either `layers` (which) or `count` (how many), and not both."),
        ("layers and a count", '[[steps]]\nkind = "keep_layers"\nlayers = [0]\ncount = 1', "give either `layers` (which) or `count`"),
        ("layers out of order", '[[steps]]\nkind = "keep_layers"\nlayers = [2, 0]', "`layers` [2, 0] must go upwards, each once."),
        ("a student of no known shape", '[[steps]]\nkind = "student"\nbackbone = "scratch:minni"', "Did you mean `scratch:mini`?"),
        (
            "a step after a conversion",
            '[[steps]]\nkind = "int8_dynamic"\n[[steps]]\nkind = "trim_vocabulary"',
            "mine.toml, step 1: `int8_dynamic` makes a .tflite, which no step can go on from. Put it last.",
        ),
        (
            "another shape for a rounded model",
            '[[steps]]\nkind = "finetune"\ncompress.quantize_aware = true\n[[steps]]\nkind = "trim_vocabulary"',
            "mine.toml, step 2: `trim_vocabulary` cannot change a model with the rounding of int8 in it. Put it before step 1.",
        ),
        ("a name that is no folder", 'name = "../x"\n[[steps]]\nkind = "int8_dynamic"', "mine.toml: `name` '../x' must be small letters"),
        (
            "a budget that is none",
            'max_drop = -1\n[[steps]]\nkind = "int8_dynamic"',
            "`max_drop` takes points of accuracy, 0 to 100, received -1.",
        ),
    ],
)
def test_what_a_recipe_may_not_say(case: str, text: str, message: str) -> None:
    assert message in refusal(text), case


def test_all_problems_come_at_once() -> None:
    told = refusal('name = "A"\n[[steps]]\nkind = "sructured"\n[[steps]]\nkind = "keep_layers"\ncout = 3').splitlines()
    assert len(told) == 3
    assert "Did you mean `structured`?" in told[1]
    assert "Did you mean `count`?" in told[2]


@pytest.mark.parametrize(
    ("case", "steps", "message"),
    [
        (
            "deeper than the teacher",
            '[[steps]]\nkind = "keep_layers"\ncount = 7',
            "recipe mine, step 1 (keep_layers): a student of 7 layers is deeper than its teacher, which has 6. Keep at most 6.",
        ),
        ("a layer that is not there", '[[steps]]\nkind = "keep_layers"\nlayers = [0, 6]', "the model has layers 0 to 5; received [0, 6]."),
        (
            "deeper than an earlier step left it",
            '[[steps]]\nkind = "keep_layers"\ncount = 2\n[[steps]]\nkind = "keep_layers"\ncount = 3',
            "recipe mine, step 2 (keep_layers): a student of 3 layers is deeper than its teacher, which has 2.",
        ),
    ],
)
def test_what_a_run_cannot_give(case: str, steps: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipes.check_against(parse(steps), config.load(), SIX_LAYERS, Path("runs/one"))
    assert message in str(caught.value), case


def test_a_student_wider_than_its_teacher_is_refused() -> None:
    tiny = {"num_hidden_layers": 2, "hidden_size": 128}
    with pytest.raises(ConfigError) as caught:
        recipes.check_against(parse('[[steps]]\nkind = "student"\nbackbone = "scratch:mini"'), config.load(), tiny, Path("runs/one"))
    assert str(caught.value) == (
        "recipe mine, step 1 (student): the student scratch:mini is larger than its teacher (width 256 > 128, layers 4 > 2). Take scratch:tiny."
    )


def test_a_run_that_was_trained_with_rounding_keeps_its_shape() -> None:
    with pytest.raises(ConfigError, match="the run's model was trained with the rounding of int8 in it"):
        recipes.check_against(recipes.load("trim-int8"), config.load(), SIX_LAYERS, Path("runs/one"), quantized=True)
    recipes.check_against(recipes.load("int8-full"), config.load(), SIX_LAYERS, Path("runs/one"), quantized=True)


def test_a_finetune_step_is_the_parents_config_with_its_sections_over_it() -> None:
    parent = config.load(overrides=["train.epochs=7", "train.batch_size=16", "evaluate.min_accuracy=0.9", "train.baseline_run=old"])
    step = parse(
        '[[steps]]\nkind = "finetune"\ntrain.epochs = 2\ncompress.sparsity = 0.5\n'
        'compress.distill_from = "original"\ncompress.distill_weight = 0.5'
    ).steps[0]
    child = recipes.finetune_config(step, parent, Path("runs/one"), "here")
    assert (child.train.epochs, child.train.batch_size, child.compress.sparsity) == (2, 16, 0.5)
    assert child.compress.distill_from == str(Path("runs/one").resolve())
    assert (child.evaluate.min_accuracy, child.train.baseline_run) == (0.0, "")
    assert (child.data, child.text) == (parent.data, parent.text)


def test_recipes_are_light() -> None:
    code = (
        "import sys, tfpipeline.compress.recipes as r; r.load('smallest'); print(' '.join(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"numpy", "tensorflow", "transformers"} & set(done.stdout.split())
