"""Settings: four layers, every problem at once, nothing unexplained."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpipeline import config
from tfpipeline.errors import ConfigError


def _problem(*overrides: str, preset: str = "", file: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(preset, file, overrides)
    return str(caught.value)


def test_later_layers_win(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("[train]\nepochs = 7\nlearning_rate = 3e-5\n")
    loaded = config.load("scratch", str(file), ["train.epochs=9"])
    assert (loaded.train.epochs, loaded.train.learning_rate, loaded.model.backbone) == (9, 3e-5, "scratch:tiny")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rte=1", "--set train.learning_rte=1: unknown key `train.learning_rte`. Did you mean `train.learning_rate`?"),
        ("learning_rate=1", "--set learning_rate=1: unknown key `learning_rate`. Did you mean `train.learning_rate`?"),
        ("train.epochs", "--set train.epochs: expected key=value, for example --set train.epochs=3."),
        ("train.epochs=0", "--set: `train.epochs` takes integer >= 1, received 0."),
        ("train.epochs=three", "--set: `train.epochs` takes integer, received 'three'."),
        ("train.epochs=1.5", "--set: `train.epochs` takes integer, received 1.5."),
        ("train.epochs=true", "--set: `train.epochs` takes integer, received True."),
        ("model.dropout=1.0", "--set: `model.dropout` takes number >= 0 and < 1, received 1.0."),
        ("train.learning_rate=nan", "--set: `train.learning_rate` takes number > 0, received nan."),
        ("train.learning_rate=inf", "--set: `train.learning_rate` takes number > 0, received inf."),
        ("text.unicode=NFG", "--set: `text.unicode` takes one of none, NFC, NFKC, received 'NFG'. Did you mean `NFC`?"),
        ("model.backbone=scratch:tyni", "`model.backbone` 'scratch:tyni' is not one of scratch:tiny, scratch:mini, scratch:small. Did you mean `scratch:tiny`?"),
        ("data.test_fraction=0.95", "`data.validation_fraction` + `data.test_fraction` must leave something to train on: their sum is 1 or more."),
        ("data.class_weights=given", '`data.class_weights = "given"` needs `data.class_weight_values`, one number per label.'),
        ("data.labels=[\"a\",\"a\"]", "`data.labels` names a label twice: ['a', 'a']."),
        ("compress.sparsity=1", "--set: `compress.sparsity` takes number >= 0 and < 1, received 1.0."),
        ("compress.sparsity=-0.1", "--set: `compress.sparsity` takes number >= 0 and < 1, received -0.1."),
        ("compress.sparsity_pattern=4:2", "--set: `compress.sparsity_pattern` takes one of any, 2:4, received '4:2'."),
        ("compress.sparsity_layers=attention,pooler", "--set: `compress.sparsity_layers` takes one of attention, feed_forward, received 'pooler'."),
        ("compress.distill_temperature=0", "--set: `compress.distill_temperature` takes number > 0 and <= 100, received 0.0."),
        ("compress.distill_weight=1.5", "--set: `compress.distill_weight` takes number >= 0 and <= 1, received 1.5."),
        ("compress.sparsity_pattern=2:4", '`compress.sparsity_pattern = "2:4"` is two zeros in four: `compress.sparsity` must be 0.5, received 0.'),
        ("compress.distill_from=latest", "`compress.distill_from` names a teacher that nothing listens to. Set `compress.distill_weight`, for example 0.5."),
        ("compress.unlabelled=more.csv", "`compress.unlabelled` needs a teacher to label those texts. Set `compress.distill_weight`, for example 0.5."),
        ("name=../x", "`name` '../x' must be letters, digits, _ and -, starting with a letter or digit, at most 64 long: it becomes a folder name."),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_sentence(override: str, message: str) -> None:
    assert _problem(override).splitlines()[0] == message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("compress.sparsity=0.5", "compress.sparsity_begin=0.7"), "`compress.sparsity_begin` must be before `compress.sparsity_end`, received 0.7 and 0.6: no step would be left in which the sparsity grows."),
        (("compress.sparsity=0.5", "compress.sparsity_layers="), "`compress.sparsity_layers` is empty, so `compress.sparsity` has nothing to prune. Name attention, feed_forward, or both."),
        (("compress.sparsity=0.5", "compress.quantize_aware=true"), "`compress.quantize_aware` and `compress.sparsity` in one training: prune first, then train with quantization from the pruned model, which keeps its zeros (`compress.keep_sparsity`)."),
        (("compress.quantize_aware=true", "runtime.precision=bfloat16"), "`compress.quantize_aware` needs `runtime.precision = \"float32\"`, received 'bfloat16': rounding to 8 bits is defined on it."),
    ],
)  # fmt: skip
def test_compressions_that_contradict_each_other(overrides: tuple[str, ...], message: str) -> None:
    assert _problem(*overrides) == message


def test_nothing_is_compressed_unless_it_is_asked_for() -> None:
    compress = config.load().compress
    assert (compress.sparsity, compress.quantize_aware, compress.distill_weight, compress.distill_hidden_weight) == (0.0, False, 0.0, 0.0)


def test_all_problems_come_at_once() -> None:
    assert len(_problem("train.epochs=0", "train.lr=1", "text.unicode=x").splitlines()) == 3


def test_a_file_names_itself(tmp_path: Path) -> None:
    file = tmp_path / "sst2.toml"
    file.write_text("[train]\nlearning_rte = 1\n")
    assert _problem(file=str(file)) == f"{file}: unknown key `train.learning_rte`. Did you mean `train.learning_rate`?"
    file.write_text("train = 3\n")
    assert _problem(file=str(file)) == f"{file}: `train` must be a section [train], not the value 3."
    file.write_text("a = = b")
    assert _problem(file=str(file)).startswith(f"{file}: not valid TOML: ")
    assert _problem(file="no.toml") == "no.toml: no such config file. Give the path of a TOML file, or use --preset (bank, scratch, sst2)."


@pytest.mark.parametrize("name", config.presets())
def test_every_preset_loads_and_opens_with_what_it_costs(name: str) -> None:
    assert config.load(name).name == name
    opening = [line.split(":")[0] for line in config.preset_text(name).splitlines()[:4]]
    assert opening == ["# command", "# machine", "# time", "# result"]


def test_every_setting_is_explained() -> None:
    for key, setting in config.settings().items():
        assert setting.meaning.endswith((".", "?")), key
        if setting.type in ("integer", "number"):
            assert setting.bounds, key
    assert config.explain("train.epochs").default == 3
    with pytest.raises(
        ConfigError, match=r"^unknown key `train.epoch`. Did you mean `train.epochs`\? `tfpipeline config` lists all keys.$"
    ):
        config.explain("train.epoch")


@given(
    st.fixed_dictionaries(
        {
            "train.epochs": st.integers(1, 10**6),
            "train.learning_rate": st.floats(1e-9, 1e3),
            "data.labels": st.lists(
                st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=5), unique=True, max_size=4
            ),
            "runtime.deterministic": st.booleans(),
        }
    )
)
def test_a_config_survives_its_own_json(values: dict[str, object]) -> None:
    sections: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    loaded = config.load_dict(sections, "test")
    again = config.load_dict(loaded.to_dict(), "test")
    assert again == loaded
    assert again.digest() == loaded.digest()


def test_another_value_is_another_digest() -> None:
    assert config.load().digest() != config.load(overrides=["runtime.seed=2"]).digest()


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.path=a.csv", ("a.csv",)),
        ("data.path=a.csv,b.csv", ("a.csv", "b.csv")),
        ('data.path=["a,b.csv"]', ("a,b.csv",)),
        ("data.path=", ()),
    ],
)
def test_lists_on_the_command_line(override: str, value: tuple[str, ...]) -> None:
    assert config.load(overrides=[override]).data.path == value
