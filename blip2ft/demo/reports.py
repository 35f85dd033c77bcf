"""Bad answers that people report, kept so that the next run can learn from them.

A folder of reports holds
    images/                     each picture once, as it was uploaded, by the sha256 of its file
    captions.jsonl              image, the right caption, and what was answered
    questions.jsonl             image, question, the right answer, and what was answered
    captions-unanswered.jsonl   reports without a right caption: it is empty
    questions-unanswered.jsonl  reports without a right answer: it is empty
`blip2ft check` and the recipes read the first two as any other table. Of the others `check` names
the rows whose caption or answer is still to be written.
"""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from PIL import Image

from blip2ft.demo.texts import checked_text
from blip2ft.whole import LOCK, whole

REASONS = ("wrong", "something is missing", "harmful", "no sentence", "other")
WAIT = 10.0  # seconds for another process that adds a report


@dataclass(frozen=True)
class Answer:
    """What a model answered, and what it was asked.

    task: "caption" or "vqa"; image: the picture's file; asked: the prompt or the question;
    decoding: options of `generate`.
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

    Several threads and processes may do so at once. An error leaves the file as it was.

    right: what would have been right, "" where nobody says.

    Raises ValueError for an unknown reason, for a text that can't be learned (see `checked_text`),
    and where the picture is gone; OSError where the folder can't be written.
    """
    if reason not in REASONS:
        raise ValueError(f"the reason is {reason!r}: allowed are {', '.join(REASONS)}")
    right = " ".join(checked_text("The right answer", right).split())
    try:
        content = Path(answer.image).read_bytes()
    except FileNotFoundError as error:
        raise ValueError(
            "The picture isn't kept any longer; choose it again, and have it answered anew."
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    kept = Path("images") / f"{digest}{_suffix(content)}"
    about = asdict(answer) | {"image_sha256": digest, "reason": reason}
    about["time"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    del about["image"]
    if answer.task == "vqa":
        name, row = "questions", {"question": about.pop("asked"), "answer": right}
    else:
        name, row = "captions", {"caption": right}
    file = folder / f"{name}{'' if right else '-unanswered'}.jsonl"
    line = json.dumps({"image": kept.as_posix(), **row, **about}, ensure_ascii=False)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=WAIT):
            if not (folder / kept).exists():
                with whole(folder / kept) as partial:
                    partial.write_bytes(content)
            _append(file, line.encode() + b"\n")
    except Timeout as error:
        raise ValueError("Another report is being kept right now; send this one again.") from error
    return file


def _suffix(content: bytes) -> str:
    """The ending of the picture's kind; a phone's MPO is a JPEG with more behind it."""
    with Image.open(io.BytesIO(content)) as image:
        kind = (image.format or "png").lower()
    return ".jpeg" if kind == "mpo" else f".{kind}"


def _append(file: Path, line: bytes) -> None:
    """Add a line as a whole or, on a full disk, nothing of it."""
    with file.open("a+b", buffering=0) as opened:
        end = opened.seek(0, os.SEEK_END)
        if end:
            opened.seek(end - 1)
            if opened.read(1) != b"\n":  # whoever edits it may leave the last line open
                line = b"\n" + line
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[opened.write(rest) :]
        except OSError:
            opened.truncate(end)
            raise
