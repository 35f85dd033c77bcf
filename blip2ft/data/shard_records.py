"""Records of many shards, each found and read when it is asked for."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from blip2ft.data.broken import Broken
from blip2ft.data.cache import Cache
from blip2ft.data.counts import fingerprint
from blip2ft.data.entries import (
    ID_COLUMN,
    Columns,
    Problems,
    Request,
    check_captions,
    find_columns,
)
from blip2ft.data.records import Record
from blip2ft.data.remote import download, is_remote, persist
from blip2ft.data.row_groups import Rows, unpack
from blip2ft.data.shards import Shard
from blip2ft.data.tar import find_samples, read_sample
from blip2ft.data.webdataset import image_extension, texts_of

TRIES = 3  # to open a shard that the cache may just have removed


@dataclass(frozen=True)
class Source:
    """Shards of one kind, and how they are read.

    format: "webdataset" or "parquet"; weight: its share in a mixture, None where sources aren't
    weighed; repeat: whether its samples may come more than once.
    """

    name: str
    format: str
    shards: tuple[Shard, ...]
    request: Request
    weight: float | None = None
    repeat: bool = True

    @cached_property
    def sizes(self) -> np.ndarray:
        """(S,) int64, samples of each shard."""
        return np.array([shard.samples for shard in self.shards], np.int64)

    def __len__(self) -> int:
        return int(self.sizes.sum())


class Found(NamedTuple):
    """A record and what else its sample holds.

    key: the sample's name in its shard; named: whether the id is its own; extension: the image
    file's, "" where nothing tells it; others: all other files of the sample, by extension.
    """

    record: Record
    key: str
    named: bool
    extension: str
    others: Mapping[str, bytes]


class Records:
    """Every sample of the sources by its number, as a `Record`, or `Broken` with the reason.

    A shard that isn't what it shall be, such as one that was damaged, has broken samples only.
    What was found out of the `keep` shards used last is kept, eight bytes a sample.
    """

    def __init__(self, sources: Sequence[Source], cache: Cache, *, keep: int) -> None:
        self.sources, self.cache, self.keep = sources, cache, keep
        self.ends = np.cumsum(np.concatenate([source.sizes for source in sources]))
        self.source_ends = np.cumsum([len(source.shards) for source in sources])
        self._opened: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, number: int) -> Record | Broken:
        found = self.find(number)
        return found if isinstance(found, Broken) else found.record

    def find(self, number: int) -> Found | Broken:
        """A record with all that its sample holds."""
        index = self.shard_of(number)
        start = int(self.ends[index - 1]) if index else 0
        for tried in range(1, TRIES + 1):
            try:
                return self.fetch(index).find(number - start)
            except FileNotFoundError:  # the cache made room meanwhile
                self._opened.pop(index, None)
                if tried == TRIES:
                    raise
        raise AssertionError

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict()}

    @property
    def are_here(self) -> bool:
        """Whether no shard has to be fetched or unpacked before it is read."""
        tars = all(source.format == "webdataset" for source in self.sources)
        return tars and not any(is_remote(s.shards[0].url) for s in self.sources)

    def shard_of(self, number: int) -> int:
        """The shard that a sample is in, numbered through all sources."""
        return int(np.searchsorted(self.ends, number, side="right"))

    def fetch(self, index: int) -> "_Tar | _Rows | _Damaged":
        """A shard, opened; it is in the cache then, if it wasn't here."""
        if index in self._opened:
            self._opened.move_to_end(index)
            return self._opened[index]
        number = int(np.searchsorted(self.source_ends, index, side="right"))
        source = self.sources[number]
        first = int(self.source_ends[number]) - len(source.shards)
        self._opened[index] = opened = open_shard(source, source.shards[index - first], self.cache)
        if len(self._opened) > self.keep:
            self._opened.popitem(last=False)
        return opened


def open_shard(source: Source, shard: Shard, cache: Cache) -> "_Tar | _Rows | _Damaged":
    """The samples of one shard, fetched and unpacked where it has to be.

    Raises ValueError where it can't be fetched, and FileNotFoundError where it isn't there.
    """
    try:
        if source.format == "parquet":
            return _open_rows(source.request, shard, cache)
        return _open_tar(source.request, shard, cache)
    except _DamagedError as error:
        return _Damaged(shard.url, str(error))


def _open_tar(request: Request, shard: Shard, cache: Cache) -> "_Tar":
    path = Path(shard.url)
    if is_remote(shard.url):
        fetch = partial(download, shard.url, size=shard.size)
        path = cache.get(f"{fingerprint(shard.url)} {shard.size}", fetch)
    try:
        starts = find_samples(path)
    except ValueError as error:
        raise _DamagedError(str(error)) from error
    if len(starts) - 1 != shard.samples:
        raise _DamagedError(
            f"{len(starts) - 1} samples in it, but {shard.samples} by its index; write the index "
            "anew: blip2ft shard --index"
        )
    return _Tar(shard.url, path, starts, request)


def _open_rows(request: Request, shard: Shard, cache: Cache) -> "_Rows":
    name = f"{fingerprint(shard.url)} {shard.first} {shard.last} {request.image_column}"

    def make(path: Path) -> None:
        fill = partial(unpack, shard.url, shard.first, shard.last, request.image_column, path)
        if is_remote(shard.url):
            persist(fill, shard.url)
        else:
            fill()

    try:
        rows = Rows(cache.get(name, make))
    except (ValueError, IndexError, OSError) as error:
        # pyarrow's own errors have no number, those of disk and network have one
        if is_remote(shard.url) or getattr(error, "errno", None):
            raise
        raise _DamagedError(f"rows from {shard.row} on can't be unpacked: {error}") from error
    if len(rows) != shard.samples:
        raise _DamagedError(f"{len(rows)} rows in it, where {shard.samples} were; it was changed")
    return _Rows(shard, rows, find_columns(rows.names, request, shard.url), request)


class _DamagedError(Exception):
    """A shard isn't what it shall be."""


@dataclass(frozen=True)
class _Damaged:
    url: str
    reason: str

    def find(self, index: int) -> Broken:
        return Broken(f"{self.url}: sample {index}", self.reason)


@dataclass(frozen=True)
class _Tar:
    url: str
    path: Path
    starts: np.ndarray
    request: Request

    def find(self, index: int) -> Found | Broken:
        origin = f"{self.url}: sample {index}"
        try:
            sample = read_sample(self.path, int(self.starts[index]), int(self.starts[index + 1]))
            origin = f"{self.url}: {sample.key}"
            extension = image_extension(sample, self.request)
            own, captions, fields = texts_of(sample, self.request)
        except ValueError as error:
            return Broken(origin, str(error))
        identity = sample.key if own is None else own
        image = sample.data[extension]
        record = record_of(image, identity, captions, origin, fields, self.request)
        if isinstance(record, Broken):
            return record
        others = {e: data for e, data in sample.data.items() if e not in (extension, "json")}
        return Found(record, sample.key, own is not None, extension, others)


@dataclass(frozen=True)
class _Rows:
    shard: Shard
    rows: Rows
    columns: Columns
    request: Request

    def find(self, index: int) -> Found | Broken:
        number = self.shard.row + index
        origin = f"{self.shard.url}: row {number}"
        fields = self.rows[index]
        image = fields.pop(self.columns.image)
        data = image.get("bytes") if isinstance(image, dict) else image
        if not data:
            return Broken(origin, "the row holds no image")
        captions = fields.pop(self.columns.caption) if self.columns.caption else None
        identity = fields.pop(ID_COLUMN, None)
        own = type(identity) in (str, int)
        record = record_of(
            data, identity if own else number, captions, origin, fields, self.request
        )
        if isinstance(record, Broken):
            return record
        return Found(record, f"{number:09d}", own, "", {})


def record_of(
    image: bytes,
    identity: str | int,
    captions: Any,
    origin: str,
    fields: Mapping[str, Any],
    request: Request,
) -> Record | Broken:
    """A record with those captions that aren't empty, or `Broken` where they can't be read, or
    there are none and some are required."""
    problems = Problems(origin)
    said = check_captions(captions, origin, False, problems)
    if problems.counts:
        return Broken(origin, next(what for what, _ in problems.places))
    if not said and request.require_captions:
        return Broken(origin, "no caption, or an empty one")
    return Record(image, identity, said, origin, fields)
