"""Asks TensorFlow Serving, or `serving.server`, over gRPC, without TensorFlow. Frees a program from protobuf, tensors, retries and versions.

    with Client("localhost:8500", model="sentiment") as client:
        for prediction in client.predict(["the app lost my payment", "thank you"]):
            print(prediction.label, prediction.score)

`AsyncClient` is the same for asyncio: the same arguments, every method a coroutine, `async with`.

In: texts, arrays, dicts of features. Out: numpy arrays in small dataclasses (`serving.answers`). Refuses settings that cannot work and tokens over
an unencrypted connection (`ConfigError`), and requests that cannot be sent (`RequestError`). Does not load models, batch across calls, or cache.

**Time.** Every call has a deadline, `timeout_s`, over all its attempts and parts. Asked again, with jitter, is only what is safe: UNAVAILABLE, and
RESOURCE_EXHAUSTED when `retry_overloaded` says so; never DEADLINE_EXCEEDED, because TensorFlow Serving goes on computing.

**Threads.** A client is meant to be shared by all threads; the connection is opened by the first call. **Processes.** Make the client after forking:
gRPC's threads do not survive a fork, so a client that was used before it refuses to work in the child instead of hanging there.
`AsyncClient` belongs to the event loop of its first call.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from serving.answers import (
    Class,
    Classifications,
    ModelMetadata,
    Prediction,
    Predictions,
    Regressions,
    Response,
    Signature,
    TensorResult,
    TensorSpec,
    VersionStatus,
)
from serving.calls import Call, Sleep
from serving.channel import Connection, Tls
from serving.conversation import Inference, Steps, T
from serving.journal.records import REQUEST_ID

__all__ = [
    "AsyncClient",
    "Class",
    "Classifications",
    "Client",
    "ModelMetadata",
    "Prediction",
    "Predictions",
    "Regressions",
    "Response",
    "Signature",
    "TensorResult",
    "TensorSpec",
    "Tls",
    "VersionStatus",
]

WAIT_S = 60.0
NO_CONNECTION = (grpc.ChannelConnectivity.CONNECTING, grpc.ChannelConnectivity.TRANSIENT_FAILURE)


def _metadata_of(client: Connection, call: Call) -> tuple[tuple[str, str | bytes], ...]:
    return (*client._metadata, (REQUEST_ID, call.request_id)) if isinstance(call, Inference) else client._metadata


class Client(Connection):
    """A synchronous client, to be shared by all threads of a process; see the module for time, threads and processes.

    Closing it (`close`, or `with`) ends the connection, and with it what other threads are still asking.

    Args:
        target: `HOST:PORT`, or one of the forms in `serving.channel.parse_target`.
        model: name of the model; each call may name another.
        version: of the model; None is the newest that is loaded.
        version_label: instead of a version, such as `stable`.
        timeout_s: for a whole call, over all its attempts and parts; each call may give another.
        max_attempts: of one request, the first one included.
        retry_overloaded: ask again when the server says RESOURCE_EXHAUSTED.
        tls: None is plaintext.
        metadata: sent with every request, keys in lower case: `[("authorization", "Bearer ...")]`. Values are never logged or shown.
        max_message_bytes: of a request and of a response.
        compression: of requests: `gzip`, `deflate`, or none.
        rows_per_request: more rows are sent in several requests and joined in order, all answered by one version.
        on_response: gets every Predict, Classify and Regress that is over, answered or failed, as a `Response`, in the calling thread, so it must be
            quick; such as `serving.journal.Journal(...).on_response`. What it raises is logged and goes no further.
        insecure_metadata: send credentials in `metadata` without TLS to another machine all the same.

    Raises:
        ConfigError: a setting that cannot work; a PEM file that cannot be read; credentials in `metadata` without TLS to another machine.
    """

    def predict(
        self,
        texts: Sequence[str] | str,
        pairs: Sequence[str] | str | None = None,
        *,
        model: str = "",
        version: int | None = None,
        version_label: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> Predictions:
        """Labels and probabilities of texts, by a model that tfpipeline exported.

        More than `rows_per_request` texts, or more than fit into a message, go in several requests, one after the other. The version that answers
        the first one is named in all others, so one version answers all; if it is unloaded half-way, all are asked once more of the one that
        is there then.

        Args:
            texts: one text is a list of one. For none the server is asked with an empty batch, and `classes` is empty.
            pairs: the second text of each, for models of text pairs.
            model: instead of the client's; then its version and label do not count.
            version: instead of the client's.
            version_label: instead of the client's.
            timeout_s: instead of the client's, for the whole call.
            request_id: by which journals and feedback know this call: 1 to 64 letters, digits, `_`, `.` and `-`. "" makes one.

        Raises:
            RequestError: a text that is none, texts and pairs that do not match, or a model with other outputs.
            ModelNotFound: no such model, version or label; the message lists the versions that are there.
            Unavailable: nobody answers there.
            Overloaded: the server is full.
            DeadlineExceeded: no answer in time.
            AccessDenied: a credential is missing or wrong.
            ModelFailed: the model or the server broke.
        """
        ask = self._conversation
        return self._run(ask.predict(texts, pairs, ask.choose(model, version, version_label), ask.deadline(timeout_s), request_id))

    def predict_tensors(
        self,
        inputs: Mapping[str, Any],
        *,
        signature: str = "serving_default",
        outputs: Sequence[str] = (),
        model: str = "",
        version: int | None = None,
        version_label: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> TensorResult:
        """Any signature of any model.

        More than `rows_per_request` rows are split, as in `predict`, only if the signature says (by an axis of any size in front of every input and
        output) that its rows are a batch; that is asked of the server first. Otherwise they go in one request.

        Args:
            inputs: by name. Arrays go with their own dtype, and the server converts none; Python's numbers go as float32 and int32 (int64 if they
                do not fit), text as UTF-8; a `TensorProto` goes as it is.
            signature: which one.
            outputs: which ones; none is all.
            model: as in `predict`.
            version: as in `predict`.
            version_label: as in `predict`.
            timeout_s: as in `predict`.
            request_id: as in `predict`.

        Raises:
            RequestError: inputs that TensorFlow Serving cannot carry, or that the signature does not take.
            ServingError: as in `predict`.
        """
        ask = self._conversation
        which, deadline = ask.choose(model, version, version_label), ask.deadline(timeout_s)
        return self._run(ask.predict_tensors(inputs, signature, outputs, which, deadline, request_id))

    def classify(
        self,
        examples: Sequence[Mapping[str, Any]],
        *,
        signature: str = "",
        context: Mapping[str, Any] | None = None,
        model: str = "",
        version: int | None = None,
        version_label: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> Classifications:
        """Classes of examples by TensorFlow Serving's Classify, split and joined as in `predict`. No examples: nobody is asked.

        Args:
            examples: features by name: text, bytes, numbers, booleans, or lists of one of these. The kind must be the one that the model
                declares: `2` is an integer, `2.0` a float.
            signature: none is `serving_default`; of tfpipeline's models it is `classify`.
            context: features that all examples share.
            model: as in `predict`.
            version: as in `predict`.
            version_label: as in `predict`.
            timeout_s: as in `predict`.
            request_id: as in `predict`.

        Raises:
            RequestError: a feature that cannot be sent, or that the signature does not take.
            ServingError: as in `predict`.
        """
        ask = self._conversation
        which, deadline = ask.choose(model, version, version_label), ask.deadline(timeout_s)
        return self._run(ask.classify(examples, signature, context, which, deadline, request_id))

    def regress(
        self,
        examples: Sequence[Mapping[str, Any]],
        *,
        signature: str = "",
        context: Mapping[str, Any] | None = None,
        model: str = "",
        version: int | None = None,
        version_label: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> Regressions:
        """One number an example by TensorFlow Serving's Regress; arguments and errors as in `classify`."""
        ask = self._conversation
        which, deadline = ask.choose(model, version, version_label), ask.deadline(timeout_s)
        return self._run(ask.regress(examples, signature, context, which, deadline, request_id))

    def status(self, *, model: str = "", version: int | None = None, timeout_s: float | None = None) -> tuple[VersionStatus, ...]:
        """All versions that the server knows of, newest first, those that ended or failed too; or only the given one.

        The client's own version and label do not count here: TensorFlow Serving looks up no labels for a status.

        Raises:
            ModelNotFound: it knows none.
            ServingError: as in `predict`.
        """
        ask = self._conversation
        return self._run(ask.status(ask.any_version(model, version), ask.deadline(timeout_s)))

    def metadata(
        self, *, model: str = "", version: int | None = None, version_label: str = "", timeout_s: float | None = None
    ) -> ModelMetadata:
        """The signatures of a model: names, dtypes and shapes of what they take and give. Arguments and errors as in `predict`."""
        ask = self._conversation
        return self._run(ask.metadata(ask.choose(model, version, version_label), ask.deadline(timeout_s)))

    def wait_until_available(self, *, model: str = "", version: int | None = None, timeout_s: float = WAIT_S) -> int:
        """Asks for the status until the version (None: any) can be asked, and gives its number.

        A server that does not answer yet, a model that is not there yet and a version that is loading are waited for.

        Raises:
            ModelFailed: at once, when the version ended with an error and will never come; with the server's own message.
            ModelNotFound: still no such model or version at the end.
            Unavailable: still nobody there, or still loading, at the end.
            AccessDenied: a credential is missing or wrong.
        """
        ask = self._conversation
        return self._run(ask.wait_until_available(ask.choose(model, version, ""), ask.deadline(timeout_s)))

    def reload_config(self, config: Any, *, timeout_s: float | None = None) -> None:
        """Replaces the server's whole list of models; one that is not in it is unloaded.

        It answers when every *new model* has loaded or failed, but does not wait for new versions of a known one: ask `wait_until_available`.

        Args:
            config: a `ModelServerConfig`, of `serving.wire` or of TensorFlow Serving's own package.
            timeout_s: the server itself waits for ever, so give a new model the time it needs.

        Raises:
            RequestError: a config that the server refuses, for example a label on a version that is not loaded; see its message.
            ModelFailed: a new model did not load.
            ServingError: as in `predict`.
        """
        ask = self._conversation
        self._run(ask.reload_config(config, ask.deadline(timeout_s)))

    def close(self) -> None:
        """Ends the connection; safe to repeat."""
        if (channel := self.forget()) is not None:
            channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self, steps: Steps[T]) -> T:
        try:
            effect = next(steps)
            while True:
                answer: Any = None
                if isinstance(effect, Call):
                    method = self.method(effect.method)
                    try:
                        answer = method(effect.request, timeout=effect.timeout_s, metadata=_metadata_of(self, effect))
                    except grpc.RpcError as error:
                        effect = steps.throw(error)
                        continue
                elif isinstance(effect, Sleep):
                    time.sleep(effect.seconds)
                else:
                    answer = self._is_connected()
                effect = steps.send(answer)
        except StopIteration as stop:
            return stop.value
        finally:
            steps.close()

    def _is_connected(self) -> bool:
        """Asked only after a deadline: was there a slow server, or none? The synchronous channel tells its state by callback alone."""
        states: list[Any] = []
        told = threading.Event()

        def note(state: Any) -> None:
            states.append(state)
            told.set()

        channel = self._channel
        if channel is None:
            return True
        channel.subscribe(note)
        told.wait(1.0)
        channel.unsubscribe(note)
        return not states or states[0] not in NO_CONNECTION


class AsyncClient(Connection):
    """`Client` for asyncio: the same arguments and results, every method a coroutine, `async with`.

    It belongs to the event loop of its first call. Cancelling a call cancels the request; the server may go on computing.
    """

    library = grpc.aio

    async def predict(
        self,
        texts: Sequence[str] | str,
        pairs: Sequence[str] | str | None = None,
        *,
        model: str = "",
        version: int | None = None,
        version_label: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> Predictions:
        """As `Client.predict`."""
        ask = self._conversation
        return await self._run(ask.predict(texts, pairs, ask.choose(model, version, version_label), ask.deadline(timeout_s), request_id))

    async def predict_tensors(
        self,
        inputs: Mapping[str, Any],
        *,
        signature: str = "serving_default",
        outputs: Sequence[str] = (),
        model: str = "",
        version: int | None = None,
        version_label: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> TensorResult:
        """As `Client.predict_tensors`."""
        ask = self._conversation
        which, deadline = ask.choose(model, version, version_label), ask.deadline(timeout_s)
        return await self._run(ask.predict_tensors(inputs, signature, outputs, which, deadline, request_id))

    async def classify(
        self,
        examples: Sequence[Mapping[str, Any]],
        *,
        signature: str = "",
        context: Mapping[str, Any] | None = None,
        model: str = "",
        version: int | None = None,
        version_label: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> Classifications:
        """As `Client.classify`."""
        ask = self._conversation
        which, deadline = ask.choose(model, version, version_label), ask.deadline(timeout_s)
        return await self._run(ask.classify(examples, signature, context, which, deadline, request_id))

    async def regress(
        self,
        examples: Sequence[Mapping[str, Any]],
        *,
        signature: str = "",
        context: Mapping[str, Any] | None = None,
        model: str = "",
        version: int | None = None,
        version_label: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> Regressions:
        """As `Client.regress`."""
        ask = self._conversation
        which, deadline = ask.choose(model, version, version_label), ask.deadline(timeout_s)
        return await self._run(ask.regress(examples, signature, context, which, deadline, request_id))

    async def status(self, *, model: str = "", version: int | None = None, timeout_s: float | None = None) -> tuple[VersionStatus, ...]:
        """As `Client.status`."""
        ask = self._conversation
        return await self._run(ask.status(ask.any_version(model, version), ask.deadline(timeout_s)))

    async def metadata(
        self, *, model: str = "", version: int | None = None, version_label: str = "", timeout_s: float | None = None
    ) -> ModelMetadata:
        """As `Client.metadata`."""
        ask = self._conversation
        return await self._run(ask.metadata(ask.choose(model, version, version_label), ask.deadline(timeout_s)))

    async def wait_until_available(self, *, model: str = "", version: int | None = None, timeout_s: float = WAIT_S) -> int:
        """As `Client.wait_until_available`."""
        ask = self._conversation
        return await self._run(ask.wait_until_available(ask.choose(model, version, ""), ask.deadline(timeout_s)))

    async def reload_config(self, config: Any, *, timeout_s: float | None = None) -> None:
        """As `Client.reload_config`."""
        ask = self._conversation
        await self._run(ask.reload_config(config, ask.deadline(timeout_s)))

    async def close(self) -> None:
        """Ends the connection; safe to repeat."""
        if (channel := self.forget()) is not None:
            await channel.close()

    aclose = close

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _run(self, steps: Steps[T]) -> T:
        try:
            effect = next(steps)
            while True:
                answer: Any = None
                if isinstance(effect, Call):
                    method = self.method(effect.method)
                    try:
                        answer = await method(effect.request, timeout=effect.timeout_s, metadata=_metadata_of(self, effect))
                    except grpc.RpcError as error:
                        effect = steps.throw(error)
                        continue
                elif isinstance(effect, Sleep):
                    await asyncio.sleep(effect.seconds)
                else:
                    answer = self._channel is None or self._channel.get_state() not in NO_CONNECTION
                effect = steps.send(answer)
        except StopIteration as stop:
            return stop.value
        finally:
            steps.close()
