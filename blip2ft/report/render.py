"""The pages: one of a run, one that compares runs, from the templates in page/."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from blip2ft.pages import COLOURS, readable
from blip2ft.report.charts import Chart, Curve, curve_chart, score_chart
from blip2ft.report.curves import NOTHING, number, points_of
from blip2ft.report.facts import (
    TASKS,
    differing,
    environment,
    gains,
    notices,
    parts_of,
    said_of,
    time_and_memory,
)
from blip2ft.report.gallery import Group, Sample, groups_of, samples_of
from blip2ft.report.pictures import pictures_of
from blip2ft.report.reading import Contents, flat
from blip2ft.report.scores import Column, ScoreTable, score_table

PAGE = Path(__file__).parent / "page"
LOGGED = {
    "loss": "Loss",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "images_per_second": "Images a second",
}
SCORE = {"caption": "CIDEr-D", "vqa": "accuracy", "retrieval": "1 / rank of the first right text"}
LONG = 280  # characters of a text that aren't folded
LONGEST = 20_000  # and of one that is shown at all
FOUND = 400_000  # characters of answers without a picture that can be searched
FOUND_TEXT = 300  # of one of them


def run_page(run: Contents) -> str:
    """The page of one run."""
    columns = [Column("before", run.before, run.answers_before)] if run.before else []
    columns += [Column("after", run.after, run.answers_after)] if run.after else []
    table = score_table(run.task, columns, run.metric)
    rows = [column.rows for column in columns if column.rows]
    samples = samples_of(run.task, rows) if rows else []
    modes, no_sizes = parts_of(run)
    return _render(
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
        **_gallery(run, samples, groups_of(samples), table.columns),
    )


def comparison_page(runs: Sequence[Contents], names: Sequence[str]) -> str:
    """The page that shows runs of one task side by side; what differs is told from the first."""
    first = runs[0]
    columns = [Column(n, r.after, r.answers_after) for n, r in zip(names, runs, strict=True)]
    table = score_table(first.task, columns, first.metric)
    rows = [column.rows for column in columns]
    samples = [
        sample
        for sample in (samples_of(first.task, rows) if all(rows) else [])
        if all(answer is not None for answer in sample.answers)
    ]
    return _render(
        "comparison.html",
        runs=runs,
        names=names,
        task=TASKS[first.task],
        told=[said_of(run) for run in runs],
        scores=table,
        score_chart=_scores_drawn(table),
        curves=_curves(runs, names),
        resources=_side_by_side([dict(time_and_memory(run)) for run in runs]),
        settings=differing([flat(run.settings) for run in runs]),
        environment=differing([dict(environment(run)) for run in runs]),
        **_gallery(first, samples, groups_of(samples, of_runs=True), names),
    )


def _render(template: str, **values: Any) -> str:
    jinja = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters |= {"readable": readable, "number": number}
    script = (PAGE / "search.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return jinja.get_template(template).render(
        style=Markup(COLOURS + (PAGE / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),  # ours
        script_hash=f"sha256-{digest}",
        long=LONG,
        longest=LONGEST,
        **values,
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


def _scores_drawn(table: ScoreTable) -> Chart | None:
    scores = [(row.name, row.values) for row in table.rows if None not in row.values]
    return score_chart("scores-drawn", "Scores with 95 % intervals", table.columns, scores)  # type: ignore[arg-type]


def _gallery(
    run: Contents, samples: Sequence[Sample], groups: Sequence[Group], names: Sequence[str]
) -> dict[str, Any]:
    """The pictured samples, and the texts of the others, which can be searched."""
    shown = [sample for group in groups for sample in group.samples]
    pictures, missing = pictures_of(run, shown)
    keys = {sample.key for sample in shown}
    others, size = [], 0
    for sample in samples:
        if sample.key in keys:
            continue
        said = [
            str(sample.image_id),
            sample.question,
            sample.references[0] if sample.references else "",
        ]
        said += [NOTHING if answer is None else answer.text for answer in sample.answers]
        said = [readable(text)[:FOUND_TEXT] for text in said]
        size += sum(map(len, said))
        if size > FOUND:
            break
        others.append(said)
    return {
        "groups": groups,
        "pictures": pictures,
        "missing": missing,
        "names": names,
        "score_name": SCORE[run.task],
        "samples": len(samples),
        "others": others,
        "searched": len(shown) + len(others),
    }


def _side_by_side(facts: Sequence[dict[str, str]]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for of_run in facts for name in of_run)
    return [(name, [of_run.get(name, NOTHING) for of_run in facts]) for name in names]
