"""The order of rows is a function of seed and epoch, loses none, and wastes little."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfpipeline import batches

LENGTHS = np.random.default_rng(1).integers(3, 60, 1003)


def test_every_row_exactly_once_an_epoch() -> None:
    plan = batches.training_plan(LENGTHS, 32, seed=1, epoch=0)
    assert sorted(np.concatenate(plan).tolist()) == list(range(1003))
    assert len(plan) == 32
    assert sorted(len(rows) for rows in plan)[:2] == [11, 32]


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    def flat(seed: int, epoch: int) -> list[int]:
        return np.concatenate(batches.training_plan(LENGTHS, 32, seed=seed, epoch=epoch)).tolist()

    assert flat(1, 0) == flat(1, 0)
    assert flat(1, 0) != flat(1, 1)
    assert flat(1, 0) != flat(2, 0)


def test_rows_meet_different_neighbours_in_each_epoch() -> None:
    same = np.full(256, 10)
    first = {frozenset(rows.tolist()) for rows in batches.training_plan(same, 32, seed=1, epoch=0)}
    assert not first & {frozenset(rows.tolist()) for rows in batches.training_plan(same, 32, seed=1, epoch=1)}


def test_little_of_a_batch_is_padding() -> None:
    def padded(plan: list[batches.Rows]) -> float:
        return sum(len(rows) * int(LENGTHS[rows].max()) for rows in plan) / LENGTHS.sum() - 1

    random = np.array_split(np.random.default_rng(0).permutation(1003), 32)
    assert padded(batches.training_plan(LENGTHS, 32, seed=1, epoch=0)) < 0.06
    assert padded(random) > 0.6


@pytest.mark.parametrize("workers", [1, 2, 3, 40])
def test_workers_share_every_batch_without_loss_or_repetition(workers: int) -> None:
    plan = batches.training_plan(LENGTHS, 32, seed=1, epoch=0)
    parts = [batches.shard(plan, index, workers) for index in range(workers)]
    assert {len(part) for part in parts} == {len(plan)}
    for step, rows in enumerate(plan):
        assert sorted(np.concatenate([part[step] for part in parts]).tolist()) == sorted(rows.tolist())


class _Workers:
    """A strategy of several workers, seen from one of them."""

    def __init__(self, worker: int, workers: int, replicas: int) -> None:
        self.context = tf.distribute.InputContext(workers, worker, workers * replicas)
        self.num_replicas_in_sync = workers * replicas

    def distribute_datasets_from_function(self, make: Any) -> Any:
        return make(self.context)


@pytest.mark.parametrize(("workers", "replicas"), [(1, 2), (2, 1), (3, 2), (40, 1)])
def test_every_replica_of_every_worker_reads_its_own_part(workers: int, replicas: int) -> None:
    plan = batches.training_plan(LENGTHS, 32, seed=1, epoch=0)
    read = [batches.distributed(_Workers(worker, workers, replicas), plan, lambda part: part) for worker in range(workers)]
    assert {len(part) for part in read} == {len(plan) * replicas}
    for step, rows in enumerate(plan):
        parts = [part[step * replicas + replica] for part in read for replica in range(replicas)]
        assert sorted(np.concatenate(parts).tolist()) == sorted(rows.tolist())
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_the_plan_is_read_as_it_is() -> None:
    plan = [np.array([2, 0]), np.array([1])]
    assert batches.distributed(tf.distribute.get_strategy(), plan, lambda part: part) == plan


def test_a_part_without_rows_is_an_element_all_the_same() -> None:
    """Or its worker would be a step behind the others."""
    weights = np.ones(1, np.float32)
    part = batches.dataset([np.array([], np.int64), np.array([0])], _fetch, _joined, np.array([0], np.int32), weights, has_pairs=True)
    assert [tokens["both"].tolist() for tokens, _, _ in part.as_numpy_iterator()] == [[], [b"text 0 | pair 0"]]


def test_evaluation_sees_every_row_once_longest_first() -> None:
    plan = batches.evaluation_plan(LENGTHS, 64)
    assert sorted(np.concatenate(plan).tolist()) == list(range(1003))
    assert LENGTHS[plan[0][0]] == LENGTHS.max()


def _fetch(rows: batches.Rows) -> tuple[list[str], list[str] | None]:
    return [f"text {i}" for i in rows], [f"pair {i}" for i in rows]


def _joined(first: tf.Tensor, second: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"both": tf.strings.join([first, second], " | ")}


def test_the_pipeline_gives_what_the_plan_says() -> None:
    plan = [np.array([2, 0]), np.array([1])]
    targets, weights = np.array([0, 1, 2], np.int32), np.array([1.0, 0.5, 0.25], np.float32)
    got = list(batches.dataset(plan, _fetch, _joined, targets, weights, has_pairs=True).as_numpy_iterator())
    assert [tokens["both"].tolist() for tokens, _, _ in got] == [[b"text 2 | pair 2", b"text 0 | pair 0"], [b"text 1 | pair 1"]]
    assert [y.tolist() for _, y, _ in got] == [[2, 0], [1]]
    assert [w.tolist() for _, _, w in got] == [[0.25, 1.0], [0.5]]


def test_columns_come_beside_the_tokens_of_their_rows() -> None:
    heard = np.array([[0.5, 1.5], [2.5, 3.5], [4.5, 5.5]], np.float32)
    plan = [np.array([2, 0]), np.array([], np.int64)]
    given = batches.dataset(plan, _fetch, _joined, np.zeros(3, np.int32), np.ones(3, np.float32), has_pairs=True, columns={"heard": heard})
    got = [tokens for tokens, _, _ in given.as_numpy_iterator()]
    assert [tokens["both"].tolist() for tokens in got] == [[b"text 2 | pair 2", b"text 0 | pair 0"], []]
    assert [tokens["heard"].tolist() for tokens in got] == [heard[[2, 0]].tolist(), []]


def test_without_targets_only_tokens_come() -> None:
    got = list(
        batches.dataset([np.array([1])], lambda rows: (["a"], None), lambda strings: {"n": tf.strings.length(strings)}).as_numpy_iterator()
    )
    assert got[0]["n"].tolist() == [1]
    assert list(batches.dataset([], lambda rows: ([], None), lambda strings: {"n": strings})) == []
