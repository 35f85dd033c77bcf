"""BLEU-1 to 4 as the COCO caption server computes it.

Source: Papineni et al. 2002 (P02-1040); constants and the choice of the closest reference length
follow pycocoevalcap 1.2, bleu/bleu_scorer.py.
"""

from collections import Counter
from collections.abc import Sequence

import evaluate
import numpy as np

from blip2ft.metrics.caption_info import caption_info
from blip2ft.metrics.ptb import words

ORDER = 4
NAMES = tuple(f"bleu{k + 1}" for k in range(ORDER))
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
    counts = bleu_counts(predictions, references)
    corpus, samples = bleu_of_counts(counts.sum(0)), bleu_of_counts(counts)
    return (
        dict(zip(NAMES, corpus.tolist(), strict=True)),
        dict(zip(NAMES, samples.T.tolist(), strict=True)),
    )


def bleu_counts(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """What BLEU needs of each sample: (N, 10) int64.

    Of n-grams of length 1 to 4 those found, then those there are; the caption's length and that of
    the closest reference. Rows add up: the sum of several is what their corpus score needs.
    """
    rows = np.empty((len(predictions), 2 * ORDER + 2), np.int64)
    for row, prediction, sample_references in zip(rows, predictions, references, strict=True):
        candidate = words(prediction)
        tokenised = [words(reference) for reference in sample_references]
        length = len(candidate)
        row[:ORDER] = _matches(candidate, tokenised)
        row[ORDER : 2 * ORDER] = [max(0, length - k) for k in range(ORDER)]
        row[-2:] = length, min((abs(len(r) - length), len(r)) for r in tokenised)[1]
    return rows


def bleu_of_counts(counts: np.ndarray) -> np.ndarray:
    """BLEU-1 to 4 (..., 4) of counts (..., 10) that `bleu_counts` gave, or of sums of them."""
    matches, guesses = counts[..., :ORDER], counts[..., ORDER : 2 * ORDER]
    ratio = (counts[..., -2:-1] + TINY) / (counts[..., -1:] + SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    product = np.cumprod((matches + TINY) / (guesses + SMALL), axis=-1)
    return product ** (1 / np.arange(1, ORDER + 1)) * brevity


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


class Bleu(evaluate.Metric):
    """The `evaluate` module: predictions are strings, references lists of strings."""

    def _info(self) -> evaluate.MetricInfo:
        return caption_info(DESCRIPTION, "Papineni et al. 2002")

    def _compute(self, predictions, references):
        return bleu_scores(predictions, references)[0]
