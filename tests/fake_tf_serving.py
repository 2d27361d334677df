"""A small server that treats configs, versions and labels as TensorFlow Serving does, and models made for it. No TensorFlow in it.

What it reproduces: a config replaces the whole list; versions load asynchronously; a label on a version that is not AVAILABLE refuses the whole
call; an OK answer does not mean loaded; a call waits for models that are new in the list, and fails when one does not load; a version that
failed is END with its error for ever; new versions load before old ones unload.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from serving import wire
from serving.checks import masked_crc32c
from serving.registry import Published, sha256_of

CLASSES = ("negative", "positive")
STATES = {name: number for number, name in wire.STATES.items()}
TEXTS = ["the app lost my payment", "thank you", ""]


def answers(texts: list[str], shift: float = 0.0) -> list[list[float]]:
    """Probabilities that depend on the text and on the model."""
    values = [(hashlib.sha256(text.encode()).digest()[0] / 256 + shift) % 1.0 for text in texts]
    return [[round(1 - value, 6), round(value, 6)] for value in values]


def make_model(
    root: Path,
    version: int,
    *,
    name: str = "sentiment",
    shift: float = 0.0,
    broken: str = "",
    probe_shift: float | None = None,
    **manifest: Any,
) -> Published:
    """A version as an export leaves it; `broken` fails its load with that message, `probe_shift` makes it answer otherwise than at export."""
    folder = root / name / str(version)
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_text(json.dumps({"shift": shift if probe_shift is None else probe_shift, "broken": broken}))
    (folder / "variables" / "variables.index").write_bytes(str(version).encode() * 100)
    string = {"dtype": "string", "shape": [None]}
    value = {
        "name": name,
        "version": version,
        "signatures": {"serving_default": {"inputs": {"text": string}, "outputs": {"label": string}}},
        "ops": ["Const", "MatMul"],
        "gate": {"passed": True, "reasons": [], "checks": {}},
        "golden_probes": {"tolerance": 1e-3, "texts": TEXTS, "probabilities": answers(TEXTS, shift)},
        "files": hashed(folder),
        **manifest,
    }
    (folder / "manifest.json").write_text(json.dumps({key: entry for key, entry in value.items() if entry is not None}))
    return Published(folder, name, version)


def hashed(folder: Path) -> dict[str, Any]:
    """`files` of a manifest."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def write_records(path: Path, records: list[bytes]) -> Path:
    """A TFRecord file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        for record in records:
            head = struct.pack("<Q", len(record))
            stream.write(head + struct.pack("<I", masked_crc32c(head)) + record + struct.pack("<I", masked_crc32c(record)))
    return path


class FakeServer:
    """Listens on a free port of this machine while used as a context manager.

    Attributes:
        address: `localhost:PORT`.
        loading: loads wait until it is set; it is set at first.
        configs: every config that was accepted, oldest first.
        outside: how base paths in the config map to this machine, for a server in a container.
        refuse_reload: the next configs are refused with these messages.
    """

    def __init__(self, outside: dict[str, Path] | None = None) -> None:
        self.loading = threading.Event()
        self.loading.set()
        self.configs: list[Any] = []
        self.outside = outside or {}
        self.refuse_reload: list[str] = []
        self._changed = threading.Condition()
        self._states: dict[str, dict[int, tuple[str, str]]] = {}
        self._shifts: dict[tuple[str, int], float] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._wanted: dict[str, tuple[Path, set[int]]] = {}
        self._closing = False

    def __enter__(self) -> FakeServer:
        handlers: dict[str, dict[str, Any]] = {}
        for method, call in (
            ("GetModelStatus", self._status),
            ("HandleReloadConfigRequest", self._reload),
            ("Predict", self._predict),
        ):
            path, request, response = wire.METHODS[method]
            service = path.split("/")[1]
            handlers.setdefault(service, {})[method] = grpc.unary_unary_rpc_method_handler(
                call, request.FromString, response.SerializeToString
            )
        self._pool = futures.ThreadPoolExecutor(8)
        self._server = grpc.server(self._pool)
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, methods) for service, methods in handlers.items()]
        )
        self.address = f"localhost:{self._server.add_insecure_port('localhost:0')}"
        self._server.start()
        self._loader = threading.Thread(target=self._load_forever)
        self._loader.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.loading.set()
        self._loader.join(10)
        self._server.stop(0).wait(10)
        self._pool.shutdown()

    def serve(self, root: Path, name: str, *versions: int, labels: dict[str, int] | None = None) -> None:
        """As if it had been started with these versions, ready."""
        with self._changed:
            for version in versions:
                self._read(root / name / str(version), name, version)
            self._labels[name] = labels or {}
            self._wanted[name] = (root / name, set(versions))

    def forget(self, name: str, version: int) -> None:
        """As if it had been killed and started again with a config from before this version."""
        with self._changed:
            self._wanted[name][1].discard(version)
            self._states[name].pop(version, None)

    def versions(self, name: str) -> dict[int, str]:
        """Version to state."""
        with self._changed:
            return {version: state for version, (state, _) in self._states.get(name, {}).items()}

    def labels(self, name: str) -> dict[str, int]:
        """As the last accepted config said."""
        with self._changed:
            return dict(self._labels.get(name, {}))

    def wait_for(self, name: str, version: int, *states: str) -> None:
        """Until the version is in one of these states; fails after 10 s."""
        with self._changed:
            reached = self._changed.wait_for(lambda: self._states.get(name, {}).get(version, ("", ""))[0] in states, timeout=10)
        assert reached, f"{name} {version} is {self.versions(name).get(version)}, expected {states}"

    # ---- the calls ----

    def _status(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._changed:
            states = self._states.get(request.model_spec.name)
            if not states:
                context.abort(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {request.model_spec.name}")
            response = wire.GetModelStatusResponse()
            for version, (state, message) in sorted(states.items(), reverse=True):
                entry = response.model_version_status.add(version=version, state=STATES[state])
                if message:
                    entry.status.error_code, entry.status.error_message = 2, message
            return response

    def _reload(self, request: Any, context: grpc.ServicerContext) -> Any:
        models = {model.name: model for model in request.config.model_config_list.config}
        with self._changed:
            if self.refuse_reload:
                context.abort(grpc.StatusCode.INTERNAL, self.refuse_reload.pop(0))
            for model in models.values():
                for version in model.version_labels.values():
                    if self._states.get(model.name, {}).get(version, ("", ""))[0] != "AVAILABLE":
                        context.abort(
                            grpc.StatusCode.FAILED_PRECONDITION,
                            f"Request to assign label to version {version} of model {model.name}, which is not currently available for inference",
                        )
            self.configs.append(request.config)
            new = set(models) - set(self._wanted)
            self._labels = {name: dict(model.version_labels) for name, model in models.items()}
            self._wanted = {
                name: (self.outside.get(model.base_path, Path(model.base_path)), set(model.model_version_policy.specific.versions))
                for name, model in models.items()
            }
            self._changed.notify_all()
            done = ("AVAILABLE", "END")
            self._changed.wait_for(
                lambda: (
                    self._closing
                    or not context.is_active()
                    or all(any(state in done for state, _ in self._states.get(name, {}).values()) for name in new)
                ),
                timeout=30,
            )
            failed = [
                f"{{{name} due to error: {message}}}"
                for name in sorted(new)
                if not any(state == "AVAILABLE" for state, _ in self._states.get(name, {}).values())
                for _, message in self._states.get(name, {}).values()
            ]
        if failed:
            context.abort(grpc.StatusCode.UNKNOWN, f"{len(failed)} model(s) did not become available: {{{', '.join(failed)}, }}")
        return wire.ReloadConfigResponse()

    def _predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        spec = request.model_spec
        with self._changed:
            available = [version for version, (state, _) in self._states.get(spec.name, {}).items() if state == "AVAILABLE"]
            if spec.version_label:
                version = self._labels.get(spec.name, {}).get(spec.version_label)
                if version is None:
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"Unrecognized servable version label: {spec.version_label}")
            else:
                version = spec.version.value if spec.HasField("version") else max(available, default=0)
            if version not in available:
                context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Specific({spec.name}, {version})")
            shift = self._shifts[spec.name, version]
        texts = [value.decode() for value in wire.to_array(request.inputs["text"]).tolist()]
        probabilities = np.array(answers(texts, shift), np.float32).reshape(-1, 2)
        response = wire.PredictResponse()
        response.model_spec.name, response.model_spec.version.value = spec.name, version
        response.outputs["label"].CopyFrom(wire.to_tensor(np.array([CLASSES[row] for row in probabilities.argmax(1)], object)))
        response.outputs["score"].CopyFrom(wire.to_tensor(probabilities.max(1, initial=0)))
        response.outputs["probabilities"].CopyFrom(wire.to_tensor(probabilities))
        response.outputs["classes"].CopyFrom(wire.to_tensor(np.array([list(CLASSES)] * len(texts), object).reshape(-1, 2)))
        return response

    # ---- loading ----

    def _load_forever(self) -> None:
        while True:
            with self._changed:
                if self._closing:
                    return
                todo = self._next_load()
                if todo is None:
                    self._unload()
                    self._changed.wait(timeout=0.02)  # looks at the disk, as the real one polls it
                    continue
                name, folder, version = todo
                self._set(name, version, "LOADING")
            self.loading.wait()
            with self._changed:
                if not self._closing:
                    self._read(folder, name, version)

    def _next_load(self) -> tuple[str, Path, int] | None:
        for name, (base, versions) in self._wanted.items():
            for version in sorted(versions):
                state, message = self._states.get(name, {}).get(version, ("END", ""))
                if state == "END" and not message and (base / str(version)).is_dir():
                    return name, base / str(version), version
        return None

    def _unload(self) -> None:
        for name, states in self._states.items():
            wanted = self._wanted.get(name, (Path(), set()))[1]
            for version, (state, _) in list(states.items()):
                if version not in wanted and state == "AVAILABLE":
                    self._set(name, version, "END")

    def _read(self, folder: Path, name: str, version: int) -> None:
        try:
            model = json.loads((folder / "saved_model.pb").read_text())
        except OSError as error:
            model = {"broken": f"NOT_FOUND: {error}"}
        if model["broken"]:
            self._set(name, version, "END", model["broken"])
        else:
            self._shifts[name, version] = model["shift"]
            self._set(name, version, "AVAILABLE")

    def _set(self, name: str, version: int, state: str, message: str = "") -> None:
        self._states.setdefault(name, {})[version] = (state, message)
        self._changed.notify_all()


@contextlib.contextmanager
def traffic(address: str, name: str, *, label: str = "stable") -> Iterator[list[int | str]]:
    """Asks one text after the other by label; the list holds which version answered, or the error."""
    from serving.client import Client

    seen: list[int | str] = []
    stop = threading.Event()

    def ask() -> None:
        with Client(address, timeout_s=10) as client:
            while not stop.wait(0.002):
                try:
                    seen.append(client.predict(["thank you"], model=name, version_label=label).version)
                except Exception as error:  # any failure is what the test looks for
                    seen.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(20)
