"""What is filtered, and whether that can be done here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from blip2ft.data.entries import nearest

INSTALL = 'pip install "blip2ft[filters]"'
HARMFUL = ("keep", "drop")
PERSONAL = ("keep", "mask", "drop")


@dataclass(frozen=True)
class Rules:
    """What to do with texts.

    Args:
        harmful: "drop" texts with a harmful word of the `languages`, or "keep" them.
        personal: "mask" personal data, "drop" texts with it, or "keep" them.
        languages: Of the lists of harmful words, as glin-profanity names them.
        allow_words: Words of these lists that are left alone.
        countries: ISO codes of the countries whose phone numbers are found without a leading +.
    """

    harmful: str = "keep"
    personal: str = "keep"
    languages: Sequence[str] = ("english",)
    allow_words: Sequence[str] = ()
    countries: Sequence[str] = ("US",)


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
