"""Personal data that can be told by its form: addresses, numbers and user names, but no names.

What a regular expression finds is only a candidate: libraries that know the rules decide
(email-validator, phonenumbers, python-stdnum). Names of people and places aren't looked for: that
takes a model, and one that is small misses many.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

EMAIL, CARD, ACCOUNT = "email address", "card number", "account number"
PHONE, USER = "phone number", "user name"

_HINT = re.compile(r"[\d@]")  # all that is found has one of these
_EMAIL = re.compile(r"[^\s@<>()\[\]{},;:\"]+@[^\s@<>()\[\]{},;:\"/]+")
_CARD = re.compile(r"(?<![\w.])[2-6]\d{3}(?:[ -]?\d){9,15}(?![\w.]?\d)")
_ACCOUNT = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z\d]{4}){2,7}(?: ?[A-Z\d]{1,3})?(?!\w)")
_USER = re.compile(r"(?<![\w@.])@[A-Za-z_][\w.]{1,29}(?<!\.)")


class Found(NamedTuple):
    """One piece of personal data: its kind, which is also what masks it, and where it is."""

    kind: str
    start: int
    end: int


def find_personal(text: str, countries: Sequence[str] = ("US",)) -> list[Found]:
    """Email addresses, card, account and phone numbers and user names (@jane), from left to right.

    countries: ISO codes of those whose phone numbers are found without their + and country code.
      The more there are, the more plain numbers are taken for a phone number.
    """
    if not _HINT.search(text):
        return []
    kept: list[Found] = []
    taken = bytearray(len(text))
    for found in _all(text, countries):  # the surest kinds first
        place = slice(found.start, found.end)
        if not any(taken[place]):
            kept.append(found)
            taken[place] = b"\1" * (found.end - found.start)
    return sorted(kept, key=lambda found: found.start)


def mask_personal(text: str, found: Sequence[Found]) -> str:
    """The text with the words "phone number" in the place of one, and so on.

    Plain words, since the model learns to write them: "call 212 555 0123" becomes "call phone
    number".
    """
    pieces, last = [], 0
    for kind, start, end in found:
        pieces += [text[last:start], kind]
        last = end
    return "".join([*pieces, text[last:]])


def _all(text: str, countries: Sequence[str]) -> Iterator[Found]:
    from phonenumbers import PhoneNumberMatcher

    yield from _emails(text)
    yield from _accounts(text)
    yield from _cards(text)
    for country in (None, *countries):
        for match in PhoneNumberMatcher(text, country):
            yield Found(PHONE, match.start, match.end)
    for user in _USER.finditer(text):
        yield Found(USER, *user.span())


def _emails(text: str) -> Iterator[Found]:
    from email_validator import EmailNotValidError, validate_email

    for match in _EMAIL.finditer(text):
        written = match[0].rstrip(".!?'*_")
        start = match.start() + len(written) - len(written.lstrip("'*_"))
        try:
            validate_email(written.lstrip("'*_"), check_deliverability=False)
        except EmailNotValidError:
            continue
        yield Found(EMAIL, start, match.start() + len(written))


def _accounts(text: str) -> Iterator[Found]:
    from stdnum import iban

    for match in _ACCOUNT.finditer(text):
        written = match[0]
        # words in capitals after an IBAN look like a part of it
        while written and not iban.is_valid(written, check_country=False):
            written = written.rpartition(" ")[0]
        if written:
            yield Found(ACCOUNT, match.start(), match.start() + len(written))


def _cards(text: str) -> Iterator[Found]:
    from stdnum import luhn

    for match in _CARD.finditer(text):
        if luhn.is_valid(re.sub(r"\D", "", match[0])):
            yield Found(CARD, *match.span())
