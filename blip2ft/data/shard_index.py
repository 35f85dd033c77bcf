"""How many samples tar shards hold: index.json beside them, or what img2dataset says of each.

index.json is that of webdataset's wids: {"shardlist": [{"url", "nsamples", "filesize"}, ...]}, with
addresses that start from its folder.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from blip2ft.data.remote import bare, is_remote, read_remote
from blip2ft.whole import write_text

INDEX = "index.json"
THREADS = 16  # small files fetched at once


class Counted(NamedTuple):
    """Samples in a shard, and its size in bytes; None where that isn't known."""

    samples: int
    size: int | None


def read_index(url: str) -> dict[str, Counted] | None:
    """What an index says of each shard, by its address; None where there is none.

    Raises ValueError for one that isn't of this format.
    """
    folder, found = folder_of(url), _read(url)
    if found is None:
        return None
    try:
        shards = {
            join(folder, entry["url"]): Counted(int(entry["nsamples"]), entry.get("filesize"))
            for entry in json.loads(found)["shardlist"]
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{url}: not an index of shards ({type(error).__name__}: {error}). It has to hold "
            '{"shardlist": [{"url", "nsamples", "filesize"}]}; blip2ft shard --index writes one.'
        ) from error
    if not shards or min(shard.samples for shard in shards.values()) < 0:
        raise ValueError(f"{url}: names no shards. Write it anew with blip2ft shard --index.")
    return shards


def write_index(
    folder: Path, shards: Mapping[str, Counted], made: Mapping[str, Any] | None = None
) -> None:
    """Write index.json, whole or not at all; `shards` by their names in `folder`.

    made: how they were made, for the one who made them.
    """
    listed = [
        {"url": name, "nsamples": shard.samples, "filesize": shard.size}
        for name, shard in shards.items()
    ]
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": listed}
    text = json.dumps(index | ({"blip2ft": made} if made else {}), indent=1) + "\n"
    write_text(folder / INDEX, text)


def read_stats(urls: Sequence[str]) -> dict[str, int]:
    """Samples, as img2dataset wrote beside its shards (00012_stats.json), where it did."""

    def one(url: str) -> int | None:
        path, query = bare(url), url[len(bare(url)) :]
        found = _read(f"{path.removesuffix('.tar')}_stats.json{query}")
        try:
            return int(json.loads(found)["successes"]) if found else None
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path.removesuffix('.tar')}_stats.json: no number of successes in it ({error}). "
                "Remove it and write an index: blip2ft shard --index."
            ) from error

    with ThreadPoolExecutor(THREADS) as pool:
        counts = zip(urls, pool.map(one, urls), strict=True)
        return {url: count for url, count in counts if count is not None}


def join(folder: str, name: str) -> str:
    """A name that starts from a folder, unless it is an address or an absolute path itself."""
    if is_remote(name) or name.startswith("/"):
        return name
    return f"{folder.rstrip('/')}/{name}" if folder not in ("", ".") else name


def folder_of(url: str) -> str:
    """The folder that a shard is in: "." for a name alone."""
    url = bare(url)
    return url.rpartition("/")[0] or ("/" if url.startswith("/") else ".")


def _read(url: str) -> bytes | None:
    if is_remote(url):
        return read_remote(url)
    path = Path(url)
    return path.read_bytes() if path.is_file() else None
