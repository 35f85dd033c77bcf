"""What a run gained, for a person to read."""

from collections.abc import Mapping, Sequence
from typing import Any


def score_table(before: Mapping[str, float], after: Mapping[str, float], best_metric: str) -> str:
    """A row for each metric: before, after; and a line where the run didn't raise `best_metric`."""
    rows = [f"{'metric':<14}{'before':>10}{'after':>10}"]
    rows += [
        f"{name:<14}{_number(before.get(name)):>10}{_number(value):>10}"
        for name, value in after.items()
    ]
    if told := told_no_gain(before, after, best_metric):
        rows += ["", told]
    return "\n".join(rows)


def told_no_gain(before: Mapping[str, float], after: Mapping[str, float], metric: str) -> str:
    """A line where `metric` didn't rise, on what to look at; else ""."""
    one, other = before.get(metric), after.get(metric)
    if one is None or other is None or other > one:
        return ""
    how = "worse" if other < one else "no better"
    return (
        f"{metric} is {how} than before: the model that the run began with is as good or better. "
        "Look at the loss in log.jsonl: if it rises or jumps, lower optimizer.lr; if it still "
        "falls, train longer"
    )


def answer_table(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], count: int = 5
) -> str:
    """Some records, evenly spread, with one reference, the caption before and the one after.

    A caption that is another of the record's references, to the letter, is marked.
    """
    chosen = range(0, len(after), max(1, len(after) // count))
    earlier = {row["image_id"]: row["caption"] for row in before}
    lines = []
    for row in [after[i] for i in chosen][:count]:
        lines += [
            f"{row['image_id']}",
            f"  reference  {row['references'][0]}",
            f"  before     {_marked(earlier.get(row['image_id'], '?'), row['references'])}",
            f"  after      {_marked(row['caption'], row['references'])}",
        ]
    return "\n".join(lines)


def _marked(caption: str, references: Sequence[str]) -> str:
    first, *others = (reference.strip() for reference in references)
    mark = caption.strip() in others and caption.strip() != first
    return f"{caption}   (another reference)" if mark else caption


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
