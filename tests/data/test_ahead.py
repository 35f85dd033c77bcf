"""Shards are fetched before they are read, and nobody waits for it or is left behind."""

import os
import time
from pathlib import Path

import pytest

from blip2ft.data.ahead import fetch_ahead
from blip2ft.data.order import Key


def batches(count: int, size: int = 2) -> list[list[Key]]:
    return [[Key(0, size * i + j) for j in range(size)] for i in range(count)]


class Fetched:
    """Writes the number of its process and each shard into a folder, in the other process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, shard: int) -> None:
        if shard == 13:
            raise OSError("no network")
        with (self.folder / str(shard)).open("a") as file:
            file.write(f"{os.getpid()}\n")

    def wait_for(self, *shards: int) -> None:
        for _ in range(500):
            written = {int(path.name) for path in self.folder.iterdir() if path.stat().st_size}
            if written >= {*shards}:
                return
            time.sleep(0.01)
        raise AssertionError(sorted(path.name for path in self.folder.iterdir()))


def test_the_batches_are_the_same(tmp_path):
    given = batches(30)
    for ahead in (0, 1, 5, 1000):
        found = fetch_ahead(given, lambda n: n // 7, Fetched(tmp_path), ahead=ahead, remember=4)
        assert list(found) == given


def test_shards_are_fetched_before_their_batch_is_asked_for_each_once(tmp_path):
    fetched = Fetched(tmp_path)
    found = fetch_ahead(batches(50), lambda n: n // 10, fetched, ahead=30, remember=4)
    assert next(found) == batches(1)[0]
    fetched.wait_for(0, 1, 2, 3)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [0, 1, 2, 3]
    for _ in range(12):
        next(found)
    fetched.wait_for(4, 5)
    pids = [(tmp_path / str(shard)).read_text().split() for shard in range(5)]
    assert pids == [pids[0]] * 5
    assert str(os.getpid()) not in pids[0]
    assert len(pids[0]) == 1
    assert len(list(found)) == 50 - 13


def test_what_was_removed_meanwhile_is_fetched_again(tmp_path):
    fetched = Fetched(tmp_path)
    given = [[Key(0, n)] for n in (0, 1, 2, 3, 0, 3)]
    found = fetch_ahead(given, lambda n: n, fetched, ahead=99, remember=3)
    next(found)
    fetched.wait_for(0, 1, 2, 3)
    for _ in range(500):
        if len((tmp_path / "0").read_text().split()) == 2:
            break
        time.sleep(0.01)
    found.close()
    assert [len((tmp_path / str(n)).read_text().split()) for n in (0, 3)] == [2, 1]


def test_what_cannot_be_fetched_is_left_to_the_reader(tmp_path):
    fetched = Fetched(tmp_path)
    found = fetch_ahead(batches(20, 1), lambda n: n, fetched, ahead=18, remember=99)
    next(found)
    fetched.wait_for(*range(13), *range(14, 19))
    assert len(list(found)) == 19


@pytest.mark.parametrize("end", ["close", "finish"])
def test_its_process_ends_with_the_batches(tmp_path, end):
    fetched = Fetched(tmp_path)
    found = fetch_ahead(batches(5), lambda n: n, fetched, ahead=4, remember=9)
    next(found)
    fetched.wait_for(0)
    found.close() if end == "close" else list(found)
    pid = int((tmp_path / "0").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_its_process_ends_with_ours(tmp_path):
    pid = os.fork()
    if not pid:
        found = fetch_ahead(batches(5), lambda n: n, Fetched(tmp_path), ahead=4, remember=9)
        next(found)
        Fetched(tmp_path).wait_for(0)
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    other = int((tmp_path / "0").read_text())
    for _ in range(500):
        stat = Path(f"/proc/{other}/stat")
        # its new parent may take a while to forget it
        if not stat.exists() or stat.read_text().rpartition(") ")[2][0] == "Z":
            return
        time.sleep(0.01)
    raise AssertionError("it is still there")
