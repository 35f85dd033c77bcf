"""From what was seen of an image to what a user should know of it."""

from collections.abc import Iterator
from pathlib import PurePath

from blip2ft.audit.looks import Look

LONG_SIDE = 4  # times the other side
FAR_SMALLER = 2  # a shorter side below the model's by this factor is enlarged too much
USUAL = ("RGB", "L", "1", "P", "RGBA", "LA")
NAMES = {  # ending of a file's name -> what Pillow calls the format
    ".jpg": ("JPEG", "MPO"),
    ".jpeg": ("JPEG", "MPO"),
    ".png": ("PNG",),
    ".webp": ("WEBP",),
    ".gif": ("GIF",),
    ".bmp": ("BMP", "DIB"),
    ".tif": ("TIFF",),
    ".tiff": ("TIFF",),
    ".avif": ("AVIF",),
    ".jp2": ("JPEG2000",),
    ".ppm": ("PPM",),
}


def image_faults(look: Look, name: str, image_size: int) -> Iterator[tuple[str, str]]:
    """Kind and detail of each finding about one image.

    name: the path of its file, "" where it has none; image_size: side of the model's input, in
    pixels.
    """
    if look.fault:
        yield look.fault, look.reason
        return
    short, long = sorted((look.width, look.height))
    size = f"{look.width} x {look.height}"
    if short * FAR_SMALLER < image_size:
        yield "tiny", f"{size}, the model reads {image_size} x {image_size}"
    if long > LONG_SIDE * short:
        yield "long-sided", size
    if look.blank:
        yield "blank", ""
    if look.frames > 1 and look.format in ("GIF", "WEBP", "PNG", "AVIF"):
        yield "animated", f"{look.frames} frames"
    yield from (("mode", told) for told in odd_modes(look))
    if look.turned:
        yield "rotated", ""
    expected = NAMES.get(PurePath(name).suffix.lower())
    if expected is not None and look.format not in expected:
        yield "extension", f"it is {look.format}"


def odd_modes(look: Look) -> Iterator[str]:
    """What is unusual about an image's pixels, and what becomes of them."""
    if look.deep:
        yield "16 bits a channel or more, scaled to 8"
    elif look.mode == "P" and look.transparent:
        yield "a palette with transparency, put on white"
    elif look.mode not in USUAL:
        yield f"{look.mode}, converted to RGB without a colour profile"
    elif look.transparent:
        yield "transparent, put on white"
