import json
from pathlib import Path

import pytest

from blip2ft.metrics.ptb import tokenize, words

# What pycocoevalcap 1.2's Java tokenizer makes of our own odd sentences, each followed by a line.
TABLE = [
    json.loads(line)
    for line in Path(__file__).with_name("ptb_table.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["text"][:20])
def test_odd_sentences_give_the_java_tokens(row):
    assert tokenize(row["text"]) == row["tokens"]


def test_empty_text_and_bare_punctuation_give_no_tokens():
    assert tokenize("") == tokenize(" \t\n") == tokenize("... -- ' ; ,") == []


def test_line_ends_count_as_spaces():
    assert tokenize("a dog\nruns\r\nfast") == ["a", "dog", "runs", "fast"]


def test_words_are_split_at_the_no_break_space_of_a_fraction():
    assert tokenize("1 1/2 cups") == ["1\u00a01/2", "cups"]
    assert words("1 1/2 cups") == ["1", "1/2", "cups"]


def test_a_caller_can_change_the_tokens_it_got():
    tokenize("a dog").append("x")
    assert tokenize("a dog") == ["a", "dog"]


@pytest.mark.parametrize(
    "unit", ["a,", "a.5", "<a ", "a@", "'", "a-", "a\u00e9", "(55) ", "\u201c"]
)
def test_a_long_text_of_any_kind_ends(unit):
    tokenize(unit * 5000)
