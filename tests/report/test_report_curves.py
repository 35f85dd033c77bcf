"""Long curves in few points, and numbers in few digits."""

import math

import pytest

from blip2ft.report.curves import NOTHING, Point, number, points_of, score, thin


def test_rows_without_a_finite_number_are_left_out():
    rows = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": None},
        {"step": 3, "loss": math.nan},
        {"step": 4, "loss": "2"},
        {"loss": 5.0},
        {"step": 6},
    ]
    assert points_of(rows, "loss") == [Point(1, 2.0, 2.0, 2.0)]


def test_a_short_curve_stays_as_it_is():
    points = [Point(i, i, i, i) for i in range(5)]
    assert thin(points, 5) == points


@pytest.mark.parametrize("count", [241, 1000, 99_999])
def test_a_long_curve_keeps_its_extremes_mean_and_end(count):
    values = [math.sin(i / 50) for i in range(count)]
    values[count // 2] = 1000.0
    points = [Point(i + 1, v, v, v) for i, v in enumerate(values)]
    few = thin(points)
    assert len(few) == 240
    assert (few[-1].step, max(p.high for p in few)) == (count, 1000.0)
    assert min(p.low for p in few) == min(values)
    assert [p.step for p in few] == sorted({p.step for p in few})
    sizes = [b.step - a for a, b in zip([0, *[p.step for p in few]], few, strict=False)]
    total = sum(p.mean * size for p, size in zip(few, sizes, strict=True))
    assert total == pytest.approx(sum(values))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, NOTHING),
        (0, "0"),
        (1e-5, "1.00e-05"),
        (0.12345, "0.123"),
        (8.0, "8"),
        (1234.5, "1,234"),
    ],
)
def test_a_number_has_few_digits(value, told):
    assert number(value) == told


@pytest.mark.parametrize(
    ("value", "sign", "told"),
    [
        (None, "", NOTHING),
        (0.00004, "", "0"),
        (0.454, "", "0.454"),
        (5.0401, "", "5.040"),
        (58.1, "", "58.10"),
        (100.0, "", "100"),
        (0.371, "+", "+0.371"),
        (-12.5, "+", "-12.50"),
    ],
)
def test_a_score_has_digits_that_stand_below_each_other(value, sign, told):
    assert score(value, sign) == told


def test_a_step_that_is_evaluated_again_at_the_end_stays_in_its_place():
    rows = [{"step": step, "cider": value} for step, value in ((0, 1.0), (2, 3.0), (4, 2.0))]
    again = [*rows, {"step": 2, "cider": 3.5}]
    assert [(p.step, p.mean) for p in points_of(again, "cider")] == [(0, 1.0), (2, 3.5), (4, 2.0)]
