"""Which word pieces made the model say what it says: integrated gradients over the word embeddings (Sundararajan et al., arXiv:1703.01365), in the graph.

In: strings `[batch]` (and the second texts). Out: per word piece, how far it moved the probability of the predicted label away from what the model
says when it sees `[MASK]` in every place. Only ops of stock TensorFlow Serving: the gradient is taken while the graph is made.

The *probability* is attributed, not the logit: it is the number that people are shown, so the attributions add up to the difference between two
numbers on the screen; and the logit of one class says nothing in a softmax, where only differences between logits count. The sum is exact up to the
error of the quadrature (`gap`), which is given with every answer.

| what | how |
|---|---|
| baseline | each word piece is `[MASK]`; `[CLS]`, `[SEP]`, positions and the second text's marks stay, and so get exactly 0 |
| path | straight from the baseline's word embeddings to the text's; the mean slope over `steps` points, each in the middle of its part of the way |
| refinement | while the gap is over 0.01, each part is cut into three, at most twice: a sure model's probability jumps within a hundredth of the way |
| several labels a text | the most probable label is explained, also when it is below 0.5 |
| memory | one text at a time, and of its path as many points as make 512 tokens: no more than one text of 512 tokens costs in training |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfpipeline.trained import Trained, to_probabilities

TOKENS_AT_ONCE = 512
AIM = 0.01  # of probability: a percentage point
REFINEMENTS = 2

Logits = Callable[[dict[str, tf.Tensor]], tf.Tensor]


class Attribution(tf.Module):
    """See the module's docstring. A plain callable, to be traced by whoever needs it.

    Args:
        trained: the model and its preprocessor.
        steps: points of the quadrature to begin with; more of them make the gap smaller, at proportional cost.
        logits_of: tokens to logits, if the caller has such a function already: the graph then holds that part once.
    """

    def __init__(self, trained: Trained, steps: int, logits_of: Logits | None = None) -> None:
        super().__init__(name="attribution")
        self._trained = trained
        self._logits_of = logits_of or (lambda tokens: trained.model(tokens, training=False).logits)
        vocabulary = trained.preprocessor.vocabulary
        self._pieces = tf.constant(vocabulary)
        self._labels = tf.constant(list(trained.labels))
        self._mask_id, self._cls_id, self._sep_id = (vocabulary.index(token) for token in ("[MASK]", "[CLS]", "[SEP]"))
        self._steps = steps

    def __call__(self, text: tf.Tensor, text_pair: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """Attributions of a batch of any size.

        Returns:
            `pieces` string and `attributions` float32 `[batch, length]`, `""` and 0 after the last piece; `label` string, `score` (probability of that
            label for the text), `baseline_score` (for the baseline) and `gap` (score - baseline_score - sum of the attributions) float32 `[batch]`.
        """
        tokens = self._trained.preprocessor(*[column for column in (text, text_pair) if column is not None])
        ids, types, mask = (tokens[name] for name in ("input_ids", "token_type_ids", "attention_mask"))
        rows, length = tf.shape(ids)[0], tf.shape(ids)[1]
        # A loop of no rounds has no shape: one row more goes in and is cut off again.
        totals = tf.concat([tf.reduce_sum(mask, axis=1), [1]], axis=0)
        spec = tf.TensorSpec([], tf.float32)
        attributions, label, score, baseline = tf.map_fn(
            lambda row: self._one(row[0], row[1], row[2], length),
            (tf.pad(ids, [[0, 1], [0, 0]]), tf.pad(types, [[0, 1], [0, 0]]), totals),
            fn_output_signature=(tf.TensorSpec([None], tf.float32), tf.TensorSpec([], tf.int64), spec, spec),
            parallel_iterations=1,
        )
        attributions, label, score, baseline = attributions[:rows], label[:rows], score[:rows], baseline[:rows]
        return {
            "pieces": tf.where(tf.cast(mask, tf.bool), tf.gather(self._pieces, ids), ""),
            "attributions": attributions,
            "label": tf.gather(self._labels, label),
            "score": score,
            "baseline_score": baseline,
            "gap": score - baseline - tf.reduce_sum(attributions, axis=1),
        }

    def _one(self, ids: tf.Tensor, types: tf.Tensor, total: tf.Tensor, length: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """One text, without its padding: attributions `[length]`, class number, probability, probability of the baseline."""
        ids, types = ids[:total], types[:total]
        kept = (ids == self._cls_id) | (ids == self._sep_id)
        absent = tf.where(kept, ids, self._mask_id)
        ends = {
            "input_ids": tf.stack([ids, absent]),
            "attention_mask": tf.ones([2, total], tf.int32),
            "token_type_ids": tf.tile(types[tf.newaxis, :], [2, 1]),
        }
        probabilities = to_probabilities(self._logits_of(ends), self._trained.task)
        label = tf.argmax(probabilities[0])
        table = self._trained.model.bert.embeddings.weight
        start = tf.gather(table, absent)
        direction = tf.gather(table, ids) - start
        moved = probabilities[0, label] - probabilities[1, label]
        attributions = self._along(start, direction, types, label, moved)
        return tf.pad(attributions, [[0, length - total]]), label, probabilities[0, label], probabilities[1, label]

    def _along(self, start: tf.Tensor, direction: tf.Tensor, types: tf.Tensor, label: tf.Tensor, moved: tf.Tensor) -> tf.Tensor:
        """Attributions `[total]` that add up to `moved`, the difference between the probabilities at both ends, as well as the points allow."""
        most = self._steps * 3**REFINEMENTS

        def attributed(slopes: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(slopes * direction, axis=1) / tf.cast(count, tf.float32)

        def refine(count: tf.Tensor, slopes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # Each part of the way is cut into three: its middle was already looked at, the middles of the outer two are new.
            first = tf.equal(count, 0)
            parts = tf.where(first, self._steps, count)
            middles = tf.constant([1 / 2, 1 / 6, 5 / 6], tf.float32)
            middles = tf.cond(first, lambda: middles[:1], lambda: middles[1:])
            points = tf.reshape(tf.cast(tf.range(parts), tf.float32)[:, tf.newaxis] + middles, [-1]) / tf.cast(parts, tf.float32)
            return tf.where(first, parts, 3 * parts), slopes + self._slopes(points, start, direction, types, label)

        def unfinished(count: tf.Tensor, slopes: tf.Tensor) -> tf.Tensor:
            gap = tf.abs(moved - tf.reduce_sum(attributed(slopes, tf.maximum(count, 1))))
            return tf.equal(count, 0) | ((gap > AIM) & (count < most))

        shapes = [tf.TensorShape([]), tf.TensorShape([None, start.shape[1]])]
        count, slopes = tf.while_loop(
            unfinished, refine, [tf.constant(0), tf.zeros_like(start)], shape_invariants=shapes, parallel_iterations=1
        )
        return attributed(slopes, count)

    def _slopes(self, points: tf.Tensor, start: tf.Tensor, direction: tf.Tensor, types: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        """The gradients of the label's probability at these points of the path, added up, float32 `[total, hidden]`."""
        total = tf.shape(start)[0]
        at_once = tf.maximum(1, TOKENS_AT_ONCE // total)

        def some(done: tf.Tensor, summed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            now = points[done : done + at_once]
            count = tf.size(now)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                embedded = start + now[:, tf.newaxis, tf.newaxis] * direction
                tape.watch(embedded)
                inputs = {
                    "inputs_embeds": embedded,
                    "attention_mask": tf.ones([count, total], tf.int32),
                    "token_type_ids": tf.tile(types[tf.newaxis, :], [count, 1]),
                }
                probabilities = to_probabilities(self._trained.model(inputs, training=False).logits, self._trained.task)
                target = tf.reduce_sum(tf.gather(probabilities, label, axis=1))
            gradient = tf.cast(tape.gradient(target, embedded), tf.float32)
            return done + count, summed + tf.reduce_sum(gradient, axis=0)

        shapes = [tf.TensorShape([]), tf.TensorShape([None, start.shape[1]])]
        _, summed = tf.while_loop(
            lambda done, _: done < tf.size(points),
            some,
            [tf.constant(0), tf.zeros_like(start)],
            shape_invariants=shapes,
            parallel_iterations=1,
        )
        return summed


def explained(explain: Any, texts: Sequence[str], pairs: Sequence[str] | None) -> list[dict[str, Any]]:
    """What an `explain` function says of each text, as plain types, padding left out. One text at a time: they have different lengths."""
    found = []
    for number, text in enumerate(texts):
        columns = {"text": tf.constant([text], tf.string)} | (
            {} if pairs is None else {"text_pair": tf.constant([pairs[number]], tf.string)}
        )
        answer = {key: value.numpy()[0] for key, value in explain(**columns).items()}
        length = int((answer["pieces"] != b"").sum())
        found.append(
            {
                "pieces": [piece.decode() for piece in answer["pieces"][:length]],
                "attributions": [float(value) for value in answer["attributions"][:length]],
                "label": answer["label"].decode(),
                **{key: float(answer[key]) for key in ("score", "baseline_score", "gap")},
            }
        )
    return found
