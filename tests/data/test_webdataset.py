"""Tars as ordinary records, such as a validation split."""

from pathlib import Path

import pytest
from shard_files import members, png, write_parquet, write_tar, write_tars

from blip2ft.data.images import open_image
from blip2ft.data.questions import read_questions
from blip2ft.data.records import Part, Record, read_records


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("source", ["t", "t/*.tar", "t/{000..001}.tar"])
def test_tars_are_recognised_by_their_name(source):
    write_tars(Path("t"), [2, 1])
    records = read_records(source)
    assert [(r.image_id, r.captions, r.origin) for r in records] == [
        ("000000", ("picture 0",), "000.tar: 000000"),
        ("000001", ("picture 1",), "000.tar: 000001"),
        ("000002", ("picture 2",), "001.tar: 000002"),
    ]
    assert records == read_records(source, format="webdataset")
    assert len(read_records("t/001.tar")) == 1
    assert len(read_records(source, limit=2)) == 2


def test_images_stay_in_the_tar_until_they_are_asked_for():
    write_tars(Path("t"), [3])
    record = read_records("t")[2]
    assert isinstance(record.image, Part)
    assert record.image.read() == png(2)
    assert open_image(record.image).getpixel((0, 0)) == (2, 0, 7)


def test_images_beside_a_tar_come_first():
    write_tars(Path("t"), [2])
    Path("t/a.png").write_bytes(png(1))
    assert [r.image for r in read_records("t", require_captions=False)] == [Path("t/a.png")]


def test_the_same_key_in_two_tars_is_two_images():
    write_tar(Path("t/a.tar"), members([0, 1]))
    write_tar(Path("t/b.tar"), members([1, 2]))
    ids = [record.image_id for record in read_records("t")]
    assert ids == ["000000", "a/000001", "b/000001", "000002"]


def test_tars_of_one_name_in_several_folders_are_told_apart():
    write_tar(Path("t/cc3m/00000.tar"), members([0]))
    write_tar(Path("t/sbu/00000.tar"), members([0]))
    found = [(r.image_id, r.captions) for r in read_records("t/{cc3m,sbu}/00000.tar")]
    assert found == [
        ("cc3m/00000/000000", ("picture 0",)), ("sbu/00000/000000", ("picture 0",)),
    ]  # fmt: skip


def test_one_id_for_two_images_is_refused():
    files = {
        "1.png": png(1), "1.json": b'{"caption": "a cat", "image_id": 5}',
        "2.png": png(2), "2.json": b'{"caption": "a dog", "image_id": 5}',
    }  # fmt: skip
    write_tar(Path("x.tar"), files)
    with pytest.raises(
        ValueError, match=r"one image id for two images \(1\): x\.tar: 2 \(id 5, also x\.tar: 1\)"
    ):
        read_records("x.tar")


def test_what_img2dataset_writes_is_its_tars():
    write_tars(Path("t"), [2])
    write_parquet(Path("t/000.parquet"), range(5))  # metadata
    assert [r.image_id for r in read_records("t")] == ["000000", "000001"]


def test_samples_of_one_image_are_one_record_by_their_id():
    files = {
        "1.png": png(1), "1.json": b'{"caption": "a cat", "image_id": 5, "w": 4}',
        "2.png": png(1), "2.json": b'{"caption": "my cat", "image_id": 5}',
    }  # fmt: skip
    write_tar(Path("x.tar"), files)
    (record,) = read_records("x.tar")
    assert isinstance(record, Record)
    assert (record.image_id, record.captions) == (5, ("a cat", "my cat"))
    assert record.fields == {"w": 4}


def test_captions_need_not_be_there():
    write_tar(Path("x.tar"), {"1.png": png(1)})
    assert read_records("x.tar", require_captions=False)[0].captions == ()
    with pytest.raises(ValueError, match=r"empty caption \(1\): x\.tar: 1\. Write a caption there"):
        read_records("x.tar")


def test_half_a_character_in_a_caption_is_refused():
    write_tar(Path("x.tar"), {"1.png": png(1), "1.json": b'{"caption": "a cat \\ud83d"}'})
    with pytest.raises(
        ValueError,
        match=r"caption isn't Unicode \(1\): x\.tar: 1 \('a cat \\ud83d'\)\. It holds half",
    ):
        read_records("x.tar")


def test_all_that_is_wrong_is_said_at_once():
    files = {
        "1.txt": b"a cat",
        "2.png": png(2), "2.txt": b"\xff",
        "3.png": png(3), "3.json": b"{",
        "4.png": png(4), "4.txt": b" ",
    }  # fmt: skip
    write_tar(Path("x.tar"), files)
    with pytest.raises(ValueError, match=r"x\.tar: 4 problems") as caught:
        read_records("x.tar")
    told = str(caught.value)
    assert "a sample that can't be read (3): x.tar: 1 (no image jpg jpeg png" in told
    assert "x.tar: 2 (its .txt isn't UTF-8 text" in told
    assert "x.tar: 3 (its .json can't be read: Expecting" in told
    assert "Correct or remove it, or set image_column and caption_column" in told
    assert "empty caption (1): x.tar: 4" in told


def test_a_tar_that_is_cut_off_is_refused():
    path = write_tars(Path("t"), [2]) / "000.tar"
    path.write_bytes(path.read_bytes()[:2200])
    with pytest.raises(ValueError, match=r"t/000\.tar: "):
        read_records("t")


def test_questions_are_not_read_from_tars():
    write_tars(Path("t"), [2])
    with pytest.raises(ValueError, match=r"000\.tar: can't tell its format"):
        read_questions("t/000.tar")
