"""What data hold: rows in splits, and the images that they name, each once."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip2ft.audit.findings import Finding
from blip2ft.data.arrow import Row
from blip2ft.data.remote import Remote
from blip2ft.data.tar import Part

ALL = "data"  # the split of rows that are of none


@dataclass(frozen=True, slots=True)
class Item:
    """A row: the number of its image, None where it has none, and what is said of it."""

    picture: int | None
    origin: str
    texts: tuple[str, ...]
    answers: tuple[str, ...] = ()
    answer_type: str | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that rows name, once.

    image: what reads it; name: its path, or where in a file it is; origin: the first row.
    """

    image: Path | Part | Row | Remote | bytes
    name: str
    origin: str


@dataclass
class Contents:
    """What sources hold: the rows of each split, the images that they name, and what is wrong."""

    splits: dict[str, list[Item]] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    known: dict[Any, int] = field(default_factory=dict, repr=False)

    def number(self, image: Any, origin: str) -> int:
        """The number of an image, the same for each row that names it."""
        key, name = image_key(image, origin)
        number = self.known.setdefault(key, len(self.pictures))
        if number == len(self.pictures):
            self.pictures.append(Picture(image, name, origin))
        return number


def image_key(image: Any, origin: str) -> tuple[Any, str]:
    """What tells an image from all others, and what to call it."""
    if isinstance(image, Path):
        return os.path.abspath(image), os.fspath(image)
    if isinstance(image, Part):
        return (os.path.abspath(image.tar), image.offset), origin
    if isinstance(image, Row):
        return (held_in(image), image.index), origin
    if isinstance(image, Remote):
        return image.url, image.url
    return origin, origin


def held_in(row: Row) -> str:
    """The file that a row is mapped from; "" where it is in memory alone."""
    files = row.dataset.cache_files
    return files[0]["filename"] if files else ""
