"""Readers of plain tables: CSV, JSON lines, and image folders."""

import os
from dataclasses import replace
from pathlib import Path, PurePath

from blip2ft.data.decode import UNDECODED, decode_text
from blip2ft.data.entries import (
    Entry,
    Problems,
    Request,
    find_columns,
    table_entries,
    unknown_split,
)
from blip2ft.data.rows import csv_delimiter, csv_rows, list_rows

IMAGE_SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".jp2",
}
METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
EXAMPLE = 'file_name,caption\ncat.jpg,"a cat on a sofa"'


def read_csv(source: str, request: Request, problems: Problems) -> list[Entry]:
    """One row an image and caption, below a row of column names.

    Commas separate the cells, or tabs in a .tsv; semicolons and tabs are seen from the first row.
    Lines in messages are those where a row begins, from 1.
    """
    path = Path(source)
    text = decode_text(path, problems)
    rows = csv_rows(text, csv_delimiter(text, path), path.name, problems)
    _, header = next(rows, (1, []))
    names = [name.strip() for name in header]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"{path.name}:1: column {repeated[0]!r} is there twice. "
            "Rename one of them; the first row holds the column names."
        )
    if not names:
        raise ValueError(
            f"{path.name}: the file is empty. Give it a first row of column names, such as "
            "image,caption, and one row for each caption."
        )
    paths = [name for name in names if PurePath(name).suffix.lower() in IMAGE_SUFFIXES]
    if paths and request.image_column not in names:
        raise ValueError(
            f"{path.name}:1: the first row has an image, {paths[0]!r}, where the names of the "
            "columns belong. Write a row of names above it, such as image,caption."
        )
    columns = find_columns(names, request, path.name)
    found = []
    name, root = path.name, path.parent
    damaged = UNDECODED.search(text) is not None
    for line, cells in rows:
        origin = f"{name}:{line}"
        if damaged and any(map(UNDECODED.search, cells)):
            continue
        if len(cells) != len(names):
            problems.add(
                f"a row without exactly {len(names)} cells, as the first row has",
                f"{origin} ({len(cells)})",
                "Put cells that contain the separator between double quotes.",
            )
            continue
        row = dict(zip(names, cells, strict=True))
        found.append((row, row[columns.image], origin, root))
    return table_entries(found, columns, request, name, problems)


def read_jsonl(source: str, request: Request, problems: Problems) -> list[Entry]:
    """One JSON object a line, or a JSON file with one list of them; a caption may be a list."""
    path = Path(source)
    text = decode_text(path, problems)
    rows = list_rows(text, path, problems)
    if not rows:
        return []
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    columns = find_columns(names, request, path.name)
    root = path.parent
    found = [(row, row.get(columns.image), origin, root) for origin, row in rows]
    return table_entries(found, columns, request, path.name, problems)


def read_folder(source: str, request: Request, problems: Problems) -> list[Entry]:
    """An image folder with metadata.csv or metadata.jsonl (column file_name), as on the hub.

    A split is a folder inside it. Without metadata, and only where captions aren't required, every
    image in it and in the folders below, sorted by path.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise ValueError(f"{folder}: not a folder. Give the folder that holds the images.")
    metadata = find_metadata(folder)
    if metadata is None and request.split is not None:
        folder = split_folder(folder, request.split)
        # The folder is the split: there is nothing left to choose by a column.
        request = replace(request, split=None)
        metadata = find_metadata(folder)
    if metadata is not None:
        read = read_csv if metadata.suffix == ".csv" else read_jsonl
        return read(str(metadata), replace(request, image_column="file_name"), problems)
    if request.require_captions:
        raise ValueError(
            f"{folder}: no {' or '.join(METADATA_NAMES)} with the captions. Write one into the "
            f"folder, such as:\n{EXAMPLE}"
        )
    images = sorted(
        os.path.relpath(os.path.join(place, name), folder)
        for place, _, names in os.walk(folder)
        for name in names
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
    )
    return [
        Entry(PurePath(path).as_posix(), None, (), str(folder / path), {}, folder, number)
        for number, path in enumerate(images)
    ]


def find_metadata(folder: Path) -> Path | None:
    """The file of captions in an image folder, if there is one."""
    found = [folder / name for name in METADATA_NAMES if (folder / name).is_file()]
    if len(found) > 1:
        raise ValueError(
            f"{folder}: both {' and '.join(METADATA_NAMES)} are there. Remove one of them."
        )
    return found[0] if found else None


def split_folder(folder: Path, split: str) -> Path:
    """The folder of one split inside an image folder."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if split not in names:
        raise unknown_split(str(folder), split, names)
    return folder / split
