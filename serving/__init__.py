"""A published model and everything after it. Never imports `tfpipeline`; nothing here imports TensorFlow.

    from serving import Client

The names below are imported when they are first used, so that `import serving` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.client import AsyncClient, Client, Tls
    from serving.errors import (
        AccessDenied,
        ConfigError,
        DeadlineExceeded,
        GateRefused,
        IntegrityError,
        ModelFailed,
        ModelNotFound,
        Overloaded,
        PushError,
        PushLocked,
        RegistryError,
        RequestError,
        ServerError,
        ServingError,
        Unavailable,
    )

__all__ = [
    "AccessDenied",
    "AsyncClient",
    "Client",
    "ConfigError",
    "DeadlineExceeded",
    "GateRefused",
    "IntegrityError",
    "ModelFailed",
    "ModelNotFound",
    "Overloaded",
    "PushError",
    "PushLocked",
    "RegistryError",
    "RequestError",
    "ServerError",
    "ServingError",
    "Tls",
    "Unavailable",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'serving' has no attribute {name!r}")
    module = "serving.client" if name in ("AsyncClient", "Client", "Tls") else "serving.errors"
    return getattr(importlib.import_module(module), name)
