"""Normalised answers against the official tool's: by hand, and a table of random messy ones.

Both were computed with processPunctuation and processDigitArticle of GT-Vision-Lab/VQA.
"""

import json
from pathlib import Path

import pytest

from blip2ft.metrics.vqa_normalize import CONTRACTIONS, normalize

TABLE = Path(__file__).with_name("vqa_table.jsonl")


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("YES.", "yes"),
        ("yes!", "yes"),
        ("what?!", "what"),
        ("yes\n", "yes"),
        ("\tyes ", "yes"),
        ("dog\ncat", "dog cat"),
        ("dog\r\ncat", "dog cat"),
        ("the two", "2"),
        ("none", "0"),
        ("Ten", "10"),
        ("eleven", "eleven"),
        ("The a an", ""),
        ("a", ""),
        ("", ""),
        ("  ", ""),
        ("isnt", "isn't"),
        ("Isn't", "isn't"),
        ("don't", "don't"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),
        ("girl's", "girl's"),
        ("2:50 pm", "2:50 pm"),
        ("2.5", "2.5"),
        ("2.", "2"),
        (".5", ".5"),
        ("no.5", "no.5"),
        ("u.s.a.", "usa"),
        ("." * 40 + "x", "." * 8 + "x"),
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),
        ("1, 000", "1 000"),
        ("1/2", "1 2"),
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("red, white,blue", "red whiteblue"),
        ("t-shirt", "t shirt"),
        ("t - shirt", "t shirt"),
        ("(left)", "left"),
        ("50% $5", "50% $5"),
        ("CafÉ", "café"),
        ("a\u00a0dog", "dog"),
        ("it\u2019s", "it\u2019s"),
        ("日本、東京", "日本、東京"),
        ("\u0663,\u0664;\u0665", "\u0663\u0664\u0665"),
        ("😀!", "😀"),
    ],
)
def test_answers_become_what_the_official_tool_makes_of_them(answer, normalized):
    assert normalize(answer) == normalized


def test_random_messy_answers_equal_the_official_tool():
    rows = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 300
    assert [normalize(row["answer"]) for row in rows] == [row["normalized"] for row in rows]


def test_contractions_are_the_official_ones():
    # 120 there, of which two are right already and four have a capital and are never found
    assert len(CONTRACTIONS) == 114
    assert CONTRACTIONS["y'alld've"] == "y'all'd've"
    assert CONTRACTIONS["ow's'at"] == "'ow's'at"
    assert not {"were", "well", "ill", "shell", "id"} & CONTRACTIONS.keys()
