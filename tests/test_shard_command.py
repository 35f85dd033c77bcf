"""`blip2ft shard`: what it writes, that it goes on after a kill, and what it refuses."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import blip2ft.sharding
from blip2ft.cli import main
from blip2ft.data.records import read_records
from blip2ft.data.stream import open_stream
from blip2ft.sharding import write_shards
from blip2ft.whole import alone


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with photos/captions.csv: 11 photos, two captions for the first."""
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    rows = [["image", "caption", "place"], ["0.png", "again", "x"]]
    for i in range(11):
        name = f"{i}.{('png', 'jpg', 'webp')[i % 3]}"
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/{name}")
        rows.append([name, f"photo {i}", "here"])
    with open("photos/captions.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path


@pytest.fixture
def shard(capsys):
    """Call the command and return status, standard output and standard error."""

    def call(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(["shard", *map(str, words), *(("--workers", "0") if "--out" in words else ())])
        return stopped.value.code, *capsys.readouterr()

    return call


def written(out: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(out).iterdir() if path.name[0] != "."}


def test_shards_hold_what_the_source_says(shard):
    status, out, _ = shard("photos/captions.csv", "--out", "out", "--size", "4")
    assert (status, out) == (0, "out: 3 shards, 11 samples\n")
    assert sorted(written("out")) == ["index.json", *(f"shard-{i:06d}.tar" for i in range(3))]
    assert {path.name for path in Path("out").iterdir()} - set(written("out")) == {".lock"}
    records, again = read_records("photos/captions.csv"), read_records("out")
    assert [(r.image_id, r.captions, r.fields) for r in again] == [
        (r.image_id, r.captions, r.fields) for r in records
    ]
    assert [r.image.read() for r in again] == [r.image.read_bytes() for r in records]
    stream = open_stream([{"source": "out"}])
    assert [stream.records[i].captions for i in range(11)] == [r.captions for r in records]
    with tarfile.open("out/shard-000002.tar") as tar:
        infos = tar.getmembers()
    assert [i.name for i in infos][:4] == [
        "000000008.webp", "000000008.json", "000000009.png", "000000009.json"
    ]  # fmt: skip
    assert {(i.mtime, i.uid, i.gid, i.uname, i.mode) for i in infos} == {(0, 0, 0, "", 0o644)}
    index = json.loads(Path("out/index.json").read_text())
    assert [entry["nsamples"] for entry in index["shardlist"]] == [4, 4, 3]
    assert index["blip2ft"]["size"] == 4


def test_shards_can_be_sharded_anew(shard):
    shard("photos/captions.csv", "--out", "out", "--size", "4")
    assert shard("out", "--out", "again", "--size", "11")[0] == 0
    assert [r.captions for r in read_records("again")] == [r.captions for r in read_records("out")]


def test_workers_write_the_same_bytes():
    write_shards("photos/captions.csv", "one", size=2, shuffle=3)
    write_shards("photos/captions.csv", "two", size=2, shuffle=3, workers=2)
    shards = written("one")
    assert shards == written("two")
    ids = [r.image_id for r in read_records("one")]
    assert sorted(ids) == sorted(r.image_id for r in read_records("photos/captions.csv"))
    assert ids != sorted(ids, key=lambda name: int(name.partition(".")[0]))
    write_shards("photos/captions.csv", "three", size=2, shuffle=4)
    assert written("three").keys() == shards.keys()
    assert written("three")["shard-000000.tar"] != shards["shard-000000.tar"]


def test_images_are_shrunk_and_small_ones_left_alone(shard):
    Image.new("RGB", (12, 9), "red").save("photos/1.jpg")
    small = Path("photos/1.jpg").read_bytes()
    shard("photos/captions.csv", "--out", "out", "--image-size", "10")
    first, second = read_records("out")[:2]
    assert second.image.read() == small
    with Image.open(Path("photos/0.png")) as before:
        assert before.size == (30, 20)
    assert blip2ft.data.images.open_image(first.image).size == (15, 10)


def test_the_split_names_the_shards(shard):
    Path("x.csv").write_text("image,caption,split\nphotos/0.png,a,train\nphotos/1.jpg,b,test\n")
    shard("x.csv", "--out", "out", "--split", "train")
    assert "train-000000.tar" in written("out")
    assert len(read_records("out", split="train")) == 1


def test_broken_images_are_left_out_and_listed(shard):
    Path("photos/3.png").write_bytes(b"no image")
    for name in ("8.webp", "9.png", "10.jpg"):  # a whole shard
        Path("photos", name).write_bytes(b"")
    status, out, err = shard("photos/captions.csv", "--out", "out", "--size", "4")
    assert (status, out) == (0, "out: 2 shards, 7 samples\n")
    assert "captions.csv:6: photos/3.png: not an image that can be read" in err
    assert "warning: 4 images couldn't be read and were left out; see out/broken.jsonl" in err
    lines = [json.loads(line) for line in Path("out/broken.jsonl").read_text().splitlines()]
    assert [line["origin"] for line in lines] == [f"captions.csv:{n}" for n in (6, 11, 12, 13)]
    _, again, told = shard("photos/captions.csv", "--out", "out", "--size", "4")
    assert (again, told.count("\n")) == (out, 5)


def test_captions_are_filtered_as_they_are_written(shard):
    captions = Path("photos/captions.csv")
    bad = captions.read_text().replace("photo 3", "a fucking photo").replace("photo 4", "x@y.org")
    captions.write_text(bad)
    filters = ("--harmful", "drop", "--personal", "mask", "--size", "4")
    told = (
        "filters: 1 caption dropped for harmful words, 1 caption masked for personal data; "
        "1 image left out; filtered.jsonl has each\n"
    )
    for _ in range(2):  # a finished folder is told of again
        assert shard(captions, "--out", "out", *filters)[:2] == (
            0,
            f"out: 3 shards, 10 samples\n{told}",
        )
    rows = [json.loads(line) for line in Path("out/filtered.jsonl").read_text().splitlines()]
    assert [(row["image_id"], row["done"]) for row in rows] == [
        ("3.png", "dropped"),
        ("4.jpg", "masked"),
    ]
    left = [caption for record in read_records("out") for caption in record.captions]
    assert "email address" in left
    assert "fucking" not in " ".join(left)
    status, _, error = shard(captions, "--out", "out", "--size", "4")
    assert status == 2
    assert "out was made with filters {'harmful': 'drop'" in error


def test_filters_that_cannot_be_are_refused_before_anything_is_read(shard):
    words = ("nothing.csv", "--out", "out", "--harmful", "drop", "--languages", "germn")
    status, _, error = shard(*words)
    assert status == 2
    assert "filters.languages has 'germn'. Did you mean 'german'?" in error


@pytest.mark.parametrize(
    "option",
    [("--allow", "outside"), ("--languages", "german"), ("--countries", "GB")],
    ids=lambda option: option[0][2:],
)
def test_options_that_take_several_leave_the_source_that_follows(shard, option):
    words = (*option, "--personal", "drop", "photos/captions.csv", "--out", "out")
    assert shard(*words)[:2] == (
        0,
        "out: 1 shard, 11 samples\nfilters: nothing found in 11 images\n",
    )


def test_options_that_take_several_may_be_given_twice(shard):
    captions = Path("photos/captions.csv")
    text = captions.read_text().replace("photo 3", "call (212) 555-0187")
    captions.write_text(text.replace("photo 4", "tel. 030 901820"))
    words = ("--personal", "drop", "--countries", "US", "--countries", "DE")
    assert "2 captions dropped for personal data" in shard(captions, "--out", "out", *words)[1]


def test_without_a_readable_image_nothing_is_written(shard):
    for path in Path("photos").glob("*.*g*"):
        path.write_bytes(b"")
    for path in Path("photos").glob("*.webp"):
        path.write_bytes(b"")
    status, _, err = shard("photos/captions.csv", "--out", "out")
    assert status == 2
    assert "none of the images can be read, so there is nothing to write; captions.csv:2:" in err


def test_a_run_that_is_killed_is_gone_on_with():
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    Image.fromarray(noise).save("photos/0.png", compress_level=1)
    row = '{"image": "0.png", "caption": "a photo", "image_id": %d}\n'
    Path("photos/many.jsonl").write_text("".join(row % i for i in range(150)))
    program = "from blip2ft.cli import main; main()"
    words = ["shard", "photos/many.jsonl", "--out", "killed", "--size", "3", "--workers", "1"]
    run = subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.DEVNULL)
    for _ in range(600):
        if len(list(Path("killed").glob("*.tar"))) >= 3:
            break
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert 3 <= len(list(Path("killed").glob("*.tar"))) < 50
    first = Path("killed/shard-000000.tar")
    seen = first.stat().st_mtime_ns
    write_shards("photos/many.jsonl", "killed", size=3, **READING)
    write_shards("photos/many.jsonl", "whole", size=3, **READING)
    assert written("killed") == written("whole")
    assert first.stat().st_mtime_ns == seen
    assert not list(Path("killed").glob(".partial-*"))


READING = {
    "format": "auto",
    "split": None,
    "image_root": None,
    "image_column": "image",
    "caption_column": None,
    "id_column": None,
    "revision": None,
}


def test_a_shard_that_was_lost_or_cut_is_written_again(monkeypatch):
    write_shards("photos/captions.csv", "whole", size=2)
    real, calls = blip2ft.sharding.write_shard, []

    def stopped_at_the_fourth(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(blip2ft.sharding, "write_shard", stopped_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        write_shards("photos/captions.csv", "out", size=2)
    Path("out/shard-000000.tar").unlink()
    Path("out/shard-000001.tar").write_bytes(b"cut")
    with Path("out/.done.jsonl").open("a") as file:
        file.write('{"number": 5, "na')
    write_shards("photos/captions.csv", "out", size=2)
    assert written("out") == written("whole")
    assert len(calls) == 4 + 5


def test_a_finished_folder_is_left_alone(shard):
    assert shard("photos/captions.csv", "--out", "out")[0] == 0
    times = {path: path.stat().st_mtime_ns for path in Path("out").glob("[!.]*")}
    assert shard("photos/captions.csv", "--out", "out")[:2] == (0, "out: 1 shard, 11 samples\n")
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--size", "5"], "out was made with size 1000, not 5"),
        (["--shuffle", "1"], "out was made with shuffle None, not 1"),
        (["--caption-column", "place"], "out was made with caption_column None, not place"),
    ],
)
def test_other_settings_are_refused(shard, words, told):
    shard("photos/captions.csv", "--out", "out")
    status, _, err = shard("photos/captions.csv", "--out", "out", *words)
    assert (status, err) == (
        2,
        f"error: {told}; choose another folder, or remove this one\n",
    )


@pytest.mark.parametrize("name", ["index.json", ".plan.json"], ids=["finished", "begun"])
def test_a_folder_from_before_a_setting_was_known_is_taken_as_it_is(shard, name):
    shard("photos/captions.csv", "--out", "out")
    index = json.loads(Path("out/index.json").read_text())
    del index["blip2ft"]["filters"]
    if name == "index.json":
        Path("out/index.json").write_text(json.dumps(index))
    else:
        Path("out/index.json").unlink()
        Path("out/.plan.json").write_text(json.dumps(index["blip2ft"]))
    for words in ((), ("--allow", "outside")):
        told = shard("photos/captions.csv", "--out", "out", *words)
        assert told[:2] == (0, "out: 1 shard, 11 samples\n"), told


def test_a_source_that_was_changed_is_refused(shard):
    shard("photos/captions.csv", "--out", "out")
    with open("photos/captions.csv", "a") as file:
        file.write("1.jpg,one more,here\n")
    _, _, err = shard("photos/captions.csv", "--out", "out")
    assert "out was made of other records: the source was changed since; choose" in err


def test_a_folder_with_something_else_is_refused(shard):
    Path("out").mkdir()
    Path("out/index.json").write_text("[]")
    _, _, err = shard("photos/captions.csv", "--out", "out")
    assert "out is in use and holds no shards made by blip2ft (index.json); choose another" in err
    Path("out/index.json").write_text("{")
    assert "in use" in shard("photos/captions.csv", "--out", "out")[2]
    _, _, err = shard("photos/captions.csv", "--out", "photos/captions.csv")
    assert "photos/captions.csv is a file; choose a folder" in err


def test_half_a_character_in_a_field_is_kept():
    with open("photos/table.jsonl", "w") as file:
        file.write('{"image": "0.png", "caption": "a cat", "page": "\\ud83d"}\n')
    write_shards("photos/table.jsonl", "out")
    assert read_records("out")[0].fields == {"page": "\ud83d"}


def test_numbers_below_1_are_refused():
    with pytest.raises(ValueError, match="image_size is 0: it must be at least 1"):
        write_shards("photos/captions.csv", "out", image_size=0)
    with pytest.raises(ValueError, match="size is -1: it must be at least 1"):
        write_shards("photos/captions.csv", "out", size=-1)


def test_two_runs_do_not_write_one_folder():
    write_shards("photos/captions.csv", "out")
    with (
        alone(Path("out")),
        pytest.raises(ValueError, match="another run is writing to out; wait for its end"),
    ):
        write_shards("photos/captions.csv", "out")


def test_an_error_leaves_no_partial_shard(monkeypatch):
    def fail(*_):
        raise MemoryError("too large")

    monkeypatch.setattr("blip2ft.data.shard_writer.image_file", fail)
    with pytest.raises(MemoryError, match="too large"):
        write_shards("photos/captions.csv", "out")
    assert not [*Path("out").glob("*.tar"), *Path("out").glob(".partial-*")]


# An index for tars that are there.


def test_an_index_is_written_for_tars_that_are_there(shard):
    shard("photos/captions.csv", "--out", "made", "--size", "4")
    Path("tars").mkdir()
    for path in Path("made").glob("*.tar"):
        shutil.copy(path, "tars")
    status, out, _ = shard("--index", "tars")
    assert (status, out) == (0, "tars/index.json: 3 shards, 11 samples\n")
    made, index = (json.loads(Path(f, "index.json").read_text()) for f in ("made", "tars"))
    assert index["shardlist"] == made["shardlist"]
    assert len(open_stream([{"source": "tars/shard-{000000..000001}.tar"}])) == 8


def test_an_index_that_is_there_is_mended_and_nothing_else_is_overwritten(shard):
    shard("photos/captions.csv", "--out", "made", "--size", "4")
    before = Path("made/index.json").read_text()
    _, out, _ = shard("--index", "made/shard-{000000..000001}.tar")
    assert out == "made/index.json: 3 shards, 11 samples\n"  # all that are in the folder
    assert Path("made/index.json").read_text() == before  # with how they were made
    for text in ('{"images": []}', "[]", "{"):
        Path("made/index.json").write_text(text)
        _, _, err = shard("--index", "made")
        assert "made/index.json isn't an index of shards and would be overwritten" in err
        assert Path("made/index.json").read_text() == text
    Path("made/index.json").rename("made/.plan.json")
    assert "made isn't finished; give blip2ft shard --out made again" in shard("--index", "made")[2]


def test_tars_in_several_folders_have_no_common_index(shard):
    for name in ("a", "b"):
        shard("photos/captions.csv", "--out", f"all/{name}")
    assert "all: tars in 2 folders, such as all/a/" in shard("--index", "all")[2]


def test_an_index_of_tars_in_several_folders_is_written_elsewhere(shard):
    for name in ("a", "b"):
        shard("photos/captions.csv", "--out", f"all/{name}")
    _, out, err = shard("--index", "all/{a,b}/*.tar", "--out", "both")
    assert out == "both/index.json: 2 shards, 22 samples\n", err
    assert len(open_stream([{"source": "both"}])) == 22


def test_one_of_index_and_out_is_needed(shard):
    assert "pass --out FOLDER to write shards, or --index for" in shard("x")[2]


def test_help_says_what_it_writes(shard):
    status, out, _ = shard("--help")
    assert status == 0
    assert out.startswith("usage: blip2ft shard")
    assert "one a core, up to 8" in out
