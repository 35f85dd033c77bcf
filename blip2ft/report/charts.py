"""Charts by matplotlib as SVG inside a page: coloured by its style sheet, told in words as well."""

import io
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from blip2ft.evaluation.intervals import Interval
from blip2ft.report.curves import LISTED, Point, number, score, thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.0  # inches, of 72 units of the SVG
HEIGHT, ROW, ROW_OF_A_RUN = 2.6, 0.62, 0.13  # of curves; of a score, and of it from 3 runs on
MOST = 8  # runs whose curves can be told apart: see style.css
# Colours that stand for variables of style.css: matplotlib knows no others.
TEXT, GRID = "#010000", "#020000"
SERIES = [f"#0300{i:02x}" for i in range(1, MOST + 1)]
VARIABLES = {TEXT: "var(--quiet)", GRID: "var(--line)"}
VARIABLES |= {colour: f"var(--series-{i})" for i, colour in enumerate(SERIES, start=1)}
ALONE = 1  # the colour of a curve without others; the first is grey, for what comes before
DASHES: tuple[str | tuple[float, tuple[float, ...]], ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)))
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 12,
    "axes.edgecolor": GRID,
    "axes.labelcolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.grid.axis": "y",
    "axes.grid": True,
    "grid.color": GRID,
    "axes.axisbelow": True,
}


@dataclass(frozen=True)
class Curve:
    """What is drawn as one line; `name` tells it from the others, "" where it is alone."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Chart:
    """A drawing, which tells what it shows in words too, and its numbers as a table.

    Args:
        key: A word that no other chart of the page has, for ids.
        legend: The number of each colour, from 1, and whose it is; () where there is only one.
    """

    key: str
    title: str
    legend: Sequence[tuple[int, str]]
    svg: Markup
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def curve_chart(
    key: str, title: str, curves: Sequence[Curve], *, mark: int | None = None
) -> Chart | None:
    """Curves over the steps, thinned; a band from lowest to highest where there is one curve.

    A run keeps its colour where others have no point. mark: a step to be pointed out. None where no
    curve has a point.
    """
    several = len(curves) > 1
    drawn = [(place, curve) for place, curve in enumerate(curves) if curve.points]
    if not drawn:
        return None
    figure, (axes,) = _figure(HEIGHT)
    for place, curve in drawn:
        points = thin(curve.points)
        steps, means = [p.step for p in points], [p.mean for p in points]
        colour, few = SERIES[place if several else ALONE], len(points) <= LISTED
        if not several and len(points) < len(curve.points):
            band = [p.low for p in points], [p.high for p in points]
            axes.fill_between(steps, *band, color=colour, alpha=0.22, linewidth=0)
        axes.plot(
            steps,
            means,
            color=colour,
            linestyle=DASHES[place % len(DASHES)],
            linewidth=1.8,
            marker="o" if few else None,
            markersize=4,
            solid_joinstyle="round",
        )
    if mark is not None:
        axes.axvline(mark, color=TEXT, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
    _over_steps(axes)
    told = " ".join(_told(title, curve) for _, curve in drawn)
    return Chart(
        key,
        title,
        [(place + 1, curve.name) for place, curve in drawn] if several else [],
        _svg(figure, key, title, told),
        (*(("Run",) if several else ()), "Step", "Lowest", "Mean", "Highest"),
        [
            (*((curve.name,) if several else ()), f"{p.step:,}", *map(number, values))
            for _, curve in drawn
            for p in thin(curve.points, LISTED)
            for values in [(p.low, p.mean, p.high)]
        ],
    )


def score_chart(
    key: str, title: str, names: Sequence[str], scores: Sequence[tuple[str, Sequence[Interval]]]
) -> Chart | None:
    """A line for each score, with a scale of its own from 0: a dot and an interval for each run.

    names: of the runs, in the order of the colours; scores: the name and an interval a run. None
    where there are no scores.
    """
    if not scores:
        return None
    row = ROW + ROW_OF_A_RUN * max(0, len(names) - 2)
    figure, lines = _figure(row * len(scores) + 0.1, rows=len(scores))
    for axes, (name, intervals) in zip(lines, scores, strict=True):
        axes.grid(False)
        for place, one in enumerate(intervals):
            height = (len(intervals) - 1) / 2 - place
            error = [[max(0, one.value - one.low)], [max(0, one.high - one.value)]]
            axes.errorbar(
                one.value, height, xerr=error, color=SERIES[place], marker="o", markersize=6,
                elinewidth=2, capsize=3, linewidth=0,
            )  # fmt: skip
        most = max(max(one.high, one.value) for one in intervals) or 1.0
        axes.set_xlim(min(0, *(one.low for one in intervals)), most * 1.06)
        axes.set_ylim(-len(intervals) / 2 - 0.3, len(intervals) / 2 + 0.3)
        axes.set_yticks([])
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="x", labelsize=10, pad=2)
        axes.set_title(name, loc="left", fontsize=11, color=TEXT, pad=1)
    rows = [
        (name, run, *map(score, (one.value, one.low, one.high)))
        for name, intervals in scores
        for run, one in zip(names, intervals, strict=True)
    ]
    told = ". ".join(
        f"{name}: "
        + ", ".join(
            f"{run} {score(one.value)} ({score(one.low)} to {score(one.high)})"
            for run, one in zip(names, intervals, strict=True)
        )
        for name, intervals in scores
    )
    head = ("Score", "Of", "Value", "From", "To")
    legend = list(enumerate(names, 1))
    return Chart(key, title, legend, _svg(figure, key, title, f"{told}."), head, rows)


def _figure(height: float, rows: int = 1) -> "tuple[Figure, list[Axes]]":
    # the first time, matplotlib lists the machine's fonts, and says so
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        return figure, [figure.add_subplot(rows, 1, row) for row in range(1, rows + 1)]


def _over_steps(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("step")


def _told(title: str, curve: Curve) -> str:
    first, last = curve.points[0], curve.points[-1]
    low = min(curve.points, key=lambda point: point.low)
    high = max(curve.points, key=lambda point: point.high)
    of_run = f" of {curve.name}" if curve.name else ""
    return (
        f"{title}{of_run}: {number(first.mean)} at step {first.step:,}, {number(last.mean)} at "
        f"step {last.step:,}; lowest {number(low.low)} at step {low.step:,}, highest "
        f"{number(high.high)} at step {high.step:,}."
    )


def _svg(figure: "Figure", key: str, title: str, told: str) -> Markup:
    """The drawing alone, the same each time, with ids that no other chart of the page has."""
    import matplotlib

    written = io.StringIO()
    # the salt makes ids that shapes refer to each other by
    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": key}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    text = written.getvalue()
    inside = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    inside = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", inside, flags=re.DOTALL)
    inside = re.sub(r'(?<=<g) id="[^"]*"| transform="rotate\(-0 [^"]*"', "", inside)
    inside = re.sub(r"font-family: [^;\"]*(; )?|(?<=font: )([\d.]+px) [^;\"]*", r"\2", inside)
    inside = re.sub(r"\s*\n\s*", " ", inside)
    for colour, variable in VARIABLES.items():
        inside = inside.replace(colour, variable)
    width, height = (72 * side for side in figure.get_size_inches())
    # what is inside is matplotlib's, which escapes what we write
    return Markup(
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-labelledby="{key}-title {key}-told"><title id="{key}-title">{escape(title)}</title>'
        f'<desc id="{key}-told">{escape(told)}</desc>{inside}</svg>'
    )
