"""Pictures that people upload are opened, or refused with what is wrong."""

import struct
import zlib

import pytest
from PIL import Image

from blip2ft.demo import pictures
from blip2ft.demo.pictures import open_picture


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header names that size, with next to no pixels in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [8_000, 50_000])
def test_too_many_pixels_are_refused_by_the_header(tmp_path, side):
    (tmp_path / "wide.png").write_bytes(png_of(side, side))
    with pytest.raises(ValueError, match=r"^wide.png has more than 50 million pixels; choose a sm"):
        open_picture(str(tmp_path / "wide.png"))


def test_as_many_pixels_as_allowed_are_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "PIXELS", 6)
    Image.new("RGB", (3, 2)).save(tmp_path / "small.png")
    assert open_picture(str(tmp_path / "small.png")).size == (3, 2)
    Image.new("RGB", (7, 1)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"large.png has more than"):
        open_picture(str(tmp_path / "large.png"))


def test_an_animated_picture_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert open_picture(str(tmp_path / "a.gif")).getpixel((0, 0)) == (255, 0, 0)


def test_a_picture_for_print_is_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    opened = open_picture(str(tmp_path / "print.jpg"))
    red, green, _ = opened.getpixel((0, 0))
    assert opened.mode == "RGB"
    assert red > 200
    assert green < 60


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "^x.png: the image file is empty"),
        (b"no picture", "^x.png: not an image that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "^x.png: not an image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "^x.png: not an image that can be read"),
        (png_of(64, 64), "^x.png: the image is damaged or cut short"),
    ],
)
def test_what_is_no_picture_is_told_without_its_place(tmp_path, content, told):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        open_picture(str(tmp_path / "x.png"))


def test_a_picture_that_was_deleted_meanwhile_is_to_be_chosen_again(tmp_path):
    with pytest.raises(ValueError, match="The picture isn't kept any longer; choose it again"):
        open_picture(str(tmp_path / "gone.png"))
    with pytest.raises(ValueError, match="There is no picture yet; choose one"):
        open_picture(None)
