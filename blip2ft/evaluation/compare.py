"""Whether two sets of predictions on the same samples differ by more than chance.

The interval of a difference is that of the paired bootstrap (Koehn 2004, W04-3250; Efron and
Tibshirani 1993, chapter 13): both are scored on the same resamples of the images. The p-value is
that of the paired randomization test (Noreen 1989; Yeh 2000, C00-2137): how often the difference is
as large when it is drawn for each image which of the two answers is whose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blip2ft.counted import counted
from blip2ft.evaluation.intervals import DRAWN_AT_ONCE, RESAMPLES, bounds, resample
from blip2ft.evaluation.sums import Row, Sums, sums

SIGNIFICANT = 0.05
MAIN = {"caption": "cider", "vqa": "accuracy", "retrieval": "mean_recall"}
ID = {"caption": "image_id", "vqa": "question_id", "retrieval": "image_id"}
SAID = {"caption": ("caption",), "vqa": ("answer",), "retrieval": ("image_rank", "text_ranks")}
KNOWN = {"caption": "references", "vqa": "answers", "retrieval": "references"}


@dataclass(frozen=True)
class Difference:
    """Two scores, b - a, its 95 % interval, and the p-value of there being none.

    All but the p-value in the unit of metrics.jsonl.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    p_value: float

    @property
    def significant(self) -> bool:
        """Whether chance makes such a difference less than once in twenty times."""
        return self.p_value < SIGNIFICANT


@dataclass(frozen=True)
class Pairs:
    """Rows of the same samples, in the order of the first, and how many had no partner."""

    a: list[dict[str, Any]]
    b: list[dict[str, Any]]
    only_a: int
    only_b: int


def compare(
    task: str,
    rows_a: Sequence[Row],
    rows_b: Sequence[Row],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """Each score's difference between two sets of predictions on the same samples.

    The order of the rows doesn't matter. CIDEr-D takes how rare an n-gram is from the references of
    all rows, as in `intervals`. {} where a row has nothing to be scored against.

    Raises ValueError where the samples aren't the same, as `pair` does, and as `sums` does.
    """
    pairs = pair(task, rows_a, rows_b)
    if pairs.only_a or pairs.only_b:
        raise ValueError(
            f"the two aren't of the same samples: {pairs.only_a} are only in the first and "
            f"{pairs.only_b} only in the second"
        )
    a, b = sums(task, pairs.a), sums(task, pairs.b)
    if a is None or b is None:
        return {}
    of_a, of_b = a.by_image(), b.by_image()
    width = of_a.shape[1]
    drawn = resample(np.hstack([of_a, of_b]), resamples, seed)
    moved = _difference(a, drawn[:, :width], drawn[:, width:])
    chance = _by_chance(a, of_a, of_b, resamples, seed)
    total = _difference(a, of_a.sum(0), of_b.sum(0))
    values_a, values_b = a.value(), b.value()
    found = {}
    for name, value in values_a.items():
        low, high = bounds(moved[name], a.digits)
        between = values_b[name] - value
        # of equal differences rounding makes some a last digit smaller
        as_large = np.abs(chance[name]) >= np.abs(total[name]) * (1 - 1e-9) - 1e-12
        found[name] = Difference(
            value,
            values_b[name],
            between if a.digits is None else round(between, a.digits),
            low,
            high,
            float((1 + as_large.sum()) / (1 + resamples)),
        )
    return found


def pair(task: str, rows_a: Sequence[Row], rows_b: Sequence[Row]) -> Pairs:
    """Bring the rows of the same samples together, by image_id, or question_id for VQA.

    What is known of a sample (references, answers, fields) is taken from the first.

    Raises ValueError for a sample that comes twice, for samples with other references or answers,
    for no sample in common, and for rankings among different images: there a rank means another
    thing.
    """
    by_id = [_by_id(task, rows) for rows in (rows_a, rows_b)]
    shared = [i for i in by_id[0] if i in by_id[1]]
    if not shared:
        first, second = (next(iter(rows), None) for rows in by_id)
        raise ValueError(
            f"the two have no sample in common: the first {ID[task]} is {first!r} in one and "
            f"{second!r} in the other; compare predictions on the same split"
        )
    only_a, only_b = (len(rows) - len(shared) for rows in by_id)
    if task == "retrieval" and (only_a or only_b):
        raise ValueError(
            f"the first ranked {counted(len(by_id[0]), 'image')} and the second "
            f"{counted(len(by_id[1]), 'image')}, not the same ones, and ranks among different "
            "images don't compare; evaluate both on one split"
        )
    a, b = [], []
    for i in shared:
        one, other = dict(by_id[0][i]), by_id[1][i]
        if sorted(one[KNOWN[task]]) != sorted(other[KNOWN[task]]):
            raise ValueError(
                f"{ID[task]} {i!r} has other {KNOWN[task]} in the second than in the first; "
                "compare predictions that were scored against the same"
            )
        a.append(one)
        b.append(one | {name: other[name] for name in SAID[task] if name in other})
    return Pairs(a, b, only_a, only_b)


def most_different(task: str, pairs: Pairs, count: int) -> list[tuple[int, float, float]]:
    """The places of the pairs whose own scores differ most, with the score of a and of b.

    CIDEr-D of a caption, accuracy of an answer, mean recall of an image. Pairs that score the same
    aren't among them.
    """
    a, b = sums(task, pairs.a), sums(task, pairs.b)
    if a is None or b is None:
        return []
    one, other = (table.scores(table.rows)[MAIN[task]] for table in (a, b))
    order = np.argsort(-np.abs(other - one), kind="stable")[:count]
    return [(int(i), float(one[i]), float(other[i])) for i in order if one[i] != other[i]]


def _by_id(task: str, rows: Sequence[Row]) -> dict[Any, Row]:
    found: dict[Any, Row] = {}
    for row in rows:
        identity = row[ID[task]]
        if identity in found:
            raise ValueError(f"{ID[task]} {identity!r} is there twice; each sample must come once")
        found[identity] = row
    return found


def _difference(table: Sums, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    one, other = table.scores(a), table.scores(b)
    return {name: other[name] - one[name] for name in one}


def _by_chance(
    table: Sums, a: np.ndarray, b: np.ndarray, resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Differences (R,) where each image's answers (C, K) change sides or not, by a coin."""
    rng = np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // len(a))
    moved = np.concatenate(
        [
            rng.integers(2, size=(min(at_once, resamples - start), len(a))).astype(float) @ (b - a)
            for start in range(0, resamples, at_once)
        ]
    )
    return _difference(table, a.sum(0) + moved, b.sum(0) - moved)
