"""Requests that no honest client sends, made from requests that one would. Frees whoever sends them from gRPC, HTTP and what a model takes.

In: a `Target` (a served model and its signatures), a seed, a number. Out: one `Request`, always the same for the same three, so that
`python benchmarks/bad_input.py --only NUMBER` sends it again; `send` and `complaint` ask a server and judge its answer. Half of the requests speak
gRPC (all seven methods), half REST. Each is a valid request with something done to it: to its bytes, to a field (any field of the message, with a
value at an edge of its type), to its tensors, texts and names, to its JSON, to its HTTP.

Not made: requests that a server is right to obey at a price. A tensor of a million tokens that fits the signature is load, not bad input, and is
made again; a new configuration always goes on naming the model that is asked for in between.
"""

from __future__ import annotations

import random

from .answers import CHANNEL_OPTIONS, EXPLAINED, Answer, complaint, honest, send, target_of
from .bodies import rest_request
from .messages import grpc_request
from .values import DEADLINE_S, Request, Target, mutated_bytes

__all__ = [
    "CHANNEL_OPTIONS",
    "DEADLINE_S",
    "EXPLAINED",
    "Answer",
    "Request",
    "Target",
    "complaint",
    "honest",
    "make",
    "mutated_bytes",
    "send",
    "target_of",
]


def make(target: Target, seed: int, number: int) -> Request:
    """The request of that number."""
    rng = random.Random(f"{seed}/{number}")
    return grpc_request(target, rng, number) if rng.random() < 0.5 else rest_request(target, rng, number)
