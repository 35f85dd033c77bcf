"""Photos in a folder: found by their names, and read as batches, broken ones aside."""

import hashlib
import logging
import os
import stat
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from blip2ft.data.images import EvalTransform, open_image
from blip2ft.data.loading import load_batches
from blip2ft.data.tables import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Photo:
    """A file as it was when it was seen.

    path: absolute; size: in bytes; mtime: in nanoseconds; image_id: of the bytes, so the same for
    copies and after a move; "" until they are read.
    """

    path: str
    size: int
    mtime: int
    image_id: str = ""


class Batch(NamedTuple):
    """Photos that were read, with their ids.

    pixels: (B, 3, H, W) float32 of those in `decoded`, in that order; known: those with the bytes
    of a known photo, which weren't decoded; broken: what is wrong with each of the rest.
    """

    decoded: list[Photo]
    pixels: Tensor
    known: list[Photo]
    broken: list[str]


def find_photos(folder: str | Path) -> list[Photo]:
    """All image files in a folder and the folders below, sorted by path.

    Names that begin with a dot are left out: thumbnails, and what macOS leaves beside photos.

    Raises ValueError where there is no such folder, or no image in it, and PermissionError where it
    may not be read; of one below, a log line says so.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"there is no folder {folder}; name one that holds photos")
    os.scandir(folder).close()  # may it be read?
    found = []
    for place, folders, names in os.walk(os.path.abspath(folder), onerror=_warn):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.startswith(".") or os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
                continue
            path = os.path.join(place, name)
            seen = look_at(path)
            found.append(seen or Photo(path, 0, 0))  # a link to nowhere: broken when it is read
    if not found:
        allowed = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"the folder {folder} holds no image ({allowed})")
    return sorted(found, key=lambda photo: photo.path)


def look_at(path: str) -> Photo | None:
    """The file as it is now; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return Photo(path, status.st_size, status.st_mtime_ns)


def is_changed(before: Photo | None, now: Photo) -> bool:
    """Whether a file differs from what it was, if it was."""
    return before is None or (before.size, before.mtime) != (now.size, now.mtime)


def read_photos(
    photos: Sequence[Photo],
    transform: EvalTransform,
    *,
    batch_size: int,
    workers: int = 0,
    known: Container[str] = (),
) -> Iterator[Batch]:
    """The photos in order, opened ahead by `workers` processes; ids in `known` aren't decoded."""
    numbers = list(range(len(photos)))
    batches = [numbers[i : i + batch_size] for i in range(0, len(photos), batch_size)]
    yield from load_batches(_Files(photos, transform, known), batches, _join, workers=workers)


def shown(path: str) -> str:
    """A file's name as text; bytes of it that aren't UTF-8 become question marks."""
    return os.fsencode(path).decode("utf-8", "replace")


def _warn(error: OSError) -> None:
    reason = error.strerror
    logger.warning("%s can't be read (%s); what it holds is left out", error.filename, reason)


@dataclass(frozen=True)
class _Files(Dataset):
    photos: Sequence[Photo]
    transform: EvalTransform
    known: Container[str]

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Photo, Tensor | None, str | None]:
        photo = self.photos[index]
        if look_at(photo.path) is None:
            return photo, None, f"{photo.path}: no file is there"
        try:
            data = Path(photo.path).read_bytes()
            photo = replace(photo, image_id=hashlib.sha256(data).hexdigest()[:32])
            if photo.image_id in self.known:
                return photo, None, None
            return photo, self.transform(open_image(data, origin=photo.path)), None
        except OSError as error:
            return photo, None, f"{photo.path}: can't be read ({error.strerror})"
        except ValueError as error:
            return photo, None, str(error).removeprefix("an image of ")


def _join(read: list[tuple[Photo, Tensor | None, str | None]]) -> Batch:
    decoded = [(photo, pixels) for photo, pixels, _ in read if pixels is not None]
    return Batch(
        [photo for photo, _ in decoded],
        torch.stack([pixels for _, pixels in decoded]) if decoded else torch.empty(0),
        [photo for photo, pixels, problem in read if pixels is None and problem is None],
        [problem for _, _, problem in read if problem is not None],
    )
