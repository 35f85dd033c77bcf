"""Rows of predictions: what a model said of each image or question, beside all that scores need.

One row is one line of a run's predictions/*.jsonl, and of what `blip2ft evaluate` writes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from blip2ft.data.questions import Question
    from blip2ft.data.records import Record
    from blip2ft.tasks.ranking import Ranking, Rankings

BEST = 5  # texts of an image that a row shows
ID, TEXTS = str | int, "list of texts"
NEEDED: dict[str, dict[str, Any]] = {  # by task, what tells its rows from those of the next
    "vqa": {"question_id": ID, "image_id": ID, "answer": str, "answers": TEXTS},
    "retrieval": {"image_id": ID, "references": TEXTS, "texts": TEXTS},
    "caption": {"image_id": ID, "references": TEXTS, "caption": str},
}


def caption_rows(records: "Sequence[Record]", captions: Sequence[str]) -> list[dict[str, Any]]:
    """One row a record: image_id, caption, references, and what `about_image` says."""
    return [
        {
            "image_id": record.image_id,
            "caption": caption,
            "references": list(record.captions),
            **about_image(record),
        }
        for record, caption in zip(records, captions, strict=True)
    ]


def answer_rows(questions: "Sequence[Question]", answers: Sequence[str]) -> list[dict[str, Any]]:
    """One row a question: question_id, image_id, question, answer, answers, and `about_image`'s.

    Of a question with choices also choices and correct_choice. answer_type and question_type are
    among the fields.
    """
    rows = []
    for question, answer in zip(questions, answers, strict=True):
        row: dict[str, Any] = {
            "question_id": question.question_id,
            "image_id": question.image_id,
            "question": question.question,
            "answer": answer,
            "answers": list(question.answers),
        }
        if question.choices:
            row["choices"] = list(question.choices)
            row["correct_choice"] = question.correct_choice
        rows.append(row | about_image(question))
    return rows


def ranking_rows(records: "Sequence[Record]", rankings: "Rankings") -> list[dict[str, Any]]:
    """One row an image: image_id, references, the best texts with their scores, and the ranks.

    caption: the best text; texts, scores: the best five; image_rank: the rank of the first of its
    own texts among the texts of all images, from 1; text_ranks: the rank of the image for each of
    its texts. A rank is null where the right one was no candidate. What is wrong and scores the
    same counts as better.
    """
    from blip2ft.metrics.recall_at_k import first_right

    def rank(ranking: "Ranking", query: int, right: Sequence[int]) -> int | None:
        found = first_right(ranking.indices[query], ranking.scores[query], right)
        return None if np.isinf(found) else int(found)

    texts = [caption for record in records for caption in record.captions]
    rows: list[dict[str, Any]] = []
    first = 0
    for number, record in enumerate(records):
        own = range(first, first + len(record.captions))
        first = own.stop
        best = rankings.texts_of_images
        found = [texts[i] for i in best.indices[number, :BEST]]
        rows.append(
            {
                "image_id": record.image_id,
                "references": list(record.captions),
                "caption": found[0],
                "texts": found,
                "scores": [round(float(s), 4) for s in best.scores[number, :BEST]],
                "image_rank": rank(best, number, own),
                "text_ranks": [rank(rankings.images_of_texts, i, [number]) for i in own],
                **about_image(record),
            }
        )
    return rows


def about_image(record: "Record | Question") -> dict[str, Any]:
    """What a row says of a record beside the answer.

    image: the path of the file, as a run in this folder finds it, or None where the image is in an
    archive, a table or at an address; then origin names it. fields: those that JSON can hold.
    """
    fields = dict(record.fields)
    fields |= {name: getattr(record, name, None) for name in ("answer_type", "question_type")}
    named = {name: v for name, v in fields.items() if v is not None and _is_json(v)}
    if isinstance(record.image, Path):
        return {"image": str(record.image), "fields": named}
    return {"image": None, "origin": record.origin, "fields": named}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of predictions, all of one task.

    Raises ValueError for a file that is missing, damaged or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file of predictions")
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            wrong = "UTF-8" if isinstance(error, UnicodeDecodeError) else "JSON"
            hint = "expected predictions, as a run and blip2ft evaluate write them"
            if number == len(lines):
                hint = "a line that a kill cut off is completed by the same command with --resume"
            raise ValueError(f"{path}:{number}: not valid {wrong}; {hint}") from error
        task = task_of(row) if isinstance(row, dict) else None
        if task is None:
            raise ValueError(
                f"{path}:{number}: no prediction; expected an object with image_id, caption and "
                "references, or question_id, answer and answers, as a run and blip2ft evaluate "
                "write them"
            )
        if rows and task != task_of(rows[0]):
            raise ValueError(
                f"{path}:{number}: a prediction of {task} behind ones of {task_of(rows[0])}; give "
                "a file of one task"
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no predictions; was it written to the end?")
    return rows


def task_of(row: Mapping[str, Any]) -> str | None:
    """The task that a row is of; None for something else."""
    for task, needed in NEEDED.items():
        if all(_is(row.get(name), kind) for name, kind in needed.items()):
            return task
    return None


def _is(value: Any, kind: Any) -> bool:
    if kind is TEXTS:
        return isinstance(value, list) and all(isinstance(text, str) for text in value)
    return isinstance(value, kind)
