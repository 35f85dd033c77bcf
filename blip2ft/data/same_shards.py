"""Whether a run that goes on has the shards that it began with: its order is one of those."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from blip2ft.data.remote import bare
from blip2ft.data.shard_records import Source


def describe_shards(sources: Sequence[Source], shuffle: int) -> dict[str, Any]:
    """All that the order of a stream depends on, as JSON; shards by name and number of samples.

    Where the sources lie is left out: they may move.
    """
    return {
        "shuffle": shuffle,
        "sources": [
            {
                "source": source.name,
                "weight": source.weight,
                "samples": len(source),
                "shards": [
                    [f"{name}:{shard.row}" if shard.row else name, shard.samples]
                    for name, shard in zip(_names(source), source.shards, strict=True)
                ],
            }
            for source in sources
        ],
    }


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], run: str) -> None:
    """Raise ValueError with the first thing that differs between two descriptions."""
    differs = next(_differences(before, now), None)
    if differs is not None:
        raise ValueError(
            f"{run} was begun with other training data: {differs}. Samples would be lost or come "
            "twice; go on with what it was begun with, or begin another run"
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if before["shuffle"] != now["shuffle"]:
        yield f"shuffle was {before['shuffle']} and is {now['shuffle']}"
    theirs, ours = before["sources"], now["sources"]
    if len(theirs) != len(ours):
        yield f"{len(theirs)} sources were given, and now are {len(ours)}"
    for was, is_ in zip(theirs, ours, strict=False):
        if was["weight"] != is_["weight"]:
            yield f"the weight of {is_['source']} was {was['weight']} and is {is_['weight']}"
        for number in range(max(len(was["shards"]), len(is_["shards"]))):
            one, other = (_shown(found["shards"], number) for found in (was, is_))
            if one != other:
                yield f"shard {number + 1} of {is_['source']} was {one} and is {other}"


def _shown(shards: Sequence[Sequence], number: int) -> str:
    if number >= len(shards):
        return "none"
    name, samples = shards[number]
    return f"{name} ({samples} samples)"


def _names(source: Source) -> list[str]:
    """The shards' paths, from the folder on that all are in."""
    paths = [PurePosixPath(bare(shard.url)).parts for shard in source.shards]
    first, last = min(paths), max(paths)
    common = 0
    while common < min(len(first), len(last)) - 1 and first[common] == last[common]:
        common += 1
    return ["/".join(parts[common:]) for parts in paths]
