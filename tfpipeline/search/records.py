"""What lies in the folder of a search, and that it is the folder of this search.

    runs/searches/sst2-bayesian/
      search.json        what is searched, and how: a folder of another search is refused
      default.toml       the base Config             winner.toml   the best trial's Config: tfpipeline train --config winner.toml
      tuner/             Keras Tuner's own state
      trials/007/        config.toml, trial.json (values, state, metrics), log.txt, result.json, runs/ (the run directory)
      final/winner-2/    the same for the winner and the default, with seed 2
      tensorboard/       HParams: tensorboard --logdir
      results.json  results.csv  report.html

With several machines it is on a disk that all of them see. Files appear whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfpipeline.config import Config
from tfpipeline.errors import RunError
from tfpipeline.runs import atomic_write, read_json, utc_now, write_json

# A trial's `state`. "lost" is between two attempts: it failed for a reason outside itself.
ENDED = ("finished", "pruned", "failed")


def open_folder(folder: Path, identity: Mapping[str, Any], base: Config) -> None:
    """Makes the folder of a search, or goes on in it.

    Args:
        folder: of the search.
        identity: what makes it this search: tuner, space, objective, base config, seed.
        base: the default Config.

    Raises:
        RunError: the folder holds another search, or something else.
    """
    path = folder / "search.json"
    if not path.is_file():
        if folder.is_dir() and any(one.name != "default.toml" and not one.name.startswith(".") for one in folder.iterdir()):
            raise RunError(f"{folder}: is not empty and no folder of a search (no search.json). Choose another with --search.")
        # `default.toml` first: a folder with search.json is complete.
        write_config(folder / "default.toml", base, "the default: what the winner is compared with")
        write_json(path, {**identity, "created": utc_now().isoformat(timespec="seconds")})
        return
    found = read_json(path)
    wrong = [_difference(key, found.get(key), value) for key, value in identity.items() if found.get(key) != value]
    if wrong:
        raise RunError(
            f"{folder}: holds another search. {' '.join(wrong)} Choose another folder with --search, or remove this one to start over."
        )


def trial_folder(folder: Path, number: int) -> Path:
    """Where trial `number` lies."""
    return folder / "trials" / f"{number:03d}"


def write_record(place: Path, record: Mapping[str, Any]) -> None:
    """`trial.json` of a trial or a final training."""
    write_json(place / "trial.json", dict(record))


def read_record(place: Path) -> dict[str, Any] | None:
    """None: it has not begun."""
    return read_json(place / "trial.json") if (place / "trial.json").is_file() else None


def trials(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of all trials that began, by number."""
    for place in sorted((folder / "trials").glob("[0-9]*"), key=lambda path: int(path.name)):
        found = read_record(place)
        if found is not None:
            yield found


def write_config(path: Path, config: Config, title: str) -> None:
    """The whole Config as TOML, as `tfpipeline train --config` reads it."""
    with atomic_write(path) as stream:
        stream.write(to_toml(config, title).encode())


def to_toml(config: Config, title: str) -> str:
    """Every key of the config, so that later defaults do not change what it means."""
    tree = config.to_dict()
    lines = [f"# {line}" for line in title.splitlines()]
    lines += [f"{key} = {_toml(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    for section, values in tree.items():
        if isinstance(values, dict):
            lines += ["", f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def tail(path: Path, lines: int = 3, most: int = 2000) -> str:
    """The last lines of a log."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - most))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def _toml(value: Any) -> str:
    # A JSON value without null and objects is a TOML value, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _difference(key: str, theirs: Any, ours: Any) -> str:
    if key == "space" and isinstance(theirs, list):
        before, now = ({one["key"]: one for one in space} for space in (theirs, ours))
        changed = [f"`{name}`" for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        return f"Its space differs in {', '.join(changed)}."
    if key == "config" and isinstance(theirs, dict):
        changed = [f"`{name}`" for name in _leaves(ours) if _leaves(theirs).get(name) != _leaves(ours)[name]]
        return f"Its base config differs in {', '.join(changed) or 'keys that no longer exist'}."
    return f"Its {key} is {theirs}, here it is {ours}."


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found.update(_leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return found
