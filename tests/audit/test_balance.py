"""Answers and splits out of balance are told, and such as are in balance aren't."""

import pytest

from blip2ft.audit.balance import answer_findings, answer_summary, commonest, split_findings
from blip2ft.audit.contents import Item


def asked(*answers: str, kind: str | None = None) -> list[Item]:
    return [Item(n, f"q:{n}", ("is it?",), (text,), kind) for n, text in enumerate(answers)]


def captioned(images: int, words: int = 5) -> list[Item]:
    return [Item(number, f"x:{number}", ("word " * words,)) for number in range(images)]


def kinds(findings) -> list[tuple[str, str]]:
    return [(found.kind, found.split) for found in findings]


def test_the_commonest_answer_of_a_question_counts():
    assert commonest(Item(0, "q", (), ("Dog", "cat", "dog", ""))) == "dog"
    assert commonest(Item(0, "q", (), ())) == ""


def test_an_answer_to_most_of_the_questions_is_told():
    many = ["two"] * 12 + [f"thing {n}" for n in range(8)]
    (found,) = answer_findings({"train": asked(*many)})
    assert (found.kind, found.text, found.detail) == (
        "one-answer", "two", "12 of 20 questions, 60%",
    )  # fmt: skip
    assert not list(answer_findings({"train": asked(*many[2:], "one", "red")}))
    assert not list(answer_findings({"train": asked(*["two"] * 19)}))


@pytest.mark.parametrize(("yes", "told"), [(15, 0), (16, 1), (5, 0), (4, 1)])
def test_yes_and_no_may_be_three_to_one(yes, told):
    others = [f"thing {n}" for n in range(40)]
    found = answer_findings({"train": asked(*["yes"] * yes, *["no"] * (20 - yes), *others)})
    assert kinds(found) == [("yes-no", "train")] * told


def test_answers_that_training_never_gives_are_noted():
    train = asked(*[f"thing {n}" for n in range(30)])
    test = asked("thing 1", "a zebra", "a zebra", "a gnu")
    (found,) = answer_findings({"train": train, "test": test})
    assert (found.kind, found.text) == ("unseen", "a zebra, a gnu")
    assert found.detail == "2 answers, of 75.0% of the questions"
    assert not list(answer_findings({"train": train, "test": train[:5]}))


def test_small_and_lopsided_splits_are_told():
    splits = {"train": captioned(100), "validation": captioned(49), "test": captioned(120)}
    found = list(split_findings(splits))
    assert kinds(found) == [("small-split", "validation"), ("lopsided", "test")]
    assert found[1].detail == "test has 120 images, train 100"
    assert not list(split_findings({"train": captioned(100), "test": captioned(50)}))
    assert not list(split_findings({"data": captioned(3)}))


def test_splits_whose_texts_differ_are_told():
    splits = {"train": captioned(100, words=4), "test": captioned(60, words=9)}
    (found,) = split_findings(splits)
    assert found.detail == "half of its texts have 9 words or fewer, of those of train 4"
    splits["test"] = captioned(60, words=8)
    assert not list(split_findings(splits))


def test_splits_whose_kinds_of_answers_differ_are_told():
    train = asked(*["2"] * 50, kind="number") + asked(*["yes"] * 50, kind="yes/no")
    test = asked(*["2"] * 15, kind="number") + asked(*["yes"] * 60, kind="yes/no")
    found = [
        f.detail for f in split_findings({"train": train, "test": test}) if "answers" in f.detail
    ]
    assert found == [
        "20% of its answers are 'number', of those of train 50%",
        "80% of its answers are 'yes/no', of those of train 50%",
    ]


def test_the_commonest_answers_are_counted():
    assert answer_summary(asked("yes", "no", "Yes", "")) == {
        "questions": 3,
        "different": 2,
        "commonest": {"yes": 2, "no": 1},
    }
