"""The numbers that a task's scores are computed from, row by row.

Every score here is a function of sums over rows: means are, and so is BLEU, which pools counts. So
the score of a group, of a resample or of everything is one sum away.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Row = Mapping[str, Any]
Scores = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sums:
    """What scores are computed from.

    Args:
        rows: (N, K) float64, K numbers of each row of predictions.
        images: (N,) int64, the number of each row's image: 0, 1, 2 ... as they first come.
        scores: From sums of rows (..., K) each score's (...,), by the names of metrics.jsonl; NaN
            where no row says anything of it.
        digits: What the official tool rounds to; None is not at all.
    """

    rows: np.ndarray
    images: np.ndarray
    scores: Callable[[np.ndarray], Scores]
    digits: int | None = None

    def of(self, chosen: Sequence[int]) -> "Sums":
        """Those of some rows, by their places. What is known of the whole set stays known."""
        places = np.asarray(chosen, np.int64)
        images = number(self.images[places].tolist())
        return replace(self, rows=self.rows[places], images=images)

    def value(self) -> dict[str, float]:
        """The scores of all rows, to the official tool's last digit; those that are NaN left out.

        Python adds the rows up in their order, as the official tools do.
        """
        total = np.array([sum(column) for column in self.rows.T.tolist()])
        found = {name: float(value) for name, value in self.scores(total).items()}
        digits = self.digits
        return {
            name: value if digits is None else round(value, digits)
            for name, value in found.items()
            if value == value
        }

    def by_image(self) -> np.ndarray:
        """Sums (C, K) of each image's rows."""
        summed = np.zeros((int(self.images.max()) + 1, self.rows.shape[1]))
        np.add.at(summed, self.images, self.rows)
        return summed


def number(values: Sequence[Any]) -> np.ndarray:
    """(N,) int64: equal values get the same number, from 0 as they first come."""
    seen: dict[Any, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], np.int64)


def sums(task: str, rows: Sequence[Row]) -> Sums | None:
    """The numbers of rows of predictions; None where a row has nothing to be scored against.

    rows: As they are in a run's predictions/*.jsonl, at least one.

    How rare CIDEr-D takes an n-gram to be comes from the references of all of `rows`, and stays so
    for groups and resamples of them.

    Raises ValueError for an unknown task, for no rows, and for rows of retrieval that an earlier
    version wrote: they lack the ranks.
    """
    if task not in TASKS:
        raise ValueError(f"there is no task {task!r}; tasks are {', '.join(TASKS)}")
    if not rows:
        raise ValueError("there are no predictions to score")
    return TASKS[task](rows)


def _of_captions(rows: Sequence[Row]) -> Sums | None:
    # `evaluate`, which these import, takes seconds
    from blip2ft.metrics.bleu import NAMES, bleu_counts, bleu_of_counts
    from blip2ft.metrics.cider import cider_scores
    from blip2ft.metrics.rouge import rouge_scores

    captions = [row["caption"] for row in rows]
    references = [row["references"] for row in rows]
    if not all(references):
        return None
    exact = [
        float(caption.strip() in {target.strip() for target in sample})
        for caption, sample in zip(captions, references, strict=True)
    ]
    rouge = rouge_scores(captions, references)[1]["rougeL"]
    cider = cider_scores(captions, references)[1]["cider"]
    counts = bleu_counts(captions, references)

    def scores(total: np.ndarray) -> Scores:
        count = total[..., 3]
        bleu = bleu_of_counts(total[..., 4:])
        return {
            "exact_match": _ratio(total[..., 0], count),
            **{name: bleu[..., k] for k, name in enumerate(NAMES)},
            "rougeL": _ratio(total[..., 1], count),
            "cider": _ratio(total[..., 2], count),
        }

    numbers = np.column_stack([exact, rouge, cider, np.ones(len(rows)), counts])
    return Sums(numbers, _images(rows), scores)


def _of_answers(rows: Sequence[Row]) -> Sums | None:
    """Counted as `tasks.vqa.score` does."""
    from blip2ft.metrics.vqa_accuracy import answer_accuracy

    if not all(row["answers"] for row in rows):
        return None
    kinds: list[str] = []
    digits = None
    if all(row.get("choices") and row.get("correct_choice") is not None for row in rows):
        right = [row["answer"] == row["choices"][row["correct_choice"]] for row in rows]
    elif all(len(row["answers"]) > 1 for row in rows):
        right = [answer_accuracy(row["answer"], row["answers"]) for row in rows]
        digits = 2
        if all("fields" in row for row in rows):  # rows of an earlier version don't tell the type
            kinds = [row["fields"].get("answer_type") or "other" for row in rows]
    else:
        right = [_same(row["answer"], row["answers"][0]) for row in rows]
    names = sorted(set(kinds))
    of_kind = np.array([[kind == name for name in names] for kind in kinds or rows], float)
    gained = np.asarray(right, float)[:, None]

    def scores(total: np.ndarray) -> Scores:
        accuracy = 100 * total[..., : total.shape[-1] // 2]
        accuracy = _ratio(accuracy, total[..., total.shape[-1] // 2 :])
        named = ["accuracy", *(f"accuracy_{name}" for name in names)]
        return {name: accuracy[..., k] for k, name in enumerate(named)}

    whole = np.ones((len(rows), 1))
    numbers = np.hstack([gained, gained * of_kind, whole, of_kind])
    return Sums(numbers, _images(rows), scores, digits)


def _of_ranks(rows: Sequence[Row]) -> Sums | None:
    from blip2ft.metrics.recall_at_k import RECALL_AT, WAYS

    if not all("image_rank" in row and "text_ranks" in row for row in rows):
        raise ValueError(
            "these predictions of retrieval have no ranks, which an earlier version didn't keep; "
            "make them anew: blip2ft evaluate retrieval --config F"
        )
    if not all(row["text_ranks"] for row in rows):
        return None
    numbers = []
    for row in rows:
        found = [_found([row["image_rank"]], k) for k in RECALL_AT] + [1]
        found += [_found(row["text_ranks"], k) for k in RECALL_AT] + [len(row["text_ranks"])]
        numbers.append(found)

    def scores(total: np.ndarray) -> Scores:
        recalls = {
            f"{way}_r{k}": _ratio(total[..., 4 * w + i], total[..., 4 * w + 3])
            for w, way in enumerate(WAYS)
            for i, k in enumerate(RECALL_AT)
        }
        mean = np.add.reduce(list(recalls.values())) / len(recalls)
        return {**recalls, "mean_recall": mean}

    return Sums(np.array(numbers, float), _images(rows), scores)


def _found(ranks: Sequence[int | None], k: int) -> int:
    return sum(rank is not None and rank <= k for rank in ranks)


def _same(answer: str, right: str) -> bool:
    return answer.strip().lower() == right.strip().lower()


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    nothing = np.full(np.shape(part), np.nan)
    return np.divide(part, whole, out=nothing, where=whole > 0)


def _images(rows: Sequence[Row]) -> np.ndarray:
    return number([row["image_id"] for row in rows])


TASKS = {"caption": _of_captions, "vqa": _of_answers, "retrieval": _of_ranks}
