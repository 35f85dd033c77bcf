"""Scores of parts of the rows: those that a field of theirs sets apart."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from blip2ft.counted import counted
from blip2ft.evaluation.intervals import RESAMPLES, Interval, intervals_of
from blip2ft.evaluation.sums import Row, Sums, sums

MOST = 30  # groups of a field; the rest of its values make one more
NONE = "(none)"


def by_field(
    task: str, rows: Sequence[Row], field: str, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, Interval]]:
    """The scores of each group that `group` makes of the rows, with their 95 % intervals.

    CIDEr-D takes how rare an n-gram is from all rows, so that groups compare with each other and
    with the whole; the official scorer, given a group alone, says something else. {} where a row
    has nothing to be scored against.

    Raises ValueError as `group` and `sums` do.
    """
    groups, table = group(rows, field), sums(task, rows)
    return {} if table is None else scores_of(table, groups, resamples=resamples, seed=seed)


def scores_of(
    table: Sums,
    groups: Mapping[str, Sequence[int]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Interval]]:
    """As `by_field`, of numbers that are there already and of groups as `group` gives them."""
    return {
        name: intervals_of(table.of(places), resamples=resamples, seed=seed)
        for name, places in groups.items()
    }


def group(rows: Sequence[Row], field: str) -> dict[str, list[int]]:
    """The places of the rows that have each value of `field`, the commonest value first.

    Rows without the field are "(none)". Of more than 30 values the commonest stay, and the others
    make one group, "(12 others)".

    Raises ValueError for a field that no row has, one that holds lists or objects, and one with
    another value in most rows, as an id.
    """
    _check(rows, field)
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        value = row.get("fields", {}).get(field)
        name = NONE if value is None else str(value)
        if isinstance(value, bool):
            name = "true" if value else "false"
        places.setdefault(name, []).append(place)
    without = places.pop(NONE, None)
    if len(places) > MOST and 2 * len(places) > len(rows):
        raise ValueError(
            f"the field {field!r} has {len(places)} values in {counted(len(rows), 'record')}: a "
            "score for each says nothing; name one that sets groups apart"
        )
    ordered = sorted(places, key=lambda name: -len(places[name]))
    found = {name: places[name] for name in ordered[:MOST]}
    if rest := ordered[MOST:]:
        joined = sorted(place for name in rest for place in places[name])
        found[f"({counted(len(rest), 'other')})"] = joined
    return found if without is None else {**found, NONE: without}


def fields_of(rows: Sequence[Row]) -> list[str]:
    """The names of the fields that rows can be grouped by: those that hold text or numbers."""
    found: dict[str, bool] = {}
    for row in rows:
        for name, value in row.get("fields", {}).items():
            if value is not None:
                found[name] = found.get(name, True) and not isinstance(value, list | dict)
    return sorted(name for name, plain in found.items() if plain)


def _check(rows: Sequence[Row], field: str) -> None:
    known = fields_of(rows)
    if field in known:
        return
    if any(field in row.get("fields", {}) for row in rows):
        raise ValueError(f"the field {field!r} holds lists or objects, which make no groups")
    near = get_close_matches(field, known, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    there = f"there are {', '.join(known)}" if known else "they have none"
    raise ValueError(f"no record has a field {field!r}{hint} ({there})")
