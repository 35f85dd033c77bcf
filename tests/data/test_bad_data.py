"""Every kind of bad file and record that people have, and what a user would expect of each."""

import io
import json
import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from blip2ft.data.images import open_image
from blip2ft.data.records import read_records

SIZE = (40, 30)


def picture(format: str = "JPEG", mode: str = "RGB", size=SIZE, **options) -> bytes:
    """A picture that is red on the left and blue on the right."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2, 0, *size))
    file = io.BytesIO()
    image.convert(mode).save(file, format, **options)
    return file.getvalue()


def header_of(width: int, height: int) -> bytes:
    """A PNG that claims to be so large, and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def deep() -> bytes:
    """16 bits of grey, dark on the left."""
    image = Image.new("I;16", SIZE, 0)
    image.paste(65535, (SIZE[0] // 2, 0, *SIZE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def animated(format: str) -> bytes:
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "green", "blue")]
    file = io.BytesIO()
    frames[0].save(file, format, save_all=True, append_images=frames[1:], lossless=True)
    return file.getvalue()


def see_through() -> bytes:
    """A palette of which the right half is transparent."""
    image = Image.new("P", SIZE, 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (SIZE[0] // 2, 0, *SIZE))
    file = io.BytesIO()
    image.save(file, "PNG", transparency=1)
    return file.getvalue()


def turned() -> bytes:
    """Taken with the camera on its side: EXIF says to turn it a quarter to the right."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture("JPEG", exif=exif, quality=95)


RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
# Of an image that opens: its size and its colours at left and right.
HALVES = (SIZE, RED, BLUE)
IMAGES = {
    "truncated JPEG": (picture()[:-200], r"x\.jpg.*: the image is damaged or cut short"),
    "CMYK JPEG": (picture(mode="CMYK", quality=95), HALVES),
    "16-bit PNG": (deep(), (SIZE, BLACK, WHITE)),
    "PNG with the ending of a JPEG": (picture("PNG"), HALVES),
    "no bytes": (b"", r"x\.jpg.*: the image file is empty\. Fetch it again"),
    "page of a server's error": (b"<!DOCTYPE html><title>404", r"x\.jpg.*it starts with b'<!DOC"),
    "50,000 x 50,000 header": (header_of(50_000, 50_000), r"too large an image to be safe \(.*250"),
    "EXIF rotation": (turned(), ((30, 40), RED, RED)),
    "animated WebP": (animated("WEBP"), (SIZE, RED, RED)),
    "animated GIF": (animated("GIF"), (SIZE, RED, RED)),
    "palette with transparency": (see_through(), (SIZE, RED, WHITE)),
    "black and white": (picture("PNG", "1"), None),
    "1 x 1 pixel": (picture("PNG", size=(1, 1)), ((1, 1), BLUE, BLUE)),
    "PostScript, which is a program": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        r"not an image that can be re",
    ),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', r"not an image that can be read"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_a_bad_image(kind, tmp_path):
    data, expected = IMAGES[kind]
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected) as error:
            open_image(path, origin="train.csv:7")
        assert "(named in train.csv:7)" in str(error.value)
        return
    image = open_image(path, origin="train.csv:7")
    assert image.mode == "RGB"
    if expected is not None:
        size, left, right = expected
        assert image.size == size
        width, height = size
        for x, wanted in ((0, left), (width - 1, right)):
            found = image.getpixel((x, height // 3))
            assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) < 12, (x, found)


def place(folder: Path, kind: str) -> str:
    """Make what a path leads to that is no image file, and give the path."""
    if kind == "a directory":
        (folder / "photos").mkdir()
        return "photos"
    if kind == "a pipe":
        os.mkfifo(folder / "pipe.jpg")
        return "pipe.jpg"
    if kind == "a symlink loop":
        os.symlink("b.jpg", folder / "a.jpg")
        os.symlink("a.jpg", folder / "b.jpg")
        return "a.jpg"
    return {
        "no file": "gone.jpg",
        "NUL in a path": "a.jpg\0",
        "a path out of the folder": "../../etc/passwd",
        "an absolute path": "/etc/passwd",
        "an address": "https://example.org/a.jpg",
        "another case of letters": "X.JPG",
    }[kind]


PLACES = {
    "a directory": r"a folder where an image is named \(1\): .*photos \(t\.jsonl:1\)\. Name an",
    "a pipe": r"neither a file nor a folder where an image is named \(1\): .*pipe\.jpg \(t\.j",
    "a symlink loop": r"no such image file \(1\): .*a\.jpg \(t\.jsonl:1\)",
    "no file": r"no such image file \(1\): .*gone\.jpg \(t\.jsonl:1\)\. Set image_root",
    "another case of letters": r"no such image file \(1\): .*X\.JPG \(t\.jsonl:1\), but x\.jpg",
    "NUL in a path": r"a NUL character in an image path \(1\): 'a\.jpg\\x00' \(t\.jsonl:1\)",
    "a path out of the folder": r"image path outside of .*: \.\./\.\./etc/passwd \(t\.jsonl:1\)",
    "an absolute path": r"image path outside of .*\(1\): /etc/passwd \(t\.jsonl:1\)",
    "an address": r"an address in place of an image file \(1\): https://example\.org/a\.jpg ",
}


@pytest.mark.parametrize("kind", PLACES)
def test_a_path_to_no_image(kind, tmp_path):
    (tmp_path / "x.jpg").write_bytes(picture())
    row = {"image": place(tmp_path, kind), "caption": "a cat"}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=PLACES[kind]):
        read_records(tmp_path / "t.jsonl")


GOOD = b"x.jpg,a cat\n"
ROW = '{"image": "x.jpg", "caption": %s}\n'
# name of the file, its content, and the captions that are read or what is said of it
TABLES = {
    "BOM and CRLF": ("t.csv", b"\xef\xbb\xbfimage,caption\r\nx.jpg,a cat\r\n", ["a cat"]),
    "quoted newline": ("t.csv", b'image,caption\nx.jpg,"a cat\non a mat"\n', ["a cat\non a mat"]),
    "quote that never closes": (
        "t.csv",
        b'image,caption\nx.jpg,"a cat\n',
        r"t\.csv:2: broken quot",
    ),
    "Latin-1": (
        "t.csv",
        b"image,caption\nx.jpg,caf\xe9\n",
        r"t\.csv:2: not UTF-8 text \(byte 0xe9\)",
    ),
    "UTF-16 without a mark": (
        "t.jsonl",
        '{"image": "x.jpg"}'.encode("utf-16-be"),
        r"t\.jsonl:1: not UTF-8 text but UTF-16\. Save",
    ),
    "UTF-16": ("t.csv", "image,caption\nx.jpg,a\n".encode("utf-16"), r"t\.csv:1: not UTF-8 text"),
    "ragged rows": (
        "t.csv",
        b"image,caption\n" + GOOD + b"x.jpg,a,b\n",
        r"exactly 2 cells.*t\.csv:3 \(3\)",
    ),
    "a column twice": ("t.csv", b"image,caption,caption\nx.jpg,a,b\n", r"'caption' is there twice"),
    "no row of names": (
        "t.csv",
        GOOD,
        r"t\.csv:1: the first row has an image, 'x\.jpg', where the names of the columns belong",
    ),
    "no rows": ("t.csv", b"image,caption\n", r"t\.csv: no records in it \(read as csv\)"),
    "semicolons": ("t.csv", b"image;caption\nx.jpg;a cat\n", ["a cat"]),
    "spaces alone": ("t.csv", b"image,caption\nx.jpg,   \n", r"empty caption \(1\): t\.csv:2"),
    "duplicate keys": (
        "t.jsonl",
        b'{"image": "x.jpg", "caption": "a", "caption": "b"}\n',
        r"ambiguous JSON \(1\): t\.jsonl:1 \(the key 'caption' is there twice",
    ),
    "duplicate keys in a list": (
        "t.json",
        b'[{"image": "x.jpg", "image": "y.jpg", "caption": "b"}]',
        r"t\.json: the key 'image' is there twice",
    ),
    "JSON cut off": ("t.jsonl", (ROW % '"a cat"').encode()[:-5], r"invalid JSON \(1\): t\.jsonl:1"),
    "a list cut off": (
        "t.json",
        b'[{"image": "x.jpg", "caption": "a"}, {"ima',
        r"t\.json:1: invalid JSON at co",
    ),
    "lists without end": (
        "t.jsonl",
        b"[" * 200_000,
        r"ambiguous JSON \(1\): t\.jsonl:1 \(lists or obj",
    ),
    "NaN": (
        "t.jsonl",
        (ROW % "NaN").encode(),
        r"the caption isn't text \(1\): t\.jsonl:1 \(float\)",
    ),
    "null": ("t.jsonl", (ROW % "null").encode(), r"empty caption \(1\): t\.jsonl:1"),
    "a number": (
        "t.jsonl",
        (ROW % "7").encode(),
        r"the caption isn't text \(1\): t\.jsonl:1 \(int\)",
    ),
    "half a character": (
        "t.jsonl",
        (ROW % '"\\ud83d"').encode(),
        r"the caption isn't Unicode \(1\)",
    ),
    "10 MB": (
        "t.jsonl",
        (ROW % f'"{"a " * 5_000_000}"').encode(),
        r"a caption of more than 100,000 characters \(1\): t\.jsonl:1 \(10,000,000, from 'a a",
    ),
    "10 MB in a CSV": (
        "t.csv",
        b"image,caption\nx.jpg," + b"a " * 5_000_000 + b"\n",
        r"t\.csv:2: an endless cell, or broken quoting \(field larger.*\)\. Shorten the cell",
    ),
    "emoji": ("t.jsonl", (ROW % '"a 🐈‍⬛ on a 🛋️"').encode(), ["a 🐈‍⬛ on a 🛋️"]),
    "right to left": ("t.csv", "image,caption\nx.jpg,חתול שחור\n".encode(), ["חתול שחור"]),
    "the token of the image": (
        "t.jsonl",
        (ROW % '"a <image> of a cat"').encode(),
        r"a text that holds <image>, which .* \(1\): t\.jsonl:1 \(caption\)\. Take it out",
    ),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_bad_table(kind, tmp_path):
    (tmp_path / "x.jpg").write_bytes(picture())
    name, content, expected = TABLES[kind]
    (tmp_path / name).write_bytes(content)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            read_records(tmp_path / name)
        return
    (record,) = read_records(tmp_path / name)
    assert list(record.captions) == expected


def test_there_are_at_least_25_kinds():
    assert len(IMAGES) + len(PLACES) + len(TABLES) >= 25
