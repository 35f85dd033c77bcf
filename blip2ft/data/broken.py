"""Samples that can't be read: set apart, so that one bad file among millions doesn't end a run."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from blip2ft.data.order import Key


@dataclass(frozen=True, slots=True)
class Broken:
    """In the place of a sample: where it was and what is wrong with it."""

    origin: str
    reason: str


@dataclass(frozen=True)
class Readable(Dataset):
    """Batches of `samples` that hold at least one that isn't `Broken`.

    Where all are, the first readable one of `nearby(key)`, of the last key, comes in their place: a
    batch can't be empty.
    """

    samples: Any
    nearby: Callable[[Key], Iterable[Key]]

    def __getitems__(self, keys: Sequence[Key]) -> list[Any]:
        """The samples of `keys`; a loader asks for all of a batch at once.

        Raises ValueError where nothing near can be read either.
        """
        items = [self.samples[key] for key in keys]
        if not all(isinstance(item, Broken) for item in items):
            return items
        for key in self.nearby(keys[-1]):
            items.append(self.samples[key])
            if not isinstance(items[-1], Broken):
                return items
        raise ValueError(
            f"{items[0].origin}: {items[0].reason}; and the {len(items) - 1} samples tried after "
            "it can't be read either. Look at this shard and its index."
        )


@dataclass(frozen=True)
class Apart:
    """Collate what is readable with `collate`; "broken" of the result is a list of the others.

    "asked" is how many samples the batch was meant to have.
    """

    collate: Callable[[Sequence[Any]], dict[str, Any]]

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        readable = [item for item in items if not isinstance(item, Broken)]
        broken = [item for item in items if isinstance(item, Broken)]
        return {**self.collate(readable), "broken": broken, "asked": len(items)}
