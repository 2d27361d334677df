"""Hands over to the real tensorflow_model_server where it is installed. Frees `make serve` from knowing which of the two will answer."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from serving.desired import CONFIG_FILE, config_text
from serving.server.flags import FIELDS, Flags

BINARY = "tensorflow_model_server"
# Flags that only the embedded server has, and those that say what to serve.
_OWN = {"host", "models_root", "max_message_bytes", "max_concurrent_requests", "max_request_rows", "max_request_ids", "max_text_bytes", "max_request_seconds",
        "drain_seconds", "access_log", "page", "page_hosts", "drift_report", "use_installed", "journal", "journal_sampling", "journal_text", "journal_names", "journal_key_file", "journal_retention_days"}  # fmt: skip


def command(flags: Flags, binary: str, config_file: Path) -> list[str]:
    """The command line of the real server for the same flags, over a file of models.

    Labels of versions that are not loaded yet are allowed, because at its start none is.
    """
    given = {name: getattr(flags, name) for name, field in FIELDS.items() if getattr(flags, name) != field.default and name not in _OWN}
    given |= {"model_config_file": str(config_file), "allow_version_labels_for_unavailable_models": True, "port": flags.port}
    return [binary, *(f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in given.items())]


def hand_over(flags: Flags, config: Any) -> None:
    """Replaces this process by the real server, if there is one; returns if there is none.

    Args:
        flags: with `models_root`.
        config: the `ModelServerConfig` of what lies there; written to `models_root/models.config`.
    """
    binary = shutil.which(BINARY)
    if binary is None:
        return
    file = Path(flags.models_root).absolute() / CONFIG_FILE
    temporary = file.with_name(f".{file.name}-{os.getpid()}")
    temporary.write_text(config_text(config), encoding="utf-8")
    temporary.replace(file)
    os.execv(binary, command(flags, binary, file))  # noqa: S606  no shell: a list of arguments
