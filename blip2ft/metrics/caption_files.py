"""Reads predicted and reference captions: JSON lines, COCO's JSON, or tables of images.

- Predictions: lines `{"image_id", "caption"}`, or COCO results, a JSON list of such objects.
- References: lines `{"image_id", "captions"}` or `{"image_id", "caption"}`, or COCO annotations,
  a JSON object `{"annotations": [{"image_id", "caption"}, ...]}`; or any source that
  `read_records` reads, whose ids are those of its records.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from blip2ft.data.entries import ALLOWABLE
from blip2ft.data.records import read_records, require_file


def read_predictions(path: str | Path) -> dict[int | str, str]:
    """Reads one caption an image.

    Raises:
        ValueError: Naming file and line (or entry): not JSON, not an object, a key missing or of
            the wrong type, an image twice, nothing in the file, no such file.
    """
    require_file(str(path))
    predictions: dict[int | str, str] = {}
    seen: dict[int | str, str] = {}
    for where, row in _rows(Path(path)):
        image = _image_id(where, row)
        caption = _caption(where, row)
        if image in predictions:
            raise ValueError(
                f"{where}: image_id {image!r} is already at {seen[image]}. Predictions hold one "
                "caption an image: remove one of the two."
            )
        predictions[image], seen[image] = caption, where
    return predictions


def read_references(source: str | Path, *, split: str | None = None) -> dict[int | str, list[str]]:
    """Reads the reference captions of each image; those of an image on several lines are joined.

    split: of a source that holds several.

    Raises:
        ValueError: As `read_predictions`, but an image may come more than once.
    """
    path = Path(source)
    if split is not None or not _holds_ids_alone(path):
        records = read_records(source, split=split, check_images=False, allow=ALLOWABLE)
        return {record.image_id: list(record.captions) for record in records}
    references: dict[int | str, list[str]] = {}
    for where, row in _rows(path):
        image = _image_id(where, row)
        if "captions" in row:
            captions = row["captions"]
            if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
                raise ValueError(
                    f"{where}: 'captions' is {_short(captions)}. It must be a list of strings."
                )
            if not captions:
                raise ValueError(
                    f"{where}: 'captions' is empty. It must hold at least one string: add one, or "
                    "remove the line and its prediction."
                )
        else:
            captions = [_caption(where, row, "'captions' or 'caption'")]
        references.setdefault(image, []).extend(captions)
    return references


def _holds_ids_alone(path: Path) -> bool:
    """Whether a file is JSON that names images by id, and not a table of images."""
    if path.suffix.lower() not in (".json", ".jsonl", ".ndjson", ".txt", ""):
        return False
    if not path.is_file():
        return False
    text = path.read_bytes().decode("utf-8-sig", errors="replace").lstrip()
    try:
        first, _ = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError:
        return True  # whose reader names the line
    if isinstance(first, list):
        first = next(iter(first), {})
    if not isinstance(first, dict):
        return True
    return "image" not in first and ("annotations" in first or "sentences" not in text)


def _rows(path: Path) -> Iterator[tuple[str, dict]]:
    """Yields each object with its place, `file:line` or `file: entry n`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from error
    rows = _whole(path, text)
    if rows is None:
        rows = _lines(path, text)
    count = 0
    for where, row in rows:
        if not isinstance(row, dict):
            raise ValueError(
                f"{where}: {_short(row)} is not a JSON object. Expected one such as "
                '{"image_id": 1, "caption": "a dog"}.'
            )
        count += 1
        yield where, row
    if not count:
        raise ValueError(
            f"{path}: holds no captions. Expected one JSON object a line, such as "
            '{"image_id": 1, "caption": "a dog"}.'
        )


def _whole(path: Path, text: str) -> Iterator[tuple[str, object]] | None:
    """The entries of a file that is one COCO document; None where it is JSON lines."""
    start = text.lstrip()[:1]
    if start == "[" or (start == "{" and '"annotations"' in text):
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            if start == "{":
                return None
            raise ValueError(
                f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})."
            ) from error
        if isinstance(document, list):
            return ((f"{path}: entry {n}", row) for n, row in enumerate(document, 1))
        if "annotations" in document and "image_id" not in document:
            entries = document["annotations"]
            if not isinstance(entries, list):
                raise ValueError(
                    f"{path}: 'annotations' is {_short(entries)}. It must be a list of objects "
                    "with 'image_id' and 'caption'."
                )
            return ((f"{path}: annotation {n}", row) for n, row in enumerate(entries, 1))
    return None


def _lines(path: Path, text: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{path}:{number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}:{number}: not valid JSON: {error.msg} (column {error.colno}). Expected "
                'one object a line, such as {"image_id": 1, "caption": "a dog"}.'
            ) from error


def _image_id(where: str, row: dict) -> int | str:
    if "image_id" not in row:
        raise ValueError(f"{where}: no key 'image_id'; keys are {sorted(row)}. Add it.")
    image = row["image_id"]
    if isinstance(image, bool) or not isinstance(image, int | str):
        raise ValueError(
            f"{where}: 'image_id' is {_short(image)}. It must be an integer or a string."
        )
    return image


def _caption(where: str, row: dict, expected: str = "'caption'") -> str:
    if "caption" not in row:
        raise ValueError(f"{where}: no key {expected}; keys are {sorted(row)}. Add it.")
    if not isinstance(row["caption"], str):
        raise ValueError(f"{where}: 'caption' is {_short(row['caption'])}. It must be a string.")
    return row["caption"]


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
