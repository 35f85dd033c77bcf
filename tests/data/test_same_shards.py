"""A run goes on with the shards that it began with, wherever they lie now."""

import json
import shutil
from pathlib import Path

import pytest
from shard_files import write_parquet, write_tars

from blip2ft.data.same_shards import check_same
from blip2ft.data.stream import open_stream


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_tars(tmp_path / "a", [3, 2, 2])
    write_parquet(tmp_path / "b.parquet", range(10, 1212), group=600)
    return tmp_path


def told(*sources: str | dict, **options) -> dict:
    given = [s if isinstance(s, dict) else {"source": s} for s in sources]
    return json.loads(json.dumps(open_stream(given, **options).description))


def test_the_order_depends_on_names_and_numbers():
    found = told("a", "b.parquet", shuffle=5)
    assert found["shuffle"] == 5
    assert [source["shards"] for source in found["sources"]] == [
        [["000.tar", 3], ["001.tar", 2], ["002.tar", 2]],
        [["b.parquet", 1200], ["b.parquet:1200", 2]],
    ]
    assert [(s["source"], s["weight"], s["samples"]) for s in found["sources"]] == [
        ("a", None, 7), ("b.parquet", None, 1202),
    ]  # fmt: skip


def test_a_folder_that_was_moved_is_the_same():
    before = told("a")
    shutil.move("a", "elsewhere/c")
    check_same(before, told("elsewhere/c"), "runs/x")
    check_same(before, told("elsewhere/c/{000..002}.tar"), "runs/x")


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        (["a", "b.parquet"], {"shuffle": 7}, r"shuffle was 5 and is 7\. Samples would be lost"),
        (["a"], {}, r"runs/x was begun with other training data: 2 sources were given, .* are 1"),
        (["b.parquet", "a"], {}, r"shard 1 of b.* was 000.tar \(3 samples\) and is b.parquet"),
        (
            ["a/{000,002}.tar", "b.parquet"],
            {},
            r"shard 2 of a/.* was 001\.tar \(2 samples\) and is 002\.tar \(2 samples\)",
        ),
        (
            ["a/{000..001}.tar", "b.parquet"],
            {},
            r"shard 3 of a/.* was 002\.tar \(2 samples\) and is none",
        ),
        (
            [{"source": "a", "weight": 1}, {"source": "b.parquet", "weight": 2}],
            {},
            r"the weight of a was None and is 1",
        ),
    ],
)
def test_the_first_thing_that_differs_is_told(sources, options, message):
    with pytest.raises(ValueError, match=message):
        check_same(
            told("a", "b.parquet", shuffle=5), told(*sources, **{"shuffle": 5} | options), "runs/x"
        )
