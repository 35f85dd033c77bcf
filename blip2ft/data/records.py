"""One record type for all sources of images and captions, and the function that reads them."""

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip2ft.data.arrow import Row, read_huggingface, read_parquet
from blip2ft.data.coco import read_coco, read_karpathy
from blip2ft.data.entries import Entry, Problems, Request, nearest
from blip2ft.data.paths import check_allowed, check_files, locate, plain
from blip2ft.data.patterns import KINDS, is_pattern
from blip2ft.data.remote import Remote
from blip2ft.data.tables import (
    IMAGE_SUFFIXES,
    METADATA_NAMES,
    read_csv,
    read_folder,
    read_jsonl,
)
from blip2ft.data.tar import Part
from blip2ft.data.webdataset import read_webdataset

__all__ = ["FORMATS", "Record", "Row", "read_records"]

FORMATS: dict[str, Callable[[str, Request, Problems], list[Entry]]] = {
    "jsonl": read_jsonl,
    "csv": read_csv,
    "folder": read_folder,
    "coco": read_coco,
    "karpathy": read_karpathy,
    "parquet": read_parquet,
    "huggingface": read_huggingface,
    "webdataset": read_webdataset,
}
SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".tar": "webdataset",
}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Record:
    """One image and what is said of it.

    Args:
        image: Path of the file, the file's bytes, or a row, part or address that reads them when
            asked.
        image_id: The source's id; without one, the path as written, or the row's number.
        captions: None empty; () where the source has none.
        origin: Where the image was named ("captions.csv:12"), for messages.
        fields: All other columns or keys.
    """

    image: Path | bytes | Row | Part | Remote
    image_id: str | int
    captions: tuple[str, ...]
    origin: str
    fields: Mapping[str, Any]


def read_records(
    source: str | Path,
    *,
    format: str = "auto",
    split: str | None = None,
    image_root: str | Path | None = None,
    image_column: str = "image",
    caption_column: str | None = None,
    id_column: str | None = None,
    require_captions: bool = True,
    revision: str | None = None,
    limit: int | None = None,
    check_images: bool = True,
    allow: Collection[str] = (),
) -> list[Record]:
    """Read the images and captions of one split. No image is opened.

    Rows of a table with the same id, or without ids the same path, become one record with all
    their captions and the first row's fields. A path is relative to `image_root`, or to the folder
    of the file that names it, and may not leave it, unless that is allowed: such data breaks when
    it moves, and whoever wrote the file chooses which of your files are read.

    Args:
        source: File, folder, glob of Parquet or tar files ("shards/{000..123}.tar"), or hub id
            ("owner/name", "owner/name:config").
        format: One of `FORMATS`; "auto" tells it from the name and content.
        split: Which split. Tables are filtered by their column "split"; None reads all of them.
            Formats that have splits of their own need one where there are several.
        image_root: Folder that image paths are relative to.
        image_column: Column of the image; image folders have "file_name" instead.
        caption_column: Column of the caption or captions; None takes caption, captions or text.
        id_column: Column of the image's id; None takes image_id where there is one.
        require_captions: Refuse records without caption.
        revision: Branch, tag or commit of a dataset on the hub.
        limit: Keep the first so many records only.
        check_images: Refuse paths where no file is.
        allow: "outside", paths that leave their folder; "remote", addresses such as https://,
            fetched each time that an image is opened. Links inside the folder are followed wherever
            they lead.

    Raises:
        ValueError: With every kind of problem found, its first places and their number.
    """
    source = os.fspath(source)
    check_allowed(allow)
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}. Set it to 1 or more, or leave it out for all records.")
    if image_root is not None and not Path(image_root).is_dir():
        raise ValueError(
            f"image_root {str(image_root)!r} isn't a folder. "
            "Set it to the folder that the image paths start from."
        )
    format = find_format(source, format)
    request = Request(split, image_column, caption_column, id_column, require_captions, revision)
    name = Path(source).name or source
    problems = Problems(name)
    entries = FORMATS[format](source, request, problems)
    root = None if image_root is None else os.fspath(image_root)
    records = [
        Record(
            locate(entry, root, problems, allow),
            entry.image_id,
            entry.captions,
            entry.origin,
            entry.fields,
        )
        for entry in merge(entries, problems)[:limit]
    ]
    if check_images:
        named = [(r.image, r.origin) for r in records if isinstance(r.image, Path)]
        check_files(named, problems)
    problems.check()
    if not records:
        raise ValueError(
            f"{source}: no records in it (read as {format}). "
            "Check that it is the right file, and that it was written to the end."
        )
    return records


def find_format(source: str, format: str) -> str:
    """The format asked for, or with "auto" the one that the source is in; its file is there.

    Raises ValueError for an unknown format, and where there is nothing there, or nothing known.
    """
    if format not in ("auto", *FORMATS):
        raise ValueError(
            f"unknown format {format!r}.{nearest(format, FORMATS)} "
            f"Formats are: auto, {', '.join(FORMATS)}."
        )
    if format == "auto":
        return recognise(source)
    if format in ("jsonl", "csv", "coco", "karpathy"):
        require_file(source)
    return format


def recognise(source: str) -> str:
    """The name of the format that a source is in.

    Raises:
        ValueError: There is nothing there, or nothing known.
    """
    path = Path(source)
    if path.is_dir():
        return recognise_folder(path)
    if not path.exists():
        if is_pattern(source) and path.suffix in KINDS:
            return SUFFIXES[path.suffix]
        if "://" in source:
            raise ValueError(
                f"{source}: an address, not a file. Fetch it first; only what is trained on as a "
                "stream may be elsewhere."
            )
        local = path.parent.is_dir() or path.suffix in {*SUFFIXES, ".json"}
        if not local and HUB_ID.fullmatch(source):
            return "huggingface"
        require_file(source)
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if suffix == ".json":
        content = path.read_bytes()
        if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            return "jsonl"
        if b'"images"' in content:
            return "karpathy" if b'"sentences"' in content else "coco"
    raise ValueError(
        f"{source}: can't tell its format. Set format to one of: {', '.join(FORMATS)}."
    )


def recognise_folder(folder: Path) -> str:
    """The name of the format that a folder is in; images without metadata come last."""
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return "huggingface"
    here = [folder, *(path for path in folder.iterdir() if path.is_dir())]
    if any((place / name).is_file() for place in here for name in METADATA_NAMES):
        return "folder"
    found = set()
    for path in folder.rglob("*"):
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES and ".parquet" not in found:
            return "folder"
        found.add(suffix)
    for suffix in (".tar", ".parquet"):  # img2dataset writes its metadata as Parquet beside tars
        if suffix in found:
            return SUFFIXES[suffix]
    raise ValueError(
        f"{folder}: a folder without images, {' or '.join(METADATA_NAMES)}, Parquet files, tars "
        f"or a saved dataset. Give another, or set format to one of: {', '.join(FORMATS)}."
    )


def require_file(source: str) -> None:
    """Raise a ValueError with the nearest name if there is no such file."""
    path = Path(source)
    if path.is_file():
        return
    if path.is_dir():
        raise ValueError(f"{source}: a folder, not a file. Give the file in it.")
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    raise ValueError(
        f"{source}: no such file or folder.{nearest(path.name, beside)} "
        f"Check the path; it starts from {Path.cwd()}."
    )


def merge(entries: list[Entry], problems: Problems) -> list[Entry]:
    """One entry an image: captions of entries with the same id, or the same path, are joined."""
    merged: dict[Any, Entry] = {}
    for entry in entries:
        path = plain(entry.image) if isinstance(entry.image, str) else None
        if entry.image_id is not None:
            key: Any = ("id", entry.image_id)
        elif path is not None:
            key = ("path", path)
            entry.image_id = path
        else:
            key = ("number", entry.number)
            entry.image_id = entry.number
        first = merged.setdefault(key, entry)
        if first is entry:
            continue
        first.captions += entry.captions
        one, other = first.image, entry.image
        paths = path is not None and isinstance(one, str) and plain(one) != path
        parts = isinstance(one, Part) and isinstance(other, Part)
        # a tar may hold an image once for each caption
        if paths or (parts and (one.size != other.size or one.read() != other.read())):
            problems.add(
                "one image id for two images",
                f"{entry.origin} (id {entry.image_id}, also {first.origin})",
                "Give each image its own id, or set id_column to another column.",
            )
    return list(merged.values())
