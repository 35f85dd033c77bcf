"""Texts that people write are held to what a model and training take."""

import pytest

from blip2ft.demo.texts import checked_text


def test_a_text_stays_as_it_is():
    for text in ("", " a\nred <b>apple</b> =1+1 ", "ein Apfel 🍎", "a" * 2000):
        assert checked_text("The prompt", text) == text
    assert checked_text("The prompt", None) == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a" * 2001, "The prompt has 2,001 characters; up to 2,000 are taken. Shorten it"),
        ("a <image> of", "The prompt holds <image>, which stands for an image. Take it out"),
        ("half \ud83d", "The prompt holds half a character. Write it anew"),
    ],
)
def test_what_nothing_can_be_made_of_is_refused(text, told):
    with pytest.raises(ValueError, match=told):
        checked_text("The prompt", text)
