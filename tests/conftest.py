"""Shared by all tests: the legacy-Keras switch before anything imports TensorFlow, and quiet libraries."""

from __future__ import annotations

import tfpipeline  # noqa: F401  first: decides which Keras TensorFlow is
from tfpipeline import runtime

runtime.quiet()
