"""What one row of a source says, and the collected complaints about it.

The readers of single formats (tables.py, coco.py, arrow.py) give entries; records.py turns them
into records.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip2ft.counted import counted

SHOWN = 5  # places named for each kind of problem; the rest are counted
SHOWN_TEXT = 60  # characters of a caption
LONGEST = 100_000  # characters of one; a page of a book has 2,000
CAPTION_COLUMNS = ("caption", "captions", "text")
ID_COLUMN = "image_id"
IMAGE_TOKEN = "<image>"  # in the place of an image in what models read: no caption may hold it
ALLOWABLE = ("outside", "remote")  # image paths that leave their folder, addresses
# A table's row, what it has for the image, where it is, and the folder that its path starts from.
TableRow = tuple[Mapping[str, Any], Any, str, Path]


@dataclass(frozen=True, slots=True)
class Request:
    """What the caller of `read_records` asked for, as every format needs it."""

    split: str | None
    image_column: str
    caption_column: str | None
    id_column: str | None
    require_captions: bool
    revision: str | None


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns that hold image, caption and id; None where the source has none."""

    image: str
    caption: str | None
    id: str | None


@dataclass(slots=True)
class Entry:
    """One row as it was read: captions are checked, the image isn't.

    Args:
        image: A path as written (relative to `root`), or something with `read() -> bytes`.
        image_id: The source's own id, str or int, or None.
        captions: Stripped, none of them empty.
        origin: File and line or row.
        fields: All other columns.
        root: Folder that a relative path starts from, unless the caller named another.
        number: Place in the source, from 0; the id of an image that has neither id nor path.
    """

    image: Any
    image_id: Any
    captions: tuple[str, ...]
    origin: str
    fields: dict[str, Any]
    root: Path
    number: int


class UnknownSplit(ValueError):
    """A split isn't there, or has to be named; `splits` are those that could be."""

    def __init__(self, message: str, splits: Sequence[str]) -> None:
        super().__init__(message)
        self.splits = tuple(splits)


class UnknownColumn(ValueError):
    """There is no column of the name `column`."""

    def __init__(self, message: str, column: str) -> None:
        super().__init__(message)
        self.column = column


class BadRows(ValueError):
    """Rows that can't be used: of each kind of problem the first places, and their number."""


class Problems:
    """Collects what is wrong with a source, so that a user mends it in one go.

    keep: places that are kept of each kind; None keeps all. The rest are counted.
    read_on: a file that is damaged within is read as far as it can be, its faults among the
        problems; else the first of them is raised.
    """

    def __init__(self, source: str, keep: int | None = SHOWN, *, read_on: bool = False) -> None:
        self.source = source
        self.keep = keep
        self.read_on = read_on
        self.places: dict[tuple[str, str], list[str]] = {}
        self.counts: dict[tuple[str, str], int] = {}

    def add(self, what: str, place: str, remedy: str) -> None:
        """Note one problem: its kind, where it is, and what to do about all of its kind."""
        kind = (what, remedy)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        places = self.places.setdefault(kind, [])
        if self.keep is None or len(places) < self.keep:
            places.append(place)

    def check(self) -> None:
        """Raise BadRows with the first places and the total of each kind, if there are any."""
        if not self.counts:
            return
        lines = []
        for (what, remedy), places in self.places.items():
            rest = self.counts[what, remedy] - len(places)
            listed = "; ".join(places) + (f"; and {rest} more" if rest else "")
            lines.append(f"- {what} ({self.counts[what, remedy]}): {listed}. {remedy}")
        total = counted(sum(self.counts.values()), "problem")
        if any(len(self.places[kind]) < count for kind, count in self.counts.items()):
            lines.append("blip2ft check names them all")
        raise BadRows(f"{self.source}: {total}\n" + "\n".join(lines))


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint that ends a message: the known name most like this one, or nothing."""
    by_folded = {known.casefold(): known for known in names}
    match = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return f" Did you mean {by_folded[match[0]]!r}?" if match else ""


def find_columns(names: Sequence[str], request: Request, source: str) -> Columns:
    """The columns of a table to read.

    Raises:
        ValueError: The caption column isn't there; an UnknownColumn where it was asked for, or is
            another one.
    """
    listed = ", ".join(names)
    if request.image_column not in names:
        raise UnknownColumn(
            f"{source}: no column {request.image_column!r} for the image; there are: {listed}."
            f"{nearest(request.image_column, names)} Set image_column to the one that holds it.",
            request.image_column,
        )
    caption = request.caption_column
    if caption is None:
        caption = next((name for name in CAPTION_COLUMNS if name in names), None)
    elif caption not in names:
        raise UnknownColumn(
            f"{source}: no column {caption!r} for the caption; there are: {listed}."
            f"{nearest(caption, names)} Set caption_column to the one that holds it.",
            caption,
        )
    if caption is None and request.require_captions:
        raise ValueError(
            f"{source}: no column {', '.join(CAPTION_COLUMNS[:-1])} or {CAPTION_COLUMNS[-1]} for "
            f"the caption; there are: {listed}.{nearest(CAPTION_COLUMNS[0], names)} "
            "Set caption_column to the one that holds it."
        )
    identity = request.id_column
    if identity is None:
        identity = ID_COLUMN if ID_COLUMN in names else None
    elif identity not in names:
        raise UnknownColumn(
            f"{source}: no column {identity!r} for the image id; there are: {listed}."
            f"{nearest(identity, names)} Set id_column to the one that holds it, or leave it out.",
            identity,
        )
    return Columns(request.image_column, caption, identity)


def table_entries(
    rows: Iterable[TableRow], columns: Columns, request: Request, source: str, problems: Problems
) -> list[Entry]:
    """The entries of a table's rows; where a split is asked for, those whose column "split" has it.

    Raises:
        ValueError: No row is of that split, or there is no such column.
    """
    used = (columns.image, columns.caption, columns.id)
    entries = []
    splits = set()
    for number, (row, image, origin, root) in enumerate(rows):
        if request.split is not None:
            splits.add(str(row.get("split") or ""))
            if row.get("split") != request.split:
                continue
        identity = row.get(columns.id) if columns.id else None
        if identity is not None and type(identity) not in (str, int):
            problems.add(
                "the image id is neither text nor a whole number",
                f"{origin} ({identity!r})",
                "Correct it, or set id_column to another column.",
            )
            identity = None
        value = row.get(columns.caption) if columns.caption else None
        captions = check_captions(value, origin, request.require_captions, problems)
        fields = {name: value for name, value in row.items() if name not in used}
        entries.append(Entry(image, identity, captions, origin, fields, root, number))
    if request.split is not None and not entries and not problems.counts:
        raise unknown_split(source, request.split, sorted(splits - {""}))
    return entries


def unknown_split(source: str, split: str | None, splits: Sequence[str]) -> UnknownSplit:
    """The error for a split that isn't there, or that has to be named."""
    if not splits:
        return UnknownSplit(
            f"{source}: no split {split!r}; nothing in it says which splits there are. "
            "Leave split out, or add a column 'split'.",
            (),
        )
    found = "a split has to be named" if split is None else f"no split {split!r}"
    return UnknownSplit(
        f"{source}: {found}; the splits are: {', '.join(splits)}."
        f"{nearest(split or '', splits)} Set split to one of them.",
        splits,
    )


def check_captions(value: Any, origin: str, required: bool, problems: Problems) -> tuple[str, ...]:
    """One caption or a list of them as stripped strings; complains of empty and non-text ones.

    Where captions aren't required, empty ones are left out without complaint.
    """
    several = isinstance(value, list | tuple)
    captions = []
    for position, caption in enumerate(value if several else [value]):
        place = f"{origin}, caption {position + 1}" if several else origin
        if caption is None:
            caption = ""
        if not isinstance(caption, str):
            problems.add(
                "the caption isn't text",
                f"{place} ({type(caption).__name__})",
                "A caption is a string, or a list of strings.",
            )
        elif not _is_unicode(caption):
            problems.add(
                "the caption isn't Unicode",
                f"{place} ({caption[:SHOWN_TEXT]!a})",
                "It holds half of a surrogate pair, which no file can; write the character.",
            )
        elif len(caption) > LONGEST:
            problems.add(
                f"a caption of more than {LONGEST:,} characters",
                f"{place} ({len(caption):,}, from {caption[:SHOWN_TEXT]!a} on)",
                "Cut it, or set caption_column to the column that holds captions.",
            )
        elif IMAGE_TOKEN in caption:
            check_token("caption", caption, place, problems)
        elif stripped := caption.strip():
            captions.append(stripped)
        elif required:
            problems.add("empty caption", place, "Write a caption there, or remove it.")
    if several and not value and required:
        problems.add("empty caption", origin, "Write a caption there, or remove it.")
    return tuple(captions)


def check_token(what: str, text: str, place: str, problems: Problems) -> None:
    """Complain of a text that holds what stands for an image."""
    if IMAGE_TOKEN in text:
        said = f"a text that holds {IMAGE_TOKEN}, which stands for an image"
        problems.add(said, f"{place} ({what})", "Take it out: the image's own are put in front.")


def _is_unicode(text: str) -> bool:
    """Whether there are bytes for it: JSON may spell half a character, such as "\\ud83d"."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
