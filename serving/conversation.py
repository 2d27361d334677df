"""What a client says to TensorFlow Serving, without doing any I/O. Frees the synchronous and the asyncio client from a second copy.

Every method of `Conversation` is a generator: it yields effects (`Call`, `Sleep`, `Connected`), is sent their outcomes (or thrown the
`grpc.RpcError`), and returns the result. The two drivers in `serving.client`, one for `grpc` and one for `grpc.aio`, only obey.
In: the arguments of `Client`, checked here. Out: the dataclasses of `serving.answers`, or an error of `serving.errors`.
"""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import grpc
import numpy as np

from serving import wire
from serving.answers import (
    CODES,
    Class,
    Classifications,
    ModelMetadata,
    Predictions,
    Regressions,
    Response,
    TensorResult,
    VersionStatus,
    joined,
    row_sizes,
    text_column,
    to_arrays,
    to_example,
    to_input,
    to_metadata,
    to_statuses,
    to_text,
    version_of,
)
from serving.calls import (
    Call,
    Connected,
    Effect,
    Sleep,
    Which,
    availability,
    checked,
    is_final,
    is_row_wise,
    parts,
    retry_delay,
    translate,
    what_is_missing,
)
from serving.errors import ConfigError, DeadlineExceeded, ModelFailed, ModelNotFound, RequestError, ServingError, Unavailable
from serving.journal.records import is_request_id, new_request_id
from serving.wire import Array

logger = logging.getLogger(__name__)
T = TypeVar("T")
Steps = Generator[Effect, Any, T]

FIRST_POLL_S, LONGEST_POLL_S = 0.05, 1.0  # between two questions whether a version is there
QUESTION_S = 5.0  # the most that one such question may take; it runs nothing
EXPLAIN_S = 1.0  # the most that an error waits for the list of what is there
ENVELOPE_BYTES = 1024  # everything in a request but its rows; a row's own framing is counted with it


class Inference(Call):
    """A `Call` that runs a model, and the id under which journals know it."""

    request_id: str

    def __new__(cls, method: str, request: Any, timeout_s: float, request_id: str) -> Inference:
        call = super().__new__(cls, method, request, timeout_s)
        call.request_id = request_id
        return call


class Sent(NamedTuple):
    """What is said of a request that runs a model, to the server and to `on_response`."""

    rows: int
    request_id: str
    version_label: str


class Batch(NamedTuple):
    """Some rows of a call: how they were sent, and the answer."""

    sent: Sent
    response: Any


@dataclass(frozen=True)
class Conversation:
    """All questions a client asks. Attributes as in `Client`; `tls` only says whether it is on."""

    which: Which
    timeout_s: float
    max_attempts: int
    retry_overloaded: bool
    max_message_bytes: int
    rows_per_request: int
    tls: bool = False
    on_response: Callable[[Response], None] | None = None
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        least = {"max_attempts": 1, "rows_per_request": 1, "max_message_bytes": 4 * ENVELOPE_BYTES}
        wrong = [f"{name} is {getattr(self, name)}, expected {low} or more" for name, low in least.items() if getattr(self, name) < low]
        if wrong:
            raise ConfigError(f"Client for {self.which.target}: {'; '.join(wrong)}.")
        self.deadline(None)
        checked(self.which)

    def choose(self, model: str, version: int | None, version_label: str) -> Which:
        """A call's own words before the client's: another model, version or label drops the client's version and label."""
        if model not in ("", self.which.model) or version is not None or version_label:
            return checked(Which(self.which.target, model or self.which.model, version, version_label), named=True)
        return checked(self.which, named=True)

    def any_version(self, model: str, version: int | None) -> Which:
        """The model, and only the version that the call itself names."""
        return checked(Which(self.which.target, model or self.which.model, version), named=True)

    def deadline(self, timeout_s: float | None) -> float:
        """The moment, by `clock`, at which the caller's patience ends."""
        seconds = self.timeout_s if timeout_s is None else timeout_s
        if not 0 < seconds < float("inf"):
            raise ConfigError(f"timeout_s is {seconds}: expected a finite number of seconds above 0; every call has a deadline.")
        return self.clock() + seconds

    def predict(
        self, texts: Sequence[str] | str, pairs: Sequence[str] | str | None, which: Which, deadline: float, request_id: str = ""
    ) -> Steps[Predictions]:
        """See `Client.predict`."""
        request_id = _checked_id(which, request_id)
        columns = {"text": text_column("texts", texts)}
        if pairs is not None:
            columns["text_pair"] = text_column("pairs", pairs)
            if len(columns["text_pair"]) != len(columns["text"]):
                raise RequestError(
                    f"predict: {len(columns['text'])} texts and {len(columns['text_pair'])} pairs. Give every text its pair, in the same order."
                )
        arrays, batches = yield from self._tensors(columns, "serving_default", (), which, deadline, request_id, row_wise=True)
        missing = {"label", "score", "probabilities", "classes"} - arrays.keys()
        if missing:
            raise RequestError(
                f"{which}: answers {sorted(arrays)}, predict() needs label, score, probabilities and classes. "
                f"Ask other models by predict_tensors({{'text': texts}})."
            )
        return Predictions(
            labels=[to_text(value) for value in arrays["label"]],
            scores=arrays["score"].astype(np.float32, copy=False),
            probabilities=arrays["probabilities"].astype(np.float32, copy=False),
            classes=tuple(to_text(value) for value in arrays["classes"][0]) if len(columns["text"]) else (),
            model=which.model,
            version=version_of([batch.response for batch in batches]),
            request_id=request_id,
            ids=tuple(f"{batch.sent.request_id}:{row}" for batch in batches for row in range(batch.sent.rows)),
        )

    def predict_tensors(
        self, inputs: Mapping[str, Any], signature: str, outputs: Sequence[str], which: Which, deadline: float, request_id: str = ""
    ) -> Steps[TensorResult]:
        """See `Client.predict_tensors`."""
        request_id = _checked_id(which, request_id)
        columns = {name: to_input(which, name, value) for name, value in inputs.items()}
        arrays, batches = yield from self._tensors(columns, signature, outputs, which, deadline, request_id)
        spec = batches[0].response.model_spec
        return TensorResult(arrays, which.model, spec.version.value, spec.signature_name or signature, request_id)

    def classify(
        self,
        examples: Sequence[Mapping[str, Any]],
        signature: str,
        context: Mapping[str, Any] | None,
        which: Which,
        deadline: float,
        request_id: str = "",
    ) -> Steps[Classifications]:
        """See `Client.classify`."""
        request_id = _checked_id(which, request_id)
        responses = yield from self._examples("Classify", examples, signature, context, which, deadline, request_id)
        rows = [
            tuple(Class(one.label, one.score) for one in row.classes) for response in responses for row in response.result.classifications
        ]
        _one_each(which, "classifications", len(rows), len(examples))
        return Classifications(tuple(rows), which.model, version_of(responses), request_id)

    def regress(
        self,
        examples: Sequence[Mapping[str, Any]],
        signature: str,
        context: Mapping[str, Any] | None,
        which: Which,
        deadline: float,
        request_id: str = "",
    ) -> Steps[Regressions]:
        """See `Client.regress`."""
        request_id = _checked_id(which, request_id)
        responses = yield from self._examples("Regress", examples, signature, context, which, deadline, request_id)
        values = [one.value for response in responses for one in response.result.regressions]
        _one_each(which, "regressions", len(values), len(examples))
        return Regressions(np.array(values, np.float32), which.model, version_of(responses), request_id)

    def status(self, which: Which, deadline: float) -> Steps[tuple[VersionStatus, ...]]:
        """See `Client.status`."""
        response = yield from self._ask("GetModelStatus", wire.GetModelStatusRequest(model_spec=which.spec()), which, deadline)
        return to_statuses(response)

    def metadata(self, which: Which, deadline: float) -> Steps[ModelMetadata]:
        """See `Client.metadata`."""
        request = wire.GetModelMetadataRequest(model_spec=which.spec(), metadata_field=["signature_def"])
        response = yield from self._ask("GetModelMetadata", request, which, deadline)
        return to_metadata(which.model, response)

    def wait_until_available(self, which: Which, deadline: float) -> Steps[int]:
        """See `Client.wait_until_available`."""
        which = replace(which, version_label="")  # TensorFlow Serving looks up no labels for a status
        started, pause = self.clock(), FIRST_POLL_S
        request = wire.GetModelStatusRequest(model_spec=which.spec())
        failure: ServingError | None = None
        while True:
            patience = max(0.001, min(deadline - self.clock(), QUESTION_S))
            try:
                response = yield Call("GetModelStatus", request, patience)
            except grpc.RpcError as error:
                code, details = error.code().name, error.details() or ""
                connected = True if code != "DEADLINE_EXCEEDED" else (yield Connected())
                if failure is None or code != "DEADLINE_EXCEEDED" or patience == QUESTION_S:  # a last question cut short says nothing new
                    failure = translate(code, details, which, connected=connected, tls=self.tls)
                    failure.__cause__ = error
                if is_final(code, details):
                    raise failure from error
            else:
                versions = to_statuses(response)
                found = availability(versions, which.version)
                if isinstance(found, int):
                    return found
                if isinstance(found, VersionStatus):
                    raise ModelFailed(
                        f"{which}: version {found.version} will not become available: {found.code}: {found.message}. "
                        f"Look at the server's log, and publish a version that loads."
                    )
                failure = Unavailable(f"{which}: {found}. Wait longer, or look at the server's log.")
            if pause >= deadline - self.clock():
                failure.args = (f"{failure} Waited {self.clock() - started:.1f} s.",)
                raise failure
            yield Sleep(pause)
            pause = min(2 * pause, LONGEST_POLL_S)

    def reload_config(self, config: Any, deadline: float) -> Steps[None]:
        """See `Client.reload_config`."""
        which = Which(self.which.target)
        request = wire.ReloadConfigRequest()
        request.config.ParseFromString(config.SerializeToString())
        response = yield from self._ask("HandleReloadConfigRequest", request, which, deadline)
        if response.status.error_code:
            raise translate(CODES.get(response.status.error_code, "UNKNOWN"), response.status.error_message, which)

    # --- inside ---

    def _tensors(
        self,
        columns: dict[str, Any],
        signature: str,
        outputs: Sequence[str],
        which: Which,
        deadline: float,
        request_id: str,
        *,
        row_wise: bool = False,
    ) -> Steps[tuple[dict[str, Array], list[Batch]]]:
        """Outputs, and how they were asked for. Splits only what is known to be a batch of independent rows."""
        sizes = row_sizes(columns)
        rows = 1 if sizes is None else len(sizes)
        room = self.max_message_bytes - ENVELOPE_BYTES
        slices = [slice(0, rows)]
        large = sizes is not None and (rows > self.rows_per_request or int(sizes.sum()) > room)
        if large and not row_wise:
            described = yield from self.metadata(which, deadline)
            row_wise = is_row_wise(described.signatures.get(signature or "serving_default"), outputs)
        if large and row_wise and sizes is not None:
            slices = parts(sizes, self.rows_per_request, room, str(which))

        def request(pinned: Which, part: slice) -> tuple[Any, int]:
            tensors = {}
            for name, value in columns.items():
                try:
                    tensors[name] = wire.to_tensor(value[part] if len(slices) > 1 else value) if isinstance(value, np.ndarray) else value
                except ValueError as error:
                    raise RequestError(f"{which}: input {name!r}: {error}") from error
            message = wire.PredictRequest(model_spec=pinned.spec(signature), inputs=tensors, output_filter=outputs)
            return message, part.stop - part.start

        batches = yield from self._one_version("Predict", slices, request, which, deadline, request_id)
        answers = [to_arrays(which, batch.response, batch.sent.rows if row_wise else None) for batch in batches]
        return joined(which, answers), batches

    def _examples(
        self,
        method: str,
        examples: Sequence[Mapping[str, Any]],
        signature: str,
        context: Mapping[str, Any] | None,
        which: Which,
        deadline: float,
        request_id: str,
    ) -> Steps[list[Any]]:
        # TensorFlow Serving refuses an empty list, so nobody is asked about one.
        messages = [to_example(which, f"example {number}", values) for number, values in enumerate(examples)]
        if not messages:
            return []
        shared = None if context is None else to_example(which, "context", context)
        sizes = np.array([message.ByteSize() + 8 for message in messages])
        room = self.max_message_bytes - ENVELOPE_BYTES - (shared.ByteSize() if shared is not None else 0)
        slices = parts(sizes, self.rows_per_request, room, str(which))

        def request(pinned: Which, part: slice) -> tuple[Any, int]:
            message = wire.METHODS[method][1](model_spec=pinned.spec(signature))
            if shared is None:
                message.input.example_list.examples.extend(messages[part])
            else:
                message.input.example_list_with_context.context.CopyFrom(shared)
                message.input.example_list_with_context.examples.extend(messages[part])
            return message, part.stop - part.start

        batches = yield from self._one_version(method, slices, request, which, deadline, request_id)
        return [batch.response for batch in batches]

    def _one_version(
        self,
        method: str,
        slices: list[slice],
        request: Callable[[Which, slice], tuple[Any, int]],
        which: Which,
        deadline: float,
        request_id: str,
    ) -> Steps[list[Batch]]:
        """Asks part by part; all answers are of the version that answered the first.

        If that version is unloaded half-way (a push), everything is asked once more, of the version that is there now. Every request has an id
        of its own, or their rows would be taken for each other.
        """
        ids = (request_id if not number else f"{request_id[: 64 - len(f'.{number}')]}.{number}" for number in itertools.count())
        batches: list[Batch] = []
        for again in (False, True):
            pinned, batches = which, []
            try:
                for part in slices:
                    message, rows = request(pinned, part)
                    sent = Sent(rows, next(ids), which.version_label)
                    response = yield from self._ask(method, message, pinned, deadline, sent)
                    batches.append(Batch(sent, response))
                    if response.model_spec.HasField("version"):
                        pinned = replace(which, version=response.model_spec.version.value, version_label="")
            except ModelNotFound:
                if again or not batches:
                    raise
            else:
                break
        return batches

    def _ask(self, method: str, request: Any, which: Which, deadline: float, sent: Sent | None = None) -> Steps[Any]:
        """One request, as often as it is safe and there is time; its answer, or the error in the caller's terms."""
        first = started = self.clock()
        attempt = 0
        while True:
            attempt += 1
            started = self.clock()
            if started >= deadline:
                self._report(method, request, None, which, started - first, sent, "DEADLINE_EXCEEDED")
                raise DeadlineExceeded(
                    f"{which}: no time left before {method} was sent. Allow more with timeout_s, or send less in one call."
                )
            try:
                patience = deadline - started
                response = yield (
                    Call(method, request, patience) if sent is None else Inference(method, request, patience, sent.request_id)
                )
                break
            except grpc.RpcError as error:
                code, details = error.code().name, error.details() or ""
                delay = retry_delay(
                    attempt,
                    code,
                    details,
                    max_attempts=self.max_attempts,
                    retry_overloaded=self.retry_overloaded,
                    remaining_s=deadline - self.clock(),
                    jitter=self.jitter(),
                )
                if delay is None:
                    seconds = self.clock() - first
                    self._report(method, request, None, which, seconds, sent, code)
                    connected = True if code != "DEADLINE_EXCEEDED" else (yield Connected())
                    served = yield from self._explain(code, details, which, deadline)
                    tried = f"{attempt} attempts in {seconds:.2f} s" if attempt > 1 else f"after {seconds:.2f} s"
                    raise translate(code, details, which, served=served, tried=tried, connected=connected, tls=self.tls) from error
            yield Sleep(delay)
        self._report(method, request, response, which, self.clock() - started, sent, "OK")
        return response

    def _report(self, method: str, request: Any, response: Any, which: Which, seconds: float, sent: Sent | None, code: str) -> None:
        if self.on_response is None or sent is None:
            return
        name, version = (response.model_spec.name, response.model_spec.version.value) if response is not None else ("", 0)
        try:
            self.on_response(
                Response(
                    name or which.model, version, method, seconds, sent.rows, request, response, sent.request_id, code, sent.version_label
                )
            )
        except Exception:  # a journal that is broken must not break the answers
            logger.exception("on_response failed for %s of %s; the call goes on all the same.", method, which)

    def _explain(self, code: str, details: str, which: Which, deadline: float) -> Steps[str]:
        """What the server does have, for an error that says what it has not; empty when it cannot be asked in time."""
        kind = what_is_missing(code, details)
        timeout_s = min(deadline - self.clock(), EXPLAIN_S)
        if not kind or not which.model or timeout_s <= 0:
            return ""
        try:
            if kind == "signature":
                request = wire.GetModelMetadataRequest(model_spec=which.spec(), metadata_field=["signature_def"])
                described = to_metadata(which.model, (yield Call("GetModelMetadata", request, timeout_s)))
                return f"Its signatures: {', '.join(sorted(described.signatures))}."
            request = wire.GetModelStatusRequest(model_spec=wire.ModelSpec(name=which.model))
            versions = to_statuses((yield Call("GetModelStatus", request, timeout_s)))
            return f"Versions there: {', '.join(str(version) for version in versions)}."
        except grpc.RpcError as error:
            return "The server has no version of it, and cannot list its models." if error.code().name == "NOT_FOUND" else ""


def _checked_id(which: Which, request_id: str) -> str:
    """The caller's id, or a new one."""
    if request_id and not is_request_id(request_id):
        raise RequestError(
            f"{which}: request_id {request_id[:100]!r}: expected 1 to 64 letters, digits, '_', '.' and '-'. Leave it out, and one is made."
        )
    return request_id or new_request_id()


def _one_each(which: Which, what: str, given: int, asked: int) -> None:
    if given != asked:
        raise ModelFailed(f"{which}: answered {given} {what} for {asked} examples: expected one each. Look at the model's signature.")
