"""Which languages texts are in, as py3langid guesses: offline, and only where it is installed."""

import random
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

MISSING = 'pip install "blip2ft[languages]" tells which languages the texts are in'
FEW = 20  # texts from which shares mean something
SAMPLE = 5000  # texts of a split that are looked at
SURE = 0.6  # probability from which a guess counts; short texts have less
UNSURE = "not sure"


def count_languages(texts: Sequence[str]) -> dict[str, int] | None:
    """How many of some of the texts are in each language, by its ISO 639-1 code, most first.

    What may be one language as well as another counts as `UNSURE`. Of few texts nothing is said.
    None where py3langid isn't installed.
    """
    identifier = _load()
    if identifier is None or len(texts) < FEW:
        return None if identifier is None else {}
    chosen = texts if len(texts) <= SAMPLE else random.Random(0).sample(texts, SAMPLE)
    counts: Counter[str] = Counter()
    for text in chosen:
        language, probability = identifier.classify(text[:1000])
        counts[language if probability >= SURE else UNSURE] += 1
    return dict(counts.most_common())


@cache
def _load() -> Any:
    """py3langid with its own model; None where it isn't installed."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        return None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
