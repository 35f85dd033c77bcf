"""Several sources as one, each with its share of the samples."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from blip2ft.data.order import Key

PERIOD = 10_000  # positions in which every source has its share


class Mixture:
    """Which source each position takes its sample from, and which of its samples.

    Every `PERIOD` positions a source has `slots(weights)` of them, at places drawn anew. Each
    source goes through its own epochs: a small one with a large share begins anew more often.

    keys: of each source, what comes at its own position; samples of a source are numbered from
      `firsts` of it.
    """

    def __init__(
        self,
        keys: Sequence[Callable[[int], Key]],
        firsts: Sequence[int],
        weights: Sequence[float],
        *,
        seed: int,
    ) -> None:
        self.keys, self.firsts, self.seed = keys, firsts, seed
        self.slots = slots(weights)
        self._period = lru_cache(maxsize=2)(self._permute_slots)

    def key_at(self, position: int) -> Key:
        """The sample at `position`, counted from 0; its epoch is that of its source."""
        period, place = divmod(position, PERIOD)
        sources, nths = self._period(period)
        source = int(sources[place])
        key = self.keys[source](period * self.slots[source] + int(nths[place]))
        return Key(key.epoch, self.firsts[source] + key.sample)

    def drawn(self, source: int, positions: int) -> int:
        """How many of the first `positions` positions take their sample from `source`."""
        period, place = divmod(positions, PERIOD)
        sources, _ = self._period(period)
        return period * self.slots[source] + int((sources[:place] == source).sum())

    def _permute_slots(self, period: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each position of a period: its source, and how often that came before in it."""
        rng = np.random.default_rng([self.seed, len(self.slots), period])
        sources = rng.permutation(np.repeat(np.arange(len(self.slots)), self.slots))
        nths = np.empty(PERIOD, np.int64)
        for source, count in enumerate(self.slots):
            nths[sources == source] = np.arange(count)
        return sources, nths


def slots(weights: Sequence[float]) -> list[int]:
    """How many of `PERIOD` positions each source has: its share, by largest remainder.

    Raises ValueError for weights that are negative or all 0, and for a share that is too small.
    """
    if any(not weight >= 0 for weight in weights) or not 0 < sum(weights) < float("inf"):
        raise ValueError(
            f"the weights of the sources are {', '.join(map(str, weights))}; give each a number "
            "from 0 up, and one of them at least more than 0"
        )
    shares = [weight / sum(weights) * PERIOD for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])
    for source in by_remainder[: PERIOD - sum(counts)]:
        counts[source] += 1
    for weight, count in zip(weights, counts, strict=True):
        if weight and not count:
            raise ValueError(
                f"weight {weight} is less than 1/{PERIOD} of all weights ({sum(weights)}), too "
                "little to be drawn; raise it, or leave the source out"
            )
    return counts
