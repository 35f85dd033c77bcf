"""The formats that questions are read from: which one a file is in, and tables of any columns."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from blip2ft.data.arrow import read_huggingface, read_parquet
from blip2ft.data.entries import (
    CAPTION_COLUMNS,
    ID_COLUMN,
    Entry,
    Problems,
    Request,
    UnknownColumn,
    nearest,
)
from blip2ft.data.records import recognise, require_file
from blip2ft.data.tables import read_csv, read_jsonl
from blip2ft.data.vqa_formats import (
    QuestionRequest,
    read_aokvqa,
    read_gqa,
    read_visual_genome,
    read_vqav2,
)

COLUMNS = {  # of a table, by the field that they fill
    "question": ("question",),
    "answers": ("answers", "answer", "direct_answers"),
    "question_id": ("question_id",),
    "choices": ("choices",),
    "correct_choice": ("correct_choice", "correct_choice_idx"),
    "answer_type": ("answer_type",),
    "question_type": ("question_type",),
}


def read_table(
    read: Callable[[str, Request, Problems], list[Entry]],
    source: str,
    request: QuestionRequest,
    problems: Problems,
) -> list[Entry]:
    """A table as one of the readers of captions reads it, its columns as those of a `Question`."""
    named = {
        "question": ("question_column", request.question_column),
        "answers": ("answer_column", request.answer_column),
        "question_id": ("id_column", request.id_column),
    }
    # a column that is called like one of captions is set apart by their readers
    apart = next((column for _, column in named.values() if column in CAPTION_COLUMNS), None)
    image = ID_COLUMN if request.images is not None else request.image_column
    entries = read(
        source, Request(request.split, image, apart, None, False, request.revision), problems
    )
    if apart:
        for entry in entries:
            several = len(entry.captions) != 1
            entry.fields[apart] = list(entry.captions) if several else entry.captions[0]
    names = list(dict.fromkeys(name for entry in entries for name in entry.fields))
    columns: dict[str, str] = {}
    for field, known in COLUMNS.items():
        parameter, column = named.get(field, ("", None))
        wanted = (column,) if column else known
        found = next((name for name in wanted if name in names), None)
        answered = not request.require_answers or "choices" in names
        optional = field != "question" and (field != "answers" or answered)
        if found:
            columns[field] = found
        elif entries and (column or not optional):
            raise UnknownColumn(
                f"{source}: no column {' or '.join(wanted)}; there are: {', '.join(names)}."
                f"{nearest(wanted[0], names)} Set {parameter} to the one that holds it.",
                wanted[0],
            )
    for entry in entries:
        said = entry.fields
        entry.fields = {name: said[name] for name in said if name not in columns.values()}
        entry.fields |= {name: said.get(column) for name, column in columns.items()}
    return entries


FORMATS: dict[str, Callable[[str, QuestionRequest, Problems], list[Entry]]] = {
    "vqav2": read_vqav2,
    "visual_genome": read_visual_genome,
    "aokvqa": read_aokvqa,
    "gqa": read_gqa,
    "jsonl": partial(read_table, read_jsonl),
    "csv": partial(read_table, read_csv),
    "parquet": partial(read_table, read_parquet),
    "huggingface": partial(read_table, read_huggingface),
}
HEAD = 1 << 16  # bytes of a JSON file that tell its format


def find_format(source: str, format: str) -> str:
    """The format asked for, or the one that the source is in; its file is there."""
    if format not in ("auto", *FORMATS):
        raise ValueError(
            f"unknown format {format!r}.{nearest(format, FORMATS)} "
            f"Formats are: auto, {', '.join(FORMATS)}."
        )
    if format not in ("auto", "parquet", "huggingface"):
        require_file(source)
    if format != "auto":
        return format
    if Path(source).suffix.lower() != ".json" or not Path(source).is_file():
        format = recognise(source)
    else:
        with open(source, "rb") as file:
            head = file.read(HEAD)
        keys = set(re.findall(rb'"(\w+)"\s*:', head))
        if not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            format = "gqa" if b"imageId" in keys else "vqav2" if b"questions" in keys else ""
        elif b"qas" in keys:
            format = "visual_genome"
        elif {b"choices", b"image_id"} <= keys and b"image" not in keys:
            format = "aokvqa"
        else:
            format = "jsonl"
    if format not in FORMATS:
        raise ValueError(
            f"{source}: can't tell its format. Set format to one of: {', '.join(FORMATS)}."
        )
    return format
