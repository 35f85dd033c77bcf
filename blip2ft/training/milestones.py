"""When a run evaluates, saves and logs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Milestones:
    """When, in steps, to evaluate, to save and to log, what to keep, and how much to leave out."""

    evaluate_every: int
    checkpoint_every: int
    log_every: int = 10
    keep_checkpoints: int = 2
    best_metric: str = "cider"
    max_nonfinite: int = 0


def milestones_of(settings: Mapping[str, Any], epoch: int) -> Milestones:
    """As the `train` group of a run's settings says; without a word, each `epoch` of so many steps.

    A checkpoint comes with each evaluation, unless it is said.
    """
    every = settings["evaluate_every"] or epoch
    return Milestones(
        evaluate_every=every,
        checkpoint_every=settings["checkpoint_every"] or every,
        log_every=settings["log_every"],
        keep_checkpoints=settings["keep_checkpoints"],
        best_metric=settings["best_metric"],
        max_nonfinite=settings["max_nonfinite"],
    )


def check_metric(best_metric: str, names: Iterable[str]) -> None:
    """Raise ValueError where the evaluation's scores have no such name to choose the best by."""
    if best_metric not in names:
        raise ValueError(
            f"train.best_metric is {best_metric!r}, which the evaluation doesn't give; allowed are "
            f"{', '.join(names)}"
        )
