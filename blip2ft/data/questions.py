"""Questions about images with people's answers, and the function that reads them."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip2ft.data.answers import check_choices, check_texts
from blip2ft.data.arrow import Row
from blip2ft.data.entries import Entry, Problems, check_token
from blip2ft.data.paths import check_allowed, check_files, locate, plain
from blip2ft.data.question_formats import COLUMNS, FORMATS, find_format
from blip2ft.data.records import read_records, require_file
from blip2ft.data.remote import Remote
from blip2ft.data.vqa_formats import QuestionRequest

__all__ = ["FORMATS", "Question", "read_questions"]


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one image.

    Args:
        image: Path of the file, the file's bytes, or a row that reads them when asked.
        image_id: The source's id; without one, the path as written, or the row's number.
        question_id: The source's id, or the row's number. Two sources may use the same ids.
        answers: As people gave them, with repeats: ten in VQAv2, where a single one of them may be
            "". The correct choice where there are only choices; () for test sets.
        origin: Where the question was read ("questions.jsonl:12"), for messages.
        choices: What a multiple-choice question lets one choose from, else ().
        correct_choice: The number of the right one of them, from 0.
        answer_type: In VQAv2 "yes/no", "number" or "other".
        question_type: In VQAv2 the first words, such as "how many".
        fields: All other columns or keys.
    """

    image: Path | bytes | Row | Remote
    image_id: str | int
    question_id: str | int
    question: str
    answers: tuple[str, ...]
    origin: str
    choices: tuple[str, ...] = ()
    correct_choice: int | None = None
    answer_type: str | None = None
    question_type: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def read_questions(
    source: str | Path,
    *,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    format: str = "auto",
    split: str | None = None,
    image_root: str | Path | None = None,
    image_column: str = "image",
    question_column: str | None = None,
    answer_column: str | None = None,
    id_column: str | None = None,
    require_answers: bool = True,
    revision: str | None = None,
    limit: int | None = None,
    check_images: bool = True,
    allow: Collection[str] = (),
) -> list[Question]:
    """Read the questions of one source, in its order. No image is opened.

    To train on several, such as VQAv2's train and val with Visual Genome, add up the lists.

    Rows of a table have the columns image, question, and answer or answers (a list, or in CSV a
    list written ["a dog", "dog"]), and may have image_id, question_id, choices, correct_choice,
    answer_type and question_type. Paths are those that `read_records` allows.

    Args:
        source: File, glob of Parquet files, or hub id ("owner/name", "owner/name:config").
        annotations: The file with the answers, for VQAv2 and OK-VQA.
        images: A source of images for `read_records`, such as the Parquet file that holds them;
            questions then name them by image_id alone.
        format: One of `FORMATS`; "auto" tells it from the name and content.
        split: Which split, by the column "split"; None reads all.
        image_root: Folder that image paths are relative to, or that has COCO's folders in it
            (train2014, val2014, ...), Visual Genome's (VG_100K, VG_100K_2) or GQA's (images).
        image_column: Column of the image.
        question_column: Column of the question; None takes question.
        answer_column: Column of the answers; None takes answers, answer or direct_answers.
        id_column: Column of the question's id; None takes question_id where there is one.
        require_answers: Refuse questions without an answer.
        revision: Branch, tag or commit of a dataset on the hub.
        limit: Keep the first so many questions only.
        check_images: Refuse paths where no file is.
        allow: As for `read_records`.

    Raises:
        ValueError: With every kind of problem found, its first places and their number.
    """
    request = QuestionRequest(
        annotations=annotations,
        images=images,
        format=format,
        split=split,
        image_root=image_root,
        image_column=image_column,
        question_column=question_column,
        answer_column=answer_column,
        id_column=id_column,
        require_answers=require_answers,
        revision=revision,
        limit=limit,
        allow=allow,
    )
    problems = Problems(Path(source).name or os.fspath(source))
    questions = collect_questions(source, request, problems)
    if check_images:
        origins = {q.image: q.origin for q in reversed(questions) if isinstance(q.image, Path)}
        check_files(list(reversed(origins.items())), problems)
    problems.check()
    if not questions:
        raise ValueError(
            f"{source}: no questions in it (read as {find_format(os.fspath(source), format)}). "
            "Check that it is the right file, and that it was written to the end."
        )
    return questions


def collect_questions(
    source: str | Path, request: QuestionRequest, problems: Problems
) -> list[Question]:
    """As `read_questions`, but what is wrong with single questions goes to `problems`.

    Whether the image files are there isn't looked at; an image that may not be read is b"".

    Raises ValueError where the source as a whole can't be read.
    """
    source = os.fspath(source)
    check_allowed(request.allow)
    format = find_format(source, request.format)
    if request.limit is not None and request.limit < 1:
        raise ValueError(f"limit is {request.limit}. Set it to 1 or more, or leave it out for all.")
    root = None if request.image_root is None else os.fspath(request.image_root)
    if root is not None and not os.path.isdir(root):
        raise ValueError(
            f"image_root {root!r} isn't a folder. Set it to the folder that the images are in."
        )
    if request.annotations is None and format == "vqav2" and request.require_answers:
        raise ValueError(
            f"{source}: the answers are in another file. Set annotations to it, or "
            "require_answers=False for a test set."
        )
    if request.annotations is not None:
        if format != "vqav2":
            raise ValueError(
                f"annotations={os.fspath(request.annotations)!r} is for the format vqav2, but "
                f"{source} was read as {format}. Leave it out, or set format."
            )
        require_file(os.fspath(request.annotations))

    entries = FORMATS[format](source, request, problems)[: request.limit]
    if request.images is not None:
        attach(entries, os.fspath(request.images), root, request.allow, problems)
    placed: dict[tuple[Any, Path], Any] = {}  # an image has several questions, and one path
    questions: list[Question] = []
    seen: dict[str | int, str] = {}
    for entry in entries:
        key = (entry.image, entry.root) if isinstance(entry.image, str) else None
        image = placed.get(key) if key else None
        if image is None:
            located = request.images is not None
            image = entry.image if located else locate(entry, root, problems, request.allow)
        if key:
            placed[key] = image
        question = complete(entry, image, request.require_answers, problems)
        questions.append(question)
        first = seen.setdefault(question.question_id, entry.origin)
        if first != entry.origin:
            problems.add(
                "the question id is there twice",
                f"{entry.origin} (question {question.question_id}, also {first})",
                "Give each question its own id, or set id_column to another column.",
            )
    return questions


def attach(
    entries: list[Entry],
    images: str,
    root: str | None,
    allow: Collection[str],
    problems: Problems,
) -> None:
    """Give each entry the image that has its id in another source."""
    read = read_records(
        images, image_root=root, require_captions=False, check_images=False, allow=allow
    )
    by_id = {str(record.image_id): record.image for record in read}
    for entry in entries:
        found = by_id.get(str(entry.image_id))
        if found is None:
            problems.add(
                f"an image that isn't in {images}",
                f"image_id {entry.image_id} ({entry.origin})",
                "Give the images of the same split.",
            )
        # bytes as a placeholder that the checks to come leave alone
        entry.image = b"" if found is None else found


def complete(entry: Entry, image: Any, required: bool, problems: Problems) -> Question:
    """An entry as a question, with complaints about all that is wrong with it."""
    fields = entry.fields
    identity = fields.get("question_id")
    place = entry.origin if identity is None else f"{entry.origin} (question {identity})"
    question = fields.get("question")
    if not isinstance(question, str):
        found = "none" if question is None else repr(question)
        problems.add("no question", f"{place}: {found}", "Write it as text, or remove the row.")
        question = ""
    elif not question.strip():
        problems.add("empty question", place, "Write a question there, or remove the row.")
    check_token("question", question, place, problems)
    if identity is not None and type(identity) not in (str, int):
        problems.add(
            "the question id is neither text nor a whole number",
            f"{entry.origin} ({identity!r})",
            "Correct it, or set id_column to another column.",
        )
        identity = None
    choices, correct = check_choices(fields, place, problems)
    answers = check_texts("answer", fields.get("answers"), place, problems)
    if not any(answers):
        answers = () if correct is None else (choices[correct],)
        if required and not answers:
            problems.add(
                "no answer",
                place,
                "Write one there, or set require_answers to false for a test set.",
            )
    image_id = entry.image_id
    if image_id is None:
        image_id = plain(entry.image) if isinstance(entry.image, str) else entry.number
    answer_type, question_type = (
        kind if isinstance(kind := fields.get(name), str) and kind else None
        for name in ("answer_type", "question_type")
    )
    return Question(
        image,
        image_id,
        entry.number if identity is None else identity,
        question.strip(),
        answers,
        entry.origin,
        choices,
        correct,
        answer_type,
        question_type,
        fields={name: v for name, v in fields.items() if name not in COLUMNS and v is not None},
    )
