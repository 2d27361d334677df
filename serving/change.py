"""One base path, and the servers that read it, while a push is at work there. Frees `serving.push` from how each step is done.

In: a model's name and its `Target`s, with a client for each. Out: the steps of a push, each safe to repeat, and `undo`. Refuses server paths that would
make a server lose a model, numbers that failed before, and answers that differ from the golden probes.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np

from serving import desired
from serving.checks import Source
from serving.desired import PUSHED, Plan, Snapshot, Wanted
from serving.errors import ConfigError, ModelFailed, ModelNotFound, PushError, RegistryError, RequestError, ServingError, Unavailable
from serving.stores import Store, utc_now, whoami

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 30.0
FORGOTTEN_S = 15.0  # a server that answers, and has not heard of the version for so long, was started again and has to be told again
OTHERS_TIMEOUT_S = 60.0  # for versions that are not what is pushed, but have labels


class ServerClient(Protocol):
    """What a push asks of `serving.client.Client`."""

    def status(self, *, model: str, version: int | None = None) -> Sequence[Any]: ...
    def reload_config(self, config: Any, *, timeout_s: float) -> Any: ...
    def predict(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, model: str, version: int | None = None, version_label: str = ""
    ) -> Any: ...
    def wait_until_available(self, *, model: str, version: int, timeout_s: float) -> int: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *error: Any) -> Any: ...


ClientFactory = Callable[[str], ServerClient]


@dataclass(frozen=True)
class Target:
    """A server and where it reads its models.

    Attributes:
        address: `host:port` of its gRPC.
        store: the root of its base paths, as we reach it.
        server_path: the base path of the pushed model as the server sees it, such as `/models/sentiment` in a container. Empty: what the last
            push to this address used, else the store's own path.
    """

    address: str
    store: Store
    server_path: str = ""


@dataclass
class Outcome:
    """What one base path came to.

    Attributes:
        model: its name.
        version: what was pushed, promoted or returned to.
        base_path: where it lies.
        targets: the servers.
        before: `labels.json` before.
        labels: `labels.json` now.
        published: whether files are copied.
        retired: versions that were unloaded.
        diff: how the servers' config changes.
        checks: what was looked at, and the verdict.
        seconds: by step.
        notes: what is worth knowing and stopped nothing.
    """

    model: str
    version: int
    base_path: str
    targets: tuple[str, ...]
    before: dict[str, int]
    labels: dict[str, int]
    published: bool = False
    retired: tuple[int, ...] = ()
    diff: str = ""
    checks: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class WrongAnswers(PushError):
    """The golden probes differ: the version itself is at fault."""


class Change:
    """One base path while it is being changed; the steps of a push are its methods."""

    def __init__(
        self, name: str, targets: Sequence[Target], clients: Mapping[str, ServerClient], retention: int, load_timeout_s: float
    ) -> None:
        self.name, self.targets, self.clients, self.retention = name, targets, clients, retention
        self.store = targets[0].store
        self.base_path = self.store.base_path(name)
        self.load_timeout_s = load_timeout_s
        self.on_step: Callable[[str], None] = lambda step: None
        self.version = 0
        self.checks: dict[str, Any] = {}
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}
        self.found: int | None = None  # the version on disk that has the same files already
        self.copies = self.copied = self.sent = self.labelled = False
        self.retires = True  # a rollback does not
        self.plan: Plan | None = None
        # What lies on disk, and what each server has of it: {address: {model: {version: state}}}.
        self.snapshots = {one: desired.read_snapshot(self.store, one) for one in {*self.store.names(), name}}
        self.states: dict[str, dict[str, dict[int, str]]] = {}
        for target in targets:
            self.look(target)
        for one, snapshot in self.snapshots.items():
            by_state = [self.states[target.address][one] for target in targets]
            self.snapshots[one] = replace(
                snapshot,
                available=frozenset(version for states in by_state for version, state in states.items() if state == "AVAILABLE"),
                loading=frozenset(version for states in by_state for version, state in states.items() if state in ("START", "LOADING")),
            )
        self.server_paths = {target.address: self.server_path(target) for target in targets}

    @property
    def snapshot(self) -> Snapshot:
        return self.snapshots[self.name]

    def look(self, target: Target) -> None:
        """Asks the server what it has of every model under the root."""
        client = self.clients[target.address]
        self.states[target.address] = {one: read_states(client, one) for one in self.snapshots}

    def available(self, target: Target, name: str) -> set[int]:
        return {version for version, state in self.states[target.address][name].items() if state == "AVAILABLE"}

    def server_path(self, target: Target) -> str:
        """The base path as this server sees it. Another one would make it lose its models, so what the last push used is remembered."""
        path = target.server_path.rstrip("/")
        if not target.server_path:
            entries = [entry for name in self.snapshots for entry in desired.read_journal(self.store, name)]
            used = [entry for entry in entries if entry.get("outcome") == "done" and target.address in (entry.get("server_paths") or {})]
            if not used:
                return self.base_path
            last = max(used, key=lambda entry: str(entry.get("time")))
            return f"{_folder(str(last['server_paths'][target.address]))}/{self.name}"
        if not (path.startswith("/") or "://" in path) or PurePosixPath(path).name != self.name:
            raise ConfigError(
                f"--server-path {target.server_path}: expected the absolute path of the model's folder on the server, ending in /{self.name}, "
                f"such as /models/{self.name}: the other models are looked for beside it."
            )
        return path

    def config(self, target: Target, want: Wanted, *, as_planned: bool = False) -> Any:
        """The whole config for one server: this model as given, all others as they should be.

        Without the labels that the server would refuse now, unless it is to be shown `as_planned`.
        """
        folder = _folder(self.server_paths[target.address])
        models = []
        for name, snapshot in self.snapshots.items():
            wanted = want if name == self.name else desired.wanted(snapshot, self.retention)
            if not (as_planned and name == self.name):
                wanted = desired.only_available(wanted, self.available(target, name))
            models.append((name, f"{folder}/{name}", wanted))
        return desired.desired_config(models)

    def find(self, source: Source) -> None:
        """The number of the version: that of the same files, if they are here already."""
        owned = self.store.owns(source.path)
        if owned is not None and owned[0] == self.name:
            if owned[1] in self.store.failed(self.name):
                raise RegistryError(
                    f"{source.path}: a version of this number failed here before, and numbers are never used again. Export the run again."
                )
            self.found = owned[1]
        else:
            self.found = desired.find_content(self.store, self.name, self.snapshot.versions, source.files)
        self.copies = self.found is None
        self.version = self.found or desired.next_version(self.snapshot, source.version)

    @property
    def planned(self) -> Plan:
        assert self.plan is not None  # every first step makes one
        return self.plan

    def publish(self, source: Source, force: str) -> None:
        if self.found is None:
            manifest = {
                **(source.manifest or {}),
                "name": self.name,
                "version": self.version,
                "files": source.files,
                PUSHED: {"time": utc_now(), "by": whoami(), "source": str(source.path), "source_version": source.version, "force": force},
            }
            self.store.publish(self.name, self.version, source.path, manifest)
            self.copied = True
        elif self.store.owns(source.path) is None:
            self.store.verify(self.name, self.version)

    def load(self) -> None:
        for target in self.targets:
            self.send(target, self.planned.load, self.load_timeout_s)

    def send(self, target: Target, want: Wanted, timeout_s: float) -> None:
        """The whole config with this of our model."""
        self.sent = True
        try:
            self.clients[target.address].reload_config(self.config(target, want), timeout_s=timeout_s)
        except ModelFailed as error:
            # The config is in force; one of the models it newly names did not load. Whether it is ours, the wait will tell.
            if "did not become available" not in str(error):
                raise
            self.note(f"{target.address}: {error}")

    def wait(self) -> None:
        """Until the version is AVAILABLE everywhere; then until the other labelled versions are, which a restarted server may be without."""
        deadline = time.monotonic() + self.load_timeout_s
        for target in self.targets:
            self._wait_for(target, deadline)
        for target in self.targets:
            self.look(target)
            self._wait_for_others(target)

    def _wait_for(self, target: Target, deadline: float) -> None:
        """A server that dies after it was told comes back with what it was started with: it is told again, as often as that happens."""
        while True:
            remaining = max(0.1, deadline - time.monotonic())
            try:
                self.clients[target.address].wait_until_available(
                    model=self.name, version=self.version, timeout_s=min(remaining, FORGOTTEN_S)
                )
                return
            except (ModelNotFound, Unavailable):
                if remaining <= FORGOTTEN_S:
                    raise
            with contextlib.suppress(Unavailable):  # down again: then it is waited for
                if self.version not in read_states(self.clients[target.address], self.name):
                    told = f"{target.address}: had not heard of version {self.version} (was it started again?): told again"
                    if told not in self.notes:
                        self.note(told)
                    self.send(target, self.planned.load, max(0.1, deadline - time.monotonic()))

    def _wait_for_others(self, target: Target) -> None:
        deadline = time.monotonic() + OTHERS_TIMEOUT_S
        for name, snapshot in self.snapshots.items():
            want = self.planned.after if name == self.name else desired.wanted(snapshot, self.retention)
            for label, version in want.labels.items():
                if version not in self.available(target, name):
                    remaining = max(0.1, deadline - time.monotonic())
                    try:
                        self.clients[target.address].wait_until_available(model=name, version=version, timeout_s=remaining)
                    except ServingError as error:
                        self.note(f"{target.address}: {name} cannot be asked by its label {label!r}: {error}")
        self.look(target)

    def ask(self, source: Source) -> None:
        probes = source.probes
        if probes is None:
            self.note("there are no golden probes: the server's answers were not compared")
            return
        worst = 0.0
        for target in self.targets:
            worst = max(worst, self._ask_one(target, probes))
        self.checks["probes"] = {"texts": len(probes["texts"]), "tolerance": probes["tolerance"], "largest_difference": worst}

    def _ask_one(self, target: Target, probes: Mapping[str, Any]) -> float:
        given = self.clients[target.address].predict(probes["texts"], probes.get("text_pairs"), model=self.name, version=self.version)
        expected, received = np.asarray(probes["probabilities"], np.float64), np.asarray(given.probabilities, np.float64)
        if expected.shape != received.shape:
            raise WrongAnswers(
                f"{target.address}: expected probabilities of shape {list(expected.shape)}, received {list(received.shape)}."
            )
        apart = np.abs(expected - received).max(axis=1, initial=0.0)
        row = int(apart.argmax()) if len(apart) else 0
        if len(apart) and not apart[row] <= probes["tolerance"]:  # also when it is NaN, which argmax finds first
            raise WrongAnswers(
                f"{target.address}: the answers differ from those at export, most for {str(probes['texts'][row])[:80]!r}: "
                f"expected {np.round(expected[row], 4).tolist()}, received {np.round(received[row], 4).tolist()}, allowed {probes['tolerance']:g}."
            )
        return float(apart[row]) if len(apart) else 0.0

    def label(self, source: Source | None = None) -> None:
        """First on disk, then on the servers: a push that is killed in between is carried on by any later one, and no label goes back and forth."""
        plan = self.planned
        for target in self.targets:
            if self.version not in self.available(target, self.name):
                raise PushError(f"{target.address}: version {self.version} is not AVAILABLE any more, so it can get no label.")
        self.labelled = True
        desired.write_labels(self.store, self.name, plan.labels)
        self.on_step("label.written")
        for target in self.targets:
            self.send(target, plan.after, self.load_timeout_s)
        probes = source.probes if source else None
        if probes is not None and len(probes["texts"]):
            self._confirm(probes)

    def _confirm(self, probes: Mapping[str, Any]) -> None:
        """Clients ask by label: so do we, once."""
        pairs = probes.get("text_pairs")
        for target in self.targets:
            for label, version in self.planned.after.labels.items():
                if version == self.version:
                    given = self.clients[target.address].predict(
                        probes["texts"][:1], pairs and pairs[:1], model=self.name, version_label=label
                    )
                    if given.version != version:
                        raise PushError(f"{target.address}: label {label!r} answers with version {given.version}, not {version}.")

    def retire(self) -> None:
        """Never undoes a push that has gone through."""
        plan = self.planned
        try:
            if plan.final.versions != plan.load.versions:
                for target in self.targets:
                    self.send(target, plan.final, self.load_timeout_s)
            for version in plan.remove:
                self.store.remove(self.name, version)
        except ServingError as error:
            self.note(f"nothing more was retired, the next push tries again: {error}")

    def keep_config(self) -> None:
        """Leaves `models.config` under the root: what a server that is started anew should load.

        As the first target sees its paths. The embedded server works it out of the same folder by itself.
        """
        plan = self.planned
        config = self.config(self.targets[0], plan.final if self.retires else plan.after, as_planned=True)
        try:
            self.store.write(desired.CONFIG_FILE, desired.config_text(config).encode())
        except ServingError as error:
            self.note(f"{desired.CONFIG_FILE} was not written, the next push tries again: {error}")

    def undo(self, error: BaseException, step: str) -> str:
        """Former labels, former config; a version at fault is set aside. Returns what was done, in words."""
        plan = self.planned
        said = []
        try:
            if self.labelled:
                desired.write_labels(self.store, self.name, self.snapshot.labels)
            said.append(f"{self.base_path} serves as before: {shown(self.snapshot.labels)}.")
        except ServingError as problem:
            said.append(f"The former labels could not be written: {problem}")
        if self.sent:
            for target in self.targets:
                try:
                    self.look(target)
                    self.send(target, plan.before, CALL_TIMEOUT_S)
                except ServingError as problem:
                    said.append(f"The former config could not be sent to {target.address}: {problem}")
        at_fault = (step in ("wait", "ask") and isinstance(error, (ModelFailed, WrongAnswers))) or (
            step == "ask" and isinstance(error, RequestError) and not isinstance(error, ModelNotFound)
        )
        if at_fault and (self.copied or self.found is not None) and self.version not in plan.before.versions:
            try:
                aside = self.store.set_aside(self.name, self.version, str(error))
                said.append(f"The version was moved to {aside}. Export a better one and push that.")
            except ServingError as problem:
                said.append(f"The version could not be moved aside: {problem} Remove {self.base_path}/{self.version} by hand.")
        else:
            if step == "wait":
                said.append(f"Check that the server sees {self.server_paths[self.targets[0].address]}/{self.version} (--server-path).")
            said.append("The same command run again goes on where this one stopped.")
        return " ".join(said)

    def note(self, text: str) -> None:
        log.warning("%s", text)
        self.notes.append(text)

    def outcome(self) -> Outcome:
        plan, first = self.planned, self.targets[0]
        before, after = (self.config(first, want, as_planned=True) for want in (plan.before, plan.final if self.retires else plan.after))
        return Outcome(
            model=self.name,
            version=self.version,
            base_path=self.base_path,
            targets=tuple(target.address for target in self.targets),
            before=dict(self.snapshot.labels),
            labels=dict(plan.labels),
            published=self.copies,
            retired=plan.retire if self.retires else (),
            diff=desired.config_diff(before, after),
            checks=self.checks,
            seconds=self.seconds,
            notes=self.notes,
        )

    def record(self, entry: Mapping[str, Any], outcome: str, error: str = "") -> None:
        line = {
            "time": utc_now(),
            "by": whoami(),
            **entry,
            "model": self.name,
            "version": self.version,
            "from": dict(self.snapshot.labels),
            "to": dict(self.plan.labels) if self.plan and outcome == "done" else dict(self.snapshot.labels),
            "targets": [target.address for target in self.targets],
            "server_paths": self.server_paths,
            "checks": self.checks,
            "seconds": self.seconds,
            "outcome": outcome,
            "error": error,
        }
        desired.append_journal(self.store, self.name, line)


def read_states(client: ServerClient, name: str) -> dict[int, str]:
    """What a server has of a model; nothing of one that it does not know."""
    try:
        return {status.version: status.state for status in client.status(model=name)}
    except ModelNotFound:
        return {}


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def shown(labels: Mapping[str, int]) -> str:
    """For messages."""
    return ", ".join(f"{label} {version}" for label, version in sorted(labels.items())) or "no labels"
