"""What a server should serve, derived from what lies on disk. Frees `push` from deciding: it only carries out.

In: a `Store`. Out: a `Snapshot` of each base path, and pure functions of snapshots: which versions stay loaded, which labels they carry, what a push
changes (`Plan`), what may be retired, and the `ModelServerConfig` that says all of it. Refuses a `labels.json` that is not one.

`labels.json` holds `stable`, `canary` and `previous` (what `stable` was before). The server is told the first two; `previous` only keeps its
version loaded, so that a rollback is one call. Nothing here talks to a server or writes, but for `write_labels`.

Versions that were exported into a base path and never pushed are not loaded: they have not passed the gate. A model that was never pushed at
all keeps what the server has of it, else its newest version, as TensorFlow Serving's own policy would.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf import text_format

from serving import wire
from serving.errors import RegistryError
from serving.stores import Store, to_json

LABELS_FILE, JOURNAL_FILE, CONFIG_FILE = "labels.json", "push.jsonl", "models.config"
STABLE, CANARY, PREVIOUS = "stable", "canary", "previous"
SERVED_LABELS = (STABLE, CANARY)
PUSHED = "pushed"  # the key of a manifest that says that push copied this version here; only such versions does push delete


@dataclass(frozen=True)
class Snapshot:
    """One base path at one moment.

    Attributes:
        name: the model.
        versions: complete versions on disk, oldest first.
        labels: `labels.json`.
        pushed: versions that a push, a promotion or a rollback has put into service.
        copied: versions that push itself copied here.
        used: the highest number ever seen here, 0 for none; a new version must be above it.
        available: versions that a server has loaded.
        loading: versions that a server is loading.
    """

    name: str
    versions: tuple[int, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    pushed: frozenset[int] = frozenset()
    copied: frozenset[int] = frozenset()
    used: int = 0
    available: frozenset[int] = frozenset()
    loading: frozenset[int] = frozenset()

    @property
    def loaded(self) -> tuple[int, ...]:
        """What the server should have besides the retained versions: those with labels, and what it has already if nothing was ever pushed."""
        labelled = {version for version in self.labels.values() if version in self.versions}
        if labelled or self.pushed & set(self.versions):
            return tuple(sorted(labelled))
        return tuple(sorted(self.available & set(self.versions))) or self.versions[-1:]


@dataclass(frozen=True)
class Wanted:
    """What the config says of one model."""

    versions: tuple[int, ...]
    labels: Mapping[str, int]


@dataclass(frozen=True)
class Plan:
    """What a change of one model's labels does, step by step.

    Attributes:
        version: the version that is pushed, promoted or returned to.
        before: versions and labels as they were: what a failure goes back to.
        load: old and new versions together, the labels still where they were.
        after: the labels moved, nothing unloaded yet.
        final: without what is retired.
        labels: the new `labels.json`.
        retire: versions to unload.
        remove: versions to delete as well: retired ones that push had copied here.
    """

    version: int
    before: Wanted
    load: Wanted
    after: Wanted
    final: Wanted
    labels: Mapping[str, int]
    retire: tuple[int, ...]
    remove: tuple[int, ...]


def read_snapshot(store: Store, name: str) -> Snapshot:
    """The base path as it lies there.

    Raises:
        RegistryError: `labels.json` is not usable.
    """
    versions = tuple(store.versions(name))
    entries = list(read_journal(store, name))
    numbers = [entry["version"] for entry in entries if entry.get("outcome") != "refused"]  # what was refused was never there
    return Snapshot(
        name=name,
        versions=versions,
        labels=read_labels(store, name),
        pushed=frozenset(entry["version"] for entry in entries if entry.get("outcome") == "done" and entry["version"] in versions),
        copied=frozenset(version for version in versions if PUSHED in (store.manifest(name, version) or {})),
        used=max([0, *versions, *store.failed(name), *numbers]),
    )


def read_labels(store: Store, name: str) -> dict[str, int]:
    """`labels.json`; empty when there is none.

    Raises:
        RegistryError: something else than known labels with version numbers is in it.
    """
    data = store.read(f"{name}/{LABELS_FILE}")
    if data is None:
        return {}
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    good = isinstance(value, dict) and all(
        label in (STABLE, CANARY, PREVIOUS) and isinstance(version, int) and not isinstance(version, bool) and version > 0
        for label, version in value.items()
    )
    if not good:
        raise RegistryError(
            f'{store.base_path(name)}/{LABELS_FILE}: expected {{"stable": VERSION, "canary": VERSION, "previous": VERSION}}, received '
            f"{data[:80].decode('utf-8', 'backslashreplace')!r}. Write it again, or remove it and push the version that should be stable."
        )
    return dict(value)


def write_labels(store: Store, name: str, labels: Mapping[str, int]) -> None:
    """Whole or not at all."""
    store.write(f"{name}/{LABELS_FILE}", to_json(dict(sorted(labels.items()))))


def read_journal(store: Store, name: str) -> Iterator[dict[str, Any]]:
    """The lines of `push.jsonl`, oldest first; a torn line is skipped."""
    for line in (store.read(f"{name}/{JOURNAL_FILE}") or b"").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("version"), int):
            yield entry


def append_journal(store: Store, name: str, entry: Mapping[str, Any]) -> None:
    """One line, durable when this returns."""
    store.append(f"{name}/{JOURNAL_FILE}", json.dumps(entry, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace"))


def next_version(snapshot: Snapshot, asked: int) -> int:
    """The number asked for if it is above all that were ever used here, else the next one that is."""
    return asked if asked > snapshot.used else snapshot.used + 1


def find_content(store: Store, name: str, versions: Collection[int], files: Mapping[str, Any]) -> int | None:
    """The newest of these versions whose manifest lists exactly these files with these hashes."""
    for version in sorted(versions, reverse=True):
        if (store.manifest(name, version) or {}).get("files") == files:
            return version
    return None


def content_hash(files: Mapping[str, Any]) -> str:
    """One sha256 over the names, sizes and hashes of all files of a version."""
    return hashlib.sha256(json.dumps(files, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def wanted(snapshot: Snapshot, retention: int) -> Wanted:
    """What the server should have of a model that nobody is changing: the labelled versions and the newest pushed ones."""
    kept = sorted(snapshot.pushed & set(snapshot.versions))[-retention:]
    return Wanted(tuple(sorted({*snapshot.loaded, *kept})), _served(snapshot.labels, snapshot.versions))


def relabelled(snapshot: Snapshot, label: str, version: int) -> dict[str, int]:
    """`labels.json` after this label has gone to this version. A version that is `stable` is no canary, and what was `stable` is `previous`."""
    labels = dict(snapshot.labels)
    if label == CANARY:
        return labels if labels.get(STABLE) == version else {**labels, CANARY: version}
    former = labels.get(STABLE)
    if former is None:
        # The first push to a server that was serving already: what it answered with can be returned to.
        served = [one for one in snapshot.loaded if one in snapshot.available and one != version]
        former = served[-1] if served else None
    if labels.get(CANARY) == version:
        del labels[CANARY]
    if former is not None and former != version:
        labels[PREVIOUS] = former
    return {**labels, STABLE: version}


def plan_push(snapshot: Snapshot, new: int, retention: int, label: str) -> Plan:
    """Puts a version, which is on disk or will be, under a label.

    Args:
        snapshot: the base path before.
        new: the version.
        retention: how many pushed versions stay.
        label: `stable` or `canary`.
    """
    return plan_labels(snapshot, new, retention, relabelled(snapshot, label, new))


def plan_labels(snapshot: Snapshot, version: int, retention: int, labels: Mapping[str, int]) -> Plan:
    """The steps to any new `labels.json`; `version` is the one that has to be loaded for it."""
    before = wanted(snapshot, retention)
    present = tuple(sorted({*snapshot.versions, version}))
    load = tuple(sorted({*before.versions, version, *(one for one in labels.values() if one in present)}))
    later = replace(snapshot, versions=present, labels=labels, pushed=snapshot.pushed | {version})
    unloaded = retire(later, retention)
    return Plan(
        version=version,
        before=before,
        load=Wanted(load, before.labels),
        after=Wanted(load, _served(labels, present)),
        final=Wanted(tuple(one for one in load if one not in unloaded), _served(labels, present)),
        labels=dict(labels),
        retire=unloaded,
        remove=tuple(one for one in unloaded if one in snapshot.copied),
    )


def retire(snapshot: Snapshot, retention: int) -> tuple[int, ...]:
    """Versions beyond the newest `retention` pushed ones that have no label and are not being loaded.

    Copies of pushes that never finished are among them. Of what was exported here and never pushed nothing is retired, unless a server has
    loaded it.
    """
    served = snapshot.pushed | snapshot.available | snapshot.copied
    kept = sorted(snapshot.pushed & set(snapshot.versions))[-retention:]
    keep = {*kept, *snapshot.labels.values(), *snapshot.loading}
    return tuple(version for version in snapshot.versions if version in served and version not in keep)


def desired_config(models: Iterable[tuple[str, str, Wanted]]) -> Any:
    """The whole config of a server, as `wire.ModelServerConfig`: each version by its number, so that nothing loads by itself.

    Args:
        models: name, base path as the server sees it, and what is wanted. A model without versions is left out.
    """
    config = wire.ModelServerConfig()
    config.model_config_list.SetInParent()
    for name, base_path, want in sorted(models, key=lambda model: model[0]):
        if not want.versions:
            continue
        model = config.model_config_list.config.add(name=name, base_path=base_path, model_platform="tensorflow")
        model.model_version_policy.specific.versions.extend(want.versions)
        for label, version in sorted(want.labels.items()):
            model.version_labels[label] = version
    return config


def only_available(want: Wanted, available: Collection[int]) -> Wanted:
    """Without the labels the server would refuse: one label on a version that is not loaded fails the call for all models."""
    return replace(want, labels={label: version for label, version in want.labels.items() if version in available})


def config_text(config: Any) -> str:
    """The config as a file that tensorflow_model_server reads with `--model_config_file`."""
    return (
        "# Written by the last push: what a server that is started anew should load. Labels need --allow_version_labels_for_unavailable_models,\n"
        "# because at its start nothing is loaded. Do not let a server poll this file.\n"
        f"{text_format.MessageToString(config)}"
    )


def config_diff(before: Any, after: Any) -> str:
    """What changes from one config to the other, as a unified diff of their text; empty when nothing does."""
    old, new = (text_format.MessageToString(config).splitlines() for config in (before, after))
    return "\n".join(difflib.unified_diff(old, new, "now", "after", lineterm=""))


def _served(labels: Mapping[str, int], versions: Collection[int]) -> dict[str, int]:
    return {label: version for label, version in labels.items() if label in SERVED_LABELS and version in versions}
