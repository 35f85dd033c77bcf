"""What a person reads after a run."""

from blip2ft.training.summary import answer_table


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
