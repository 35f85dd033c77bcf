"""What shards a source has, and how many samples each holds."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch.utils.data import Dataset

from blip2ft.bars import progress_bar
from blip2ft.data.counts import keep_counts
from blip2ft.data.entries import SHOWN, Request
from blip2ft.data.hub_files import hub_files
from blip2ft.data.loading import load_batches
from blip2ft.data.patterns import expand_braces, find_files, is_pattern, of_split
from blip2ft.data.records import HUB_ID
from blip2ft.data.remote import bare, is_remote, list_remote
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
    urls, index = list_files(source, format, request)
    kinds = {Path(bare(url)).suffix.lower() for url in urls}
    if kinds == {".parquet"}:
        return "parquet", _parquet_shards(urls, request, source, cache)
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

    Raises ValueError as `find_shards` does.
    """
    counts = dict(index or {})
    for folder in dict.fromkeys(folder_of(url) for url in urls) if index is None else ():
        found = read_index(join(folder, INDEX))
        if found is not None:
            inside = [url for url in urls if folder_of(url) == folder]
            _check_named(inside, found, folder)
            counts |= {url: found[bare(url)] for url in inside}
    sizes = _sizes([url for url in urls if not is_remote(url)])
    for url, size in sizes.items():
        said = counts[url].size if url in counts else None
        if said not in (None, size):
            raise ValueError(
                f"{url}: {size} bytes long, but its index says {said}: the shard is cut off, or "
                "was changed. Fetch it again, or write the index anew: blip2ft shard --index."
            )
    unknown = keep_counts([url for url in urls if url not in counts], cache, _count)
    return counts | {url: Counted(n, sizes.get(url)) for url, n in unknown.items()}


def _count(urls: Sequence[str]) -> dict[str, int]:
    """Samples of tars without an index."""
    # img2dataset knows no size: a tar that is whole ends in two empty blocks
    counts = {u: n for u, n in read_stats(urls).items() if is_remote(u) or _is_closed(u)}
    left = [url for url in urls if url not in counts]
    remote = [url for url in left if is_remote(url)]
    if remote:
        raise ValueError(
            f"{remote[0]}: nothing says how many samples it holds ({len(remote)} such shards). "
            "Fetch each once to count them: blip2ft shard --index ADDRESSES --out FOLDER; then the "
            f"source is FOLDER/{INDEX}. Or, where the tars lie, run blip2ft shard --index FOLDER."
        )
    return counts | scan_tars(left)


def scan_tars(paths: Sequence[str]) -> dict[str, int]:
    """Samples of local tars, from their headers; several processes look at many."""
    workers = min(os.cpu_count() or 1, 8) if len(paths) > MANY else 0
    loader = load_batches(_Scan(paths), [[i] for i in range(len(paths))], list, workers=workers)
    bar = progress_bar(loader, "count", len(paths), hidden=len(paths) < MANY, leave=False)
    return {path: count for path, (count,) in zip(paths, bar, strict=True)}


def list_files(source: str, format: str, request: Request) -> tuple[list[str], dict | None]:
    """The addresses of a source's files, and the index that named them.

    Raises ValueError as `find_shards` does.
    """
    path = Path(source)
    local = path.exists() or path.parent.is_dir() or path.suffix in (*SUFFIXES.values(), ".json")
    hub_id = not local and HUB_ID.fullmatch(source)
    if format == "huggingface" or (format == "auto" and hub_id):
        return hub_files(source, request.split, request.revision), None
    inside = path.is_dir() and (path / INDEX).is_file()
    if inside or bare(source).endswith(INDEX):
        url = join(source, INDEX) if inside else source
        index = read_index(url)
        if index is None:
            raise ValueError(f"{source}: no such index, or it may not be read. Correct its path.")
        urls, start = list(index), f"{folder_of(url)}/"
        names = [u.removeprefix(start) if u.startswith(start) else Path(bare(u)).name for u in urls]
        chosen = of_split(names, request.split, source)
        return urls if chosen is None else [urls[number] for number in chosen], index
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
        found += list_remote(url) if is_pattern(bare(url)) else [url]
    if not found:
        raise ValueError(f"{source}: no files there. Correct the address or its pattern.")
    return found


def _check_named(urls: Sequence[str], index: dict[str, Counted], folder: str) -> None:
    others = [url for url in urls if bare(url) not in index]
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


@dataclass(frozen=True)
class _Scan(Dataset):
    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> int:
        return len(find_samples(Path(self.paths[index]))) - 1


def _parquet_shards(urls: Sequence[str], request: Request, source: str, cache: Path) -> list[Shard]:
    """Pieces of Parquet files, from their footers."""
    sizes = _sizes([url for url in urls if not is_remote(url)])
    check_columns(read_footer(urls[0])[1], request, source)
    footers = keep_counts(urls, cache, _read_footers)
    columns = footers[urls[0]]["columns"]
    shards = []
    for url in urls:
        if sorted(footers[url]["columns"]) != sorted(columns):
            raise ValueError(
                f"{url}: columns {', '.join(footers[url]['columns'])}, but {urls[0]} has "
                f"{', '.join(columns)}. Files read together need the same columns."
            )
        row = 0
        for first, last, count in pieces(footers[url]["rows"]):
            shards.append(Shard(url, count, sizes.get(url), first, last, row))
            row += count
    return shards


def _read_footers(urls: Sequence[str]) -> dict[str, dict[str, list]]:
    with ThreadPoolExecutor(THREADS) as pool:
        footers = zip(urls, pool.map(read_footer, urls), strict=True)
        return {url: {"rows": rows, "columns": schema.names} for url, (rows, schema) in footers}
