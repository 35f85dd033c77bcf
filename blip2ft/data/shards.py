"""What shards a source has, and how many samples each holds."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from torch.utils.data import Dataset
from tqdm import tqdm

from blip2ft.data.entries import SHOWN, Request
from blip2ft.data.hub_files import hub_files
from blip2ft.data.loading import load_batches
from blip2ft.data.patterns import expand_braces, find_files, is_pattern
from blip2ft.data.records import HUB_ID
from blip2ft.data.remote import is_remote, list_remote
from blip2ft.data.row_groups import check_columns, pieces, read_footer
from blip2ft.data.shard_index import (
    INDEX,
    THREADS,
    Counted,
    folder_of,
    join,
    read_index,
    read_stats,
)
from blip2ft.data.tar import BLOCK, find_samples

FORMATS = ("webdataset", "parquet", "huggingface")
SUFFIXES = {"webdataset": ".tar", "parquet": ".parquet"}
MANY = 64  # tars from which several processes count their samples


class Shard(NamedTuple):
    """A tar, or some row groups of a Parquet file: from `first` to before `last`.

    size: of the whole file in bytes; None where that isn't known. row: the first row of them.
    """

    url: str
    samples: int
    size: int | None
    first: int = 0
    last: int = 0
    row: int = 0


def find_shards(
    source: str, *, format: str, request: Request, cache: Path
) -> tuple[str, list[Shard]]:
    """The format of a source, "webdataset" or "parquet", and its shards in their order.

    source: a file, a folder, a glob, a pattern such as {000..123}.tar, an address of these, an
      index.json, or a hub id.
    cache: a folder that keeps what was counted.

    Raises ValueError where there are no shards or not all, where one is cut off, and where nothing
    says how many samples it holds.
    """
    if format not in ("auto", *FORMATS):
        raise ValueError(
            f"{source}: format {format!r} has no shards. Formats of a stream are: auto, "
            f"{', '.join(FORMATS)}; others are converted by blip2ft shard."
        )
    urls, index = _list(source, format, request)
    kinds = {Path(url).suffix.lower() for url in urls}
    if kinds == {".parquet"}:
        return "parquet", _parquet_shards(urls, request, source)
    if kinds != {".tar"}:
        raise ValueError(
            f"{source}: not made of shards, which end in .tar or .parquet. Convert it: blip2ft "
            f"shard {source} --out FOLDER"
        )
    counts = count_tars(urls, index, cache)
    shards = [Shard(url, counts[url].samples, counts[url].size) for url in urls]
    return "webdataset", [shard for shard in shards if shard.samples]


def count_tars(
    urls: Sequence[str], index: dict[str, Counted] | None, cache: Path
) -> dict[str, Counted]:
    """Samples and size of each tar: from an index, from img2dataset, or from the tars themselves.

    Tars are counted by one process; the others wait, and find it in `cache`.

    Raises ValueError as `find_shards` does.
    """
    counts = dict(index or {})
    for folder in dict.fromkeys(folder_of(url) for url in urls) if index is None else ():
        found = read_index(folder)
        if found is not None:
            _check_named([url for url in urls if folder_of(url) == folder], found, folder)
            counts |= found
    unknown = [url for url in urls if url not in counts]
    counts |= read_stats(unknown)
    local = [url for url in urls if not is_remote(url)]
    sizes = _sizes(local)
    for url, size in sizes.items():
        said = counts.get(url)
        if said is not None and said.size is not None and said.size != size:
            raise ValueError(
                f"{url}: {size} bytes long, but its index says {said.size}: the shard is cut off, "
                "or was changed. Fetch it again, or write the index anew: blip2ft shard --index."
            )
        # img2dataset names no size: a tar that is whole ends in two empty blocks
        if said is not None and said.size is None and _is_closed(url):
            counts[url] = Counted(said.samples, size)
        elif said is not None and said.size is None:
            counts[url] = Counted(len(find_samples(Path(url))) - 1, size)
    unknown = [url for url in urls if url not in counts]
    remote = [url for url in unknown if is_remote(url)]
    if remote:
        raise ValueError(
            f"{remote[0]}: nothing says how many samples it holds ({len(remote)} such shards). "
            f"Where the tars lie, run blip2ft shard --index FOLDER, and put {INDEX} beside them."
        )
    return counts | _scan(unknown, sizes, cache)


def _list(source: str, format: str, request: Request) -> tuple[list[str], dict | None]:
    """The addresses of a source's files, and the index that named them."""
    path = Path(source)
    hub_id = not path.exists() and not is_remote(source) and HUB_ID.fullmatch(source)
    if format == "huggingface" or (format == "auto" and hub_id and not is_pattern(source)):
        return hub_files(source, request.split, request.revision), None
    if source.endswith(INDEX) or (path.is_dir() and (path / INDEX).is_file()):
        folder = folder_of(source) if source.endswith(INDEX) else source
        index = read_index(folder)
        if index is None:
            raise ValueError(f"{source}: no such index. Correct its path.")
        return list(index), index
    if is_remote(source):
        return _list_remote(source), None
    suffix = SUFFIXES.get(format)
    if suffix is None and path.is_dir():
        suffix = next((s for s in SUFFIXES.values() if next(path.rglob(f"*{s}"), None)), None)
    elif suffix is None:
        suffix = next((s for s in SUFFIXES.values() if source.lower().endswith(s)), None)
    if suffix is None:
        return [source], None
    files, _ = find_files(source, suffix, request.split)
    return [os.fspath(file) for file in files], None


def _list_remote(source: str) -> list[str]:
    found: list[str] = []
    for url in expand_braces(source):
        found += list_remote(url) if is_pattern(url) else [url]
    if not found:
        raise ValueError(f"{source}: no files there. Correct the address or its pattern.")
    return found


def _check_named(urls: Sequence[str], index: dict[str, Counted], folder: str) -> None:
    others = [url for url in urls if url not in index]
    if others:
        raise ValueError(
            f"{others[0]}: not in {join(folder, INDEX)} ({len(others)} such shards). Write it "
            "anew: blip2ft shard --index."
        )


def _sizes(paths: Sequence[str]) -> dict[str, int]:
    """Sizes of local files in bytes. Raises ValueError where some aren't there."""

    def one(path: str) -> int | None:
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        sizes = dict(zip(paths, pool.map(one, paths), strict=True))
    missing = [path for path, size in sizes.items() if size is None]
    if missing:
        rest = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise ValueError(
            f"no such shard: {', '.join(missing[:SHOWN])}{rest}. Fetch what the index names, or "
            "write the index anew: blip2ft shard --index."
        )
    return {path: size for path, size in sizes.items() if size is not None}


def _is_closed(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(-min(os.stat(path).st_size, 2 * BLOCK), os.SEEK_END)
        return not file.read().strip(b"\0")


def _scan(paths: Sequence[str], sizes: dict[str, int], cache: Path) -> dict[str, Counted]:
    """The samples of local tars, counted; those that the cache has are believed unless changed."""
    if not paths:
        return {}
    cache.mkdir(parents=True, exist_ok=True)
    absolute = {path: os.path.abspath(path) for path in paths}
    digest = hashlib.sha256("\n".join(sorted(absolute.values())).encode()).hexdigest()[:32]
    kept = cache / f"counts-{digest}.json"
    with FileLock(f"{kept}.lock"):
        known = json.loads(kept.read_text()) if kept.is_file() else {}
        seen = {p: [sizes[p], os.stat(p).st_mtime_ns] for p in paths}
        new = [p for p in paths if known.get(absolute[p], [None])[:-1] != seen[p]]
        workers = min(len(os.sched_getaffinity(0)), 8) if len(new) > MANY else 0
        loader = load_batches(_Counts(new), [[i] for i in range(len(new))], list, workers=workers)
        bar = tqdm(loader, "count", len(new), disable=len(new) < MANY, leave=False)
        for path, (count,) in zip(new, bar, strict=True):
            known[absolute[path]] = [*seen[path], count]
        if new:
            partial = kept.with_name(f".partial-{kept.name}")
            partial.write_text(json.dumps(known))
            partial.replace(kept)
    return {path: Counted(known[absolute[path]][-1], sizes[path]) for path in paths}


class _Counts(Dataset):
    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> int:
        return len(find_samples(Path(self.paths[index]))) - 1


def _parquet_shards(urls: Sequence[str], request: Request, source: str) -> list[Shard]:
    """Pieces of Parquet files, from their footers."""
    sizes = _sizes([url for url in urls if not is_remote(url)])
    with ThreadPoolExecutor(THREADS) as pool:
        footers = list(pool.map(read_footer, urls))
    names = footers[0][1].names
    check_columns(footers[0][1], request, source)
    shards = []
    for url, (rows, schema) in zip(urls, footers, strict=True):
        if set(schema.names) != set(names):
            raise ValueError(
                f"{url}: columns {', '.join(schema.names)}, but {urls[0]} has {', '.join(names)}. "
                "Files read together need the same columns."
            )
        row = 0
        for first, last, count in pieces(rows):
            shards.append(Shard(url, count, sizes.get(url), first, last, row))
            row += count
    return shards
