"""What a run's folder says of the run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from blip2ft.evaluation.rows import read_rows
from blip2ft.settings import OWN
from blip2ft.training.broken import FILE as BROKEN
from blip2ft.training.filtered import FILE as FILTERED
from blip2ft.training.nonfinite import FILE as NONFINITE
from blip2ft.training.run import STOPPED, read_lines

Row = Mapping[str, Any]
Which = tuple[str, int | None]  # of a run's evaluations: split and step
Scores = Mapping[Which, Row]
# What a run adds to line by line, so that a machine that goes down may leave half a line.
GROWING = ("log.jsonl", NONFINITE, BROKEN, FILTERED)


@dataclass(frozen=True)
class Contents:
    """A run as its folder tells it.

    Args:
        starts: The settings of each start, config.yaml first and then those of resumes.
        log: Lines of log.jsonl.
        evaluations: Lines of metrics.jsonl.
        split: What before and after are told of: test, or validation where there is no test.
        best: The step with the best score on validation, whose weights are the result, or would be
            if the run ended now; None before the first evaluation.
        before: Scores of step 0 on `split`, and after those of the best step; {} where the run
            hasn't come so far. A run that only evaluates has them in after.
        answers_before: Rows of predictions of step 0, and answers_after of the best step.
        resources: resources.json, {} where there is none.
        asides: Lines of the files of what went wrong or was left out, by their names.
        damaged: How many lines of a file that grows can't be read, by its name.
        stopped: The signal that stopped the run, None where it has ended or goes on.
        ended: Whether it came to its end.
    """

    folder: Path
    task: str
    starts: Sequence[Mapping[str, Any]]
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
    damaged: Mapping[str, int]
    stopped: str | None
    ended: bool

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def settings(self) -> Mapping[str, Any]:
        """Those that it had last."""
        return self.starts[-1]

    @property
    def trains(self) -> bool:
        """False of a run that evaluates a model as it is."""
        return not self.settings.get("evaluate_only")

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

    Lines of the files that grow are left out where they can't be read, and counted.

    Raises ValueError where there is no run, and for a file of it that is damaged.
    """
    starts = [_settings(path) for path in _configs(folder)]
    settings = starts[-1]
    grown = {name: _readable_lines(folder / name) for name in GROWING}
    evaluations = _lines(folder / "metrics.jsonl")
    try:
        split = "validation" if settings["data"].get("test") is None else "test"
        scores: Scores = {(row["split"], row["step"]): row for row in evaluations}
        best = _best(evaluations, settings["train"]["best_metric"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} can't be told of: config.yaml or metrics.jsonl is damaged, or of another "
            f"version ({type(error).__name__}: {error})"
        ) from error
    before: Which = split, 0
    after: Which = split, best
    if settings.get("evaluate_only"):
        before, after = (split, None), before
    return Contents(
        folder=folder,
        task=task_of(settings),
        starts=starts,
        environment=_json(folder / "environment.json"),
        log=grown["log.jsonl"][0],
        evaluations=evaluations,
        split=split,
        best=best,
        before=_of(scores, before),
        after=_of(scores, after),
        answers_before=_answers(folder, scores, before),
        answers_after=_answers(folder, scores, after),
        resources=_json(folder / "resources.json"),
        asides={name: grown[name][0] for name in GROWING[1:]},
        damaged={name: count for name, (_, count) in grown.items() if count},
        stopped=_json(folder / STOPPED).get("signal"),
        ended=(folder / "adapter").is_dir() or bool(settings.get("evaluate_only") and scores),
    )


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


def _configs(folder: Path) -> list[Path]:
    """config.yaml and those of its resumes, in their order."""
    resumed = folder.glob("config-resumed-*.yaml")
    return [folder / "config.yaml", *sorted(resumed, key=lambda path: (len(path.name), path.name))]


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"{path.parent} holds no run: there is no {path.name}; give a run's folder"
        )
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged: {told}; put back what it was") from error
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


def _of(scores: Scores, which: Which) -> dict[str, float]:
    row = scores.get(which, {})
    return {name: value for name, value in row.items() if name not in ("split", "step")}


def _answers(folder: Path, scores: Scores, which: Which) -> list[dict[str, Any]]:
    """The predictions of an evaluation that is scored; [] where they aren't there any more."""
    split, step = which
    path = folder / "predictions" / f"{split}-{step or 0:08d}.jsonl"
    return read_rows(path) if which in scores and path.is_file() else []


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return read_lines(path)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged: {error}; remove the lines that aren't JSON"
        ) from error


def _readable_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines that are JSON objects, and how many aren't; one without its end isn't counted."""
    if not path.is_file():
        return [], 0
    rows, damaged = [], 0
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged += 1
    return rows, damaged


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; remove it to make the page without") from (
            error
        )
    return found if isinstance(found, dict) else {}
