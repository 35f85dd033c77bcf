"""Recall at K: how many queries have something right among their first K candidates.

As in LAVIS tasks/retrieval.py (report_metrics), which takes the best-ranked of several right ones.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

RECALL_AT = (1, 5, 10)  # paper, table 5
WAYS = ("image_to_text", "text_to_image")

DESCRIPTION = "Recall at K of rankings, from the best right candidate of each query."
INPUTS = """
Args:
    predictions: for each query {"candidates": ids, "scores": how well each fits}.
    references: for each query the ids of all that is right, at least one.
    k: the K to report, [1, 5, 10].
Returns:
    {"recall_at_1": ..., ...}, shares from 0 to 1.
"""


def first_right(candidates: np.ndarray, scores: np.ndarray, right: Sequence[int]) -> float:
    """The rank from 1 of the best right candidate; infinity where there is none.

    What is wrong and scores the same counts as better: a model that gives everything one score
    has found nothing.
    """
    is_right = np.isin(candidates, np.asarray(list(right)))
    if not is_right.any():
        return np.inf
    return 1.0 + float((scores[~is_right] >= scores[is_right].max()).sum())


def recall_at_k(
    candidates: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    right: Sequence[Sequence[int]],
    ks: Sequence[int] = RECALL_AT,
) -> dict[int, float]:
    """Of queries with their candidates the share that has something right in the first K.

    candidates, scores: for each query two arrays of one length, in any order; right: for each the
    ids of what is right. A K beyond the candidates counts all of them; what is right and no
    candidate isn't found.

    Raises ValueError where the three differ in length, for a query without anything right, for
    scores that aren't numbers, and for a K below 1.
    """
    if not len(candidates) == len(scores) == len(right) or not len(right):
        raise ValueError(
            f"recall needs candidates, scores and right answers of each query: there are "
            f"{len(candidates)}, {len(scores)} and {len(right)}"
        )
    if min(ks) < 1:
        raise ValueError(f"recall at {min(ks)} means nothing; k starts at 1")
    ranks = []
    for number, (ids, values, wanted) in enumerate(zip(candidates, scores, right, strict=True)):
        ids, values = np.asarray(ids), np.asarray(values, np.float64)
        if not len(wanted):
            raise ValueError(f"query {number} has no right answer; leave it out")
        if ids.shape != values.shape:
            raise ValueError(f"query {number} has {len(ids)} candidates and {len(values)} scores")
        if np.isnan(values).any():
            raise ValueError(f"query {number} has a score that isn't a number")
        ranks.append(first_right(ids, values, wanted))
    found = np.asarray(ranks)
    return {k: float((found <= k).mean()) for k in ks}


class RecallAtK(evaluate.Metric):
    """`evaluate.load(module_path("recall_at_k"))`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": {
                        "candidates": datasets.Sequence(datasets.Value("int64")),
                        "scores": datasets.Sequence(datasets.Value("float64")),
                    },
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(
        self, predictions: list[dict], references: list[list[int]], k: Sequence[int] = RECALL_AT
    ) -> dict[str, float]:
        found = recall_at_k(
            [row["candidates"] for row in predictions],
            [row["scores"] for row in predictions],
            references,
            k,
        )
        return {f"recall_at_{at}": value for at, value in found.items()}
