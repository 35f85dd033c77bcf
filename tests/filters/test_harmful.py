"""Harmful words in texts, with what the lists miss and find wrongly."""

import pytest

from blip2ft.filters.harmful import harmful_finder

ENGLISH = ("english",)


@pytest.mark.parametrize("text", ["a fucking dog", "F.U.C.K this dog", "what an @sshole"])
def test_words_are_found_however_they_are_spelled(text):
    assert harmful_finder(ENGLISH)(text)


@pytest.mark.parametrize(
    "text",
    [
        "a great tit on a branch",
        "a cockpit and a cocktail",
        "Moby Dick on a shelf",
        "a street sign in Scunthorpe",
        "two gay men kissing at their wedding",
        "shiitake mushrooms",
        "",
    ],
)
def test_harmless_words_that_look_like_them_stay(text):
    assert harmful_finder(ENGLISH)(text) == ()


def test_a_word_is_named_once_in_small_letters():
    assert harmful_finder(ENGLISH)("Shit, SHIT and shit") == ("shit",)


def test_a_rooster_is_a_false_alarm_that_can_be_allowed():
    text = "a cock and two hens"
    assert harmful_finder(ENGLISH)(text) == ("cock",)
    assert harmful_finder(ENGLISH, ("cock",))(text) == ()


def test_another_language_finds_its_own_words_and_false_alarms():
    assert harmful_finder(ENGLISH)("ein arschloch") == ()
    assert harmful_finder(("german",))("ein arschloch") == ("arschloch",)
    assert harmful_finder(("turkish",))("a cat at the top") == ("top",)
