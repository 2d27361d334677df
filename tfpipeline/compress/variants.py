"""Where a run keeps its variants, and what they say about themselves. Light: reading them needs no TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfpipeline.runs import Run, read_json


def folder_of(run: Run) -> Path:
    """Where a run's variants are."""
    return run.path / "compressed"


def reports(run: Run) -> list[dict[str, Any]]:
    """Reports of all variants by name, then those of the chains that the budget stopped (`refused` is True)."""
    folder = folder_of(run)
    made = [path for path in sorted(folder.glob("*/report.json")) if not path.parent.name.startswith(".")]
    return [read_json(path) for path in [*made, *sorted(folder.glob("*.refused.json"))]]
