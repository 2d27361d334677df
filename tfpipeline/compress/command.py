"""`tfpipeline compress`: recipes over a run, one table, one page."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tfpipeline.errors import ConfigError, GateError

logger = logging.getLogger(__name__)


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The arguments of the command."""
    added = command(
        "compress",
        run,
        "smaller and faster variants of a run, each measured against it",
        "tfpipeline compress latest --recipe int8-dynamic --recipe prune50",
    )
    added.add_argument("model", metavar="RUN", nargs="?", default="latest", help="a run: path, name, or latest (default)")
    added.add_argument("--recipe", action="append", default=[], metavar="NAME_OR_FILE", help="a ready recipe, or a TOML file; repeatable")
    added.add_argument("--as", dest="variant", default="", metavar="NAME", help="name of the variant (default: the recipe's)")
    added.add_argument(
        "--max-drop", type=float, default=None, metavar="POINTS", help="points of accuracy a variant may lose (compress.max_drop)"
    )
    added.add_argument("--per-layer", action="store_true", help="also print the zeros of every layer")
    added.add_argument("--list", action="store_true", help="list the ready recipes and what they are for")


def run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The JSON document, and the table for people. Without a recipe: the variants that are there.

    Raises:
        ConfigError: before anything is begun.
        GateError: at least one recipe broke its budget; the others are made, the page is written.
    """
    from tfpipeline.compress import recipes

    document: dict[str, Any]
    if options.list:
        found = [recipes.load(name) for name in recipes.names()]
        document = {
            "recipes": [{"name": one.name, "summary": one.summary, "steps": [step.to_dict() for step in one.steps]} for one in found]
        }
        return document, "\n\n".join(f"{one.name}\n" + "\n".join(f"  {line}" for line in one.summary.splitlines()) for one in found)
    chosen = [recipes.load(name) for name in options.recipe]
    _check(options, chosen)
    from tfpipeline import runs, runtime

    opened = runs.find(options.model, options.runs)
    described = opened.path / "checkpoints" / "best" / "model.json"
    if described.is_file():  # without it, opening the run says what is missing
        model = runs.read_json(described)
        for recipe in chosen:
            recipes.check_against(
                recipe, opened.config, model["backbone"]["architecture"], opened.path, quantized=bool(model.get("quantization"))
            )
    from tfpipeline.compress import report, variants

    refused: list[GateError] = []
    if chosen:
        runtime.apply(replace(opened.config.runtime, strategy="one"))  # whatever the run was trained with, this is one process
        from tfpipeline.compress import chain

        original = chain.Original.open(opened)
        for recipe in chosen:
            try:
                chain.compress(original, recipe, variant=options.variant, max_drop=options.max_drop)
            except GateError as error:
                logger.info("%s", error)
                refused.append(error)
    reports = variants.reports(opened)
    table = report.render(reports, per_layer=options.per_layer)
    page = variants.folder_of(opened) / report.PAGE_NAME
    if reports:
        report.write_page(opened, reports)
        table += f"\n\nReport:    {page}"
    if refused:
        logger.info("\n%s", table)
        raise GateError("\n".join(str(error) for error in refused))
    document = {
        "run": str(opened.path),
        "table": [report.row_of(one) for one in reports],
        "variants": reports,
        "report": str(page) if reports else "",
    }
    if chosen:
        table += f"\n\nNext:      tfpipeline export {opened.path} --variant {options.variant or chosen[-1].name}"
    return document, table


def _check(options: argparse.Namespace, chosen: list[Any]) -> None:
    names = [options.variant or recipe.name for recipe in chosen]
    if options.variant and len(chosen) != 1:
        raise ConfigError(
            f"--as {options.variant} names one variant, and {len(chosen)} recipes were given. Give --as with exactly one --recipe."
        )
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError(f"two recipes would make the same variant: {', '.join(twice)}. Give each recipe file another `name`.")
    if options.max_drop is not None and not 0 <= options.max_drop <= 100:
        raise ConfigError(f"--max-drop takes points of accuracy, 0 to 100, received {options.max_drop:g}.")
