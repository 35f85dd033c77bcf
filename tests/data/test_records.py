"""Every format gives the same records, and every mistake in one is named with its place."""

import json
import os
import pickle
import re
import shutil
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from blip2ft.data.images import open_image
from blip2ft.data.records import FORMATS, Record, Row, read_records


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images a.png to d.png and sub/e.png; the working directory of the test."""
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(("a", "b", "c", "d", "sub/e")):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")
    datasets.disable_progress_bars()
    return tmp_path


def write(name: str, content: Any) -> Path:
    """Write text, bytes, JSON (.json) or JSON lines (a list)."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8", newline="")
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def said(records: list[Record]) -> dict[str | int, tuple[str, ...]]:
    return {record.image_id: record.captions for record in records}


def picture(name: str) -> bytes:
    return Path(name).read_bytes()


# One table, many spellings.


def test_csv_rows_of_one_image_become_one_record():
    write("x.csv", "image,caption,thing\na.png,a cat,cat\nb.png,a dog,dog\n./a.png,my cat,cats\n")
    first, second = read_records("x.csv")
    assert first == Record(Path("a.png"), "a.png", ("a cat", "my cat"), "x.csv:2", {"thing": "cat"})
    assert (second.image_id, second.captions, second.origin) == ("b.png", ("a dog",), "x.csv:3")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", 'image,caption\na.png,"one, two\nthree ""four"""\nb.png, é \n'),
        ("x.csv", 'image,caption\r\na.png,"one, two\nthree ""four"""\r\nb.png,é\r\n'),
        ("x.csv", '\ufeffimage,caption\na.png,"one, two\nthree ""four"""\n\nb.png,é'),
        ("x.csv", 'image;caption\na.png;"one, two\nthree ""four"""\nb.png;é\n'),
        ("x.csv", ' "image"\tcaption\n'.strip() + '\na.png\t"one, two\nthree ""four"""\nb.png\té'),
        ("x.tsv", 'image\tcaption\na.png\t"one, two\nthree ""four"""\nb.png\té\n'),
        ("x.TSV", 'caption\timage\n"one, two\nthree ""four"""\ta.png\né\tb.png\n'),
    ],
)
def test_every_spelling_of_a_csv_reads_alike(name, text):
    write(name, text)
    records = read_records(name)
    assert said(records) == {"a.png": ('one, two\nthree "four"',), "b.png": ("é",)}
    assert records[0].origin == f"{name}:2"


def test_lines_of_a_csv_are_those_of_the_file():
    write("x.csv", 'image,caption\na.png,"one\ntwo"\n\nb.png,three\n')
    assert [record.origin for record in read_records("x.csv")] == ["x.csv:2", "x.csv:5"]


def test_jsonl_takes_one_caption_or_several():
    rows = [
        {"image": "a.png", "caption": "a cat", "boxes": [[0, 1]]},
        {"image": "b.png", "caption": ["a dog", "my\u2028dog"]},
        {"image": "a.png", "caption": ["a kitten"]},
    ]
    write("x.jsonl", "\n" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    records = read_records("x.jsonl")
    assert said(records) == {"a.png": ("a cat", "a kitten"), "b.png": ("a dog", "my\u2028dog")}
    assert records[0].fields == {"boxes": [[0, 1]]}
    assert [record.origin for record in records] == ["x.jsonl:2", "x.jsonl:4"]


def test_a_json_list_reads_like_json_lines():
    write("x.json", [{"image": "a.png", "caption": "a cat", "image_id": "coco_1"}])
    (record,) = read_records("x.json")
    assert (record.image_id, record.origin) == ("coco_1", "x.json: [0]")


@pytest.mark.parametrize("column", ["caption", "captions", "text"])
def test_the_caption_column_is_found(column):
    write("x.jsonl", [{"image": "a.png", column: "a cat"}])
    assert said(read_records("x.jsonl")) == {"a.png": ("a cat",)}


def test_columns_can_be_named():
    write("x.csv", "file,said,key,caption\na.png,a cat,k1,no\nb.png,a dog,k2,no\n")
    records = read_records("x.csv", image_column="file", caption_column="said", id_column="key")
    assert said(records) == {"k1": ("a cat",), "k2": ("a dog",)}
    assert records[0].fields == {"caption": "no"}


def test_rows_of_one_id_become_one_record():
    write("x.csv", "image,caption,image_id\na.png,one,7\nb.png,two,8\na.png,three,7\n")
    assert said(read_records("x.csv")) == {"7": ("one", "three"), "8": ("two",)}


def test_a_split_is_chosen_by_its_column():
    write("x.csv", "image,caption,split\na.png,one,train\na.png,two,val\nb.png,,val\n")
    assert said(read_records("x.csv", split="train")) == {"a.png": ("one",)}
    assert len(read_records("x.csv", require_captions=False)) == 2


def test_captions_may_be_absent_where_they_are_not_required():
    write("x.csv", "image,caption\na.png,\nb.png,a dog\n")
    assert said(read_records("x.csv", require_captions=False)) == {"a.png": (), "b.png": ("a dog",)}
    write("y.jsonl", [{"image": "a.png"}])
    assert said(read_records("y.jsonl", require_captions=False)) == {"a.png": ()}


def test_limit_keeps_the_first_records():
    write("x.csv", "image,caption\na.png,one\nb.png,two\na.png,three\n")
    assert said(read_records("x.csv", limit=1)) == {"a.png": ("one", "three")}
    with pytest.raises(ValueError, match=r"limit is 0\. Set it to 1 or more"):
        read_records("x.csv", limit=0)


def test_records_pickle_and_never_change():
    write("x.csv", "image,caption\na.png,one\n")
    records = read_records("x.csv")
    assert pickle.loads(pickle.dumps(records)) == records
    with pytest.raises(AttributeError, match="cannot assign"):
        records[0].image_id = "b"  # type: ignore[misc]


# Folders, COCO, Karpathy.


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "file_name,text\na.png,one\nsub/e.png,two\n"),
        (
            "metadata.jsonl",
            [{"file_name": "a.png", "text": "one"}, {"file_name": "sub/e.png", "text": ["two"]}],
        ),
    ],
)
def test_an_image_folder_has_a_metadata_file(folder, name, content):
    write(name, content)
    records = read_records(folder)
    assert said(records) == {"a.png": ("one",), "sub/e.png": ("two",)}
    assert records[1].image == folder / "sub/e.png"


def test_the_splits_of_an_image_folder_are_folders(folder):
    write("set/train/metadata.csv", "file_name,text\na.png,one\n")
    (folder / "a.png").rename(folder / "set/train/a.png")
    (record,) = read_records("set", split="train")
    assert record.image == Path("set/train/a.png")
    with pytest.raises(ValueError, match=r"no split 'trian'; the splits are: train\..*'train'\?"):
        read_records("set", split="trian")
    with pytest.raises(ValueError, match=r"no metadata\.csv or metadata\.jsonl.*such as:\nfile_na"):
        read_records("set")


def test_a_folder_of_images_alone_needs_no_captions(folder):
    write("notes.txt", "not an image")
    records = read_records(folder, require_captions=False)
    assert [record.image_id for record in records] == [
        "a.png", "b.png", "c.png", "d.png", "sub/e.png",
    ]  # fmt: skip
    assert all(record.captions == () for record in records)
    with pytest.raises(ValueError, match=r"no metadata\.csv or metadata\.jsonl with the captions"):
        read_records(folder)


def coco() -> dict[str, Any]:
    return {
        "images": [
            {"id": 5, "file_name": "a.png", "domain": "in"},
            {"id": 9, "file_name": "sub/e.png"},
        ],
        "annotations": [
            {"id": 1, "image_id": 9, "caption": "one"},
            {"id": 2, "image_id": 5, "caption": "two "},
            {"id": 3, "image_id": 9, "caption": "three"},
        ],
    }


def test_coco_joins_images_and_annotations(folder):
    write("notes/captions.json", coco())
    records = read_records("notes/captions.json", image_root=folder)
    assert said(records) == {5: ("two",), 9: ("one", "three")}
    assert records[0].fields == {"domain": "in"}
    assert records[1].image == folder / "sub/e.png"
    assert records[1].origin == "captions.json: images[1]"


def test_coco_images_without_captions_are_read_where_none_are_required():
    content = coco()
    del content["annotations"]
    write("x.json", content)
    assert said(read_records("x.json", require_captions=False)) == {5: (), 9: ()}
    with pytest.raises(ValueError, match=r"an image without a caption \(2\): x.json: images\[0\]"):
        read_records("x.json")


def karpathy() -> dict[str, Any]:
    def image(name: str, split: str, number: int, **keys: Any) -> dict[str, Any]:
        sentences = [{"raw": f"{name} {i}", "tokens": []} for i in range(2)]
        return {"filename": name, "split": split, "imgid": number, "sentences": sentences, **keys}

    return {
        "dataset": "coco",
        "images": [
            image("a.png", "train", 0, cocoid=77),
            image("e.png", "restval", 1, cocoid=78, filepath="sub"),
            image("b.png", "val", 2),
            image("c.png", "test", 3),
        ],
    }


def test_karpathy_train_includes_restval(folder):
    write("k.json", karpathy())
    records = read_records(folder / "k.json", split="train")
    assert said(records) == {77: ("a.png 0", "a.png 1"), 78: ("e.png 0", "e.png 1")}
    assert records[1].image == folder / "sub/e.png"
    assert records[1].fields == {"split": "restval", "imgid": 1}
    assert said(read_records("k.json", split="restval")) == {78: ("e.png 0", "e.png 1")}
    assert said(read_records("k.json", split="test")) == {3: ("c.png 0", "c.png 1")}


def test_karpathy_needs_a_split_that_is_there():
    write("k.json", karpathy())
    splits = r"the splits are: restval, test, train, val\."
    with pytest.raises(ValueError, match=rf"k\.json: a split has to be named; {splits}"):
        read_records("k.json")
    with pytest.raises(ValueError, match=rf"no split 'tset'; {splits} Did you mean 'test'\?"):
        read_records("k.json", split="tset")


# Parquet and datasets.


def save_parquet(name: str, rows: list[dict[str, Any]], **types: pa.DataType) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.Table.from_pylist(rows).schema if rows else pa.schema([("image", pa.binary())])
    for column, kind in types.items():
        schema = schema.set(schema.get_field_index(column), pa.field(column, kind))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.mark.parametrize(
    ("kind", "inside"),
    [(STRUCT, True), (pa.binary(), True), (pa.large_binary(), True), (pa.string(), False),
     (pa.large_string(), False), (pa.struct({"path": pa.string()}), False),
     (pa.struct({"bytes": pa.binary()}), True)],
)  # fmt: skip
def test_parquet_holds_images_in_many_ways(folder, kind, inside):
    def cell(name: str) -> Any:
        if pa.types.is_struct(kind):
            parts = {"bytes": picture(name), "path": name}
            return {child.name: parts[child.name] for child in kind}
        return picture(name) if inside else name

    rows = [
        {"image": cell("b.png"), "caption": "one", "thing": 3},
        {"image": cell("sub/e.png"), "caption": "two", "thing": 4},
    ]
    save_parquet("x.parquet", rows, image=kind)
    records = read_records("x.parquet")
    assert [record.captions for record in records] == [("one",), ("two",)]
    assert [record.fields for record in records] == [{"thing": 3}, {"thing": 4}]
    assert [record.origin for record in records] == ["x.parquet: row 0", "x.parquet: row 1"]
    assert [record.image_id for record in records] == ([0, 1] if inside else ["b.png", "sub/e.png"])
    assert all(isinstance(record.image, Row if inside else Path) for record in records)
    assert [open_image(record.image).getpixel((0, 0)) for record in records] == [
        (1, 0, 0), (4, 0, 0),
    ]  # fmt: skip


def test_rows_pickle_without_their_table():
    save_parquet("x.parquet", [{"image": picture("a.png") * 500, "caption": "one"}] * 30)
    records = read_records("x.parquet")
    pickled = pickle.dumps(records)
    assert len(pickled) < 30_000
    image = pickle.loads(pickled)[7].image
    assert image.read() == picture("a.png") * 500
    assert "dataset" not in repr(image)


def test_lists_of_captions_and_shared_ids_in_parquet():
    rows = [
        {"image": picture("a.png"), "captions": ["one", "two"], "image_id": 4},
        {"image": picture("b.png"), "captions": ["three"], "image_id": 5},
        {"image": picture("a.png"), "captions": ["four"], "image_id": 4},
    ]
    save_parquet("x.parquet", rows)
    assert said(read_records("x.parquet")) == {4: ("one", "two", "four"), 5: ("three",)}


def test_other_binary_columns_stay_on_disk():
    rows = [{"image": picture("a.png"), "caption": "one", "mask": b"x", "other": {"bytes": b"y"}}]
    save_parquet("x.parquet", rows)
    assert read_records("x.parquet")[0].fields == {}


def test_parquet_names_are_no_patterns():
    save_parquet("x[1].parquet", [{"image": picture("a.png"), "caption": "one"}])
    assert len(read_records("x[1].parquet")) == 1


def test_a_folder_of_parquet_files_has_splits_by_name(folder):
    for number, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test")):
        rows = [{"image": picture("a.png"), "caption": f"{number} {row}"} for row in range(3)]
        save_parquet(f"set/{name}.parquet", rows)
    records = read_records("set", split="train")
    assert [record.captions[0] for record in records] == ["0 0", "0 1", "0 2", "1 0", "1 1", "1 2"]
    assert records[4].origin == "train-00001-of-00002.parquet: row 1"
    assert len(read_records("set", split="test")) == 3
    assert len(read_records("set/train-*.parquet")) == 6
    with pytest.raises(ValueError, match=r"a split has to be named; the splits are: test, train\."):
        read_records("set")
    with pytest.raises(ValueError, match=r"no split 'tarin'.*Did you mean 'train'\?"):
        read_records("set", split="tarin")


def test_parquet_files_in_folders_of_splits_keep_their_own_roots(folder):
    for split in ("train", "val"):
        save_parquet(f"set/{split}/part-0.parquet", [{"image": "x.png", "caption": split}])
        Image.new("RGB", (2, 2)).save(folder / f"set/{split}/x.png")
    (record,) = read_records("set", split="val")
    assert (record.captions, record.image) == (("val",), Path("set/val/x.png"))


def test_a_parquet_file_that_changes_is_read_anew():
    save_parquet("x.parquet", [{"image": picture("a.png"), "caption": "one"}])
    assert read_records("x.parquet")[0].captions == ("one",)
    save_parquet("x.parquet", [{"image": picture("a.png"), "caption": "two"}])
    os.utime("x.parquet", (1, 1))
    assert read_records("x.parquet")[0].captions == ("two",)


def test_a_saved_dataset_is_read_by_its_folder():
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "n": datasets.Value("int64")}
    )
    made = {
        split: datasets.Dataset.from_list(
            [{"image": {"bytes": picture("b.png"), "path": None}, "text": split, "n": 1}],
            features=features,
        )
        for split in ("train", "validation")
    }
    datasets.DatasetDict(made).save_to_disk("saved")
    made["train"].save_to_disk("alone")
    (record,) = read_records("saved", split="validation")
    assert (record.captions, record.fields) == (("validation",), {"n": 1})
    assert record.origin == "saved[validation]: row 0"
    assert open_image(record.image).getpixel((0, 0)) == (1, 0, 0)
    assert read_records("alone")[0].captions == ("train",)
    with pytest.raises(ValueError, match="a split has to be named; the splits are: train, valid"):
        read_records("saved")
    with pytest.raises(ValueError, match=r"no split 'valid'.*Did you mean 'validation'\?"):
        read_records("saved", split="valid")


def test_a_hub_id_is_loaded_with_config_and_revision(monkeypatch):
    asked = []

    def load_dataset(*arguments: Any, **options: Any) -> datasets.DatasetDict:
        asked.append((arguments, options))
        made = datasets.Dataset.from_list([{"image": str(Path("a.png").resolve()), "text": "one"}])
        return datasets.DatasetDict(train=made)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", os.getcwd())  # where its files are
    (record,) = read_records("owner/pictures:small", revision="v1")
    assert asked == [(("owner/pictures", "small"), {"revision": "v1"})]
    assert record.image == Path("a.png").resolve()
    assert record.origin == "owner/pictures:small[train]: row 0"


def test_a_dataset_that_cannot_be_loaded_says_why(monkeypatch):
    def load_dataset(*arguments: Any, **options: Any) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'owner/pictures' doesn't exist")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"can't be loaded .*doesn't exist.*Give a hub id"):
        read_records("owner/pictures")


# What is wrong, where, and what to do.


def test_an_unknown_format_names_the_nearest():
    with pytest.raises(ValueError, match=r"'jsnl'\. Did you mean 'jsonl'\? Formats are: auto, jso"):
        read_records("x.csv", format="jsnl")
    assert list(FORMATS) == [
        "jsonl", "csv", "folder", "coco", "karpathy", "parquet", "huggingface", "webdataset",
    ]  # fmt: skip


def test_a_source_that_is_not_there_names_the_nearest():
    write("captions.csv", "image,caption\na.png,one\n")
    hint = r"capions\.csv: no such file or folder\. Did you mean 'captions\.csv'\?"
    for format in ("auto", "csv"):
        with pytest.raises(ValueError, match=hint):
            read_records("capions.csv", format=format)
    with pytest.raises(ValueError, match=r"gone/x\.csv: no such file or folder\. Check the path"):
        read_records("gone/x.csv")
    with pytest.raises(ValueError, match="sub/set: no such file or folder"):
        read_records("sub/set")  # not a hub id: there is a folder sub


@pytest.mark.parametrize("name", ["x.txt", "x.json", "empty"])
def test_an_unrecognised_source_lists_the_formats(name):
    if name == "empty":
        Path(name).mkdir()
    else:
        write(name, "{}")
    with pytest.raises(ValueError, match=r"Set format to one of|set format to one of: jsonl, csv"):
        read_records(name)


def test_a_folder_where_a_file_belongs_and_the_reverse(folder):
    with pytest.raises(ValueError, match=r"sub: a folder, not a file\. Give the file in it"):
        read_records("sub", format="csv")
    with pytest.raises(ValueError, match=r"a\.png: not a folder\. Give the folder"):
        read_records("a.png", format="folder")
    with pytest.raises(ValueError, match="image_root 'gone' isn't a folder"):
        read_records("x.csv", image_root="gone")


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ("imgae,caption", {}, r"no column 'image' for.*there are: imgae, caption\..*'imgae'\?"),
        ("file,caption", {}, r"no column 'image' for the image; there are: file, caption\. Set im"),
        ("image,catpion", {}, r"no column caption, captions or text.*Did you mean 'catpion'\?"),
        ("image,b", {"caption_column": "a"}, r"no column 'a' for the caption; there are: image, b"),
        (
            "image,caption,keys",
            {"id_column": "key"},
            r"no column 'key' for the image id.*Did you mean 'keys'\? Set id_column",
        ),
    ],
)
def test_a_missing_column_lists_those_there(header, options, message):
    write("x.csv", f"{header}\n" + ",".join("a" for _ in header.split(",")))
    with pytest.raises(ValueError, match=r"x\.csv: " + message):
        read_records("x.csv", **options)


def test_a_folder_without_file_names_says_so(folder):
    write("metadata.csv", "filename,text\na.png,one\n")
    with pytest.raises(ValueError, match=r"metadata\.csv: no column 'file_name'.*'filename'\?"):
        read_records(folder)
    write("metadata.jsonl", [])
    with pytest.raises(ValueError, match=r"both metadata\.csv and metadata\.jsonl are there"):
        read_records(folder)


@pytest.mark.parametrize("caption", ["", "  ", '"\n"'])
def test_an_empty_caption_is_named(caption):
    write("x.csv", f"image,caption\na.png,one\nb.png,{caption}\n")
    with pytest.raises(ValueError, match=r"- empty caption \(1\): x\.csv:3\. Write a caption"):
        read_records("x.csv")


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        (None, r"empty caption \(1\): x\.jsonl:2\."),
        ([], r"empty caption \(1\): x\.jsonl:2\."),
        (["one", " "], r"empty caption \(1\): x\.jsonl:2, caption 2\."),
        (7, r"the caption isn't text \(1\): x\.jsonl:2 \(int\)\. A caption is a string, or a list"),
        (["one", {}], r"the caption isn't text \(1\): x\.jsonl:2, caption 2 \(dict\)"),
    ],
)
def test_a_caption_has_to_be_text(caption, message):
    write("x.jsonl", [{"image": "a.png", "caption": "x"}, {"image": "b.png", "caption": caption}])
    with pytest.raises(ValueError, match=message):
        read_records("x.jsonl")


def test_one_error_names_five_places_of_each_kind_and_counts_all():
    rows = "".join(f"{number}.png,one\n" for number in range(8))
    write("x.csv", "image,caption\na.png, \nb.png,,\n" + rows)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_records("x.csv")
    lines = str(caught.value).split("\n")
    assert lines[0] == "x.csv: 10 problems"
    assert lines[1].startswith("- a row without exactly 2 cells, as the first row has (1): x.csv:3")
    assert lines[2].startswith("- empty caption (1): x.csv:2.")
    assert lines[3].startswith("- no such image file (8): ")
    assert "4.png (x.csv:8); and 3 more. Set image_root" in lines[3]
    assert lines[4] == "blip2ft check names them all"


def test_a_missing_image_names_its_line_and_what_is_there_instead(folder):
    write("x.csv", "image,caption\nA.png,one\na.jpg,two\n")
    Path("a.png").rename("a.PNG")
    message = re.escape(f"{folder / 'a.jpg'} (x.csv:3), but a.PNG is there")
    with pytest.raises(ValueError, match=message):
        read_records(folder / "x.csv")
    assert len(read_records("x.csv", check_images=False)) == 2


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("sub", "a folder where an image is named"),
        ("a.png/b.png", "no such image file"),
        ("gone/a.png", "no such image file"),
    ],
)
def test_only_a_file_is_an_image(name, what):
    write("x.csv", f"image,caption\n{name},one\n")
    with pytest.raises(ValueError, match=rf"{what} \(1\)"):
        read_records("x.csv")


def test_no_path_leaves_the_image_root(folder):
    write("notes/x.csv", "image,caption\n../a.png,one\n")
    with pytest.raises(ValueError, match=r"outside of notes, which.*\.\./a\.png \(x\.csv:2\)"):
        read_records("notes/x.csv")
    write("notes/y.csv", "image,caption\nnotes/../a.png,one\n")
    assert len(read_records("notes/y.csv", image_root=folder)) == 1
    write("notes/z.csv", f"image,caption\n{folder / 'a.png'},one\n")
    with pytest.raises(ValueError, match=r"outside of .*notes, .* or if you trust .* \[outside\]"):
        read_records("notes/z.csv")
    assert read_records("notes/z.csv", allow=["outside"])[0].image == folder / "a.png"
    assert read_records("notes/x.csv", allow=["outside"])[0].image == Path("notes/../a.png")
    assert read_records("notes/z.csv", image_root=folder)[0].image == folder / "a.png"
    with pytest.raises(ValueError, match=r"outside of sub, which.*Set image_root to a folder that"):
        read_records("notes/z.csv", image_root="sub")


def test_links_are_followed_but_no_steps_up_from_where_they_lead(folder):
    (folder / "big/photos").mkdir(parents=True)
    shutil.copy(folder / "a.png", "big/photos/a.png")
    shutil.copy(folder / "a.png", "big/b.png")
    write("notes/x.csv", "image,caption\nphotos/a.png,one\nsub/../photos/a.png,two\n")
    (folder / "notes/sub").mkdir()
    (folder / "notes/photos").symlink_to(folder / "big/photos")
    assert read_records("notes/x.csv")[0].image == Path("notes/photos/a.png")
    # inside by its letters, but the system steps up to big
    write("notes/y.csv", "image,caption\nphotos/../b.png,one\n")
    said = r"outside of notes, which.*photos/\.\./b\.png \(y\.csv:2\)"
    with pytest.raises(ValueError, match=said):
        read_records("notes/y.csv")
    assert read_records("notes/y.csv", allow=["outside"])[0].image.is_file()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("", "no image named"),
        (None, "no image named"),
        (3, "no image named"),
        ("http://x.org/a.png", "an address in place of an image file"),
        ("a.png\0", "a NUL character in an image path"),
    ],
)
def test_an_image_has_to_be_a_path(image, message):
    write("x.jsonl", [{"image": image, "caption": "one"}])
    with pytest.raises(ValueError, match=rf"1 problem\n- {message} \(1\): .*x\.jsonl:1"):
        read_records("x.jsonl")


@pytest.mark.parametrize("address", ["file:///etc/passwd", "local://a.png", "zip://a::b"])
def test_addresses_of_local_files_are_never_read(address):
    write("x.jsonl", [{"image": address, "caption": "one"}])
    said = r"an address of another kind \(1\): .* Addresses may begin with http://, https://, s3"
    with pytest.raises(ValueError, match=said):
        read_records("x.jsonl", allow=["remote", "outside"])
    with pytest.raises(
        ValueError, match=r"allow has 'all': allowed are outside and remote, or \[\]"
    ):
        read_records("x.jsonl", allow=["all"])


def test_a_null_image_in_parquet_is_named():
    rows: list[dict[str, Any]] = [
        {"image": picture("a.png"), "caption": "one"},
        {"image": None, "caption": "two"},
    ]
    save_parquet("x.parquet", rows)
    with pytest.raises(ValueError, match=r"no image named \(1\): x\.parquet: row 1\."):
        read_records("x.parquet")
    save_parquet("y.parquet", [{"image": {"bytes": None, "path": "gone.png"}, "caption": "one"}],
                 image=STRUCT)  # fmt: skip
    with pytest.raises(ValueError, match=r"no such image file \(1\): gone\.png \(y\.parquet: row"):
        read_records("y.parquet")


def test_one_id_for_two_images_is_refused():
    write("x.csv", "image,caption,image_id\na.png,one,7\nb.png,two,7\n")
    message = r"one image id for two images \(1\): x\.csv:3 \(id 7, also x\.csv:2\)"
    with pytest.raises(ValueError, match=message):
        read_records("x.csv")


@pytest.mark.parametrize("identity", [1.5, True, [1]])
def test_an_id_is_text_or_a_whole_number(identity):
    write("x.jsonl", [{"image": "a.png", "caption": "one", "image_id": identity}])
    with pytest.raises(ValueError, match=r"neither text nor a whole number \(1\): x\.jsonl:1"):
        read_records("x.jsonl")


def test_broken_csvs_name_the_line():
    write("x.csv", 'image,caption\na.png,one\nb.png,"two\nc.png,three\n')
    with pytest.raises(ValueError, match=r"x\.csv:3: broken quoting .*Close the double quote"):
        read_records("x.csv")
    write("x.csv", "image,caption,image\na.png,one,b.png\n")
    with pytest.raises(ValueError, match=r"x\.csv:1: column 'image' is there twice"):
        read_records("x.csv")
    write("x.csv", b"image,caption\na.png,one\nb.png,caf\xe9\n")
    with pytest.raises(ValueError, match=r"x\.csv:3: not UTF-8 text \(byte 0xe9\)\. Save the file"):
        read_records("x.csv")
    write("x.csv", b"\xef\xbb\xbfimage,caption\na.png,one\nb.png,a\nc.png,caf\xe9\n")
    with pytest.raises(ValueError, match=r"x\.csv:4: not UTF-8 text \(byte 0xe9\)"):
        read_records("x.csv")
    write("x.csv", "image,caption\na.png,one\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"x\.csv:1: not UTF-8 text but UTF-16"):
        read_records("x.csv")


def test_broken_json_names_the_line():
    write("x.jsonl", '{"image": "a.png", "caption": "one"}\n{"image": \n[1]\n')
    with pytest.raises(ValueError, match=r"invalid JSON \(1\): x\.jsonl:2 \(column 11: Expecting"):
        read_records("x.jsonl")
    with pytest.raises(ValueError, match=r"not a JSON object \(1\): x\.jsonl:3 \(list\)"):
        read_records("x.jsonl")
    write("x.json", '{"images": [\n{"id": 1,}\n]}')
    with pytest.raises(ValueError, match=r"x\.json:2: invalid JSON at column \d+: .*fetched again"):
        read_records("x.json")


def test_a_coco_file_that_contradicts_itself_is_refused():
    content = coco()
    content["images"] += [{"id": 5, "file_name": "b.png"}, {"file_name": "c.png"}, {"id": 6}, 3]
    content["annotations"] += [{"image_id": 404, "caption": "x"}, {"image_id": 5, "caption": ""}]
    write("x.json", content)
    for message in (
        r"the image id is there twice \(1\): x\.json: images\[2\] \(id 5, also x\.json: images\[0",
        r"no id \(2\): x\.json: images\[3\]; x\.json: images\[5\]\. Add it",
        r"no file_name \(2\): x\.json: images\[4\]",
        r"a caption of an image that isn't listed \(1\): x\.json: annotations\[3\] \(image_id 404",
        r"empty caption \(1\): x\.json: annotations\[4\]",
    ):
        with pytest.raises(ValueError, match=message):
            read_records("x.json", format="coco")


def test_coco_has_no_splits_and_needs_its_lists():
    write("x.json", coco())
    with pytest.raises(ValueError, match=r"COCO has a file for each split.* 'train' to choose"):
        read_records("x.json", split="train")
    write("x.json", {"images": 3})
    with pytest.raises(ValueError, match=r"no list 'images' in it \(keys images\)\. Give a capti"):
        read_records("x.json")
    write("x.json", [1])
    with pytest.raises(ValueError, match=r"no list 'images' in it \(no object\)"):
        read_records("x.json", format="karpathy", split="train")
    write("x.json", {"images": [], "annotations": 3})
    with pytest.raises(ValueError, match="'annotations' isn't a list"):
        read_records("x.json")


def test_a_karpathy_file_with_gaps_is_refused():
    content = karpathy()
    content["images"][1]["cocoid"] = 77
    content["images"][0]["sentences"][1] = {"raw": 5}
    content["images"].append({"split": "train", "imgid": 9, "sentences": []})
    content["images"].append({"split": "train", "filename": "c.png", "imgid": 10})
    write("x.json", content)
    for message in (
        r"the caption isn't text \(1\): x\.json: images\[0\], caption 2 \(int\)",
        r"the image id is there twice \(1\): x\.json: images\[1\] \(id 77",
        r"no filename \(1\): x\.json: images\[4\]",
        r"empty caption \(1\): x\.json: images\[5\]",
    ):
        with pytest.raises(ValueError, match=message):
            read_records("x.json", split="train")


def test_an_unknown_split_of_a_table_lists_those_there():
    write("x.csv", "image,caption,split\na.png,one,train\nb.png,two,test\n")
    with pytest.raises(ValueError, match=r"no split 'tran'; the splits are: test, train\. Did you"):
        read_records("x.csv", split="tran")
    write("x.csv", "image,caption\na.png,one\n")
    with pytest.raises(ValueError, match=r"no split 'train'; nothing in it says.* Leave split out"):
        read_records("x.csv", split="train")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", "image,caption\n"),
        ("x.jsonl", "\n"),
        ("x.json", "[]"),
        ("x.json", '{"images": [], "annotations": []}'),
    ],
)
def test_an_empty_source_is_refused(name, content):
    write(name, content)
    with pytest.raises(
        ValueError, match=r"no records in it \(read as .*Check that it is the right"
    ):
        read_records(name)


def test_empty_files_and_folders_are_refused():
    write("x.csv", "")
    with pytest.raises(ValueError, match=r"x\.csv: the file is empty\. Give it a first row"):
        read_records("x.csv")
    save_parquet("x.parquet", [])
    with pytest.raises(ValueError, match=r"no records in it \(read as parquet\)"):
        read_records("x.parquet")
    with pytest.raises(ValueError, match=r"none-\*\.parquet: no Parquet files there\. Give a file"):
        read_records("none-*.parquet")


def test_parquet_that_is_none_or_does_not_fit_is_refused():
    write("x.parquet", "not parquet")
    with pytest.raises(ValueError, match=r"x\.parquet: not a Parquet file that can be read"):
        read_records("x.parquet")
    save_parquet("set/a.parquet", [{"image": picture("a.png"), "caption": "one"}])
    save_parquet("set/b.parquet", [{"image": picture("a.png"), "text": "one"}])
    with pytest.raises(ValueError, match=r"b\.parquet: columns image, text, but a\.parquet has im"):
        read_records("set")
    save_parquet("set/b.parquet", [{"image": picture("a.png"), "caption": [["one"]]}])
    with pytest.raises(ValueError, match=r"set: can't be read as one table .*same column types"):
        read_records("set")
    save_parquet("y.parquet", [{"image": [1, 2], "caption": "one"}])
    with pytest.raises(ValueError, match=r"column 'image' holds .*, not images\. It has to hold"):
        read_records("y.parquet")


# Size.


def test_a_large_table_of_files_is_checked_in_seconds(folder):
    (folder / "many").mkdir()
    for number in range(5000):
        os.close(os.open(f"many/{number}.jpg", os.O_CREAT))
    rows = "".join(f"many/{n}.jpg,caption {k}\n" for n in range(5000) for k in range(5))
    write("x.csv", "image,caption\n" + rows)
    start = time.perf_counter()
    records = read_records("x.csv")
    assert time.perf_counter() - start < 5
    assert len(records) == 5000
    assert all(len(record.captions) == 5 for record in records)
    Path("many/17.jpg").unlink()
    with pytest.raises(ValueError, match=r"no such image file \(1\): .*17\.jpg \(x\.csv:87\)"):
        read_records("x.csv")
