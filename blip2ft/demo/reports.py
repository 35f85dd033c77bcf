"""Bad answers that people report, kept so that the next run can learn from them.

A folder of reports holds
    images/           each picture once, by the sha256 of its file
    captions.jsonl    image, the right caption, and what was answered
    questions.jsonl   image, question, the right answer, and what was answered
    unanswered.jsonl  reports without a right answer
The first two are read by `blip2ft check` and the recipes, as any other table.
"""

import hashlib
import json
import shutil
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from PIL import Image

REASONS = ("wrong", "something is missing", "harmful", "no sentence", "other")
LONGEST = 2000  # characters of what a person writes
_lock = threading.Lock()


@dataclass(frozen=True)
class Answer:
    """What a model answered, and what it was asked.

    task: "caption" or "vqa"; asked: the prompt or the question; decoding: options of `generate`.
    """

    task: str
    image: str
    asked: str
    output: str
    model: str
    adapter: str | None
    decoding: Mapping[str, Any]


def keep_report(folder: Path, answer: Answer, reason: str, right: str = "") -> Path:
    """Add a report to `folder` and copy its picture there; returns the file that it was added to.

    right: what would have been right, "" where nobody says.

    Raises ValueError for an unknown reason and for texts that are too long.
    """
    if reason not in REASONS:
        raise ValueError(f"the reason is {reason!r}: allowed are {', '.join(REASONS)}")
    right = " ".join(right.split())
    if len(right) > LONGEST:
        raise ValueError(f"the right answer has {len(right)} characters; {LONGEST} are allowed")
    content = Path(answer.image).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    with Image.open(answer.image) as image:
        suffix = "." + (image.format or "png").lower()
    kept = Path("images") / f"{digest}{suffix}"
    row = asdict(answer) | {"image": kept.as_posix(), "image_sha256": digest, "reason": reason}
    row["time"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    name = "unanswered.jsonl"
    if right and answer.task == "vqa":
        name = "questions.jsonl"
        row = {"image": row.pop("image"), "question": row.pop("asked"), "answer": right} | row
    elif right:
        name = "captions.jsonl"
        row = {"image": row.pop("image"), "caption": right} | row
    with _lock:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        if not (folder / kept).exists():
            shutil.copyfile(answer.image, folder / kept)
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return folder / name
