"""How far a score might be off because these images were drawn and not others.

The percentile bootstrap: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
As many images as there are get drawn with replacement, each with all that belongs to it, and
scored; the 95 % in the middle of many such scores are the interval. What is drawn is images, since
questions or texts of one image aren't independent. It tells of the images alone: another seed of
training moves a score too, and no interval here knows by how much.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from blip2ft.evaluation.sums import Row, Sums, sums

RESAMPLES = 1000
LEVEL = 95.0
DRAWN_AT_ONCE = 2**22


@dataclass(frozen=True)
class Interval:
    """A score and its 95 % interval, in the unit of metrics.jsonl."""

    value: float
    low: float
    high: float


def intervals(
    task: str, rows: Sequence[Row], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Each score of a set of predictions with its 95 % interval, by the names of metrics.jsonl.

    task: caption, vqa or retrieval. rows: as they are in a run's predictions/*.jsonl.

    Captions: BLEU is that of each resample, its counts pooled anew. CIDEr-D takes how rare an
    n-gram is from the references of all rows, in every resample: the interval is that of a mean of
    the images' scores, and rarity itself isn't drawn. METEOR and SPICE aren't here, as they need
    another program. VQA: an image comes with its questions. Retrieval: an image comes with its
    texts, and what is searched stays all images and texts.

    The value is the official tool's. {} where a row has nothing to be scored against. The interval
    of few images, below some 30, is too narrow, and that of one has no width at all.

    Raises ValueError as `sums` does, and for fewer than one resample.
    """
    table = sums(task, rows)
    return {} if table is None else intervals_of(table, resamples=resamples, seed=seed)


def intervals_of(table: Sums, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Interval]:
    """As `intervals`, of numbers that are there already."""
    drawn = table.scores(resample(table.by_image(), resamples, seed))
    found = {}
    for name, value in table.value().items():
        low, high = bounds(drawn[name], table.digits)
        found[name] = Interval(value, low, high)
    return found


def bounds(drawn: np.ndarray, digits: int | None) -> tuple[float, float]:
    """The middle 95 % of resampled scores (R,), but for those in which nothing was scored.

    digits: as those of `Sums`.
    """
    tail = (100 - LEVEL) / 2
    low, high = np.nanpercentile(drawn, [tail, 100 - tail]).tolist()
    return (low, high) if digits is None else (round(low, digits), round(high, digits))


def resample(of_images: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums (R, K) of resamples of the rows (C, K), each of C rows drawn with replacement.

    The same seed and C draw the same rows. Raises ValueError for fewer than one resample.
    """
    if resamples < 1:
        raise ValueError(f"{resamples} resamples tell nothing; take 1 or more, such as {RESAMPLES}")
    weights = _draw(len(of_images), resamples, np.random.default_rng(seed))
    return np.concatenate([times @ of_images for times in weights])


def _draw(count: int, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each of `count` was drawn: all `resamples` rows (r, count), some at a time."""
    at_once = max(1, DRAWN_AT_ONCE // count)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * count)
        yield times.reshape(size, count).astype(float)
