"""Which sample comes when: a function of seed and position alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch


class Key(NamedTuple):
    """A sample of an epoch; the epoch seeds its augmentation."""

    epoch: int
    sample: int


@dataclass(frozen=True)
class Order:
    """Endless epochs over `length` samples, cut into global batches of `batch_size`.

    A batch may span two epochs, so that all are full and no sample is dropped. The order knows
    nothing of processes and workers: a run that resumes on other ones goes on where it was.

        seed 0, length 5, batch size 4:   4 0 1 3 | 2 . 0 4 2 | ...
                                          step 0    step 1      (. is where epoch 1 begins)
    """

    length: int
    batch_size: int
    seed: int

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
        first = step * self.batch_size
        keys = []
        for position in range(first, first + self.batch_size):
            epoch, place = divmod(position, self.length)
            keys.append(Key(epoch, _permutation(self.length, self.seed, epoch)[place]))
        return keys

    def micro_batches(
        self, first_step: int, last_step: int, *, rank: int, world_size: int, size: int
    ) -> Iterator[list[Key]]:
        """What process `rank` of `world_size` computes, in micro-batches of at most `size`.

        Steps run from `first_step` to before `last_step`; each gives `accumulation(...)` of them.
        """
        for step in range(first_step, last_step):
            mine = self.batch(step)[rank::world_size]
            for start in range(0, len(mine), size):
                yield mine[start : start + size]

    def accumulation(self, world_size: int, size: int) -> int:
        """Micro-batches a process computes in one step.

        Raises ValueError where the batch can't be shared out evenly.
        """
        if size < 1:
            raise ValueError(f"train.micro_batch_size is {size}: it must be at least 1")
        if self.batch_size % world_size:
            raise ValueError(
                f"train.batch_size {self.batch_size} can't be shared by {world_size} processes; "
                f"choose a multiple of {world_size}, or another number of processes"
            )
        return -(-self.batch_size // world_size // size)


@lru_cache(maxsize=2)
def _permutation(length: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(length, generator=generator).tolist()
