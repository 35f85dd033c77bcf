"""What is seen of an image file, good or bad; none raises, waits or fills the memory."""

import os
from pathlib import Path

import numpy as np
import pytest
from pictures import encoded, picture
from PIL import Image
from planted_faults import png_file

from blip2ft.audit.looks import Look, face_pixels, look_at
from blip2ft.data.remote import Remote
from blip2ft.data.tar import Part


def test_a_good_image_has_no_fault(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(encoded(picture()))
    look = look_at(tmp_path / "a.jpg")
    assert (look.fault, look.format, look.mode) == ("", "JPEG", "RGB")
    assert (look.width, look.height, look.frames) == (96, 72, 1)
    assert not any((look.deep, look.transparent, look.turned, look.blank))
    assert look == look_at(encoded(picture()))
    assert face_pixels(look).shape == (216,)


def test_what_keeps_an_address_from_being_fetched_is_told_without_the_address(monkeypatch):
    monkeypatch.setattr("blip2ft.data.remote.PAUSE", 0.0)
    look = look_at(Remote("http://127.0.0.1:9/a.jpg"))  # where nothing listens
    assert look.fault == "unreadable"
    assert look.reason.startswith("can't be fetched, tried 4 times (")
    assert look.reason.endswith(")")  # what to do comes with the finding


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_file_cut_short_is_told_from_one_that_is_damaged(format):
    whole = encoded(picture(), format)
    assert look_at(whole).fault == ""
    assert look_at(whole[: len(whole) // 2]).fault == "truncated"
    assert look_at(b"<html>" + whole).fault == "unreadable"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_of_a_file_only_the_first_bytes_may_be_there(format):
    whole = encoded(picture(), format)
    faults = {look_at(whole[:size]).fault for size in range(1, 33)}
    assert faults <= {"truncated", "unreadable"}


def test_a_gif_cut_behind_a_byte_that_is_its_end_mark_is_cut_short():
    whole = encoded(picture(), "GIF")
    end = whole.index(b";", len(whole) // 2) + 1
    assert end < len(whole)
    assert look_at(whole[:end]).fault == "truncated"


@pytest.mark.parametrize("start", [b"BM", b"BM123", b"II*\0", b"MM\0*123"])
def test_a_head_that_ends_within_its_numbers_is_cut_short(start):
    assert look_at(start).fault == "truncated"


def test_an_image_that_fails_when_it_is_read_anew_is_unreadable(monkeypatch):
    def lost(_):
        raise OSError("the disk is gone")

    monkeypatch.setattr("blip2ft.audit.looks._is_clear", lost)
    clear = Image.new("RGBA", (96, 72), (200, 0, 0, 9))
    look = look_at(encoded(clear, "PNG"))
    assert (look.fault, look.reason, look.mode) == ("unreadable", "the disk is gone", "RGBA")


def test_damage_inside_is_no_cut():
    data = bytearray(encoded(picture(), "PNG"))
    data[len(data) // 2 : len(data) // 2 + 20] = bytes(20)
    look = look_at(bytes(data))
    assert look.fault == "unreadable"
    assert "damaged" in look.reason
    assert "Fetch it again" not in look.reason


def test_what_is_no_file_is_never_opened(tmp_path: Path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "lost.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    seen = {path.stem: look_at(path) for path in tmp_path.iterdir()}
    assert seen == {
        "empty": Look("empty"),
        "folder": Look("directory"),
        "lost": Look("missing", "a link to nowhere.jpg, where nothing is"),
        "loop": Look("unreadable", "Too many levels of symbolic links"),
        "pipe": Look("unreadable", "neither a file nor a folder"),
    }
    assert look_at(tmp_path / "none.jpg") == Look("missing")
    assert look_at(tmp_path / "empty.jpg" / "x.jpg") == Look("missing")
    assert look_at(f"{tmp_path}/a\0b.jpg") == Look("unreadable", "there is a NUL in its path")
    assert look_at(b"") == Look("empty")


def test_a_decompression_bomb_is_never_decoded(monkeypatch):
    def decoded(*_, **__):
        raise AssertionError("decoded")

    monkeypatch.setattr("blip2ft.audit.looks.open_image", decoded)
    limit = Image.MAX_IMAGE_PIXELS
    look = look_at(png_file(50_000, 50_000, 8, b""))
    assert (look.fault, look.reason) == ("huge", "50,000 x 50,000 pixels")
    assert limit == Image.MAX_IMAGE_PIXELS


def test_the_limit_of_pixels_is_training_s(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 72)
    assert look_at(encoded(picture())).fault == ""
    assert look_at(encoded(picture(size=(97, 72)))).fault == "huge"


def test_unusual_pixels_are_seen():
    deep = Image.fromarray(np.arange(6912, dtype=np.uint16).reshape(72, 96))
    turned = Image.Exif()
    turned[0x0112] = 6
    assert look_at(encoded(picture().convert("CMYK"))).mode == "CMYK"
    assert look_at(encoded(deep, "PNG")).deep
    assert look_at(encoded(deep, "TIFF")).deep
    assert not look_at(encoded(picture(), "PNG")).deep
    assert look_at(encoded(picture().quantize(16), "PNG", transparency=3)).transparent
    clear = picture().convert("RGBA")
    assert not look_at(encoded(clear, "PNG")).transparent
    clear.putpixel((3, 3), (0, 0, 0, 254))
    assert look_at(encoded(clear, "PNG")).transparent
    look = look_at(encoded(picture(), exif=turned.tobytes()))
    assert (look.turned, look.width, look.height) == (True, 96, 72)
    frames = {"save_all": True, "append_images": [picture(1), picture(2)]}
    for format in ("GIF", "WEBP", "PNG"):
        assert look_at(encoded(picture(), format, **frames)).frames == 3, format
    assert look_at(encoded(Image.new("RGB", (96, 72), "navy"))).blank


@pytest.mark.parametrize("depth", [8, 16])
def test_colours_of_16_bits_are_deep(depth):
    rows = b"".join(b"\0" + bytes(range(24 * depth // 8)) for _ in range(8))
    look = look_at(png_file(8, 8, depth, rows))
    assert (look.fault, look.mode, look.deep) == ("", "RGB", depth == 16)


def test_a_part_of_a_tar_that_was_cut_off_is_unreadable(tmp_path: Path):
    (tmp_path / "x.tar").write_bytes(b"short")
    look = look_at(Part(tmp_path / "x.tar", 0, 100))
    assert look.fault == "unreadable"
    assert "the tar is cut off" in look.reason


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(encoded(picture()))

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refused)
    assert look_at(tmp_path / "a.jpg") == Look("unreadable", "Permission denied")


def test_other_errors_of_the_system_are_faults_of_the_image(tmp_path: Path):
    assert look_at(tmp_path / ("x" * 300)) == Look("unreadable", "File name too long")
