"""What a person reads after a run."""

import pytest

from blip2ft.training.summary import answer_table, score_table


@pytest.mark.parametrize(
    ("after", "told"),
    [(1.5, ""), (1.0, "cider is no better than before"), (0.5, "cider is worse than before")],
)
def test_a_result_that_is_not_better_than_the_beginning_is_told(after, told):
    lines = score_table({"cider": 1.0, "bleu4": 0.0}, {"cider": after, "bleu4": 1.0}, "cider")
    *table, last = lines.splitlines()
    assert last.startswith(told) if told else last.split() == ["bleu4", "0.0000", "1.0000"]
    assert table[1].split() == ["cider", "1.0000", f"{after:.4f}"]


def test_a_score_that_is_new_is_compared_with_none():
    assert score_table({}, {"cider": 0.0}, "cider").splitlines()[1:] == [
        f"{'cider':<14}{'-':>10}{'0.0000':>10}"
    ]


def test_a_caption_that_is_another_reference_is_marked():
    row = {"image_id": "a.jpg", "references": ["one cat", "a cat"]}
    before, after = [row | {"caption": "one cat"}], [row | {"caption": "a cat "}]
    assert answer_table(before, after).splitlines() == [
        "a.jpg",
        "  reference  one cat",
        "  before     one cat",
        "  after      a cat    (another reference)",
    ]
    unlike = [row | {"caption": "a dog"}]
    assert answer_table(unlike, unlike).splitlines()[2:] == [
        "  before     a dog",
        "  after      a dog",
    ]
