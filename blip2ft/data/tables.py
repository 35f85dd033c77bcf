"""Readers of plain tables: CSV, JSON lines, and image folders."""

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from blip2ft.data.entries import (
    Entry,
    Problems,
    RepeatedKey,
    Request,
    decode_json,
    decode_text,
    find_columns,
    parse_json,
    table_entries,
    told_json,
    unknown_split,
)

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
    text = decode_text(path)
    rows = csv_rows(text, csv_delimiter(text, path), path.name)
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
    columns = find_columns(names, request, path.name)
    found = []
    name, root = path.name, path.parent
    for line, cells in rows:
        origin = f"{name}:{line}"
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


def csv_delimiter(text: str, path: Path) -> str:
    """The separator: a tab for .tsv, else what the first line has, a comma before others."""
    first = text.partition("\n")[0]
    if path.suffix.lower() == ".tsv":
        return "\t"
    return next((mark for mark in ",;\t" if mark in first), ",")


def csv_rows(text: str, delimiter: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Each row that isn't blank, with the line on which it begins.

    Raises:
        ValueError: Broken quoting, with the line of the row.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(
                f"{name}:{line}: broken quoting ({error}). Close the double quote that opens in "
                'the row beginning there, and write a quote inside a cell as "".'
            ) from error
        if cells:
            yield line, cells


def read_jsonl(source: str, request: Request, problems: Problems) -> list[Entry]:
    """One JSON object a line, or a JSON file with one list of them; a caption may be a list."""
    path = Path(source)
    text = decode_text(path)
    rows = list_rows(text, path, problems)
    if not rows:
        return []
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    columns = find_columns(names, request, path.name)
    root = path.parent
    found = [(row, row.get(columns.image), origin, root) for origin, row in rows]
    return table_entries(found, columns, request, path.name, problems)


def list_rows(text: str, path: Path, problems: Problems) -> list[tuple[str, dict[str, Any]]]:
    """Origin and object of each record of a JSON list or of JSON lines."""
    found: list[tuple[str, Any]] = []
    if path.suffix.lower() == ".json" and text.lstrip().startswith("["):
        listed = decode_json(text, path)
        found = [(f"{path.name}: [{number}]", row) for number, row in enumerate(listed)]
    else:
        # Not splitlines: it also breaks at characters that JSON allows inside strings.
        for line, written in enumerate(text.split("\n"), start=1):
            if not written.strip():
                continue
            try:
                found.append((f"{path.name}:{line}", parse_json(written)))
            except (RepeatedKey, RecursionError) as error:
                remedy = "Write each key once, and records without objects in objects."
                problems.add("ambiguous JSON", f"{path.name}:{line} ({told_json(error)})", remedy)
            except json.JSONDecodeError as error:
                problems.add(
                    "invalid JSON",
                    f"{path.name}:{line} (column {error.colno}: {error.msg})",
                    'Write one object a line, such as {"image": "cat.jpg", "caption": "a cat"}.',
                )
    rows = []
    for origin, row in found:
        if isinstance(row, dict):
            rows.append((origin, row))
        else:
            problems.add(
                "not a JSON object",
                f"{origin} ({type(row).__name__})",
                'Write one object a line, such as {"image": "cat.jpg", "caption": "a cat"}.',
            )
    return rows


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
