"""BLEU-1 to 4 as the COCO caption server computes it.

Source: Papineni et al. 2002 (P02-1040); constants and the choice of the closest reference length
follow pycocoevalcap 1.2, bleu/bleu_scorer.py.
"""

import math
from collections import Counter
from collections.abc import Sequence

import datasets
import evaluate

from blip2ft.metrics.ptb import words

ORDER = 4
SMALL = 1e-9
TINY = 1e-15  # no match at all gives almost 0, not a division by zero

DESCRIPTION = "BLEU-1 to 4 over Penn Treebank tokens, as for COCO captions."


def bleu_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """BLEU-1 to 4 of captions against their references.

    Args:
        predictions: One caption a sample.
        references: The references of each sample, at least one.

    Returns:
        Corpus scores and per-sample scores, both under bleu1 to bleu4. The corpus score pools
        counts over samples, so it is not the mean of the per-sample ones. All within 0 and 1.
    """
    guesses, matches = [0] * ORDER, [0] * ORDER
    length = closest_length = 0
    per_sample: dict[str, list[float]] = {f"bleu{k + 1}": [] for k in range(ORDER)}
    for prediction, sample_references in zip(predictions, references, strict=True):
        candidate = words(prediction)
        tokenised = [words(reference) for reference in sample_references]
        closest = min((abs(len(r) - len(candidate)), len(r)) for r in tokenised)[1]
        sample_guesses = [max(0, len(candidate) - k) for k in range(ORDER)]
        sample_matches = _matches(candidate, tokenised)
        for k, score in enumerate(_bleu(sample_matches, sample_guesses, len(candidate), closest)):
            per_sample[f"bleu{k + 1}"].append(score)
        length, closest_length = length + len(candidate), closest_length + closest
        for k in range(ORDER):
            guesses[k] += sample_guesses[k]
            matches[k] += sample_matches[k]
    corpus = _bleu(matches, guesses, length, closest_length)
    return {f"bleu{k + 1}": score for k, score in enumerate(corpus)}, per_sample


def _ngrams(tokens: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(tokens[i : i + n]) for n in range(1, ORDER + 1) for i in range(len(tokens) - n + 1)
    )


def _matches(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> list[int]:
    """N-grams of the candidate found in a reference, each at most as often as in one of them."""
    most: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        most |= _ngrams(reference)
    matches = [0] * ORDER
    for ngram, count in _ngrams(candidate).items():
        matches[len(ngram) - 1] += min(count, most[ngram])
    return matches


def _bleu(
    matches: Sequence[int], guesses: Sequence[int], length: int, closest_length: int
) -> list[float]:
    ratio = (length + TINY) / (closest_length + SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for k in range(ORDER):
        product *= (matches[k] + TINY) / (guesses[k] + SMALL)
        scores.append(product ** (1 / (k + 1)) * brevity)
    return scores


class Bleu(evaluate.Metric):
    """The `evaluate` module: predictions are strings, references lists of strings."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="Papineni et al. 2002",
            inputs_description="predictions: strings; references: lists of strings",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
        )

    def _compute(self, predictions, references):
        return bleu_scores(predictions, references)[0]
