"""Drawings that a page colours, a screen reader reads, and that don't get into each other's way."""

import math
import re
from xml.etree import ElementTree

import pytest

from blip2ft.evaluation.intervals import Interval
from blip2ft.report.charts import MOST, VARIABLES, Curve, curve_chart, score_chart
from blip2ft.report.curves import Point


def curve(name: str = "", count: int = 30, offset: float = 0.0) -> Curve:
    values = [offset + math.cos(i / 9) for i in range(count)]
    return Curve(name, [Point(10 * i, v, v, v) for i, v in enumerate(values, 1)])


def scores(runs: int = 2) -> list:
    return [(name, [Interval(0.5, 0.4, 0.7)] * runs) for name in ("cider", "bleu4")]


def charts() -> list:
    return [
        curve_chart("loss", "Loss", [curve()], mark=40),
        curve_chart("lr", "Rate", [curve(count=5000)]),
        curve_chart("several", "Loss", [curve(f"run {i}", offset=i) for i in range(MOST)]),
        curve_chart("point", "Loss", [curve(count=1)]),
        score_chart("scores", "Scores", ["before", "after"], scores()),
    ]


@pytest.mark.parametrize("chart", charts(), ids=lambda chart: chart.key)
def test_a_drawing_is_well_formed_and_named(chart):
    svg = ElementTree.fromstring(chart.svg.replace("xlink:href", "href"))
    assert svg.attrib["role"] == "img"
    assert {tag.tag for tag in svg.iter()}.isdisjoint({"script", "style", "metadata", "image"})
    title, told = svg[0], svg[1]
    assert svg.attrib["aria-labelledby"] == f"{title.attrib['id']} {told.attrib['id']}"
    assert title.text == chart.title
    assert told.text
    assert len(chart.svg) < 60_000


@pytest.mark.parametrize("chart", charts(), ids=lambda chart: chart.key)
def test_its_colours_are_those_of_the_style_sheet(chart):
    assert "var(--series-" in chart.svg
    assert not any(colour in chart.svg for colour in VARIABLES)
    assert set(re.findall(r"#[0-9a-f]{6}\b", chart.svg)) <= {"#000000", "#ffffff"}


def test_drawings_of_a_page_share_no_id():
    ids = [name for chart in charts() for name in re.findall(r' id="([^"]+)"', chart.svg)]
    assert len(ids) == len(set(ids))
    for chart in charts():
        own = set(re.findall(r' id="([^"]+)"', chart.svg))
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', chart.svg)) <= own


def test_a_drawing_is_the_same_each_time():
    assert [chart.svg for chart in charts()] == [chart.svg for chart in charts()]


def test_a_curve_is_told_in_words_and_as_a_table():
    values = [3.0, 1.0, 2.0]
    points = [Point(10 * i, v, v, v) for i, v in enumerate(values, 1)]
    chart = curve_chart("loss", "Loss", [Curve("", points)])
    assert (
        "Loss: 3 at step 10, 2 at step 30; lowest 1 at step 20, highest 3 at step 10." in chart.svg
    )
    assert chart.head == ("Step", "Lowest", "Mean", "Highest")
    assert chart.rows[1] == ("20", "1", "1", "1")
    assert chart.legend == []


def test_curves_of_runs_are_told_by_their_names():
    chart = curve_chart("loss", "Loss", [curve("<b>"), curve("b", count=0), curve("c")])
    assert chart.legend == [(1, "<b>"), (3, "c")]
    assert "var(--series-2)" not in chart.svg
    assert chart.head[0] == "Run"
    assert "Loss of &lt;b&gt;" in chart.svg
    assert {row[0] for row in chart.rows} == {"<b>", "c"}


def test_scores_are_told_in_words_and_as_a_table():
    chart = score_chart("s", "Scores", ["before", "after"], scores())
    assert "cider: before 0.500 (0.400 to 0.700), after 0.500" in chart.svg
    assert chart.rows[1] == ("cider", "after", "0.500", "0.400", "0.700")


def test_without_numbers_nothing_is_drawn():
    assert curve_chart("loss", "Loss", [Curve("", [])]) is None
    assert score_chart("s", "Scores", [], []) is None


def test_scores_of_nothing_are_drawn():
    nothing = Interval(0.0, 0.0, 0.0)
    assert "cider" in score_chart("s", "Scores", ["a"], [("cider", [nothing])]).svg
