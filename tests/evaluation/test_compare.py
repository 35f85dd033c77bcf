import numpy as np
import pytest
from test_intervals import answered, captions, ranked

from blip2ft.evaluation.compare import compare, most_different, pair
from blip2ft.evaluation.intervals import intervals
from blip2ft.metrics.bleu import bleu_scores


def better(rows, share):
    """The same rows, of which so many captions are a reference."""
    count = round(len(rows) * share)
    right = [row | {"caption": row["references"][0]} for row in rows[:count]]
    return [*right, *rows[count:]]


def test_a_planted_difference_is_found():
    a = captions(80)
    found = compare("caption", a, better(a, 0.3))
    assert found.keys() == intervals("caption", a, resamples=1).keys()
    for of in found.values():
        assert of.significant
        assert of.p_value == pytest.approx(1 / 1001)
        assert 0 < of.low < of.difference < of.high
        assert of.difference == of.b - of.a


def test_swapping_the_two_turns_the_difference_around():
    a, b = captions(40), captions(40, seed=1)
    b = [one | {"references": other["references"]} for one, other in zip(b, a, strict=True)]
    there, back = compare("caption", a, b)["cider"], compare("caption", b, a)["cider"]
    assert (there.a, there.b, there.difference) == (back.b, back.a, -back.difference)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def test_none_is_found_where_there_is_none():
    a = captions(50)
    same = compare("caption", a, list(reversed(a)))["cider"]
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_chance_alone_is_called_significant_about_as_rarely_as_it_says():
    rng = np.random.default_rng(0)
    wrong = 0
    for seed in range(200):
        answers = rng.random((2, 100)) < 0.5
        a, b = (
            [
                {"image_id": i, "question_id": i, "answer": str(yes), "answers": ["True"]}
                for i, yes in enumerate(side)
            ]
            for side in answers
        )
        wrong += compare("vqa", a, b, resamples=200, seed=seed)["accuracy"].significant
    assert 2 <= wrong <= 18


def test_what_pairs_of_images_share_makes_the_interval_narrow():
    # images are of very different difficulty, and B is better on a few
    a = captions(200)
    a = better(a, 0.5)
    b = [row | {"caption": row["references"][0]} if i % 20 == 0 else row for i, row in enumerate(a)]
    of = compare("caption", a, b)["cider"]
    alone = intervals("caption", a)["cider"]
    assert of.high - of.low < 0.6 * (alone.high - alone.low)


def test_the_randomization_of_bleu_is_that_of_a_loop():
    a = captions(10)
    b = better(a, 0.4)
    observed = abs(compare("caption", a, b, resamples=1)["bleu2"].difference)
    rng = np.random.default_rng(7)
    as_large = 0
    for coins in rng.integers(2, size=(60, 10)):
        sides = [
            (other, one) if coin else (one, other)
            for one, other, coin in zip(a, b, coins, strict=True)
        ]
        one, other = (
            bleu_scores([r["caption"] for r in side], [r["references"] for r in side])[0]["bleu2"]
            for side in zip(*sides, strict=True)
        )
        as_large += abs(other - one) >= observed - 1e-12
    found = compare("caption", a, b, resamples=60, seed=7)["bleu2"]
    assert found.p_value == pytest.approx((1 + as_large) / 61)


def test_answers_and_ranks_compare_too():
    a = answered(60, 20)
    b = [row | {"answer": row["answers"][0]} for row in a]
    found = compare("vqa", a, b)
    assert found["accuracy"].difference > 0
    assert "accuracy_number" in found
    # rows of an earlier version know no types
    assert list(compare("vqa", [{**r, "fields": {}} for r in a], b)) == [
        "accuracy",
        "accuracy_other",
    ]
    rows = ranked(30)
    first = [row | {"references": [], "image_rank": 1} for row in rows]
    rows = [row | {"references": []} for row in rows]
    found = compare("retrieval", rows, first)
    assert found["image_to_text_r1"].b == 1.0
    assert found["text_to_image_r1"].difference == 0


def test_the_most_different_samples_come_first():
    a = captions(30)
    b = better(a, 0.1)
    found = most_different("caption", pair("caption", a, b), 5)
    assert sorted(place for place, _, _ in found) == [0, 1, 2]
    assert found[0][2] - found[0][1] >= found[1][2] - found[1][1] > 0


def test_only_the_same_samples_compare():
    a = captions(6)
    pairs = pair("caption", a, a[2:])
    assert (len(pairs.a), pairs.only_a, pairs.only_b) == (4, 2, 0)
    with pytest.raises(ValueError, match="2 are only in the first and 0 only in the second"):
        compare("caption", a, a[2:])
    with pytest.raises(
        ValueError, match="no sample in common: the first image_id is 0 in one and 4"
    ):
        compare("caption", a[:3], a[4:])
    with pytest.raises(ValueError, match="image_id 1 is there twice"):
        compare("caption", [*a, a[1]], a)
    with pytest.raises(ValueError, match="image_id 0 has other references in the second"):
        compare("caption", a, [a[0] | {"references": ["x"]}, *a[1:]])
    rows = [row | {"references": []} for row in ranked(4)]
    with pytest.raises(ValueError, match="ranked 4 images and the second 3 images, not the same"):
        compare("retrieval", rows, rows[:3])


def test_what_has_nothing_to_be_scored_against_has_no_differences():
    rows = [{"image_id": 1, "caption": "a dog", "references": []}]
    assert compare("caption", rows, rows) == {}
    assert most_different("caption", pair("caption", rows, rows), 3) == []
