"""An evaluation's folder: what was asked of which model, its answers and their scores.

evaluation.json      the task, the data and the model, by which a later run knows that it goes on
environment.json     versions, git commit, hardware, command
predictions.jsonl    a row for each image or question, appended as they are answered
scores.json          scores, intervals and groups, and the command that gives them again
*_results.json       what the servers of COCO, NoCaps and VQA take (see servers.py)
.lock                held while the evaluation goes on, by its first process
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blip2ft.training.run import environment, read_lines, write_lines
from blip2ft.whole import check_writable, in_use, remove_partial, write_text

ASKED, ENVIRONMENT = "evaluation.json", "environment.json"
PREDICTIONS, SCORES = "predictions.jsonl", "scores.json"


def check_out(out: Path, *, resume: bool) -> None:
    """Raise ValueError for a folder that is in use, or that `resume` finds nothing in."""
    if in_use(out) and not resume:
        raise ValueError(
            f"{out} is in use and nothing in it is overwritten; go on there with --resume, or "
            "choose another --out"
        )
    if resume and not (out / ASKED).is_file():
        raise ValueError(f"nothing to resume: {out} holds no evaluation; leave out --resume")
    check_writable(out)


def begin(out: Path, asked: Mapping[str, Any], *, resume: bool) -> list[dict[str, Any]]:
    """Open the folder, on one process, and give the rows that are answered already.

    A line that a kill cut off is dropped.

    Raises ValueError as `check_out`, and where what was begun there is another evaluation, naming
    what differs.
    """
    check_out(out, resume=resume)
    remove_partial(out)
    if resume:
        before = json.loads((out / ASKED).read_text(encoding="utf-8"))
        differing = [name for name in asked if before.get(name) != asked[name]]
        if differing:
            named = "; ".join(
                f"{name} was {_short(before.get(name))} and is {_short(asked[name])}"
                for name in differing
            )
            raise ValueError(
                f"{out} holds another evaluation, which this one can't go on with: {named}. "
                "Give what was given there, or another --out"
            )
    else:
        write_text(out / ASKED, json.dumps(asked, indent=2, ensure_ascii=False) + "\n")
        write_text(out / ENVIRONMENT, json.dumps(environment(), indent=2) + "\n")
    rows = read_lines(out / PREDICTIONS)
    write_lines(out / PREDICTIONS, rows)
    return rows


def append(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to the predictions."""
    lines = [json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows]
    with (out / PREDICTIONS).open("a", encoding="utf-8") as file:
        file.write("".join(lines))


def asked_of(
    task: str,
    settings: Mapping[str, Any],
    split: str,
    records: Sequence[Any],
    identity: Mapping[str, Any],
    precision: str,
) -> dict[str, Any]:
    """All that answers depend on, as JSON has it.

    Not how many are answered at once, nor by how many processes: no answer depends on that.
    """
    from blip2ft.tasks.of_settings import candidates_of  # here: `check_out` must answer at once

    own = {
        "caption": ("prompt", "generation"),
        "vqa": ("prompt", "generation", "candidates", "question_in_qformer", "stage1"),
        "retrieval": ("search",),
    }[task]
    at_once = ("batch_size", "pairs_at_once")
    asked: dict[str, Any] = {"task": task, "split": split, "source": settings["data"][split]}
    for name in own:
        value = settings[name]
        if isinstance(value, Mapping):
            value = {key: v for key, v in value.items() if key not in at_once}
        if name == "candidates" and value is not None:  # what the file says, not where it lies
            listed = json.dumps(candidates_of(settings)).encode()
            value = {"file": value, "digest": hashlib.sha256(listed).hexdigest()}
        asked[name] = value
    asked |= {"image_size": settings["model"]["image_size"], "precision": precision}
    asked |= {"max_target_tokens": settings["data"]["max_target_tokens"]}
    asked |= {"records": len(records), "records_digest": _digest(records), "model": dict(identity)}
    return json.loads(json.dumps(asked))


def _digest(records: Sequence[Any]) -> str:
    """sha256 of what is asked and what is right, and of which images by name."""
    digest = hashlib.sha256()
    for record in records:
        said = getattr(record, "captions", None)
        if said is None:
            said = (record.question_id, record.question, record.answers, record.choices)
        path = str(record.image) if isinstance(record.image, Path) else record.origin
        digest.update(json.dumps([record.image_id, path, said]).encode())
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:297]}..."
