"""Texts that teach nothing are told, and those of all the world's languages are left in peace."""

import sys

import pytest

from blip2ft.audit import languages
from blip2ft.audit.contents import Contents, Item
from blip2ft.audit.languages import FEW, UNSURE, count_languages
from blip2ft.audit.texts import (
    LONG,
    cut_texts,
    length_histogram,
    repeated_texts,
    text_faults,
    text_findings,
)

IMAGE = "photos/IMG_0042.jpg"


def contents(*texts: tuple[int, str]) -> Contents:
    """Rows of these images and texts, on the lines from 1."""
    made = Contents()
    for number in range(1 + max(number for number, _ in texts)):
        made.number(number, f"image {number}")
    rows = [Item(number, f"x.csv:{line}", (text,)) for line, (number, text) in enumerate(texts, 1)]
    made.splits["train"] = rows
    return made


@pytest.mark.parametrize(
    "text",
    [
        "a dog", "zebra", "Route 66", "un café à Orléans", "שועל ליד הנהר", "كلب على الأريكة",
        "猫がソファで寝ている", "🐕 a dog", "a sign that reads <stop>", "5 < 6 apples & pears",
        "a file of papers.", "Â la carte", "the number 7", "T-shirt", "line one\nline two",
        "x" * LONG, "none of the dogs", "a nan with tea", "Nana",
    ],
)  # fmt: skip
def test_a_text_that_says_something_is_left_alone(text):
    assert list(text_faults(text, IMAGE)) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("12345", "wordless"), ("?!", "wordless"), ("🐕", "wordless"), ("___", "wordless"),
        ("a cafÃ©", "garbled"), ("itâ€™s a dog", "garbled"), ("caf\ufffd", "garbled"),
        ("a\x00b", "garbled"), ("<b>bold</b>", "markup"), ("a<br/>b", "markup"),
        ("cats &amp; dogs", "markup"), ("see https://example.org", "markup"),
        ("nan", "placeholder"), ("NULL", "placeholder"), ("None", "placeholder"),
        ("n/a", "placeholder"), ("<NA>", "placeholder"), ("#N/A", "placeholder"),
        ("dog.JPG", "file-name"), ("IMG_0042", "file-name"), ("x" * (LONG + 1), "long"),
    ],
)  # fmt: skip
def test_a_text_that_says_nothing_is_told(text, kind):
    assert [found for found, _ in text_faults(text, IMAGE)] == [kind]


def test_a_finding_of_a_text_names_its_row_and_its_image():
    (found,) = text_findings(contents((0, "a dog"), (1, "17")))
    assert (found.kind, found.split, found.origin) == ("wordless", "train", "x.csv:2")
    assert (found.image, found.text, found.picture) == ("image 1", "17", 1)


def test_a_text_said_twice_of_one_image_is_told_with_the_first():
    said = contents((0, "a dog"), (1, "a dog"), (0, "A  dog"), (0, "a cat"))
    (found,) = repeated_texts(said, across=True)
    assert (found.kind, found.origin, found.detail) == ("twice", "x.csv:3", "also x.csv:1")


@pytest.mark.parametrize("times", [10, 11])
def test_a_text_for_very_many_images_is_told_once(times):
    said = contents(*((n, "a photo" if n < times else f"thing {n}") for n in range(300)))
    found = list(repeated_texts(said, across=True))
    assert [(f.kind, f.origin) for f in found] == [("repeated", "x.csv:1")] * (times == 11)
    assert not list(repeated_texts(said, across=False))


def test_texts_are_measured_in_words_or_in_the_tokens_of_a_model():
    said = contents((0, "one two three"), (1, "one two"), (2, "word " * 900))
    (found,) = cut_texts(said, 2, None, answers=False)
    assert (found.origin, found.detail) == ("x.csv:1", "3 words; training reads 2 tokens")
    (found,) = cut_texts(said, 12, lambda texts: list(map(len, texts)), answers=False)
    assert found.detail == "13 tokens; training reads 12 tokens"


def test_of_questions_the_answers_are_cut():
    said = Contents({"test": [Item(None, "q:1", ("a b c",), ("one two", "one two", "one"))]})
    (found,) = cut_texts(said, 1, None, answers=True)
    assert (found.text, found.split) == ("one two", "test")


def test_lengths_are_counted_in_words():
    texts = ["a", "a b c d e", "a b c d e f", "w " * 60]
    items = [Item(0, "x", (text,)) for text in texts]
    counts = length_histogram(items)
    assert counts == {
        "1-5": 2, "6-10": 1, "11-15": 0, "16-20": 0, "21-30": 0, "31-50": 0, "51+": 1,
    }  # fmt: skip


def test_languages_are_guessed_where_there_are_enough_texts():
    pytest.importorskip("py3langid")
    english = ["two children on a red swing in the garden", "the brown dog is asleep on the sofa"]
    german = ["zwei Kinder auf einer roten Schaukel im Garten"]
    counts = count_languages(english * FEW + german * 5 + ["zebra"] * 3)
    assert counts == {"en": 2 * FEW, "de": 5, UNSURE: 3}
    assert count_languages(english) == {}


def test_without_the_package_no_language_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    languages._load.cache_clear()
    assert count_languages(["a dog"] * 100) is None
    languages._load.cache_clear()
