"""The scores of some evaluations side by side, with how sure they are and how far they differ."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blip2ft.evaluation.compare import Difference, compare
from blip2ft.evaluation.intervals import Interval, intervals
from blip2ft.evaluation.sums import sums

Row = Mapping[str, Any]
OF_ONE = {"caption": "cider", "vqa": "accuracy"}  # what tells how good one answer is


@dataclass(frozen=True)
class Column:
    """One evaluation: of whom, its line of metrics.jsonl, and its rows of predictions."""

    name: str
    scores: Mapping[str, float]
    rows: Sequence[Row]


@dataclass(frozen=True)
class ScoreRow:
    """One score of all columns, without an interval where none is known; None where there is none.

    differences: to the first column, of each further one.
    """

    name: str
    values: Sequence[Interval | float | None]
    differences: Sequence[Difference | None]


@dataclass(frozen=True)
class ScoreTable:
    """Scores, the one that matters first; notes: why intervals or differences are missing."""

    columns: Sequence[str]
    rows: Sequence[ScoreRow]
    notes: Sequence[str]


def score_table(task: str, columns: Sequence[Column], first: str) -> ScoreTable:
    """The scores of `columns`, with that called `first` before the others."""
    notes: dict[str, None] = {}
    sure = [_noted(notes, column, intervals, task, column.rows) for column in columns]
    apart = [
        _noted(notes, column, compare, task, columns[0].rows, column.rows) for column in columns[1:]
    ]
    names = dict.fromkeys(name for column in columns for name in column.scores)
    rows = [
        ScoreRow(
            name,
            [
                _sure(column.scores.get(name), found.get(name))
                for column, found in zip(columns, sure, strict=True)
            ],
            [found.get(name) for found in apart],
        )
        for name in sorted(names, key=lambda name: name != first)
    ]
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


def _noted(
    notes: dict[str, None], column: Column, find: Callable[..., dict[str, Any]], *given: Any
) -> dict[str, Any]:
    """What `find` finds; {} where it can't, with the reason in `notes`."""
    if not all(given):  # rows of predictions
        if column.scores and not column.rows:
            notes[f"{column.name}: its predictions are gone, and with them the intervals"] = None
        return {}
    try:
        return find(*given)
    except ValueError as error:
        notes[f"{column.name}: {error}"] = None
        return {}


def _sure(value: float | None, found: Interval | None) -> Interval | float | None:
    # the value of metrics.jsonl, whichever version wrote it
    return value if value is None or found is None else Interval(value, found.low, found.high)
