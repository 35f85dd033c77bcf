"""Verdicts on texts: once for all that are the same, and the same from any number of processes."""

import pytest

from blip2ft.filters import texts
from blip2ft.filters.rules import Rules
from blip2ft.filters.texts import Verdict, judge, judge_all

BAD, CALL = "a fucking dog", "call (212) 555-0187 or x@y.org"
KINDS = ("phone number", "email address")


@pytest.mark.parametrize(
    ("text", "rules", "verdict"),
    [
        ("a dog", Rules("drop", "drop"), None),
        (BAD, Rules(personal="drop"), None),
        (BAD, Rules("drop"), Verdict("harmful", ("fucking",), None)),
        (CALL, Rules("drop"), None),
        (
            CALL,
            Rules(personal="drop"),
            Verdict("personal", ("phone number", "email address"), None),
        ),
        (
            CALL,
            Rules(personal="mask"),
            Verdict(
                "personal",
                KINDS,
                "call phone number or email address",
            ),
        ),
        (f"{BAD} {CALL}", Rules("drop", "mask"), Verdict("harmful", ("fucking",), None)),
    ],
)
def test_a_text_is_judged_by_the_rules(text, rules, verdict):
    assert judge(text, rules) == verdict


def test_many_processes_find_what_one_does_in_the_same_order(monkeypatch):
    monkeypatch.setattr(texts, "PIECE", 2)
    monkeypatch.setattr(texts, "FEW", 1)
    many = [f"{BAD} {i}" if i % 3 else f"a dog {i}" for i in range(20)] * 2
    alone = judge_all(many, Rules("drop"))
    assert len(alone) == 13
    assert list(judge_all(many, Rules("drop"), workers=2).items()) == list(alone.items())


def test_a_text_that_comes_again_is_looked_at_once(monkeypatch):
    asked = []
    monkeypatch.setattr(texts, "judge", lambda text, rules: asked.append(text))
    assert judge_all(["a", "b", "a"], Rules("drop")) == {}
    assert asked == ["a", "b"]


def test_no_text_has_no_verdict():
    assert judge_all([], Rules("drop")) == {}
