"""What is filtered, and whether that can be done here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from blip2ft.data.entries import nearest

INSTALL = 'pip install "blip2ft[filters]"'
HARMFUL = ("keep", "drop")
PERSONAL = ("keep", "mask", "drop")


@dataclass(frozen=True)
class Rules:
    """What is left out of the training texts, or masked. Evaluation data stay as they are.

    pip install "blip2ft[filters]". It is told on the console, and text by text in the run's
    filtered.jsonl. Such filters miss much, names of people above all, and have false alarms.

    Args:
        harmful: "drop" captions, questions and answers with a harmful word.
        personal: "mask" email addresses, phone, card and account numbers and @names, each by words
            such as "phone number", or "drop" texts that have them.
        languages: Whose harmful words: english, german, ... Each finds words that are harmless in
            another language.
        allow_words: Harmful words that are left alone, such as cock where hens are.
        countries: Codes of the countries whose phone numbers are found without a leading +.
    """

    harmful: Literal["keep", "drop"] = "keep"
    personal: Literal["keep", "mask", "drop"] = "keep"
    languages: list[str] = field(default_factory=lambda: ["english"])
    allow_words: list[str] = field(default_factory=list)
    countries: list[str] = field(default_factory=lambda: ["US"])


def is_idle(filters: Mapping[str, Any]) -> bool:
    """Whether a group of settings, fields of `Rules` by name, filters nothing."""
    return all(filters.get(name, "keep") == "keep" for name in ("harmful", "personal"))


def rules_of(filters: Mapping[str, Any]) -> Rules | None:
    """The rules that a group of settings asks for; None where it filters nothing.

    Raises one ValueError with all that is wrong, or with what to install.
    """
    if is_idle(filters):
        return None
    wrong = list(wrong_filters(filters))
    if wrong:
        raise ValueError("\n".join(wrong))
    return Rules(**filters)


def wrong_filters(filters: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a group of settings that filters, each with what is allowed."""
    rules = Rules(**filters)
    for name, allowed in (("harmful", HARMFUL), ("personal", PERSONAL)):
        value = getattr(rules, name)
        if value not in allowed:
            yield f"filters.{name} is {value!r}: allowed are {', '.join(allowed)}"
    try:
        from email_validator import validate_email  # noqa: F401
        from glin_profanity import Language
        from phonenumbers import SUPPORTED_REGIONS
        from stdnum import iban  # noqa: F401
    except ImportError as error:
        yield f"filters need {error.name}, which isn't installed: {INSTALL}"
        return
    known = get_args(Language)
    if rules.harmful == "drop" and not rules.languages:
        yield "filters.languages is empty, so no word would be harmful: name some"
    for language in rules.languages:
        if language not in known:
            yield (
                f"filters.languages has {language!r}.{nearest(language, known)} "
                f"Allowed are {', '.join(known)}"
            )
    for country in rules.countries:
        if country not in SUPPORTED_REGIONS:
            yield (
                f"filters.countries has {country!r}: allowed are codes of two capital letters, "
                "such as US, GB and DE"
            )
