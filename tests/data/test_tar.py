"""Tars are read as tarfile reads them, and what is wrong with one is said."""

import gzip
import io
import re
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from shard_files import members, write_tar

from blip2ft.data.tar import Part, TarSample, fill_tar, find_samples, read_sample, split_name

LONG = "folder/" * 20 + "a" * 120  # beyond what a plain header holds
FORMATS = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}


def samples(path: Path) -> list[TarSample]:
    return [read_sample(path, a, b) for a, b in pairwise(find_samples(path).tolist())]


def expected(path: Path) -> dict[str, dict[str, bytes]]:
    """What tarfile finds, by key and extension."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for info in filter(tarfile.TarInfo.isfile, tar):
            key, extension = split_name(info.name)
            if key is not None:
                found.setdefault(key, {})[extension] = tar.extractfile(info).read()
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_every_kind_of_tar_reads_as_tarfile_does(tmp_path, name):
    files = members(range(3)) | {"b/1.x.PNG": b"x" * 512, "b/1.json": b"", "é.jpg": b"y" * 513}
    files[f"{'d' * 60}/{'e' * 60}.jpg"] = b"z"  # in ustar, split over two fields
    if name != "ustar":
        files[f"{LONG}.jpg"] = b"l"
        files[f"{LONG}.txt"] = b"long"
    path = write_tar(tmp_path / "x.tar", files, format=FORMATS[name])
    assert {sample.key: sample.data for sample in samples(path)} == expected(path)


def test_tars_of_equal_files_are_equal(tmp_path):
    files = [("a.txt", b"one"), ("b" * 200, b""), ("\u00e9.txt", b"two")]
    sizes = [fill_tar(tmp_path / name, iter(files)) for name in ("1.tar", "2.tar")]
    data = (tmp_path / "1.tar").read_bytes()
    assert data == (tmp_path / "2.tar").read_bytes()
    assert sizes == [len(data)] * 2
    with tarfile.open(tmp_path / "1.tar") as tar:
        assert [(m.name, tar.extractfile(m).read(), m.mtime, m.uid) for m in tar] == [
            (name, content, 0, 0) for name, content in files
        ]


def test_parts_can_be_read_by_themselves(tmp_path):
    path = write_tar(tmp_path / "x.tar", members(range(3)))
    for sample in samples(path):
        for extension, data in sample.data.items():
            assert Part(path, sample.offsets[extension], len(data)).read() == data


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        ("000.jpg", "000", "jpg"),
        ("./a.b/c.seg.PNG", "a.b/c", "seg.png"),
        ("a/._c.jpg", None, "_c.jpg"),
        ("README", None, ""),
        ("x.", None, ""),
    ],
)
def test_the_key_ends_at_the_first_dot_of_the_name(name, key, extension):
    assert split_name(name) == (key, extension)


def test_folders_links_and_odd_names_are_left_out(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", pax_headers={"comment": "of all"}, format=tarfile.PAX_FORMAT) as t:
        for name, kind in (("a", tarfile.DIRTYPE), ("a/l.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "k" * 200
            t.addfile(info)
        for name in ("a/1.jpg", "README", ".hidden", "a/1.txt", "a/2.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 3
            t.addfile(info, io.BytesIO(b"abc"))
    assert [(s.key, sorted(s.data)) for s in samples(path)] == [
        ("a/1", ["jpg", "txt"]),
        ("a/2", ["jpg"]),
    ]


def test_a_file_of_more_than_8_gb_is_stepped_over(tmp_path):
    for name in ("gnu", "pax"):
        path, big = tmp_path / f"{name}.tar", 9 * 1024**3
        info = tarfile.TarInfo("1.mp4")
        info.size = big
        after = tarfile.TarInfo("2.txt")
        after.size = 3
        with path.open("wb") as file:
            file.write(info.tobuf(FORMATS[name]))
            file.seek(big, io.SEEK_CUR)  # a hole in the file
            file.write(after.tobuf() + b"abc".ljust(512, b"\0") + bytes(1024))
        starts = find_samples(path)
        assert len(starts) == 3
        assert read_sample(path, *starts[1:].tolist()).data == {"txt": b"abc"}


def test_an_empty_tar_has_no_samples(tmp_path):
    assert len(find_samples(write_tar(tmp_path / "x.tar", {}))) == 1
    (tmp_path / "y.tar").write_bytes(b"")
    assert len(find_samples(tmp_path / "y.tar")) == 1


def test_a_tar_without_its_last_blocks_is_whole(tmp_path):
    path = write_tar(tmp_path / "x.tar", members(range(2)))
    end = int(find_samples(path)[-1])
    path.write_bytes(path.read_bytes()[:end])
    assert len(samples(path)) == 2


def test_a_tar_that_is_cut_off_is_refused_wherever_it_is_cut(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"1.jpg": b"a" * 600, f"{LONG}.jpg": b"b" * 600})
    whole = path.read_bytes()
    ends = int(find_samples(path)[-1])
    for length in range(1, ends, 101):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"x\.tar: (cut off inside|the tar is cut off)"):
            find_samples(path)
    path.write_bytes(whole[:700])
    with pytest.raises(
        ValueError, match=r"inside 1\.jpg: it would end at byte 1112, the tar does at 700\. Fetch"
    ):
        find_samples(path)


def test_a_sample_of_a_tar_that_became_too_short_is_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", members(range(2)))
    start, middle, end = find_samples(path).tolist()
    part = Part(path, middle + 512, 50)
    path.write_bytes(path.read_bytes()[: middle + 520])
    assert read_sample(path, start, middle).key == "000000"
    with pytest.raises(ValueError, match="the tar is cut off"):
        read_sample(path, middle, end)
    with pytest.raises(ValueError, match=r"x\.tar: the tar is cut off"):
        part.read()


@pytest.mark.parametrize(
    "data", [b"<html>not found</html>", gzip.compress(b"x" * 999, mtime=0), b"a" * 999]
)
def test_what_is_no_tar_is_refused(tmp_path, data):
    path = tmp_path / "x.tar"
    path.write_bytes(data.ljust(1024, b"!"))
    told = rf"not a tar that can be read \(it begins with {re.escape(repr(path.read_bytes()[:16]))}"
    with pytest.raises(ValueError, match=rf"{told}\)\. Fetch .* compressed"):
        find_samples(path)


def test_garbage_in_the_middle_is_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", members(range(3)))
    start = int(find_samples(path)[1])
    data = bytearray(path.read_bytes())
    data[start + 3 : start + 5] = b"\xff\xff"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"not a tar that can be read \(byte {start} of it"):
        find_samples(path)


def test_members_of_a_sample_that_are_apart_are_refused(tmp_path):
    files = {"1.jpg": b"", "2.jpg": b"", "1.txt": b""}
    path = write_tar(tmp_path / "x.tar", files)
    with pytest.raises(
        ValueError, match=r"sample '1' are apart, .* --sort=name\), or with blip2ft"
    ):
        find_samples(path)


def test_the_starts_of_samples_take_eight_bytes_each(tmp_path):
    starts = find_samples(write_tar(tmp_path / "x.tar", members(range(9))))
    assert starts.dtype == np.int64
    assert len(starts) == 10
