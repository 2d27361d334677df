"""Brings a model into service without the served version ever stopping, or leaves everything as it was.

    check -> gate -> publish -> load -> wait -> ask -> label -> retire

| step | what happens | a push killed here leaves |
|---|---|---|
| check, gate | the folder, the servers, the verdict: nothing is changed | everything as it was |
| publish | the version appears under the base path, whole | one folder more, which nobody loads |
| load, wait | the config names old and new version; the labels stay | the old version labelled, the new one loaded |
| ask | the golden probes, at that very version | the same |
| label | the labels move | the old or the new version labelled, both loaded |
| retire | versions beyond the retention are unloaded | one version too many |

In: a folder with a model, and `Target`s: a server and the `Store` it reads. Out: an `Outcome` for each base path. The same command run again
finishes what was interrupted: a version with the same hashes is not copied twice. Any failure puts the former config and labels back, sets aside
a version that would not load or answered wrongly, and says what was seen.

What a server serves is replaced as a whole and cannot be asked for: all models under the root of a store are named in every config, and models
from elsewhere are unloaded. Use one channel: a server that polls a config file overwrites what is pushed.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from serving import desired
from serving.change import CALL_TIMEOUT_S, Change, ClientFactory, Outcome, ServerClient, Target, shown
from serving.checks import check, hold_gate, open_source
from serving.desired import CANARY, PREVIOUS, SERVED_LABELS, STABLE
from serving.errors import ConfigError, ModelNotFound, PushError, RegistryError, ServingError

log = logging.getLogger(__name__)

STEPS = ("check", "gate", "publish", "load", "wait", "ask", "label", "retire")
RETENTION = 3
LOAD_TIMEOUT_S = 600.0
LOCK_TIMEOUT_S = 60.0

Step = tuple[str, Callable[[Change], None]]


def push(
    source: Path,
    targets: Sequence[Target],
    *,
    name: str = "",
    label: str = STABLE,
    retention: int = RETENTION,
    force: str = "",
    without_ops: Collection[str] = (),
    dry_run: bool = False,
    load_timeout_s: float = LOAD_TIMEOUT_S,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    client_factory: ClientFactory | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> list[Outcome]:
    """Publishes a model and brings it into service on all targets, or on none.

    Args:
        source: a version, a model (its newest version), a root of models, or any SavedModel with `force`.
        targets: servers; those that share a store share what is published there.
        name: publish under this name instead of the source's own.
        label: `stable` or `canary`.
        retention: how many pushed versions stay loaded besides the labelled ones.
        force: the reason to serve what the gate refuses, or what has no manifest; recorded.
        without_ops: ops that these servers do not have, besides those that no stock server has.
        dry_run: only look: checks, gate, plan, config diff.
        load_timeout_s: for loading, on all targets together.
        lock_timeout_s: how long to wait for another push.
        client_factory: makes the client for an address.
        on_step: called with each step's name before it, and in between as `label.written`.

    Raises:
        IntegrityError, RegistryError: the folder is not fit to be served. Nothing was changed.
        GateRefused: the evaluation said no. Nothing was changed.
        PushLocked: another push is at work.
        ServerError: a server cannot be reached. Nothing was changed.
        PushError: it failed later and was undone.
    """
    if label not in SERVED_LABELS:
        raise ConfigError(f"label {label!r}: expected one of {', '.join(SERVED_LABELS)}.")
    opened = open_source(source, name=name, force=force)
    looked_at: dict[str, Any] = {}

    def look(change: Change) -> None:
        if not looked_at:
            looked_at.update(check(opened, without_ops))
        change.checks.update(looked_at)
        change.find(opened)
        change.plan = desired.plan_push(change.snapshot, change.version, retention, label)

    steps: list[Step] = [("check", look), ("gate", lambda change: change.checks.update(gate=hold_gate(opened, force)))]
    if not dry_run:
        steps += [
            ("publish", lambda change: change.publish(opened, force)),
            ("load", Change.load),
            ("wait", Change.wait),
            ("ask", lambda change: change.ask(opened)),
            ("label", lambda change: change.label(opened)),
            ("retire", Change.retire),
        ]
    entry = {"command": "push", "source": str(opened.path), "hash": desired.content_hash(opened.files), "force": force}
    return _run(targets, opened.name, retention, steps, entry, load_timeout_s, lock_timeout_s, client_factory, on_step, dry_run)


def promote(
    targets: Sequence[Target],
    name: str,
    *,
    version: int | None = None,
    retention: int = RETENTION,
    load_timeout_s: float = LOAD_TIMEOUT_S,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    client_factory: ClientFactory | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> list[Outcome]:
    """Makes the canary, or another version that was pushed, the stable one; what was stable becomes `previous`.

    Raises:
        RegistryError: there is no canary, or the version was never pushed.
        PushError: it failed and was undone.
    """

    def choose(change: Change) -> None:
        snapshot = change.snapshot
        wanted = snapshot.labels.get(CANARY) if version is None else version
        if wanted is None:
            raise RegistryError(
                f"{change.base_path}: has no canary ({shown(snapshot.labels)}). Push one: python -m serving push --label canary, or name a version."
            )
        _must_be_there(change, wanted, "promoted")
        change.plan = desired.plan_push(snapshot, wanted, retention, STABLE)
        change.version = wanted

    _must_be_known(targets, name)
    steps: list[Step] = [("check", choose), *_MOVE, ("retire", Change.retire)]
    return _run(targets, name, retention, steps, {"command": "promote"}, load_timeout_s, lock_timeout_s, client_factory, on_step)


def rollback(
    targets: Sequence[Target],
    name: str,
    *,
    retention: int = RETENTION,
    load_timeout_s: float = LOAD_TIMEOUT_S,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    client_factory: ClientFactory | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> list[Outcome]:
    """Makes `previous` the stable version again; one call while it is loaded. What was stable becomes `previous`: a second rollback undoes the first.

    Raises:
        RegistryError: there is nothing to return to.
        PushError: it failed and was undone.
    """

    def choose(change: Change) -> None:
        snapshot = change.snapshot
        former = snapshot.labels.get(PREVIOUS)
        if former is None:
            raise RegistryError(
                f"{change.base_path}: has no previous version ({shown(snapshot.labels)}). Push or promote the version that should serve."
            )
        _must_be_there(change, former, "returned to")
        change.retires = False
        change.plan = desired.plan_push(snapshot, former, retention, STABLE)
        change.version = former

    _must_be_known(targets, name)
    steps: list[Step] = [("check", choose), *_MOVE]
    return _run(targets, name, retention, steps, {"command": "rollback"}, load_timeout_s, lock_timeout_s, client_factory, on_step)


def server_status(targets: Sequence[Target], *, name: str = "", client_factory: ClientFactory | None = None) -> dict[str, Any]:
    """What the servers have of each model, what the labels on disk say, and where the two differ.

    Raises:
        ModelNotFound: neither a server nor a store knows the model.
        ServerError: a server cannot be reached.
    """
    factory = client_factory or default_client
    result: list[dict[str, Any]] = []
    for target in targets:
        names = [name] if name else target.store.names()
        with factory(target.address) as client:
            models = [_model_status(client, target, one) for one in names]
            if name and not models[0]["versions"] and not models[0]["on_disk"]:
                client.status(model=name)  # raises, with what is served there
        result.append({"address": target.address, "root": target.store.location, "models": models})
    return {"targets": result}


def default_client(address: str, tls: Any = None) -> ServerClient:
    """The real one.

    Raises:
        ConfigError: the address stands for several servers; the config would reach only one of them.
    """
    from serving.channel import parse_target
    from serving.client import Client

    if parse_target(address).spread:
        raise ConfigError(f"--target {address}: stands for several servers, and each has to be told. Give --target once for each.")
    return Client(address, timeout_s=CALL_TIMEOUT_S, tls=tls)


def _move_load(change: Change) -> None:
    if any(change.version not in change.available(target, change.name) for target in change.targets):
        change.load()


def _move_wait(change: Change) -> None:
    if change.sent:
        change.wait()


# A version that was pushed before has passed its checks; while it is loaded only its label moves.
_MOVE: tuple[Step, ...] = (("load", _move_load), ("wait", _move_wait), ("label", Change.label))


def _run(
    targets: Sequence[Target],
    name: str,
    retention: int,
    steps: Sequence[Step],
    entry: Mapping[str, Any],
    load_timeout_s: float,
    lock_timeout_s: float,
    client_factory: ClientFactory | None,
    on_step: Callable[[str], None],
    dry_run: bool = False,
) -> list[Outcome]:
    """Each step on all base paths before the next; on a failure all of them go back."""
    if not targets:
        raise ConfigError("no target: expected at least one server, such as localhost:8500. Give --target HOST:PORT.")
    if retention < 1:
        raise ConfigError(f"--keep {retention}: expected 1 or more versions.")
    groups: dict[str, list[Target]] = {}
    for target in targets:
        groups.setdefault(target.store.location, []).append(target)
    twice = sorted(
        address for address in {target.address for target in targets} if sum(target.address == address for target in targets) > 1
    )
    if twice:
        raise ConfigError(
            f"--target {twice[0]}: named twice. A server's config is replaced as a whole: give each server once, with one root."
        )
    factory = client_factory or default_client
    with ExitStack() as stack:
        if not dry_run:
            for _, group in sorted(groups.items()):  # always in this order: two pushes cannot wait for each other
                stack.enter_context(group[0].store.lock(lock_timeout_s, 2 * load_timeout_s * len(targets) + 300))
        clients = {address: stack.enter_context(factory(address)) for address in (target.address for target in targets)}
        changes = [Change(name, group, clients, retention, load_timeout_s) for group in groups.values()]
        step = ""
        try:
            for step, action in steps:
                on_step(step)
                started = time.monotonic()
                for change in changes:
                    change.on_step = on_step
                    log.info("%-8s %s", step, change.base_path)
                    action(change)
                for change in changes:
                    change.seconds[step] = round(time.monotonic() - started, 3)
        except BaseException as error:
            if step == "retire":  # the labels have moved: there is nothing to go back from
                for change in changes:
                    change.record(entry, "done", f"{step}: {error or type(error).__name__}")
            elif not dry_run:
                _undo(changes, error, step, entry)
            raise
        outcomes = [change.outcome() for change in changes]
        for change in changes:
            if not dry_run:
                change.keep_config()
                change.record(entry, "done")
        return outcomes


def _undo(changes: Sequence[Change], error: BaseException, step: str, entry: Mapping[str, Any]) -> None:
    """Raises PushError when a step failed that had changed something; else the caller raises the error as it is."""
    changed = any(change.copied or change.sent for change in changes)
    said = [change.undo(error, step) for change in reversed(changes)] if changed else []
    for change in changes:
        if change.version and (changed or change.snapshot.versions):  # a base path is not made for a refusal
            with contextlib.suppress(RegistryError):  # the disk may be full: the first error is the one to show
                change.record(entry, "undone" if changed else "refused", f"{step}: {error or type(error).__name__}")
    if changed and isinstance(error, (ServingError, KeyboardInterrupt)):
        first = changes[0]
        kind = PushError if isinstance(error, ServingError) else KeyboardInterrupt
        what = f"failed at {step}: {error}" if isinstance(error, ServingError) else f"stopped at {step}."
        raise kind(f"{first.name} version {first.version}: {what} {' '.join(said)}") from error


def _must_be_known(targets: Sequence[Target], name: str) -> None:
    """Before the lock, which would make the folder."""
    for target in targets:
        if name not in (names := target.store.names()):
            raise RegistryError(
                f"{target.store.location}: has no model {name!r}. Models there: {', '.join(names) or 'none'}. Name one of them, or the root with --models."
            )


def _must_be_there(change: Change, version: int, done: str) -> None:
    snapshot = change.snapshot
    known = snapshot.pushed | set(snapshot.labels.values())
    if version not in snapshot.versions or version not in known:
        there = ", ".join(str(one) for one in snapshot.versions if one in known) or "none"
        raise RegistryError(
            f"{change.base_path}: version {version} cannot be {done}: it is not there or was never pushed. Pushed and there: {there}."
        )


def _model_status(client: ServerClient, target: Target, name: str) -> dict[str, Any]:
    snapshot = desired.read_snapshot(target.store, name)
    statuses: Sequence[Any] = ()
    with contextlib.suppress(ModelNotFound):
        statuses = client.status(model=name)
    states = {status.version: status.state for status in statuses}
    notes = [
        f"label {label!r} is on version {version}, which is {states.get(version, 'not there')}"
        for label, version in snapshot.labels.items()
        if states.get(version) != "AVAILABLE"
    ]
    journal = list(desired.read_journal(target.store, name))
    return {
        "name": name,
        "labels": dict(snapshot.labels),
        "on_disk": list(snapshot.versions),
        "versions": [
            {"version": status.version, "state": status.state, "code": status.code, "message": status.message} for status in statuses
        ],
        "notes": notes,
        "last": {key: journal[-1].get(key) for key in ("time", "by", "command", "version", "outcome")} if journal else None,
    }
