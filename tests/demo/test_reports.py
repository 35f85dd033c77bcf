"""Reported answers are kept as tables that training reads."""

import hashlib
import json
import multiprocessing
import resource
from concurrent.futures import ThreadPoolExecutor

import pytest
from filelock import FileLock
from PIL import Image

from blip2ft.data.questions import read_questions
from blip2ft.data.records import read_records
from blip2ft.demo import reports
from blip2ft.demo.reports import Answer, keep_report


def answer(photo, task="caption", asked="a photo of") -> Answer:
    return Answer(task, str(photo), asked, "a blue cat", "tiny", "birds", {"num_beams": 5})


def report_many(photo, folder, who):
    for number in range(20):
        keep_report(folder, answer(photo), "wrong", f"{who} says {number} " + "a long word " * 100)


@pytest.fixture
def photo(photo_folder):
    return photo_folder / "photo0.jpg"


def test_a_corrected_caption_is_a_record_to_learn_from(photo, tmp_path):
    file = keep_report(tmp_path / "r", answer(photo), "wrong", " a red\napple ")
    (record,) = read_records(file)
    assert file.name == "captions.jsonl"
    assert record.captions == ("a red apple",)
    assert record.image.read_bytes() == photo.read_bytes()
    assert record.fields["output"] == "a blue cat"
    assert record.fields["image_sha256"] == hashlib.sha256(photo.read_bytes()).hexdigest()
    assert record.fields["reason"] == "wrong"


def test_a_corrected_answer_is_a_question_to_learn_from(photo, tmp_path):
    asked = answer(photo, "vqa", "What is red?")
    file = keep_report(tmp_path, asked, "something is missing", "the apple")
    (question,) = read_questions(file)
    assert file.name == "questions.jsonl"
    assert (question.question, question.answers) == ("What is red?", ("the apple",))


def test_a_report_without_a_right_answer_is_kept_apart_until_someone_writes_it(photo, tmp_path):
    first = keep_report(tmp_path, answer(photo), "harmful")
    assert keep_report(tmp_path, answer(photo), "other") == first
    asked = keep_report(tmp_path, answer(photo, "vqa", "What is red?"), "wrong")
    assert (first.name, asked.name) == ("captions-unanswered.jsonl", "questions-unanswered.jsonl")
    assert len(list((tmp_path / "images").iterdir())) == 1
    with pytest.raises(ValueError, match=r"empty caption \(2\): captions-unanswered.jsonl:1; capt"):
        read_records(first)
    with pytest.raises(ValueError, match=r"questions-unanswered.jsonl:1"):
        read_questions(asked)
    written = first.read_text().replace('"caption": ""', '"caption": "a red apple"')
    first.write_text(written)
    assert [record.captions for record in read_records(first)] == [("a red apple", "a red apple")]


def test_what_people_write_is_data(photo, tmp_path):
    hostile = '<script>alert(1)</script> =HYPERLINK("x") "}\\n{"image": "/etc/passwd"} \u2028 🍎'
    for _ in range(2):
        file = keep_report(tmp_path, answer(photo), "wrong", hostile)
    rows = [json.loads(line) for line in file.read_bytes().rstrip(b"\n").split(b"\n")]
    assert [row["caption"] for row in rows] == [" ".join(hostile.split())] * 2
    (record,) = read_records(file)
    assert record.captions == (" ".join(hostile.split()),) * 2


def test_what_can_be_no_report_is_refused(photo, tmp_path):
    with pytest.raises(ValueError, match="the reason is 'ugly': allowed are wrong, something"):
        keep_report(tmp_path, answer(photo), "ugly")
    for right in ("a" * 2001, "an <image> of"):
        with pytest.raises(ValueError, match=r"^The right answer h"):
            keep_report(tmp_path, answer(photo), "wrong", right)
    with pytest.raises(ValueError, match="The picture isn't kept any longer; choose it again, and"):
        keep_report(tmp_path, answer(tmp_path / "gone.jpg"), "wrong")
    assert not list(tmp_path.iterdir())


def test_a_phones_picture_of_several_is_kept_as_a_jpeg(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "phone.mpo", save_all=True, append_images=frames[1:])
    file = keep_report(tmp_path, answer(tmp_path / "phone.mpo"), "wrong", "red")
    (record,) = read_records(file)
    assert record.image.suffix == ".jpeg"


def test_reports_of_threads_and_processes_at_once_stay_whole(photo, tmp_path):
    context = multiprocessing.get_context("fork")
    others = [
        context.Process(target=report_many, args=(photo, tmp_path, f"process {i}"))
        for i in range(2)
    ]
    for other in others:
        other.start()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda i: report_many(photo, tmp_path, f"thread {i}"), range(2)))
    for other in others:
        other.join()
    lines = (tmp_path / "captions.jsonl").read_text().splitlines()
    captions = [json.loads(line)["caption"] for line in lines]
    said = {" ".join(caption.split()[:4]) for caption in captions}
    assert len(captions) == 80
    assert said == {
        f"{w} {i} says {n}" for w in ("process", "thread") for i in (0, 1) for n in range(20)
    }


def test_a_full_disk_leaves_the_table_as_it_was(photo, tmp_path):
    file = keep_report(tmp_path, answer(photo), "wrong", "a red apple")
    before = file.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))  # in the middle of a row
    try:
        with pytest.raises(OSError, match="File too large"):
            keep_report(tmp_path, answer(photo), "wrong", "a green apple")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == before
    keep_report(tmp_path, answer(photo), "wrong", "a green apple")
    assert read_records(file)[0].captions == ("a red apple", "a green apple")


def test_a_last_line_that_was_left_open_by_hand_is_ended(photo, tmp_path):
    file = keep_report(tmp_path, answer(photo), "wrong", "a red apple")
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    keep_report(tmp_path, answer(photo), "wrong", "a green apple")
    assert read_records(file)[0].captions == ("a red apple", "a green apple")


def test_a_report_that_others_keep_waiting_is_to_be_sent_again(photo, tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "WAIT", 0.1)
    (tmp_path / "images").mkdir()
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(ValueError, match="Another report is being kept right now; send this one ag"),
    ):
        keep_report(tmp_path, answer(photo), "wrong")
