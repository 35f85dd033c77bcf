"""Splits that share images are told of, once and with an example."""

import shutil

from blip2ft.data.overlap import overlap_warning
from blip2ft.data.records import read_records


def test_splits_that_share_images_are_told(photo_folder):
    records = read_records(photo_folder / "captions.csv")
    train, other = records[:5], records[3:]
    said = overlap_warning(train, other, "validation")
    assert said is not None
    assert said.startswith("warning: 2 of the 5 validation images are training images too")
    assert str(photo_folder / "photo3.jpg") in said
    assert overlap_warning(records[:4], records[4:], "validation") is None


def test_one_file_by_two_paths_is_one_image(photo_folder, tmp_path):
    (tmp_path / "link").symlink_to(photo_folder)
    here = read_records(photo_folder / "captions.csv", limit=1)
    assert overlap_warning(here, read_records(tmp_path / "link" / "captions.csv"), "test")
    copy = shutil.copytree(photo_folder, tmp_path / "copy")
    assert overlap_warning(here, read_records(copy / "captions.csv"), "test") is None
