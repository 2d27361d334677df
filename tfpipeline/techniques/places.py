"""Where the matrices of an encoder are: every technique walks the same list, also where another one has put a wrapper around a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

GROUPS = ("attention", "feed_forward")


@dataclass(frozen=True)
class Place:
    """One Dense layer of the encoder.

    Attributes:
        name: for people: `layer 3 attention query`.
        group: `attention` or `feed_forward`.
        owner: the TFBert layer that holds it.
        attribute: under which name.
    """

    name: str
    group: str
    owner: Any
    attribute: str

    @property
    def layer(self) -> Any:
        """What stands there now: a Dense, or a wrapper around one."""
        return getattr(self.owner, self.attribute)

    @property
    def dense(self) -> Any:
        """The Dense layer itself."""
        layer = self.layer
        while hasattr(layer, "layer"):
            layer = layer.layer
        return layer

    def put(self, layer: Any) -> None:
        """Replaces what stands there. Keras then tracks the new layer in its place."""
        setattr(self.owner, self.attribute, layer)


def encoder_places(model: Any, groups: Sequence[str] = GROUPS) -> Iterator[Place]:
    """The six Dense layers of each encoder layer, in the order in which they are computed."""
    for number, layer in enumerate(model.bert.encoder.layer):
        attention = layer.attention
        for group, part, owner, attribute in (
            ("attention", "query", attention.self_attention, "query"),
            ("attention", "key", attention.self_attention, "key"),
            ("attention", "value", attention.self_attention, "value"),
            ("attention", "output", attention.dense_output, "dense"),
            ("feed_forward", "in", layer.intermediate, "dense"),
            ("feed_forward", "out", layer.bert_output, "dense"),
        ):
            if group in groups:
                yield Place(f"layer {number} {group} {part}", group, owner, attribute)
