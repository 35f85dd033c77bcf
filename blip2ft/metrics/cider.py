"""CIDEr-D as the COCO caption server computes it.

Source: Vedantam et al. 2015 (arXiv 1411.5726), equations 2 to 4 with the clipping and the length
penalty of CIDEr-D; details follow pycocoevalcap 1.2, cider/cider_scorer.py.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import evaluate

from blip2ft.metrics.caption_info import caption_info
from blip2ft.metrics.ptb import words

ORDER = 4
SIGMA = 6.0

DESCRIPTION = "CIDEr-D over Penn Treebank tokens, as for COCO captions."

Ngram = tuple[str, ...]
# For each n: the weights of the n-grams, their norm; then the number of bigrams.
Vector = tuple[list[dict[Ngram, float]], list[float], int]


def cider_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """CIDEr-D of captions against their references.

    How rare an n-gram is comes from these references, so scores of different sets don't compare,
    and a single sample scores 0: nothing is rare in one document.

    Args:
        predictions: One caption a sample.
        references: The references of each sample, at least one.

    Returns:
        The mean and the per-sample scores, both under cider, within 0 and 10.
    """
    counts = [[_ngrams(words(r)) for r in sample] for sample in references]
    frequency: Counter[Ngram] = Counter()
    for sample in counts:
        frequency.update({ngram for reference in sample for ngram in reference})
    documents = math.log(len(counts)) if counts else 0.0
    rarity = {ngram: documents - math.log(count) for ngram, count in frequency.items()}
    scores = []
    for prediction, sample in zip(predictions, counts, strict=True):
        candidate = _vector(_ngrams(words(prediction)), rarity, documents)
        total = sum(_similarity(candidate, _vector(r, rarity, documents)) for r in sample)
        scores.append(10.0 * total / ORDER / len(sample))
    return {"cider": sum(scores) / len(scores)}, {"cider": scores}


def _ngrams(tokens: Sequence[str]) -> Counter[Ngram]:
    return Counter(
        tuple(tokens[i : i + n]) for n in range(1, ORDER + 1) for i in range(len(tokens) - n + 1)
    )


def _vector(counts: Mapping[Ngram, int], rarity: Mapping[Ngram, float], unseen: float) -> Vector:
    weights: list[dict[Ngram, float]] = [{} for _ in range(ORDER)]
    for ngram, count in counts.items():
        weights[len(ngram) - 1][ngram] = count * rarity.get(ngram, unseen)
    norms = [math.sqrt(sum(w * w for w in of_order.values())) for of_order in weights]
    # the original measures length in bigrams
    return weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _similarity(candidate: Vector, reference: Vector) -> float:
    """Sum over n of the clipped cosine, times the Gaussian penalty on the difference in length."""
    total = 0.0
    for own, other, norm, other_norm in zip(
        candidate[0], reference[0], candidate[1], reference[1], strict=True
    ):
        if norm and other_norm:
            product = sum(min(w, other[g]) * other[g] for g, w in own.items() if g in other)
            total += product / (norm * other_norm)
    return total * math.exp(-((candidate[2] - reference[2]) ** 2) / (2 * SIGMA**2))


class Cider(evaluate.Metric):
    """The `evaluate` module: predictions are strings, references lists of strings."""

    def _info(self) -> evaluate.MetricInfo:
        return caption_info(DESCRIPTION, "Vedantam et al. 2015")

    def _compute(self, predictions, references):
        return cider_scores(predictions, references)[0]
