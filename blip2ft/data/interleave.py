"""The order of samples in many shards, each of which shall be read once and nearly in one go."""

from functools import lru_cache

import numpy as np

from blip2ft.data.order import Key

LANES = 8  # at least so many shards are read at once, and a multiple of it


class Interleaved:
    """Endless epochs over the samples of shards, permuted near enough, in little memory.

    Every epoch permutes the shards and, inside each, its samples. That line of samples is cut into
    lanes of equal length, and the samples come from one lane after the other. Lanes begin at
    different places of a shard, and end with what was before that place:

        4 shards of 4, 2 lanes    c a d b | g i h e     l j m k | p o n f
        lane 0 from the 1st       c a d b   g i h e
        lane 1 from the 3rd                             m k   p o n f   l j
        they come as              c m a k d p b o g n i f h l e j

    So as many shards as there are lanes are read at once, each to its end before the next: what a
    shuffle buffer does, without the buffer. The next shards come one at a time, so that a batch
    doesn't wait for several downloads; and as processes take turns at the samples, 2, 4 or 8 of
    them read different shards.

    sizes: (S,) int64, samples in each shard; samples are numbered shard after shard.
    shuffle: at least so many samples lie in the shards that are read at once.
    number: the source's, where several are mixed, so that their orders differ.

    Memory: three integers a shard, and one a sample for the shards that are read at once.
    """

    def __init__(self, sizes: np.ndarray, *, shuffle: int, seed: int, number: int = 0) -> None:
        self.sizes = np.asarray(sizes, np.int64)
        self.firsts = np.cumsum(self.sizes) - self.sizes
        self.length = int(self.sizes.sum())
        self.lanes = lanes(self.sizes, shuffle)
        self.stagger = self.length // len(self.sizes) // self.lanes
        self.seed, self.number = seed, number
        # of two epochs, as a batch may span them, and of the shards where lanes begin
        self._shards = lru_cache(maxsize=2)(self._permute_shards)
        self._samples = lru_cache(maxsize=2 * self.lanes + 2)(self._permute_samples)

    def key_at(self, position: int) -> Key:
        """The sample at `position`, counted from 0 through all epochs."""
        epoch, place = divmod(position, self.length)
        row, lane = divmod(place, self.lanes)
        shortest, longer = divmod(self.length, self.lanes)  # so many lanes have one sample more
        row = (row + lane * self.stagger) % (shortest + (lane < longer))
        in_line = lane * shortest + min(lane, longer) + row
        shards, ends = self._shards(epoch)
        nth = int(np.searchsorted(ends, in_line, side="right"))
        shard = int(shards[nth])
        inside = in_line - int(ends[nth]) + int(self.sizes[shard])
        return Key(epoch, int(self.firsts[shard] + self._samples(epoch, shard)[inside]))

    def _permute_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in the epoch's order, and where each ends in the line of samples."""
        rng = np.random.default_rng([self.seed, self.number, epoch])
        shards = rng.permutation(len(self.sizes))
        return shards, np.cumsum(self.sizes[shards])

    def _permute_samples(self, epoch: int, shard: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, self.number, epoch, shard + 1])
        return rng.permutation(int(self.sizes[shard])).astype(np.int32)


def lanes(sizes: np.ndarray, shuffle: int) -> int:
    """How many shards to read at once, so that they hold `shuffle` samples or nearly."""
    total = int(sizes.sum())
    wanted = min(-(-shuffle * len(sizes) // total), len(sizes))
    return min(-(-wanted // LANES) * LANES, total)
