"""What a run of shards keeps of them and checks when it goes on; what is left out of any run."""

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "data"))
from shard_files import AUGMENT, write_tars

from blip2ft.data.image_texts import image_texts
from blip2ft.data.order import Key
from blip2ft.data.records import read_records
from blip2ft.training.feed import (
    Feed,
    broken_share,
    make_feed,
    open_questions,
    open_training,
)
from blip2ft.training.run import read_lines


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_tars(tmp_path / "tars", [4, 4])
    (tmp_path / "run").mkdir()
    return tmp_path


def feed_of(source: str = "tars", rank: int = 0, **options) -> Feed:
    accelerator = SimpleNamespace(
        num_processes=1, process_index=0, is_main_process=rank == 0,
        wait_for_everyone=lambda: None, device=torch.device("cpu"),
    )  # fmt: skip
    stream = open_training(None, {"sources": [{"source": source}], **options})
    samples = image_texts(stream, AUGMENT, 0)
    sizes = {"batch_size": 4, "micro_batch_size": 2, "workers": 0, "seed": 0}
    collate = lambda items: {"texts": [item.text for item in items]}  # noqa: E731
    return make_feed(stream, samples, collate, accelerator, **sizes)


def test_what_skip_leaves_out_are_images_and_of_rows_that_is_said():
    Path("x.csv").write_text("image,caption\ngone.jpg,\n")
    Path("q.csv").write_text("image,question,answer\ngone.jpg,,a cat\n")
    rows = r"1 problem\n- empty {}.*\ndata\.on_bad_image skip leaves out images that can't"
    with pytest.raises(ValueError, match=rows.format("caption")):
        open_training({"source": "x.csv"}, None, skip=True)
    with pytest.raises(ValueError, match=rows.format("question")):
        open_questions([{"source": "q.csv"}], skip=True)
    with pytest.raises(ValueError, match=r"2 problems\n(.*\n)*- no such image file") as error:
        open_training({"source": "x.csv"}, None)
    assert "skip" not in str(error.value)


def test_a_run_that_goes_on_has_the_shards_it_began_with():
    run = Path("run")
    whole = [batch["texts"] for batch in feed_of().batches(run, 0, 4)]
    Path("tars").rename("moved")
    rest = [batch["texts"] for batch in feed_of("moved").batches(run, 2, 4)]
    assert rest == whole[4:]
    write_tars(Path("moved"), [4, 4, 4])
    for rank in (0, 1):  # all processes check
        with pytest.raises(
            ValueError, match=r"run was begun with .* shard 3 of moved was none and"
        ):
            feed_of("moved", rank).batches(run, 2, 4)
    with pytest.raises(ValueError, match=r"shuffle was 10000 and is 3"):
        feed_of("moved", shuffle=3).batches(run, 2, 4)
    assert len(list(feed_of("moved").batches(run, 0, 1))) == 2  # begun anew: its own from now on
    feed_of("moved").batches(run, 1, 2)


def test_the_main_process_writes():
    feed_of(rank=1).batches(Path("run"), 0, 1)
    assert list(Path("run").glob("*.json")) == []
    feed_of().batches(Path("run"), 3, 4)  # a run of before there was such a file
    assert [path.name for path in Path("run").glob("*.json")] == ["stream.json"]


@pytest.fixture
def photos(photo_folder, tmp_path):
    """8 photos of which one is damaged."""
    shutil.copytree(photo_folder, tmp_path / "photos")
    (tmp_path / "photos" / "photo5.jpg").write_bytes(b"no picture")
    return read_records(tmp_path / "photos" / "captions.csv")


def feed_of_records(records, *, share: float | None, size: int = 2) -> Feed:
    samples = image_texts(records, AUGMENT, 0, skip=share is not None)
    collate = lambda items: {"texts": [item.text for item in items]}  # noqa: E731
    accelerator = SimpleNamespace(
        num_processes=1, process_index=0, is_main_process=True,
        wait_for_everyone=lambda: None, device=torch.device("cpu"),
    )  # fmt: skip
    sizes = {"batch_size": 4, "micro_batch_size": size, "workers": 0, "seed": 0}
    return make_feed(records, samples, collate, accelerator, **sizes, max_broken=share)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_images_that_cant_be_read_are_left_out_where_that_is_asked(photos, size):
    feed = feed_of_records(photos, share=0.5, size=size)
    batches = list(feed.batches(Path("run"), 0, 4))  # two epochs
    lines = read_lines(Path("run/broken.jsonl"))
    assert [line["origin"] for line in lines] == ["captions.csv:7"] * 2
    assert "photo5.jpg" in lines[0]["reason"]
    assert "not an image that can be read" in lines[0]["reason"]
    # a micro-batch of it alone has another in its place
    texts = sum(len(batch["texts"]) for batch in batches)
    assert texts == (16 if size == 1 else 14)


def test_in_the_place_of_a_damaged_one_16_that_follow_are_tried_each_once(photos):
    few, many = feed_of_records(photos, share=0.5), feed_of_records([*photos] * 4, share=0.5)
    assert [key.sample for key in few._next(Key(0, 5))] == [6, 7, 0, 1, 2, 3, 4]
    assert [key.sample for key in many._next(Key(1, 30))] == [31, *range(15)]


def test_where_all_near_are_damaged_the_check_is_named(photos):
    for record in photos:
        record.image.write_bytes(b"no picture")
    feed = feed_of_records(photos, share=1.0)
    with pytest.raises(ValueError, match=r"the \d samples tried after .* blip2ft check names what"):
        list(feed.batches(Path("run"), 0, 1))
    with pytest.raises(ValueError, match=r"none of the first step's .*; blip2ft check names what"):
        feed.first(2)


def test_else_it_is_an_error_that_names_the_file(photos):
    feed = feed_of_records(photos, share=None)
    with pytest.raises(ValueError, match=r"photo5\.jpg \(named in captions\.csv:7\): not an image"):
        list(feed.batches(Path("run"), 0, 4))


def test_the_share_is_that_of_the_settings():
    data = {"stream": None, "on_bad_image": "stop", "max_bad_images": 0.1}
    assert broken_share(data) is None
    assert broken_share(data | {"on_bad_image": "skip"}) == 0.1
    assert broken_share(data | {"stream": {"max_broken": 0.2}}) == 0.2


def test_samples_are_named_by_image_and_place(photos):
    feed = feed_of_records(photos, share=0.5)
    named = feed.origins(0)
    assert [len(names) for names in named] == [2, 2]
    assert all(re.fullmatch(r"photo\d\.jpg \(captions\.csv:\d\)", n) for ns in named for n in ns)
    texts = [feed.samples[key].text for key in feed.order.batch(0) if key.sample != 5]
    assert len(texts) >= 3


def test_a_run_that_goes_on_has_as_many_samples_as_it_began_with(photos):
    good = [record for record in photos if record.image.name != "photo5.jpg"]
    list(feed_of_records(good, share=None).batches(Path("run"), 0, 1))
    list(feed_of_records(good, share=None).batches(Path("run"), 1, 2))
    with pytest.raises(ValueError, match=r"begun with 7 training samples, and now there are 6"):
        feed_of_records(good[1:], share=None).batches(Path("run"), 1, 2)
    list(feed_of_records(good[1:], share=None).batches(Path("run"), 0, 1))  # begun anew
