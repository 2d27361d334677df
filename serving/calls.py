"""What a client decides, as functions without any I/O: when to ask again, which rows go together, whether a model is there, whose fault it is.

| decision | function |
|---|---|
| is it safe to ask again, and when? | `retry_delay` |
| which rows go into which request? | `parts`, `is_row_wise` |
| there, not there, not yet, or never? | `availability` |
| whose fault is it, and what can be done? | `kind_of`, `translate` |

Also the words in which `serving.conversation` asks its driver for I/O (`Call`, `Sleep`, `Connected`), and `Which`, the model that is meant.
Refuses rows that no message can carry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serving import wire
from serving.answers import Signature, VersionStatus
from serving.errors import (
    AccessDenied,
    DeadlineExceeded,
    ModelFailed,
    ModelNotFound,
    Overloaded,
    RequestError,
    ServerError,
    ServingError,
    Unavailable,
)

FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 2.0  # ceilings of the jitter before the second attempt, and before any


class Call(NamedTuple):
    """Send `request`, hand back the response."""

    method: str
    request: Any
    timeout_s: float


class Sleep(NamedTuple):
    """Wait."""

    seconds: float


class Connected(NamedTuple):
    """Say whether there is a connection at this moment (True when that cannot be told)."""


Effect = Call | Sleep | Connected


@dataclass(frozen=True)
class Which:
    """The model that is meant, and where."""

    target: str
    model: str = ""
    version: int | None = None
    version_label: str = ""

    def spec(self, signature: str = "") -> Any:
        """As a `ModelSpec`."""
        spec = wire.ModelSpec(name=self.model, signature_name=signature)
        if self.version is not None:
            spec.version.value = self.version
        elif self.version_label:
            spec.version_label = self.version_label
        return spec

    def __str__(self) -> str:
        version = "" if self.version is None else f" version {self.version}"
        label = f" label {self.version_label!r}" if self.version_label else ""
        return f"{self.target}: model {self.model!r}{version}{label}" if self.model else self.target


def checked(which: Which, *, named: bool = False) -> Which:
    """The same, if it can be meant; `named` asks for a model.

    Raises:
        RequestError: no model, a version and a label at once, or a number that is no version.
    """
    if named and not which.model:
        raise RequestError(f"{which.target}: which model? Give Client(model=...) or model=... in the call.")
    if which.version is not None and which.version_label:
        raise RequestError(f"{which}: a version and a version label. Give one of them.")
    if which.version is not None and not 0 <= which.version < 1 << 63:
        raise RequestError(f"{which}: expected a version from 0 to 2**63 - 1.")
    return which


def retry_delay(
    attempt: int, code: str, details: str = "", *, max_attempts: int, retry_overloaded: bool, remaining_s: float, jitter: float
) -> float | None:
    """Seconds to wait before asking again, or None: give up.

    Full jitter: a uniform share of a ceiling that doubles, so that clients of one restarted server do not return in step.

    Args:
        attempt: how many attempts were made, from 1.
        code: name of the gRPC status of the last one.
        details: its message.
        max_attempts: of one request.
        retry_overloaded: whether a full server may be asked again.
        remaining_s: of the caller's budget; a delay that would use it up is not worth waiting.
        jitter: uniform in `[0, 1)`.
    """
    safe = code == "UNAVAILABLE" or (retry_overloaded and code == "RESOURCE_EXHAUSTED")
    if not safe or is_final(code, details) or attempt >= max_attempts:
        return None
    delay = jitter * min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (attempt - 1))
    return delay if delay < remaining_s else None


def is_final(code: str, details: str) -> bool:
    """Whether asking the same thing again cannot help: everything but "not there", "not yet" and "not now"."""
    if code == "UNAVAILABLE":
        return _says(details, *_HANDSHAKE)
    if code == "RESOURCE_EXHAUSTED":
        return _says(details, *_TOO_LARGE)
    return code not in ("NOT_FOUND", "DEADLINE_EXCEEDED", "CANCELLED")


def parts(sizes: npt.NDArray[np.int64], max_rows: int, max_bytes: int, where: str = "") -> list[slice]:
    """Consecutive slices of at most so many rows and bytes each; one empty slice for no rows.

    Raises:
        RequestError: a single row is larger than a message may be.
    """
    slices, start, total = [], 0, 0
    for row, size in enumerate(sizes.tolist()):
        if size > max_bytes:
            raise RequestError(
                f"{where}: row {row} has {size} bytes, more than the {max_bytes} that fit into a message. "
                f"Shorten it, or raise max_message_bytes here and on the server."
            )
        if row > start and (row - start >= max_rows or total + size > max_bytes):
            slices.append(slice(start, row))
            start, total = row, 0
        total += size
    return [*slices, slice(start, len(sizes))]


def is_row_wise(signature: Signature | None, outputs: Sequence[str] = ()) -> bool:
    """Whether a signature says that its first axis is a batch of any size, in and out; only then may a request be split."""
    if signature is None or not signature.inputs:
        return False
    given = [spec for name, spec in signature.outputs.items() if not outputs or name in outputs]
    return all(spec.shape and spec.shape[0] is None for spec in [*signature.inputs.values(), *given])


def availability(versions: Sequence[VersionStatus], wanted: int | None = None) -> int | VersionStatus | str:
    """Three answers: the version that can be asked, the one that never will (`END` with an error), or in words why not yet."""
    meant = [version for version in versions if wanted in (None, version.version)]
    for version in meant:
        if version.state == "AVAILABLE":
            return version.version
    if not meant:
        return "no version yet" if wanted is None else f"version {wanted} is not there yet"
    if all(version.state == "END" for version in meant):
        failed = [version for version in meant if version.code != "OK"]
        if failed and failed[0] is meant[0]:
            return failed[0]
    return f"not available yet: {', '.join(str(version) for version in meant)}"


# Words of gRPC 1.63 to 1.85 and of TensorFlow Serving; where they do not match, the error is only less exact.
_HANDSHAKE = ("handshake failed", "verification check failed", "security handshaker")
_TOO_LARGE = ("message larger than max",)
_NOBODY = ("failed to connect", "all backends failing", "resolving", "resolution failed", "empty address list")
_HUNG_UP = ("socket closed", "connection reset", "broken pipe")
_NOT_SERVED = ("servable not found", "could not find", "unrecognized servable version label")
_NO_SIGNATURE = ("serving signature key", "no signature was found", "signature not found")


def _says(details: str, *words: str) -> bool:
    return any(word in details.lower() for word in words)


def what_is_missing(code: str, details: str) -> str:
    """`model` (or its version, or label), `signature`, or nothing that the server could list."""
    if code in ("NOT_FOUND", "INVALID_ARGUMENT") and _says(details, *_NOT_SERVED):
        return "model"
    return "signature" if code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION") and _says(details, *_NO_SIGNATURE) else ""


def kind_of(code: str, details: str = "", *, connected: bool = True, tls: bool = False) -> type[ServingError]:
    """The error that says what the caller can do."""
    if code == "UNAVAILABLE":
        refused = _says(details, *_HANDSHAKE) or (tls and _says(details, *_NOBODY) and _says(details, *_HUNG_UP))
        return AccessDenied if refused else Unavailable
    if code == "RESOURCE_EXHAUSTED":
        return RequestError if _says(details, *_TOO_LARGE) else Overloaded
    if what_is_missing(code, details) == "model":
        return ModelNotFound
    if code == "DEADLINE_EXCEEDED":
        return DeadlineExceeded if connected else Unavailable
    if code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED"):
        return RequestError
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return AccessDenied
    return Unavailable if code == "CANCELLED" else ModelFailed


def translate(
    code: str, details: str, which: Which, *, served: str = "", tried: str = "", connected: bool = True, tls: bool = False
) -> ServingError:
    """A gRPC status as an error of this package: where, what, the server's own words, what to do."""
    kind = kind_of(code, details, connected=connected, tls=tls)
    words = details.rstrip(". ")
    if kind is ModelNotFound:
        if not served.startswith("Versions"):
            todo = f"{served} Check the name.".strip()
        elif which.version_label:
            todo = f"{served} Name one of them, or give the label to one in the server's config."
        else:
            todo = f"{served} Name one of them."
        return kind(f"{which}: not served there: {words}. {todo}")
    words = f"{code}: {words}" + (f" ({tried})" if tried and issubclass(kind, ServerError) else "")
    if code == "UNAVAILABLE" and kind is AccessDenied:
        todo = "Check Tls(ca=..., server_name=...) and, if the server wants one, the client's certificate and key; or the server speaks no TLS."
    elif kind is AccessDenied:
        todo = "Give a valid token with metadata=[('authorization', ...)], or a client certificate."
    elif kind is Unavailable and (not connected or _says(details, *_NOBODY)):
        tls_hint = "" if tls or not _says(details, *_HUNG_UP) else ", give tls=Tls(...) if it speaks TLS"
        words = f"nobody answers there: {words}"
        todo = f"Start the server (make serve), wait for it (wait_until_available), or fix the target{tls_hint}."
    elif kind is Unavailable:
        todo = "Ask again later."
    elif kind is Overloaded:
        todo = "Send less at once, or later; retry_overloaded=True asks again within timeout_s."
    elif kind is DeadlineExceeded:
        todo = "The server may still be computing, so it was not asked again. Allow more with timeout_s, or send fewer rows."
    elif kind is RequestError and code == "RESOURCE_EXHAUSTED":
        todo = "Send fewer rows at once, or raise max_message_bytes here and on the server."
    elif kind is RequestError and code == "UNIMPLEMENTED":
        todo = "Check that this is the gRPC port of TensorFlow Serving."
    elif kind is RequestError:
        todo = served or "Fix the request; client.metadata() says what the model takes."
    else:
        todo = "Look at the server's log."
    return kind(f"{which}: {words}. {todo}")
