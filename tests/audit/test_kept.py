"""What was seen is kept as long as the file stays what it was, and nothing else is overwritten."""

import json
import os
import re
import tarfile
from dataclasses import asdict
from pathlib import Path

import pytest
from pictures import encoded, picture

from blip2ft.audit.audit import audit
from blip2ft.audit.contents import Picture
from blip2ft.audit.kept import LOOKS, Kept, keys_of
from blip2ft.audit.looks import Look
from blip2ft.audit.reading import Source
from blip2ft.data.tar import Part
from blip2ft.whole import alone

ABOUT = {"data": [["x.csv", {}]]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> None:
    """The working directory, with x.csv of four images, the last of which is cut short."""
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        Path(f"{number}.jpg").write_bytes(encoded(picture(number)))
    Path("3.jpg").write_bytes(Path("3.jpg").read_bytes()[:500])
    rows = "".join(f"{number}.jpg,text {number}\n" for number in range(4))
    Path("x.csv").write_text(f"image,caption\n{rows}")


def look_over(out: str | None = "out", data: str = "x.csv", **asked):
    return audit({None: [Source(data)]}, out=out, image_size=64, **asked)


def test_only_what_has_changed_is_looked_at_again():
    first = look_over()
    assert (first.kept, first.pictures) == (0, 4)
    again = look_over()
    assert (again.kept, again.findings) == (4, first.findings)
    Path("2.jpg").write_bytes(b"no image")
    os.utime("1.jpg", ns=(1, 1))
    changed = look_over()
    assert changed.kept == 2
    assert [found.image for found in changed.findings if found.kind == "unreadable"] == ["2.jpg"]
    assert len(Path("out", LOOKS).read_text().splitlines()) == 4


def test_what_was_kept_serves_other_settings():
    look_over()
    report = audit({None: [Source("x.csv")]}, out="out", image_size=500)
    assert report.kept == 4
    assert [found.kind for found in report.findings].count("tiny") == 3


def test_a_line_that_a_kill_cut_off_is_seen_again():
    first = look_over()
    text = Path("out", LOOKS).read_text()
    Path("out", LOOKS).write_text(text[: len(text) * 3 // 5])
    again = look_over()
    assert (again.kept, again.findings) == (2, first.findings)
    assert look_over().kept == 4


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[1]",
        b"\xff",
        b'{"key": "x", "look": {"size": 1}}',
        b'{"key": "x", "look": {"width": 8}}',
        json.dumps({"key": "x", "look": asdict(Look()) | {"width": "8"}}).encode(),
    ],
)
def test_damaged_lines_are_told_and_their_images_seen_again(line):
    first = look_over()
    lines = Path("out", LOOKS).read_bytes().split(b"\n")
    lines[1] = line
    Path("out", LOOKS).write_bytes(b"\n".join(lines))
    told: list[str] = []
    again = look_over(say=told.append)
    assert (again.kept, again.findings) == (3, first.findings)
    assert told[0] == "out/.looks-1.jsonl: 1 damaged line left out; their images are looked at anew"
    told.clear()
    assert look_over(say=told.append).kept == 4
    assert len(told) == 1  # how many were looked at before


@pytest.mark.parametrize("about", ["{", "[]", '{"data": 3}', '{"data": {"data": [3]}}'])
def test_a_damaged_report_is_named_and_left_alone(about):
    look_over()
    Path("out/audit.json").write_text(about)
    before = Path("out", LOOKS).read_text()
    said = r"out/audit\.json is damaged.*which data out is about.* or remove out if nothing in it"
    with pytest.raises(ValueError, match=said):
        look_over()
    assert (Path("out/audit.json").read_text(), Path("out", LOOKS).read_text()) == (about, before)


def test_a_folder_that_cannot_be_made_is_named():
    with pytest.raises(ValueError, match=r"x\.csv/out can't be made: .*x\.csv is a file"):
        look_over("x.csv/out")


@pytest.mark.parametrize("name", [LOOKS, "findings.jsonl"])
def test_a_file_that_cannot_be_written_is_named(name):
    look_over()
    Path("out", LOOKS).unlink()
    Path("out", name).unlink(missing_ok=True)
    Path("out", name).mkdir()
    with pytest.raises(
        ValueError, match=rf"out/{re.escape(name)} can't be written: Is a directory"
    ):
        look_over()


def test_without_a_folder_nothing_is_kept(tmp_path: Path):
    before = sorted(tmp_path.iterdir())
    assert look_over(out=None).kept == 0
    assert sorted(tmp_path.iterdir()) == before


def test_another_s_folder_is_never_overwritten():
    Path("mine").mkdir()
    Path("mine/report.html").write_text("mine")
    with pytest.raises(ValueError, match=r"mine is in use and holds no report.*\(report\.html\)"):
        look_over("mine")
    assert Path("mine/report.html").read_text() == "mine"
    with pytest.raises(ValueError, match=r"x\.csv is a file; choose a folder"):
        look_over("x.csv")
    Path("mine/audit.json").write_text("[]")
    with pytest.raises(ValueError, match=r"mine/audit\.json is damaged, or not of blip2ft check"):
        look_over("mine")


def test_the_report_about_other_data_is_not_overwritten():
    look_over()
    Path("y.csv").write_text(Path("x.csv").read_text())
    with pytest.raises(ValueError, match=r"out holds the report about other data \(.*x\.csv\)"):
        look_over(data="y.csv")
    with pytest.raises(ValueError, match=r"out holds the report about other data"):
        audit({None: [Source("x.csv", {"caption_column": "caption"})]}, out="out")


def test_two_runs_do_not_write_one_folder():
    look_over()
    with alone(Path("out")), pytest.raises(ValueError, match="another run is writing to out"):
        look_over()


def test_images_in_a_tar_are_kept_by_their_place():
    with tarfile.open("x.tar", "w") as tar:
        for number in range(2):
            tar.add(f"{number}.jpg")
    parts = [Picture(Part(Path("x.tar"), at, 5), f"{at}", "x.tar: x") for at in (512, 2048)]
    one, other = keys_of(parts)
    assert one != other
    os.utime("x.tar", ns=(1, 1))
    assert keys_of(parts)[0] != one
    Path("x.tar").unlink()
    assert keys_of([*parts, Picture(b"data", "x", "x")]) == ["", "", ""]


def test_what_cannot_be_read_again_is_not_kept(tmp_path: Path):
    Path("out").mkdir()
    kept = Kept(Path("out"), ABOUT)
    kept.add([("", look_over(None).findings)])  # type: ignore[list-item]
    assert not Path("out", LOOKS).exists()
