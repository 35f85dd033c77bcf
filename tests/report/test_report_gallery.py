"""Which answers are shown, and which can be searched."""

from pathlib import Path

import pytest
from made_run import answers, captions, rankings

from blip2ft.report.gallery import (
    OF_A_KIND,
    OF_A_TEXT,
    OF_ALL_TEXTS,
    groups_of,
    samples_of,
    texts_of,
)

HERE = Path("photos")


def of_two(make) -> list:
    return [make(HERE, after=False), make(HERE, after=True)]


def many(count: int) -> list:
    """Captions of so many images, half of which improve and half of which worsen."""
    rows = [{"image_id": i, "references": [f"a red square {i}"]} for i in range(count)]
    right = [row | {"caption": f"a red square {i}"} for i, row in enumerate(rows)]
    wrong = [row | {"caption": "a dog"} for row in rows]
    before = [(right if i % 2 else wrong)[i] for i in range(count)]
    after = [(wrong if i % 2 else right)[i] for i in range(count)]
    return samples_of("caption", [before, after])


def test_what_improved_and_what_worsened_is_shown():
    groups = {g.title: g.samples for g in groups_of(samples_of("caption", of_two(captions)))}
    assert [s.image_id for s in groups["Worsened most"]] == ["02.png"]
    assert len(groups["Most improved"]) == 10
    assert [s.image_id for s in groups["Worst"]] == ["05.png"]
    assert all(s.gain > 0 for s in groups["Most improved"])


@pytest.mark.parametrize("make", [captions, answers, rankings])
def test_a_sample_is_shown_once(make):
    task = {captions: "caption", answers: "vqa", rankings: "retrieval"}[make]
    samples = samples_of(task, of_two(make))
    shown = [s.key for group in groups_of(samples) for s in group.samples]
    assert len(shown) == len(set(shown)) == len(samples)


def test_of_many_samples_a_few_of_each_kind_are_shown():
    groups = groups_of(many(2000))
    assert [len(group.samples) for group in groups] == [OF_A_KIND] * 5
    assert [s.gain > 0 for s in groups[0].samples] == [True] * OF_A_KIND
    # not the first ones of the data alone
    assert max(s.image_id for s in groups[0].samples) > 1000


def test_without_anything_to_score_against_some_are_shown():
    rows = [row | {"references": []} for row in captions(HERE, after=True)]
    (group,) = groups_of(samples_of("caption", [rows]))
    assert group.about == "None of them is scored."
    assert len(group.samples) == 12
    assert groups_of([]) == []


def test_of_several_runs_those_are_shown_that_differ():
    samples = samples_of("caption", [*of_two(captions), captions(HERE, after=True)])
    groups = groups_of(samples, of_runs=True)
    assert groups[0].title == "Scores differ most"
    assert {s.image_id for s in groups[0].samples} == {f"{i:02d}.png" for i in range(12)} - {
        "05.png"
    }


def test_a_right_answer_is_marked_and_people_are_asked_by_frequency():
    rows = answers(HERE, after=True)
    rows[0]["answers"] = ["blue", "red", "red"]
    sample = samples_of("vqa", [rows])[0]
    assert sample.references == ["red", "blue"]
    assert sample.answers[0].exact
    assert not samples_of("vqa", [rows])[4].answers[0].exact


def test_a_ranking_shows_the_further_texts():
    (answer,) = samples_of("retrieval", [rankings(HERE, after=True)])[0].answers
    assert (answer.text, answer.more) == ("a red square number 0", [("a cat", 0.4)])


def test_a_sample_that_an_evaluation_lacks_has_no_answer_there():
    before, after = of_two(captions)
    sample = samples_of("caption", [before[1:], after])[0]
    assert sample.answers[0] is None
    assert (sample.gain, sample.change) == (0.0, 0.0)


def test_all_texts_are_searched_as_long_as_there_is_room():
    samples = many(100)
    found = texts_of(samples, {samples[0].key})
    assert len(found) == 99
    assert found[0] == {
        "image": "1",
        "question": "",
        "references": ["a red square 1"],
        "answers": ["a red square 1", "a dog"],
    }
    row = {"caption": "x\u202e" * 5000, "references": []}
    long = [row | {"image_id": i} for i in range(3000)]
    found = texts_of(samples_of("caption", [long]), ())
    assert 0 < len(found) < 3000
    size = sum(len(said["answers"][0]) for said in found)
    assert OF_ALL_TEXTS * 0.5 < size < OF_ALL_TEXTS
    assert len(found[0]["answers"][0]) == OF_A_TEXT
    assert "\u202e" not in found[0]["answers"][0]
