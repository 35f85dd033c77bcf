"""Rows of predictions say which image they are of, what else is known of it, and all ranks."""

import datetime
import json
from pathlib import Path

import numpy as np
import pytest

from blip2ft.data.questions import Question
from blip2ft.data.records import Record, read_records
from blip2ft.evaluation.intervals import intervals
from blip2ft.evaluation.rows import answer_rows, caption_rows, ranking_rows, read_rows
from blip2ft.tasks.ranking import Ranking, Rankings
from blip2ft.tasks.retrieval import score

ROW = '{"image_id": 1, "caption": "a", "references": ["b"]}'
ANSWER = '{"question_id": 1, "image_id": 1, "answer": "a", "answers": ["b"]}'


def record(number, captions=("a dog",), image=None, **fields):
    return Record(image or Path(f"photos/{number}.jpg"), number, captions, "a.csv:2", fields)


def test_a_row_has_the_path_of_its_image_and_the_fields_that_json_holds():
    day = datetime.date(2024, 1, 1)
    (row,) = caption_rows([record(3, domain="near", size=[2], day=day, nan=np.nan)], ["a cat"])
    assert row == {
        "image_id": 3,
        "caption": "a cat",
        "references": ["a dog"],
        "image": "photos/3.jpg",
        "fields": {"domain": "near", "size": [2]},
    }


def test_a_row_names_the_origin_of_an_image_that_is_no_file():
    (row,) = caption_rows([record(3, image=b"x")], ["a cat"])
    assert (row["image"], row["origin"]) == (None, "a.csv:2")


def test_domains_of_nocaps_are_fields(tmp_path):
    image = {"id": 7, "file_name": "x.jpg", "domain": "out-domain", "open_images_id": "x"}
    notes = [{"image_id": 7, "caption": "a dog"}]
    (tmp_path / "nocaps.json").write_text(json.dumps({"images": [image], "annotations": notes}))
    records = read_records(tmp_path / "nocaps.json", check_images=False)
    (row,) = caption_rows(records, ["a cat"])
    assert row["fields"] == {"domain": "out-domain", "open_images_id": "x"}


def test_a_row_of_a_question_has_its_types_and_choices():
    plain = Question(Path("a.jpg"), 1, 2, "what?", ("dog",), "q:1", fields={"scene": "sea"})
    choice = Question(
        Path("a.jpg"), 1, 3, "what?", ("dog",), "q:2", ("cat", "dog"), 1, "other", "what"
    )
    first, second = answer_rows([plain, choice], ["cat", "dog"])
    assert first == {
        "question_id": 2,
        "image_id": 1,
        "question": "what?",
        "answer": "cat",
        "answers": ["dog"],
        "image": "a.jpg",
        "fields": {"scene": "sea"},
    }
    assert (second["choices"], second["correct_choice"]) == (["cat", "dog"], 1)
    assert second["fields"] == {"answer_type": "other", "question_type": "what"}


def test_ranks_of_a_row_give_the_recall_of_the_rankings():
    rng = np.random.default_rng(0)
    records = [record(i, tuple(f"text {i} {j}" for j in range(1 + i % 3))) for i in range(12)]
    texts = sum(len(r.captions) for r in records)

    def ranking(queries, candidates):
        indices = np.stack([rng.permutation(candidates)[:8] for _ in range(queries)])
        # few different scores, so that there are ties
        return Ranking(indices, -np.sort(-rng.integers(0, 9, (queries, 8)).astype("float32")))

    rankings = Rankings(ranking(12, texts), ranking(texts, 12))
    rows = ranking_rows(records, rankings)
    assert any(rank is None for row in rows for rank in row["text_ranks"])
    assert [len(row["text_ranks"]) for row in rows] == [len(r.captions) for r in records]
    found = intervals("retrieval", rows, resamples=2)
    official = score(rankings, records)
    assert {name: i.value for name, i in found.items()} == pytest.approx(official, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", r"p\.jsonl holds no predictions; was it written to the end"),
        ('{"image_id": 1, "capt', r"p\.jsonl:1: not valid JSON.*--resume"),
        ('{"image_id": 1, "caption": "a"}', r"p\.jsonl:1: no prediction; expected an object with"),
        ("3", r"p\.jsonl:1: no prediction"),
        (f"{ROW}\n{{\n{ROW}", r"p\.jsonl:2: not valid JSON; expected predictions, as a run"),
        (f'{ROW}\n{{"image_id": "caf\udcc3', r"p\.jsonl:2: not valid UTF-8; a line that a kill"),
        ("\udcff\udcd8\n\n", r"p\.jsonl:1: not valid UTF-8; expected predictions"),
        (ROW.replace('["b"]', '"b"'), r"p\.jsonl:1: no prediction"),
        (ROW.replace('"a"', "null"), r"p\.jsonl:1: no prediction"),
        (ROW.replace("1", "[1]"), r"p\.jsonl:1: no prediction"),
        (f"{ROW}\n{ANSWER}", r"p\.jsonl:2: a prediction of vqa behind ones of caption; give a"),
    ],
)
def test_what_holds_no_predictions_is_refused(tmp_path, text, wrong):
    (tmp_path / "p.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=wrong):
        read_rows(tmp_path / "p.jsonl")


def test_missing_predictions_are_told():
    with pytest.raises(ValueError, match=r"gone\.jsonl: there is no such file of predictions"):
        read_rows(Path("gone.jsonl"))
