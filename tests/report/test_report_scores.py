"""Scores side by side are those of the evaluation's own functions."""

from pathlib import Path

import pytest
from made_run import answers, captions, rankings

from blip2ft.evaluation.compare import compare
from blip2ft.evaluation.intervals import Interval, intervals
from blip2ft.evaluation.sums import sums
from blip2ft.report.scores import Column, of_each, score_table

ROWS = {"caption": captions, "vqa": answers, "retrieval": rankings}
HERE = Path("photos")


def column(name: str, task: str, rows: list) -> Column:
    return Column(name, sums(task, rows).value(), rows)


@pytest.mark.parametrize("task", ROWS)
def test_values_intervals_and_differences_are_those_of_evaluate_and_compare(task):
    before, after = ROWS[task](HERE, after=False), ROWS[task](HERE, after=True)
    table = score_table(task, [column("a", task, before), column("b", task, after)], "none")
    known, apart = intervals(task, after), compare(task, before, after)
    assert (list(table.columns), table.notes) == (["a", "b"], [])
    assert {row.name for row in table.rows} == known.keys()
    for row in table.rows:
        assert row.values[1] == known[row.name]
        assert row.differences == [apart[row.name]]


def test_the_score_that_matters_is_the_first():
    rows = captions(HERE, after=True)
    names = [
        row.name for row in score_table("caption", [column("a", "caption", rows)], "bleu4").rows
    ]
    assert names[0] == "bleu4"
    assert sorted(names) == sorted(sums("caption", rows).value())


def test_a_score_without_interval_stands_alone():
    rows = captions(HERE, after=True)
    table = score_table("caption", [Column("a", {"meteor": 0.3, "cider": 1.0}, rows)], "cider")
    cider, meteor = table.rows
    assert isinstance(cider.values[0], Interval)
    assert meteor.values == [0.3]


def test_scores_whose_predictions_are_gone_say_so():
    rows = captions(HERE, after=True)
    table = score_table(
        "caption", [Column("a", {"cider": 1.0}, []), column("b", "caption", rows)], ""
    )
    assert table.rows[0].values[0] == 1.0
    assert table.rows[0].differences == [None]
    assert table.notes == ["a: its predictions are gone, and with them the intervals"]


def test_predictions_on_other_samples_say_why_nothing_compares():
    rows = captions(HERE, after=True)
    other = column("b", "caption", rows[:6])
    table = score_table("caption", [column("a", "caption", rows), other], "cider")
    assert table.rows[0].differences == [None]
    assert table.notes == [
        "b: the two aren't of the same samples: 6 are only in the first and 0 only in the second"
    ]


def test_a_run_without_scores_has_none():
    rows = captions(HERE, after=True)
    table = score_table("caption", [column("a", "caption", rows), Column("b", {}, [])], "cider")
    assert table.rows[0].values[1] is None
    assert table.notes == []


def test_each_answer_is_as_good_as_it_is_alone():
    said = of_each("caption", captions(HERE, after=True))
    assert sum(said) / 12 == pytest.approx(
        sums("caption", captions(HERE, after=True)).value()["cider"]
    )
    assert said[2] == 0
    assert of_each("vqa", answers(HERE, after=True))[4:8] == [0, 0, 100, 100]
    assert of_each("retrieval", rankings(HERE, after=True))[:4] == [1, 1, 0.5, 1]


def test_a_ranking_of_an_earlier_version_is_as_good_as_its_first_right_text():
    row = {"references": ["b"], "texts": ["a", "b"]}
    assert of_each("retrieval", [row, row | {"texts": ["a"]}, row | {"references": []}]) == [
        0.5,
        0.0,
        None,
    ]


def test_what_has_nothing_to_be_scored_against_has_no_score():
    rows = [row | {"references": []} for row in captions(HERE, after=True)]
    assert of_each("caption", rows) == [None] * 12
    assert of_each("caption", []) == []
