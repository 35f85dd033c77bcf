"""The embedded models' maps lie on what a text names."""

import attention_pointing as pointing
import numpy as np
import pytest

SCENES = 24


@pytest.mark.parametrize("name", ["tiny-retriever", "tiny-blip2"])
def test_the_map_of_a_text_lies_on_what_it_names_more_often_than_chance(name):
    """Of two drawings side by side, on pairs of things that training never showed together."""
    model, processor, prompt = pointing.load(str(pointing.ROOT / "data" / name))
    scenes = pointing.draw_scenes(SCENES)
    found = pointing.point(model, processor, scenes, prompt)
    rates = pointing.results(found, scenes)
    assert rates["weighed"]["texts"]["low"] > 0.5  # the 95 % interval lies above chance
    assert rates["weighed"]["both"]["low"] > 0.25  # that of two throws of a coin
    # without a text there is one map for both, right for just one of them
    assert rates["no text"]["texts"]["rate"] == 0.5
    assert rates["no text"]["both"]["rate"] == 0


def test_scenes_are_of_two_things_side_by_side():
    for image, fields in pointing.draw_scenes(20):
        assert fields["relation"] == "left of"
        (_, _, right_of_first, _), (left_of_second, *_) = fields["boxes"]
        assert right_of_first < left_of_second
        assert image.size == (pointing.SIDE, pointing.SIDE)


@pytest.mark.parametrize("columns", [4, 5])
def test_right_is_more_on_the_half_of_what_is_named(columns):
    left = np.zeros((2, columns))
    left[:, 0] = 1
    left[0, columns // 2] = 100 * (columns % 2)  # the middle column is neither's
    right = left[:, ::-1]
    scenes = np.array([[left, right], [right, left], [left, left], [0 * left, 0 * left]])
    expected = [[True, True], [False, False], [True, False], [False, False]]
    assert pointing.is_right(scenes).tolist() == expected


def test_the_box_is_hit_by_the_middle_of_the_highest_patch():
    heat = np.zeros((8, 8))
    heat[1, 6] = 1  # x 96 to 112, y 16 to 32
    boxes = [[100, 20, 110, 30], [96, 25, 112, 60]]
    assert pointing.in_box(np.array([[heat, heat]]), [(None, {"boxes": boxes})]).tolist() == [
        [True, False]
    ]


def test_wilsons_interval_is_the_textbooks():
    """Agresti and Coull 1998: 0 of 10 gives 0 to 0.278; 8 of 10 0.490 to 0.943."""
    none = pointing.rate(np.zeros((10, 2), dtype=bool))
    assert (none["rate"], none["low"]) == (0, 0)
    assert none["high"] == pytest.approx(0.2775, abs=1e-4)
    most = pointing.rate(np.arange(10) < 8)
    assert (most["low"], most["high"]) == pytest.approx((0.4902, 0.9433), abs=1e-4)
