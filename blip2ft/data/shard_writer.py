"""One tar shard: its members, byte for byte the same whenever it is written."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from blip2ft.data.entries import CAPTION_COLUMNS, ID_COLUMN
from blip2ft.data.images import FORMATS, open_image
from blip2ft.data.records import Record
from blip2ft.data.tar import fill_tar
from blip2ft.whole import whole

# Pillow's names of what `open_image` opens, as extensions
EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",  # JPEGs of phones that hold a second picture
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "TIFF": "tif",
    "BMP": "bmp",
    "AVIF": "avif",
    "JPEG2000": "jp2",
    "PPM": "ppm",
}
QUALITY = 95  # of images that are made smaller


class Written(NamedTuple):
    """A shard that was written; of one without samples there is no file.

    broken: origin and reason of each image that was left out.
    """

    number: int
    name: str
    samples: int
    size: int
    broken: list[dict[str, str]]


def write_shard(
    folder: Path,
    name: str,
    number: int,
    records: Sequence[Record],
    first: int,
    image_size: int | None,
) -> Written:
    """Write records as the tar `name`, whole or not at all, images that can't be read left out.

    first: the number of the first record, for their keys; image_size: see `image_file`.
    """
    broken: list[dict[str, str]] = []

    def files() -> Iterator[tuple[str, bytes]]:
        for key, record in enumerate(records, start=first):
            try:
                data, extension = image_file(record, image_size)
            except (ValueError, OSError) as error:
                reason = str(error).removeprefix("an image of ").removeprefix(f"{record.origin}: ")
                broken.append({"origin": record.origin, "reason": reason})
                continue
            yield f"{key:09d}.{extension}", data
            yield f"{key:09d}.json", json.dumps(texts(record), default=str).encode()

    with whole(folder / name) as partial:
        size = fill_tar(partial, files())
        samples = len(records) - len(broken)
        if not samples:
            partial.unlink()
    return Written(number, name, samples, size, broken)


def image_file(record: Record, image_size: int | None) -> tuple[bytes, str]:
    """The bytes of an image that was found to open, and its extension.

    image_size: an image whose shorter side has more pixels is shrunk to it, as JPEG.

    Raises ValueError or OSError where it can't be read.
    """
    source, where = record.image, record.origin
    if isinstance(source, Path):
        data, where = source.read_bytes(), str(source)
    else:
        data = source if isinstance(source, bytes) else source.read()
    image = open_image(data, origin=where)
    shorter = min(image.size)
    if image_size is not None and shorter > image_size:
        width, height = (round(side * image_size / shorter) for side in image.size)
        file = io.BytesIO()
        image.resize((width, height), Image.Resampling.LANCZOS).save(file, "JPEG", quality=QUALITY)
        return file.getvalue(), "jpg"
    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
        return data, EXTENSIONS[opened.format or ""]


def texts(record: Record) -> Mapping[str, Any]:
    """What the .json of a record holds; the reader takes the same captions and id from it."""
    named = (*CAPTION_COLUMNS, ID_COLUMN)
    fields = {name: value for name, value in record.fields.items() if name not in named}
    several = len(record.captions) != 1
    captions = {"captions": record.captions} if several else {"caption": record.captions[0]}
    return {ID_COLUMN: record.image_id, **captions, **fields}
