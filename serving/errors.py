"""What can go wrong in `serving`, split by what the caller can do.

ServingError                 base; `exit_code` is what a command line answers
└── RegistryError            the folder of published models: name another, or publish again     exit 2
    └── IntegrityError       a published file is not what its manifest says: do not load it     exit 2
"""

from __future__ import annotations


class ServingError(Exception):
    """Base of all errors a user can act on. The message is complete: what, expected, received, what to do."""

    exit_code = 2


class RegistryError(ServingError):
    """A model or version is not there, or cannot be written."""


class IntegrityError(RegistryError):
    """Hashes do not match the manifest. A SavedModel is code: it must not be loaded."""
