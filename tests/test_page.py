"""The page's routes: what they answer, what they refuse, what the page is allowed to do; the models are a small fake, the journal is real."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from serving import wire
from serving.errors import ConfigError, RequestError
from serving.journal import Journal, read
from serving.server import live, page, rest, words
from serving.server.metrics import Metrics
from serving.server.page import PageSettings
from serving.server.rest import RestSettings
from serving.server.status import Status

HTML = page.FILE.read_text(encoding="utf-8")
EVIL = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
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


# ------------------------------------------------------------------------------------------------------------------------- the document


def _content(kind: str) -> str:
    [found] = re.findall(f"<{kind}>(.*?)</{kind}>", HTML, re.DOTALL)
    return str(found)


def test_the_page_comes_with_headers_that_allow_its_own_script_and_style_and_nothing_else(ask: Any) -> None:
    answer = ask("GET", "/")
    assert answer.status_code == 200
    assert answer.text == HTML

    def hashed(kind: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(_content(kind).encode()).digest()).decode() + "'"

    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == (
        f"default-src 'none'; script-src {hashed('script')}; style-src {hashed('style')}; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "no-store"
    assert "set-cookie" not in answer.headers


def test_head_gives_the_same_headers_without_the_page(ask: Any) -> None:
    whole, head = ask("GET", "/"), ask("HEAD", "/")
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-security-policy"] == whole.headers["content-security-policy"]


def test_the_page_is_light_and_asks_no_other_host() -> None:
    assert len(HTML.encode()) < 100_000
    assert set(re.findall(r"https?://[^'\" ]+", HTML)) == {"http://www.w3.org/2000/svg"}  # the name of SVG in the icon; nobody goes there
    assert not re.search(r"<(link|script|img|iframe|object|embed)[^>]+(src|href)=\"(?!data:)", HTML)


def test_nothing_on_the_page_needs_what_the_policy_forbids() -> None:
    body = HTML[HTML.index("<body>") : HTML.index("<script>")]
    assert not re.search(r"\s(style|on\w+)=", body)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|cookie", _content("script"))


def _translations() -> dict[str, dict[str, str]]:
    blocks = re.search(r"const TEXT = \{\n  en: \{(.*?)\n  \},\n  zh: \{(.*?)\n  \},\n\};", _content("script"), re.DOTALL)
    assert blocks
    return {language: dict(re.findall(r"(\w+): '([^']*)'", block)) for language, block in zip(("en", "zh"), blocks.groups(), strict=True)}


def test_every_sentence_is_there_in_both_languages() -> None:
    translations = _translations()
    english, chinese = translations["en"], translations["zh"]
    assert len(english) > 60
    assert set(english) == set(chinese)
    for key, sentence in english.items():
        assert sorted(re.findall(r"\{\d\}", sentence)) == sorted(re.findall(r"\{\d\}", chinese[key])), key
    script = _content("script")
    used = set(re.findall(r'data-t="(\w+)"', HTML)) | set(re.findall(r"\bt\('(\w+)'", script))
    assert used <= set(english)
    for key in set(re.findall(r'data-t="(\w+)"', HTML)):
        shown = re.search(rf'data-t="{key}">([^<]*)<', HTML)
        assert shown
        assert shown[1] == english[key], "what is there before the script has run"


# ---------------------------------------------------------------------------------------------------------------------------- the state


def test_the_state_tells_versions_labels_rates_latencies_and_errors(ask: Any, fake: _Fake) -> None:
    for code, version in (("OK", 7), ("OK", 7), ("INVALID_ARGUMENT", 7), ("NOT_FOUND", None)):
        fake.metrics.record("m", "predict", "REST", code, 0.0075, version)
    fake.metrics.record("x", "Predict", "GRPC", "NOT_FOUND", 0.001, None)
    fake.metrics.record("m", "status", "REST", "OK", 0.001, None)  # no inference
    answer = ask("GET", "/page/state")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    state = answer.json()
    assert state["ready"] is True
    assert state["journal"] is None
    assert state["drift"] is None
    assert state["feedback"] is False
    [model] = state["models"]
    assert model["name"] == "m"
    assert model["labels"] == {"stable": "7"}
    good, bad = model["versions"]
    assert (good["version"], good["state"], good["requests"], good["errors"]) == ("7", "AVAILABLE", 3, {"INVALID_ARGUMENT": 1})
    assert good["rate"] > 0
    assert 5 < good["p50_ms"] < good["p95_ms"] <= 10  # the metrics' bucket from 5 to 10 ms
    assert (good["inputs"], good["explain"], good["classes"], good["separator"]) == (["text"], "left_out", [], "")
    assert (bad["version"], bad["state"], bad["message"], bad["requests"], bad["p50_ms"]) == ("6", "END", "it is broken", 0, None)
    assert "inputs" not in bad
    assert (model["unanswered"]["requests"], model["unanswered"]["errors"]) == (1, {"NOT_FOUND": 1})
    assert (state["other"]["requests"], state["other"]["errors"]) == (1, {"NOT_FOUND": 1})
    assert str(fake.folder) not in answer.text


def test_classes_and_their_separator_come_from_the_manifest(ask: Any, fake: _Fake) -> None:
    manifest = {"labels": ["a", "b"], "task": "multi_label", "config": {"data": {"label_separator": "; "}}}
    (fake.folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    version = ask("GET", "/page/state").json()["models"][0]["versions"][0]
    assert (version["classes"], version["separator"]) == (["a", "b"], "; ")


@pytest.mark.parametrize("manifest", ['{"labels": "ab"}', '{"labels": [1]}', '{"task": "multi_label", "config": []}', "[]", "{"])
def test_a_manifest_that_is_none_takes_nothing_away(ask: Any, fake: _Fake, manifest: str) -> None:
    (fake.folder / "manifest.json").write_text(manifest, encoding="utf-8")
    version = ask("GET", "/page/state").json()["models"][0]["versions"][0]
    assert (version["inputs"], version["classes"], version["separator"]) == (["text"], [], "")


def test_other_rooms_are_asked_each_time_and_their_failure_is_not_the_pages(ask: Any, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> dict[str, Any]:
        raise OSError("/secret/path")

    settings = PageSettings(journal=lambda: {"written": 3}, drift=broken, feedback=lambda *_: None)
    answer = ask("GET", "/page/state", settings=settings)
    state = answer.json()
    assert state["journal"] == {"written": 3}
    assert state["drift"] == {"failed": True}
    assert state["feedback"] is True
    assert "secret" not in answer.text
    assert "secret" in caplog.text


def test_names_are_data(ask: Any, fake: _Fake) -> None:
    fake.name = EVIL
    answer = ask("GET", "/page/state")
    assert answer.json()["models"][0]["name"] == EVIL
    assert answer.headers["content-type"] == "application/json"


def _text(*lines: tuple[str, str, str, int]) -> str:
    return "".join(
        f'serving_requests_total{{model="{m}",version="{v}",method="predict",entrypoint="REST",code="{c}"}} {n}\n' for m, v, c, n in lines
    )


def test_counts_are_read_from_the_prometheus_text_with_names_unescaped() -> None:
    metrics = Metrics(gauges=lambda: {"serving_requests_in_flight": 2.0})
    odd = 'a"b\\c\nd}{ ,code="OK'
    metrics.record(odd, "predict", "REST", "OK", 0.002, 1)
    metrics.record(odd, "Classify", "GRPC", "OK", 0.002, 1)
    counts = live.read_counts(metrics.render(), 5.0)
    assert counts.requests == {(odd, "1"): {"OK": 2.0}}
    assert counts.buckets[odd, "1"][0.001] == 0
    assert counts.buckets[odd, "1"][float("inf")] == 2
    assert (counts.in_flight, counts.moment) == (2, 5.0)


def test_the_window_is_about_the_last_minute_while_somebody_looks() -> None:
    moment, count = 0.0, 0
    window = live.Window(lambda: _text(("m", "1", "OK", count)), lambda: moment)

    def look(at: float) -> float:
        nonlocal moment, count
        moment, count = at, int(at)  # one request a second
        before, now = window.look()
        assert now.moment <= at
        return now.moment - before.moment

    assert look(3600.0) == 3600.0, "the first: since the start"
    assert look(3602.0) == 2.0, "then since the first"
    assert look(3602.1) == 2.0, "too soon: the same answer again"
    spans = [look(3602.0 + second) for second in range(2, 300, 2)]
    assert spans[0] == 4.0
    assert max(spans) <= live.WINDOW_S + live.KEPT_EVERY_S
    assert min(spans[40:]) >= live.WINDOW_S - live.KEPT_EVERY_S
    assert look(9000.0) == pytest.approx(9000 - 3900, abs=6), "nobody has looked for long"
    assert look(9002.0) == 2.0


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([0, 0, 0, 0], 0.5, None),
        ([10, 10, 10, 10], 0.5, 0.5),  # half of the first bucket
        ([0, 10, 10, 10], 0.5, 1.5),
        ([5, 10, 10, 10], 0.95, 1.9),
        ([0, 0, 10, 10], 1.0, 4.0),
        ([0, 0, 0, 10], 0.5, 4.0),  # over the last bound: no more is known
    ],
)
def test_quantiles_are_read_from_buckets(counts: list[int], share: float, expected: float | None) -> None:
    after = {bound: float(count) for bound, count in zip((1.0, 2.0, 4.0, float("inf")), counts, strict=True)}
    assert live.quantile({}, after, share) == (None if expected is None else pytest.approx(expected))
    assert live.quantile(after, after, share) is None


@pytest.mark.parametrize(
    ("signatures", "inputs", "explain"),
    [
        ({"serving_default": DEFAULT}, ["text"], "left_out"),
        ({"serving_default": DEFAULT, "explain": EXPLAIN}, ["text"], "gradients"),
        ({"serving_default": _signature({"text_pair": [-1], "text": [-1]}, ["probabilities"])}, ["text", "text_pair"], "left_out"),
        ({"serving_default": DEFAULT, "explain": _signature({"other": [-1]}, ["pieces", "attributions"])}, ["text"], "left_out"),
        ({"serving_default": _signature({"sentence": [-1]}, ["probabilities"])}, ["sentence"], ""),
        ({"serving_default": _signature(TEXT, ["label"])}, ["text"], ""),
        ({"serving_default": _signature({"x": [-1]}, ["y"], wire.DT_FLOAT)}, [], ""),
        ({"serving_default": _signature({"text": [-1, 1]}, ["probabilities"])}, [], ""),
        ({"tokens": DEFAULT}, [], ""),
        ({}, [], ""),
    ],
)
def test_what_a_version_can_be_asked_is_read_from_its_signatures(signatures: Any, inputs: list[str], explain: str) -> None:
    assert live.describe(signatures) == {"inputs": inputs, "explain": explain}


# ---------------------------------------------------------------------------------------------------------------------------- the words


@pytest.mark.parametrize(
    ("pieces", "expected", "other"),
    [
        ("[CLS] un ##like ##ly good [SEP] [PAD]", [("unlikely", 9.0), ("good", 5.0)], 14.0),
        ("##s a", [("##s", 1.0), ("a", 2.0)], 0.0),
        ("[CLS] ##s", [("##s", 2.0)], 1.0),
        ("a [SEP] ##s ##t", [("a", 1.0), ("##st", 7.0)], 2.0),
        ("a ## ##", [("a", 1.0), ("##", 2.0), ("##", 3.0)], 0.0),
        ("[UNK] ##s", [("[UNK]s", 3.0)], 0.0),
        ("", [], 0.0),
    ],
)
def test_pieces_are_joined_to_words_and_nothing_is_lost(pieces: str, expected: list[tuple[str, float]], other: float) -> None:
    values = [float(number) for number in range(1, len(pieces.split()) + 1)]
    found, rest_ = words.joined(pieces.split(), values)
    assert [(word["text"], word["value"]) for word in found] == expected
    assert rest_ == other
    assert sum(word["value"] for word in found) + rest_ == sum(values)


def _explain(ask: Any, text: str = "good bad day", **document: Any) -> httpx.Response:
    return ask("POST", "/page/explain", json={"model": "m", "version": "7", "inputs": {"text": text}, **document})  # type: ignore[no-any-return]


def test_the_signature_explain_is_preferred_and_gives_words_gap_and_sum(ask: Any, fake: _Fake) -> None:
    fake.signatures = {"serving_default": DEFAULT, "explain": EXPLAIN}
    fake.explanation = {
        "pieces": np.array([[b"[CLS]", b"go", b"##od", b"\xff", b"[SEP]"]], object),
        "attributions": np.array([[0.125, 0.25, 0.25, -0.5, 0.125]], np.float32),
        "label": np.array([b"positive"], object),
        "score": np.array([0.75], np.float32),
        "baseline_score": np.array([0.25], np.float32),
        "gap": np.array([0.0625], np.float32),
    }
    assert _explain(ask).json() == {
        "version": "7",
        "way": "gradients",
        "label": "positive",
        "score": 0.75,
        "baseline_score": 0.25,
        "gap": 0.0625,
        "other": 0.25,
        "words": [{"text": "good", "value": 0.5}, {"text": "\ufffd", "value": -0.5}],
    }
    assert fake.asked == [{"text": ["good bad day"]}]


def test_without_it_each_word_is_left_out_once(ask: Any, fake: _Fake) -> None:
    answer = _explain(ask, "good, lovely bad-ish 好天").json()
    assert fake.asked == [
        {
            "text": [
                "good, lovely bad-ish 好天",
                ", lovely bad-ish 好天",
                "good,  bad-ish 好天",
                "good, lovely  好天",
                "good, lovely bad-ish 天",
                "good, lovely bad-ish 好",
            ]
        }
    ]
    assert [word["text"] for word in answer["words"]] == ["good", "lovely", "bad-ish", "好", "天"]
    assert [round(word["value"], 6) for word in answer["words"]] == [0, 0.2, 0, 0, 0]  # "good," is no word of this model
    assert (answer["way"], answer["label"], answer["cut"]) == ("left_out", "positive", False)
    assert answer["score"] == pytest.approx(0.7)


def test_a_long_text_is_looked_at_as_far_as_it_costs_and_that_is_said(ask: Any, fake: _Fake) -> None:
    answer = _explain(ask, "word " * 500).json()
    assert len(answer["words"]) == words.MAX_LEFT_OUT
    assert answer["cut"] is True
    assert len(fake.asked[0]["text"]) == words.MAX_LEFT_OUT + 1


def test_a_text_without_words_has_none_that_mattered(ask: Any) -> None:
    assert _explain(ask, "?!").json()["words"] == []


def test_explaining_is_counted_but_its_time_is_not_taken_for_a_predictions(ask: Any, fake: _Fake) -> None:
    _explain(ask)
    _explain(ask, model="x")
    text = fake.metrics.render()
    assert 'serving_requests_total{model="m",version="",method="explain",entrypoint="REST",code="OK"} 1' in text
    assert 'serving_requests_total{model="x",version="",method="explain",entrypoint="REST",code="NOT_FOUND"} 1' in text
    assert "serving_request_seconds_count" not in text
    assert all(deadline is not None for deadline in fake.deadlines)


def test_numbers_that_are_none_are_an_error_and_not_json(ask: Any, fake: _Fake) -> None:
    fake.signatures = {"serving_default": DEFAULT, "explain": _signature(TEXT, ["pieces", "attributions"])}
    fake.explanation = {"pieces": np.array([[b"a"]], object), "attributions": np.array([[np.nan]], np.float32)}
    answer = _explain(ask)
    assert answer.status_code == 500
    assert answer.json() == {"error": "The model answers with numbers that are not finite: which words mattered cannot be said."}


@pytest.mark.parametrize(
    ("document", "http", "message"),
    [
        ({"model": ""}, 400, "model: expected a model's name; received ''."),
        ({"model": "x"}, 404, "Servable not found for request: Latest(x)"),
        ({"version": 7}, 400, "version: expected digits in a text; received 7. Leave it out for the newest."),
        ({"version": "７"}, 400, "version: expected digits in a text; received '７'. Leave it out for the newest."),
        ({"version": "9" * 20}, 400, "version: expected digits in a text; received '99999999999999999999'. Leave it out for the newest."),
        ({"inputs": {"text": 1}}, 400, 'inputs: expected one text per input, such as {"text": "..."}; received {\'text\': 1}.'),
        ({"inputs": {}}, 400, "inputs []: this model takes ['text']. Name each once."),
        ({"inputs": {"text": "a", "b": "c"}}, 400, "inputs ['b', 'text']: this model takes ['text']. Name each once."),
        ({"more": 1}, 400, "unknown field 'more': expected model, version, inputs."),
    ],
)
def test_what_cannot_be_explained_is_refused_in_words(ask: Any, document: dict[str, Any], http: int, message: str) -> None:
    answer = _explain(ask, **document)
    assert (answer.status_code, answer.json()) == (http, {"error": message})


def test_only_a_few_explanations_run_at_once(app: Any, fake: _Fake) -> None:
    release, started = threading.Event(), threading.Semaphore(0)

    def held() -> None:
        started.release()
        assert release.wait(30)

    fake.on_run = held

    async def run() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app()), base_url="http://127.0.0.1") as client:

            async def one() -> int:
                return (await client.post("/page/explain", json={"model": "m", "inputs": {"text": "a"}})).status_code

            running = [asyncio.create_task(one()) for _ in range(page.MAX_EXPLAINING)]
            for _ in running:
                assert await asyncio.to_thread(started.acquire, timeout=30)
            refused = await one()
            release.set()
            return [refused, *await asyncio.gather(*running), await one()]

    assert asyncio.run(run()) == [429, 200, 200, 200]


# ------------------------------------------------------------------------------------------------------------------------- who may ask

SAME = {"origin": "http://127.0.0.1:8501"}


@pytest.mark.parametrize(
    ("headers", "http"),
    [
        ({}, 200),  # a program
        (SAME, 200),
        ({"origin": "http://127.0.0.1:8501", "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "https://proxy.example", "sec-fetch-site": "same-origin"}, 200),  # a proxy that changes Host; browsers do not lie here
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:8502"}, 403),  # another server on this machine
        ({"origin": "null"}, 403),
        ({"origin": "file://127.0.0.1:8501"}, 403),
        ({"origin": ""}, 403),
        ({**SAME, "sec-fetch-site": "same-site"}, 403),
        ({**SAME, "sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "none"}, 403),
        ({"host": "localhost:9000"}, 200),  # a tunnel
        ({"host": "LOCALHOST."}, 200),
        ({"host": "[::1]:8501"}, 200),
        ({"host": "127.8.8.8"}, 200),
        ({"host": "evil.example:8501", "origin": "http://evil.example:8501", "sec-fetch-site": "same-origin"}, 403),  # its name points here
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "10.0.0.7"}, 403),
        ({"host": ""}, 403),
        ({"host": "[::1"}, 403),
    ],
)
def test_other_sites_cannot_correct_through_a_browser(ask: Any, headers: dict[str, str], http: int) -> None:
    given: list[Any] = []
    settings = PageSettings(feedback=lambda *correction: given.append(correction))
    answer = ask("POST", "/feedback", settings=settings, json={"id": "a:0", "label": "good"}, headers=headers)
    assert answer.status_code == http
    assert len(given) == (http == 200)
    if http == 403:
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("HEAD", "/"), ("GET", "/page/state"), ("POST", "/page/explain")])
def test_under_a_foreign_name_nothing_is_shown(ask: Any, method: str, path: str) -> None:
    answer = ask(method, path, headers={"host": "evil.example"}, json={})
    assert answer.status_code == 403
    if method != "HEAD":
        assert answer.json()["error"] == (
            "Host 'evil.example' is not this server, which listens on 127.0.0.1 for this machine alone. Open it as http://127.0.0.1, or start the "
            "server with this name among its own."
        )


@pytest.mark.parametrize(
    ("listening", "hosts", "host", "refused"),
    [
        ("0.0.0.0", (), "models.example", False),  # which names lead here is not known
        ("10.0.0.7", (), "10.0.0.7:8501", False),
        ("localhost", (), "evil.example", True),
        ("::1", (), "[::1]:8501", False),
        ("127.0.0.1", ("Models.example",), "models.EXAMPLE:80", False),
        ("127.0.0.1", ("models.example",), "other.example", True),
    ],
)
def test_the_name_is_looked_at_while_the_server_listens_on_loopback(listening: str, hosts: Any, host: str, refused: bool) -> None:
    request = rest.Request("GET", "/", "", {"host": host}, b"")
    assert bool(page.refusal(request, listening, hosts)) is refused


@pytest.mark.parametrize(("origin", "host", "refused"), [
    ("http://models.example", "models.example:80", False), ("https://models.example", "models.example:443", False),
    ("http://MODELS.example:80", "models.example", False), ("http://models.example", "models.example:8080", True),
])  # fmt: skip
def test_default_ports_are_the_same_origin(origin: str, host: str, refused: bool) -> None:
    request = rest.Request("POST", "/feedback", "", {"host": host, "origin": origin}, b"")
    assert bool(page.refusal(request, "0.0.0.0")) is refused


@pytest.mark.parametrize("path", ["/feedback", "/page/explain"])
@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; x=application/json", "text/json"]
)
def test_what_a_form_of_another_site_could_send_is_refused(ask: Any, path: str, kind: str) -> None:
    body = json.dumps({"id": "a:0", "label": "good"})
    answer = ask(
        "POST", path, settings=PageSettings(feedback=lambda *_: None), content=body, headers={"content-type": kind} if kind else {}
    )
    assert answer.status_code == 415
    message = f"Content-Type {kind.partition(';')[0]!r}: expected application/json. Send the header Content-Type: application/json."
    assert answer.json() == {"error": message}


def test_sizes_are_bounded_and_compressed_bodies_refused(ask: Any) -> None:
    settings = PageSettings(feedback=lambda *_: None)
    big = json.dumps({"id": "a:0", "label": "good", "comment": "x" * page.MAX_FEEDBACK_BYTES})
    json_type = {"content-type": "application/json"}
    assert ask("POST", "/feedback", settings=settings, content=big, headers=json_type).status_code == 413
    assert _explain(ask, "x" * page.MAX_EXPLAIN_BYTES).status_code == 413
    assert ask("POST", "/feedback", settings=settings, content=b"{}", headers={**json_type, "content-encoding": "gzip"}).status_code == 415


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/feedback"), ("POST", "/"), ("PUT", "/"), ("POST", "/page/state"), ("OPTIONS", "/feedback")]
)
def test_other_methods_are_not_there(ask: Any, method: str, path: str) -> None:
    answer = ask(method, path, settings=PageSettings(feedback=lambda *_: None))
    assert answer.status_code == 404
    assert "access-control-allow-origin" not in answer.headers


# ----------------------------------------------------------------------------------------------------------------------------- feedback


def test_a_correction_is_handed_on_as_it_is(ask: Any) -> None:
    given: list[Any] = []
    settings = PageSettings(feedback=lambda *correction: given.append(correction))
    answer = ask("POST", "/feedback", settings=settings, json={"id": "3f-2_a.b:12", "label": EVIL, "comment": f" {EVIL} "}, headers=SAME)
    assert answer.json() == {"recorded": {"id": "3f-2_a.b:12", "label": EVIL}}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    ask("POST", "/feedback", settings=settings, json={"id": "a:0", "label": "good"})
    assert given == [("3f-2_a.b:12", EVIL, EVIL, "page"), ("a:0", "good", "", "http")]


_ID = "expected an answer's X-Request-Id with its row, such as '3f2a:0'"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"id": "a", "label": "x"}, f"id: {_ID}; received 'a'. Send the id of an answer."),
        ({"label": "x"}, f"id: {_ID}; received nothing. Send the id of an answer."),
        ({"id": "a\n:0", "label": "x"}, f"id: {_ID}; received 'a\\n:0'. Send the id of an answer."),
        ({"id": "a" * 65 + ":0", "label": "x"}, f"id: {_ID}; received {repr('a' * 65)[:60]}. Send the id of an answer."),
        ({"id": "a:0"}, "label: expected a text of 1 to 200 characters; received nothing."),
        ({"id": "a:0", "label": "  "}, "label: expected a text of 1 to 200 characters; received '  ', 2 characters."),
        ({"id": "a:0", "label": ["x"]}, "label: expected a text of 1 to 200 characters; received ['x']."),
        (
            {"id": "a:0", "label": "x" * 201},
            f"label: expected a text of 1 to 200 characters; received {repr('x' * 99)[:60]}, 201 characters.",
        ),
        ({"id": "a:0", "label": "x", "comment": None}, "comment: expected a text of 0 to 2000 characters; received nothing."),
        ({"id": "a:0", "label": "x", "by": "me"}, "unknown field 'by': expected id, label, comment."),
    ],
)
def test_a_correction_that_is_none_is_refused_in_words(ask: Any, document: dict[str, Any], message: str) -> None:
    answer = ask("POST", "/feedback", settings=PageSettings(feedback=lambda *_: None), json=document)
    assert answer.status_code == 400
    assert answer.json() == {"error": message}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"[" * 10_000, b'{"id": "a:0", "label": "\xff"}', b'{"id": "a:0", "label": "\\ud800"}']
)
def test_a_body_that_is_no_object_is_refused(ask: Any, body: bytes) -> None:
    settings = PageSettings(feedback=lambda *_: None)
    answer = ask("POST", "/feedback", settings=settings, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("JSON ")


@pytest.mark.parametrize(("error", "http"), [(RequestError("no such record"), 400), (ConfigError("the journal cannot be written"), 503)])
def test_a_correction_that_could_not_be_kept_is_said(ask: Any, error: Exception, http: int) -> None:
    def refusing(*_: str) -> None:
        raise error

    answer = ask("POST", "/feedback", settings=PageSettings(feedback=refusing), json={"id": "a:0", "label": "x"})
    assert (answer.status_code, answer.json()) == (http, {"error": str(error)})


def test_without_a_journal_there_is_nothing_to_correct(ask: Any) -> None:
    answer = ask("POST", "/feedback", json={"id": "a:0", "label": "x"})
    assert answer.status_code == 400
    assert answer.json() == {"error": "This server keeps no journal, so there is nothing to correct. Start it with --journal."}


def test_corrections_reach_the_journal_even_before_its_flush_and_refusals_name_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    with Journal(folder, source="server", flush_s=0.3) as journal:
        store = page.feedback_into(journal)
        journal.append({"kind": "request", "id": "r1:0", "model": "m", "label": "bad"})
        store("r1:0", "good", "it is good", "page")
        with pytest.raises(RequestError, match=r"^id 'r2:0': no such record in the journal\. ") as refused:
            store("r2:0", "good", "", "page")
        assert str(tmp_path) not in str(refused.value)
    kept = [record for record in read(folder) if record["kind"] == "feedback"]
    assert [(one["id"], one["label"], one["comment"], one["by"]) for one in kept] == [("r1:0", "good", "it is good", "page")]


# ---------------------------------------------------------------------------------------------------------------- the monitor's verdict


def test_the_verdict_is_read_from_the_monitors_file_whenever_it_changes(tmp_path: Path) -> None:
    report = tmp_path / "drift.json"
    drift = page.drift_from(report)
    assert drift() is None
    for level in ("ok", "alarm"):
        reasons = [f"reason {number}" for number in range(20)]
        report.write_text(json.dumps({"model": "m", "version": 7, "level": level, "reasons": reasons, "checks": []}), encoding="utf-8")
        found = drift()
        assert found is not None
        assert (found["verdict"], found["model"], found["version"], found["reasons"]) == (level, "m", "7", reasons[: page.MAX_REASONS])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["time"])


def test_a_file_that_is_no_verdict_is_said_on_the_page(ask: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = tmp_path / "drift.json"
    report.write_text("{", encoding="utf-8")
    assert ask("GET", "/page/state", settings=PageSettings(drift=page.drift_from(report))).json()["drift"] == {"failed": True}
    assert "the page could not ask" in caplog.text


# --------------------------------------------------------------------------------------------------------------------------- on and off


@pytest.mark.parametrize(
    ("flag", "client_certificates", "expected"),
    [("auto", False, True), ("auto", True, False), ("on", True, True), ("on", False, True), ("off", False, False), ("off", True, False)],
)
def test_the_page_is_on_unless_clients_need_certificates(flag: str, client_certificates: bool, expected: bool) -> None:
    assert page.is_on(flag, client_certificates=client_certificates) is expected


def test_without_the_page_feedback_stays_and_without_both_the_paths_are_as_in_the_real_server(ask: Any) -> None:
    only_feedback = PageSettings(page=False, feedback=lambda *_: None)
    assert ask("GET", "/", settings=only_feedback).status_code == 404
    assert ask("GET", "/page/state", settings=only_feedback).status_code == 404
    assert ask("POST", "/feedback", settings=only_feedback, json={"id": "a:0", "label": "x"}).status_code == 200
    nothing = ask("POST", "/feedback", settings=PageSettings(page=False), json={"id": "a:0", "label": "x"})
    assert nothing.status_code == 404
    assert "<H1>Not Found</H1>" in nothing.text


def test_a_server_that_stops_says_so(app: Any, ask: Any, pool: ThreadPoolExecutor) -> None:
    application = app()
    pool.shutdown()
    answer = ask("GET", "/page/state", application=application)
    assert (answer.status_code, answer.json()) == (503, {"error": "Server is shutting down. Try again later."})
