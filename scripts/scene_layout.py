"""Where the things of a scene stand, and what can be said of it."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

SIDE = 128  # pixels, width and height of a scene
MARGIN = 3  # pixels that stay free at the border and between two things
SIZES = {1: (44, 76), 2: (40, 57), 3: (32, 38)}  # longer side of a thing, by how many there are
CLEARLY = 1.25  # a thing is the larger one if its longer side is so much longer
PLACES = (
    ("in the top left corner", "at the top", "in the top right corner"),
    ("on the left", "in the middle", "on the right"),
    ("in the bottom left corner", "at the bottom", "in the bottom right corner"),
)


class Cell(NamedTuple):
    """The square that a thing is drawn into: its centre is where the thing is."""

    x: int
    y: int
    side: int

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.side / 2, self.y + self.side / 2


def place_in_line(sides: list[int], rng: np.random.Generator) -> list[Cell]:
    """Cells one after another from left to right, so that the order can't be mistaken.

    The centres move to the right at least twice as far as up or down, cells keep MARGIN apart, and
    of two the first has its centre in the left half and the second in the right half.
    """
    slack = SIDE - 2 * MARGIN - sum(sides) - MARGIN * (len(sides) - 1)
    if slack < 0:
        raise ValueError(f"things of {sides} pixels don't fit into {SIDE}")
    while True:
        cuts = np.sort(rng.integers(0, slack + 1, size=len(sides)))
        x, cells = MARGIN, []
        for cut, before, side in zip(cuts, [0, *cuts], sides, strict=False):
            x += int(cut - before)
            y = int(rng.integers(MARGIN, SIDE - MARGIN - side + 1))
            cells.append(Cell(x, y, side))
            x += side + MARGIN
        centres = [cell.centre for cell in cells]
        steps = list(pairwise(centres))
        clear = all(abs(b[1] - a[1]) <= (b[0] - a[0]) / 2 for a, b in steps)
        halves = len(cells) != 2 or centres[0][0] < SIDE / 2 - 4 < SIDE / 2 + 4 < centres[1][0]
        if clear and halves:
            return cells


def place(count: int, rng: np.random.Generator) -> tuple[list[Cell], str | None]:
    """Cells for `count` things, and the relation of each to the next."""
    low, high = SIZES[count]
    sides = [int(side) for side in rng.integers(low, high + 1, size=count)]
    if count == 1:
        x, y = rng.integers(MARGIN, SIDE - MARGIN - sides[0] + 1, size=2)
        return [Cell(int(x), int(y), sides[0])], None
    cells = place_in_line(sides, rng)
    if rng.random() < 0.5:
        return cells, "left of"
    return [Cell(cell.y, cell.x, cell.side) for cell in cells], "above"


def find_larger(things: list[str], cells: list[Cell]) -> str | None:
    if len(things) != 2:
        return None
    order = sorted(zip((cell.side for cell in cells), things, strict=True))
    return order[1][1] if order[1][0] >= CLEARLY * order[0][0] else None


def place_name(cell: Cell) -> str | None:
    """Where in the picture a single thing is, or None when a viewer could say either of two."""

    def third(centre: float) -> int | None:
        position = centre / SIDE
        bands = ((0, 0.38), (0.43, 0.57), (0.62, 1))
        return next((i for i, (low, high) in enumerate(bands) if low <= position <= high), None)

    column, row = third(cell.centre[0]), third(cell.centre[1])
    return None if column is None or row is None else PLACES[row][column]
