"""Samples of shards with all that they hold: to be written again, with other captions."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from blip2ft.data.broken import Broken
from blip2ft.data.cache import Cache
from blip2ft.data.entries import ID_COLUMN
from blip2ft.data.images import FORMATS, EvalTransform, open_image
from blip2ft.data.remote import bare
from blip2ft.data.shard_records import Found, Records, Source
from blip2ft.data.shard_writer import EXTENSIONS
from blip2ft.data.shards import Shard
from blip2ft.data.webdataset import TEXT


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
    pixels: tuple[Tensor, ...]


def shard_names(shards: Sequence[Shard]) -> list[str]:
    """A tar's name for each shard: its own, or for a piece of a Parquet file its file's and row.

    Raises ValueError where two have the same.
    """
    pieces = Counter(shard.url for shard in shards)
    names: dict[str, str] = {}
    for shard in shards:
        piece = f"-{shard.row:09d}" if pieces[shard.url] > 1 else ""
        name = f"{Path(bare(shard.url)).stem}{piece}.tar"
        if name in names:
            raise ValueError(
                f"{names[name]} and {shard.url} would both be written as {name}; give one folder "
                "of shards at a time"
            )
        names[name] = shard.url
    return list(names)


class WebImages(Dataset):
    """Samples by the number of their shard and their number in it: a `WebImage`, or `Broken`.

    They may have no caption, where the source doesn't require one. The shard used last stays open,
    as they are asked for in order.
    """

    def __init__(self, source: Source, cache: Cache, transforms: Sequence[EvalTransform]) -> None:
        self.records, self.transforms = Records([source], cache, keep=1), transforms
        self.firsts = np.cumsum(source.sizes) - source.sizes
        self.caption_column = source.request.caption_column

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> WebImage | Broken:
        shard, number = key
        found = self.records.find(int(self.firsts[shard]) + number)
        if isinstance(found, Broken):
            return found
        record = found.record
        assert isinstance(record.image, bytes)
        try:
            image = open_image(record.image, origin=record.origin)
        except ValueError as error:
            return Broken(record.origin, str(error).removeprefix(f"an image of {record.origin}: "))
        return WebImage(
            found.key,
            record.origin,
            record.image,
            found.extension or _suffix(record.image),
            record.captions,
            # an id that is a row's number is left out: rows of other files have the same
            {ID_COLUMN: record.image_id, **record.fields} if found.named else record.fields,
            self._others(found),
            tuple(transform(image) for transform in self.transforms),
        )

    def _others(self, found: Found) -> dict[str, bytes]:
        """The other files of a sample, without that of a caption."""
        others = dict(found.others)
        for name in (TEXT, self.caption_column):
            if name not in others:
                continue
            if others[name].decode("utf-8-sig", "replace").strip() in found.record.captions:
                del others[name]
        return others


def _suffix(data: bytes) -> str:
    """The extension that goes with an image file's format."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return EXTENSIONS[image.format or ""]
