"""What filters leave of records and questions, and the report of what they took away."""

from dataclasses import replace
from pathlib import Path

import pytest

from blip2ft.data.questions import Question
from blip2ft.data.records import Record
from blip2ft.filters.rules import Rules
from blip2ft.filters.samples import filter_samples

BOTH = Rules("drop", "mask")
BAD, CALL = "a fucking dog", "call (212) 555-0187"


def record(*captions: str) -> Record:
    return Record(Path("a.jpg"), "a.jpg", captions, "captions.csv:2", {"text": BAD})


def question(text: str = "who?", answers=("a dog",), choices=()) -> Question:
    return Question(Path("a.jpg"), "a.jpg", 7, text, answers, "questions.jsonl:3", choices)


def test_a_caption_is_dropped_or_masked_and_the_others_stay():
    filtered = filter_samples([record("a dog", BAD, CALL), record("a cat")], BOTH)
    assert [r.captions for r in filtered.kept] == [("a dog", "call phone number"), ("a cat",)]
    here = {"origin": "captions.csv:2", "image_id": "a.jpg", "part": "caption", "left_out": False}
    assert filtered.rows == [
        here | {"number": 2, "filter": "harmful", "found": ["fucking"], "done": "dropped"},
        here | {"number": 3, "filter": "personal", "found": ["phone number"], "done": "masked"},
    ]
    assert filtered.told == (
        "filters: 1 caption dropped for harmful words, 1 caption masked for personal data; "
        "filtered.jsonl has each"
    )


def test_personal_data_does_not_come_into_the_report():
    filtered = filter_samples([record(CALL), record("a cat")], Rules(personal="drop"))
    assert filtered.rows
    assert "555" not in str(filtered)


def test_an_image_without_a_caption_left_is_left_out():
    filtered = filter_samples([record(BAD), record("a cat")], BOTH)
    assert [r.captions for r in filtered.kept] == [("a cat",)]
    assert filtered.rows[0]["left_out"]
    assert "; 1 image left out;" in filtered.told


def test_where_nothing_is_found_all_stays_as_it_is():
    records = [record("a dog"), record("a cat")]
    filtered = filter_samples(records, BOTH)
    assert filtered.kept == records
    assert filtered.rows == []
    assert filtered.told == "filters: nothing found in 2 images"


def test_no_samples_are_none():
    assert filter_samples([], BOTH).told == "filters: nothing to look at"


def test_where_nothing_is_left_it_is_told():
    said = r"leave nothing of 1 image; in captions\.csv:2 is 'fucking'"
    with pytest.raises(ValueError, match=said):
        filter_samples([record(BAD)], BOTH)


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        (question(), question()),
        (question(CALL), question("call phone number")),
        (question(answers=("a dog", BAD, "")), question(answers=("a dog", ""))),
        (question(answers=(CALL,)), question(answers=("call phone number",))),
        (question(answers=()), question(answers=())),
        (question(choices=("a dog", CALL)), question(choices=("a dog", "call phone number"))),
        (question(BAD), None),
        (question(answers=(BAD,)), None),
        (question(answers=(BAD, "")), None),
        (question(choices=("a dog", BAD)), None),
    ],
)
def test_a_question_goes_with_what_it_cannot_be_asked_without(asked, left):
    other = replace(question(), question_id=8)
    filtered = filter_samples([asked, other], BOTH)
    assert filtered.kept == ([other] if left is None else [left, other])
    if asked != left:
        assert filtered.rows[0]["question_id"] == 7
        assert filtered.rows[0]["left_out"] == (left is None)


def test_texts_of_several_parts_are_told_as_texts():
    asked = [question(BAD, (BAD,)), question()]
    told = filter_samples(asked, BOTH).told
    assert told.startswith("filters: 2 texts dropped for harmful words; 1 question left out;")
