"""Reported answers are kept as tables that training reads."""

import hashlib
import json

import pytest

from blip2ft.data.questions import read_questions
from blip2ft.data.records import read_records
from blip2ft.demo.reports import Answer, keep_report


def answer(photo, task="caption", asked="a photo of") -> Answer:
    return Answer(task, str(photo), asked, "a blue cat", "tiny", "birds", {"num_beams": 5})


@pytest.fixture
def photo(photo_folder):
    return photo_folder / "photo0.jpg"


def test_a_corrected_caption_is_a_record_to_learn_from(photo, tmp_path):
    file = keep_report(tmp_path / "r", answer(photo), "wrong", " a red\napple ")
    (record,) = read_records(file)
    assert record.captions == ("a red apple",)
    assert record.image.read_bytes() == photo.read_bytes()
    assert record.fields["output"] == "a blue cat"
    assert record.fields["image_sha256"] == hashlib.sha256(photo.read_bytes()).hexdigest()
    assert record.fields["reason"] == "wrong"


def test_a_corrected_answer_is_a_question_to_learn_from(photo, tmp_path):
    asked = answer(photo, "vqa", "What is red?")
    file = keep_report(tmp_path, asked, "something is missing", "the apple")
    (question,) = read_questions(file)
    assert (question.question, question.answers) == ("What is red?", ("the apple",))


def test_a_report_without_a_right_answer_is_kept_apart(photo, tmp_path):
    first = keep_report(tmp_path, answer(photo), "harmful")
    assert keep_report(tmp_path, answer(photo), "other") == first
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    assert [row["reason"] for row in rows] == ["harmful", "other"]
    assert len(list((tmp_path / "images").iterdir())) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"images", "unanswered.jsonl"}


def test_what_can_be_no_report_is_refused(photo, tmp_path):
    with pytest.raises(ValueError, match="the reason is 'ugly': allowed are wrong, something"):
        keep_report(tmp_path, answer(photo), "ugly")
    with pytest.raises(ValueError, match="has 2001 characters; 2000 are allowed"):
        keep_report(tmp_path, answer(photo), "wrong", "a" * 2001)
    assert not list(tmp_path.iterdir())
