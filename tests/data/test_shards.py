"""What shards a source has and how many samples, whoever says so, and what is refused."""

import json
import os
import threading
from pathlib import Path

import pytest
from shard_files import members, png, write_index, write_parquet, write_tar, write_tars

import blip2ft.data.shards
from blip2ft.data.entries import Request
from blip2ft.data.patterns import expand_braces
from blip2ft.data.row_groups import pieces
from blip2ft.data.shards import Shard, find_shards

CACHE = Path("cache")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find(source: str, *, format: str = "auto", split: str | None = None, **columns) -> list[Shard]:
    asked = {"image_column": "image", "caption_column": None} | columns
    request = Request(split=split, id_column=None, require_captions=True, revision=None, **asked)
    return find_shards(source, format=format, request=request, cache=CACHE)[1]


def counts(source: str, **options) -> dict[str, int]:
    return {shard.url: shard.samples for shard in find(source, **options)}


# Names.


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("x{08..10}.tar", ["x08.tar", "x09.tar", "x10.tar"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("x.tar", ["x.tar"]),
    ],
)
def test_braces_stand_for_several_names(pattern, names):
    assert expand_braces(pattern) == names


def test_a_range_that_runs_backwards_is_refused():
    with pytest.raises(ValueError, match=r"x\{3\.\.1\}: \{3\.\.1\} runs backwards"):
        expand_braces("x{3..1}")


@pytest.mark.parametrize("source", ["t", "t/", "t/*.tar", "t/{000..002}.tar", "./t/00[0-2].tar"])
def test_a_folder_a_glob_and_braces_name_the_same_shards(source):
    write_tars(Path("t"), [2, 3, 1])
    Path("t/.partial.tar").write_bytes(b"")
    assert counts(source) == {"t/000.tar": 2, "t/001.tar": 3, "t/002.tar": 1}


def test_a_split_is_told_from_the_names():
    for name in ("train-0", "train-1", "val-0"):
        write_tar(Path(f"t/{name}.tar"), members([1]))
    write_parquet(Path("p/train/0.parquet"), range(3))
    write_parquet(Path("p/test/0.parquet"), range(2))
    assert list(counts("t", split="train")) == ["t/train-0.tar", "t/train-1.tar"]
    assert counts("p", split="test") == {"p/test/0.parquet": 2}
    with pytest.raises(ValueError, match=r"t: a split has to be named; the splits are: train, val"):
        find("t")
    with pytest.raises(ValueError, match=r"no split 'trian'.*Did you mean 'train'"):
        find("t", split="trian")


def test_nothing_there_is_said():
    Path("empty").mkdir()
    with pytest.raises(ValueError, match=r"x\*\.tar: no tar files there\. Give a file, a folder"):
        find("x*.tar")
    with pytest.raises(ValueError, match=r"empty: not made of shards.*blip2ft shard empty --out"):
        find("empty")
    write_tars(Path("t"), [1])
    with pytest.raises(
        ValueError, match=r"no file t/001\.tar, t/002\.tar, .* and 4 more\. Correct"
    ):
        find("t/{000..009}.tar")


def test_other_formats_are_refused():
    Path("x.csv").write_text("image,caption\n")
    with pytest.raises(ValueError, match=r"x\.csv: not made of shards, .* blip2ft shard x\.csv"):
        find("x.csv")
    with pytest.raises(ValueError, match=r"format 'csv' has no shards\. Formats of a stream are"):
        find("x.csv", format="csv")


# Counts.


def test_an_index_counts_and_no_tar_is_opened(monkeypatch):
    write_tars(Path("t"), [2, 3])
    index = write_index(Path("t"), {"000.tar": 2, "001.tar": 3})
    monkeypatch.setattr(blip2ft.data.shards, "find_samples", None)
    expected = {"t/000.tar": 2, "t/001.tar": 3}
    assert counts("t") == counts(str(index)) == counts("t/*.tar") == expected
    assert counts("t/001.tar") == {"t/001.tar": 3}
    assert find("t")[0].size == os.path.getsize("t/000.tar")


def test_an_index_may_name_tars_elsewhere(folder):
    write_tars(Path("a"), [2])
    write_index(Path("a"), {"000.tar": 2}, url=str(folder / "a/000.tar"))
    Path("b").mkdir()
    Path("a/index.json").rename("b/index.json")
    assert counts("b") == {str(folder / "a/000.tar"): 2}


@pytest.mark.parametrize("source", ["t", "t/index.json"])
def test_an_index_of_several_splits_gives_the_one_asked_for(source):
    for name in ("train-0", "test-0"):
        write_tar(Path(f"t/{name}.tar"), members(range(len(name))))
    write_index(Path("t"), {"train-0.tar": 7, "test-0.tar": 6})
    assert [shard.url for shard in find(source, split="train")] == ["t/train-0.tar"]
    with pytest.raises(ValueError, match=r"a split has to be named; the splits are: train, test"):
        find(source)
    with pytest.raises(ValueError, match=r"no split 'val'; the splits are: train, test"):
        find(source, split="val")


def test_an_index_by_another_name_is_that_very_file():
    write_tars(Path("t"), [2, 3])
    write_index(Path("t"), {"000.tar": 2}).rename("t/train-index.json")
    write_index(Path("t"), {"000.tar": 2, "001.tar": 3})
    assert [shard.url for shard in find("t/train-index.json")] == ["t/000.tar"]
    assert len(find("t/index.json")) == 2


def test_what_img2dataset_wrote_counts(monkeypatch):
    write_tars(Path("t"), [2, 3])
    for name, count in (("000", 2), ("001", 3)):
        Path(f"t/{name}_stats.json").write_text(json.dumps({"count": 9, "successes": count}))
    monkeypatch.setattr(blip2ft.data.shards, "find_samples", None)
    assert counts("t") == {"t/000.tar": 2, "t/001.tar": 3}


def test_tars_without_any_of_it_are_counted_once(monkeypatch):
    write_tars(Path("t"), [2, 3, 4])
    assert counts("t") == {"t/000.tar": 2, "t/001.tar": 3, "t/002.tar": 4}
    looked, real = [], blip2ft.data.shards.find_samples
    monkeypatch.setattr(
        blip2ft.data.shards, "find_samples", lambda path: looked.append(path.name) or real(path)
    )
    assert sum(counts("t").values()) == 9
    assert looked == []
    write_tar(Path("t/001.tar"), members(range(7)))
    assert sum(counts("t").values()) == 13
    assert looked == ["001.tar"]


def test_while_one_counts_the_others_wait(monkeypatch):
    write_tars(Path("t"), [1] * 5)
    looked, real = [], blip2ft.data.shards.find_samples
    monkeypatch.setattr(
        blip2ft.data.shards, "find_samples", lambda path: looked.append(path) or real(path)
    )
    found: list[dict[str, int]] = []
    threads = [threading.Thread(target=lambda: found.append(counts("t"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(looked) == 5
    assert found == [found[0]] * 4


def test_many_tars_are_counted_by_several_processes(monkeypatch):
    monkeypatch.setattr(blip2ft.data.shards, "MANY", 3)
    write_tars(Path("t"), [1, 2, 3, 4])
    assert list(counts("t").values()) == [1, 2, 3, 4]


def test_shards_without_samples_are_left_out():
    write_tars(Path("t"), [2, 0, 1])
    assert counts("t") == {"t/000.tar": 2, "t/002.tar": 1}


def test_parquet_files_are_cut_at_row_groups():
    assert list(pieces([400, 400, 400, 100, 5])) == [(0, 3, 1200), (3, 5, 105)]
    assert list(pieces([0, 3000, 0, 7])) == [(0, 2, 3000), (2, 4, 7)]
    assert list(pieces([])) == list(pieces([0])) == []
    write_parquet(Path("x.parquet"), range(2500), group=600)
    size = os.path.getsize("x.parquet")
    assert find("x.parquet") == [
        Shard("x.parquet", 1200, size, 0, 2, 0),
        Shard("x.parquet", 1200, size, 2, 4, 1200),
        Shard("x.parquet", 100, size, 4, 5, 2400),
    ]


# What is wrong.


def test_a_shard_of_another_size_than_its_index_says_is_refused():
    write_tars(Path("t"), [2, 3])
    write_index(Path("t"), {"000.tar": 2, "001.tar": 3})
    size = os.path.getsize("t/001.tar")
    with Path("t/001.tar").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(
        ValueError, match=rf"t/001\.tar: 1000 bytes long, but its index says {size}: the shard is c"
    ):
        find("t")


@pytest.mark.parametrize("stats", [False, True])
def test_a_shard_that_is_cut_off_is_refused(stats):
    write_tars(Path("t"), [2, 3])
    if stats:
        for name in ("000", "001"):
            Path(f"t/{name}_stats.json").write_text('{"successes": 3}')
    with Path("t/001.tar").open("r+b") as file:
        file.truncate(1540)
    with pytest.raises(ValueError, match=r"t/001\.tar: cut off inside 000002\.txt: it would end"):
        find("t")


def test_an_index_that_names_a_missing_shard_is_refused():
    write_tars(Path("t"), [2, 3])
    write_index(Path("t"), {"000.tar": 2, "001.tar": 3})
    Path("t/001.tar").unlink()
    with pytest.raises(ValueError, match=r"no such shard: t/001\.tar\. Fetch what the index names"):
        find("t")


def test_a_shard_that_an_index_does_not_name_is_refused():
    write_tars(Path("t"), [2, 3])
    write_index(Path("t"), {"000.tar": 2})
    with pytest.raises(ValueError, match=r"t/001\.tar: not in t/index\.json \(1 such shards\)"):
        find("t/*.tar")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not an index of shards"),
        ("[]", "not an index of shards"),
        ('{"shardlist": [{"url": "a.tar"}]}', r"not an index of shards \(KeyError: 'nsamples'\)"),
        ('{"shardlist": []}', "names no shards"),
        ('{"shardlist": [{"url": "a.tar", "nsamples": -1}]}', "names no shards"),
    ],
)
def test_an_index_of_another_kind_is_refused(text, told):
    Path("t").mkdir()
    Path("t/index.json").write_text(text)
    with pytest.raises(ValueError, match=rf"t/index\.json: {told}"):
        find("t")
    with pytest.raises(ValueError, match=r"u/index\.json: no such index"):
        find("u/index.json")


def test_stats_without_a_number_are_refused():
    write_tars(Path("t"), [2])
    Path("t/000_stats.json").write_text('{"successes": null}')
    with pytest.raises(ValueError, match=r"t/000_stats\.json: no number of successes in it"):
        find("t")


def test_a_parquet_file_that_is_none_is_refused():
    write_parquet(Path("x.parquet"), range(9))
    with Path("x.parquet").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(ValueError, match=r"x\.parquet: not a Parquet file that can be read"):
        find("x.parquet")


def test_parquet_files_of_other_columns_are_refused():
    write_parquet(Path("p/a.parquet"), range(2))
    write_parquet(Path("p/b.parquet"), range(2), width=[1, 2])
    with pytest.raises(ValueError, match=r"p/b\.parquet: columns image, caption, width, but p/a"):
        find("p")


def test_columns_that_are_not_there_or_hold_no_images_are_refused():
    write_parquet(Path("x.parquet"), range(2), url=["a", "b"])
    with pytest.raises(ValueError, match=r"no column 'picture' for the image; there are: image"):
        find("x.parquet", image_column="picture")
    with pytest.raises(ValueError, match=r"no column 'said' for the caption"):
        find("x.parquet", caption_column="said")
    with pytest.raises(ValueError, match=r"'url' holds string, but shards have to hold the images"):
        find("x.parquet", image_column="url")


# Datasets laid out as on the hub.


def test_a_folder_like_a_dataset_of_the_hub_is_resolved(folder, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
    write_parquet(Path("hub/data/train-00000-of-00001.parquet"), range(5))
    write_parquet(Path("hub/data/test-00000-of-00001.parquet"), range(3))
    found = find("hub", format="huggingface", split="train")
    assert [(Path(s.url).name, s.samples) for s in found] == [("train-00000-of-00001.parquet", 5)]
    with pytest.raises(ValueError, match=r"hub: a split has to be named; the splits are: "):
        find("hub", format="huggingface")
    write_tar(Path("wds/0.tar"), members(range(4)))
    assert [shard.samples for shard in find("wds", format="huggingface")] == [4]


def test_a_dataset_of_another_kind_is_refused(folder, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
    Path("photos").mkdir()
    Path("photos/1.png").write_bytes(png(1))
    with pytest.raises(
        ValueError, match=r"photos: a dataset of the kind imagefolder.*shard photos"
    ):
        find("photos", format="huggingface")


def test_a_dataset_that_cannot_be_found_is_refused():
    with pytest.raises(
        ValueError, match=r"no/such: the dataset can't be found \(.*\)\. Give a hub"
    ):
        find("no/such", format="huggingface")
    with pytest.raises(ValueError, match=r"no/such:config: the dataset can't be found"):
        find("no/such:config")
