"""Scores, groups and differences as text."""

from collections.abc import Mapping, Sequence

from blip2ft.evaluation.compare import Difference
from blip2ft.evaluation.intervals import Interval

# What a table of groups has room for; scores.json holds all.
SHOWN = {
    "caption": ("cider", "bleu4", "exact_match"),
    "vqa": ("accuracy",),
    "retrieval": ("mean_recall", "image_to_text_r1", "text_to_image_r1"),
}


def score_lines(scores: Mapping[str, Interval | float]) -> list[str]:
    """A line for each score: its value and its 95 % interval, where it has one."""
    if not scores:
        return []
    rows = [("score", "value", "95 % interval")]
    for name, found in scores.items():
        if isinstance(found, Interval):
            rows.append((name, number(found.value), between(found.low, found.high)))
        else:
            rows.append((name, number(found), "not known"))
    return table(rows)


def group_tables(
    task: str,
    groups: Mapping[str, Mapping[str, Mapping[str, Interval]]],
    sizes: Mapping[str, Mapping[str, int]],
) -> list[str]:
    """For each field a table of its groups, with the number of records of each."""
    tables = []
    for field, of_field in groups.items():
        rows: list[Sequence[str]] = [(field, "records", *SHOWN[task])]
        for name, scores in of_field.items():
            cells = [
                f"{number(scores[shown].value)} ({between(scores[shown].low, scores[shown].high)})"
                if shown in scores
                else ""
                for shown in SHOWN[task]
            ]
            rows.append((name, f"{sizes[field][name]:,}", *cells))
        tables.append("\n".join(table(rows)))
    return tables


def difference_lines(found: Mapping[str, Difference], a: str, b: str, images: str) -> list[str]:
    """A line for each score of A and B: both, B - A with its interval, p and a verdict in words.

    images: how many there are, in words.
    """
    rows = [("score", "A", "B", "B - A", "95 % interval", "p", "")]
    rows += [
        (
            name,
            number(of.a),
            number(of.b),
            f"{of.difference:+#.4g}" if of.difference else "0",
            between(of.low, of.high),
            f"{of.p_value:.3f}",
            verdict(of, images),
        )
        for name, of in found.items()
    ]
    return [f"A  {a}", f"B  {b}", "", *table(rows)]


def verdict(of: Difference, images: str) -> str:
    """What a difference says, of scores of which more is better."""
    if not of.significant:
        return f"no difference that these {images} show"
    return "B is better" if of.difference > 0 else "A is better"


def number(value: float) -> str:
    """Four digits that count."""
    return f"{value:#.4g}" if value else "0"


def between(low: float, high: float) -> str:
    return f"{number(low)} to {number(high)}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns of one width."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
