"""A finished run and more rows to the next run, and whether that one may take its place. Closes the loop: answers, feedback, training.

In: a run, and files such as `python -m serving feedback collect` writes. Out: a new run, and its comparison with the model in service. Refuses (GateError,
exit 3) a model that is not shown to be as good; the run stays and says why. Does not publish and does not push.

What is compared, and why it is fair: `judge.compare_with_former`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tfpipeline import backbone as backbones
from tfpipeline import data, judge, runs, trained
from tfpipeline.config import Config, load_dict
from tfpipeline.data.readers import expand
from tfpipeline.errors import ConfigError, DataError, RunError
from tfpipeline.train import TrainResult, train

_PATHS = {"train": "path", "validation": "validation_path", "test": "test_path"}
_SPLIT = ("split_salt", "validation_fraction", "test_fraction", "validation_path", "test_path")


def retrain(
    former: runs.Run,
    new: Sequence[str],
    *,
    root: Path = Path("runs"),
    overrides: Sequence[str] = (),
    against: str = "",
) -> tuple[TrainResult, dict[str, Any]]:
    """Goes on from a finished run with more rows: its config, its data and the new files, its best weights to start from.

    Splits go by content hash, so rows that were in test stay there, and of the new rows some go there too. The new files are read first: where one
    gives a text of the former files another label, the new label counts.

    Args:
        former: a run with a trained model.
        new: files with the columns of the former ones.
        root: where the new run goes.
        overrides: `section.key=value` over the former config.
        against: an exported model that the new one must not be worse than; "": the former run's.

    Returns:
        The new run, and the comparison, which also stands in its `metrics.json`.

    Raises:
        ConfigError, DataError, RunError: nothing was trained.
        GateError: the new model is not good enough. The run stays, and says so.
    """
    files = expand(new)
    added = [
        {"file": file, "sha256": backbones.sha256_of(Path(file)) if Path(file).is_file() else None, "provenance": _provenance(file)}
        for file in files
    ]
    labels = trained.load(former).labels
    config = _config(former, added, labels, overrides)
    lineage = {"former": str(former.path.resolve()), "against": str(Path(against).resolve()) if against else "", "added": added}
    # What would stop the comparison is said now, and not after an hour of training.
    model, name, _ = _rival(lineage, config, root)
    if tuple(model.labels) != labels:
        raise RunError(
            f"{name} and {former.path.name} have other labels: {list(model.labels)} and {list(labels)}. Compare with a model of the same task."
        )
    del model
    _ids(added, config, labels)
    result = train(config, root=root, lineage={"retrained": lineage})
    comparison = finish(result.run)
    result.metrics = runs.read_json(result.run.path / "metrics.json")
    return result, comparison


def finish(run: runs.Run) -> dict[str, Any]:
    """Compares a run that `retrain` began with the model it would replace; also after its training was stopped and resumed.

    Raises:
        GateError: it is not shown to be as good.
    """
    lineage = run.info["retrained"]
    config = run.config
    with run.writing():
        model, name, seen = _rival(lineage, config, run.path.parent)
        ids = _ids(lineage["added"], config, tuple(model.labels))
        added = judge.Added(frozenset(ids["feedback"]), frozenset(ids["pseudo"] - ids["feedback"]))
        comparison = judge.compare_with_former(run, data.open_prepared(run.path / "data"), model, name, seen, added)
        run.event("compared", former=name, verdict=comparison["verdict"], rows=comparison["rows"])
        judge.hold_gate(runs.read_json(run.path / "metrics.json"))
    return comparison


def _provenance(file: str) -> dict[str, Any]:
    """What `serving.feedback` wrote beside a file it collected; nothing for another file."""
    path = Path(f"{file}.provenance")
    return runs.read_json(path) if path.is_file() else {}


def _config(former: runs.Run, added: Sequence[dict[str, Any]], labels: tuple[str, ...], overrides: Sequence[str]) -> Config:
    """The former run's config with the new files before its own, its labels in their order, and its weights to start from."""
    values = former.config.to_dict()
    files, section = [one["file"] for one in added], values["data"]
    weighted = any(one["provenance"].get("weighted") for one in added) and not section["weight"]
    if weighted or _gone(section):
        if numbered := [
            name for name in (section["text"], section["text_pair"], section["label"], section["weight"], section["id"]) if name.isdigit()
        ]:
            raise ConfigError(
                f"{former.path.name}: its files have no column names (columns {', '.join(numbered)}) and {'no weights' if weighted else 'are gone'}, so its "
                "rows cannot be read together with the new ones. Bring the files back, or leave out pseudo-labels and weights."
            )
        section["weight"] = section["weight"] or "weight"
        section |= _stand_ins(former, section)
    section["path"] = [*files, *(path for path in section["path"] if path not in files)]
    section["labels"] = list(labels)
    values["train"]["initial_weights"] = str(former.path.resolve())
    values["train"]["baseline_run"] = ""  # it answered other test rows; the comparison takes its place
    return load_dict(values, str(former.path / "config.json"), overrides)


def _gone(section: dict[str, Any]) -> bool:
    """Whether a file that the former run was trained on is not there any more."""
    try:
        for key in _PATHS.values():
            if section[key]:
                expand(section[key])
    except DataError:
        return True
    return False


def _stand_ins(former: runs.Run, section: dict[str, Any]) -> dict[str, Any]:
    """The rows that the former run prepared, as files with a column of weights: for files that are gone, or have none where the new rows do."""
    corpus, folder = data.open_prepared(former.path / "data"), former.path / "data" / "rows"
    if not folder.is_dir():
        with runs.atomic_folder(folder) as incoming:
            for split, examples in corpus.splits.items():
                shares = corpus.report.get("class_weights", {}) if split == "train" else {}
                with (incoming / f"{split}.jsonl").open("w", encoding="utf-8") as stream:
                    stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in _plain(examples, section, shares))
    files = {split: str(folder / f"{split}.jsonl") for split in _PATHS}
    given = {key: [files[split]] for split, key in _PATHS.items() if split != "train" and section[key]}
    cut = [files[split] for split, key in _PATHS.items() if key not in given]
    return {"path": cut, **given, "format": "auto"}


def _plain(examples: data.Examples, section: dict[str, Any], shares: dict[str, float]) -> Iterator[dict[str, Any]]:
    """The rows as they were read: class weights, which training computes anew, are taken out of their weights."""
    slices = examples.slices
    for number in range(len(examples)):
        row = examples[number]
        labels = row.label if isinstance(row.label, tuple) else (str(row.label),)
        share = max((shares.get(label, 1.0) for label in labels), default=1.0)
        yield {
            section["text"]: row.text,
            **({section["text_pair"]: row.text_pair} if section["text_pair"] else {}),
            section["label"]: list(labels) if isinstance(row.label, tuple) else row.label,
            section["weight"]: row.weight / share if share else row.weight,
            **({section["id"]: row.id} if section["id"] else {}),
            **{name: column[number].as_py() for name, column in slices.items()},
        }


def _ids(added: Sequence[dict[str, Any]], config: Config, labels: tuple[str, ...]) -> dict[str, set[str]]:
    """Which rows of the corpus are new: `feedback`, which people labelled, and `pseudo`, which a model did."""
    ids: dict[str, set[str]] = {"feedback": set(), "pseudo": set()}
    for one in added:
        kind = "pseudo" if one["provenance"].get("kind") == "pseudo" else "feedback"
        for rows in data.read_examples([one["file"]], config.data, labels, need_labels=True):
            ids[kind].update(rows.ids.to_pylist())
    if not any(ids.values()):
        raise DataError(f"{', '.join(one['file'] for one in added)}: no usable row. Expected labelled texts; collect more feedback.")
    return ids


def _rival(lineage: dict[str, Any], config: Config, root: Path) -> tuple[Any, str, Any]:
    """The model to compare with, its name, and the corpus it was trained on; None where the hash split alone says that it saw no test row.

    Raises:
        ConfigError: nothing says so.
    """
    former = runs.find(lineage["former"], root)
    if not lineage["against"]:
        return trained.load(former), former.path.name, data.open_prepared(former.path / "data")
    from tfpipeline.export import open_model

    model = open_model(Path(lineage["against"]))
    name = f"{model.published.name} {model.published.version}"
    for place in (former.path.parent, root):
        path = place / str(model.manifest["run"]) / "data"
        if (path / "report.json").is_file():
            return model, name, data.open_prepared(path)
    theirs = model.config.data
    other = [f"data.{key}" for key in _SPLIT if getattr(theirs, key) != getattr(config.data, key)]
    if other:
        raise ConfigError(
            f"{name}: whether it was trained on rows of this test split cannot be told: its run {model.manifest['run']} is not in {root}, and it was "
            f"split otherwise ({', '.join(other)}). Bring that run back, or compare with the run itself (leave out --against)."
        )
    return model, name, None
