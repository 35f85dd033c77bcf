"""Personal data in texts: found by form, masked by words, and what isn't found."""

import time

import pytest

from blip2ft.data.entries import IMAGE_TOKEN
from blip2ft.filters import personal
from blip2ft.filters.personal import find_personal, mask_personal


def masked(text: str, *countries: str) -> str:
    return mask_personal(text, find_personal(text, countries))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("write to jane.doe@example.com, now.", "write to email address, now."),
        ("'jane@example.com'", "'email address'"),
        ("an ünal@müller.de on a van", "an email address on a van"),
        ("photo by @jane_doe.", "photo by user name."),
        ("+44 20 7946 0958 on a sign", "phone number on a sign"),
        ("a card 4111 1111 1111 1111 lies there", "a card card number lies there"),
        ("4111-1111-1111-1111", "card number"),
        ("DE89 3704 0044 0532 0130 00 PAID HERE", "account number PAID HERE"),
        ("NL91ABNA0417164300", "account number"),
        ("BE68 5390 0754 7034 PAID", "account number PAID"),
        ("@a.b_ and +44 20 7946 0958, x@y.org", "user name and phone number, email address"),
    ],
)
def test_personal_data_gives_way_to_its_kind(text, left):
    assert masked(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "a dog on a sofa",
        "a bus with the number 12345678",
        "on 12/05/2024 at 10:33:21",
        "1,000,000 people in 1939-1945",
        "IMG_20190314_155210",
        "ISBN 978-3-16-148410-0",
        "meet @ 5pm, @5pm, a@b",
        "4111 1111 1111 1112",  # the check digit is wrong
        "DE89 3704 0044 0532 0130 02",
        "mail to nobody@localhost",
        "Jane Doe of 12 Abbey Road, London",  # names and places take a model
        "jane at example dot com",
    ],
)
def test_what_only_looks_like_it_stays_and_so_do_names(text):
    assert find_personal(text) == []


def test_a_number_without_its_country_code_takes_the_country():
    assert masked("call (212) 555-0187", "US") == "call phone number"
    assert masked("call (212) 555-0187", "GB") == "call (212) 555-0187"
    assert masked("tel. 030 901820", "US", "DE") == "tel. phone number"


def test_kinds_are_plain_words_that_no_model_takes_for_an_image():
    for kind in (personal.EMAIL, personal.CARD, personal.ACCOUNT, personal.PHONE, personal.USER):
        assert kind.replace(" ", "").isalpha()
        assert IMAGE_TOKEN not in kind


@pytest.mark.parametrize(
    ("text", "left"),
    [("AB12 ", "AB12 "), ("1@", "1@"), ("x@y.org ", "email address ")],
    ids=["account", "user", "email"],
)
def test_a_text_of_80_000_characters_takes_half_a_second(text, left):
    many = 80_000 // len(text)
    started = time.process_time()
    assert masked(text * many) == left * many
    assert time.process_time() - started < 5  # squared it would be a minute
