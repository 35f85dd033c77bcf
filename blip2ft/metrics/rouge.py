"""ROUGE-L as the COCO caption server computes it.

Source: Lin 2004 (W04-1013); beta and the separate maxima of precision and recall over references
follow pycocoevalcap 1.2, rouge/rouge.py.
"""

from collections.abc import Sequence

import evaluate

from blip2ft.metrics.caption_info import caption_info
from blip2ft.metrics.ptb import tokenize

BETA = 1.2

DESCRIPTION = "ROUGE-L over Penn Treebank tokens, as for COCO captions."


def rouge_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """ROUGE-L of captions against their references.

    Args:
        predictions: One caption a sample. An empty one scores 0, also against an empty reference,
            where the original gives 1.
        references: The references of each sample, at least one.

    Returns:
        The mean and the per-sample scores, both under rougeL, within 0 and 1.
    """
    scores = []
    for prediction, sample_references in zip(predictions, references, strict=True):
        candidate = tokenize(prediction)
        precision = recall = 0.0
        for reference in sample_references:
            tokens = tokenize(reference)
            common = _common_subsequence(candidate, tokens)
            precision = max(precision, common / max(1, len(candidate)))
            recall = max(recall, common / max(1, len(tokens)))
        weighted = recall + BETA**2 * precision
        scores.append((1 + BETA**2) * precision * recall / weighted if weighted else 0.0)
    return {"rougeL": sum(scores) / len(scores)}, {"rougeL": scores}


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, one row of the table at a time."""
    row = [0] * (len(second) + 1)
    for token in first:
        diagonal = 0
        for j, other in enumerate(second, 1):
            above = row[j]
            row[j] = diagonal + 1 if token == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]


class Rouge(evaluate.Metric):
    """The `evaluate` module: predictions are strings, references lists of strings."""

    def _info(self) -> evaluate.MetricInfo:
        return caption_info(DESCRIPTION, "Lin 2004")

    def _compute(self, predictions, references):
        return rouge_scores(predictions, references)[0]
