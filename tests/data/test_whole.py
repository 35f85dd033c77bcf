"""Files are there as a whole or not at all."""

import os
import tarfile
from pathlib import Path

import pytest

from blip2ft.data.whole import alone, fill_tar, remove_partial, whole, write_text


def test_a_file_is_there_once_it_is_written_to_the_end(tmp_path, monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        assert partial.name == f".partial-{os.getpid()}-a.txt"
    assert path.read_text() == "new"
    assert len(synced) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_file_is_as_it_was(tmp_path):
    write_text(tmp_path / "a.txt", "old \u00e9\n")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"), whole(tmp_path / "a.txt") as partial:
        fail(partial)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old \u00e9\n"
    with whole(tmp_path / "b.txt"):
        pass  # nothing was written
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


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


def test_what_a_kill_left_is_removed(tmp_path):
    (tmp_path / ".partial-1-a.tar").write_bytes(b"half")
    (tmp_path / "a.tar").write_bytes(b"whole")
    remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_one_run_writes_at_a_time(tmp_path):
    with (
        alone(tmp_path),
        pytest.raises(ValueError, match=r"another run is writing to .*; wait for its end"),
        alone(tmp_path),
    ):
        pass
    with alone(tmp_path), alone(tmp_path, ".lock-1"):
        pass
