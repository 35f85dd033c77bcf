"""The folder that capfilt writes: whole shards, what became of each, and how they were made.

OUT/00012.tar         the source's shard of that name, with other captions
OUT/00012_stats.json  what became of its samples; written before the tar is there
OUT/capfilt.json      the settings, and which shards the source has
OUT/index.json        how many samples each tar holds, and
OUT/skipped.jsonl     what couldn't be read; both only once all shards are there
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from blip2ft.data.broken import Broken
from blip2ft.data.shard_index import INDEX, Counted, write_index
from blip2ft.data.tar import fill_tar
from blip2ft.whole import LOCK, remove_partial, whole, write_text

MADE, SKIPPED = "capfilt.json", "skipped.jsonl"
FORMAT = 1


@dataclass(frozen=True)
class Counts:
    """What became of samples.

    samples: that could be read; skipped: that couldn't; dropped: without a caption that was kept;
    replaced: with captions of which only synthetic ones were kept, where the web had some; web:
    captions from the web, of which `web_kept` were kept; kept: captions of either kind.
    web_score, kept_score: sums over `web` and `kept`.
    """

    samples: int = 0
    skipped: int = 0
    dropped: int = 0
    replaced: int = 0
    web: int = 0
    web_kept: int = 0
    kept: int = 0
    web_score: float = 0.0
    kept_score: float = 0.0

    def __add__(self, other: "Counts") -> "Counts":
        ours, theirs = asdict(self), asdict(other)
        return Counts(**{name: ours[name] + theirs[name] for name in ours})


@dataclass(frozen=True)
class Outcome:
    """What became of one sample: its files by name, none where it isn't written."""

    counts: Counts
    files: Mapping[str, bytes] = field(default_factory=dict)
    broken: Broken | None = None


def check_made(out: Path, made: Mapping[str, Any], shards: Mapping[str, Sequence]) -> None:
    """Raise ValueError where `out` is in use by something else, or was begun otherwise.

    made: settings by name; those that only one of the two has aren't compared. shards: number of
    samples and size of each of the source's, by name.
    """
    path = out / MADE
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; choose a folder for the shards (--out)")
    held = [p.name for p in out.iterdir() if not p.name.startswith(".")] if out.is_dir() else []
    if held and MADE not in held:
        raise ValueError(f"{out} is in use ({held[0]}) and isn't capfilt's; choose another --out")
    if not held:
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        version, settings, theirs = before["format"], before["settings"], before["shards"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); choose another --out") from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version}, this blip2ft writes {FORMAT}; use another")
    differ = [
        f"{name} was {settings[name]!r} and is {value!r}"
        for name, value in made.items()
        if name in settings and settings[name] != value
    ]
    if differ:
        raise ValueError(
            f"{out} was begun with other settings: {', '.join(differ)}. Give those again, or "
            "choose another --out"
        )
    ours = {name: list(shard) for name, shard in shards.items()}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            was, now = (_shown(shard) for shard in (theirs.get(name), ours.get(name)))
            raise ValueError(
                f"{out} was begun with another source: its shard {name} was {was}, and now is "
                f"{now}. Give that source again, or choose another --out"
            )


def begin(out: Path, made: Mapping[str, Any], shards: Mapping[str, Sequence]) -> None:
    """Write how the shards of `out` are made, or check that it is as before.

    For those who are about to write some: an index that is there is of shards that are gone.
    """
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / LOCK):
        check_made(out, made, shards)
        (out / INDEX).unlink(missing_ok=True)
        if not (out / MADE).is_file():
            whole = {"format": FORMAT, "settings": dict(made), "shards": dict(shards)}
            write_text(out / MADE, json.dumps(whole, ensure_ascii=False, indent=1) + "\n")


def write_shard(out: Path, name: str, outcomes: Iterable[Outcome]) -> None:
    """Write the tar `name` as samples come, and what became of them."""
    counts, broken = Counts(), []

    def files() -> Iterator[tuple[str, bytes]]:
        nonlocal counts
        for outcome in outcomes:
            counts += outcome.counts
            broken.extend([outcome.broken] if outcome.broken else [])
            yield from outcome.files.items()

    with whole(out / name) as partial:
        fill_tar(partial, files())
        # img2dataset's word for what a shard holds, which readers know
        stats = {"successes": counts.samples - counts.dropped, "counts": asdict(counts)}
        skipped = [asdict(sample) for sample in broken]
        write_text(_stats_of(out, name), json.dumps(stats | {"skipped": skipped}) + "\n")


def finish(out: Path, names: Sequence[str]) -> bool:
    """Write index.json and skipped.jsonl if all shards are there; whether this was done now."""
    with FileLock(out / LOCK):
        if (out / INDEX).is_file() or not all((out / name).is_file() for name in names):
            return False
        remove_partial(out)
        stats = {name: json.loads(_stats_of(out, name).read_text()) for name in names}
        lines = (json.dumps(s) for name in names for s in stats[name]["skipped"])
        write_text(out / SKIPPED, "".join(f"{line}\n" for line in lines))
        write_index(
            out,
            {n: Counted(s["successes"], (out / n).stat().st_size) for n, s in stats.items()},
        )
        return True


def read_counts(out: Path, names: Sequence[str]) -> Counts:
    """What became of the samples of whole shards."""
    total = Counts()
    for name in names:
        total += Counts(**json.loads(_stats_of(out, name).read_text())["counts"])
    return total


def _stats_of(out: Path, name: str) -> Path:
    return out / f"{name.removesuffix('.tar')}_stats.json"


def _shown(shard: Sequence | None) -> str:
    return "not there" if shard is None else f"one of {shard[0]} samples and {shard[1]} bytes"
