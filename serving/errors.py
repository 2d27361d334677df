"""What can go wrong in `serving`, split by what the caller can do.

ServingError                 base; `exit_code` is what a command line answers
├── RegistryError            the folder of published models: name another, or publish again          exit 2
│   └── IntegrityError       a published file is not what its manifest says: do not load it          exit 2
├── RequestError             fix the request: its inputs, dtype, shape, signature                    exit 2
│   └── ModelNotFound        name another model, version or version label                            exit 2
├── ServerError              the server's side; the request was fine                                 exit 4
│   ├── Unavailable          nobody answers at that address, or not yet: wait, or fix the target     exit 4
│   ├── Overloaded           the server is full: send less, or later                                 exit 4
│   ├── DeadlineExceeded     no answer in time; the server may still be computing: do not just retry exit 4
│   ├── AccessDenied         fix the credentials: token, certificate                                 exit 4
│   └── ModelFailed          the model or the server broke: look at its log                          exit 4
├── PushError                a push was undone: the former versions serve as before                  exit 4
│   ├── GateRefused          the evaluation said no: train better, or --force "reason"               exit 3
│   └── PushLocked           another push is at work: wait for it                                    exit 4
└── ConfigError              a flag or a file of the embedded server or the client: fix it           exit 2
"""

from __future__ import annotations


class ServingError(Exception):
    """Base of all errors a user can act on. The message is complete: what, expected, received, what to do."""

    exit_code = 2


class RegistryError(ServingError):
    """A model or version is not there, or cannot be written."""


class IntegrityError(RegistryError):
    """Hashes do not match the manifest. A SavedModel is code: it must not be loaded."""


class RequestError(ServingError):
    """The server understood the request and refuses it; sending it again cannot help."""


class ModelNotFound(RequestError):
    """The server has no such model, version or version label; the message lists what it serves."""


class ServerError(ServingError):
    """The request may be fine; the server did not answer it."""

    exit_code = 4


class Unavailable(ServerError):
    """Nobody answers there, or not yet."""


class Overloaded(ServerError):
    """RESOURCE_EXHAUSTED: the server's queue or a limit is full."""


class DeadlineExceeded(ServerError):
    """No answer within the time allowed. TensorFlow Serving goes on computing: a blind retry doubles its load."""


class AccessDenied(ServerError):
    """UNAUTHENTICATED or PERMISSION_DENIED, or a TLS handshake that failed."""


class ModelFailed(ServerError):
    """The model or the server broke while answering."""


class PushError(ServingError):
    """A push did not go through and was undone; the message says what was seen."""

    exit_code = 4


class GateRefused(PushError):
    """The manifest's evaluation verdict forbids to serve this version."""

    exit_code = 3


class PushLocked(PushError):
    """Another push holds the lock of this target; the message says who."""


class ConfigError(ServingError):
    """A flag, a file or a setting of the server or the client is not usable."""
