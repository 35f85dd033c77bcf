"""Small tars and Parquet files as training shards."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from blip2ft.data.images import TrainTransform

AUGMENT = TrainTransform(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def png(number: int) -> bytes:
    """A small picture whose colour is its number."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 256, number // 256, 7)).save(file, "PNG")
    return file.getvalue()


def members(numbers: Iterable[int]) -> dict[str, bytes]:
    """Samples of a picture and a caption each."""
    found: dict[str, bytes] = {}
    for number in numbers:
        found[f"{number:06d}.png"] = png(number)
        found[f"{number:06d}.txt"] = f"picture {number}".encode()
    return found


def write_tar(path: Path, files: Mapping[str, bytes], **options: Any) -> Path:
    """A tar of `files`; options go to tarfile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_tars(folder: Path, sizes: Iterable[int], first: int = 0) -> Path:
    """Tars 000.tar, 001.tar ... of so many samples each, numbered on from `first`."""
    for shard, size in enumerate(sizes):
        write_tar(folder / f"{shard:03d}.tar", members(range(first, first + size)))
        first += size
    return folder


def write_index(folder: Path, counts: Mapping[str, int], **changes: Any) -> Path:
    """index.json for tars in `folder`; changes go into every entry."""
    shards = [
        {"url": name, "nsamples": n, "filesize": (folder / name).stat().st_size} | changes
        for name, n in counts.items()
    ]
    path = folder / "index.json"
    path.write_text(json.dumps({"shardlist": shards}))
    return path


def write_parquet(path: Path, numbers: Iterable[int], group: int = 4, **columns: Any) -> Path:
    """Rows of a picture and a caption each, in row groups of `group`."""
    rows = list(numbers)
    table = {
        "image": [{"bytes": png(n), "path": f"{n}.png"} for n in rows],
        "caption": [f"picture {n}" for n in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table | columns), path, row_group_size=group)
    return path
