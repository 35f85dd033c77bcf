"""Which sample comes when: a function of seed and position alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch


class Key(NamedTuple):
    """A sample of an epoch; the epoch seeds its augmentation."""

    epoch: int
    sample: int


def check_shared(batch_size: int, world_size: int) -> None:
    """Raise ValueError where `world_size` processes can't share a batch evenly."""
    if batch_size % world_size:
        raise ValueError(
            f"train.batch_size {batch_size} can't be shared by {world_size} processes; "
            f"choose a multiple of {world_size}, or another number of processes"
        )


@dataclass(frozen=True)
class Order:
    """Endless epochs over `length` samples, cut into global batches of `batch_size`.

    A batch may span two epochs, so that all are full and no sample is dropped. The order knows
    nothing of processes and workers: a run that resumes on other ones goes on where it was.

    key_at: what comes at a position, counted from 0; None permutes all samples anew every epoch.
    Sources too large for that have their own: see interleave.py and mixture.py.

        seed 0, length 5, batch size 4:   4 0 1 3 | 2 . 0 4 2 | ...
                                          step 0    step 1      (. is where epoch 1 begins)
    """

    length: int
    batch_size: int
    seed: int
    key_at: Callable[[int], Key] | None = None

    def __post_init__(self) -> None:
        if self.length < 1 or self.batch_size < 1:
            raise ValueError(
                f"an order needs samples and a batch size of at least 1; got {self.length} samples "
                f"in batches of {self.batch_size}"
            )

    def steps(self, epochs: int) -> int:
        """Steps until every sample was seen `epochs` times."""
        return -(-self.length * epochs // self.batch_size)

    def batch(self, step: int) -> list[Key]:
        """The samples of global step `step`, counted from 0."""
        return self._share(step, 0, 1)

    def micro_batches(
        self,
        first_step: int,
        last_step: int,
        *,
        rank: int,
        world_size: int,
        size: int,
        length: Callable[[Key], int] | None = None,
    ) -> Iterator[list[Key]]:
        """What process `rank` of `world_size` computes, in micro-batches of at most `size`.

        Steps run from `first_step` to before `last_step`; each gives `accumulation(...)` of them.

        length: of a sample's text. Then each step's samples are sorted, so that those which are
          padded to one length at a time, by all processes, are about as long, the longest first.
          Which samples a step has stays as it is.
        """
        for step in range(first_step, last_step):
            if length is None:
                mine = self._share(step, rank, world_size)
            else:
                mine = self._share_sorted(step, rank, world_size, size, length)
            for start in range(0, len(mine), size):
                yield mine[start : start + size]

    def accumulation(self, world_size: int, size: int) -> int:
        """Micro-batches a process computes in one step.

        Raises ValueError where the batch can't be shared out evenly.
        """
        if size < 1:
            raise ValueError(f"train.micro_batch_size is {size}: it must be at least 1")
        check_shared(self.batch_size, world_size)
        return -(-self.batch_size // world_size // size)

    def _share(self, step: int, rank: int, world_size: int) -> list[Key]:
        first, key_at = step * self.batch_size, self.key_at or self._permuted
        return [key_at(first + place) for place in range(rank, self.batch_size, world_size)]

    def _share_sorted(
        self, step: int, rank: int, world_size: int, size: int, length: Callable[[Key], int]
    ) -> list[Key]:
        keys = sorted(self._share(step, 0, 1), key=length, reverse=True)
        at_once = size * world_size
        rounds = (keys[start : start + at_once] for start in range(0, len(keys), at_once))
        return [key for together in rounds for key in together[rank::world_size]]

    def _permuted(self, position: int) -> Key:
        epoch, place = divmod(position, self.length)
        return Key(epoch, _permutation(self.length, self.seed, epoch)[place])


@lru_cache(maxsize=2)
def _permutation(length: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(length, generator=generator).tolist()
