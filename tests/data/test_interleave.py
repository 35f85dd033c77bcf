"""Samples of many shards: every one once an epoch, near each other in time where near on disk."""

import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from blip2ft.data.interleave import LANES, Interleaved, lanes
from blip2ft.data.order import Key, Order


def naive_epoch(sizes: list[int], shuffle: int, seed: int, number: int, epoch: int) -> list[int]:
    """The whole epoch, written down: the line of samples, cut into lanes, read across."""
    firsts = [sum(sizes[:i]) for i in range(len(sizes))]
    line = []
    for shard in np.random.default_rng([seed, number, epoch]).permutation(len(sizes)):
        rng = np.random.default_rng([seed, number, epoch, int(shard) + 1])
        line += [firsts[shard] + int(i) for i in rng.permutation(sizes[shard])]
    count = lanes(np.array(sizes), shuffle)
    cut = np.array_split(np.array(line), count)  # the first ones are longer, as ours
    cut = [np.roll(lane, -i * (len(line) // len(sizes) // count)) for i, lane in enumerate(cut)]
    return [
        int(lane[row]) for row in range(len(cut[0])) for lane in cut if row < len(lane)
    ]  # fmt: skip


CASES = [([1], 1), ([3, 4, 5], 100), ([3, 0, 4], 2), ([7] * 20, 30), ([50, 1, 2, 60], 10)]


@pytest.mark.parametrize(("sizes", "shuffle"), CASES)
@pytest.mark.parametrize("seed", [0, 5])
def test_the_order_is_that_of_the_whole_epoch_written_down(sizes, shuffle, seed):
    order = Interleaved(np.array(sizes), shuffle=shuffle, seed=seed, number=2)
    for epoch in range(3):
        expected = [Key(epoch, i) for i in naive_epoch(sizes, shuffle, seed, 2, epoch)]
        start = epoch * order.length
        assert [order.key_at(start + i) for i in range(order.length)] == expected
        assert sorted(key.sample for key in expected) == list(range(sum(sizes)))


def test_the_sequence_in_which_it_is_asked_changes_nothing():
    sizes = np.array([9] * 30)
    order = Interleaved(sizes, shuffle=20, seed=1)
    positions = np.random.default_rng(0).permutation(600).tolist()
    found = {p: order.key_at(p) for p in positions}
    again = Interleaved(sizes, shuffle=20, seed=1)
    assert [found[p] for p in range(600)] == [again.key_at(p) for p in range(600)]


def test_epochs_seeds_and_sources_differ():
    sizes = np.array([5] * 10)
    orders = [
        tuple(Interleaved(sizes, shuffle=5, seed=s, number=n).key_at(p).sample for p in range(100))
        for s in (0, 1)
        for n in (0, 1)
    ]
    assert len(set(orders)) == 4
    assert all(order[:50] != order[50:] for order in orders)


def test_few_shards_are_read_at_once_and_each_in_one_go():
    order = Interleaved(np.array([100] * 64), shuffle=800, seed=0)
    assert order.lanes == 8
    shards = np.array([order.key_at(p).sample // 100 for p in range(order.length)])
    apart = 0
    for shard in range(64):
        places = np.flatnonzero(shards == shard)
        if places[-1] - places[0] >= 8 * 100:  # a lane began in the middle of it
            apart += 1
    assert apart < 8
    # in 96 places eight lanes read 12 samples each, and one of them goes on to another shard
    windows = [len(set(shards[start : start + 96])) for start in range(0, order.length - 96, 8)]
    assert set(windows) == {8, 9}


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_processes_read_shards_apart(world_size):
    sizes = np.array([10] * 64)
    order = Order(640, 16, 0, Interleaved(sizes, shuffle=80, seed=0).key_at)
    of_rank = []
    for rank in range(world_size):
        micro = order.micro_batches(0, 40, rank=rank, world_size=world_size, size=16)
        of_rank.append({key.sample // 10 for keys in micro for key in keys})
    assert max(Counter(shard for shards in of_rank for shard in shards).values()) == 1


def test_a_shuffle_larger_than_all_reads_all_shards_at_once():
    assert lanes(np.array([5, 5, 5]), 10_000) == LANES
    assert lanes(np.array([5] * 12), 10_000) == 2 * LANES
    assert lanes(np.array([2]), 10_000) == 2
    assert lanes(np.array([1000] * 500), 10_000) == 16


def test_the_order_of_a_hundred_thousand_shards_is_quick_and_small():
    sizes = np.random.default_rng(0).integers(9_000, 10_000, 100_000)
    tracemalloc.start()
    start = time.perf_counter()
    order = Order(int(sizes.sum()), 2048, 0, Interleaved(sizes, shuffle=10_000, seed=0).key_at)
    keys = [key for step in (0, 1, 77_777, 400_000) for key in order.batch(step)]
    seconds = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(keys)) == len(keys)
    assert seconds < 3
    assert peak < 20_000_000
