"""The scores of some evaluations side by side, with how sure they are and how far they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blip2ft.evaluation.compare import Difference, compare
from blip2ft.evaluation.intervals import Interval, intervals
from blip2ft.evaluation.sums import sums
from blip2ft.metrics.recall_at_k import WAYS

Row = Mapping[str, Any]
# What tells how good one answer is, of the scores of each task.
OF_ONE = {"caption": "cider", "vqa": "accuracy", "retrieval": f"{WAYS[0]}_r1"}


@dataclass(frozen=True)
class Column:
    """One evaluation: of whom, its line of metrics.jsonl, and its rows of predictions."""

    name: str
    scores: Mapping[str, float]
    rows: Sequence[Row]


@dataclass(frozen=True)
class ScoreRow:
    """One score of all columns; an interval without width where none is known.

    differences: to the first column, of each further one.
    """

    name: str
    values: Sequence[Interval | None]
    known: bool
    differences: Sequence[Difference | None]


@dataclass(frozen=True)
class ScoreTable:
    """Scores, the one that matters first; notes: why an interval or a difference is missing."""

    columns: Sequence[str]
    rows: Sequence[ScoreRow]
    notes: Sequence[str]


def score_table(task: str, columns: Sequence[Column], first: str) -> ScoreTable:
    """The scores of `columns`, with that called `first` before the others."""
    notes: dict[str, None] = {}
    sure: list[Mapping[str, Interval]] = []
    apart: list[Mapping[str, Difference]] = []
    for place, column in enumerate(columns):
        sure.append(_or_note(lambda rows=column.rows: intervals(task, rows), column, notes))
        if place:
            pair = columns[0].rows, column.rows
            apart.append(_or_note(lambda pair=pair: compare(task, *pair), column, notes))
    names = dict.fromkeys(name for column in columns for name in column.scores if name != "step")
    rows = []
    for name in sorted(names, key=lambda name: name != first):
        values = [
            _sure(column.scores.get(name), found.get(name))
            for column, found in zip(columns, sure, strict=True)
        ]
        known = all(name in found for found in sure)
        rows.append(ScoreRow(name, values, known, [found.get(name) for found in apart]))
    return ScoreTable([column.name for column in columns], rows, list(notes))


def of_each(task: str, rows: Sequence[Row]) -> list[float | None]:
    """How good each answer is: CIDEr-D, VQA accuracy, or one over the rank of the first right text.

    None where there is nothing to score against.
    """
    if task == "retrieval":
        return [_reciprocal_rank(row) for row in rows]
    table = sums(task, rows) if rows else None
    if table is None:
        return [None] * len(rows)
    return table.scores(table.rows)[OF_ONE[task]].tolist()


def _reciprocal_rank(row: Row) -> float | None:
    if not row["references"]:
        return None
    if "image_rank" in row:
        return 1 / row["image_rank"] if row["image_rank"] else 0.0
    # an earlier version kept the best texts alone
    right = [place for place, text in enumerate(row["texts"]) if text in row["references"]]
    return 1 / (right[0] + 1) if right else 0.0


def _or_note(found: Any, column: Column, notes: dict[str, None]) -> Any:
    if not column.rows:
        return {}
    try:
        return found()
    except ValueError as error:
        notes[f"{column.name}: {error}"] = None
        return {}


def _sure(value: float | None, found: Interval | None) -> Interval | None:
    if value is None:
        return None
    return (
        Interval(value, value, value) if found is None else Interval(value, found.low, found.high)
    )
