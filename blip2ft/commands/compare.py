"""`blip2ft compare`."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blip2ft.commands.options import command, positive

EPILOG = """\
A and B are runs, folders of blip2ft evaluate, or files of predictions, such as
RUN/predictions/test-00000000.jsonl, which a run made before it began to train.

The interval is that of the paired bootstrap over images: both are scored on the same 1000
resamples. p is that of the paired randomization test: how often the difference would be as large if
chance had said which of the two answers to an image is whose. Below 0.05 it is called a difference;
of many scores, one in twenty falls below by chance alone.
"""


@dataclass(frozen=True)
class Side:
    """One of two sets of predictions: its rows, their task, and what to call it."""

    rows: list[dict[str, Any]]
    task: str
    name: str


def add_compare(commands: Any) -> None:
    parser = command(
        commands, "compare", "Say whether two runs differ by more than chance.", _compare
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("a", type=Path, metavar="A", help="run, evaluation or predictions")
    parser.add_argument("b", type=Path, metavar="B", help="another, on the same samples")
    parser.add_argument(
        "--show", type=positive, metavar="N", help="also the N samples that differ most"
    )
    parser.add_argument("--json", action="store_true", help="print the differences as JSON")


def _compare(arguments: argparse.Namespace) -> int:
    from blip2ft.counted import counted
    from blip2ft.evaluation.compare import compare, most_different, pair
    from blip2ft.evaluation.told import difference_lines

    a, b = _read(arguments.a), _read(arguments.b)
    if a.task != b.task:
        raise ValueError(f"{a.name} is of {a.task} and {b.name} of {b.task}, which don't compare")
    pairs = pair(a.task, a.rows, b.rows)
    found = compare(a.task, pairs.a, pairs.b)
    if not found:
        raise ValueError("some samples have nothing to be scored against, so nothing compares")
    if arguments.json:
        print(json.dumps({name: asdict(of) for name, of in found.items()}, indent=2))
        return 0
    images = counted(len({row["image_id"] for row in pairs.a}), "image")
    print("\n".join(difference_lines(found, a.name, b.name, images)))
    if pairs.only_a or pairs.only_b:
        both = counted(len(pairs.a), "question" if a.task == "vqa" else "image")
        left_out = f"{pairs.only_a:,} are only in A and {pairs.only_b:,} only in B"
        print(f"\nof the {both} that both have; {left_out}")
    if arguments.show:
        chosen = most_different(a.task, pairs, arguments.show)
        shown = [_sample(a.task, pairs, *one) for one in chosen] or ["no sample scores differently"]
        print("\n" + "\n\n".join(shown))
    return 0


def _read(path: Path) -> Side:
    """ValueError for a path that holds no predictions."""
    from blip2ft.evaluation.folder import PREDICTIONS
    from blip2ft.evaluation.rows import read_rows, task_of

    name = str(path)
    if (path / PREDICTIONS).is_file():
        rows = read_rows(path / PREDICTIONS)
    elif (path / "config.yaml").is_file():
        rows, name = _rows_of_run(path)
    elif path.is_dir():
        raise ValueError(f"{path} is neither a run nor a folder of blip2ft evaluate")
    else:
        rows = read_rows(path)
    task = task_of(rows[0])
    assert task is not None
    return Side(rows, task, name)


def _rows_of_run(run: Path) -> tuple[list[dict[str, Any]], str]:
    """The predictions of a run's result, and which they are."""
    from blip2ft.report.reading import read_run

    found = read_run(run)
    rows = [dict(row) for row in found.answers_after]
    if not rows:
        raise ValueError(
            f"{run} has no predictions of its result, since it hasn't ended; compare a file of "
            f"{run / 'predictions'}"
        )
    return rows, f"{run} ({found.split} split, step {found.best or 0})"


def _sample(task: str, pairs: Any, place: int, score_a: float, score_b: float) -> str:
    """A sample with what is right and what both said."""
    from blip2ft.evaluation.told import number

    a, b = pairs.a[place], pairs.b[place]
    lines = [str(a["question_id"] if task == "vqa" else a["image_id"])]
    if a.get("image"):
        lines.append(f"  image      {a['image']}")
    said: tuple[str, ...]
    if task == "vqa":
        said = a["answer"], b["answer"]
        lines.append(f"  question   {a['question']}")
        right: Sequence[str] = sorted(set(a["answers"]), key=a["answers"].count, reverse=True)
    elif task == "retrieval":
        said = tuple(
            f"own text at {row['image_rank'] or 'none'}, found at "
            f"{', '.join(str(rank or 'none') for rank in row['text_ranks'])}"
            for row in (a, b)
        )
        right = a["references"]
    else:
        said, right = (a["caption"], b["caption"]), a["references"]
    lines.append(f"  right      {' | '.join(right)}")
    for side, text, score in zip("AB", said, (score_a, score_b), strict=True):
        lines.append(f"  {side} {number(score):<8} {text}")
    return "\n".join(lines)
