"""Photos of an index, found by words and shown small."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from blip2ft.data.images import open_image
from blip2ft.demo.texts import checked_text
from blip2ft.photos.files import shown
from blip2ft.photos.search import PhotoIndex

logger = logging.getLogger(__name__)
SHOWN = 24  # photos of a search
SIDE = 640  # pixels of a photo's longer side

Search = Callable[[str], list[tuple[Image.Image, str]]]


def search_in(index: Path, **options: Any) -> Search:
    """A function that finds photos of an index by words: small copies, with score and file name.

    Where a photo lies is not told, nor what its file says beside the pixels, such as the place.

    options: see `PhotoIndex`. Its model is loaded at once. Raises ValueError as it.
    """
    photos = PhotoIndex(index, **options)
    encoder = photos.encoder

    def search(query: str) -> list[tuple[Image.Image, str]]:
        query = checked_text("What to look for", query)
        if not query.strip():
            raise ValueError('There is nothing to look for yet; write it, such as "a red flag".')
        tokens = len(encoder.layout.tokenizer(query)["input_ids"])
        if tokens > encoder.tokens:
            raise ValueError(
                f"What to look for has {tokens} tokens, and the model reads {encoder.tokens}. "
                "Shorten it."
            )
        try:
            found = photos.search(query, top=SHOWN)
        except (ValueError, OSError) as error:
            logger.warning("%s", error)
            raise ValueError(
                "The photos can't be read now; the terminal of blip2ft demo tells why."
            ) from error
        pictures = []
        for match in found:
            try:
                picture = open_image(Path(match.path), size_hint=SIDE)
            except ValueError as error:
                logger.warning("left out: %s", error)
                continue
            picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            pictures.append((picture, f"{match.score:.2f} {shown(Path(match.path).name)}"))
        return pictures

    return search
