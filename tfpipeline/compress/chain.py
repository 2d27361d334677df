"""A recipe's steps in order, each measured, the budget held: a run and a recipe to `RUN/compressed/<variant>/`.

    RUN/compressed/<variant>/        the float form (as checkpoints/best), model.tflite where the last step converted, report.json
    RUN/compressed/<variant>.refused.json      the report of a chain that the budget stopped
    RUN/compressed/.work/<variant>/  while a chain is cooked, and after the budget stopped it: step-1/, step-2/, ... and training runs

In: an `Original` and a `Recipe`. Out: the report of the variant. A killed chain goes on after its last finished step (and inside a fine-tuning after its
last checkpoint). A chain that begins as an existing variant of the run began is taken up from there. A variant appears whole or not at all.

When is the budget held? After every step but a `keep_layers`, `student` or `structured` that a `finetune` follows: those leave a model that has yet to
learn. A step that breaks it stops the chain; the last good step's model becomes the variant `<variant>-step<N>`, and the refused one waits in `.work`, so
that the same command with a larger budget takes it without training again.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfpipeline import data, runs, trained
from tfpipeline.backbone import sha256_of
from tfpipeline.compress import measure, recipes
from tfpipeline.compress.finetune import finetune
from tfpipeline.compress.integer import int8_dynamic, int8_full
from tfpipeline.compress.layers import keep_layers, student
from tfpipeline.compress.recipes import Recipe, Step
from tfpipeline.compress.structured import structured
from tfpipeline.compress.trim import trim_vocabulary
from tfpipeline.compress.variants import folder_of
from tfpipeline.edge.runner import EdgeModel
from tfpipeline.errors import ConfigError, GateError, RunError
from tfpipeline.trained import Trained

logger = logging.getLogger(__name__)

LATENCY_TEXTS = 200
_TRANSFORMS: dict[str, Callable[..., tuple[Trained, dict[str, Any]]]] = {
    "trim_vocabulary": trim_vocabulary,
    "keep_layers": keep_layers,
    "student": student,
    "structured": structured,
}


@dataclass
class Original:
    """The run that is compressed, opened and measured once for any number of recipes.

    Attributes:
        run: the run.
        trained: its best model.
        corpus: its splits.
        rows: validation and test, with the model's answers.
        answer: one text to probabilities.
        facts: what every report says about it: name, weights' hash, accuracy, bytes, gzip_bytes.
        threads: that every model is timed with.
        texts: of which latency is measured.
    """

    run: runs.Run
    trained: Trained
    corpus: data.Corpus
    rows: measure.Rows
    answer: measure.Answer
    facts: dict[str, Any]
    threads: int
    texts: int

    @classmethod
    def open(cls, run: runs.Run, *, texts: int = LATENCY_TEXTS) -> Original:
        """Raises RunError: the run has no trained model."""
        model = trained.load(run)
        corpus = data.open_prepared(run.path / "data")
        rows = measure.rows_of(model, corpus)
        with tempfile.TemporaryDirectory() as place:
            trained.save(Path(place), model)  # without the state of an optimizer, as a variant is kept
            sizes = measure.sizes(Path(place))
        weights = sorted((run.path / "checkpoints" / "best").glob("weights.data-*"))
        facts = {
            "run": run.path.name,
            "weights_sha256": [sha256_of(path) for path in weights],
            "accuracy": measure.quality(model, rows, rows.probabilities, "original")["accuracy"],
            **sizes,
        }
        return cls(run, model, corpus, rows, measure.answer_of(model), facts, measure.threads_of(model), texts)


def compress(original: Original, recipe: Recipe, *, variant: str = "", max_drop: float | None = None) -> dict[str, Any]:
    """Makes a variant.

    Args:
        original: what from.
        recipe: how.
        variant: its name; "": the recipe's.
        max_drop: points of accuracy it may lose; None: the recipe's, or else the run's `compress.max_drop`.

    Returns:
        The variant's report; of a variant that is there already and was made by these steps from these weights, the one it has.

    Raises:
        ConfigError: the recipe does not go with the run; nothing was begun.
        RunError: another variant of that name is there, or another process is making it.
        GateError: a step broke the budget.
    """
    variant = variant or recipe.name
    if not recipes.NAME_PATTERN.fullmatch(variant):
        raise ConfigError(
            f"variant {variant!r}: expected small letters, digits, dots, _ and -, starting with a letter or digit, at most 64 long. Choose another name with --as."
        )
    budget = max_drop if max_drop is not None else recipe.max_drop if recipe.max_drop is not None else original.run.config.compress.max_drop
    place = folder_of(original.run) / variant
    if place.exists():
        return _existing(place, original, recipe, budget)
    recipes.check_against(
        recipe,
        original.run.config,
        original.trained.backbone.architecture,
        original.run.path,
        quantized=bool(original.trained.model.quantization),
    )
    work = folder_of(original.run) / ".work" / variant
    work.mkdir(parents=True, exist_ok=True)
    with runs.lock(work):
        report = _Chain(original, recipe, variant, budget, work).cook()
    return report


def _existing(place: Path, original: Original, recipe: Recipe, budget: float) -> dict[str, Any]:
    report = runs.read_json(place / "report.json")
    if report["chain"][-1] != recipe.digest() or report["original"]["weights_sha256"] != original.facts["weights_sha256"]:
        raise RunError(
            f"{place}: a variant of this name is there already, made by other steps (recipe {report['recipe']}). Remove it, or give the new one another "
            "name: --as NAME."
        )
    if report["drop_points"] > budget:
        raise GateError(_told(report, budget) + f" It was made with a budget of {report['max_drop']:g}.")
    logger.info("%s is there already", place)
    shutil.rmtree(place.parent / ".work" / place.name, ignore_errors=True)  # left by a kill after the last rename
    return report


class _Chain:
    """One recipe being cooked in its own folder."""

    def __init__(self, original: Original, recipe: Recipe, variant: str, budget: float, work: Path) -> None:
        self.original, self.recipe, self.variant, self.budget, self.work = original, recipe, variant, budget, work
        self.folder = folder_of(original.run)

    def cook(self) -> dict[str, Any]:
        """The steps that are not done yet; then the last one's folder becomes the variant."""
        self._begin()
        count = len(self.recipe.steps)
        done = max(self._done(), default=0)
        model = self._load(done)
        report = self._report(done)
        if report:
            logger.info("%s: going on after step %d of %d", self.variant, done, count)
            report = self._judged(report)
            self._hold(done, report)
        for number in range(done + 1, count + 1):
            step = self.recipe.steps[number - 1]
            logger.info("%s, step %d of %d: %s", self.variant, number, count, step.kind)
            started = time.monotonic()
            model, converted, told = self._step(step, number, model)
            report = self._save(number, step, model, converted, told, report, time.monotonic() - started)
            shutil.rmtree(self.work / f"train-{number}", ignore_errors=True)
            self._hold(number, report)
        place = self.folder / self.variant
        self._publish(count, place)
        shutil.rmtree(self.work, ignore_errors=True)
        with contextlib.suppress(OSError):  # other chains may be at work
            self.work.parent.rmdir()
        (self.folder / f"{self.variant}.refused.json").unlink(missing_ok=True)
        return report

    def _begin(self) -> None:
        """An empty folder, or one that these very steps from these very weights left behind."""
        mine = {"digest": self.recipe.digest(), "weights_sha256": self.original.facts["weights_sha256"]}
        begun = self.work / "recipe.json"
        if begun.is_file() and runs.read_json(begun) == mine:
            for stray in self.work.glob(".incoming-*"):
                shutil.rmtree(stray, ignore_errors=True)
            return
        for old in self.work.iterdir():
            if old.name != ".lock":
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        found = self._begun_alike()
        if found is not None:
            steps, source = found
            logger.info("%s: its first %d steps are those of %s", self.variant, steps, source.name)
            with runs.atomic_folder(self.work / f"step-{steps}") as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)
        runs.write_json(begun, mine)

    def _begun_alike(self) -> tuple[int, Path] | None:
        """The variant that has most of this recipe's first steps, and how many."""
        best: tuple[int, Path] | None = None
        for path in sorted(self.folder.glob("*/report.json")):
            report = runs.read_json(path)
            steps = len(report["chain"])
            if (
                not path.parent.name.startswith(".")
                and steps < len(self.recipe.steps)
                and report["original"]["weights_sha256"] == self.original.facts["weights_sha256"]
                and report["chain"][-1] == self.recipe.digest(steps)
                and (best is None or steps > best[0])
            ):
                best = steps, path.parent
        return best

    def _done(self) -> Iterator[int]:
        return (int(path.parent.name.removeprefix("step-")) for path in self.work.glob("step-*/report.json"))

    def _load(self, done: int) -> Trained:
        return trained.load_folder(self.work / f"step-{done}", self.original.run.config) if done else self.original.trained

    def _report(self, done: int) -> dict[str, Any]:
        return runs.read_json(self.work / f"step-{done}" / "report.json") if done else {}

    def _step(self, step: Step, number: int, model: Trained) -> tuple[Trained, bytes | None, dict[str, Any]]:
        """The new model, the converted file if it is one, and what the step tells."""
        original = self.original
        if step.kind in _TRANSFORMS:
            model, told = _TRANSFORMS[step.kind](model, original.corpus, step.settings)
            return model, None, told
        if step.kind == "finetune":
            origin = f"recipe {self.recipe.name}, step {number} (finetune)"
            config = recipes.finetune_config(step, original.run.config, original.run.path, origin)
            model, told = finetune(model, original.run, config, self.work / f"train-{number}")
            return model, None, told
        if step.kind == "int8_dynamic":
            converted, told = int8_dynamic(model, original.corpus, step.settings)
        else:
            converted, told = int8_full(model, original.corpus, original.rows, step.settings, self.budget, original.threads)
        return model, converted, told

    def _save(
        self,
        number: int,
        step: Step,
        model: Trained,
        converted: bytes | None,
        told: dict[str, Any],
        before: dict[str, Any],
        seconds: float,
    ) -> dict[str, Any]:
        """Measures what a step made and puts it into its folder, whole."""
        original = self.original
        with runs.atomic_folder(self.work / f"step-{number}") as folder:
            trained.save(folder, model)
            if converted is not None:
                (folder / "model.tflite").write_bytes(converted)
            measured = self._measured(folder, model, converted is not None)
            entry = {"number": number, **step.to_dict(), "told": told, "seconds": round(seconds, 1), **measured}
            report = {
                "variant": self.variant,
                "parent": original.run.path.name,
                "recipe": self.recipe.name,
                "made": runs.utc_now().isoformat(timespec="seconds"),
                "chain": [self.recipe.digest(steps) for steps in range(1, number + 1)],
                "original": original.facts,
                "converted": converted is not None,
                **measured,
                "steps": [*before.get("steps", ()), entry],
            }
            runs.write_json(folder / "report.json", self._judged(report))
        return self._judged(report)

    def _measured(self, folder: Path, model: Trained, converted: bool) -> dict[str, Any]:
        original = self.original
        examples = original.rows.examples
        answer: measure.Answer
        if converted:
            edge = EdgeModel(folder / "model.tflite", threads=original.threads)
            probabilities = edge.predict(*examples.text_batch(_all(examples)))

            def asked(text: str, pair: str | None) -> Any:
                return edge.predict([text], None if pair is None else [pair])

            answer = asked
        else:
            probabilities = model.predict_examples(examples, batch_size=model.config.evaluate.batch_size)
            answer = measure.answer_of(model)
        quality = measure.quality(original.trained, original.rows, probabilities, self.variant)
        sizes = measure.sizes(folder)
        times = measure.latency({"original": original.answer, "variant": answer}, original.corpus.test, original.texts, original.threads)
        return {
            **quality,
            "drop_points": round(measure.drop_points(quality), 3) + 0.0,  # no -0.0
            **sizes,
            "bytes_ratio": round(sizes["bytes"] / original.facts["bytes"], 4),
            "gzip_ratio": round(sizes["gzip_bytes"] / original.facts["bytes"], 4),
            "sparsity": measure.sparsity(model),
            "latency_ms": times["variant"],
            "latency_original_ms": times["original"],
            "speedup": round(times["original"]["p50"] / times["variant"]["p50"], 3),
        }

    def _judged(self, report: dict[str, Any]) -> dict[str, Any]:
        """With what the budget of this call says; a report from an earlier call may have been held to another."""
        return {**report, "variant": self.variant, "max_drop": self.budget, "passes": report["drop_points"] <= self.budget}

    def _hold(self, number: int, report: dict[str, Any]) -> None:
        """Raises GateError when step `number` broke the budget, with the last good model kept."""
        if number == 0 or report["drop_points"] <= self.budget or self.recipe.heals(number - 1):
            return
        kept = ""
        for good in sorted((one for one in self._done() if one < number and not self.recipe.heals(one - 1)), reverse=True):
            name = f"{self.variant}-step{good}"
            self._publish(good, self.folder / name, name)
            kept = f" The last good variant is {name}: {self.folder / name}."
            break
        refused = {**self._judged(report), "step": number, "refused": True}
        runs.write_json(self.folder / f"{self.variant}.refused.json", refused)
        raise GateError(
            f"{_told(refused, self.budget)}{kept or ' No step before it is kept: the run itself is the last good model.'} What was refused waits in {self.work}: the "
            f"same command with --max-drop {report['drop_points'] + 0.05:.1f} takes it without training again."
        )

    def _publish(self, number: int, place: Path, name: str = "") -> None:
        """A step's folder becomes a variant; of one that was published before, the former goes."""
        name = name or self.variant
        source = self.work / f"step-{number}"
        if place != self.folder / self.variant and place.exists():
            shutil.rmtree(place)
        if number == len(self.recipe.steps):
            runs.write_json(source / "report.json", self._judged(self._report(number)))
            source.rename(place)
            runs.sync_folder(self.folder)
            return
        with runs.atomic_folder(place) as folder:  # the chain may go on from it later
            shutil.copytree(source, folder, dirs_exist_ok=True)
            runs.write_json(folder / "report.json", {**self._judged(self._report(number)), "variant": name})


def _all(examples: data.Examples) -> Any:
    import numpy as np

    return np.arange(len(examples))


def _told(report: dict[str, Any], budget: float) -> str:
    step = report["steps"][-1]
    difference = report["difference"]["accuracy_difference"]
    return (
        f"recipe {report['recipe']}, step {step['number']} ({step['kind']}): accuracy {100 * report['original']['accuracy']:.1f} % -> "
        f"{100 * report['accuracy']:.1f} % on the same {report['rows']:,} rows, a drop of {report['drop_points']:.2f} points "
        f"[{-100 * difference['high']:.2f}, {-100 * difference['low']:.2f}]; expected at most {budget:g} (max_drop)."
    )
