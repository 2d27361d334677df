"""What a SavedModel answers: the signatures over one model and the training's own preprocessor. Frees export from graphs.

| signature | in | out |
|---|---|---|
| `serving_default` | `text` string `[batch]` (and `text_pair`) | `label` string, `score` float32 `[batch]`; `probabilities`, `classes` `[batch, classes]`; `tokens` int32, `unknown` float32 `[batch]` |
| `tokens` | `input_ids`, `attention_mask`, `token_type_ids` int32 `[batch, length]` | `logits` float32 `[batch, classes]` |
| `classify` | `inputs`: serialized `tf.Example` with `text` (and `text_pair`), string `[batch]` | `classes` string, `scores` float32 `[batch, classes]` |
| `explain` | as `serving_default` | see `tfpipeline.attribution`; left out when `export.explain_steps` is 0 |

Any batch size including 0, texts of any length including none. With several labels a text, `label` joins those above 0.5 by the label separator.
`tokens` and `unknown` are what monitoring wants of every answer: how many word pieces the model read (`[CLS]`, `[SEP]` included, after cutting), and
which share of those of the text were `[UNK]` (0 for an empty text).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf

from tfpipeline.attribution import Attribution
from tfpipeline.model import never_empty
from tfpipeline.trained import Trained, to_probabilities, token_spec


class Served(tf.Module):
    """The signatures in the module's docstring, ready for `tf.saved_model.save`."""

    def __init__(self, trained: Trained, assets: Path) -> None:
        super().__init__(name="classifier")
        self.weights = list(trained.model.variables)  # a bare Keras model would bring its training graphs along
        self.preprocessor = trained.preprocessor
        self.assets = [tf.saved_model.Asset(str(assets / "vocab.txt")), tf.saved_model.Asset(str(assets / "labels.txt"))]
        labels = tf.constant(list(trained.labels))
        task, separator = trained.task, trained.config.data.label_separator
        model = trained.model
        spec = token_spec()

        def forward(tokens: dict[str, tf.Tensor]) -> tf.Tensor:
            rows = tf.shape(tokens["input_ids"])[0]
            return model(never_empty(tokens, rows), training=False).logits[:rows]

        # Traced once and called by all signatures: each would otherwise store the whole graph again.
        logits_of = tf.function(forward, input_signature=[spec], autograph=False)

        def answer(tokens: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            probabilities = to_probabilities(logits_of(tokens), task)
            rows = tf.shape(probabilities)[0]
            if task == "multi_label":
                chosen = tf.ragged.boolean_mask(tf.tile(labels[tf.newaxis, :], [rows, 1]), probabilities > 0.5)
                label = tf.strings.reduce_join(chosen, axis=1, separator=separator)
            else:
                label = tf.gather(labels, tf.argmax(probabilities, axis=1))
            return {
                "label": label,
                "score": tf.reduce_max(probabilities, axis=1),
                "probabilities": probabilities,
                "classes": tf.tile(labels[tf.newaxis, :], [rows, 1]),
            }

        def serve(*columns: tf.Tensor) -> dict[str, tf.Tensor]:
            tokens = self.preprocessor(*columns)
            read, unknown = self.preprocessor.count_read(tokens)
            return {**answer(tokens), "tokens": read, "unknown": unknown}

        def by_example(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            names = ["text", "text_pair"] if trained.has_pairs else ["text"]
            parsed = tf.io.parse_example(inputs, {name: tf.io.FixedLenFeature([], tf.string) for name in names})
            answered = answer(self.preprocessor(*[parsed[name] for name in names]))
            return {"classes": answered["classes"], "scores": answered["probabilities"]}

        def by_text(function: Any) -> Any:
            text, text_pair = tf.TensorSpec([None], tf.string, "text"), tf.TensorSpec([None], tf.string, "text_pair")
            if trained.has_pairs:
                return tf.function(lambda text, text_pair: function(text, text_pair), input_signature=[text, text_pair], autograph=False)
            return tf.function(lambda text: function(text), input_signature=[text], autograph=False)

        self.serve = by_text(serve)
        self.tokens = tf.function(
            lambda input_ids, attention_mask, token_type_ids: {
                "logits": logits_of({"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids})
            },
            input_signature=[spec["input_ids"], spec["attention_mask"], spec["token_type_ids"]],
            autograph=False,
        )
        self.classify = tf.function(by_example, input_signature=[tf.TensorSpec([None], tf.string, "inputs")], autograph=False)
        steps = trained.config.export.explain_steps
        self.attribution = Attribution(trained, steps, logits_of) if steps else None
        self.explain = by_text(self.attribution) if steps else None

    def signatures(self) -> dict[str, Any]:
        """By the names under which TensorFlow Serving finds them."""
        found = {"serving_default": self.serve, "tokens": self.tokens, "classify": self.classify, "explain": self.explain}
        return {name: function for name, function in found.items() if function is not None}
