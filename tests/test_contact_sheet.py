"""The page of found photos: whole in itself, escaped, upright, and never written over another."""

import base64
import io
import os
import re
import shutil
from pathlib import Path

import pytest
from html_page import HtmlPage
from PIL import Image

from blip2ft.contact_sheet import check_new, fresh_file, write_contact_sheet
from blip2ft.pages import SIDE, thumbnail
from blip2ft.photos.search import Match

EVIL = '<script>alert("1")</script> & co'


def decoded(uri: str) -> Image.Image:
    start = "data:image/jpeg;base64,"
    assert uri.startswith(start)
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(start))))


@pytest.fixture
def matches(tmp_path) -> list[Match]:
    wide, odd = tmp_path / "wide.png", tmp_path / 'a <b> & "c" ü#?.jpg'
    Image.new("RGB", (900, 300), "red").save(wide)
    Image.new("RGB", (30, 60), "blue").save(odd)
    return [Match(str(wide), 1.23456, "1"), Match(str(odd), -0.5, "2")]


def test_a_page_holds_all_it_shows(matches, tmp_path):
    file = tmp_path / "sheets" / "found.html"
    write_contact_sheet(file, matches, query=EVIL, note="Score: <similarity>")
    page = HtmlPage(file.read_text(encoding="utf-8"))
    assert page.words == [
        *(EVIL, EVIL, "Score: <similarity>"),  # title and heading
        *("1", "1.235", "wide.png"),
        *("2", "-0.500", 'a <b> & "c" ü#?.jpg'),
    ]
    assert [decoded(image["src"]).size for image in page.all("img")] == [(400, 133), (30, 60)]
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe"})
    sources = [a[name] for _, a in page.tags for name in ("src", "href") if name in a]
    assert all(source.startswith(("data:image/jpeg", "file:///")) for source in sources)
    assert [a["href"] for a in page.all("a")] == [Path(m.path).as_uri() for m in matches]
    assert "url(" not in file.read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in file.read_text(encoding="utf-8")


def test_a_page_of_similar_photos_begins_with_the_photo(matches, tmp_path):
    file = tmp_path / "found.html"
    write_contact_sheet(file, matches, image=matches[1].path)
    page = HtmlPage(file.read_text(encoding="utf-8"))
    assert page.words[0] == 'photos like a <b> & "c" ü#?.jpg'
    assert page.all("img")[0]["src"] == thumbnail(matches[1].path)


def test_thumbnails_are_upright_and_small(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.effect_noise((3000, 2000), 90).convert("RGB")
    photo.save(tmp_path / "side.jpg", exif=exif)
    uri = thumbnail(tmp_path / "side.jpg")
    assert decoded(uri).size == (267, SIDE)
    assert not decoded(uri).getexif()
    assert len(uri) < 150_000  # of noise; photos take a tenth


def test_a_photo_that_went_leaves_its_place(matches, tmp_path):
    Path(matches[0].path).unlink()
    write_contact_sheet(tmp_path / "found.html", matches, query="a cat")
    page = HtmlPage((tmp_path / "found.html").read_text(encoding="utf-8"))
    assert page.words[2:5] == ["not readable", "1", "1.235"]
    assert len(page.all("img")) == 1


def test_names_that_are_no_text_are_shown(matches, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    shutil.copy(matches[1].path, path)
    file = tmp_path / "found.html"
    write_contact_sheet(file, [Match(path, 0, "")], query="caf\udce9")
    page = HtmlPage(file.read_text(encoding="utf-8"))
    assert page.words[0] == "caf\ufffd"
    assert page.words[-1] == "caf\ufffd.jpg"
    assert page.all("a")[0]["href"].endswith("caf%E9.jpg")


def test_a_file_is_never_overwritten(matches, tmp_path):
    file = tmp_path / "mine.html"
    file.write_text("mine")
    with pytest.raises(ValueError, match=r"mine.html exists and is not overwritten"):
        write_contact_sheet(file, matches, query="a cat")
    with pytest.raises(ValueError, match="choose another --html"):
        check_new(file)
    assert file.read_text() == "mine"


def test_names_of_pages_come_from_the_query(tmp_path):
    for query, expected in (
        ("A red flag!", "a-red-flag.html"),
        ("A red flag?", "a-red-flag-2.html"),
        ("../../etc/passwd", "etc-passwd.html"),
        ("?!", "search.html"),
        ("גלגל", "גלגל.html"),
    ):
        file = fresh_file(tmp_path, query)
        assert file == tmp_path / expected
        file.touch()
    long = fresh_file(tmp_path, "ü" * 400)
    long.touch()
    assert re.fullmatch("ü{50}.html", long.name)
