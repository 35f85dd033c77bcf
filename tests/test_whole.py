"""Files are there as a whole or not at all."""

import errno
import os
import re
from pathlib import Path

import pytest

from blip2ft.whole import (
    alone,
    check_free,
    check_writable,
    remove_partial,
    whole,
    whole_folder,
    write_text,
)


def test_a_file_is_there_once_it_is_written_to_the_end(tmp_path, monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        with whole(path) as another:  # as a process of another machine, with the same number
            assert another != partial
        assert re.fullmatch(r"\.partial-[0-9a-f]{32}-a\.txt", partial.name)
    assert path.read_text() == "new"
    assert len(synced) == 2  # the file, and its name
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


def test_a_folder_is_there_once_it_is_written_to_the_end(tmp_path, monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    path = tmp_path / "above" / "a"
    with whole_folder(path) as partial:
        (partial / "b").mkdir()
        (partial / "b" / "c.txt").write_text("new")
        assert not path.exists()
    assert (path / "b" / "c.txt").read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["a"]
    assert len(synced) == 4  # the file, what names it, what names that, and the new name


@pytest.mark.parametrize("empty", [False, True])
def test_after_an_error_there_is_no_folder(tmp_path, empty):
    path = tmp_path / "a"
    if empty:
        path.mkdir()

    def fail(folder: Path) -> None:
        (folder / "b.txt").write_text("half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"), whole_folder(path) as partial:
        fail(partial)
    assert [p.name for p in tmp_path.rglob("*")] == (["a"] if empty else [])
    (tmp_path / ".partial-a").mkdir()
    (tmp_path / ".partial-a" / "left.txt").write_text("by a kill")
    with whole_folder(path) as partial:
        (partial / "b.txt").write_text("whole")
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "b.txt"]


def test_a_folder_takes_the_place_of_another_where_that_is_asked(tmp_path):
    out = tmp_path / "out"
    for text in ("one", "two"):
        with whole_folder(out, replace=True) as partial:
            (partial / text).write_text(text)
        assert [path.name for path in out.iterdir()] == [text]
        assert list(tmp_path.iterdir()) == [out]
    with pytest.raises(OSError, match="not empty"), whole_folder(out):
        pass
    assert [path.name for path in out.iterdir()] == ["two"]


@pytest.mark.parametrize("failing", ["writing", "renaming"])
def test_after_an_error_the_folder_that_was_to_be_replaced_is_there(tmp_path, monkeypatch, failing):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    rename = Path.rename

    def fail_once(path, target):
        if path.name == ".partial-out" and failing == "renaming":
            raise OSError("no")
        return rename(path, target)

    def replace() -> None:
        with whole_folder(out, replace=True) as partial:
            (partial / "new").write_text("")
            if failing == "writing":
                raise OSError("no")

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="no"):
        replace()
    assert (out / "mine").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out]


def test_what_a_kill_left_is_removed(tmp_path):
    (tmp_path / ".partial-1-a.tar").write_bytes(b"half")
    (tmp_path / "a.tar").write_bytes(b"whole")
    (tmp_path / ".partial-model" / "deep").mkdir(parents=True)
    remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_one_run_writes_at_a_time(tmp_path):
    with (
        alone(tmp_path),
        pytest.raises(ValueError, match=r"another run is writing to .*; wait for its end"),
        alone(tmp_path),
    ):
        pass
    with (
        alone(tmp_path),
        pytest.raises(ValueError, match="another run is reading"),
        alone(tmp_path, doing="reading"),
    ):
        pass
    with alone(tmp_path), alone(tmp_path, ".lock-1"):
        pass


def test_a_folder_that_cannot_be_made_or_written_is_told_by_the_place_that_forbids_it(
    tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/new/deep can't be made: .*/file is a file; choose"):
        check_writable(tmp_path / "file" / "new" / "deep")
    check_writable(tmp_path / "new" / "deep")
    (tmp_path / "link").symlink_to(tmp_path / "unmounted")
    with pytest.raises(ValueError, match=r"link/run can't be made: .*/link is a link to nothing;"):
        check_writable(tmp_path / "link" / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write to all
    said = f"new/deep can't be written: not allowed to write in {tmp_path}; change its permissions"
    for check in (check_writable, check_free):
        with pytest.raises(ValueError, match=said):
            check(tmp_path / "new" / "deep")


@pytest.mark.parametrize(
    ("name", "why"), [("n" * 256, "File name too long"), ("new", "No such file or directory")]
)
def test_a_folder_is_made_to_see_whether_it_can_be(tmp_path, monkeypatch, name, why):
    if name == "new":  # in /proc root may write, and no folder can be made

        def mkdir(*_, **__):
            raise FileNotFoundError(errno.ENOENT, why)

        monkeypatch.setattr(Path, "mkdir", mkdir)
    said = rf"deep can't be made: {tmp_path} takes no such folder \({why}\); choose another"
    with pytest.raises(ValueError, match=said):
        check_writable(tmp_path / name / "deep")
    assert list(tmp_path.iterdir()) == []


def test_a_relative_folder_is_looked_at_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(path) or True)
    check_writable(Path("new/deep"))
    assert asked == [tmp_path]
