"""Which models and versions are loaded, and the thread that keeps it so. Frees requests from loading: they `acquire` a version and run it.

In: the configured models and their folders. Out: versions that answer, the state of every version that ever was, labels. A version is loaded before
its predecessor is unloaded; one that is in use is freed by whoever uses it last; one that cannot be loaded leaves the others alone.

One thread owns every change of state. It sleeps until the next poll, the next retry, or a change of configuration; `serving.versions` decides what
it does next. Deliberately different from the real server: a missing base path freezes its own model only (upstream: all of them, issue #2189), a
changed configuration is acted on at once, not at the next poll, a version that failed is tried again when its folder was taken away and put back, and
a start or a reload goes well when one version of a model can be loaded (upstream: when the first one that was tried can).
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.server.configs import ModelConfig
from serving.server.status import Status, invalid
from serving.versions import AVAILABLE, END, LOADING, START, UNLOADING, next_action, versions_in, wanted
from serving.wire import Array

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a single request may ask for."""

    rows: int = 4096
    text_bytes: int = 1 << 20
    ids: int = 1 << 16


@dataclass
class Loaded:
    """A version that answers, valid while it is acquired.

    Attributes:
        name: of the model.
        version: its number.
        signatures: as stored in the SavedModel, by key.
        run_tensors: values of named tensors, batched when batching is on.
        close: frees it.
        limits: largest request.
    """

    name: str
    version: int
    signatures: Mapping[str, Any]
    run_tensors: Callable[[Mapping[str, Array], Sequence[str], float | None], list[Array]]
    close: Callable[[], None]
    limits: Limits = Limits()

    def run(self, signature_name: str, inputs: Mapping[str, Array], outputs: Sequence[str], deadline: float | None) -> dict[str, Array]:
        """Outputs of a signature, by name.

        Args:
            signature_name: key in `signatures`.
            inputs: by the signature's names; strings as object arrays of `bytes`.
            outputs: names wanted.
            deadline: of `time.monotonic`.

        Raises:
            Status: the request is too large, or the model says no.
        """
        signature = self.signatures[signature_name]
        for alias, value in inputs.items():
            self._check_rank(alias, value, signature.inputs[alias].tensor_shape)
        return self.run_named(
            {signature.inputs[alias].name: value for alias, value in inputs.items()},
            {alias: signature.outputs[alias].name for alias in outputs},
            deadline,
        )

    def run_named(self, feeds: Mapping[str, Array], fetches: Mapping[str, str], deadline: float | None) -> dict[str, Array]:
        """The same by tensor names: `fetches` maps the names of the answer to tensors."""
        for name, value in feeds.items():
            self._check_size(name, value)
        # Sorted, so that two requests for the same outputs in another order share a batch; fetched once when two names mean one tensor.
        tensors = sorted(set(fetches.values()))
        values = dict(zip(tensors, self.run_tensors(feeds, tensors, deadline), strict=True))
        return {alias: values[tensor] for alias, tensor in fetches.items()}

    @staticmethod
    def _check_rank(alias: str, value: Array, declared: Any) -> None:
        """Text only: kernels of TF Text read past the buffer of a scalar and abort on `[1, 0]`, and the process would die with all its models.

        Numbers of a wrong shape fail in a kernel, as in the real server.
        """
        if value.dtype == object and not declared.unknown_rank and value.ndim != len(declared.dim):
            raise invalid(f"input {alias}: text of {value.ndim} dimensions; the signature declares {len(declared.dim)}.")

    def _check_size(self, name: str, value: Array) -> None:
        if value.ndim and value.shape[0] > self.limits.rows:
            raise invalid(
                f"input {name}: {value.shape[0]} rows in one request; this server takes {self.limits.rows}. Send several requests."
            )
        if value.ndim > 1 and value.dtype.kind in "iu" and value.size > self.limits.ids:
            raise invalid(f"input {name}: {value.size} ids in one request; this server takes {self.limits.ids}. Send several requests.")
        if value.dtype == object:
            longest = max((len(item) for item in value.ravel().tolist()), default=0)
            if longest > self.limits.text_bytes:
                raise invalid(f"input {name}: a string of {longest} bytes; this server takes {self.limits.text_bytes}.")


@dataclass
class Entry:
    """One version of a model: its state, and what came of it."""

    version: int
    path: Path
    state: str = START
    code: str = "OK"
    message: str = ""
    loaded: Loaded | None = None
    users: int = 0
    attempts: int = 0
    retry_at: float = math.inf
    forgiven: bool = False

    @property
    def has_failed(self) -> bool:
        """For good, and not in an earlier life: a version that was merely unloaded, or whose model was removed since, may be loaded again."""
        return self.state == END and self.code != "OK" and not self.forgiven


@dataclass
class _Model:
    config: ModelConfig
    entries: dict[int, Entry] = field(default_factory=dict)
    aspired: set[int] = field(default_factory=set)
    labels: dict[str, int] = field(default_factory=dict)
    configured: bool = True


@dataclass(frozen=True)
class LoadSettings:
    """How often to look, and how often to try again."""

    poll_s: float = 1.0
    retries: int = 5
    retry_s: float = 60.0
    labels_of_unavailable: bool = False


class Models:
    """All models of one server."""

    def __init__(
        self,
        load: Callable[[str, int, Path], Loaded],
        settings: LoadSettings = LoadSettings(),
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts nothing yet.

        Args:
            load: loads and warms up a version; raises Status.
            settings: polling and retries.
            on_change: told after every change of state, without a lock held.
        """
        self._load = load
        self._settings = settings
        self._on_change = on_change
        self._models: dict[str, _Model] = {}
        self._changed = threading.Condition()
        self._reloading = threading.Lock()
        self._stop = False
        self._poll_now = False
        self._to_close: list[tuple[str, Entry]] = []
        self._complaints: dict[tuple[str, str], str] = {}
        self._thread = threading.Thread(target=self._loop, name="models", daemon=True)

    # ---- asked by requests

    @contextlib.contextmanager
    def acquire(self, name: str, version: int | None = None, version_label: str = "") -> Iterator[Loaded]:
        """A version that stays loaded inside the `with`: the named one, that of a label, or the highest that is available.

        Raises:
            Status: NOT_FOUND or INVALID_ARGUMENT, as the real server words it.
        """
        with self._changed:
            entry = self._find(name, version, version_label)
            loaded = entry.loaded
            assert loaded is not None
            entry.users += 1
        try:
            yield loaded
        finally:
            with self._changed:
                entry.users -= 1
                if entry.users == 0 and entry.state == UNLOADING:
                    self._to_close.append((name, entry))
                    self._changed.notify_all()

    def _find(self, name: str, version: int | None, version_label: str) -> Entry:
        if not name:
            raise invalid("ModelSpec has no name specified.")
        model = self._models.get(name)
        if version_label:
            labelled = model.labels.get(version_label) if model else None
            if labelled is None:
                raise invalid(f"Unrecognized servable version label: {version_label}")
            version = labelled
        available = {number: entry for number, entry in model.entries.items() if entry.state == AVAILABLE} if model else {}
        if version is not None:
            if version not in available:
                raise Status("NOT_FOUND", f"Servable not found for request: Specific({name}, {version})")
            return available[version]
        if not available:
            raise Status("NOT_FOUND", f"Servable not found for request: Latest({name})")
        return available[max(available)]

    def statuses(self, name: str, version: int | None = None) -> list[Entry]:
        """Every version that was ever known, newest first; copies, without what is loaded.

        Raises:
            Status: NOT_FOUND.
        """
        with self._changed:
            model = self._models.get(name)
            entries = sorted(model.entries.values(), key=lambda entry: -entry.version) if model else []
            if version is not None:
                entries = [entry for entry in entries if entry.version == version]
                if not entries:
                    raise Status("NOT_FOUND", f"Could not find version {version} of model {name}")
            if not entries:
                raise Status("NOT_FOUND", f"Could not find any versions of model {name}")
            return [Entry(one.version, one.path, one.state, one.code, one.message) for one in entries]

    def summary(self) -> dict[str, dict[str, Any]]:
        """Configured models with the states of their versions and their labels: for metrics and readiness."""
        with self._changed:
            return {
                name: {"versions": {entry.version: entry.state for entry in model.entries.values()}, "labels": dict(model.labels)}
                for name, model in self._models.items()
                if model.configured
            }

    def is_ready(self) -> bool:
        """Whether every configured model has a version that answers."""
        return not self._stop and all(AVAILABLE in model["versions"].values() for model in self.summary().values())

    # ---- configuration

    def start(self, configs: Mapping[str, ModelConfig], stop: threading.Event | None = None) -> None:
        """Begins to load, and waits until every model has a version that is AVAILABLE, or none that still may be.

        Raises:
            Status: a model failed, or labels name versions that are not loaded: the server must not start.
        """
        labelled = [config for config in configs.values() if config.labels]
        if labelled and not self._settings.labels_of_unavailable:
            label, version = next(iter(labelled[0].labels.items()))
            raise _unavailable_label(labelled[0].name, version, label)
        with self._changed:
            self._apply(configs)
        self._thread.start()
        self._wait_settled(set(configs), "servable", None, stop)

    def reload(self, configs: Mapping[str, ModelConfig], *, deadline: float | None = None, wait: bool = True) -> None:
        """Replaces the whole list of models, and waits for those that are new.

        Raises:
            Status: FAILED_PRECONDITION for a label on a version that is not available (nothing changes then); UNKNOWN when a new model cannot be
                loaded; DEADLINE_EXCEEDED.
        """
        with self._reloading:
            with self._changed:
                self._check_labels(configs)
                new = {name for name in configs if name not in self._models or not self._models[name].configured}
                self._apply(configs)
                self._changed.notify_all()
            self._on_change()  # the thread may be busy with a long load
            if wait:
                self._wait_settled(new, "model", deadline)

    def configs(self) -> dict[str, ModelConfig]:
        """The configuration in force."""
        with self._changed:
            return {name: model.config for name, model in self._models.items() if model.configured}

    def _check_labels(self, configs: Mapping[str, ModelConfig]) -> None:
        for name, config in configs.items():
            model = self._models.get(name)
            for label, version in config.labels.items():
                entry = model.entries.get(version) if model else None
                if entry is not None and entry.state == AVAILABLE:
                    continue
                moved = model is not None and label in model.labels and model.labels[label] != version
                if not self._settings.labels_of_unavailable or moved:
                    raise _unavailable_label(name, version, label)

    def _apply(self, configs: Mapping[str, ModelConfig]) -> None:
        for name, model in self._models.items():
            if name not in configs:
                model.configured, model.aspired, model.labels = False, set(), {}
        for name, config in configs.items():
            model = self._models.setdefault(name, _Model(config))
            if not model.configured or model.config.base_path != config.base_path:
                self._complaints = {key: message for key, message in self._complaints.items() if key[0] != name}
                for entry in model.entries.values():
                    entry.forgiven = True
            model.config, model.configured, model.labels = config, True, dict(config.labels)
        self._poll_now = True

    def _wait_settled(self, names: set[str], noun: str, deadline: float | None, stop: threading.Event | None = None) -> None:
        def settled(name: str) -> bool:
            model = self._models[name]
            if any(entry.state == AVAILABLE for entry in model.entries.values()):
                return True
            hopes = any(entry.version in model.aspired and entry.state != END for entry in model.entries.values())
            return not hopes and any(entry.has_failed for entry in model.entries.values())

        with self._changed:
            while not all(settled(name) for name in names):
                if self._stop or (stop is not None and stop.is_set()):
                    raise Status("CANCELLED", "The server is stopping")
                remaining = 0.2 if deadline is None else min(0.2, deadline - time.monotonic())
                if remaining <= 0:
                    raise Status("DEADLINE_EXCEEDED", f"Models not loaded in time: {', '.join(sorted(names))}")
                self._changed.wait(remaining)
            failed = {
                name: max((entry for entry in self._models[name].entries.values() if entry.has_failed), key=lambda entry: entry.version)
                for name in sorted(names)
                if not any(entry.state == AVAILABLE for entry in self._models[name].entries.values())
            }
            reasons = "".join(
                f"{{{{name: {name} version: {entry.version}}} due to error: {entry.code}: {entry.message}}}, "
                for name, entry in failed.items()
            )
        if failed:
            raise Status("UNKNOWN", f"{len(failed)} {noun}(s) did not become available: {{{reasons}}}")

    # ---- the thread

    def close(self) -> None:
        """Unloads everything; requests that run finish first."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        for model in self._models.values():
            for entry in model.entries.values():
                if entry.loaded is not None:
                    entry.loaded.close()
                    entry.loaded = None

    def _loop(self) -> None:
        next_poll = 0.0
        while True:
            with self._changed:
                if self._stop:
                    return
                now = time.monotonic()
                due = self._poll_now or (self._settings.poll_s > 0 and now >= next_poll)
                self._poll_now = False
            try:
                if due:
                    next_poll = time.monotonic() + self._settings.poll_s  # before: a poll that fails must not be tried without a pause
                    self._poll()
                acted = self._act()
            except Exception:
                logger.exception("the model manager failed; it goes on")
                acted = False
            if acted or due:
                self._on_change()
            if acted:
                continue
            with self._changed:
                if not self._poll_now and not self._stop and not self._to_close:
                    self._changed.wait(self._pause(next_poll))

    def _pause(self, next_poll: float) -> float:
        now = time.monotonic()
        times = [entry.retry_at for model in self._models.values() for entry in model.entries.values() if entry.state == LOADING]
        if self._settings.poll_s > 0:
            times.append(next_poll)
        return max(0.0, min([*times, now + 3600.0]) - now)

    def _poll(self) -> None:
        """Looks at the folders, and notes what should be loaded."""
        with self._changed:
            looked_at = [(name, model.config) for name, model in self._models.items() if model.configured]
        for name, config in looked_at:
            try:
                present = versions_in(path.name for path in Path(config.base_path).iterdir())
            except (OSError, ValueError) as error:  # ValueError: a NUL in the path
                self._complain(name, "folder", f"{config.base_path!r}: {getattr(error, 'strerror', None) or error}. Waiting for it.")
                continue
            self._complain(
                name,
                "folder",
                "" if present else f"{config.base_path} has no version: a folder whose name is a number, such as 1. Waiting for one.",
            )
            aspired = wanted(config.policy.kind, config.policy.latest, config.policy.versions, present)
            absent = sorted(set(config.policy.versions) - set(present))
            self._complain(
                name, "versions", f"version {', '.join(map(str, absent))} is configured but not in {config.base_path}" if absent else ""
            )
            with self._changed:
                model = self._models[name]
                if model.config is not config or not model.configured:
                    continue
                model.aspired = aspired
                for version in aspired:
                    old = model.entries.get(version)
                    # A version that was unloaded starts anew; one that failed does not while it stays wanted.
                    if old is None or (old.state == END and (old.code == "OK" or old.forgiven)):
                        model.entries[version] = Entry(version, Path(config.base_path) / present[version])
                for entry in model.entries.values():
                    entry.forgiven = entry.version not in aspired
                self._changed.notify_all()

    def _complain(self, name: str, about: str, message: str) -> None:
        """Logs what is wrong with a model's folder or versions once, not at every poll; an empty message ends it."""
        if message and message != self._complaints.get((name, about)):
            logger.warning("model %s: %s", name, message)
        self._complaints[name, about] = message

    def _act(self) -> bool:
        """Does one thing, if there is one to do."""
        with self._changed:
            if self._to_close:
                name, entry = self._to_close.pop()
                job: tuple[str, str, Entry] | None = ("close", name, entry)
            else:
                job = self._next_job()
            if job and job[0] == "load":
                job[2].state = LOADING
                job[2].retry_at = math.inf
                self._changed.notify_all()
        if job is None:
            return False
        kind, name, entry = job
        if kind == "load":
            self._do_load(name, entry)
        else:
            self._do_close(name, entry)
        return True

    def _next_job(self) -> tuple[str, str, Entry] | None:
        now = time.monotonic()
        for name, model in self._models.items():
            for entry in model.entries.values():
                if entry.state == LOADING and entry.version not in model.aspired:
                    entry.state = END  # not wanted any more while it waited for its next attempt
                elif entry.state == LOADING and entry.retry_at <= now:
                    return "load", name, entry
            states = {entry.version: entry.state for entry in model.entries.values()}
            action = next_action(model.aspired, states)
            if action is None:
                continue
            entry = model.entries[action.version]
            if action.kind == "load":
                return "load", name, entry
            entry.state = UNLOADING
            self._changed.notify_all()
            if entry.users == 0:
                return "close", name, entry
        return None

    def _do_load(self, name: str, entry: Entry) -> None:
        started = time.monotonic()
        try:
            loaded = self._load(name, entry.version, entry.path)
        except Status as error:
            self._failed(name, entry, error)
            return
        except Exception as error:
            logger.exception("model %s version %d: loading failed in an unexpected way", name, entry.version)
            self._failed(name, entry, Status("INTERNAL", f"{type(error).__name__} while loading; see the server's log"))
            return
        logger.info("model %s version %d: loaded in %.2f s", name, entry.version, time.monotonic() - started)
        with self._changed:
            entry.loaded, entry.state, entry.code, entry.message = loaded, AVAILABLE, "OK", ""
            self._changed.notify_all()

    def _failed(self, name: str, entry: Entry, error: Status) -> None:
        entry.attempts += 1
        with self._changed:
            entry.code, entry.message = error.code, error.message
            again = entry.attempts <= self._settings.retries
            if again:
                entry.retry_at = time.monotonic() + self._settings.retry_s
            else:
                entry.state = END
            self._changed.notify_all()
        logger.error(
            "model %s version %d: attempt %d failed: %s%s", name, entry.version, entry.attempts, error,
            f"; trying again in {self._settings.retry_s:g} s" if again else "; giving up",
        )  # fmt: skip

    def _do_close(self, name: str, entry: Entry) -> None:
        loaded, entry.loaded = entry.loaded, None
        if loaded is not None:
            loaded.close()
        with self._changed:
            entry.state, entry.code, entry.message = END, "OK", ""
            if entry.version in self._models[name].aspired:
                self._poll_now = True  # wanted again while it was being unloaded
            self._changed.notify_all()
        logger.info("model %s version %d: unloaded", name, entry.version)


def _unavailable_label(name: str, version: int, label: str) -> Status:
    return Status(
        "FAILED_PRECONDITION",
        f"Request to assign label to version {version} of model {name}, which is not currently available for inference",
    )
