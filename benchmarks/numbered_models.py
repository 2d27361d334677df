"""Small versions that can be told apart: the label, made by the graph, and the probability, held by a variable, both say the version's number.

A half-loaded or mixed version would answer with two different numbers. Used by `version_swaps.py` and `crashes.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from serving.registry import Published, Registry


def probability(number: int) -> float:
    """What version `number` answers; exactly representable, so that it can be compared."""
    return 0.5 + number / 1024


def publish(root: Path, number: int, name: str = "numbered") -> Published:
    """Writes a version with a manifest like that of an export."""
    import tensorflow as tf

    class Numbered(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.probability = tf.Variable(probability(number))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
        def serve(self, text: Any) -> dict[str, Any]:
            rows = tf.shape(text)[0]
            probabilities = tf.tile([[self.probability, 1 - self.probability]], [rows, 1])
            return {
                "label": tf.fill([rows], str(number)),
                "score": probabilities[:, 0],
                "probabilities": probabilities,
                "classes": tf.tile([[str(number), "other"]], [rows, 1]),
            }

    module = Numbered()
    specs = {
        "inputs": {"text": {"dtype": "string", "shape": [None]}},
        "outputs": {
            "label": {"dtype": "string", "shape": [None]},
            "score": {"dtype": "float32", "shape": [None]},
            "probabilities": {"dtype": "float32", "shape": [None, 2]},
            "classes": {"dtype": "string", "shape": [None, 2]},
        },
    }
    with Registry(root).publishing(name) as staged:
        tf.saved_model.save(module, str(staged.folder), signatures={"serving_default": module.serve})
        return staged.publish(
            {
                "format": 1,
                "labels": [str(number), "other"],
                "task": "single_label",
                "has_pairs": False,
                "signatures": {"serving_default": specs},
                "ops": ["Fill", "Tile"],
                "gate": {"passed": True, "reasons": []},
                "golden_probes": {"tolerance": 1e-6, "texts": ["one"], "probabilities": [[probability(number), 1 - probability(number)]]},
            }
        )


def number_of(prediction: Any) -> int:
    """The number that an answer comes from.

    Raises:
        ValueError: its parts come from different versions.
    """
    number = int(prediction.label)
    if float(prediction.score) != probability(number):
        raise ValueError(f"label {number} with score {prediction.score}: a mixed version answered")
    return number
