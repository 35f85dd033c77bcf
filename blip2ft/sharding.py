"""Write any source of images and captions as tar shards, which training reads as a stream.

OUT/shard-000000.tar ...   000000123.jpg and 000000123.json {"image_id", "caption" or "captions"}
OUT/index.json             samples and size of each shard, and how they were made
OUT/broken.jsonl           {"origin", "reason"} of each image that was left out, if any was
OUT/filtered.jsonl         a line for each caption that filters dropped or masked

The same records and settings give the same bytes, so what a kill left is gone on with.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from blip2ft.bars import progress_bar
from blip2ft.data.entries import Request
from blip2ft.data.loading import load_batches
from blip2ft.data.patterns import find_files
from blip2ft.data.records import Record, read_records
from blip2ft.data.remote import bare, download, is_remote
from blip2ft.data.shard_index import INDEX, Counted, read_index, write_index
from blip2ft.data.shard_writer import Written, write_shard
from blip2ft.data.shards import list_files, scan_tars
from blip2ft.data.tar import find_samples
from blip2ft.filters.rules import rules_of
from blip2ft.filters.samples import filter_samples
from blip2ft.training.run import append_line, read_lines, write_lines
from blip2ft.whole import LOCK, PARTIAL, alone, remove_partial, write_text

PLAN = ".plan.json"  # how a folder that isn't finished is made
DONE = ".done.jsonl"  # a line for each shard in it
BROKEN = "broken.jsonl"
FILTERED = "filtered.jsonl"
COUNTED = ".counted.jsonl"  # tars elsewhere of which the index is to be written
FEW = 3  # of them need no bar


@dataclass(frozen=True)
class Sharded:
    """What is in a folder of shards now.

    broken: origin and reason of what was left out; filtered: what the filters did, in a line.
    """

    shards: int
    samples: int
    broken: list[dict[str, str]]
    filtered: str | None = None


def write_shards(
    source: str,
    out: str | Path,
    *,
    size: int = 1000,
    image_size: int | None = None,
    shuffle: int | None = None,
    workers: int = 0,
    progress: bool = False,
    filters: Mapping[str, Any] | None = None,
    **reading: Any,
) -> Sharded:
    """Write what `read_records(source, **reading)` gives as shards into the folder `out`.

    A folder that was begun with the same settings is finished. Images are copied byte for byte,
    after a look at whether they can be opened; those that can't are left out.

    Args:
        source: What `read_records` reads.
        out: New or empty folder, or one that this function made.
        size: Records in a shard; broken ones are missing in it.
        image_size: Shrink images whose shorter side has more pixels to it, as JPEG.
        shuffle: Seed of a new order of all records; None keeps theirs.
        workers: Processes that write, a shard each.
        progress: Show a bar.
        filters: What to drop or mask among the captions, fields of `Rules` by name; other columns
            are written as they are.
        reading: Arguments of `read_records`.

    Raises:
        ValueError: What `read_records`, `rules_of` and `filter_samples` raise; `out` holds
            something else, or was made with other settings.
    """
    out = Path(out)
    for name, number in (("size", size), ("image_size", image_size)):
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}: it must be at least 1")
    check_folder(out)
    rules = rules_of(filters or {})
    records, filtered = read_records(source, **reading), None
    if rules is not None:
        filtered = filter_samples(records, rules, workers=workers, progress=progress)
        records = filtered.kept
    order = np.arange(len(records))
    if shuffle is not None:
        order = np.random.default_rng(shuffle).permutation(len(records))
    plan = {"size": size, "image_size": image_size, "shuffle": shuffle, **reading}
    plan.pop("allow", None)  # changes no record, and folders of before don't tell it
    plan["filters"] = None if rules is None else json.loads(json.dumps(asdict(rules)))
    plan = {k: str(v) if isinstance(v, Path) else v for k, v in plan.items()}
    plan |= {"source": str(source), "records": len(records), "digest": digest(records)}
    out.mkdir(parents=True, exist_ok=True)
    with alone(out):
        found = read_plan(out)
        if found is not None:
            check_plan(out, found, plan)
        told = None if filtered is None else filtered.told
        if (out / INDEX).is_file():
            return replace(_finished(out), filtered=told)
        write_text(out / PLAN, json.dumps(plan))
        remove_partial(out)
        if filtered is not None:
            write_lines(out / FILTERED, filtered.rows)
        done = _read_done(out)
        name = re.sub(r"[^\w-]", "_", reading.get("split") or "shard")
        todo = [n for n in range(-(-len(records) // size)) if n not in done]
        job = _Job(records, order, size, out, name, image_size)
        loader = load_batches(job, [[number] for number in todo], list, workers=workers)
        for (written,) in progress_bar(loader, "shard", len(todo), hidden=not progress):
            done[written.number] = written
            with (out / DONE).open("a") as file:
                file.write(json.dumps(written._asdict()) + "\n")
        finished = _finish(out, [done[number] for number in sorted(done)], plan)
        return replace(finished, filtered=told)


def index_shards(source: str) -> tuple[Path, int, int]:
    """Write index.json for tars that are there: its path, how many they are, and their samples.

    source: a folder of tars, a glob or a pattern such as {000..123}.tar; all tars of their folder
      are named, as those that an index leaves out aren't read. How they were made stays in it.

    Raises ValueError where the tars are in several folders, or one is cut off, where index.json is
    something else, and where `write_shards` hasn't finished the folder.
    """
    named, _ = find_files(source, ".tar", None)
    folders = {file.parent for file in named}
    if len(folders) > 1:
        raise ValueError(
            f"{source}: tars in {len(folders)} folders, such as {' and '.join(map(str, named[:1]))}"
            f" and {named[-1]}; each folder has an index of its own: name one folder, or write one "
            "index of all elsewhere with --out"
        )
    (folder,) = folders
    check_index(folder)
    if (folder / PLAN).is_file():
        raise ValueError(f"{folder} isn't finished; give blip2ft shard --out {folder} again")
    files = sorted({*named, *folder.glob("[!.]*.tar")})
    counts = scan_tars([str(file) for file in files])
    write_index(
        folder,
        {f.name: Counted(counts[str(f)], f.stat().st_size) for f in files},
        read_plan(folder),
    )
    return folder / INDEX, len(files), sum(counts.values())


def index_elsewhere(
    source: str, out: Path, *, split: str | None = None, revision: str | None = None
) -> tuple[Path, int, int]:
    """Write OUT/index.json for tars that lie elsewhere, by their addresses: see `index_shards`.

    Those that aren't local are fetched one after the other, counted and removed again; where that
    was stopped, it is gone on with.

    source: addresses of tars, or what else a stream reads tars from; split and revision: see
      `open_source`.

    Raises ValueError where there are no tars, one can't be fetched or is cut off, and where
    index.json is something else.
    """
    urls, _ = list_files(source, "auto", Request(split, "image", None, None, False, revision))
    others = [url for url in urls if not bare(url).lower().endswith(".tar")]
    if others:
        raise ValueError(f"{others[0]}: not a tar; an index is for tars alone")
    check_index(out)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out):
        lines = read_lines(out / COUNTED)
        done = {line["url"]: Counted(line["nsamples"], line["filesize"]) for line in lines}
        for url in progress_bar(urls, "count", hidden=len(urls) < FEW):
            name = url if is_remote(url) else os.path.abspath(url)
            if name not in done:
                done[name] = count_at(url, out / f"{PARTIAL}fetched")
                entry = {"url": name, "nsamples": done[name].samples, "filesize": done[name].size}
                append_line(out / COUNTED, entry)
        names = [url if is_remote(url) else os.path.abspath(url) for url in urls]
        write_index(out, {name: done[name] for name in names})
        (out / COUNTED).unlink(missing_ok=True)
    return out / INDEX, len(names), sum(done[name].samples for name in names)


def count_at(url: str, partial: Path) -> Counted:
    """Samples and size of a tar, fetched to `partial` for as long as it takes."""
    path = partial if is_remote(url) else Path(url)
    try:
        if is_remote(url):
            download(url, path, None)
        return Counted(len(find_samples(path)) - 1, path.stat().st_size)
    except ValueError as error:
        raise ValueError(str(error).replace(str(partial), url)) from error
    finally:
        partial.unlink(missing_ok=True)


def check_index(folder: Path) -> None:
    """Raise ValueError where index.json is there and isn't one of shards."""
    try:
        read_index(str(folder / INDEX))
    except ValueError as error:
        raise ValueError(
            f"{folder / INDEX} isn't an index of shards and would be overwritten; move it away"
        ) from error


def check_folder(out: Path) -> None:
    """Raise ValueError where the folder holds something else than shards made here."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; choose a folder for the shards")
    held = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    others = [name for name in held if name != LOCK and not name.startswith(PARTIAL)]
    if others and read_plan(out) is None:
        raise ValueError(
            f"{out} is in use and holds no shards made by blip2ft ({others[0]}); choose another "
            "folder, or write an index for tars that are there: blip2ft shard --index"
        )


def read_plan(out: Path) -> dict[str, Any] | None:
    """How a folder of shards is made, or was; None where nothing says so."""
    try:
        if (out / PLAN).is_file():
            return json.loads((out / PLAN).read_text())
        if (out / INDEX).is_file():
            return json.loads((out / INDEX).read_text()).get("blip2ft")
    except (ValueError, AttributeError):
        return None
    return None


def check_plan(out: Path, found: dict[str, Any], plan: dict[str, Any]) -> None:
    """Raise ValueError where shards were made in another way, or of other records."""
    differing = [name for name in plan if found.get(name) != plan[name]]
    if not differing:
        return
    first = differing[0]
    what = f"with {first} {found.get(first)}, not {plan[first]}"
    if first in ("records", "digest"):
        what = "of other records: the source was changed since"
    raise ValueError(f"{out} was made {what}; choose another folder, or remove this one")


def digest(records: Sequence[Record]) -> str:
    """A name for what the records say; of images, only where they are."""
    found = hashlib.sha256()
    for record in records:
        said = [record.image_id, record.captions, record.origin, dict(record.fields)]
        found.update(json.dumps(said, default=str).encode())
    return found.hexdigest()


def _finish(out: Path, written: Sequence[Written], plan: dict[str, Any]) -> Sharded:
    broken = [sample for shard in written for sample in shard.broken]
    if not any(shard.samples for shard in written):
        raise ValueError(
            f"none of the images can be read, so there is nothing to write; {broken[0]['origin']}: "
            f"{broken[0]['reason']}"
        )
    if broken:
        lines = "".join(json.dumps(sample) + "\n" for sample in broken)
        write_text(out / BROKEN, lines)
    named = {s.name: Counted(s.samples, s.size) for s in written if s.samples}
    write_index(out, named, plan)
    return _finished(out)


def _finished(out: Path) -> Sharded:
    for name in (PLAN, DONE):
        (out / name).unlink(missing_ok=True)
    listed = json.loads((out / INDEX).read_text())["shardlist"]
    path = out / BROKEN
    broken = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return Sharded(len(listed), sum(entry["nsamples"] for entry in listed), broken)


def _read_done(out: Path) -> dict[int, Written]:
    """The shards that are whole, by number; a line that a kill cut off doesn't count."""
    path, done = out / DONE, {}
    *lines, _unfinished = path.read_text().split("\n") if path.is_file() else [""]
    for line in lines:
        written = Written(**json.loads(line))
        shard = out / written.name
        if not written.samples or (shard.is_file() and shard.stat().st_size == written.size):
            done[written.number] = written
    write_text(path, "".join(f"{line}\n" for line in lines))
    return done


@dataclass(frozen=True)
class _Job(Dataset):
    """Shards by number, each written when it is asked for."""

    records: Sequence[Record]
    order: np.ndarray
    size: int
    out: Path
    name: str
    image_size: int | None

    def __getitem__(self, number: int) -> Written:
        first = number * self.size
        chosen = [self.records[i] for i in self.order[first : first + self.size]]
        return write_shard(
            self.out, f"{self.name}-{number:06d}.tar", number, chosen, first, self.image_size
        )
