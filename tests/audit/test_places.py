"""Origins are found in the readers' messages, with the path of their file."""

from pathlib import Path

import pytest

from blip2ft.audit.findings import place_of
from blip2ft.audit.places import Places


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x.csv", "my data/x y.csv", "set/train/metadata.csv", "tars/0.tar", "tars/1.tar"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


@pytest.mark.parametrize(
    ("source", "message", "origin", "detail"),
    [
        ("x.csv", "x.csv:12", "x.csv:12", ""),
        ("x.csv", "x.csv:12 (5)", "x.csv:12", "5"),
        ("x.csv", "x.csv:12, caption 2", "x.csv:12", "caption 2"),
        ("x.csv", "../a.png (x.csv:3)", "x.csv:3", "../a.png"),
        ("x.csv", "x.csv:2 (column 3: Expecting value)", "x.csv:2", "column 3: Expecting value"),
        ("my data/x y.csv", "x y.csv:3 (id 7, also x y.csv:2)", "my data/x y.csv:3",
         "id 7, also x y.csv:2"),
        ("set", "metadata.csv:3", "set/train/metadata.csv:3", ""),
        ("tars", "1.tar: 000012 (no image)", "tars/1.tar: 000012", "no image"),
        ("tars/{0,1}.tar", "1.tar: 000012, caption 1", "tars/1.tar: 000012", "caption 1"),
        ("me/set", "me/set[train]: row 5", "me/set[train]: row 5", ""),
        ("x.csv", "nothing that is known", "x.csv", "nothing that is known"),
    ],
)  # fmt: skip
def test_an_origin_is_taken_out_of_a_message(source, message, origin, detail):
    assert Places(source).split(message) == (origin, detail)


@pytest.mark.parametrize(
    ("origin", "place"),
    [
        ("a/x.csv:12", {"file": "a/x.csv", "line": 12}),
        ("a/x.parquet: row 3", {"file": "a/x.parquet", "row": 3}),
        ("a/x.json: images[4]", {"file": "a/x.json", "place": "images[4]"}),
        ("a/b.jpg", {"file": "a/b.jpg"}),
    ],
)
def test_an_origin_becomes_file_and_place(origin, place):
    assert place_of(origin) == place


def test_of_two_files_with_one_name_the_folder_tells_which():
    for name in ("a", "b"):
        Path("all", name).mkdir(parents=True)
        Path("all", name, "0.tar").touch()
    assert Places("all").full("0.tar: x", Path("all/b")) == "all/b/0.tar: x"
