"""The rows of CSV and JSON texts; of one that is damaged within, those that can still be read."""

import csv
import io
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from blip2ft.data.decode import UNDECODED, RepeatedKey, decode_json, parse_json, told_json
from blip2ft.data.entries import Problems

SPACE = re.compile(r"[ \t\r\n]*")
CLOSE = (
    "Close the double quote that opens in the row beginning there, and write a quote inside a cell "
    'as "".'
)


def csv_delimiter(text: str, path: Path) -> str:
    """The separator: a tab for .tsv, else what the first line has, a comma before others."""
    first = text.partition("\n")[0]
    if path.suffix.lower() == ".tsv":
        return "\t"
    return next((mark for mark in ",;\t" if mark in first), ",")


def csv_rows(
    text: str, delimiter: str, name: str, problems: Problems
) -> Iterator[tuple[int, list[str]]]:
    """Each row that isn't blank, with the line on which it begins.

    Where `problems` reads on, broken quoting is among them: the next row is the first line behind
    it that is by itself a row with as many cells as the first.

    Raises:
        ValueError: Broken quoting, with the line of the row.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start, width = 0, 0
    lines: list[str] = []
    while True:
        begin = start + reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            place = f"{name}:{begin + 1}"
            # a cell is endless by itself, or for a quote that isn't closed
            endless = "larger than field limit" in str(error)
            what = "an endless cell, or broken quoting" if endless else "broken quoting"
            remedy = f"Shorten the cell. {CLOSE}" if endless else CLOSE
            if not width or not problems.read_on:
                raise ValueError(f"{place}: {what} ({error}). {remedy}") from error
            lines = lines or list(io.StringIO(text, newline=""))
            rest = range(begin + 1, len(lines))
            start = next((n for n in rest if _is_row(lines[n], delimiter, width)), len(lines))
            on = f"read on from line {start + 1}" if start < len(lines) else "no row behind is read"
            problems.add(what, f"{place} ({error}; {on})", remedy)
            reader = csv.reader(islice(lines, start, None), delimiter=delimiter, strict=True)
            continue
        if cells:
            width = width or len(cells)
            yield begin + 1, cells


def _is_row(line: str, delimiter: str, width: int) -> bool:
    try:
        rows = list(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error:
        return False
    return [len(cells) for cells in rows] == [width]


def list_rows(text: str, path: Path, problems: Problems) -> list[tuple[str, dict[str, Any]]]:
    """Origin and object of each record of a JSON list or of JSON lines."""
    listed = path.suffix.lower() == ".json" and text.lstrip().startswith("[")
    found: list[tuple[str, Any]] = []
    if listed and not problems.read_on:
        records = decode_json(text, path)
        found = [(f"{path.name}: [{number}]", row) for number, row in enumerate(records)]
    else:
        damaged = UNDECODED.search(text) is not None
        parts = _list_parts(text, path, problems) if listed else _line_parts(text, path)
        for origin, written in parts:
            if damaged and UNDECODED.search(written):
                continue
            try:
                found.append((origin, parse_json(written)))
            except (RepeatedKey, RecursionError) as error:
                remedy = "Write each key once, and records without objects in objects."
                problems.add("ambiguous JSON", f"{origin} ({told_json(error)})", remedy)
            except json.JSONDecodeError as error:
                problems.add(
                    "invalid JSON",
                    f"{origin} (column {error.colno}: {error.msg})",
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


def _line_parts(text: str, path: Path) -> Iterator[tuple[str, str]]:
    """Origin and text of each line that isn't blank."""
    # Not splitlines: it also breaks at characters that JSON allows inside strings.
    for line, written in enumerate(text.split("\n"), start=1):
        if written.strip():
            yield f"{path.name}:{line}", written


def _list_parts(text: str, path: Path, problems: Problems) -> Iterator[tuple[str, str]]:
    """Origin and text of each record of a JSON list, up to where it can't be read."""
    find = json.JSONDecoder().raw_decode
    at, number = _behind_space(text, text.index("[") + 1), 0
    try:
        while number or not text.startswith("]", at):
            _, end = find(text, at)
            yield f"{path.name}: [{number}]", text[at:end]
            at, number = _behind_space(text, end), number + 1
            if text.startswith("]", at):
                break
            if not text.startswith(",", at):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at = _behind_space(text, at + 1)
        if text[at + 1 :].strip():
            raise json.JSONDecodeError("Extra data", text, _behind_space(text, at + 1))
    except json.JSONDecodeError as error:
        why = f"column {error.colno}: {error.msg}; nothing behind is read"
        remedy = "Correct the line; a file cut short is best fetched again."
        problems.add("invalid JSON", f"{path.name}:{error.lineno} ({why})", remedy)
    except RecursionError as error:
        place = f"{path.name}: [{number}] ({told_json(error)}; nothing behind is read)"
        problems.add("ambiguous JSON", place, "Write records without objects in objects.")


def _behind_space(text: str, at: int) -> int:
    """The next place of a JSON text that is no space."""
    found = SPACE.match(text, at)
    return at if found is None else found.end()
