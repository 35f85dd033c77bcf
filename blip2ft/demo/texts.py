"""What people write on the page, before a model or a file gets it."""

from blip2ft.data.entries import IMAGE_TOKEN

LONGEST = 2000  # characters; a caption has 50, and a model's own limit, in tokens, is told by it


def checked_text(what: str, text: str | None) -> str:
    """The text as it is, "" for None. what: the beginning of a message.

    Raises ValueError for more than `LONGEST` characters, half a character, and the token that
    stands for an image, which neither a model nor training takes.
    """
    text = text or ""
    if len(text) > LONGEST:
        raise ValueError(
            f"{what} has {len(text):,} characters; up to {LONGEST:,} are taken. Shorten it."
        )
    if IMAGE_TOKEN in text:
        raise ValueError(f"{what} holds {IMAGE_TOKEN}, which stands for an image. Take it out.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} holds half a character. Write it anew.") from error
    return text
