"""Every bad row of every format is told, and those that are good are read all the same."""

import json
import re
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import encoded, picture

from blip2ft.audit.contents import Contents
from blip2ft.audit.reading import Source, read_splits
from blip2ft.data.entries import UnknownColumn, UnknownSplit
from blip2ft.data.records import read_records


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> None:
    """The working directory, with images 0.png to 5.png."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")
    datasets.disable_progress_bars()
    for number in range(6):
        Path(f"{number}.png").write_bytes(encoded(picture(number), "PNG"))


def read(data: str, name: str | None = None, task: str = "caption", **reading) -> Contents:
    return read_splits({name: [Source(data, reading)]}, task)


def said(contents: Contents) -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    return {
        split: [
            ("" if item.picture is None else contents.pictures[item.picture].name, item.texts)
            for item in items
        ]
        for split, items in contents.splits.items()
    }


def faults(contents: Contents) -> list[tuple[str, str, str]]:
    return [(found.title, found.origin, found.detail) for found in contents.findings]


def test_every_bad_row_of_a_table_is_told_and_the_good_ones_are_read():
    Path("x.csv").write_text(
        "image,caption\n0.png,a cat\n1.png,\n2.png,a,b\n"
        "../x.png,a dog\n,a cow\n3.png,an ant\n4.png,\n"
    )
    contents = read("x.csv")
    assert said(contents)["data"] == [
        ("0.png", ("a cat",)),
        ("1.png", ()),
        ("", ("a dog",)),
        ("", ("a cow",)),
        ("3.png", ("an ant",)),
        ("4.png", ()),
    ]
    assert [(found.origin, found.title[:14], found.detail) for found in contents.findings] == [
        ("x.csv:5", "image path out", "../x.png"),
        ("x.csv:6", "no image named", ""),
        ("x.csv:4", "a row without ", "3"),
        ("x.csv:3", "empty caption", ""),
        ("x.csv:8", "empty caption", ""),
    ]
    assert all(found.kind == "record" for found in contents.findings)


def test_lines_of_json_are_told_one_by_one():
    lines = ['{"image": "0.png", "caption": ["a", "", 3]}', "{", "[1]", '{"image": "1.png"}']
    Path("x.jsonl").write_text("\n".join(lines))
    contents = read("x.jsonl")
    assert sorted(origin for _, origin, _ in faults(contents)) == [
        "x.jsonl:1", "x.jsonl:1", "x.jsonl:2", "x.jsonl:3", "x.jsonl:4",
    ]  # fmt: skip
    assert said(contents) == {"data": [("0.png", ("a",)), ("1.png", ())]}


@pytest.mark.parametrize(
    ("name", "data", "origin", "detail"),
    [
        ("x.csv", "image,caption\n0.png,a\n".encode("utf-16"), "x.csv:1", "not UTF-8 text"),
        ("x.csv", b"", "x.csv", "the file is empty"),
        ("x.csv", b"0.png,a\n1.png,b\n", "x.csv:1", "the first row has an image"),
        ("x.csv", b'image,"caption\n0.png,a\n', "x.csv:1", "broken quoting"),
        ("c.json", b'{"images": [{"id": 1, "file_n', "c.json:1", "invalid JSON at column"),
        ("x.csv", b"picture,caption\n0.png,a\n", "x.csv", "no column 'image' for the image"),
        ("x.csv", b"image,caption\n", "x.csv", "there are no records in it"),
    ],
    ids=["utf-16", "empty", "no header", "quote in the header", "cut json", "no column", "no rows"],
)
def test_a_file_that_cannot_be_read_is_one_finding(name, data, origin, detail):
    Path(name).write_bytes(data)
    (found,) = read(name).findings
    assert (found.kind, found.origin) == ("source", origin)
    assert found.detail.startswith(detail)


# a file, its content, the texts that are read all the same, and where which fault is told
DAMAGED = {
    "a quote at the end": (
        "x.csv",
        b'image,caption\n0.png,a\n1.png,"b\n2.png,c\n3.png,d\n',
        "acd",
        [("broken quoting", "x.csv:3", "read on from line 4")],
    ),
    "a quote before others": (
        "x.csv",
        b'image,caption\n0.png,a\n1.png,"b\n2.png,"c"\n3.png,d\n4.png,"e\n',
        "acd",
        [
            ("broken quoting", "x.csv:3", "read on from line 4"),
            ("broken quoting", "x.csv:6", "no row behind is read"),
        ],
    ),
    "a broken cell of several lines": (
        "x.csv",
        b'image,caption\n0.png,"two\nlines of\nthree"x\n1.png,b\n',
        "b",
        [("broken quoting", "x.csv:2", "read on from line 5")],
    ),
    "bytes of Latin-1": (
        "x.csv",
        b'image,caption\n0.png,a\n1.png,caf\xe9\n2.png,"two\ncaf\xe9s"\n3.png,d\n',
        "ad",
        [("not UTF-8 text", "x.csv:3", "byte 0xe9"), ("not UTF-8 text", "x.csv:5", "byte 0xe9")],
    ),
    "a line of Latin-1": (
        "x.jsonl",
        b'{"image": "0.png", "caption": "caf\xe9"}\n{"image": "1.png", "caption": "b"}\n',
        "b",
        [("not UTF-8 text", "x.jsonl:1", "byte 0xe9")],
    ),
    "lines cut off": (
        "x.jsonl",
        b'{"image": "0.png", "caption": "a"}\n{"image": "1.p',
        "a",
        [("invalid JSON", "x.jsonl:2", "column 11: Unterminated string starting at")],
    ),
    "a list cut off": (
        "x.json",
        b'[{"image": "0.png", "caption": "a"},\n {"image": "1.png", "caption": "b"},\n {"ima',
        "ab",
        [("invalid JSON", "x.json:3", "nothing behind is read")],
    ),
    "a list without a comma": (
        "x.json",
        b'[{"image": "0.png", "caption": "a"}\n {"image": "1.png", "caption": "b"}]',
        "a",
        [("invalid JSON", "x.json:2", "column 2: Expecting ',' delimiter; nothing behind is read")],
    ),
    "a list of which one is Latin-1": (
        "x.json",
        b'[{"image": "0.png", "caption": "\xe9"},\n{"image": "1.png", "caption": "b"}]\n',
        "b",
        [("not UTF-8 text", "x.json:1", "byte 0xe9")],
    ),
    "a list and more": (
        "x.json",
        b'[{"image": "0.png", "caption": "a"}] []',
        "a",
        [("invalid JSON", "x.json:1", "column 38: Extra data")],
    ),
    "a key twice": (
        "x.json",
        b'[{"image": "0.png", "image": "1.png"}, {"image": "1.png", "caption": "b"}]',
        "b",
        [("ambiguous JSON", "x.json: [0]", "the key 'image' is there twice")],
    ),
    "a list without end": (
        "x.json",
        b'[{"image": "0.png", "caption": "a"}, ' + b"[" * 100_000,
        "a",
        [("ambiguous JSON", "x.json: [1]", "too deep to read; nothing behind is read")],
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_of_a_damaged_file_the_fault_is_told_and_all_else_is_read(kind):
    name, data, texts, told = DAMAGED[kind]
    Path(name).write_bytes(data)
    contents = read(name)
    assert [text for _, said_of in said(contents)["data"] for text in said_of] == list(texts)
    for (title, origin, detail), wanted in zip(faults(contents), told, strict=True):
        assert (title, origin) == wanted[:2]
        assert wanted[2] in detail
    with pytest.raises(ValueError, match=re.escape(name)):
        read_records(name)


def test_a_damaged_line_is_told_beside_what_is_wrong_with_the_whole():
    Path("x.csv").write_bytes(b"image,tilte\n0.png,a\n1.png,\xe9\n")
    assert [(found.kind, found.origin) for found in read("x.csv").findings] == [
        ("source", "x.csv"),
        ("record", "x.csv:3"),
    ]


def test_a_named_column_that_is_not_there_is_an_error():
    Path("x.csv").write_text("image,caption\n0.png,a\n")
    for named in ({"caption_column": "title"}, {"id_column": "key"}, {"image_column": "file"}):
        (column,) = named.values()
        with pytest.raises(UnknownColumn, match=rf"no column '{column}' for the"):
            read("x.csv", **named)
    Path("q.csv").write_text("image,question,answer\n0.png,what?,a\n")
    with pytest.raises(UnknownColumn, match=r"no column ask; there are: question, answer"):
        read("q.csv", task="vqa", question_column="ask")
    (found,) = read("x.csv", task="vqa").findings
    assert "no column question" in found.detail
    # the name's own letters may be what is damaged
    Path("y.csv").write_bytes("image,größe\n0.png,a\n".encode("latin-1"))
    assert read("y.csv", caption_column="größe").findings[1].title == "not UTF-8 text"


def karpathy() -> None:
    splits = ["train", "train", "restval", "val", "test"]
    images = [
        {"filename": f"{n}.png", "split": split, "imgid": n, "sentences": [{"raw": f"text {n}"}]}
        for n, split in enumerate(splits)
    ]
    images[1]["sentences"] = [{"raw": " "}]
    Path("k.json").write_text(json.dumps({"images": images}))


def test_a_source_is_split_as_it_says_itself():
    karpathy()
    contents = read("k.json")
    assert {name: len(items) for name, items in contents.splits.items()} == {
        "train": 3,
        "validation": 1,
        "test": 1,
    }
    assert faults(contents) == [("empty caption", "k.json: images[1]", "caption 1")]
    assert list(read("k.json", "test").splits) == ["test"]
    with pytest.raises(UnknownSplit, match=r"no split 'vall'; the splits are"):
        read("k.json", split="vall")
    with pytest.raises(UnknownSplit, match=r"a split has to be named"):
        read("k.json", "other")


def test_rows_of_one_image_in_two_splits_stay_apart():
    Path("x.csv").write_text(
        "image,caption,split\n0.png,a,train\n0.png,b,val\n1.png,c,test\n2.png,d,\n"
    )
    contents = read("x.csv")
    assert said(contents) == {
        "train": [("0.png", ("a",))],
        "validation": [("0.png", ("b",))],
        "test": [("1.png", ("c",))],
        "data": [("2.png", ("d",))],
    }
    assert len(contents.pictures) == 3
    assert list(read("x.csv", "train").splits) == ["train"]


def test_one_damaged_tar_does_not_hide_the_others():
    Path("tars").mkdir()
    for number in range(3):
        with tarfile.open(f"tars/{number}.tar", "w") as tar:
            Path(f"{number}.txt").write_text("" if number == 2 else f"text {number}")
            for ending in ("png", "txt"):
                tar.add(f"{number}.{ending}")
    with open("tars/1.tar", "r+b") as file:
        file.truncate(1000)
    contents = read("tars")
    assert said(contents)["data"] == [("tars/0.tar: 0", ("text 0",)), ("tars/2.tar: 2", ())]
    assert [(found.kind, found.origin) for found in contents.findings] == [
        ("source", "tars/1.tar"),
        ("record", "tars/2.tar: 2"),
    ]


def test_rows_of_parquet_are_told_by_number():
    images = [encoded(picture(n), "PNG") for n in range(2)]
    table = {"image": [*images, None], "caption": ["a", "", "c"]}
    pq.write_table(pa.table(table), "x.parquet")
    contents = read("x.parquet")
    assert faults(contents) == [
        ("no image named", "x.parquet: row 2", ""),
        ("empty caption", "x.parquet: row 1", ""),
    ]
    assert contents.pictures[1].image.read() == images[1]


def test_images_alone_are_looked_at_without_texts():
    contents = read(".")
    assert len(contents.pictures) == 6
    (found,) = contents.findings
    assert (found.kind, found.severity, found.origin) == ("no-text", "note", ".")


def test_folders_of_an_image_folder_are_its_splits():
    for split in ("train", "val"):
        Path("set", split).mkdir(parents=True)
        Path("set", split, "metadata.csv").write_text("file_name,text\n9.png,a\n8.png,\n")
    contents = read("set")
    assert list(contents.splits) == ["train", "validation"]
    assert [(found.split, found.origin) for found in contents.findings] == [
        ("train", "set/train/metadata.csv:3"),
        ("validation", "set/val/metadata.csv:3"),
    ]


def test_questions_are_told_one_by_one():
    rows = [
        {"image": "0.png", "question": "is it?", "answers": ["yes", "no", "yes"]},
        {"image": "0.png", "question": " ", "answers": ["yes"]},
        {"image": "../0.png", "question": "what?", "answers": []},
    ]
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    contents = read("q.jsonl", task="vqa")
    assert [(item.picture, item.answers) for item in contents.splits["data"]] == [
        (0, ("yes", "no", "yes")),
        (0, ("yes",)),
        (None, ()),
    ]
    assert {(title[:14], origin) for title, origin, _ in faults(contents)} == {
        ("empty question", "q.jsonl:2"),
        ("image path out", "q.jsonl:3"),
        ("no answer", "q.jsonl:3"),
    }
    assert len(read("q.jsonl", task="vqa", require_answers=False).findings) == 2


def test_questions_without_their_annotations_are_one_finding():
    Path("v.json").write_text('{"questions": [], "data_subtype": "val2014"}')
    (found,) = read("v.json", "test", "vqa").findings
    assert (found.kind, found.split) == ("source", "test")
    assert "the answers are in another file" in found.detail
    (found,) = read("v.json", task="vqa", require_answers=False).findings
    assert found.detail == "there are no questions"


def test_what_is_not_there_is_an_error():
    with pytest.raises(ValueError, match=r"nope\.csv: no such file or folder"):
        read("nope.csv")
    with pytest.raises(ValueError, match=r"nope\.json: no such file or folder"):
        read("nope.json", task="vqa")
    Path("x.csv").write_text("image,caption\n0.png,a\n")
    with pytest.raises(ValueError, match=r"image_root 'photos' isn't a folder\. Set it to"):
        read("x.csv", image_root="photos")
    with pytest.raises(ValueError, match=r"allow has 'all': allowed are outside and remote"):
        read("x.csv", allow=["all"])
