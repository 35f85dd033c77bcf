"""Reads questions, annotations and predictions in the files of VQA, VQAv2 and OK-VQA.

- Questions: `{"questions": [{"question_id", "question"}, ...]}`.
- Annotations: `{"annotations": [{"question_id", "answers": [{"answer"}, ...], "answer_type",
  "question_type"}, ...]}`.
- Predictions: `[{"question_id", "answer"}, ...]`.

Other keys are ignored. An id is an integer or a string.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

NAMED_IN_ERRORS = 5

QuestionId = int | str


@dataclass(frozen=True)
class Annotation:
    """What annotators say of a question: their answers, and the types of answer and question."""

    answers: list[str]
    answer_type: str
    question_type: str


def read_vqa(
    questions: str | Path,
    annotations: str | Path,
    predictions: str | Path,
    *,
    allow_missing: bool = False,
) -> tuple[dict[QuestionId, str], dict[QuestionId, Annotation], int]:
    """Reads three files that belong together.

    Returns predictions and annotations of the same questions, both in the annotations' order, and
    the number of annotations left out for want of a prediction. These are refused without
    `allow_missing`, as the official tool does. A question needs no annotation, as there.

    Raises ValueError, naming the file, the ids and what to do: as the functions below, and where an
    annotation has no question or no prediction, or a prediction no annotation.
    """
    asked = read_questions(questions)
    annotated = read_annotations(annotations)
    predicted = read_predicted_answers(predictions)
    unasked = [i for i in annotated if i not in asked]
    if unasked:
        raise ValueError(
            f"{annotations}: {_named(unasked, annotated)} annotations have no question in "
            f"{questions}. Pass the questions of the same split."
        )
    unknown = [i for i in predicted if i not in annotated]
    if unknown:
        raise ValueError(
            f"{predictions}: {_named(unknown, predicted)} predictions answer questions without "
            f"annotation in {annotations}. Pass the annotations of the same split, or leave those "
            "predictions out. Ids compare with their type: 1 is not '1'."
        )
    missing = [i for i in annotated if i not in predicted]
    if missing and not allow_missing:
        raise ValueError(
            f"{predictions}: {_named(missing, annotated)} annotated questions have no prediction. "
            "Answer them all, or score only what is answered with --allow-missing."
        )
    kept = {i: annotation for i, annotation in annotated.items() if i in predicted}
    return {i: predicted[i] for i in kept}, kept, len(missing)


def read_questions(path: str | Path) -> dict[QuestionId, str]:
    """Reads the question of each id.

    Raises:
        ValueError: Naming file, entry and id: not JSON, a key missing or of the wrong type, an id
            twice, nothing in the file.
        FileNotFoundError: There is no such file.
    """
    return {i: _text(where, row, "question") for where, i, row in _rows(Path(path), "questions")}


def read_annotations(path: str | Path) -> dict[QuestionId, Annotation]:
    """Reads the annotation of each question; raises as `read_questions`, and for no answers."""
    found = {}
    for where, i, row in _rows(Path(path), "annotations"):
        answers = row.get("answers")
        if not isinstance(answers, list) or not all(isinstance(a, dict) for a in answers):
            raise ValueError(
                f"{where}: 'answers' is {_short(answers)}. It must be a list of objects such as "
                '{"answer": "yes", "answer_id": 1}.'
            )
        if len(answers) < 2:
            raise ValueError(
                f"{where}: {len(answers)} answers. VQA accuracy compares annotators and needs at "
                "least 2 of them; the official files have 10."
            )
        found[i] = Annotation(
            [
                _text(f"{where}: answer {n}", answer, "answer")
                for n, answer in enumerate(answers, 1)
            ],
            _text(where, row, "answer_type"),
            _text(where, row, "question_type"),
        )
    return found


def read_predicted_answers(path: str | Path) -> dict[QuestionId, str]:
    """Reads the answer to each question, which may be ""; raises as `read_questions`."""
    return {i: _text(where, row, "answer") for where, i, row in _rows(Path(path), None)}


def _rows(path: Path, key: str | None) -> Iterator[tuple[str, QuestionId, dict]]:
    """Yields place, id and object of each entry of the document, or of the list under its `key`."""
    rows = _document(path)
    form = '[{"question_id": 1, ...}, ...]'
    if key:
        form = f'{{"{key}": {form}}}'
        rows = rows.get(key) if isinstance(rows, dict) else None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected {form}, the official format.")
    if not rows:
        raise ValueError(f"{path}: is empty. Expected {form} with at least one entry.")
    places: dict[QuestionId, int] = {}
    for number, row in enumerate(rows, 1):
        where = f"{path}: entry {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{where}: {_short(row)} is not a JSON object. Expected {form}.")
        if "question_id" not in row:
            raise ValueError(f"{where}: no key 'question_id'; keys are {sorted(row)}. Add it.")
        i = row["question_id"]
        if isinstance(i, bool) or not isinstance(i, int | str):
            raise ValueError(
                f"{where}: 'question_id' is {_short(i)}. It must be an integer or a string."
            )
        if i in places:
            raise ValueError(
                f"{where}: question_id {i!r} is already at entry {places[i]}. Remove one."
            )
        places[i] = number
        yield f"{where} (question_id {i!r})", i, row


def _document(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})."
        ) from error


def _text(where: str, row: dict, key: str) -> str:
    if key not in row:
        raise ValueError(f"{where}: no key {key!r}; keys are {sorted(row)}. Add it.")
    if not isinstance(row[key], str):
        raise ValueError(f"{where}: {key!r} is {_short(row[key])}. It must be a string.")
    return row[key]


def _named(ids: list[QuestionId], among: Collection[QuestionId]) -> str:
    names = ", ".join(repr(i) for i in ids[:NAMED_IN_ERRORS])
    more = ", ..." if len(ids) > NAMED_IN_ERRORS else ""
    return f"{len(ids)} of {len(among)} ({names}{more})"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
