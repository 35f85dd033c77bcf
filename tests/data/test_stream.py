"""Streams: every sample once, whoever reads it and whenever it is stopped, and sources mixed."""

import io
import pickle
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from shard_files import AUGMENT, members, png, write_index, write_parquet, write_tar, write_tars

from blip2ft.data.broken import Apart, Broken, NeverEmpty
from blip2ft.data.image_texts import image_texts
from blip2ft.data.loading import load_batches
from blip2ft.data.order import Key
from blip2ft.data.records import Record, read_records
from blip2ft.data.stream import Stream, open_stream


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def stream_of(*sources: str | Path | dict, **options) -> Stream:
    given = [s if isinstance(s, dict) else {"source": str(s)} for s in sources]
    return open_stream(given, **options)


def targets(stream: Stream, first: int, last: int, *, rank=0, world_size=1, workers=0, size=3):
    """What one process reads, in micro-batches of texts."""
    samples = image_texts(stream, AUGMENT, 0)
    keys = stream.order(12, 5).micro_batches(
        first, last, rank=rank, world_size=world_size, size=size
    )
    collate = Apart(lambda items: {"texts": [item.text for item in items]})
    loader = load_batches(NeverEmpty(samples, stream.nearby), keys, collate, workers=workers)
    return [text for batch in loader for text in batch["texts"]]


# What is read.


def test_samples_of_tars_and_parquet_files_are_records():
    write_tars(Path("tars"), [3, 2])
    write_parquet(Path("p/a.parquet"), range(10, 16), group=4)
    stream = stream_of("tars", "p")
    assert len(stream) == len(stream.records) == 11
    assert stream.records[4] == Record(png(4), "000004", ("picture 4",), "tars/001.tar: 000004", {})
    assert stream.records[10] == Record(png(15), 5, ("picture 15",), "p/a.parquet: row 5", {})


def test_captions_of_all_spellings_are_found():
    files = {
        "1.jpg": png(1), "1.json": b'{"caption": " a cat ", "image_id": 7, "width": 4}',
        "2.jpeg": png(2), "2.json": b'{"captions": ["a dog", "", "my dog"], "caption": null}',
        "3.webp": png(3), "3.txt": "\ufeffé\n".encode(), "3.json": b'{"caption": null}',
        "4.png": png(4), "4.jpg": png(5), "4.json": b'{"text": "a bird"}', "4.txt": b"not this",
    }  # fmt: skip
    write_tar(Path("x.tar"), files)
    found = [stream_of("x.tar").records[i] for i in range(4)]
    assert [(r.image_id, r.captions) for r in found] == [
        (7, ("a cat",)), ("2", ("a dog", "my dog")), ("3", ("é",)), ("4", ("a bird",)),
    ]  # fmt: skip
    assert found[0].fields == {"width": 4}
    assert found[3].image == png(5)  # jpg before png


def test_members_and_columns_can_be_named():
    files = {
        "1.jpg": png(1),
        "1.small.png": png(2),
        "1.txt": b"no",
        "1.cap": b"a cat",
        "1.json": b'{"alt": "a dog"}',
    }
    write_tar(Path("x.tar"), files)
    extension = stream_of({"source": "x.tar", "image_column": "small.png", "caption_column": "cap"})
    assert (extension.records[0].image, extension.records[0].captions) == (png(2), ("a cat",))
    field = stream_of({"source": "x.tar", "caption_column": "alt"})
    assert field.records[0].captions == ("a dog",)
    write_parquet(Path("x.parquet"), range(2), said=["one", "two"], image_id=["a", "b"])
    records = stream_of({"source": "x.parquet", "caption_column": "said"}).records
    assert [(r.image_id, r.captions, r.fields) for r in (records[0], records[1])] == [
        ("a", ("one",), {"caption": "picture 0"}),
        ("b", ("two",), {"caption": "picture 1"}),
    ]  # fmt: skip


def test_the_same_tars_are_ordinary_records():
    write_tars(Path("tars"), [3, 2])
    stream, records = stream_of("tars"), read_records("tars")
    for number, record in enumerate(records):
        streamed = stream.records[number]
        assert record.image.read() == streamed.image
        assert (record.image_id, record.captions) == (streamed.image_id, streamed.captions)
    assert records[4].origin == "001.tar: 000004"


# Who reads it.


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_with_workers_read_every_sample_once_an_epoch(workers):
    write_tars(Path("tars"), [17, 9, 10])
    stream = stream_of("tars", shuffle=10)
    steps = len(stream) // 12
    seen = [
        text
        for rank in (0, 1)
        for text in targets(stream, 0, steps, rank=rank, world_size=2, workers=workers)
    ]
    assert sorted(seen) == sorted(f"picture {i}" for i in range(36))
    assert sorted(targets(stream, steps, 2 * steps)) == sorted(seen)
    assert targets(stream, steps, 2 * steps) != targets(stream, 0, steps)


@pytest.mark.parametrize("stop", range(7))
def test_a_run_stopped_at_any_step_goes_on_with_other_processes(stop):
    write_tars(Path("tars"), [17, 9, 10])
    write_parquet(Path("more.parquet"), range(100, 120), group=3)
    whole = targets(stream_of("tars", "more.parquet"), 0, 7)
    before = targets(stream_of("tars", "more.parquet"), 0, stop)
    after = [
        targets(stream_of("tars", "more.parquet"), stop, 7, rank=rank, world_size=3, size=1)
        for rank in range(3)
    ]
    again = [text for steps in zip(*after, strict=True) for text in steps]
    assert before + again == whole


def test_a_process_that_is_started_anew_reads_the_same():
    write_parquet(Path("x.parquet"), range(20), group=3)
    stream = stream_of("x.parquet")
    first = stream.records[7]
    assert pickle.loads(pickle.dumps(stream.records))[7] == first


def test_an_image_is_augmented_and_captioned_by_seed_epoch_and_sample_alone():
    captions = b'{"captions": ["one", "two", "three"]}'
    write_tar(Path("x.tar"), {"1.png": png(1), "1.json": captions, "2.png": png(2), "2.txt": b"a"})
    samples, again, other = (image_texts(stream_of("x.tar"), AUGMENT, seed) for seed in (0, 0, 1))
    assert len(samples) == 2
    drawn = [samples[Key(epoch, 0)].text for epoch in range(60)]
    assert set(drawn) == {"one", "two", "three"}
    assert drawn == [again[Key(epoch, 0)].text for epoch in range(60)]
    assert drawn != [other[Key(epoch, 0)].text for epoch in range(60)]
    assert samples[Key(3, 0)].pixels.equal(again[Key(3, 0)].pixels)
    assert samples[Key(0, 1)].record == 1


def test_only_the_shards_used_last_are_kept():
    write_tars(Path("tars"), [1] * 60)
    stream = stream_of("tars", shuffle=1)
    for number in range(60):
        assert isinstance(stream.records[number], Record)
    assert len(stream.records._opened) == stream.records.keep == 16


# Several sources.


def test_sources_without_weights_are_one():
    write_tars(Path("a"), [5, 5])
    write_tars(Path("b"), [14], first=100)
    stream = stream_of("a", "b")
    assert sorted(targets(stream, 0, 2)) == sorted(
        f"picture {i}" for i in (*range(10), *range(100, 114))
    )


def test_sources_are_mixed_by_weight_each_in_its_own_epochs():
    write_tars(Path("a"), [5, 5])
    write_parquet(Path("b.parquet"), range(100, 160), group=7)
    stream = stream_of({"source": "a", "weight": 3}, {"source": "b.parquet", "weight": 1})
    order = stream.order(40, 1)
    keys = [key for step in range(250) for key in order.batch(step)]
    assert Counter(key.sample < 10 for key in keys) == {True: 7500, False: 2500}
    own = [key for key in keys if key.sample < 10]
    assert Counter(own) == Counter(Key(e, i) for e in range(750) for i in range(10))
    assert order.steps(1) == 2  # as many samples as there are


def test_a_source_that_may_not_repeat_and_runs_dry_is_named():
    write_tars(Path("a"), [5, 5])
    write_tars(Path("b"), [14], first=100)
    once = {"source": "a", "weight": 1, "repeat": False}
    mixed = stream_of(once, {"source": "b", "weight": 3})
    mixed.check_supply(20, 0)
    with pytest.raises(
        ValueError, match=r"a has 10 samples, but this run takes \d+ of them, and re"
    ):
        mixed.check_supply(100, 0)
    pooled = stream_of("b", {"source": "a", "repeat": False})
    pooled.check_supply(24, 0)
    with pytest.raises(
        ValueError, match=r"the sources have 24 samples, but this run takes 25 of .* false for a;"
    ):
        pooled.check_supply(25, 0)
    stream_of("a", "b").check_supply(10**6, 0)


# What is refused.


def test_a_stream_without_sources_or_shuffle_is_refused():
    with pytest.raises(ValueError, match=r"got 0 sources and shuffle 10000"):
        open_stream([])
    with pytest.raises(ValueError, match=r"got 1 sources and shuffle 0"):
        stream_of("a", shuffle=0)


def test_weights_of_some_sources_only_are_refused():
    write_tars(Path("a"), [2])
    write_tars(Path("b"), [2], first=5)
    with pytest.raises(ValueError, match=r"b has no weight, but others have; give each source one"):
        stream_of({"source": "a", "weight": 1.0}, "b")
    with pytest.raises(ValueError, match=r"the weights of the sources are 0, 0"):
        stream_of({"source": "a", "weight": 0}, {"source": "b", "weight": 0})


def test_a_shard_in_two_sources_is_refused():
    write_tars(Path("a"), [2, 2])
    Path("link").symlink_to("a")
    with pytest.raises(
        ValueError, match=r"link/001\.tar is there twice, in a and in link/001\.tar"
    ):
        stream_of("a", "link/001.tar")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"1.txt": b"a", "2.txt": b"b"}, r"x\.tar: 1: no image jpg .* among its members \(txt\)"),
        ({"1.jpg": png(1)}, r"x\.tar: 1: no caption, or an empty one"),
        ({"1.jpg": png(1), "1.json": b'{"caption": 3}'}, r"x\.tar: 1: the caption isn't text"),
    ],
)
def test_a_source_without_images_or_texts_is_refused(files, told):
    write_tar(Path("x.tar"), files)
    count = len({name[0] for name in files})
    with pytest.raises(
        ValueError, match=rf"none of its first {count} samples can be used\. {told}.* Set image_col"
    ):
        stream_of("x.tar")


def test_shards_without_samples_are_refused():
    write_tar(Path("x.tar"), {"README": b"nothing"})
    with pytest.raises(ValueError, match=r"x\.tar: its shards hold no samples"):
        stream_of("x.tar")


# What is broken.


def test_broken_samples_say_what_is_wrong_with_them():
    photo = io.BytesIO()
    Image.radial_gradient("L").save(photo, "JPEG")
    files = members([0]) | {
        "1.txt": b"a cat",
        "2.jpg": png(2), "2.txt": b"\xff\xfe",
        "3.jpg": png(3), "3.json": b"{",
        "4.jpg": png(4), "4.json": b"[1]",
        "5.jpg": png(5), "5.txt": b" ",
        "6.jpg": b"not an image", "6.txt": b"a cat",
        "7.jpg": photo.getvalue()[:1000], "7.txt": b"a cat",
        "8.jpg": png(8), "8.txt": b"a cat <image>",
        "9.jpg": png(9), "9.json": b'{"captions": ["a dog", "a dog \\ud83d"]}',
    }  # fmt: skip
    write_tar(Path("x.tar"), files)
    samples = image_texts(stream_of("x.tar"), AUGMENT, 0)
    broken = [samples[Key(0, i)] for i in range(1, 10)]
    assert [item.origin for item in broken] == [f"x.tar: {i}" for i in range(1, 10)]
    for item, reason in zip(
        broken,
        (
            "no image jpg", "its .txt isn't UTF-8", "its .json can't be read", "holds list, not an",
            "no caption", "not an image that can be read (it starts", "the image is damaged or cut",
            "a text that holds <image>, which stands for an image", "the caption isn't Unicode",
        ),
        strict=True,
    ):  # fmt: skip
        assert item.reason.startswith(reason) or reason in item.reason


def test_rows_without_image_or_caption_are_broken():
    images = [{"bytes": png(0), "path": None}, {"bytes": None, "path": "1.png"}, None]
    images.append({"bytes": png(3), "path": None})
    captions = ["a cat", "a dog", "a bird", ""]
    write_parquet(Path("x.parquet"), range(4), image=images, caption=captions)
    records = stream_of("x.parquet").records
    assert isinstance(records[0], Record)
    assert [records[i] for i in (1, 2, 3)] == [
        Broken("x.parquet: row 1", "the row holds no image"),
        Broken("x.parquet: row 2", "the row holds no image"),
        Broken("x.parquet: row 3", "no caption, or an empty one"),
    ]


def test_a_damaged_shard_has_broken_samples_only():
    write_tars(Path("tars"), [4, 4])
    write_index(Path("tars"), {"000.tar": 4, "001.tar": 4})
    damaged = bytearray(Path("tars/001.tar").read_bytes())
    damaged[2048:2560] = b"?" * 512
    stream = stream_of("tars")
    Path("tars/001.tar").write_bytes(damaged)
    assert isinstance(stream.records[3], Record)
    assert all("not a tar that can be read" in stream.records[i].reason for i in range(4, 8))
    write_index(Path("tars"), {"000.tar": 4, "001.tar": 5})
    write_tars(Path("tars"), [4, 4])
    broken = stream_of("tars").records[4]
    assert broken.origin == "tars/001.tar: sample 0"
    assert broken.reason.startswith("4 samples in it, but 5 by its index; write the index anew")


def test_a_damaged_parquet_file_has_broken_samples_only():
    write_parquet(Path("p/a.parquet"), range(1000), group=1000)
    write_parquet(Path("p/b.parquet"), range(1000), group=1000)
    stream = stream_of("p")
    damaged = bytearray(Path("p/b.parquet").read_bytes())
    damaged[10:20_000] = bytes(19_990)
    Path("p/b.parquet").write_bytes(damaged)
    assert isinstance(stream.records[999], Record)
    assert "rows from 0 on can't be unpacked" in stream.records[1000].reason
    write_parquet(Path("p/b.parquet"), range(1000), group=1000)
    stream = stream_of("p")
    write_parquet(Path("p/b.parquet"), range(7), group=7)
    assert "7 rows in it, where 1000 were" in stream.records[1000].reason


def test_a_shard_that_is_gone_stops_the_run():
    write_tars(Path("tars"), [4, 4])
    stream = stream_of("tars")
    Path("tars/001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"001\.tar"):
        stream.records[4]


def test_broken_samples_are_left_out_of_a_batch_and_told():
    files = members(range(6)) | {"000002.png": b"no", "000003.txt": b""}
    write_tar(Path("x.tar"), files)
    stream = stream_of("x.tar")
    samples = NeverEmpty(image_texts(stream, AUGMENT, 0), stream.nearby)
    collate = Apart(lambda items: {"texts": [item.text for item in items]})
    keys = [[Key(0, 1), Key(0, 2)], [Key(0, 3)], [Key(0, 2), Key(0, 3)], [Key(0, 5), Key(0, 0)]]
    for workers in (0, 2):
        batches = list(load_batches(samples, keys, collate, workers=workers))
        assert [batch["texts"] for batch in batches] == [
            ["picture 1"], ["picture 4"], ["picture 4"], ["picture 5", "picture 0"],
        ]  # fmt: skip
        assert [[b.origin for b in batch["broken"]] for batch in batches] == [
            ["x.tar: 000002"], ["x.tar: 000003"], ["x.tar: 000002", "x.tar: 000003"], [],
        ]  # fmt: skip
        assert [batch["asked"] for batch in batches] == [2, 1, 2, 2]


def test_where_a_shard_is_broken_a_batch_takes_a_sample_of_another():
    write_tar(Path("t/0.tar"), members(range(3)))
    write_tar(Path("t/1.tar"), {f"{i}.jpg": b"" for i in range(30)})
    stream = stream_of("t")
    samples = NeverEmpty(image_texts(stream, AUGMENT, 0), stream.nearby)
    *broken, taken = samples.__getitems__([Key(2, 32)])
    assert [item.origin for item in broken] == ["t/1.tar: 29"]  # only what was asked for
    batch = Apart(lambda items: {"texts": [item.text for item in items]})([*broken, taken])
    assert (batch["asked"], batch["broken"], batch["texts"]) == (1, broken, ["picture 0"])
    assert taken.sample.text == "picture 0"
    assert [key.sample for key in stream.nearby(Key(0, 32))] == [3, *range(4, 12), 0]


def test_a_batch_with_nothing_readable_near_is_an_error():
    write_tar(Path("x.tar"), members([0]) | {f"{i}.jpg": b"" for i in range(1, 40)})
    stream = stream_of("x.tar")
    samples = NeverEmpty(image_texts(stream, AUGMENT, 0), stream.nearby)
    with pytest.raises(
        ValueError, match=r"x\.tar: 20: no caption.*; and the 9 samples tried after it can't"
    ):
        samples.__getitems__([Key(0, 20)])
