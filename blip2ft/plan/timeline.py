"""When memory is held: births and deaths of tensors, and the peak at any micro-batch size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np


class Event(NamedTuple):
    """Bytes that storage `number` took, or gave back (below 0), and whose they are."""

    number: int
    size: int
    part: str


@dataclass(frozen=True)
class Peak:
    """The most bytes held at once, and by part what was held then."""

    size: int
    by_part: dict[str, int]


@dataclass(frozen=True)
class Timeline:
    """Births and deaths in their order.

    numbers, sizes: (E,) int64; a death has the number of its birth and the negative size.
    owners: (E,) index into `parts`, of a death that of its birth.
    gradients: the part that gradients of weights belong to.
    """

    numbers: np.ndarray
    sizes: np.ndarray
    owners: np.ndarray
    parts: tuple[str, ...]
    gradients: str

    @classmethod
    def of(cls, events: Sequence[Event], marked: Mapping[int, str], gradients: str) -> "Timeline":
        """The timeline of `events`; a storage whose number is in `marked` belongs to that part."""
        owner = {e.number: e.part for e in events if e.size > 0} | dict(marked)
        parts = tuple(sorted({*owner.values(), gradients}))
        place = {part: i for i, part in enumerate(parts)}
        return cls(
            np.array([e.number for e in events], dtype=np.int64),
            np.array([e.size for e in events], dtype=np.int64),
            np.array([place[owner[e.number]] for e in events], dtype=np.int64),
            parts,
            gradients,
        )

    def peak(self, *, accumulates: bool) -> Peak:
        """The most that is held at once.

        accumulates: the sums of earlier micro-batches' gradients are there all along, and a new
          gradient only until it is added to them. Else each stays once it is made.
        """
        is_gradient = self.owners == self.parts.index(self.gradients)
        others = np.cumsum(np.where(is_gradient, 0, self.sizes))
        made = np.where(is_gradient & (self.sizes > 0), self.sizes, 0)
        gradients = made + made.sum() if accumulates else np.cumsum(made)
        when = int(np.argmax(others + gradients))
        by_part = np.bincount(
            self.owners[: when + 1], self.sizes[: when + 1], minlength=len(self.parts)
        )
        held = {part: int(size) for part, size in zip(self.parts, by_part, strict=True)}
        held[self.gradients] = int(gradients[when])
        return Peak(int(others[when] + gradients[when]), held)


@dataclass(frozen=True)
class Scale:
    """Timelines of the same pass at two micro-batch sizes, from which those of others follow.

    Every tensor's size is a constant and a multiple of the micro-batch size. Where the two tell
    different stories, only their peaks are compared.
    """

    small: Timeline
    large: Timeline
    sizes: tuple[int, int]

    def peak(self, size: int, *, accumulates: bool) -> Peak:
        """The peak at micro-batches of `size`."""
        step = (size - self.sizes[0]) / (self.sizes[1] - self.sizes[0])
        if _same_story(self.small, self.large):
            sizes = self.small.sizes + step * (self.large.sizes - self.small.sizes)
            there = replace(self.small, sizes=np.rint(sizes).astype(np.int64))
            return there.peak(accumulates=accumulates)
        few, more = (line.peak(accumulates=accumulates) for line in (self.small, self.large))
        by_part = {
            part: round(few.by_part.get(part, 0) + step * (held - few.by_part.get(part, 0)))
            for part, held in more.by_part.items()
        }
        return Peak(round(few.size + step * (more.size - few.size)), by_part)


def _same_story(one: Timeline, other: Timeline) -> bool:
    return (
        one.parts == other.parts
        and np.array_equal(one.numbers, other.numbers)
        and np.array_equal(one.owners, other.owners)
        and np.array_equal(one.sizes > 0, other.sizes > 0)
    )
