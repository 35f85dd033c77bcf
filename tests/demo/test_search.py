"""Photos of an index are found by words and shown without their place."""

import shutil

import pytest
from PIL import Image

from blip2ft.demo.search import SIDE, search_in
from blip2ft.index import index_photos


@pytest.fixture
def photos(photo_folder, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photo_folder, folder)
    where = Image.Exif()
    where[0x010E] = "at home"
    Image.new("RGB", (1600, 1200), "red").save(folder / "large.jpg", exif=where)
    return folder


@pytest.fixture
def index(photos, retriever_folder, tmp_path):
    index_photos(photos, tmp_path / "index", model=retriever_folder)
    return tmp_path / "index"


def test_photos_come_small_with_score_and_name_alone(index, photos):
    found = search_in(index)("a red apple")
    names = {told.split(" ", 1)[1] for _, told in found}
    assert names == {file.name for file in photos.glob("*.jpg")}
    large = next(picture for picture, told in found if told.endswith("large.jpg"))
    assert large.size == (SIDE, SIDE * 3 // 4)
    assert not large.info
    assert not large.getexif()


def test_what_is_looked_for_has_to_be_said_and_to_fit(index):
    search = search_in(index)
    with pytest.raises(ValueError, match="There is nothing to look for yet; write it, such as"):
        search(" ")
    with pytest.raises(ValueError, match="What to look for has 2,001 characters; up to 2,000"):
        search("a" * 2001)
    with pytest.raises(ValueError, match="What to look for has 42 tokens, and the model reads 32"):
        search("cat " * 40)


def test_photos_that_are_gone_are_left_out(index, photos, caplog):
    search = search_in(index)
    (photos / "large.jpg").unlink()
    (photos / "photo1.jpg").write_bytes(b"no picture")
    names = {told.split(" ", 1)[1] for _, told in search("a red apple")}
    assert names == {f"photo{i}.jpg" for i in range(8) if i != 1}


@pytest.mark.parametrize("gone", ["photos", "index"])
def test_why_nothing_can_be_read_is_told_in_the_terminal_alone(index, photos, gone, caplog):
    search = search_in(index)
    folder = {"photos": photos, "index": index}[gone]
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"^The photos can't be read now; the terminal of blip2ft"):
        search("a red apple")
    assert str(folder) in caplog.text
