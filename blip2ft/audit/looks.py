"""One image looked at: what its file says, whether it opens, its content and its face in small."""

import base64
import hashlib
import io
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from blip2ft.data.images import FORMATS, UPRIGHT, open_image, orientation_of

CHUNK = 1 << 20  # bytes of a file read at once
FACE = (9, 8)  # pixels of the picture by which images are compared
NEEDED = 64  # pixels of a side: JPEGs are decoded as small as that
HEAD = 16  # bytes that a whole file has more than
TAIL = 64  # bytes in which a whole file has its end mark
NOISE = 2  # levels of 255 by which the pixels of one colour may differ
PIXELS = 89_478_485  # Pillow's own limit, where a program switched it off


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of one image; sizes are those of the file, before it is turned upright.

    fault: a kind of error, with its `reason`, or "" for an image that can be used; digest: of the
    file's bytes, "" where they can't be read; face: the image in 9 x 8 pixels, RGB, as base85.
    """

    fault: str = ""
    reason: str = ""
    digest: str = ""
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    frames: int = 1
    deep: bool = False  # 16 bits a channel, or more
    transparent: bool = False
    turned: bool = False  # EXIF says so
    blank: bool = False  # a single colour
    face: str = ""


def look_at(source: Any) -> Look:
    """Look at a file, its bytes, or something that reads them; nothing is raised for a bad one.

    A decompression bomb is never decoded: its header alone is read.
    """
    try:
        if isinstance(source, str | Path):
            fault = _not_a_file(source)
            if fault is not None:
                return fault
            with open(source, "rb") as file:
                return _look(file, source)
        data = source if isinstance(source, bytes) else source.read()
        return _look(io.BytesIO(data), data)
    except OSError as error:
        return Look("unreadable", error.strerror or str(error))
    except ValueError as error:  # of a tar that has become too short, or of an address
        return Look("unreadable", _reason(error, source))


def look_of(kept: Mapping[str, Any]) -> Look:
    """A look as `asdict` made it; raises TypeError where a value is missing, unknown or no such."""
    look = Look(**kept)
    for field in fields(Look):
        if type(kept.get(field.name)) is not type(field.default):
            raise TypeError(f"{field.name} is {kept.get(field.name)!r}")
    return look


def face_pixels(look: Look) -> np.ndarray:
    """The small picture of an image: (216,) uint8."""
    return np.frombuffer(base64.b85decode(look.face), np.uint8)


def _not_a_file(path: str | Path) -> Look | None:
    """What is wrong with a path, before anything is opened: a pipe would wait for ever."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            return Look("missing", f"a link to {os.readlink(path)}, where nothing is")
        return Look("missing")
    except ValueError:
        return Look("unreadable", "there is a NUL in its path")
    except OSError as error:
        return Look("unreadable", error.strerror or str(error))
    if stat.S_ISDIR(status.st_mode):
        return Look("directory")
    if not stat.S_ISREG(status.st_mode):
        return Look("unreadable", "neither a file nor a folder")
    return Look("empty") if status.st_size == 0 else None


def _look(file: BinaryIO, source: str | Path | bytes) -> Look:
    digest = hashlib.blake2b(digest_size=16)
    size = 0
    while chunk := file.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
    if not size:
        return Look("empty")
    seen: dict[str, Any] = {"digest": digest.hexdigest()}
    limit = Image.MAX_IMAGE_PIXELS or PIXELS
    file.seek(0)
    try:
        with _no_bomb_check(), Image.open(file, formats=FORMATS) as image:
            seen |= {"format": image.format, "mode": image.mode}
            seen |= {"width": image.width, "height": image.height}
            if image.width * image.height > limit:
                return Look("huge", f"{image.width:,} x {image.height:,} pixels", **seen)
            seen["transparent"] = image.has_transparency_data
            seen["turned"] = orientation_of(image) in UPRIGHT
            seen["deep"] = _is_deep(image, file)
            seen["frames"] = int(getattr(image, "n_frames", 1))
    except Exception:  # on damaged data, decoders raise whatever they stumble on
        pass  # opened once more, it is told in the words of training
    try:
        small = open_image(source, size_hint=NEEDED)
    except ValueError as error:
        cut = is_cut_short(file, size)
        if cut is None:
            cut = "truncated" in str(error).lower()
        return Look("truncated" if cut else "unreadable", _reason(error, source), **seen)
    if seen.get("transparent") and "A" in seen["mode"]:
        try:
            seen["transparent"] = _is_clear(file)
        except Exception as error:  # read anew, from a disk that fails say
            return Look("unreadable", str(error), **seen)
    ranges: Any = small.getextrema()
    seen["blank"] = all(high - low <= NOISE for low, high in ranges)
    face = small.resize(FACE, Image.Resampling.BOX)
    return Look(**seen, face=base64.b85encode(face.tobytes()).decode())


@contextmanager
def _no_bomb_check() -> Iterator[None]:
    """Let a header say any size, without a warning or an error: it is looked at here."""
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _reason(error: ValueError, source: Any) -> str:
    """What training says of an image, without its path or address and the advice."""
    where = str(source) if isinstance(source, str | Path) else getattr(source, "url", "an image")
    said = str(error).removeprefix(f"{where}: ")
    advice = r"\. (Fetch|Convert|Change|Check|Correct|Make|Name) .*$"
    return re.sub(advice, "", said, flags=re.DOTALL)


def _is_clear(file: BinaryIO) -> bool:
    """Whether anything of an image with an alpha channel is transparent."""
    file.seek(0)
    with Image.open(file, formats=FORMATS) as image:
        extrema: Any = image.getchannel("A").getextrema()
        return extrema[0] < 255


def _is_deep(image: Image.Image, file: BinaryIO) -> bool:
    """Whether a channel has more than 8 bits; of a PNG in colour, its header alone tells."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return True
    if image.format != "PNG":
        return False
    file.seek(24)
    return file.read(1) == b"\x10"


def is_cut_short(file: BinaryIO, size: int) -> bool | None:
    """Whether a file that can't be decoded ends too early; None where its format doesn't tell.

    Damage inside is no cut.
    """
    file.seek(0)
    head = file.read(HEAD)
    file.seek(-min(TAIL, size), os.SEEK_END)
    tail = file.read()
    if head.startswith(b"\xff\xd8"):
        return b"\xff\xd9" not in tail
    if head.startswith(b"\x89PNG"):
        return b"IEND" not in tail
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return int.from_bytes(head[4:8], "little") + 8 > size
    if head.startswith(b"GIF8"):
        # its end mark alone may be any byte of the image; before it, every block ends with a 0
        return not tail.rstrip(b"\0").endswith(b"\0\x3b")
    if head.startswith(b"BM"):
        return size < HEAD or int.from_bytes(head[2:6], "little") > size
    if head.startswith(b"II*\0"):  # TIFF, then where its directory begins
        return size < HEAD or int.from_bytes(head[4:8], "little") > size or None
    if head.startswith(b"MM\0*"):
        return size < HEAD or int.from_bytes(head[4:8], "big") > size or None
    return None
