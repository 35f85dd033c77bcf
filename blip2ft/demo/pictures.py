"""A picture that someone uploaded: opened, or refused in words for whoever chose it."""

import warnings
from pathlib import Path

from PIL import Image

from blip2ft.data.images import FORMATS, open_image

PIXELS = 50_000_000  # phones make 48 million; in memory these are 150 MB


def open_picture(path: str | None) -> Image.Image:
    """The picture in a file as RGB, as `open_image` opens it: upright, of several its first.

    Raises ValueError where there is none (None), where it is gone, for more than `PIXELS` and for
    what is no image, without the place of the file.
    """
    if path is None:
        raise ValueError("There is no picture yet; choose one.")
    file = Path(path)
    if not file.is_file():
        raise ValueError("The picture isn't kept any longer; choose it again.")
    if _pixels(file) > PIXELS:
        raise ValueError(
            f"{file.name} has more than {PIXELS // 10**6} million pixels; choose a smaller picture."
        )
    try:
        return open_image(file)
    except ValueError as error:
        raise ValueError(str(error).replace(str(file), file.name)) from error


def _pixels(file: Path) -> float:
    """As the file's header has it, 0 where it can't be read; nothing is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as image:
                return image.width * image.height
    except Image.DecompressionBombError:
        return float("inf")
    except Exception:  # what is wrong with it `open_image` tells
        return 0
