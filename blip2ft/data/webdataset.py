"""What a sample of a tar says: image, captions and fields; and tars read as ordinary records."""

import json
import os
from collections import Counter
from itertools import pairwise
from typing import Any

from blip2ft.data.entries import (
    CAPTION_COLUMNS,
    ID_COLUMN,
    Entry,
    Problems,
    Request,
    check_captions,
)
from blip2ft.data.patterns import find_files
from blip2ft.data.tar import Part, TarSample, find_samples, read_sample

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm")
IMAGE_COLUMN = "image"  # as it is for tables: here any of IMAGES
TEXT = "txt"  # a member that is one caption


def read_webdataset(source: str, request: Request, problems: Problems) -> list[Entry]:
    """Tar shards: a file, a folder of them, a glob or a pattern such as {000..123}.tar.

    Images stay in the tars. The id is that of the field "image_id", else the sample's key; keys
    that are in several tars get the tar's path in front, from the folder on that all tars are in.
    """
    entries: list[Entry] = []
    keys: list[tuple[str, str]] = []  # and its tar
    files, _ = find_files(source, ".tar", request.split)
    common = os.path.commonpath([path.absolute().parent for path in files])
    for path in files:
        starts = find_samples(path).tolist()
        for start, end in pairwise(starts):
            sample = read_sample(path, start, end)
            origin = f"{path.name}: {sample.key}"
            try:
                extension = image_extension(sample, request)
                identity, captions, fields = texts_of(sample, request)
            except ValueError as error:
                problems.add(
                    "a sample that can't be read",
                    f"{origin} ({error})",
                    "Correct or remove it, or set image_column and caption_column.",
                )
                continue
            said = check_captions(captions, origin, request.require_captions, problems)
            part = Part(path, sample.offsets[extension], len(sample.data[extension]))
            entries.append(Entry(part, identity, said, origin, fields, path.parent, len(entries)))
            tar = path.absolute().relative_to(common).with_suffix("").as_posix()
            keys.append((tar, sample.key))
    times = Counter(key for _, key in keys)
    for entry, (tar, key) in zip(entries, keys, strict=True):
        if entry.image_id is None:
            entry.image_id = key if times[key] == 1 else f"{tar}/{key}"
    return entries


def image_extension(sample: TarSample, request: Request) -> str:
    """Which member is the image: the first of `IMAGES`, or what `image_column` names.

    Raises ValueError where there is none.
    """
    asked = request.image_column
    wanted = IMAGES if asked == IMAGE_COLUMN else (asked.lower(),)
    found = next((extension for extension in wanted if extension in sample.data), None)
    if found is None:
        raise ValueError(f"no image {' '.join(wanted)} among its members ({' '.join(sample.data)})")
    return found


def texts_of(sample: TarSample, request: Request) -> tuple[str | int | None, Any, dict[str, Any]]:
    """The image's id, its caption or captions as they are written, and all other fields.

    Captions are those of the sample's .json (caption, captions or text), else its .txt; where
    `caption_column` is set, it names a field of the .json or a member's extension.

    Raises ValueError for a text that isn't UTF-8, or JSON that isn't an object.
    """
    fields: dict[str, Any] = {}
    if "json" in sample.data:
        try:
            fields = json.loads(sample.data["json"])
        except ValueError as error:  # JSON's own, and that of text which isn't UTF-8
            raise ValueError(f"its .json can't be read: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"its .json holds {type(fields).__name__}, not an object")
    asked = request.caption_column
    names = CAPTION_COLUMNS if asked is None else (asked,)
    column = next((name for name in names if fields.get(name)), None)
    captions: Any = None
    member = TEXT if asked is None else asked
    if column is not None:
        captions = fields.pop(column)
    elif member in sample.data:
        try:
            captions = sample.data[member].decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"its .{member} isn't UTF-8 text: {error}") from error
    identity = fields.pop(request.id_column or ID_COLUMN, None)
    return (identity if type(identity) in (str, int) else None), captions, fields
