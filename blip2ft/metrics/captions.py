"""All caption scores of a set of predictions, under the names that the command line prints."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAMED_IN_ERRORS = 5


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a set of captions.

    Args:
        scores: exact_match, bleu1 to bleu4, rougeL, cider and, where available, meteor and spice.
        per_sample: The same names, each with the score of every id.
        unavailable: Metrics that could not run, each with the reason and what to install.
    """

    scores: dict[str, float]
    per_sample: dict[str, dict[Hashable, float]]
    unavailable: dict[str, str]


def score_captions(
    predictions: Mapping[Any, str],
    references: Mapping[Any, Sequence[str]],
    *,
    java: bool = True,
) -> CaptionScores:
    """Scores captions against their references.

    Args:
        predictions: The caption of each id. An empty caption is legal and scores 0.
        references: The reference captions of each id; the same ids, at least one caption each.
        java: Also METEOR and SPICE, which need a Java runtime. Where one can't run it is listed
            in `unavailable`; it is never a score of 0.

    Raises:
        ValueError: Nothing to score, ids that are not on both sides, an id without references.
    """
    # `evaluate` takes seconds to import
    from blip2ft.metrics.bleu import bleu_scores
    from blip2ft.metrics.cider import cider_scores
    from blip2ft.metrics.java import MetricUnavailable
    from blip2ft.metrics.meteor import meteor_scores
    from blip2ft.metrics.rouge import rouge_scores
    from blip2ft.metrics.spice import spice_scores

    _check(predictions, references)
    ids = list(predictions)
    captions = [predictions[i] for i in ids]
    targets = [references[i] for i in ids]

    exact = [
        float(caption.strip() in {target.strip() for target in sample})
        for caption, sample in zip(captions, targets, strict=True)
    ]
    scores = {"exact_match": sum(exact) / len(exact)}
    per_sample = {"exact_match": dict(zip(ids, exact, strict=True))}
    unavailable = {}
    metrics = {"bleu": bleu_scores, "rougeL": rouge_scores, "cider": cider_scores}
    if java:
        metrics |= {"meteor": meteor_scores, "spice": spice_scores}
    for name, metric in metrics.items():
        try:
            corpus, samples = metric(captions, targets)
        except MetricUnavailable as error:
            unavailable[name] = str(error)
            continue
        scores |= corpus
        per_sample |= {key: dict(zip(ids, values, strict=True)) for key, values in samples.items()}
    return CaptionScores(scores, per_sample, unavailable)


def _check(predictions: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> None:
    if not predictions:
        raise ValueError("There are no predictions to score. Pass at least one caption.")
    without_reference = [i for i in predictions if i not in references]
    if without_reference:
        raise ValueError(
            f"{_named(without_reference)} of {len(predictions)} predictions have no reference. "
            "Every id needs at least one: add them, or leave those predictions out. The "
            f"references have ids such as {_example(references, predictions)}; ids compare with "
            "their type: 1 is not '1'."
        )
    without_prediction = [i for i in references if i not in predictions]
    if without_prediction:
        raise ValueError(
            f"{_named(without_prediction)} of {len(references)} references have no prediction. "
            "Caption every image, or score against the references of those images alone. The "
            f"predictions have ids such as {next(iter(predictions))!r}."
        )
    for i, sample in references.items():
        if isinstance(sample, str):
            raise ValueError(
                f"The references of id {i!r} are one string, {sample!r}. They must be a list of "
                "strings: wrap it as [text]."
            )
    empty = [i for i, sample in references.items() if not sample]
    if empty:
        raise ValueError(
            f"{_named(empty)} of {len(references)} lists of references are empty. Each must hold "
            "at least one caption: add one, or leave those images out."
        )


def _example(references: Mapping[Any, Any], predictions: Mapping[Any, Any]) -> str:
    """An id of the references, one without a prediction where there is any."""
    ids = [i for i in references if i not in predictions] or list(references)
    return repr(ids[0]) if ids else "none at all"


def _named(ids: Iterable[Hashable]) -> str:
    ids = list(ids)
    names = ", ".join(repr(i) for i in ids[:NAMED_IN_ERRORS])
    more = ", ..." if len(ids) > NAMED_IN_ERRORS else ""
    return f"{len(ids)} ({names}{more})"
