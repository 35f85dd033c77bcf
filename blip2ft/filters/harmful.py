"""Harmful words, as glin-profanity's lists have them."""

import functools
from collections.abc import Callable


@functools.cache
def harmful_finder(
    languages: tuple[str, ...], allow_words: tuple[str, ...] = ()
) -> Callable[[str], tuple[str, ...]]:
    """A function that names the harmful words of a text, each once; () where it has none.

    A word is found as a whole, in upper and lower case, and spelled f.u.c.k, fuuuck, @ss or n1gger
    too; names such as Moby Dick and great tits are left alone. What isn't in the lists is missed:
    many plurals, and whatever is harmful without a bad word.

    languages, allow_words: see `Rules`; every language takes time, and finds words that are
    harmless in another (in Turkish's list is "top", a ball).
    """
    from glin_profanity import Filter

    filter = Filter(
        {
            "languages": list(languages),
            "ignore_words": list(allow_words),
            "detect_leetspeak": True,
        }
    )

    def find(text: str) -> tuple[str, ...]:
        found = filter.check_profanity(text)["profane_words"]
        return tuple(dict.fromkeys(word.lower() for word in found))

    return find
