"""Parquet files in pieces of some row groups, unpacked so that rows can be read one by one.

Parquet gives whole row groups only. To draw rows at random, a reader would hold many of them in
memory, or read each once for every row: so a piece is unpacked into an Arrow file in the cache,
which is mapped into memory and costs none.
"""

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from blip2ft.data.arrow import holds_bytes, holds_image
from blip2ft.data.entries import Columns, Request, find_columns
from blip2ft.data.remote import is_remote, locate_remote

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 1000  # of a piece, at least, unless the file has less
BATCH = 64  # rows unpacked at once


def open_parquet(url: str) -> IO[bytes]:
    """A Parquet file, local or remote, for pyarrow. Raises OSError where there is none."""
    if not is_remote(url):
        return open(url, "rb")
    system, path = locate_remote(url)
    return system.open(path, "rb")


def read_footer(url: str) -> tuple[list[int], "pa.Schema"]:
    """Rows of each row group, and the columns.

    Raises ValueError for what isn't a whole Parquet file.
    """
    import pyarrow.parquet as pq

    try:
        with open_parquet(url) as file, pq.ParquetFile(file) as opened:
            groups = range(opened.metadata.num_row_groups)
            return [opened.metadata.row_group(i).num_rows for i in groups], opened.schema_arrow
    except Exception as error:  # pyarrow has its own, and so has each file system
        hint = " Its server has to answer requests for parts of a file." if is_remote(url) else ""
        raise ValueError(
            f"{url}: not a Parquet file that can be read ({error}). Fetch or write it again.{hint}"
        ) from error


def pieces(rows: list[int]) -> Iterator[tuple[int, int, int]]:
    """Row groups that belong together: the first, the one after the last, and their rows."""
    first, count = 0, 0
    for group, size in enumerate(rows, start=1):
        count += size
        if count >= ROWS or (group == len(rows) and count):
            yield first, group, count
            first, count = group, 0


def check_columns(schema: "pa.Schema", request: Request, source: str) -> Columns:
    """The columns to read. Raises ValueError where image or caption have none that fits."""
    columns = find_columns(schema.names, request, source)
    kind = schema.field(columns.image).type
    if not holds_image(kind) or not holds_bytes(kind):
        raise ValueError(
            f"{source}: column {columns.image!r} holds {kind}, but shards have to hold the images "
            "themselves, as bytes or a struct with bytes. Set image_column to a column that does, "
            "or write shards: blip2ft shard."
        )
    return columns


def unpack(url: str, first: int, last: int, image: str, path: Path) -> None:
    """Write row groups `first` to before `last` as an Arrow file, a few rows at a time.

    Of the columns that hold bytes, only the image's is kept.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_parquet(url) as file, pq.ParquetFile(file) as opened:
        schema = opened.schema_arrow
        names = [f.name for f in schema if f.name == image or not holds_bytes(f.type)]
        kept = pa.schema([schema.field(name) for name in names])
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, kept) as writer:
            for batch in opened.iter_batches(
                BATCH, row_groups=list(range(first, last)), columns=names
            ):
                writer.write_batch(batch.select(names))


class Rows:
    """The rows of an Arrow file; none is read before it is asked for."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self.names: list[str] = self.reader.schema.names
        count = self.reader.num_record_batches
        sizes = [self.reader.get_batch(i).num_rows for i in range(count)]
        self.ends = np.fromiter(accumulate(sizes), np.int64, count)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = int(np.searchsorted(self.ends, index, side="right"))
        batch = self.reader.get_batch(number)
        inside = index - int(self.ends[number]) + batch.num_rows
        return batch.slice(inside, 1).to_pylist()[0]
