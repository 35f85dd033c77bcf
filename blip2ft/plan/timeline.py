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

    def kinds(self) -> np.ndarray:
        """What each event is, a birth or a death and whose: (E,) strings."""
        return np.char.add(np.where(self.sizes > 0, "+", "-"), np.array(self.parts)[self.owners])

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

    Every tensor's size is a constant and a multiple of the micro-batch size. A loss in chunks has
    more of them in a larger batch: between the events that both begin with and those that both end
    with, everything is taken for a multiple.
    """

    small: Timeline
    large: Timeline
    sizes: tuple[int, int]

    def peak(self, size: int, *, accumulates: bool) -> Peak:
        """The peak at micro-batches of `size`."""
        few, more = self.sizes
        small, large = self.small.sizes, self.large.sizes
        first, last = self._alike()
        step = (size - few) / (more - few)
        head = small[:first] + step * (large[:first] - small[:first])
        between = large[first : len(large) - last] * (size / more)
        tail = small[len(small) - last :]
        tail = tail + step * (large[len(large) - last :] - tail)
        sizes = np.rint(np.concatenate([head, between, tail])).astype(np.int64)
        return replace(self.large, sizes=sizes).peak(accumulates=accumulates)

    def _alike(self) -> tuple[int, int]:
        """How many events both begin with, and how many of the others both end with."""
        small, large = self.small.kinds(), self.large.kinds()
        shorter = min(len(small), len(large))
        first = _run(small[:shorter] == large[:shorter])
        rest = shorter - first
        return first, _run(small[::-1][:rest] == large[::-1][:rest])


def _run(same: np.ndarray) -> int:
    """How many are true before the first that isn't."""
    return len(same) if same.all() else int(np.argmin(same))
