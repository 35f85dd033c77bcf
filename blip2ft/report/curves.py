"""Long curves in few points."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard

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
    """The values of `name` over the steps; rows without a finite number are left out.

    A step that comes twice counts as it came last: the best one is evaluated again at the end.
    """
    found = {}
    for row in rows:
        step, value = row.get("step"), row.get(name)
        if _is_finite(step) and _is_finite(value):
            found[step] = Point(step, value, value, value)
    return [found[step] for step in sorted(found)]


def _is_finite(value: Any) -> TypeGuard[Any]:
    return isinstance(value, int | float) and math.isfinite(value)


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


def score(value: float | None, sign: str = "") -> str:
    """A score in digits that stand below each other: thousandths, hundredths from 10 on.

    sign: "+" for one also of what is above 0.
    """
    if value is None:
        return NOTHING
    if abs(value) < 0.0005:
        return "0"
    form = ".4g" if abs(value) >= 100 else ".2f" if abs(value) >= 10 else ".3f"
    return f"{value:{sign}{form}}"
