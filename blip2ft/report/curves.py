"""Long curves in few points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

BINS = 240  # a chart of 374 points has no room for more
NOTHING = "\N{EN DASH}"  # in place of what isn't known
LISTED = 20  # rows of the table below a chart


@dataclass(frozen=True)
class Point:
    """One logged value, or some that follow each other: the last one's step, and what they were."""

    step: int
    low: float
    mean: float
    high: float


def points_of(rows: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    """The values of `name` over the steps; steps without a number are left out."""
    return [
        Point(row["step"], row[name], row[name], row[name])
        for row in rows
        if row.get(name) is not None
    ]


def thin(points: Sequence[Point], most: int = BINS) -> list[Point]:
    """At most so many points: of each stretch its lowest, mean and highest value."""
    if len(points) <= most:
        return list(points)
    edges = [len(points) * i // most for i in range(most + 1)]
    return [_one(points[a:b]) for a, b in pairwise(edges)]


def _one(points: Sequence[Point]) -> Point:
    return Point(
        points[-1].step,
        min(point.low for point in points),
        sum(point.mean for point in points) / len(points),
        max(point.high for point in points),
    )


def number(value: float | None) -> str:
    """A number in as many digits as a reader can use."""
    if value is None:
        return NOTHING
    if value and abs(value) < 0.001:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{4 if abs(value) >= 1 else 3}g}"
