"""Client and embedded server journal what happened, tell the same story, and never wait for the disk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf

from serving import AsyncClient, Client, ConfigError, ModelNotFound, RequestError, Unavailable, wire
from serving.journal import (
    REQUEST_ID,
    Journal,
    is_request_id,
    read,
    read_key,
    text_key,
)
from serving.server import app, flags
from tests.contract.conftest import free_port, until
from tests.contract.saved_models import CLASSIFY, export, signature, v1
from tests.journals import Disk, ids
from tests.scripted_server import Refusal, ScriptedServer, connecting, running, sentiment, unused_port


@pytest.fixture
def disk() -> Iterator[Disk]:
    made = Disk()
    yield made
    made.full = made.half = False
    made.goes.set()


# ---- the client


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    yield from running()


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    yield from connecting(request.param)


def test_the_client_journals_what_the_model_answered_under_the_id_that_it_sent(
    tmp_path: Path, scripted: ScriptedServer, connect: Any
) -> None:
    scripted.script("Predict", sentiment(version=3))
    with Journal(tmp_path, text="redacted") as journal:
        client = connect(scripted.target, on_response=journal.on_response, version_label="stable")
        found = client.predict(["good a@b.example", "bad"])
        named = client.predict("good", request_id="order-66")
    sent = [one.metadata[REQUEST_ID] for one in scripted.asked]
    assert sent == [found.request_id, "order-66"]
    assert [one.id for one in found] == [f"{found.request_id}:0", f"{found.request_id}:1"]
    assert named[0].id == "order-66:0"
    records = list(read(tmp_path))
    assert [record["id"] for record in records] == [*found.ids, "order-66:0"]
    first = records[0]
    assert (first["label"], first["score"], first["text"], first["length"]) == ("positive", 0.75, "good [EMAIL]", 16)
    assert (first["model"], first["version"], first["version_label"], first["source"], first["code"]) == (
        "sentiment",
        3,
        "stable",
        "client",
        "OK",
    )
    assert 0 < first["ms"] < 30_000


def test_every_part_of_a_large_call_has_an_id_of_its_own(tmp_path: Path, scripted: ScriptedServer, connect: Any) -> None:
    scripted.script("Predict", sentiment(version=3))
    with Journal(tmp_path) as journal:
        client = connect(scripted.target, on_response=journal.on_response, rows_per_request=2, version_label="stable")
        found = client.predict(["good", "bad", "good", "bad", "good"], request_id="x" * 64)
    sent = [one.metadata[REQUEST_ID] for one in scripted.asked]
    assert sent == ["x" * 64, "x" * 62 + ".1", "x" * 62 + ".2"]
    assert list(found.ids) == [f"{sent[0]}:0", f"{sent[0]}:1", f"{sent[1]}:0", f"{sent[1]}:1", f"{sent[2]}:0"]
    records = list(read(tmp_path))
    assert [record["id"] for record in records] == list(found.ids)
    assert {record["version_label"] for record in records} == {"stable"}


def test_requests_that_failed_are_journalled_with_their_code(tmp_path: Path, scripted: ScriptedServer, connect: Any) -> None:
    scripted.script("Predict", Refusal("UNAVAILABLE", "busy"), Refusal("NOT_FOUND", "Servable not found for request: Latest(sentiment)"))
    scripted.script("GetModelStatus", Refusal("NOT_FOUND", "nothing"))
    with Journal(tmp_path) as journal:
        client = connect(scripted.target, on_response=journal.on_response)
        with pytest.raises(ModelNotFound):
            client.predict(["good", "bad"])
        nobody = connect(f"127.0.0.1:{unused_port()}", on_response=journal.on_response, max_attempts=1)
        with pytest.raises(Unavailable):
            nobody.classify([{"text": "good"}], request_id="unheard")
    records = list(read(tmp_path))
    assert [(record["code"], record["label"], record["version"], record["length"]) for record in records] == [
        ("NOT_FOUND", None, None, 4), ("NOT_FOUND", None, None, 3), ("UNAVAILABLE", None, None, 4)
    ]  # fmt: skip
    assert records[2]["id"] == "unheard:0"
    assert len({record["id"] for record in records}) == 3


def test_a_sample_of_the_requests_is_kept_and_status_is_no_request(tmp_path: Path, scripted: ScriptedServer) -> None:
    scripted.script("Predict", sentiment())
    with Journal(tmp_path, sampling=0.3) as journal, Client(scripted.target, model="sentiment", on_response=journal.on_response) as client:
        sent = [client.predict("good").ids[0] for _ in range(60)]
    kept = ids(tmp_path)
    assert kept == [one for one in sent if journal.samples(one.partition(":")[0])]
    assert 3 < len(kept) < 40


@pytest.mark.parametrize("request_id", ["a b", "x" * 65, "a\n"])
def test_an_id_that_cannot_be_sent_is_refused_at_the_door(scripted: ScriptedServer, connect: Any, request_id: str) -> None:
    with pytest.raises(RequestError, match="request_id"):
        connect(scripted.target).predict("good", request_id=request_id)
    assert not scripted.asked


def test_a_journal_whose_disk_hangs_does_not_delay_a_client(tmp_path: Path, scripted: ScriptedServer, disk: Disk) -> None:
    scripted.script("Predict", sentiment())
    disk.goes.clear()
    with (
        Journal(tmp_path, flush_s=0.01, max_queued=5, open_file=disk.open) as journal,
        Client(scripted.target, model="sentiment", on_response=journal.on_response) as client,
    ):
        client.predict("good")
        assert disk.entered.acquire(timeout=20)
        for _ in range(20):
            assert client.predict("good", timeout_s=20.0).labels == ["positive"]
        assert journal.counts.dropped == 15
        disk.goes.set()


def test_a_cancelled_call_of_an_async_client_leaves_the_journal_in_peace(tmp_path: Path, scripted: ScriptedServer) -> None:
    release = threading.Event()
    scripted.script("Predict", lambda request: (release.wait(30), sentiment()(request))[1])

    async def ask(journal: Journal) -> None:
        async with AsyncClient(scripted.target, model="sentiment", on_response=journal.on_response) as client:
            task = asyncio.create_task(client.predict("good"))
            while not scripted.asked:
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            release.set()
            await client.predict("good")

    with Journal(tmp_path) as journal:
        asyncio.run(ask(journal))
    assert len(ids(tmp_path)) == 1


# ---- the embedded server


def _classifier(path: Path) -> Path:
    """Texts with `good` in them are positive; as an exported model, but for the weights."""

    def graph() -> dict[str, Any]:
        def answer(text: Any) -> dict[str, Any]:
            good = tf.strings.regex_full_match(text, ".*good.*")
            probabilities = tf.where(good[:, None], [[0.25, 0.75]], [[0.875, 0.125]])
            classes = tf.tile(tf.constant([["negative", "positive"]]), [tf.shape(text)[0], 1])
            return {
                "label": tf.where(good, "positive", "negative"), "score": tf.reduce_max(probabilities, 1), "probabilities": probabilities, "classes": classes,
                "tokens": tf.strings.length(text), "unknown": tf.zeros_like(probabilities[:, 0]),
            }  # fmt: skip

        text = v1.placeholder(tf.string, [None], "text")
        examples = v1.placeholder(tf.string, [None], "examples")
        parsed = answer(tf.io.parse_example(examples, {"text": tf.io.FixedLenFeature([], tf.string)})["text"])
        return {
            "serving_default": signature({"text": text}, answer(text)),
            "classify": signature({"inputs": examples}, {"classes": parsed["classes"], "scores": parsed["probabilities"]}, CLASSIFY),
        }

    return export(path, graph)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _classifier(tmp_path_factory.mktemp("models") / "bank" / "5").parent


@pytest.fixture
def serve(model: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    monitoring = tmp_path / "monitoring"
    monitoring.write_text('prometheus_config { enable: true path: "/metrics" }')
    with contextlib.ExitStack() as stack:

        def start(*more: str) -> Any:
            arguments = [
                f"--model_base_path={model}", "--model_name=bank", f"--port={free_port()}", f"--rest_api_port={free_port()}", f"--monitoring_config_file={monitoring}",
            ]  # fmt: skip
            return stack.enter_context(app.running(flags.parse([*arguments, *more])[0]))

        yield start


def _post(port: int, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str]]:
    data = json.dumps(body).encode()
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {name.replace("_", "-"): value for name, value in headers.items()}
    )
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {name.lower(): value for name, value in error.headers.items()}


def _predict(port: int, text: bytes, **more: Any) -> tuple[grpc.StatusCode, dict[str, str]]:
    """The status and the trailing metadata of a call of a bare stub."""
    path, request_class, response_class = wire.METHODS["Predict"]
    message = request_class(
        model_spec=wire.ModelSpec(name=more.pop("model", "bank")), inputs={"text": wire.to_tensor(np.array([text], object))}
    )
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = channel.unary_unary(
            path, request_serializer=request_class.SerializeToString, response_deserializer=response_class.FromString
        )
        try:
            call = method.with_call(message, timeout=20, **more)[1]
        except grpc.RpcError as error:
            call = error  # type: ignore[assignment]
        return call.code(), dict(call.trailing_metadata())


def test_the_server_journals_both_its_edges_alike(tmp_path: Path, serve: Callable[..., Any]) -> None:
    folder = tmp_path / "journal"
    server = serve(f"--journal={folder}", "--journal_text=redacted", "--drain_seconds=5")
    code, trailing = _predict(server.grpc, b"good a@b.example", metadata=[(REQUEST_ID, "mine-1")])
    assert (code, trailing[REQUEST_ID]) == (grpc.StatusCode.OK, "mine-1")
    code, trailing = _predict(server.grpc, b"bad")
    made = trailing[REQUEST_ID]
    assert is_request_id(made)
    code, trailing = _predict(server.grpc, b"bad", model="nobody", metadata=[(REQUEST_ID, "mine-2")])
    assert (code, trailing[REQUEST_ID]) == (grpc.StatusCode.NOT_FOUND, "mine-2")
    status, headers = _post(server.rest, "/v1/models/bank:predict", {"instances": ["good a@b.example", "bad"]}, X_Request_Id="mine-3")
    assert (status, headers[REQUEST_ID]) == (200, "mine-3")
    status, headers = _post(
        server.rest, "/v1/models/bank/versions/5:classify", {"signature_name": "classify", "examples": [{"text": "good"}]}
    )
    assert status == 200
    classified = headers[REQUEST_ID]
    status, headers = _post(server.rest, "/v1/models/bank/labels/none:predict", {"instances": ["good"]}, X_Request_Id="no good\x01id")
    assert status == 400
    refused = headers[REQUEST_ID]
    assert is_request_id(refused)
    _post(server.rest, "/v1/models/bank:predict", {"instances": [1.5]}, X_Request_Id="mine-4")
    until(lambda: server.server._journal.counts.written == 8, "all are written")
    records = {record["id"]: record for record in read(folder)}
    assert list(records) == ["mine-1:0", f"{made}:0", "mine-2:0", "mine-3:0", "mine-3:1", f"{classified}:0", f"{refused}:0", "mine-4:0"]
    kept = ("label", "score", "probabilities", "tokens", "unknown", "length", "text_key", "text", "code", "model", "version", "source")
    same = [{name: records[one][name] for name in kept} for one in ("mine-1:0", "mine-3:0")]
    assert same[0] == same[1]
    assert same[0] == {
        "label": "positive", "score": 0.75, "probabilities": {"negative": 0.25, "positive": 0.75}, "tokens": 16, "unknown": 0.0, "length": 16,
        "text_key": text_key(read_key(folder / "key"), "good a@b.example"), "text": "good [EMAIL]", "code": "OK", "model": "bank", "version": 5, "source": "server",
    }  # fmt: skip
    classification = records[f"{classified}:0"]
    assert (classification["label"], classification["score"], classification["length"], classification["tokens"]) == (
        "positive",
        0.75,
        4,
        None,
    )
    failed = {one: records[f"{one}:0"] for one in ("mine-2", refused, "mine-4")}
    assert [(one["model"], one["code"], one["version"], one["label"]) for one in failed.values()] == [
        ("nobody", "NOT_FOUND", None, None), ("bank", "INVALID_ARGUMENT", None, None), ("bank", "INVALID_ARGUMENT", 5, None)
    ]  # fmt: skip
    assert failed[refused]["version_label"] == "none"
    with urllib.request.urlopen(f"http://127.0.0.1:{server.rest}/metrics", timeout=20) as page:
        text = page.read().decode()
    assert "serving_journal_written_records 8\n" in text
    assert "serving_journal_dropped_records 0\n" in text
    assert "serving_journal_queued_records 0\n" in text


def test_a_server_without_a_journal_gives_back_an_id_and_makes_none(serve: Callable[..., Any]) -> None:
    server = serve()
    assert _predict(server.grpc, b"good", metadata=[(REQUEST_ID, "mine")])[1][REQUEST_ID] == "mine"
    assert REQUEST_ID not in _predict(server.grpc, b"good")[1]
    assert REQUEST_ID not in _predict(server.grpc, b"good", metadata=[(REQUEST_ID, "not one")])[1]
    assert _post(server.rest, "/v1/models/bank:predict", {"instances": ["good"]}, X_Request_Id="mine")[1][REQUEST_ID] == "mine"
    assert REQUEST_ID not in _post(server.rest, "/v1/models/bank:predict", {"instances": ["good"]})[1]


def test_client_and_server_keep_the_same_sample_under_the_same_ids(tmp_path: Path, serve: Callable[..., Any]) -> None:
    server = serve(f"--journal={tmp_path / 'server'}", "--journal_sampling=0.4", f"--journal_key_file={tmp_path / 'key'}")
    with (
        Journal(tmp_path / "client", sampling=0.4, key_file=tmp_path / "key") as journal,
        Client(f"127.0.0.1:{server.grpc}", model="bank", on_response=journal.on_response, rows_per_request=2) as client,
    ):
        for number in range(30):
            client.predict([f"good {number}", "bad", "good"])
    until(lambda: server.server._journal.counts.written == journal.counts.written, "the server has written as much")
    ours, theirs = (
        {record["id"]: (record["text_key"], record["label"]) for record in read(tmp_path / name)} for name in ("client", "server")
    )
    assert ours == theirs
    assert 10 < len(ours) < 80


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--journal_sampling=0.5"], "--journal_sampling without a journal: add --journal=FOLDER."),
        (["--journal=x", "--journal_text=raw"], "--journal_text=raw: expected none or redacted."),
        (["--journal=x", "--journal_names=en"], "--journal_names=en without texts: add --journal_text=redacted."),
        (["--journal=x", "--journal_sampling=2"], "--journal_sampling=2.0: expected 0 to 1."),
        (["--journal=x", "--journal_retention_days=0.5"], "--journal_retention_days=0.5: expected 1 or more, or 0 for ever."),
    ],
)
def test_flags_that_make_no_journal_are_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        flags.parse(["--model_base_path=/m", *arguments])
    assert str(caught.value) == words


def test_the_real_server_is_never_given_the_flags_of_the_journal(tmp_path: Path) -> None:
    from serving.server.installed import command

    given, _ = flags.parse(
        [
            f"--models_root={tmp_path}",
            "--journal=j",
            "--journal_text=redacted",
            "--journal_sampling=0.5",
            "--journal_key_file=k",
            "--journal_retention_days=2",
            "--journal_names=x",
        ]
    )
    assert not [part for part in command(given, "tensorflow_model_server", tmp_path / "models.config") if "journal" in part]
