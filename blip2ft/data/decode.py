"""The text of files, and the values of JSON, with the line where a file is damaged."""

import codecs
import json
import re
from pathlib import Path
from typing import Any

from blip2ft.data.entries import Problems

UNDECODED = re.compile("[\udc80-\udcff]")  # bytes that aren't UTF-8; no text that is has them
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
SAVE = "Save the file with the encoding UTF-8."


def decode_text(path: Path, problems: Problems | None = None) -> str:
    """The text of a UTF-8 file, with or without a byte-order mark.

    Where `problems` reads on, each line that isn't UTF-8 is among them, and such bytes become
    characters that `UNDECODED` finds.

    Raises:
        ValueError: It isn't UTF-8, with the line where that shows.
    """
    # without its mark, so that the place of an error is one in `data`
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if data.startswith(UTF_16) or b"\0" in data[:2]:
        raise ValueError(f"{path.name}:1: not UTF-8 text but UTF-16. {SAVE}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if problems is None or not problems.read_on:
            line = data.count(b"\n", 0, error.start) + 1
            raise ValueError(
                f"{path.name}:{line}: not UTF-8 text (byte {data[error.start]:#04x}). {SAVE}"
            ) from error
    for number, part in enumerate(data.split(b"\n"), start=1):
        try:
            part.decode("utf-8")
        except UnicodeDecodeError as error:
            place = f"{path.name}:{number} (byte {part[error.start]:#04x})"
            problems.add("not UTF-8 text", place, SAVE)
    return data.decode("utf-8", "surrogateescape")


def decode_json(text: str, path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: It isn't JSON, with the line where that shows.
    """
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path.name}:{error.lineno}: invalid JSON at column {error.colno}: {error.msg}. "
            "Correct the line; a file cut short is best fetched again."
        ) from error
    except (RepeatedKey, RecursionError) as error:
        raise ValueError(f"{path.name}: {told_json(error)}. Correct the file.") from error


class RepeatedKey(ValueError):
    """An object of a JSON file has a key twice, of which most readers drop one silently."""


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises JSONDecodeError, RepeatedKey, and RecursionError for lists within lists without end.
    """
    return json.loads(text, object_pairs_hook=_unique)


def told_json(error: Exception) -> str:
    """What `parse_json` raised, in words."""
    return str(error) if isinstance(error, RepeatedKey) else "lists or objects too deep to read"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RepeatedKey(f"the key {twice!r} is there twice in one object")
    return found
