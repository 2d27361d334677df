"""The page's routes over a small fake of a model: shared by the tests of the page."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from serving import wire
from serving.server import page, rest
from serving.server.metrics import Metrics
from serving.server.page import PageSettings
from serving.server.rest import RestSettings
from serving.server.status import Status

EVIL = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
SAME = {"origin": "http://127.0.0.1:8501"}
KNOWN = {"good": 0.5, "bad": -0.3, "lovely": 0.2}


def _signature(inputs: dict[str, Sequence[int]], outputs: Sequence[str], dtype: int = wire.DT_STRING) -> Any:
    signature = wire.SignatureDef()
    for name, shape in inputs.items():
        signature.inputs[name].dtype = dtype
        signature.inputs[name].tensor_shape.dim.extend(wire.TensorShapeProto.Dim(size=size) for size in shape)
    for name in outputs:
        signature.outputs[name].dtype = wire.DT_FLOAT
    return signature


TEXT = {"text": [-1]}
DEFAULT = _signature(TEXT, ["classes", "label", "probabilities", "score"])
EXPLAIN = _signature(TEXT, ["pieces", "attributions", "label", "score", "baseline_score", "gap"])


class _Loaded:
    """A version whose probability of `positive` is 0.5 and what its known words add."""

    def __init__(self, signatures: dict[str, Any], fake: _Fake) -> None:
        self.version, self.signatures, self._fake = 7, signatures, fake

    def run(self, signature_name: str, inputs: Any, outputs: Sequence[str], deadline: float | None) -> dict[str, Any]:
        self._fake.asked.append({name: [text.decode() for text in column] for name, column in inputs.items()})
        self._fake.deadlines.append(deadline)
        self._fake.on_run()
        if signature_name == "explain":
            return {name: self._fake.explanation[name] for name in outputs}
        positive = [0.5 + sum(value for word, value in KNOWN.items() if word in text.decode().split()) for text in inputs["text"]]
        probabilities = np.array([[1 - one, one] for one in positive], np.float32)
        answer = {
            "probabilities": probabilities,
            "classes": np.array([[b"negative", b"positive"]] * len(positive), object),
            "label": np.array([b"negative positive".split()[row.argmax()] for row in probabilities], object),
        }
        return {name: answer[name] for name in outputs}


class _Fake:
    """Handlers over one model `m`, version 7, label `stable`, and a version 6 that did not load."""

    def __init__(self, folder: Path) -> None:
        self.name = "m"
        self.signatures = {"serving_default": DEFAULT}
        self.metrics = Metrics()
        self.models = self
        self.asked: list[Any] = []
        self.deadlines: list[float | None] = []
        self.on_run: Callable[[], None] = lambda: None
        self.explanation: dict[str, Any] = {}
        self.folder = folder

    def summary(self) -> dict[str, Any]:
        return {self.name: {"versions": {7: "AVAILABLE", 6: "END"}, "labels": {"stable": 7}}}

    def statuses(self, name: str, version: int | None = None) -> list[Any]:
        assert name == self.name
        return [
            SimpleNamespace(version=7, path=self.folder, state="AVAILABLE", message=""),
            SimpleNamespace(version=6, path=self.folder, state="END", message="it is broken"),
        ]

    def is_ready(self) -> bool:
        return True

    @contextlib.contextmanager
    def acquire(self, name: str, version: int | None, version_label: str) -> Iterator[_Loaded]:
        if name != self.name or version not in (None, 7):
            raise Status("NOT_FOUND", f"Servable not found for request: Latest({name})")
        yield _Loaded(self.signatures, self)


@pytest.fixture
def fake(tmp_path: Path) -> _Fake:
    return _Fake(tmp_path)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture
def app(fake: _Fake, pool: ThreadPoolExecutor) -> Callable[..., Any]:
    """The whole application with the page's routes, as the server has it; `settings` are the page's."""

    def made(settings: PageSettings | None = None) -> Any:
        return rest.application(fake, RestSettings(), pool, page.routes(fake, settings or PageSettings(), pool))

    return made


@pytest.fixture
def ask(app: Callable[..., Any]) -> Callable[..., httpx.Response]:
    """One request from a program on the same machine."""

    def one(method: str, path: str, *, settings: PageSettings | None = None, application: Any = None, **arguments: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(application or app(settings))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8501") as client:
                return await client.request(method, path, **arguments)

        return asyncio.run(send())

    return one


def _explain(ask: Any, text: str = "good bad day", **document: Any) -> httpx.Response:
    return ask("POST", "/page/explain", json={"model": "m", "version": "7", "inputs": {"text": text}, **document})  # type: ignore[no-any-return]
