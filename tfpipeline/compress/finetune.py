"""A `finetune` step: a training run like any other, inside the run that is compressed. Frees the chain from splits, starts and resuming.

In: the model so far and a Config. Out: the best model of a child run. The child has the very splits of its parent, not the parent's files read again, so
that rows keep their side; it is resumed where an earlier, killed call left it, and a finished one is not trained again.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

from tfpipeline import runs
from tfpipeline import trained as trained_runs
from tfpipeline.config import Config
from tfpipeline.train import train
from tfpipeline.trained import Trained

# Of the parent's prepared data: not the vocabulary, which a trimmed model has another of.
_SPLITS = ("train.arrow", "validation.arrow", "test.arrow", "labels.json", "fingerprint.json", "rejects.jsonl", "report.json")


def finetune(trained: Trained, parent: runs.Run, config: Config, root: Path) -> tuple[Trained, dict[str, Any]]:
    """Trains on, or goes on with what an earlier call began.

    Args:
        trained: what to start from.
        parent: the run that is compressed; its splits are used.
        config: of the child run.
        root: folder for the child run, of this step alone.

    Returns:
        The child's best model, and: `epochs`, `best_epoch`, `seconds` (all sessions), `train` (the sections that differ from the parent's),
        `validation_accuracy` and whatever else the run says about its compression.

    Raises:
        KeyboardInterrupt: with a checkpoint written; the same call goes on from there.
    """
    child = _child(trained, parent, config, root)
    if child.info["status"] != "finished":
        try:
            train(child.config, root=root, resume=child)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("a checkpoint of the fine-tuning is written; the same command goes on from there") from None
    epochs = list({event["epoch"]: event for event in child.events("epoch")}.values())
    best = [event for event in epochs if event["best"]][-1]
    theirs, ours = parent.config.to_dict(), child.config.to_dict()
    told = {
        "epochs": len(epochs),
        "best_epoch": best["epoch"],
        "validation_accuracy": best["validation_accuracy"],
        "seconds": round(sum(event["seconds"] for event in epochs), 1),
        "changed": {
            f"{section}.{key}": value
            for section in ("train", "model", "compress")
            for key, value in ours[section].items()
            if theirs[section][key] != value
        },
        **{key: child.info[key] for key in ("compression",) if key in child.info},
    }
    return dataclasses.replace(trained_runs.load(child), config=parent.config), told


def _child(trained: Trained, parent: runs.Run, config: Config, root: Path) -> runs.Run:
    """The child run, complete with splits and start; one that was begun and is complete is taken as it is."""
    for found in runs.list_runs(root):
        if found.info.get("compresses") == parent.path.name and found.info["config_digest"] == config.digest():
            return found
        shutil.rmtree(found.path)  # killed before it was complete
    child = runs.create(config, root)
    (child.path / "data").mkdir()
    for name in _SPLITS:
        source = parent.path / "data" / name
        if source.is_file():
            _link(source, child.path / "data" / name)
    (child.path / "checkpoints").mkdir()
    with runs.atomic_folder(child.path / "checkpoints" / "start") as folder:
        trained_runs.save(folder, trained)
    child.update(compresses=parent.path.name)
    return child


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name; files of a run are replaced, never written into, so sharing them is safe."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
