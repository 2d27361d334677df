"""The order of rows: which batch holds which rows, in which epoch. Frees training from shuffling, padding waste and "where was I".

In: the token lengths of a split, a seed. Out: a plan, a list of index arrays, that is a pure function of (lengths, batch size, seed, epoch):
resuming at batch b of epoch e means dropping the first b entries of the plan of e. Nothing about the order needs to be saved.

Rows of similar length share a batch, so that little of it is padding; which rows meet, and in which order the batches come, differs in each
epoch. Does not balance labels, and does not hold texts: it deals in row numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

# Rows are sorted by length inside windows of this many batches: enough that padding nearly vanishes, few enough that batches stay random.
WINDOW_BATCHES = 50


def training_plan(lengths: npt.NDArray[np.integer[Any]], batch_size: int, *, seed: int, epoch: int) -> list[Rows]:
    """Batches of one epoch; every row exactly once, the last batch possibly short.

    Args:
        lengths: tokens of each row `[rows]`.
        batch_size: rows of a batch.
        seed: of the run.
        epoch: counted from 0.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = random.permutation(len(lengths))
    window = batch_size * WINDOW_BATCHES
    batches: list[Rows] = []
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        # A stable sort over a random order: rows of one length meet different neighbours in each epoch.
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]


def shard(plan: Sequence[Rows], index: int, count: int) -> list[Rows]:
    """Worker `index` of `count` takes its part of every batch, so that all workers make the same number of steps.

    Rows of a batch that does not divide are spread over the first workers; a batch with fewer rows than workers leaves some workers an empty part.
    """
    return [rows[index::count] for rows in plan]


def distributed(strategy: Any, plan: Sequence[Rows], make: Callable[[list[Rows]], Any]) -> Any:
    """The plan shared out over all replicas of all workers: each reads its `shard` of every batch, and nothing else.

    TensorFlow's own sharding is off: by file it would need as many files as workers, and by element it would read everything everywhere.

    Args:
        strategy: of the process.
        plan: batches for all replicas together.
        make: a part of it to a `tf.data.Dataset`, one element for each entry, also for an empty one.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return make(list(plan))

    def of_this_worker(context: Any) -> Any:
        here = replicas // context.num_input_pipelines
        parts = [shard(plan, context.input_pipeline_id * here + number, replicas) for number in range(here)]
        # The replicas of a worker take the elements of its dataset in turns.
        return make([rows for step in zip(*parts, strict=True) for rows in step])

    return strategy.distribute_datasets_from_function(of_this_worker)


def evaluation_plan(lengths: npt.NDArray[np.integer[Any]], batch_size: int) -> list[Rows]:
    """All rows once, longest first (so that too little memory shows at once), similar lengths together."""
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def dataset(
    plan: Sequence[Rows],
    fetch: Callable[[Rows], tuple[list[str], list[str] | None]],
    preprocess: Callable[..., Any],
    targets: npt.NDArray[Any] | None = None,
    weights: npt.NDArray[np.float32] | None = None,
    *,
    has_pairs: bool = False,
    columns: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> Any:
    """A `tf.data.Dataset` of what the plan says: token ids, or `(ids, targets, weights)` when targets are given.

    Strings are fetched row by row from the memory-mapped split, cleaned and tokenised in the graph on all cores, two batches ahead.

    Args:
        plan: row numbers of each batch.
        fetch: row numbers to texts and second texts (None without pairs).
        preprocess: the `Preprocessor`.
        targets: int32 `[rows]` or float32 `[rows, classes]`.
        weights: float32 `[rows]`.
        has_pairs: whether `fetch` gives second texts.
        columns: float32 `[rows, ...]` each, put beside the tokens under their names; only where targets are given.
    """
    import tensorflow as tf

    columns = columns or {}
    strings_given = 2 if has_pairs else 1

    def rows_of_plan() -> Iterator[tuple[Any, ...]]:
        for rows in plan:
            texts, pairs = fetch(rows)
            strings = (np.array(texts, dtype=object), np.array(pairs, dtype=object)) if has_pairs else (np.array(texts, dtype=object),)
            if targets is None or weights is None:
                yield strings
            else:
                yield (*strings, *(column[rows] for column in columns.values()), targets[rows], weights[rows])

    signature = [tf.TensorSpec([None], tf.string)] * strings_given
    if targets is not None:
        signature += [tf.TensorSpec([None, *column.shape[1:]], tf.float32) for column in columns.values()]
        shape = [None, *targets.shape[1:]]
        signature += [tf.TensorSpec(shape, tf.as_dtype(targets.dtype)), tf.TensorSpec([None], tf.float32)]

    def tokenise(*given: tf.Tensor) -> Any:
        tokens = preprocess(*given[:strings_given])
        if targets is None:
            return tokens
        return {**tokens, **dict(zip(columns, given[strings_given:-2], strict=True))}, *given[-2:]

    source = tf.data.Dataset.from_generator(rows_of_plan, output_signature=tuple(signature))
    return (
        source.map(tf.autograph.experimental.do_not_convert(tokenise), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(2)
        .apply(tf.data.experimental.assert_cardinality(len(plan)))
    )
