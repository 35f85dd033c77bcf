"""Training data too large to be listed: samples of many shards, mixed, shuffled and read late."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from blip2ft.data.ahead import fetch_ahead
from blip2ft.data.broken import Broken
from blip2ft.data.cache import FETCHED, Cache, default_cache
from blip2ft.data.entries import Request
from blip2ft.data.interleave import Interleaved, lanes
from blip2ft.data.mixture import Mixture, slots
from blip2ft.data.order import Key, Order
from blip2ft.data.remote import is_remote
from blip2ft.data.same_shards import describe_shards
from blip2ft.data.shard_records import Records, Source
from blip2ft.data.shards import find_shards

GB = 1_000_000_000
FEW = 10  # samples looked at before a run
AROUND = 10  # samples of a shard, then of others, tried where a batch has nothing readable


def open_stream(
    sources: Sequence[Mapping[str, Any]],
    *,
    shuffle: int = 10_000,
    cache: str | Path | None = None,
    cache_gb: float = 50.0,
) -> "Stream":
    """The samples of one or several sources; only a few of them are read now.

    Args:
        sources: The arguments of `open_source` for each. With weights, each source has its share of
            what is drawn; without, all are one, each sample of which comes once an epoch.
        shuffle: So many samples at least lie in the shards that are read at once.
        cache: Folder for shards that aren't local, for unpacked Parquet files, and for counts.
        cache_gb: At most so much is kept there.

    Raises:
        ValueError: What `find_shards` finds; weights for some sources only, or impossible ones; a
            shard in two sources; no image or no caption in the first samples; too small a cache.
    """
    if not sources or shuffle < 1:
        raise ValueError(
            f"a stream needs sources and a shuffle of at least 1; got {len(sources)} sources and "
            f"shuffle {shuffle}"
        )
    folder = Path(cache).expanduser() if cache is not None else default_cache()
    opened = tuple(open_source(**source, cache=folder) for source in sources)
    check_weights(opened)
    check_apart(opened)
    stream = Stream(opened, shuffle, Cache(folder / FETCHED, int(cache_gb * GB)))
    check_cache(stream)
    check_samples(stream)
    return stream


def open_source(
    source: str,
    *,
    cache: Path,
    weight: float | None = None,
    format: str = "auto",
    split: str | None = None,
    image_column: str = "image",
    caption_column: str | None = None,
    repeat: bool = True,
    revision: str | None = None,
    require_captions: bool = True,
) -> Source:
    """The shards of one source.

    Args:
        source: A file, folder, glob, pattern such as {000..123}.tar, or address of these; an
            index.json; or a hub id.
        cache: Folder for what was counted.
        weight: Its share of what is drawn; all sources of a stream have one, or none.
        format: "webdataset", "parquet" or "huggingface"; "auto" tells it from the name.
        split: Which split, told from the files' names.
        image_column: Column of the image; of tars, the extension, where it isn't an image's usual.
        caption_column: Column of the captions; of tars, a field of the .json or an extension. None
            takes caption, captions or text, and for tars .txt.
        repeat: Whether samples may come again once all were drawn.
        revision: Branch, tag or commit of a dataset on the hub.
        require_captions: Whether a sample without a caption is broken.

    Raises ValueError as `find_shards` does.
    """
    request = Request(split, image_column, caption_column, None, require_captions, revision)
    kind, shards = find_shards(source, format=format, request=request, cache=cache)
    if not shards:
        raise ValueError(f"{source}: its shards hold no samples. Give others.")
    return Source(source, kind, tuple(shards), request, weight, repeat)


@dataclass(frozen=True)
class Stream:
    """Samples of all sources, numbered source after source and shard after shard."""

    sources: tuple[Source, ...]
    shuffle: int
    cache: Cache

    def __len__(self) -> int:
        return int(self.sizes.sum())

    @cached_property
    def sizes(self) -> np.ndarray:
        """(S,) int64, samples of each shard of all sources."""
        return np.concatenate([source.sizes for source in self.sources])

    @property
    def is_mixture(self) -> bool:
        """Whether the sources are weighed."""
        return self.sources[0].weight is not None

    @cached_property
    def records(self) -> Records:
        """What each number stands for: a `Record`, or `Broken`."""
        at_once = sum(count for _, count in self.at_once())
        return Records(self.sources, self.cache, keep=2 * at_once)

    def at_once(self) -> list[tuple[Sequence[Source], int]]:
        """How many shards are read at once, of each source that is weighed, or of all together."""
        apart = [[source] for source in self.sources] if self.is_mixture else [self.sources]
        sizes = (np.concatenate([source.sizes for source in part]) for part in apart)
        return [(part, lanes(s, self.shuffle)) for part, s in zip(apart, sizes, strict=True)]

    @property
    def description(self) -> dict[str, Any]:
        """What the order depends on, for a run that goes on: see `check_same`."""
        return describe_shards(self.sources, self.shuffle)

    def order(self, batch_size: int, seed: int) -> Order:
        """The order of training. An epoch is as many samples as there are; where sources are
        weighed, some of them come more often and others not."""
        if self.is_mixture:
            return Order(len(self), batch_size, seed, self._mixture(seed).key_at)
        pooled = Interleaved(self.sizes, shuffle=self.shuffle, seed=seed)
        return Order(len(self), batch_size, seed, pooled.key_at)

    def check_supply(self, samples: int, seed: int) -> None:
        """Raise ValueError where a run of `samples` takes more of a source than it may give."""
        for number, source in enumerate(self.sources):
            needed, there, whose = samples, len(self), "the sources have"
            if self.is_mixture:
                needed, there = self._mixture(seed).drawn(number, samples), len(source)
                whose = f"{source.name} has"
            if not source.repeat and needed > there:
                raise ValueError(
                    f"{whose} {there} samples, but this run takes {needed} of them, and repeat is "
                    f"false for {source.name}; train for fewer steps, lower its weight, or set "
                    "repeat to true"
                )

    def fetch_ahead(self, batches: Iterable[list[Key]], processes: int) -> Iterator[list[Key]]:
        """The micro-batches of one of `processes`, while shards they come to are fetched ahead.

        Of local tars, just the same batches.
        """
        if self.records.are_here:
            return iter(batches)
        return fetch_ahead(
            batches,
            self.records.shard_of,
            self.records.fetch,
            ahead=self.shuffle // (2 * processes),
            remember=self.records.keep,
        )

    def nearby(self, key: Key) -> Iterator[Key]:
        """What to try in the place of a sample that is broken: its shard's next, then others'."""
        ends = np.cumsum(self.sizes)
        shard = int(np.searchsorted(ends, key.sample, side="right"))
        size, start = int(self.sizes[shard]), int(ends[shard] - self.sizes[shard])
        for step in range(1, min(AROUND, size)):
            yield Key(key.epoch, start + (key.sample - start + step) % size)
        for step in range(1, min(AROUND, len(ends))):
            other = (shard + step) % len(ends)
            yield Key(key.epoch, int(ends[other] - self.sizes[other]))

    def _mixture(self, seed: int) -> Mixture:
        keys = [
            Interleaved(source.sizes, shuffle=self.shuffle, seed=seed, number=number).key_at
            for number, source in enumerate(self.sources)
        ]
        counts = np.array([len(source) for source in self.sources])
        firsts = (np.cumsum(counts) - counts).tolist()
        return Mixture(keys, firsts, [source.weight or 0.0 for source in self.sources], seed=seed)


def check_weights(sources: Sequence[Source]) -> None:
    """Raise ValueError for weights of some sources only, and for those that can't be."""
    weights = [source.weight for source in sources]
    if weights.count(None) not in (0, len(weights)):
        name = sources[weights.index(None)].name
        raise ValueError(f"{name} has no weight, but others have; give each source one, or none")
    if None not in weights:
        slots([weight for weight in weights if weight is not None])


def check_apart(sources: Sequence[Source]) -> None:
    """Raise ValueError for a shard that is there twice."""
    seen: dict[tuple[str, int], str] = {}
    for source in sources:
        for shard in source.shards:
            url = shard.url if is_remote(shard.url) else os.path.realpath(shard.url)
            if (url, shard.first) in seen:
                raise ValueError(
                    f"{shard.url} is there twice, in {seen[url, shard.first]} and in "
                    f"{source.name}; leave it out of one of them"
                )
            seen[url, shard.first] = source.name


def check_cache(stream: Stream) -> None:
    """Raise ValueError where the cache can't hold the shards that are read at once, twice."""
    needed = 0
    for part, at_once in stream.at_once():
        count = sum(len(source.shards) for source in part)
        tars = [source.shards for source in part if source.format == "webdataset"]
        remote = [shard.size for shards in tars for shard in shards if is_remote(shard.url)]
        known = [size for size in remote if size]
        if known:
            mean = sum(known) / len(known)
            needed += round(min(at_once, count) * mean * len(remote) / count)
    enough = math.ceil(20 * needed / GB) / 10
    if 2 * needed > stream.cache.limit:
        raise ValueError(
            f"cache_gb is {stream.cache.limit / GB:g}, but the shards that are read at once have "
            f"{needed / GB:.3g} GB, and need room twice; set cache_gb to {enough} or more, or "
            f"lower shuffle ({stream.shuffle})"
        )


def check_samples(stream: Stream) -> None:
    """Raise ValueError where none of a source's first samples has an image and a caption."""
    first = 0
    for source in stream.sources:
        few = [stream.records[first + i] for i in range(min(FEW, source.shards[0].samples))]
        broken = [item for item in few if isinstance(item, Broken)]
        if len(broken) == len(few):
            raise ValueError(
                f"{source.name}: none of its first {len(few)} samples can be used. "
                f"{broken[0].origin}: {broken[0].reason}. Set image_column and caption_column to "
                "what holds image and caption."
            )
        first += len(source)
