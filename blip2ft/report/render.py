"""The pages: one of a run, one that compares runs, from the templates in page/."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from blip2ft.evaluation.intervals import Interval
from blip2ft.pages import readable
from blip2ft.report.charts import Chart, Curve, curve_chart, score_chart
from blip2ft.report.curves import points_of
from blip2ft.report.facts import (
    TASKS,
    differing,
    differing_settings,
    environment,
    gains,
    notices,
    parts_of,
    said_of,
    side_by_side,
    time_and_memory,
)
from blip2ft.report.gallery import OF_REFERENCES, Group, Sample, groups_of, samples_of, texts_of
from blip2ft.report.pictures import pictures_of
from blip2ft.report.reading import Contents, flat
from blip2ft.report.scores import Column, ScoreTable, score_table
from blip2ft.report.templates import fill

if TYPE_CHECKING:
    import torch

    from blip2ft.report.looks import Seen

LOGGED = {
    "loss": "Loss",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "images_per_second": "Images a second",
}
SCORE = {"caption": "CIDEr-D", "vqa": "accuracy", "retrieval": "1 / rank of the first right text"}


def run_page(run: Contents, attention: int = 0, dtype: "torch.dtype | None" = None) -> str:
    """The page of one run.

    attention: of how many answers to show where the model looks; then it is loaded, with what the
    run didn't train in `dtype`.

    Raises ValueError, with attention alone, as `looks_of` does.
    """
    # what is answered may have nothing to be scored against, as a challenge's test set
    columns = [
        Column("before", run.before, run.answers_before),
        Column("after" if run.trains else "answer", run.after, run.answers_after),
    ]
    columns = [column for column in columns if column.scores or column.rows]
    table = score_table(run.task, columns, run.metric)
    samples = _samples(run.task, columns)
    groups = groups_of(samples)
    found = _gallery(run, samples, groups, [column.name for column in columns if column.rows])
    modes, no_sizes = parts_of(run)
    return fill(
        "run.html",
        run=run,
        task=TASKS[run.task],
        told=said_of(run),
        notices=notices(run),
        scores=table,
        gains=gains(samples),
        score_chart=_scores_drawn(table),
        curves=_curves([run]),
        parts=modes,
        no_sizes=no_sizes,
        resources=time_and_memory(run),
        environment=list(environment(run)),
        settings=sorted(flat(run.settings).items()),
        changed=differing_settings(run.starts),
        starts=[f"start {number}" for number, _ in enumerate(run.starts, 1)],
        looks=_looks(run, groups, found["pictures"], attention, dtype) if attention else [],
        **found,
    )


def comparison_page(runs: Sequence[Contents], names: Sequence[str]) -> str:
    """The page that shows runs of one task side by side; what differs is told from the first."""
    first = runs[0]
    names = [readable(name) for name in names]
    columns = [Column(n, r.after, r.answers_after) for n, r in zip(names, runs, strict=True)]
    table = score_table(first.task, columns, first.metric)
    shared = [
        sample
        for sample in (_samples(first.task, columns) if all(c.rows for c in columns) else [])
        if all(answer is not None for answer in sample.answers)
    ]
    splits = [run.split for run in runs]
    return fill(
        "comparison.html",
        runs=runs,
        task=TASKS[first.task],
        told=[said_of(run) for run in runs],
        splits=splits if len(set(splits)) > 1 else [],
        scores=table,
        score_chart=_scores_drawn(table),
        curves=_curves(runs, names),
        resources=side_by_side([dict(time_and_memory(run)) for run in runs]),
        settings=differing_settings([run.settings for run in runs]),
        environment=differing([dict(environment(run)) for run in runs]),
        **_gallery(first, shared, groups_of(shared, of_runs=True), names),
    )


def _curves(runs: Sequence[Contents], names: Sequence[str] = ("",)) -> list[Chart]:
    """What was logged, and the score that chose the best step."""
    metric = runs[0].metric
    mark = runs[0].best if len(runs) == 1 else None
    validation = [[e for e in run.evaluations if e["split"] == "validation"] for run in runs]
    title = f"Validation {metric}"
    drawn = [_curve("evaluation", title, validation, metric, names, mark)]
    logs = [run.log for run in runs]
    drawn += [_curve(name, title, logs, name, names) for name, title in LOGGED.items()]
    return [chart for chart in drawn if chart is not None]


def _curve(
    key: str,
    title: str,
    of_runs: Sequence[Sequence[Any]],
    name: str,
    names: Sequence[str],
    mark: int | None = None,
) -> Chart | None:
    curves = [Curve(n, points_of(rows, name)) for n, rows in zip(names, of_runs, strict=True)]
    return curve_chart(key, title, curves, mark=mark)


def _samples(task: str, columns: Sequence[Column]) -> list[Sample]:
    rows = [column.rows for column in columns if column.rows]
    return samples_of(task, rows) if rows else []


def _scores_drawn(table: ScoreTable) -> Chart | None:
    scores = [(row.name, [v for v in row.values if isinstance(v, Interval)]) for row in table.rows]
    whole = [(name, values) for name, values in scores if len(values) == len(table.columns)]
    return score_chart("scores-drawn", "Scores with 95 % intervals", table.columns, whole)


def _looks(run: Contents, *given: Any) -> "list[Seen]":
    from blip2ft.report.looks import looks_of

    return looks_of(run, *given)


def _gallery(
    run: Contents, samples: Sequence[Sample], groups: Sequence[Group], names: Sequence[str]
) -> dict[str, Any]:
    """The pictured samples, and the texts of the others, which can be searched."""
    shown = [sample for group in groups for sample in group.samples]
    pictures, missing = pictures_of(run, shown)
    others = texts_of(samples, {sample.key for sample in shown})
    return {
        "groups": groups,
        "pictures": pictures,
        "missing": missing,
        "names": names,
        "most_references": OF_REFERENCES,
        "score_name": SCORE[run.task],
        "samples": len(samples),
        "others": others,
        "searched": len(shown) + len(others),
    }
