"""All rows of some sources, and everything that is wrong with single ones."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip2ft.audit.contents import ALL, Contents, Item
from blip2ft.audit.findings import Finding
from blip2ft.audit.places import Places
from blip2ft.data.entries import Entry, Problems, Request, UnknownColumn, UnknownSplit
from blip2ft.data.paths import check_allowed, locate
from blip2ft.data.patterns import find_files
from blip2ft.data.question_formats import find_format as find_question_format
from blip2ft.data.questions import collect_questions
from blip2ft.data.records import FORMATS, find_format, merge
from blip2ft.data.tables import METADATA_NAMES, find_metadata
from blip2ft.data.vqa_formats import QuestionRequest

ROLES = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation"}
ROLES |= {"testing": "test"}
USUAL = ("train", "validation", "test")
COLUMNS = ("image_column", "caption_column", "id_column", "question_column", "answer_column")
APART = {"webdataset": ".tar", "parquet": ".parquet"}  # whose files are read one by one if need be


@dataclass(frozen=True)
class Source:
    """What to read, and with which arguments of `read_records` or `read_questions`."""

    data: str
    reading: Mapping[str, Any] = field(default_factory=dict)


def read_splits(splits: Mapping[str | None, Sequence[Source]], task: str) -> Contents:
    """Read all sources of each split.

    splits: by name; those of None are what their own splits say, or are all one.

    Raises ValueError where there is no such source, format, split or named column.
    """
    contents = Contents()
    for name, sources in splits.items():
        for source in sources:
            check_allowed(source.reading.get("allow", ()))
            root = source.reading.get("image_root")
            if root is not None and not os.path.isdir(root):
                raise ValueError(
                    f"image_root {root!r} isn't a folder. Set it to the folder that the image "
                    "paths start from."
                )
            read = _read_questions if task == "vqa" else _read_records
            read(source, name, contents)
    usual = {name: contents.splits.pop(name) for name in USUAL if name in contents.splits}
    contents.splits = usual | contents.splits
    return contents


def role_of(split: str) -> str:
    """train, validation or test for the usual names of these, else the name itself."""
    return ROLES.get(split.lower(), split)


def _each_split(
    error: UnknownSplit, source: Source, name: str | None
) -> Iterator[tuple[Source, str]]:
    """The splits to read in the place of one that has to be named, with what they are called.

    Raises the error where one was named, or none has the name of ours.
    """
    if source.reading.get("split") is not None or not error.splits:
        raise error
    # of Karpathy's files, the readers' train has restval in it
    splits = [s for s in error.splits if s != "restval" or "train" not in error.splits]
    chosen = [s for s in splits if name in (None, role_of(s))]
    if not chosen:
        raise error
    for split in chosen:
        yield Source(source.data, {**source.reading, "split": split}), role_of(split)


def _read_records(source: Source, name: str | None, contents: Contents) -> None:
    reading, data = dict(source.reading), source.data
    kind = find_format(data, reading.get("format") or "auto")
    request = Request(
        split=reading.get("split"),
        image_column=reading.get("image_column") or "image",
        caption_column=reading.get("caption_column"),
        id_column=reading.get("id_column"),
        require_captions=True,
        revision=reading.get("revision"),
    )
    inner = os.path.join(data, request.split or "")
    places = Places(inner if request.split and os.path.isdir(inner) else data)
    if kind == "folder" and request.split is None and find_metadata(Path(data)) is None:
        inside = [path.name for path in sorted(Path(data).iterdir()) if _has_metadata(path)]
        if inside:
            for found in inside:
                part = Source(data, {**reading, "split": found})
                _read_records(part, name or role_of(found), contents)
            return
        request = Request(None, "image", None, None, False, None)
        contents.findings.append(Finding("no-text", name or ALL, data))
    problems = Problems(data, keep=None, read_on=True)
    try:
        entries = FORMATS[kind](data, request, problems)
    except UnknownSplit as error:
        for part, found in _each_split(error, source, name):
            _read_records(part, found, contents)
        return
    except ValueError as error:
        parts = _files_apart(source, kind)
        for part in parts:
            _read_records(part, name, contents)
        if not parts:
            contents.findings += _whole(error, source, problems, name or ALL, places)
        return
    if not entries and not problems.counts:
        contents.findings.append(Finding("source", name or ALL, data, "there are no records in it"))
    rows = [_row(entry, reading, contents, places) for entry in entries]
    for entry, (item, refused) in zip(entries, rows, strict=True):
        own: Any = entry.fields.get("split") if request.split is None else request.split
        split = name or (role_of(own) if isinstance(own, str) and own else ALL)
        contents.splits.setdefault(split, []).append(item)
        contents.findings += told(refused, split, places)
    merge(entries, problems)  # after the rows: it joins the captions of each image
    contents.findings += told(problems, name or role_of(request.split or ALL), places)


def _row(
    entry: Entry, reading: Mapping[str, Any], contents: Contents, places: Places
) -> tuple[Item, Problems]:
    origin = places.full(entry.origin, entry.root)
    problems = Problems(entry.origin)
    image = locate(entry, reading.get("image_root"), problems, reading.get("allow", ()))
    number = None if problems.counts else contents.number(image, origin)
    return Item(number, origin, entry.captions), problems


def _read_questions(source: Source, name: str | None, contents: Contents) -> None:
    find_question_format(source.data, source.reading.get("format") or "auto")
    places = Places(source.data)
    problems = Problems(source.data, keep=None, read_on=True)
    split = name or role_of(source.reading.get("split") or ALL)
    try:
        request = QuestionRequest(**source.reading)
        questions = collect_questions(source.data, request, problems)
    except UnknownSplit as error:
        for part, found in _each_split(error, source, name):
            _read_questions(part, found, contents)
        return
    except ValueError as error:
        contents.findings += _whole(error, source, problems, split, places)
        return
    if not questions and not problems.counts:
        contents.findings.append(Finding("source", split, source.data, "there are no questions"))
    items = contents.splits.setdefault(split, [])
    for question in questions:
        origin = places.full(question.origin)
        refused = question.image == b""
        number = None if refused else contents.number(question.image, origin)
        texts = (question.question,) if question.question else ()
        items.append(Item(number, origin, texts, question.answers, question.answer_type))
    contents.findings += told(problems, split, places)


def told(problems: Problems, split: str, places: Places) -> Iterator[Finding]:
    """A finding for each place of each kind of problem."""
    for (what, remedy), listed in problems.places.items():
        for place in listed:
            origin, detail = places.split(place)
            yield Finding("record", split, origin, detail, title=what, remedy=remedy)


def _whole(
    error: ValueError, source: Source, problems: Problems, split: str, places: Places
) -> Iterator[Finding]:
    """The findings for a source of which no row can be read.

    Raises the error where it is of a column that was named, and nothing says that the data are to
    blame.
    """
    named = {source.reading.get(name) for name in COLUMNS} - {None, "image"}
    if isinstance(error, UnknownColumn) and error.column in named and not problems.counts:
        raise error
    message = str(error).partition("\n")[0]
    line = places.line.match(message)
    if line is None:
        name = Path(source.data).name
        detail = message.removeprefix(f"{source.data}: ").removeprefix(f"{name}: ")
        yield Finding("source", split, source.data, detail)
    else:
        yield Finding("source", split, places.full(line[1]), message[line.end() :])
    yield from told(problems, split, places)


def _files_apart(source: Source, kind: str) -> list[Source]:
    """Each file of a source of several, so that a damaged one doesn't hide the others."""
    if kind not in APART or Path(source.data).is_file():
        return []
    split = source.reading.get("split")
    try:
        files, by_name = find_files(source.data, APART[kind], split)
    except ValueError:
        return []
    reading = {**source.reading, "split": None if by_name else split}
    return [Source(str(file), reading) for file in files] if len(files) > 1 else []


def _has_metadata(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).is_file() for name in METADATA_NAMES)
