"""How good the model is: before and after training, by group, and what got worse."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blip2ft.card.facts import Facts
from blip2ft.evaluation.compare import ID, MAIN, Difference, Pairs, compare, most_different, pair
from blip2ft.evaluation.groups import fields_of, group, scores_of
from blip2ft.evaluation.intervals import Interval, intervals_of
from blip2ft.evaluation.sums import sums

FEW = 12  # values of a field that is told of unasked
ENOUGH = 5  # records of a group that it takes to say something of it
EVEN = 1e-9  # of two scores, from sums in another order
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Score:
    """One score of the model, and of its base; None is what isn't known."""

    name: str
    before: float | None
    after: float
    interval_before: Interval | None
    interval: Interval | None
    difference: Difference | None


@dataclass(frozen=True)
class Group:
    """Records that share a value of a field."""

    value: str
    count: int
    scores: Mapping[str, Interval]


@dataclass(frozen=True)
class Change:
    """A sample whose answer got worse: what was known of it, and both answers."""

    question: str
    reference: str
    before: str
    after: str


@dataclass(frozen=True)
class Scores:
    """What an evaluation of a run tells.

    Args:
        scores: The main one first; none where nothing was scored.
        by_field: The groups of each field.
        changes: How many answers got better, stayed the same, and got worse; {} where that isn't
            known.
        worse: Those that lost most, the worst first.
        records: Images, or questions, that were asked about; images: of how many images.
        references: Texts, or answers, to score against.
    """

    scores: Sequence[Score]
    by_field: Mapping[str, Sequence[Group]]
    changes: Mapping[str, int]
    worse: Sequence[Change]
    records: int
    images: int
    references: int

    @property
    def main(self) -> Score | None:
        return self.scores[0] if self.scores else None


def read_scores(facts: Facts) -> Scores:
    """Score what a run answered.

    Raises ValueError for a field of `facts.release` that no record has, or that makes no groups.
    """
    task, rows, before = facts.task, facts.run.answers_after, facts.run.answers_before
    pairs = pair(task, before, rows) if before and rows else None
    changes, worse = _changes(task, pairs, rows, facts.release.examples)
    return Scores(
        scores=_scores(facts, pairs),
        by_field=_by_field(facts),
        changes=changes,
        worse=worse,
        records=len(rows),
        images=len({row["image_id"] for row in rows}),
        references=sum(len(_references(row)) for row in rows),
    )


def _scores(facts: Facts, pairs: Pairs | None) -> list[Score]:
    """Those of metrics.jsonl, with what the answers tell of how sure they are."""
    task, run = facts.task, facts.run
    before, after = (_intervals(task, rows) for rows in (run.answers_before, run.answers_after))
    apart = compare(task, pairs.a, pairs.b) if pairs and after else {}
    names = sorted(run.after, key=lambda name: name != MAIN[task])
    return [
        Score(
            name,
            run.before.get(name),
            run.after[name],
            before.get(name),
            after.get(name),
            apart.get(name),
        )
        for name in names
    ]


def _intervals(task: str, rows: Sequence[Row]) -> dict[str, Interval]:
    table = sums(task, rows) if rows else None
    return {} if table is None else intervals_of(table)


def _changes(
    task: str, pairs: Pairs | None, after: Sequence[Row], examples: int
) -> tuple[dict[str, int], list[Change]]:
    """How many answers got better and worse, by their own scores, and those that lost most."""
    if pairs is None or not all(_references(row) for row in pairs.a):
        return {}, []
    found = [(i, b - a) for i, a, b in most_different(task, pairs, len(pairs.a))]
    better = sum(gain > EVEN for _, gain in found)
    lost = [i for i, gain in found if gain < -EVEN]
    same = len(pairs.a) - better - len(lost)
    counts = {"better": better, "the same": same, "worse": len(lost)}
    # of the second a pair has only what is scored
    said = {row[ID[task]]: row for row in after}
    shown = [pairs.a[i] for i in lost[:examples]]
    return counts, [_change(row, said[row[ID[task]]]) for row in shown]


def _change(before: Row, after: Row) -> Change:
    said = "answer" if "answer" in before else "caption"
    references = _references(before)
    commonest = max(references, key=references.count)
    return Change(before.get("question", ""), commonest, before[said], after[said])


def _references(row: Row) -> Sequence[str]:
    return row["answers"] if "answers" in row else row["references"]


def _by_field(facts: Facts) -> dict[str, list[Group]]:
    rows, asked = facts.run.answers_after, facts.release.fields
    places = _few(rows) if asked is None else {name: group(rows, name) for name in asked}
    table = sums(facts.task, rows) if places and rows else None
    if table is None:
        return {}
    return {
        name: [
            Group(value, len(of_value[value]), scores)
            for value, scores in scores_of(table, of_value).items()
        ]
        for name, of_value in places.items()
    }


def _few(rows: Sequence[Row]) -> dict[str, dict[str, list[int]]]:
    """The fields that set a few groups apart."""
    found = {}
    for name in fields_of(rows):
        counts = Counter(str(row.get("fields", {}).get(name)) for row in rows)
        enough = [count for count in counts.values() if count >= ENOUGH]
        if len(counts) <= FEW and len(enough) > 1:
            found[name] = group(rows, name)
    return found
