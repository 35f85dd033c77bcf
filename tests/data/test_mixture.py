"""Sources that are mixed by weight."""

import re
from collections import Counter

import pytest

from blip2ft.data.mixture import PERIOD, Mixture, slots
from blip2ft.data.order import Key


def counting(length: int):
    """A source that gives its samples in order."""
    return lambda position: Key(*divmod(position, length))


def mixture(weights: list[float], lengths: list[int], seed: int = 0) -> Mixture:
    firsts = [sum(lengths[:i]) for i in range(len(lengths))]
    return Mixture([counting(n) for n in lengths], firsts, weights, seed=seed)


def test_shares_are_right_within_a_slot_in_every_period():
    weights = [1, 2.5, 0.3333, 7]
    mixed = mixture(weights, [10**9] * 4)
    for period in (0, 3):
        drawn = Counter(mixed.key_at(period * PERIOD + i).sample // 10**9 for i in range(PERIOD))
        for source, weight in enumerate(weights):
            assert abs(drawn[source] - PERIOD * weight / sum(weights)) < 1


def test_every_source_goes_through_its_own_epochs_without_a_gap():
    mixed = mixture([3, 1], [700, 10_000], seed=4)
    keys = [mixed.key_at(position) for position in range(3 * PERIOD)]
    for first, length in ((0, 700), (700, 10_000)):
        own = [key for key in keys if first <= key.sample < first + length]
        count = {0: 22_500, 700: 7_500}[first]
        assert own == [Key(p // length, first + p % length) for p in range(count)]


def test_the_sequence_in_which_it_is_asked_changes_nothing():
    mixed, again = mixture([1, 1], [50, 60]), mixture([1, 1], [50, 60])
    positions = [5 * PERIOD + 3, 2, PERIOD, 5 * PERIOD + 3, 0]
    expected = {p: again.key_at(p) for p in sorted(set(positions))}
    assert [mixed.key_at(p) for p in positions] == [expected[p] for p in positions]


def test_periods_and_seeds_differ():
    orders = [
        tuple(mixture([1, 1], [10**9] * 2, seed).key_at(p * PERIOD + i).sample < 10**9
              for i in range(100))
        for seed in (0, 1) for p in (0, 1)
    ]  # fmt: skip
    assert len(set(orders)) == 4


def test_what_is_drawn_of_a_source_is_counted():
    mixed = mixture([1, 3], [10**9] * 2)
    keys = [mixed.key_at(position) for position in range(PERIOD + 123)]
    for positions in (0, 1, 500, PERIOD, PERIOD + 123):
        own = sum(key.sample < 10**9 for key in keys[:positions])
        assert (mixed.drawn(0, positions), mixed.drawn(1, positions)) == (own, positions - own)


def test_a_weight_of_0_leaves_a_source_out():
    assert slots([0, 2]) == [0, PERIOD]


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [float("nan"), 1], [float("inf"), 1]])
def test_weights_that_cannot_be_are_refused(weights):
    told = "the weights of the sources are " + ", ".join(map(str, weights))
    with pytest.raises(ValueError, match=f"{re.escape(told)}; give each a number from 0 up"):
        slots(weights)


def test_a_weight_too_small_to_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"weight 1e-06 is less than 1/10000 of all weights"):
        slots([1e-6, 1])
