"""The order of samples depends on the seed and nothing else."""

from collections import Counter
from itertools import pairwise

import pytest

from blip2ft.data.order import Key, Order


def keys(order: Order, steps: int) -> list[Key]:
    return [key for step in range(steps) for key in order.batch(step)]


@pytest.mark.parametrize(("length", "batch_size"), [(5, 4), (12, 4), (3, 8), (1, 1), (1, 3)])
def test_every_sample_comes_once_an_epoch(length, batch_size):
    order = Order(length, batch_size, seed=3)
    seen = keys(order, order.steps(4))
    for epoch in range(4):
        assert sorted(k.sample for k in seen if k.epoch == epoch) == list(range(length))


def test_batches_are_full_and_span_epochs():
    order = Order(5, 4, seed=0)
    assert [len(order.batch(step)) for step in range(6)] == [4] * 6
    assert [key.epoch for key in keys(order, 3)] == [0] * 5 + [1] * 5 + [2] * 2


def test_the_drawn_order_is_the_true_one():
    drawn = Order.__doc__.split("size 4:")[1].splitlines()[0]
    samples = [int(word) for word in drawn.replace(".", "|").split() if word.isdigit()]
    assert samples == [key.sample for key in keys(Order(5, 4, seed=0), 2)]


def test_a_batch_may_hold_several_epochs():
    order = Order(3, 8, seed=1)
    assert Counter(key.epoch for key in order.batch(0)) == {0: 3, 1: 3, 2: 2}


@pytest.mark.parametrize(
    ("length", "batch_size", "epochs", "steps"), [(5, 4, 1, 2), (5, 4, 4, 5), (8, 4, 3, 6)]
)
def test_steps_see_every_sample_as_often_as_asked(length, batch_size, epochs, steps):
    order = Order(length, batch_size, seed=0)
    assert order.steps(epochs) == steps
    times = Counter(key.sample for key in keys(order, steps) if key.epoch < epochs)
    assert set(times.values()) == {epochs}


def test_the_order_is_the_same_each_time_and_in_whatever_sequence_it_is_asked():
    first = [Order(20, 6, seed=7).batch(step) for step in range(9)]
    order = Order(20, 6, seed=7)
    again = {step: order.batch(step) for step in (8, 0, 5, 3, 1, 7, 2, 6, 4)}
    assert first == [again[step] for step in range(9)]


def test_epochs_and_seeds_differ():
    orders = [[k.sample for k in Order(50, 50, seed).batch(e)] for seed in (0, 1) for e in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_processes_and_micro_batches_share_out_the_same_batches(world_size, size):
    order = Order(7, 12, seed=2)
    count = order.accumulation(world_size, size)
    ranks = [
        list(order.micro_batches(2, 6, rank=rank, world_size=world_size, size=size))
        for rank in range(world_size)
    ]
    for i, step in enumerate(range(2, 6)):
        parts = [rank[i * count : (i + 1) * count] for rank in ranks]
        assert all(len(micro) <= size for rank in parts for micro in rank)
        union = [key for rank in parts for micro in rank for key in micro]
        assert sorted(union) == sorted(order.batch(step))
    assert [len(rank) for rank in ranks] == [4 * count] * world_size


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_what_is_padded_together_is_about_as_long(world_size, size):
    order = Order(50, 12, seed=3)
    lengths = [(7 * sample) % 23 for sample in range(50)]
    ranks = [
        list(
            order.micro_batches(
                2,
                6,
                rank=rank,
                world_size=world_size,
                size=size,
                length=lambda key: lengths[key.sample],
            )
        )
        for rank in range(world_size)
    ]
    count = order.accumulation(world_size, size)
    for i, step in enumerate(range(2, 6)):
        together = [
            [lengths[key.sample] for rank in ranks for key in rank[micro]]
            for micro in range(i * count, (i + 1) * count)
        ]
        for longer, shorter in pairwise(together):
            assert min(longer) >= max(shorter)
        seen = [
            key for rank in ranks for micro in rank[i * count : (i + 1) * count] for key in micro
        ]
        assert sorted(seen) == sorted(order.batch(step))
    assert {len(rank) for rank in ranks} == {4 * count}


def test_resuming_on_other_processes_goes_on_where_it_was():
    order = Order(7, 4, seed=2)
    before = order.micro_batches(0, 3, rank=0, world_size=1, size=4)
    after = [order.micro_batches(3, 5, rank=rank, world_size=2, size=1) for rank in (0, 1)]
    seen = [key for micro in before for key in micro]
    seen += [key for rank in after for micro in rank for key in micro]
    assert sorted(seen) == sorted(keys(order, 5))


def test_an_order_without_samples_or_batch_is_refused():
    with pytest.raises(ValueError, match=r"at least 1; got 0 samples in batches of 4"):
        Order(0, 4, seed=0)
    with pytest.raises(ValueError, match=r"at least 1; got 5 samples in batches of 0"):
        Order(5, 0, seed=0)


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(
        ValueError, match=r"batch_size 8 can't be shared by 3 processes; choose a multiple of 3"
    ):
        Order(5, 8, seed=0).accumulation(3, 2)
    with pytest.raises(ValueError, match=r"micro_batch_size is 0: it must be at least 1"):
        Order(5, 8, seed=0).accumulation(2, 0)
