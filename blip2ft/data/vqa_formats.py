"""Readers of the question files of VQAv2, OK-VQA, Visual Genome, A-OKVQA and GQA.

Each gives entries (see entries.py) whose fields are named like those of a `Question` and hold what
the file says: question_id, question, answers, choices, correct_choice, answer_type, question_type;
and what else it says of a question, under the file's names.
"""

import functools
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip2ft.data.decode import decode_json, decode_text
from blip2ft.data.entries import Entry, Problems, unknown_split
from blip2ft.data.paths import list_files

# What VQAv2 says of each question that is known by another name, or is the answers' commonest.
VQAV2_KEYS = ("image_id", "multiple_choice_answer")


@dataclass(frozen=True)
class QuestionRequest:
    """What the caller of `read_questions` asked for: its arguments, but for the source."""

    annotations: str | Path | None = None
    images: str | Path | None = None
    format: str = "auto"
    split: str | None = None
    image_root: str | Path | None = None
    image_column: str = "image"
    question_column: str | None = None
    answer_column: str | None = None
    id_column: str | None = None
    require_answers: bool = True
    revision: str | None = None
    limit: int | None = None
    allow: Collection[str] = ()


def read_vqav2(source: str, request: QuestionRequest, problems: Problems) -> list[Entry]:
    """VQAv2 and OK-VQA: a file of `questions`, and one of `annotations` with ten answers each.

    Images are those of COCO 2014 and 2015, such as train2014/COCO_train2014_000000000009.jpg.
    """
    path = Path(source)
    refuse_split(path, request)
    content = read_json(path, dict, "questions")
    subtype = content.get("data_subtype")
    if not isinstance(subtype, str):
        raise ValueError(
            f"{path.name}: no 'data_subtype', which the names of the images begin with. Add it: "
            "train2014, val2014, test2015 or test-dev2015."
        )
    subtype = subtype.replace("test-dev", "test")
    notes = read_annotations(request, problems)
    find = image_finder(path, request)
    entries = []
    for number, item in enumerate(content["questions"]):
        origin = f"{path.name}: questions[{number}]"
        if not has(item, ("image_id", "question_id"), origin, problems):
            continue
        image_id, identity = item["image_id"], item["question_id"]
        # a question that is there twice is told of later, and not as one without annotation
        noted, note = notes.get(identity, ("", {}))
        if request.annotations is not None and not noted:
            problems.add(
                "a question without its annotation",
                f"{origin} (question_id {identity})",
                "Give the annotations of the same split, or remove the question.",
            )
            continue
        if note.get("image_id", image_id) != image_id:
            problems.add(
                "a question and its annotation name two images",
                f"{origin} (image_id {image_id}) and {noted} (image_id {note['image_id']})",
                "Give questions and annotations of the same version.",
            )
        more = {**note, **item}
        fields = {name: value for name, value in more.items() if name not in VQAV2_KEYS}
        fields |= {"question_id": identity, "question": item.get("question")}
        fields |= {name: note.get(name) for name in ("answers", "answer_type", "question_type")}
        image = find(f"COCO_{subtype}_{padded(image_id)}.jpg", subtype)
        entries.append(Entry(image, image_id, (), origin, fields, path.parent, number))
    asked = {entry.fields["question_id"] for entry in entries}
    for identity, (noted, _) in notes.items():
        if identity not in asked:
            problems.add(
                "an annotation without its question",
                f"{noted} (question_id {identity})",
                "Give the questions of the same split, or remove the annotation.",
            )
    return entries


def read_annotations(request: QuestionRequest, problems: Problems) -> dict[Any, tuple[str, Any]]:
    """Origin and content of each of VQAv2's annotations, by question id; none without a file."""
    if request.annotations is None:
        return {}
    path = Path(request.annotations)
    notes: dict[Any, tuple[str, Any]] = {}
    for number, note in enumerate(read_json(path, dict, "annotations")["annotations"]):
        origin = f"{path.name}: annotations[{number}]"
        if not has(note, ("question_id",), origin, problems):
            continue
        first, _ = notes.setdefault(note["question_id"], (origin, note))
        if first != origin:
            problems.add(
                "two annotations of one question",
                f"{origin} (question_id {note['question_id']}, also {first})",
                "Remove one of them.",
            )
    return notes


def read_visual_genome(source: str, request: QuestionRequest, problems: Problems) -> list[Entry]:
    """Visual Genome's question_answers.json: for each image `qas`, with one answer each.

    Images are VG_100K/{image_id}.jpg or VG_100K_2/{image_id}.jpg.
    """
    path = Path(source)
    refuse_split(path, request)
    find = image_finder(path, request)
    entries: list[Entry] = []
    for place, image in enumerate(read_json(path, list)):
        origin = f"{path.name}: [{place}]"
        if not isinstance(image, dict) or not isinstance(image.get("qas"), list):
            problems.add("no list 'qas'", origin, "Add it, or remove the image.")
            continue
        for number, item in enumerate(image["qas"]):
            here = f"{origin}.qas[{number}]"
            if not has(item, ("image_id", "qa_id"), here, problems):
                continue
            fields = {
                "question_id": item["qa_id"],
                "question": item.get("question"),
                "answers": item.get("answer"),
            }
            file = find(f"{item['image_id']}.jpg", "VG_100K", "VG_100K_2")
            entries.append(
                Entry(file, item["image_id"], (), here, fields, path.parent, len(entries))
            )
    return entries


def read_aokvqa(source: str, request: QuestionRequest, problems: Problems) -> list[Entry]:
    """A-OKVQA: a list of questions with `choices` and `direct_answers`, test sets without answers.

    Images are those of COCO 2017, such as val2017/000000000009.jpg.
    """
    path = Path(source)
    find = image_finder(path, request)
    entries = []
    splits = set()
    for number, item in enumerate(read_json(path, list)):
        origin = f"{path.name}: [{number}]"
        if not has(item, ("image_id", "question_id"), origin, problems):
            continue
        split = str(item.get("split") or "")
        splits.add(split)
        if request.split not in (None, split):
            continue
        fields = {
            "question_id": item["question_id"],
            "question": item.get("question"),
            "answers": item.get("direct_answers"),
            "choices": item.get("choices"),
            "correct_choice": item.get("correct_choice_idx"),
            "difficult_direct_answer": item.get("difficult_direct_answer"),
        }
        folders = dict.fromkeys((split or "train", "train", "val", "test"))
        image = find(f"{padded(item['image_id'])}.jpg", *(f"{name}2017" for name in folders))
        entries.append(Entry(image, item["image_id"], (), origin, fields, path.parent, number))
    if splits and request.split not in (None, *splits):
        raise unknown_split(path.name, request.split, sorted(splits - {""}))
    return entries


def read_gqa(source: str, request: QuestionRequest, problems: Problems) -> list[Entry]:
    """GQA: questions by their id, with one answer each. Images are images/{imageId}.jpg.

    The question type is the structural one: query, verify, logical, choose or compare; the
    semantic and the detailed one are fields.
    """
    path = Path(source)
    refuse_split(path, request)
    find = image_finder(path, request)
    entries = []
    for number, (identity, item) in enumerate(read_json(path, dict).items()):
        origin = f"{path.name}: {identity}"
        if not has(item, ("imageId",), origin, problems):
            continue
        types = item.get("types")
        types = types if isinstance(types, dict) else {}
        fields = {
            "question_id": identity,
            "question": item.get("question"),
            "answers": item.get("answer"),
            "question_type": types.get("structural"),
            "semantic": types.get("semantic"),
            "detailed": types.get("detailed"),
        }
        image = find(f"{item['imageId']}.jpg", "images")
        entries.append(Entry(image, item["imageId"], (), origin, fields, path.parent, number))
    return entries


def refuse_split(path: Path, request: QuestionRequest) -> None:
    """Raise for a split where each has a file of its own."""
    if request.split is not None:
        raise ValueError(
            f"{path.name}: this format has a file for each split, so there is no "
            f"{request.split!r} to choose. Give the split's own file, and leave split out."
        )


def read_json(path: Path, kind: type, key: str | None = None) -> Any:
    """The content of a JSON file that is a list or an object, with a list under `key` if named."""
    content = decode_json(decode_text(path), path)
    fits = isinstance(content, kind)
    if not fits:
        wanted, found = ("a list", "an object") if kind is list else ("an object", "no object")
        raise ValueError(
            f"{path.name}: {found} where {wanted} of questions belongs. "
            "Set format to what the file is."
        )
    if key is not None and not isinstance(content.get(key), list):
        raise ValueError(
            f"{path.name}: no list {key!r} in it; its keys are: {', '.join(content)}. Give the "
            "file of questions first and that of annotations as `annotations`."
        )
    return content


def has(item: Any, keys: tuple[str, ...], origin: str, problems: Problems) -> bool:
    """Whether an item has all these ids; complains of each that is missing."""
    found = item if isinstance(item, dict) else {}
    missing = [key for key in keys if type(found.get(key)) not in (str, int)]
    for key in missing:
        problems.add(f"no {key}", origin, "Add it, as text or a whole number.")
    return not missing


def padded(image_id: str | int) -> str:
    """A COCO image's id as its file name has it."""
    return f"{image_id:>012}"


def image_finder(path: Path, request: QuestionRequest) -> Callable[..., str]:
    """A function from a file name and folders to look in to the path from the root.

    It looks into the root last, and gives the first folder where the file is nowhere. Folders are
    listed once.
    """
    root = os.fspath(path.parent if request.image_root is None else request.image_root)

    @functools.cache
    def listed(folder: str) -> set[str]:
        return set() if request.images else list_files(os.path.join(root, folder))

    def find(name: str, *folders: str) -> str:
        found = next((folder for folder in (*folders, "") if name in listed(folder)), folders[0])
        return f"{found}/{name}" if found else name

    return find
