"""What may vary: a TOML table over dotted config keys, checked against the config tree before anything runs.

    "train.learning_rate" = {min = 1e-5, max = 2e-4, log = true}      a range; log: as many trials between 1e-5 and 2e-5 as between 1e-4 and 2e-4
    "train.epochs"        = {min = 2, max = 4}                        whole numbers, both ends included
    "model.dropout"       = {min = 0.0, max = 0.3, step = 0.1}        only these; with `log`, each is `step` times the one before
    "train.batch_size"    = [16, 32]                                  choices, short for {values = [16, 32]}; lists are possible choices too
    "train.optimizer"     = ["adamw", "sgd"]
    "train.weight_decay"  = {values = [0.0, 0.1], when = {"train.optimizer" = "adamw"}}      else it stays what the base config says

In: a file, or the name of a space that ships with the package. Out: a `Space`. Refuses, all problems at once: unknown keys, values the key does not take,
min > max, a log scale across zero, a step that never arrives, conditions on what is not searched, keys that change what is measured instead of how
well the model learns, and combinations that no Config takes.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from tfpipeline import config as configs
from tfpipeline.config import Config
from tfpipeline.errors import ConfigError

FIELDS = ("values", "min", "max", "step", "log", "when")
SECTIONS = ("text", "model", "train")
# Of the other sections only these change how well the model learns, and not which rows it is judged on, or where things lie.
ALSO = ("data.class_weights", "data.limit", "runtime.precision")
NEVER = ("train.initial_weights", "train.baseline_run", "train.checkpoint_minutes", "train.checkpoint_steps", "train.tensorboard")
COMBINATIONS_TRIED = 100
MOST_VALUES = 1000
DIGITS = 6  # of a drawn number: enough for any setting, and people can copy it

Values = dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """One key that is searched.

    Attributes:
        key: dotted.
        values: the choices, in their order; empty for a range.
        low: lower end of a range, included.
        high: upper end, included.
        log: whether the range is even in the logarithm.
        whole: whether the range has whole numbers only.
        when: (key, its values) of each condition; all must hold.
    """

    key: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def active(self, chosen: Mapping[str, Any]) -> bool:
        """Whether the conditions hold for these values of the parameters before it."""
        return all(key in chosen and chosen[key] in wanted for key, wanted in self.when)

    def place(self, value: Any) -> float:
        """Where a value stands between the parameter's ends, in [0, 1]."""
        if self.values:
            return self.values.index(value) / max(1, len(self.values) - 1)
        low, high, at = (math.log(number) if self.log else number for number in (self.low, self.high, float(value)))
        return min(1.0, max(0.0, (at - low) / (high - low)))

    def draw(self, generator: random.Random) -> Any:
        """A value at random; only for checks, the tuner draws its own."""
        if self.values:
            return generator.choice(self.values)
        share = generator.random()
        value = self.low * (self.high / self.low) ** share if self.log else self.low + share * (self.high - self.low)
        return round(value) if self.whole else rounded(value)


@dataclass(frozen=True)
class Space:
    """Everything that is searched, a parent before its children.

    Attributes:
        name: of the file, or of the space that ships.
        parameters: at least one.
    """

    name: str
    parameters: tuple[Parameter, ...]

    def describe(self) -> list[dict[str, Any]]:
        """Plain JSON types; equal spaces, equal descriptions."""
        return [
            {
                "key": one.key,
                **({"values": list(one.values)} if one.values else {"min": one.low, "max": one.high, "log": one.log, "whole": one.whole}),
                **({"when": {key: list(wanted) for key, wanted in one.when}} if one.when else {}),
            }
            for one in sorted(self.parameters, key=lambda one: one.key)
        ]

    def digest(self) -> str:
        """Hex sha256 of the description."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()

    @property
    def keys(self) -> list[str]:
        """The searched keys, in the order of the config tree."""
        wanted = {one.key for one in self.parameters}
        return [key for key in configs.settings() if key in wanted]

    def __getitem__(self, key: str) -> Parameter:
        return next(one for one in self.parameters if one.key == key)

    def without(self, key: str) -> Space:
        """The space without one key, on which no other depends."""
        return dataclasses.replace(self, parameters=tuple(one for one in self.parameters if one.key != key))

    def combinations(self) -> int | None:
        """How many there are; None when a range is continuous, or a condition makes the count depend on the values."""
        if any(not one.values and not one.whole for one in self.parameters) or any(one.when for one in self.parameters):
            return None
        return math.prod(len(one.values) or round(one.high - one.low) + 1 for one in self.parameters)

    def hyperparameters(self) -> Any:
        """The space as Keras Tuner's `HyperParameters`.

        Choices go in as JSON texts: Keras Tuner takes no lists, and its protocol turns `true` into 1. Their order is kept, and is what the Gaussian
        process sees.
        """
        from keras_tuner.engine import hyperparameters
        from keras_tuner.src.engine import conditions

        found = hyperparameters.HyperParameters()
        for one in self.parameters:
            # Made by hand and not by `conditional_scope`, which cannot express two conditions, or a condition on something that has one itself.
            when = [
                conditions.Parent(key, [json.dumps(value) for value in wanted] if self[key].values else list(wanted))
                for key, wanted in one.when
            ]
            sampling = "log" if one.log else "linear"
            if one.values:
                made = hyperparameters.Choice(one.key, [json.dumps(value) for value in one.values], conditions=when)
            elif one.whole:
                made = hyperparameters.Int(one.key, int(one.low), int(one.high), sampling=sampling, conditions=when)
            else:
                made = hyperparameters.Float(one.key, one.low, one.high, sampling=sampling, conditions=when)
            found.merge([made])
        return found

    def decode(self, chosen: Mapping[str, Any]) -> Values:
        """Keras Tuner's values as config values by key; what a tuner adds for itself (`tuner/epochs`) is left out."""
        found: Values = {}
        for one in self.parameters:
            if one.key in chosen:
                value = chosen[one.key]
                found[one.key] = (
                    json.loads(value) if one.values else int(value) if one.whole else min(one.high, max(one.low, rounded(value)))
                )
        return found


def rounded(value: float) -> float:
    """The number with `DIGITS` digits."""
    return float(f"{value:.{DIGITS}g}")


def shipped() -> list[str]:
    """Names of the spaces that ship with the package."""
    return sorted(entry.name[:-5] for entry in (resources.files("tfpipeline") / "spaces").iterdir() if entry.name.endswith(".toml"))


def default_name(base: Config) -> str:
    """The ready space that suits the backbone."""
    return "scratch" if base.model.backbone.startswith("scratch:") else "bert"


def load(name: str, base: Config) -> Space:
    """A space by the path of its file, or by the name of one that ships; "" for the default of the backbone.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    name = name or default_name(base)
    if name in shipped():
        text = (resources.files("tfpipeline") / "spaces" / f"{name}.toml").read_text(encoding="utf-8")
        return parse(configs.parse_toml(text, name), name, base)
    missing = f'{name}: no such space. Give a TOML file like `"train.learning_rate" = {{min = 1e-5, max = 2e-4, log = true}}`, or one of {", ".join(shipped())}.'
    return parse(configs.read_toml(name, missing), name, base)


def parse(tree: Mapping[str, Any], name: str, base: Config) -> Space:
    """As `load`, from what the file holds."""
    problems: list[str] = []
    found: dict[str, Parameter] = {}
    for key, given in _flat(tree):
        parameter = _parameter(key, given, name, problems)
        if parameter is not None:
            found[key] = parameter
    if not tree:
        problems.append(f"{name}: is empty. Name at least one key to search.")
    if not problems:
        found = {key: _with_conditions(one, found, name, problems) for key, one in found.items()}
    if problems:
        raise ConfigError("\n".join(problems))
    space = Space(name, _in_order(found, name))
    _check_combinations(space, base)
    return space


def with_values(base: Config, values: Mapping[str, Any], origin: str) -> Config:
    """The base with some keys replaced.

    Raises:
        ConfigError: a value that its key does not take, or values that contradict each other.
    """
    tree = base.to_dict()
    for key, value in values.items():
        section, _, field = key.rpartition(".")
        (tree[section] if section else tree)[field] = value
    return configs.load_dict(tree, origin)


def _flat(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """`train.epochs = [2, 3]` without quotes is a table in a table to TOML; both ways of writing it mean the same."""
    sections = {key.split(".")[0] for key in configs.settings() if "." in key}
    for key, given in tree.items():
        if key in sections and isinstance(given, Mapping):
            yield from ((f"{key}.{inner}", value) for inner, value in given.items())
        else:
            yield key, given


def _parameter(key: str, given: Any, name: str, problems: list[str]) -> Parameter | None:
    """One line of the space; None when it has a problem."""
    before = len(problems)

    def wrong(what: str) -> None:
        problems.append(f"{name}: `{key}` {what}")

    try:
        setting = configs.explain(key)
    except ConfigError as error:
        problems.append(f"{name}: {error}")
        return None
    if (key.split(".")[0] not in SECTIONS and key not in ALSO) or key in NEVER:
        wrong(
            "changes what is measured or where it is kept, not how well the model learns, so trials could not be compared. "
            f"Search keys of {', '.join(SECTIONS)}, {', '.join(ALSO)}; set this one for all trials with --set."
        )
        return None
    spec: Mapping[str, Any] = {"values": given} if isinstance(given, list) else given if isinstance(given, Mapping) else {}
    if not spec:
        wrong(f"takes a list of choices or a table with min and max, received {given!r}. To fix it for all trials: --set {key}={given}")
        return None
    for field in spec:
        if field not in FIELDS:
            near = difflib.get_close_matches(field, FIELDS, n=1)
            wrong(f"has an unknown field `{field}`.{f' Did you mean `{near[0]}`?' if near else ''} Fields: {', '.join(FIELDS)}.")
    when = tuple((parent, tuple(value) if isinstance(value, list) else (value,)) for parent, value in _conditions(spec, wrong))
    if len(problems) > before:
        return None
    if "values" in spec:
        if any(field in spec for field in ("min", "max", "step", "log")):
            wrong("has both `values` and a range. Keep one of the two.")
            return None
        values = spec["values"]
        if not isinstance(values, list) or len(values) < 2:
            wrong(f"needs a list of at least two values to choose from, received {values!r}.")
            return None
        taken = [checked for value in values for checked in _taken(key, value, name, problems)]
        if len({json.dumps(value) for value in taken}) < len(taken):
            wrong(f"names a value twice: {values}.")
        return Parameter(key, tuple(taken), when=when) if len(problems) == before else None
    return _range(key, setting.type, spec, when, name, problems)


def _range(
    key: str, kind: str, spec: Mapping[str, Any], when: tuple[tuple[str, tuple[Any, ...]], ...], name: str, problems: list[str]
) -> Parameter | None:
    before = len(problems)

    def wrong(what: str) -> None:
        problems.append(f"{name}: `{key}` {what}")

    if kind not in ("integer", "number"):
        wrong(f"is no number ({kind}), so it has no range. List its values: {{values = [...]}}.")
        return None
    missing = [field for field in ("min", "max") if field not in spec]
    if missing:
        wrong(f"lacks `{'` and `'.join(missing)}`. Give values, or min and max.")
        return None
    ends = [checked for field in ("min", "max") for checked in _taken(key, spec[field], name, problems)]
    log, step = spec.get("log", False), spec.get("step")
    if not isinstance(log, bool):
        wrong(f"has log = {log!r}; it takes true or false.")
    if step is not None and (isinstance(step, bool) or not isinstance(step, int | float) or not math.isfinite(step)):
        wrong(f"has step = {step!r}; it takes a number.")
    if len(problems) > before:
        return None
    low, high = ends
    if low > high:
        wrong(f"has min {low:g} above max {high:g}. Swap them.")
    elif low == high:
        wrong(f"has min = max = {low:g}: nothing to search. To fix it for all trials: --set {key}={low:g}")
    elif log and low <= 0:
        wrong(f"has a log scale from {low:g}: the logarithm of 0 and below does not exist. Start above 0, or leave out log.")
    elif step is not None:
        return _stepped(key, kind, low, high, log, step, when, name, problems)
    whole = kind == "integer"
    return Parameter(key, (), low, high, log, whole, when) if len(problems) == before else None


def _stepped(
    key: str, kind: str, low: float, high: float, log: bool, step: float, when: Any, name: str, problems: list[str]
) -> Parameter | None:
    """A range with steps is the list of its values."""
    if log and step <= 1:
        problems.append(f"{name}: `{key}` has a log scale, where each value is `step` times the one before: {step:g} must be above 1.")
        return None
    if not log and step <= 0:
        problems.append(f"{name}: `{key}` has step = {step:g}; it must be above 0.")
        return None
    if kind == "integer" and step != int(step):
        problems.append(f"{name}: `{key}` takes whole numbers, so its step must be one; received {step:g}.")
        return None
    count = math.floor((math.log(high / low, step) if log else (high - low) / step) + 1e-9) + 1
    if count < 2 or count > MOST_VALUES:
        room = "is larger than the range" if count < 2 else f"makes {count} values, more than {MOST_VALUES}"
        problems.append(f"{name}: `{key}` has step = {step:g}, which {room} ({low:g} to {high:g}).")
        return None
    values = [low * step**number if log else low + number * step for number in range(count)]
    return Parameter(key, tuple(round(value) if kind == "integer" else rounded(value) for value in values), when=when)


def _taken(key: str, value: Any, name: str, problems: list[str]) -> Iterator[Any]:
    """The value as the key takes it, or a problem and nothing."""
    section, _, field = key.rpartition(".")
    try:
        loaded = configs.load_dict({section: {field: value}} if section else {field: value}, name).to_dict()
    except ConfigError as error:
        problems.extend(str(error).splitlines())
        return
    yield (loaded[section] if section else loaded)[field]


def _conditions(spec: Mapping[str, Any], wrong: Any) -> Iterator[tuple[str, Any]]:
    given = spec.get("when", {})
    if not isinstance(given, Mapping):
        wrong(f'has when = {given!r}; it takes a table like {{"train.optimizer" = "adamw"}}.')
        return
    yield from _flat(given)


def _with_conditions(one: Parameter, found: Mapping[str, Parameter], name: str, problems: list[str]) -> Parameter:
    """The parameter with the values of its conditions as their own keys write them (1 for a number is 1.0)."""
    when = []
    for parent, wanted in one.when:
        if parent == one.key:
            problems.append(f"{name}: `{one.key}` is conditional on itself.")
        elif parent not in found:
            problems.append(
                f"{name}: `{one.key}` is conditional on `{parent}`, which is not searched. Add `{parent}` to the space, or leave out the condition."
            )
        elif not found[parent].values and not found[parent].whole:
            problems.append(f"{name}: `{one.key}` is conditional on `{parent}`, a range of numbers. Conditions need listed values.")
        else:
            over = found[parent]
            possible = over.values or range(int(over.low), int(over.high) + 1)
            matched = [
                value for value in possible if any(value == want and isinstance(value, bool) == isinstance(want, bool) for want in wanted)
            ]
            if len(matched) < len(wanted):
                strange = [want for want in wanted if want not in matched]
                problems.append(f"{name}: `{one.key}` is conditional on `{parent}` = {strange}, which the space never tries.")
            when.append((parent, tuple(matched)))
    return dataclasses.replace(one, when=tuple(when))


def _in_order(found: Mapping[str, Parameter], name: str) -> tuple[Parameter, ...]:
    """Parents before children, as Keras Tuner wants it."""
    done: dict[str, Parameter] = {}
    while len(done) < len(found):
        ready = [one for key, one in found.items() if key not in done and all(parent in done for parent, _ in one.when)]
        if not ready:
            circle = ", ".join(f"`{key}`" for key in found if key not in done)
            raise ConfigError(f"{name}: the conditions of {circle} go round in a circle. Leave one of them out.")
        done.update((one.key, one) for one in ready)
    return tuple(done.values())


def _check_combinations(space: Space, base: Config) -> None:
    """Some combinations, drawn with a fixed seed: a Config that contradicts itself shows up here, not at midnight."""
    generator = random.Random(0)
    refused: dict[str, Values] = {}
    for chosen in itertools.islice(_drawn(space, generator), COMBINATIONS_TRIED):
        try:
            with_values(base, chosen, space.name)
        except ConfigError as error:
            refused.setdefault(str(error), chosen)
    if refused:
        lines = [f"{space.name}: some combinations are no valid config; keep them apart with a condition (when = {{...}}):"]
        lines += [f"  {error} For example {_named(chosen)}." for error, chosen in refused.items()]
        raise ConfigError("\n".join(lines))


def _drawn(space: Space, generator: random.Random) -> Iterator[Values]:
    while True:
        chosen: Values = {}
        for one in space.parameters:
            if one.active(chosen):
                chosen[one.key] = one.draw(generator)
        yield chosen


def _named(values: Mapping[str, Any], keys: Sequence[str] = ()) -> str:
    return ", ".join(f"{key} = {json.dumps(values[key])}" for key in keys or values)
