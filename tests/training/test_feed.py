"""What a run of shards keeps of them, and checks when it goes on."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "data"))
from shard_files import AUGMENT, write_tars

from blip2ft.data.image_texts import image_texts
from blip2ft.training.feed import Feed, make_feed, open_training


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
