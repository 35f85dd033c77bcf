"""Samples of shards with all that they hold: to be written again, with other captions."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from blip2ft.data.broken import Broken
from blip2ft.data.cache import Cache
from blip2ft.data.entries import ID_COLUMN, Problems, Request, check_captions
from blip2ft.data.images import FORMATS, EvalTransform, open_image
from blip2ft.data.records import Record
from blip2ft.data.shard_records import Source, Tar, open_shard
from blip2ft.data.shard_writer import EXTENSIONS
from blip2ft.data.shards import Shard
from blip2ft.data.tar import TarSample, read_sample
from blip2ft.data.webdataset import TEXT, image_extension, texts_of

TRIES = 3  # to read from a shard that the cache may just have removed


@dataclass(frozen=True, slots=True)
class WebImage:
    """One sample, its image opened for the models.

    key: its name in the shard; image: the bytes of the file, whose extension is `extension`;
    captions: those that it came with; fields: what else its .json or row holds, with image_id
    where it has one; others: its other files, by extension; pixels: (3, H, W) for each transform.
    """

    key: str
    origin: str
    image: bytes
    extension: str
    captions: tuple[str, ...]
    fields: Mapping[str, Any]
    others: Mapping[str, bytes]
    pixels: tuple[Tensor, ...] = ()


def shard_names(shards: Sequence[Shard]) -> list[str]:
    """A tar's name for each shard: its own, or for a piece of a Parquet file its file's and row.

    Raises ValueError where two have the same.
    """
    pieces = Counter(shard.url for shard in shards)
    names: dict[str, str] = {}
    for shard in shards:
        piece = f"-{shard.row:09d}" if pieces[shard.url] > 1 else ""
        name = f"{Path(shard.url).stem}{piece}.tar"
        if name in names:
            raise ValueError(
                f"{names[name]} and {shard.url} would both be written as {name}; give one folder "
                "of shards at a time"
            )
        names[name] = shard.url
    return list(names)


class WebImages(Dataset):
    """Samples by the number of their shard and their number in it: a `WebImage`, or `Broken`.

    Those of tars may have no caption. The shard used last stays open, as they are asked for in
    order.
    """

    def __init__(self, source: Source, cache: Cache, transforms: Sequence[EvalTransform]) -> None:
        self.source, self.cache, self.transforms = source, cache, transforms
        self._opened: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> WebImage | Broken:
        for tried in range(1, TRIES + 1):
            try:
                found = self._read(*key)
                break
            except FileNotFoundError:  # the cache made room meanwhile
                self._opened = (-1, None)
                if tried == TRIES:
                    raise
        if isinstance(found, Broken):
            return found
        try:
            image = open_image(found.image, origin=found.origin)
        except ValueError as error:
            reason = str(error).removeprefix(f"an image of {found.origin}: ")
            return Broken(found.origin, reason)
        pixels = tuple(transform(image) for transform in self.transforms)
        return replace(found, extension=found.extension or _suffix(found.image), pixels=pixels)

    def _read(self, number: int, index: int) -> WebImage | Broken:
        shard = self.source.shards[number]
        if self._opened[0] != number:
            self._opened = (-1, None)
            self._opened = number, open_shard(self.source, shard, self.cache)
        opened = self._opened[1]
        if not isinstance(opened, Tar):
            found = opened[index]
            return _of_row(found, shard.row + index) if isinstance(found, Record) else found
        start, end = opened.starts[index : index + 2].tolist()
        try:
            sample = read_sample(opened.path, start, end)
        except ValueError as error:
            return Broken(f"{opened.url}: sample {index}", str(error))
        return _of_sample(sample, opened.request, f"{opened.url}: {sample.key}")


def _of_sample(sample: TarSample, request: Request, origin: str) -> WebImage | Broken:
    problems = Problems(origin)
    try:
        extension = image_extension(sample, request)
        identity, captions, fields = texts_of(sample, request)
    except ValueError as error:
        return Broken(origin, str(error))
    said = check_captions(captions, origin, False, problems)
    if problems.counts:
        return Broken(origin, next(what for what, _ in problems.places))
    if identity is not None:
        fields = {ID_COLUMN: identity, **fields}
    others = {name: data for name, data in sample.data.items() if name not in (extension, "json")}
    for name in (TEXT, request.caption_column):  # what is among the captions needs no file
        if name in others and others[name].decode("utf-8-sig", "replace").strip() in said:
            del others[name]
    image = sample.data[extension]
    return WebImage(sample.key, origin, image, extension, said, fields, others)


def _of_row(record: Record, row: int) -> WebImage:
    """A row of a Parquet file. Its key is its number; so is its id, where it has none of its own,
    and then that is left out: rows of other files have the same."""
    assert isinstance(record.image, bytes)
    fields = dict(record.fields)
    if record.image_id != row:
        fields = {ID_COLUMN: record.image_id, **fields}
    return WebImage(f"{row:09d}", record.origin, record.image, "", record.captions, fields, {})


def _suffix(data: bytes) -> str:
    """The extension that goes with an image file's format."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return EXTENSIONS[image.format or ""]
