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


def broken_image(origin: str, error: ValueError, *, skip: bool) -> Broken:
    """What stands for a sample whose image `open_image` couldn't read; the error without `skip`."""
    if not skip:
        raise ValueError(
            f"{error} Or leave images that can't be read out (data.on_bad_image skip). "
            "blip2ft check finds all of them at once."
        ) from error
    return Broken(origin, str(error).removeprefix(f"an image of {origin}: "))


@dataclass(frozen=True, slots=True)
class Instead:
    """A sample in the place of a batch that has none of its own."""

    sample: Any


@dataclass(frozen=True)
class NeverEmpty(Dataset):
    """Batches of `samples` that hold at least one that isn't `Broken`.

    Where all are, the first readable one of `nearby(key)`, of the last key, follows as `Instead`: a
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
        tried = len(items) - 1
        for key in self.nearby(keys[-1]):
            item = self.samples[key]
            if not isinstance(item, Broken):
                return [*items, Instead(item)]
            tried += 1
        raise ValueError(
            f"{items[0].origin}: {items[0].reason}; and the {tried} samples tried "
            "after it can't be read either. blip2ft check names what is wrong with each."
        )


@dataclass(frozen=True)
class Apart:
    """Collate what is readable with `collate`; "broken" of the result is a list of the others.

    "asked" is how many samples the batch was meant to have.
    """

    collate: Callable[[Sequence[Any]], dict[str, Any]]

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        asked = [item for item in items if not isinstance(item, Instead)]
        broken = [item for item in asked if isinstance(item, Broken)]
        readable = [item for item in asked if not isinstance(item, Broken)]
        readable += [item.sample for item in items if isinstance(item, Instead)]
        return {**self.collate(readable), "broken": broken, "asked": len(asked)}
