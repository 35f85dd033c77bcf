"""Shards at addresses: fetched once on a machine, kept as long as there is room, and read alike."""

import functools
import http.server
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from shard_files import AUGMENT, write_index, write_parquet, write_tars

import blip2ft.data.remote
from blip2ft.data.broken import Apart, NeverEmpty
from blip2ft.data.cache import Cache, default_cache
from blip2ft.data.image_texts import image_texts
from blip2ft.data.images import open_image
from blip2ft.data.loading import load_batches
from blip2ft.data.order import Key
from blip2ft.data.records import Record, read_records
from blip2ft.data.remote import download, list_remote, locate_remote, persist, read_remote
from blip2ft.data.stream import open_stream
from blip2ft.sharding import index_elsewhere


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files of the working directory, whole or in ranges; failures as asked for."""

    asked: Counter[str]
    fail: dict[str, int]
    refuse: set[str]
    delay = 0.0  # seconds before an answer

    def do_GET(self) -> None:
        name = self.path.lstrip("/").partition("?")[0]
        self.asked[name] += 1
        time.sleep(self.delay)
        if name in self.refuse:
            self.send_error(403)
            return
        if self.fail.get(name, 0):
            self.fail[name] -= 1
            self.send_error(503)
            return
        path = Path(self.directory, name)
        if not path.is_file():
            self.send_error(404)
            return
        data, status = path.read_bytes(), 200
        size, wanted = len(data), re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        self.protocol_version = "HTTP/1.0"
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1)
            data, status = data[first : last + 1], 206
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[type[_Handler]]:
    """Serves tmp_path/web on loopback; `url`, what was `asked` for, how often to `fail`."""
    (tmp_path / "web").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(blip2ft.data.remote, "PAUSE", 0.0)
    handler = type("Handler", (_Handler,), {"asked": Counter(), "fail": {}, "refuse": set()})
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(tmp_path / "web"))
    ) as running:
        handler.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield handler
        running.shutdown()
        thread.join()


def texts(stream, *, workers: int, steps: int) -> list[str]:
    samples = NeverEmpty(image_texts(stream, AUGMENT, 0), stream.nearby)
    keys = stream.order(4, 0).micro_batches(0, steps, rank=0, world_size=1, size=4)
    collate = Apart(lambda items: {"texts": [item.text for item in items]})
    loader = load_batches(samples, keys, collate, workers=workers)
    return [text for batch in loader for text in batch["texts"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_tars_at_an_address_are_fetched_once_and_read_alike(server, workers):
    write_tars(Path("web/t"), [4, 4, 4])
    write_index(Path("web/t"), {f"00{i}.tar": 4 for i in range(3)})
    sources = ("t/{000..002}.tar", "t/index.json")
    expected = texts(open_stream([{"source": "web/t"}], cache="l"), workers=0, steps=6)
    for number, source in enumerate(sources):
        stream = open_stream([{"source": f"{server.url}/{source}"}], cache=f"c{number}")
        server.asked.clear()
        assert texts(stream, workers=workers, steps=6) == expected
        assert max(server.asked[f"t/00{i}.tar"] for i in range(3)) == 1
        assert not list(Path(f"c{number}/fetched").glob(".partial-*"))


def test_parquet_files_at_an_address_are_read_in_pieces(server):
    write_parquet(Path("web/x.parquet"), range(1500), group=500)
    stream = open_stream([{"source": f"{server.url}/x.parquet"}], cache="c")
    assert [shard.samples for shard in stream.sources[0].shards] == [1000, 500]
    assert stream.records[1234].captions == ("picture 1234",)
    assert stream.records[1234].origin == f"{server.url}/x.parquet: row 1234"
    server.asked.clear()
    assert len(open_stream([{"source": f"{server.url}/x.parquet"}], cache="c")) == 1500
    assert server.asked["x.parquet"] <= 4  # the columns, once more; rows and images are kept


def test_what_img2dataset_wrote_counts(server):
    write_tars(Path("web/t"), [2, 3])
    for name, count in (("000", 2), ("001", 3)):
        Path(f"web/t/{name}_stats.json").write_text(f'{{"successes": {count}}}')
    for _ in range(2):
        stream = open_stream([{"source": f"{server.url}/t/{{000..001}}.tar"}], cache="c")
        assert len(stream) == 5
    assert server.asked["t/001_stats.json"] == 1


def test_an_address_may_have_a_query(server):
    write_tars(Path("web/t"), [2, 3])
    Path("web/t/000_stats.json").write_text('{"successes": 2}')
    stream = open_stream([{"source": f"{server.url}/t/000.tar?download=true"}], cache="c")
    assert stream.records[1].captions == ("picture 1",)
    write_index(Path("web/t"), {"000.tar": 2, "001.tar": 3})
    stream = open_stream([{"source": f"{server.url}/t/00{{0..1}}.tar?sign=a/b"}], cache="c")
    assert stream.records[4].captions == ("picture 4",)
    stream = open_stream([{"source": f"{server.url}/t/index.json?x=1"}], cache="c")
    assert len(stream) == 5


def test_a_file_that_may_be_missing_may_be_refused(server):
    write_tars(Path("web/t"), [2])
    Path("web/t/000_stats.json").write_text('{"successes": 2}')
    server.refuse.add("t/index.json")  # as buckets do that may not be listed
    assert len(open_stream([{"source": f"{server.url}/t/000.tar"}], cache="c")) == 2
    with pytest.raises(ValueError, match=r"index\.json: no such index, or it may not be read"):
        open_stream([{"source": f"{server.url}/t/index.json"}], cache="c")


def test_the_cache_need_not_hold_more_of_sources_together_than_is_read_at_once(server):
    sources = []
    for name in ("a", "b"):
        write_tars(Path(f"web/{name}"), [2] * 20)
        write_index(Path(f"web/{name}"), {f"{i:03d}.tar": 2 for i in range(20)})
        sources.append({"source": f"{server.url}/{name}/index.json"})
    enough = {"cache": "c", "cache_gb": 2 * 8 * 10_240 / 1e9, "shuffle": 3}
    assert len(open_stream(sources, **enough)) == 80
    with pytest.raises(ValueError, match=r"but the shards that are read at once have 0\.000164 GB"):
        open_stream([source | {"weight": 1} for source in sources], **enough)


def test_tars_without_a_count_are_refused(server):
    write_tars(Path("web/t"), [2, 3])
    with pytest.raises(
        ValueError,
        match=r"000\.tar: nothing says how many .* \(2 such shards\)\. Fetch each .* --index",
    ):
        open_stream([{"source": f"{server.url}/t/{{000..001}}.tar"}], cache="c")


def test_an_index_of_tars_elsewhere_is_counted_by_fetching_each_once(server):
    write_tars(Path("web/t"), [2, 3, 4])
    addresses = f"{server.url}/t/{{000..002}}.tar"
    server.fail["t/002.tar"] = 99
    with pytest.raises(ValueError, match=r"t/002\.tar: can't be fetched, tried 4 times"):
        index_elsewhere(addresses, Path("mine"))
    server.fail.clear()
    server.asked.clear()
    path, shards, samples = index_elsewhere(addresses, Path("mine"))
    assert (path, shards, samples) == (Path("mine/index.json"), 3, 9)
    assert server.asked["t/002.tar"]
    assert not server.asked["t/000.tar"]  # it was gone on with
    assert {p.name for p in Path("mine").iterdir()} <= {"index.json", ".lock"}
    stream = open_stream([{"source": "mine/index.json"}], cache="c")
    assert stream.records[8].captions == ("picture 8",)
    Path("web/t/001.tar").write_bytes(Path("web/t/001.tar").read_bytes()[:1500])
    with pytest.raises(ValueError, match=r"^http.*/t/001\.tar: the tar is cut off"):
        index_elsewhere(addresses, Path("other"))


def test_an_index_elsewhere_of_local_tars_is_by_their_whole_paths(server):
    for name in ("a", "b"):
        write_tars(Path(name), [2])
    index_elsewhere("{a,b}/000.tar", Path("both"))
    assert len(open_stream([{"source": "both"}], cache="c")) == 4
    write_parquet(Path("x.parquet"), range(3))
    with pytest.raises(ValueError, match=r"x\.parquet: not a tar; an index is for tars alone"):
        index_elsewhere("x.parquet", Path("other"))


def test_a_connection_that_fails_is_tried_again(server):
    write_tars(Path("web/t"), [2])
    server.fail["t/000.tar"] = 2
    download(f"{server.url}/t/000.tar", Path("x.tar"), None)
    assert Path("x.tar").read_bytes() == Path("web/t/000.tar").read_bytes()
    server.fail["t/000.tar"] = 99
    with pytest.raises(ValueError, match=r"t/000\.tar: can't be fetched, tried 4 times \(Client"):
        download(f"{server.url}/t/000.tar", Path("y.tar"), None)


def test_a_full_disk_is_not_tried_again():
    def fetch():
        tried.append(1)
        raise OSError(28, "No space left on device")

    tried: list[int] = []
    with pytest.raises(OSError, match="No space left"):
        persist(fetch, "http://x/y")
    assert tried == [1]


def test_a_shard_that_is_missing_or_of_another_size_stops_the_run(server):
    write_tars(Path("web/t"), [2, 2])
    write_index(Path("web/t"), {"000.tar": 2, "001.tar": 2})
    stream = open_stream([{"source": f"{server.url}/t/index.json"}], cache="c")
    Path("web/t/001.tar").write_bytes(Path("web/t/001.tar").read_bytes()[:2048])
    with pytest.raises(
        ValueError, match=r"001\.tar: 2048 bytes were fetched, but its index says 10"
    ):
        stream.records[2]
    Path("web/t/001.tar").unlink()
    with pytest.raises(ValueError, match=r"001\.tar: no such file\. Correct the address, or the i"):
        stream.records[2]
    assert not list(Path("c/fetched").glob(".partial-*"))


def test_the_cache_is_too_small(server):
    write_tars(Path("web/t"), [2, 2])
    write_index(Path("web/t"), {"000.tar": 2, "001.tar": 2})
    with pytest.raises(
        ValueError, match=r"cache_gb is 1e-05, .* set cache_gb to 0\.1 or more, or lower"
    ):
        open_stream([{"source": f"{server.url}/t/index.json"}], cache="c", cache_gb=1e-5)


def test_addresses_are_listed_and_small_files_read(tmp_path):
    for name in ("b.tar", "a.tar", "x.json"):
        (tmp_path / name).write_bytes(b"1")
    assert list_remote(f"file://{tmp_path}/*.tar") == [
        f"file://{tmp_path}/a.tar",
        f"file://{tmp_path}/b.tar",
    ]
    assert read_remote(f"file://{tmp_path}/x.json") == b"1"
    assert read_remote(f"file://{tmp_path}/y.json") is None


def test_a_glob_of_addresses_that_names_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\*\.tar: no files there\. Correct the address"):
        open_stream([{"source": f"file://{tmp_path}/*.tar"}], cache=tmp_path)


def test_addresses_that_cannot_be_read_are_refused(server):
    with pytest.raises(ValueError, match=r"foo://x/y: no such kind of address"):
        locate_remote("foo://x/y")
    with pytest.raises(ValueError, match=r"isn't installed: pip install gcsfs"):
        locate_remote("gs://bucket/x.tar")
    server.fail["x.json"] = 9
    with pytest.raises(ValueError, match=r"x\.json: can't be read \(Client"):
        read_remote(f"{server.url}/x.json")
    server.fail.update({"none": 9, "none/": 9})
    with pytest.raises(ValueError, match=r"/none/\*\.tar: can't be listed \(Client"):
        list_remote(f"{server.url}/none/*.tar")
    with pytest.raises(ValueError, match=r"x\.tar: an address, not a file\. Fetch it first"):
        read_records("https://example.org/x.tar")


# The cache.


def write(size: int):
    return lambda path: path.write_bytes(bytes(size))


def test_what_was_longest_unused_makes_room(tmp_path):
    cache = Cache(tmp_path / "c", limit=100)
    paths = [cache.get(name, write(40)) for name in "ab"]
    cache.get("a", write(999))  # used again, not made again
    third = cache.get("c", write(40))
    assert [path.exists() for path in (*paths, third)] == [True, False, True]
    assert cache.get("d", write(500)).exists()
    assert not third.exists()
    assert sum(p.stat().st_size for p in (tmp_path / "c").glob("[!.]*")) == 500


def test_what_is_not_finished_leaves_nothing(tmp_path):
    cache = Cache(tmp_path, limit=100)

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.get("a", fail)
    assert [p for p in tmp_path.iterdir() if not p.name.startswith(".lock")] == []
    old = tmp_path / f".partial-{'a1' * 16}-{'0' * 32}"
    old.write_bytes(b"half")
    os.utime(old, (0, 0))
    cache.get("b", write(1))
    assert not old.exists()


def test_files_of_others_are_never_removed(tmp_path):
    others = [tmp_path / name for name in ("000.tar", "0" * 31, ".partial-1-000.tar", "notes")]
    for path in others:
        path.write_bytes(bytes(60))
        os.utime(path, (0, 0))
    cache = Cache(tmp_path, limit=100)
    paths = [cache.get(name, write(40)) for name in "ab"]
    assert all(path.exists() for path in (*others, *paths))  # nor do they count
    cache.get("c", write(40))
    assert [path.exists() for path in (*others, *paths)] == [True] * 4 + [False, True]


def test_shards_of_ones_own_in_the_cache_folder_stay(server):
    write_tars(Path("web/t"), [2, 2])
    write_index(Path("web/t"), {"000.tar": 2, "001.tar": 2})
    for name in ("shards", "fetched"):
        write_tars(Path(f"laion/{name}"), [9])
    for number in range(40):
        write(4000)(Path(f"laion/shards/{number}"))
    stream = open_stream([{"source": f"{server.url}/t/index.json"}], cache="laion", cache_gb=5e-5)
    assert isinstance(stream.records[3], Record)
    assert len(list(Path("laion/shards").iterdir())) == 41
    assert Path("laion/fetched/000.tar").is_file()


def test_a_file_is_made_once_by_many_at_a_time(tmp_path):
    cache, made = Cache(tmp_path, limit=100), []
    threads = [
        threading.Thread(target=lambda: cache.get("a", lambda p: made.append(p.write_bytes(b"x"))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


def test_a_shard_that_the_cache_removed_is_fetched_again(server):
    write_tars(Path("web/t"), [2, 2])
    write_index(Path("web/t"), {"000.tar": 2, "001.tar": 2})
    stream = open_stream([{"source": f"{server.url}/t/index.json"}], cache="c")
    assert isinstance(stream.records[3], Record)
    for path in Path("c/fetched").glob("[!.]*"):
        path.unlink()
    assert stream.records[3].captions == ("picture 3",)
    assert server.asked["t/001.tar"] == 2


def test_the_cache_of_the_machine_is_used_without_a_word(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/blip2ft")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache/blip2ft"


def test_shards_at_an_address_are_fetched_ahead(server):
    write_tars(Path("web/t"), [8] * 20)
    write_index(Path("web/t"), {f"{i:03d}.tar": 8 for i in range(20)})
    stream = open_stream([{"source": f"{server.url}/t/index.json"}], cache="c", shuffle=48)
    keys = stream.order(8, 0).micro_batches(0, 20, rank=0, world_size=1, size=4)
    ahead = stream.fetch_ahead(keys, 1)
    given = [next(ahead)]
    needed = {stream.records.shard_of(key.sample) for key in given[0]}
    for _ in range(500):
        if len(server.asked) > len(needed) + 4:
            break
        time.sleep(0.01)
    assert len(server.asked) > len(needed) + 4
    given += ahead
    assert given == list(stream.order(8, 0).micro_batches(0, 20, rank=0, world_size=1, size=4))
    local = open_stream([{"source": "web/t"}], cache="c")
    assert list(local.fetch_ahead(given, 1)) == given


@pytest.fixture
def table(server) -> Path:
    """Two images at addresses."""
    rows = ["image,caption"]
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (8, 8), colour).save(f"web/{name}")
        rows.append(f"{server.url}/{name},{colour}")
    Path("x.csv").write_text("\n".join(rows) + "\n")
    return Path("x.csv")


@pytest.mark.parametrize("workers", [0, 2])
def test_images_at_addresses_are_opened_where_that_is_allowed(table, server, workers):
    with pytest.raises(ValueError, match=r"an address in place .* or set allow to \[remote\]"):
        read_records(table)
    records = read_records(table, allow=["remote"])
    assert server.asked == {}  # nothing is fetched before it is asked for
    server.fail = {"a.png": 2}
    samples = image_texts(records, AUGMENT, 0)
    loader = load_batches(samples, [[Key(0, 0), Key(0, 1)]], list, workers=workers)
    (batch,) = loader
    assert [item.text for item in batch] == ["red", "blue"]
    assert server.asked == {"a.png": 3, "b.png": 1}


def test_an_image_that_is_gone_or_slow_is_told_by_its_address(table, server, monkeypatch):
    first, second = read_records(table, allow=["remote"])
    Path("web/a.png").unlink()
    with pytest.raises(ValueError, match=r"/a\.png: no such file\. Correct the address"):
        open_image(first.image, origin=first.origin)
    monkeypatch.setattr(blip2ft.data.remote, "SECONDS", 0.05)
    monkeypatch.setattr(server, "delay", 0.3)
    with pytest.raises(ValueError, match=r"/b\.png: can't be fetched, tried 4 times \(.*Timeout"):
        open_image(second.image, origin=second.origin)
    assert server.asked["b.png"] == 4
