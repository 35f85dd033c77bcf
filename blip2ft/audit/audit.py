"""Look data over before any GPU hour is spent on it: what was read, what was found."""

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from blip2ft.audit.balance import answer_findings, split_findings
from blip2ft.audit.contents import ALL, Contents
from blip2ft.audit.copies import copy_findings
from blip2ft.audit.faults import image_faults
from blip2ft.audit.findings import SEVERITIES, Finding
from blip2ft.audit.kept import FINDINGS, Kept, check_folder, keys_of, writing
from blip2ft.audit.looking import look_at_all
from blip2ft.audit.looks import Look
from blip2ft.audit.reading import Source, read_splits
from blip2ft.audit.summary import SplitSummary, size_histogram, summarise
from blip2ft.audit.texts import cut_texts, repeated_texts, text_findings
from blip2ft.bars import progress_bar
from blip2ft.counted import counted
from blip2ft.data.entries import SHOWN
from blip2ft.data.paths import alike
from blip2ft.errors import Stopped
from blip2ft.whole import alone, whole

MAX_TOKENS = {"caption": 64, "retrieval": 64, "vqa": 16}  # of the recipes' settings


@dataclass(frozen=True)
class Report:
    """What `audit` found.

    kept: of how many images was known from before what there is to see; broken: the numbers of
    those that can't be used; sizes: how many others have a shorter side of so many pixels.
    """

    data: dict[str, list[str]]
    task: str
    splits: list[SplitSummary]
    findings: list[Finding]
    pictures: int
    kept: int
    broken: frozenset[int]
    sizes: dict[str, int]
    seconds: float
    contents: Contents = field(repr=False)

    def count(self, severity: str) -> int:
        """How many findings are of one severity."""
        return sum(found.severity == severity for found in self.findings)


def audit(
    splits: Mapping[str | None, Sequence[Source]],
    *,
    task: str = "caption",
    image_size: int = 224,
    max_tokens: int | None = None,
    count_tokens: Callable[[Sequence[str]], list[int]] | None = None,
    out: str | Path | None = None,
    workers: int = 0,
    progress: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Look over every image and text of some data.

    No more than one image a process is decoded at a time, and none that claims too many pixels.

    Args:
        splits: Sources by split: train, validation, test or another name; those of None are split
            as they say themselves.
        task: caption, retrieval or vqa.
        image_size: Side of the model's input, in pixels.
        max_tokens: Longer texts are cut in training, of vqa longer answers; None is the recipes'.
        count_tokens: Tokens of each of some texts, special ones too; None counts words, of which
            there are never more.
        out: Folder for findings.jsonl and for what is kept; None keeps nothing.
        workers: Processes that look at images; 0 is this one.
        progress: Show a bar.
        say: Is told in a line what was kept from before, and where that is damaged.

    Raises:
        ValueError: There is no such source, format, split or named column, or `out` holds
            something else or can't be written.
    """
    start = time.monotonic()
    about = {
        name or ALL: [[_absolute(s.data), {k: str(v) for k, v in s.reading.items()}] for s in given]
        for name, given in splits.items()
    }
    folder = None if out is None else Path(out)
    if folder is not None:
        check_folder(folder, about)
    contents = read_splits(splits, task)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with nullcontext() if folder is None else alone(folder):
        kept = Kept(folder, about)
        if kept.damaged:
            lines = counted(kept.damaged, "damaged line")
            say(f"{kept.path}: {lines} left out; their images are looked at anew")
        looks, known = _look(contents, kept, workers, progress, say)
        findings = [
            *contents.findings,
            *_image_findings(contents, looks, image_size),
            *copy_findings(contents, looks),
            *_said(contents, task, max_tokens or MAX_TOKENS[task], count_tokens),
            *split_findings(contents.splits),
        ]
        findings.sort(key=lambda found: SEVERITIES.index(found.severity))
        if folder is not None:
            _write(folder / FINDINGS, findings)
    return Report(
        {name or ALL: [source.data for source in given] for name, given in splits.items()},
        task,
        [summarise(name, contents, task) for name in contents.splits],
        findings,
        len(contents.pictures),
        known,
        frozenset(number for number, look in enumerate(looks) if look.fault),
        size_histogram(looks),
        time.monotonic() - start,
        contents,
    )


def _look(
    contents: Contents, kept: Kept, workers: int, progress: bool, say: Callable[[str], None]
) -> tuple[list[Look], int]:
    """What is seen of every image, and of how many it was known."""
    keys = keys_of(contents.pictures)
    looks = {number: kept.looks[key] for number, key in enumerate(keys) if key in kept.looks}
    todo = [number for number in range(len(keys)) if number not in looks]
    known = len(looks)
    if known:
        say(f"{known:,} of {len(keys):,} images were looked at before and haven't changed since")
    hidden = not progress
    with progress_bar(total=len(keys), initial=known, desc="look", hidden=hidden) as bar:
        try:
            for numbers, seen in look_at_all(contents.pictures, todo, workers):
                told = list(zip(numbers, seen, strict=True))
                looks |= told
                kept.add((keys[number], look) for number, look in told if look.digest)
                bar.update(len(told))
        except KeyboardInterrupt as error:
            if kept.path is None:
                raise
            raise Stopped(
                f"stopped; what was seen of {len(looks):,} of {len(keys):,} images is kept in "
                f"{kept.path.parent}, and the same command goes on",
                signal.SIGINT,
            ) from error
    kept.forget_others(keys)
    return [looks[number] for number in range(len(keys))], known


def _image_findings(contents: Contents, looks: Sequence[Look], image_size: int) -> list[Finding]:
    """What single images show, for each split that names them."""
    named: dict[tuple[int, str], str] = {}
    for split, items in contents.splits.items():
        for item in items:
            if item.picture is not None:
                named.setdefault((item.picture, split), item.origin)
    found, hints = [], SHOWN
    for (number, split), origin in named.items():
        picture = contents.pictures[number]
        path = os.fspath(picture.image) if isinstance(picture.image, Path) else ""
        for kind, detail in image_faults(looks[number], path, image_size):
            if kind == "missing" and not detail and hints:
                hints, detail = hints - 1, alike(path).removeprefix(", ")
            found.append(Finding(kind, split, origin, detail, picture.name, picture=number))
    return found


def _said(
    contents: Contents,
    task: str,
    limit: int,
    count_tokens: Callable[[Sequence[str]], list[int]] | None,
) -> list[Finding]:
    """What is wrong with texts and answers."""
    asked = task == "vqa"
    return [
        *text_findings(contents),
        *cut_texts(contents, limit, count_tokens, answers=asked),
        *repeated_texts(contents, across=not asked),
        *(answer_findings(contents.splits) if asked else ()),
    ]


def _write(path: Path, findings: Sequence[Finding]) -> None:
    """A line of JSON for each; names that aren't UTF-8 are written as JSON spells such bytes."""
    with writing(path), whole(path) as partial, partial.open("wb") as file:
        for found in findings:
            line = json.dumps(found.as_json(), ensure_ascii=False) + "\n"
            file.write(line.encode("utf-8", "backslashreplace"))


def _absolute(data: str) -> str:
    return os.path.abspath(data) if os.path.exists(data) else data
