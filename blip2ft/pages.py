"""What the project's HTML pages share: their colours, and photos inside the page."""

import base64
import io
import re
from pathlib import Path

from PIL import Image

from blip2ft.data.images import Readable, open_image

SIDE = 400  # pixels of a thumbnail's longer side: sharp at 200 on dense screens
# Controls, halves of characters, and what turns the direction of the text around it; joiners, which
# emoji and some scripts are written with, stay.
UNREADABLE = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]"
)
COLOURS = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --ink: #1b1b1a;
  --quiet: #63635f; --line: #dededa; --mat: #ecece8; }
@media (prefers-color-scheme: dark) { :root { --page: #151517; --card: #1f1f22; --ink: #ececea;
  --quiet: #a2a2a0; --line: #333337; --mat: #29292d; } }
* { box-sizing: border-box; }
"""


def thumbnail(source: str | Path | bytes | Readable, side: int = SIDE) -> str:
    """A photo, upright and small, as a data URI. Raises ValueError where it can't be read."""
    photo = open_image(source, size_hint=side)
    photo.thumbnail((side, side), Image.Resampling.LANCZOS)
    return data_uri(photo)


def data_uri(picture: Image.Image) -> str:
    """An RGB picture as it stands in a page."""
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def readable(text: str) -> str:
    """A text of someone else's without what a page can't show, or what would change its words.

    It must still be escaped.
    """
    return UNREADABLE.sub("\N{REPLACEMENT CHARACTER}", text)
