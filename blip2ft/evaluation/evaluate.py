"""Answer a split with a model, keep the answers as they come, and score them."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from blip2ft.bars import progress_bar
from blip2ft.counted import counted
from blip2ft.evaluation.folder import ASKED, SCORES, append, asked_of, begin
from blip2ft.evaluation.groups import group, scores_of
from blip2ft.evaluation.intervals import RESAMPLES, Interval, intervals_of
from blip2ft.evaluation.rows import about_image
from blip2ft.evaluation.servers import write_for_servers
from blip2ft.evaluation.subject import Subject, prompt_note
from blip2ft.evaluation.sums import sums
from blip2ft.evaluation.told import group_tables, score_lines
from blip2ft.metrics.java import MetricUnavailable
from blip2ft.metrics.meteor import meteor_scores
from blip2ft.metrics.spice import spice_scores
from blip2ft.tasks.of_settings import Rows, answerer, evaluated_on
from blip2ft.training.processes import precision_of, start_processes, usable_workers
from blip2ft.training.signals import STOPPING, stop_at_once
from blip2ft.whole import InUse, alone, write_text

BATCHES = 8  # that each process answers before they are kept
METHOD = (
    f"95 % percentile bootstrap over images, {RESAMPLES} resamples, seed 0; how rare CIDEr-D takes "
    "an n-gram to be is that of all references"
)
JAVA = {"meteor": meteor_scores, "spice": spice_scores}


def evaluate(
    task: str,
    settings: Mapping[str, Any],
    subject: Subject,
    out: Path,
    *,
    split: str,
    fields: Sequence[str] = (),
    resume: bool = False,
    say: Callable[[str], object] = print,
) -> None:
    """Evaluate `subject` on a split of the settings, and leave what folder.py lists in `out`.

    Every process calls. fields: of the records, to score their groups by. resume: go on with what
    was answered in `out`; where all was, the model isn't loaded, and the scores are made anew.
    say: what to do with the text of the result, on the first process.

    Raises ValueError for what can't be evaluated, before anything is answered.
    """
    accelerator = start_processes(settings["model"]["precision"], [], out)
    stop_at_once(_how_to_go_on(out), STOPPING)
    is_main = accelerator.is_main_process
    say = say if is_main else lambda _: None
    records = evaluated_on(task, settings, split)
    known = [about_image(record) for record in records] if fields else []
    for field in fields:  # a wrong one is told before hours of answering
        group(known, field)
    if note := prompt_note(subject, task, settings):
        say(note)

    def load() -> Callable[[Sequence[Any]], Rows]:
        model, processor = subject.load(task, settings, accelerator)
        workers = usable_workers(settings["data"]["workers"])
        return answerer(task, settings, model, processor, accelerator, workers, records)

    answer = None if resume else load()
    with ExitStack() as stack:
        _hold(out, accelerator, stack)
        rows: Rows = []
        if is_main:
            identity = subject.identity()
            asked = asked_of(task, settings, split, records, identity, precision_of(accelerator))
            rows = begin(out, asked, resume=resume)
        (done,) = broadcast_object_list([len(rows)])
        if done < len(records):
            if done:
                say(f"{done:,} of {len(records):,} were answered already")
            answer = answer or load()
            rows += _answer_all(task, settings, answer, records[done:], accelerator, out)
        if is_main:
            told = _conclude(task, subject, split, rows, fields, out)
            say(told)
    accelerator.end_training()


def _how_to_go_on(out: Path) -> Callable[[int], str]:
    """What to say when a signal, Ctrl-C too, stops the evaluation."""

    def say(_: int) -> str:
        if not (out / ASKED).is_file():
            return "stopped before anything was answered; the same command begins anew"
        return "stopped; the same command with --resume goes on with what was answered"

    return say


def _hold(out: Path, accelerator: Accelerator, stack: ExitStack) -> None:
    """Keep other evaluations from the folder; InUse on every process where one is at it."""
    problem = ""
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(alone(out))
        except InUse as error:
            problem = f"{error}, or choose another --out"
    (problem,) = broadcast_object_list([problem])
    if problem:
        raise InUse(problem)


def _answer_all(
    task: str,
    settings: Mapping[str, Any],
    answer: Callable[[Sequence[Any]], Rows],
    records: Sequence[Any],
    accelerator: Accelerator,
    out: Path,
) -> Rows:
    """Rows of all these records, on every process; the first keeps each chunk when it is done."""
    size = len(records)  # what is searched are all of them
    if task != "retrieval":
        size = BATCHES * settings["generation"]["batch_size"] * accelerator.num_processes
    hidden = task == "retrieval" or not accelerator.is_main_process
    rows: Rows = []
    with progress_bar(total=len(records), desc=task, hidden=hidden, leave=False) as bar:
        for start in range(0, len(records), size):
            chunk = answer(records[start : start + size])
            if accelerator.is_main_process:
                append(out, chunk)
            rows += chunk
            bar.update(len(chunk))
    return rows


def _conclude(
    task: str, subject: Subject, split: str, rows: Rows, fields: Sequence[str], out: Path
) -> str:
    """Score the rows, write scores.json and the servers' files, and tell of it."""
    path = out / SCORES
    if path.is_file():  # groups that were asked for before stay
        fields = [*json.loads(path.read_text(encoding="utf-8"))["groups"], *fields]
    places = {field: group(rows, field) for field in dict.fromkeys(fields)}
    table = sums(task, rows)
    scores: dict[str, Interval | float] = {}
    groups: dict[str, dict[str, dict[str, Interval]]] = {}
    lines = ["there is nothing to score the answers against"]
    if table is not None:
        from_java, lines = _java_scores(rows) if task == "caption" else ({}, [])
        scores = {**intervals_of(table), **from_java}
        groups = {field: scores_of(table, found) for field, found in places.items()}
    sizes = {
        field: {name: len(found) for name, found in of_field.items()}
        for field, of_field in places.items()
    }
    images = len({row["image_id"] for row in rows})
    said = {
        "task": task,
        "model": subject.name,
        "split": split,
        "records": len(rows),
        "images": images,
        "scores": {name: _as_json(value) for name, value in scores.items()},
        "groups": {
            field: {
                name: {
                    "records": sizes[field][name],
                    "scores": {metric: _as_json(value) for metric, value in of_group.items()},
                }
                for name, of_group in found.items()
            }
            for field, found in groups.items()
        },
        "method": METHOD,
        "command": command(),
    }
    write_text(path, json.dumps(said, indent=2, ensure_ascii=False) + "\n")
    write_for_servers(out, task, split, subject.name, rows)
    noun = counted(len(rows), "question" if task == "vqa" else "image")
    on = f" on {counted(images, 'image')}" if task == "vqa" else ""
    head = f"{task}: {subject.name} on the {split} split, {noun}{on}"
    first = "\n".join([head, *lines, *score_lines(scores)])
    return "\n\n".join([first, *group_tables(task, groups, sizes), f"everything lies in {out}"])


def _java_scores(rows: Rows) -> tuple[dict[str, float], list[str]]:
    """METEOR and SPICE, without intervals, and in words why one is left out."""
    scores: dict[str, float] = {}
    missing = []
    said = [row["caption"] for row in rows], [row["references"] for row in rows]
    for name, metric in JAVA.items():
        try:
            scores |= metric(*said)[0]
        except MetricUnavailable as error:
            missing.append(f"{name} is left out: {error}")
    return scores, missing


def command() -> str:
    """The command line of this process, to be given again."""
    words = [word for word in sys.argv[1:] if word != "--resume"]
    return shlex.join(["blip2ft", *words])


def _as_json(value: Interval | float) -> dict[str, float | None]:
    if isinstance(value, Interval):
        return asdict(value)
    return {"value": value, "low": None, "high": None}
