"""What there is, whatever is wrong with it: how much, how long, how large."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from blip2ft.audit.balance import answer_summary, median_words
from blip2ft.audit.contents import Contents
from blip2ft.audit.languages import count_languages
from blip2ft.audit.looks import Look
from blip2ft.audit.texts import length_histogram


@dataclass(frozen=True)
class SplitSummary:
    """What one split holds; languages: None where nothing tells them."""

    name: str
    rows: int
    images: int
    texts: int
    words: float  # of a text, the median
    lengths: dict[str, int]
    languages: dict[str, int] | None
    answers: dict[str, Any]


def summarise(name: str, contents: Contents, task: str) -> SplitSummary:
    """What one split holds."""
    items = contents.splits[name]
    texts = [text for item in items for text in item.texts]
    return SplitSummary(
        name,
        len(items),
        len({item.picture for item in items if item.picture is not None}),
        len(texts),
        median_words(items),
        length_histogram(items),
        count_languages(texts),
        answer_summary(items) if task == "vqa" else {},
    )


def size_histogram(looks: Sequence[Look]) -> dict[str, int]:
    """How many images that can be used have a shorter side of so many pixels."""
    bounds = (64, 128, 224, 364, 512, 1024)
    names = [f"under {bounds[0]}"]
    names += [f"{low}-{high - 1}" for low, high in pairwise(bounds)]
    names.append(f"{bounds[-1]} or more")
    counts = dict.fromkeys(names, 0)
    for look in looks:
        if not look.fault:
            side = min(look.width, look.height)
            counts[names[sum(side >= bound for bound in bounds)]] += 1
    return counts
