"""What a run's folder says of the run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from blip2ft.settings import OWN
from blip2ft.training.broken import FILE as BROKEN
from blip2ft.training.filtered import FILE as FILTERED
from blip2ft.training.nonfinite import FILE as NONFINITE
from blip2ft.training.run import STOPPED, Evaluation, read_evaluation, read_lines

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Contents:
    """A run as its folder tells it.

    Args:
        settings: config.yaml.
        log: Lines of log.jsonl.
        evaluations: Lines of metrics.jsonl.
        split: What before and after are told of: test, or validation where there is no test.
        best: The step with the best score on validation, whose weights are the result; None
            before the first evaluation.
        before: Scores of step 0 on `split`, and after those of the best step; {} where the run
            hasn't come so far. A run that only evaluates has them in after.
        answers_before: Rows of predictions of step 0, and answers_after of the best step.
        resources: resources.json, {} where there is none.
        asides: Lines of the files of what went wrong or was left out, by their names.
        stopped: The signal that stopped the run, None where it has ended or goes on.
    """

    folder: Path
    task: str
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    log: Sequence[Row]
    evaluations: Sequence[Row]
    split: str
    best: int | None
    before: Mapping[str, float]
    after: Mapping[str, float]
    answers_before: Sequence[Row]
    answers_after: Sequence[Row]
    resources: Mapping[str, Any]
    asides: Mapping[str, Sequence[Row]]
    stopped: str | None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def metric(self) -> str:
        """The score by which the best step is chosen."""
        return self.settings["train"]["best_metric"]

    @property
    def data(self) -> Mapping[str, Any]:
        """The settings of the data that `split` is read from."""
        return self.settings["data"][self.split]


def read_run(folder: Path) -> Contents:
    """Read a run's folder; of a run that goes on, or was stopped, what is there.

    Raises ValueError where there is no run, and for a file of it that is damaged.
    """
    settings = _settings(folder)
    try:
        evaluations = read_lines(folder / "metrics.jsonl")
        split = "validation" if settings["data"].get("test") is None else "test"
        best = _best(evaluations, settings["train"]["best_metric"])
        nothing = Evaluation({}, [])
        before = read_evaluation(folder, split, 0)
        after = read_evaluation(folder, split, best) if best else nothing
        if settings.get("evaluate_only"):
            before, after = nothing, before
        stopped = _read_json(folder / STOPPED).get("signal")
        return Contents(
            folder=folder,
            task=task_of(settings),
            settings=settings,
            environment=_read_json(folder / "environment.json"),
            log=read_lines(folder / "log.jsonl"),
            evaluations=evaluations,
            split=split,
            best=best,
            before=before.scores,
            after=after.scores,
            answers_before=before.answers,
            answers_after=after.answers,
            resources=_read_json(folder / "resources.json"),
            asides={name: read_lines(folder / name) for name in (NONFINITE, BROKEN, FILTERED)},
            stopped=stopped,
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} can't be told of: one of its files is damaged, or of another version "
            f"({type(error).__name__}: {error})"
        ) from error


def task_of(settings: Mapping[str, Any]) -> str:
    """The task that a run's settings, which name all that it has, are of."""
    own = {task for key, task in OWN.items() if key in settings}
    return own.pop() if len(own) == 1 else "caption"


def flat(settings: Any, prefix: str = "") -> dict[str, str]:
    """Settings by their dotted names, as they are written on a command line."""
    if isinstance(settings, Mapping) and settings:
        items = list(settings.items())
    elif isinstance(settings, list) and any(isinstance(value, Mapping) for value in settings):
        items = list(enumerate(settings))
    else:
        return {prefix: settings if isinstance(settings, str) else json.dumps(settings)}
    found: dict[str, str] = {}
    for key, value in items:
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run: there is no {path.name}; give a run's folder")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(settings, dict) or not {"data", "train"} <= settings.keys():
        raise ValueError(f"{path} isn't of a training run: it lacks the settings of data and train")
    return settings


def _best(evaluations: Sequence[Row], metric: str) -> int | None:
    """The step whose weights are the run's result, or would be if it ended now."""
    if tested := [row["step"] for row in evaluations if row["split"] == "test" and row["step"]]:
        return tested[-1]
    scored = [
        row
        for row in evaluations
        if row["split"] == "validation" and row["step"] and row.get(metric) is not None
    ]
    # the first of equals, as training keeps it
    return max(scored, key=lambda row: (row[metric], -row["step"]))["step"] if scored else None


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
