"""Readers of Parquet files and Hugging Face datasets, whose images stay on disk until read."""

import bisect
import glob
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip2ft.data.entries import (
    Entry,
    Problems,
    Request,
    TableRow,
    find_columns,
    table_entries,
    unknown_split,
)
from blip2ft.data.patterns import find_files

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

BATCH = 1000  # rows turned to Python objects at once


@dataclass(frozen=True, slots=True)
class Row:
    """An image inside an Arrow table, read from disk when asked for.

    Args:
        dataset: The memory-mapped dataset, in "arrow" format.
        index: Its row, from 0.
        column: Its column: bytes, or a struct with `bytes`.
    """

    dataset: "datasets.Dataset" = field(repr=False)
    index: int
    column: str

    def read(self) -> bytes:
        """The bytes of the image file."""
        value = self.dataset[self.index].column(self.column)[0].as_py()
        return value["bytes"] if isinstance(value, dict) else value


def read_parquet(source: str, request: Request, problems: Problems) -> list[Entry]:
    """One Parquet file, a folder of them, or a glob; rows in messages count from 0 in each file.

    The image column holds bytes, a struct of bytes and path, or paths. `datasets` keeps a
    memory-mapped copy of the files in its cache (HF_HOME). In a folder, a split is told from the
    file names (train-00000-of-00002.parquet, train.parquet) or from a folder in it.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    files, by_name = find_files(source, ".parquet", request.split)
    if by_name:
        request = replace(request, split=None)
    counts, schemas = [], []
    for file in files:
        try:
            with pq.ParquetFile(file) as opened:
                counts.append(opened.metadata.num_rows)
                schemas.append(opened.schema_arrow)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{file}: not a Parquet file that can be read ({error}). Fetch or write it again."
            ) from error
    for file, schema in zip(files, schemas, strict=True):
        if set(schema.names) != set(schemas[0].names):
            raise ValueError(
                f"{file.name}: columns {', '.join(schema.names)}, but {files[0].name} has "
                f"{', '.join(schemas[0].names)}. Files read together need the same columns."
            )
    if not sum(counts):
        return []
    try:
        dataset = datasets.load_dataset(
            "parquet", data_files=[glob.escape(str(file)) for file in files], split="train"
        )
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise ValueError(
            f"{source}: can't be read as one table ({error.__cause__ or error}). Files read "
            "together need the same column types, and the cache (HF_HOME) room for a copy."
        ) from error

    ends = list(itertools.accumulate(counts))

    def origin(index: int) -> str:
        file = bisect.bisect_right(ends, index)
        return f"{files[file].name}: row {index - (ends[file] - counts[file])}"

    def root(index: int) -> Path:
        return files[bisect.bisect_right(ends, index)].parent

    return dataset_entries(dataset, source, origin, root, request, problems)


def read_huggingface(source: str, request: Request, problems: Problems) -> list[Entry]:
    """A dataset by hub id ("owner/name", or "owner/name:config"), or a `save_to_disk` folder."""
    import datasets

    folder = Path(source)
    name, _, config = (source, "", "") if folder.exists() else source.partition(":")
    saved = any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            loaded = datasets.load_from_disk(source)
        else:
            loaded = datasets.load_dataset(name, config or None, revision=request.revision)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ValueError(
            f"{source}: the dataset can't be loaded ({reason}). Give a hub id such as owner/name "
            "that you have access to, or a folder that is there; configs go after a colon."
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        splits = list(loaded)
        if (request.split is None and len(splits) > 1) or request.split not in (None, *splits):
            raise unknown_split(source, request.split, splits)
        split = request.split or splits[0]
        loaded = loaded[split]
        source = f"{source}[{split}]"
        request = replace(request, split=None)
    # image files of a dataset on the hub are in the cache, by their full paths
    root = folder if folder.is_dir() else Path(datasets.config.HF_CACHE_HOME)

    def origin(index: int) -> str:
        return f"{source}: row {index}"

    return dataset_entries(loaded, source, origin, lambda index: root, request, problems)


def dataset_entries(
    dataset: "datasets.Dataset",
    source: str,
    origin: Callable[[int], str],
    root: Callable[[int], Path],
    request: Request,
    problems: Problems,
) -> list[Entry]:
    """Entries of a memory-mapped dataset. No image is read; other binary columns are left out."""
    columns = find_columns(dataset.column_names, request, source)
    schema = dataset.features.arrow_schema
    image_type = schema.field(columns.image).type
    if not holds_image(image_type):
        raise ValueError(
            f"{source}: column {columns.image!r} holds {image_type}, not images. It has to hold "
            "bytes, a struct with bytes or path, or paths; set image_column to one that does."
        )
    others = [
        name
        for name in dataset.column_names
        if name != columns.image and not holds_bytes(schema.field(name).type)
    ]
    images = dataset.select_columns([columns.image]).with_format("arrow")

    def rows() -> Iterator[TableRow]:
        index = 0
        for table in dataset.with_format("arrow").iter(batch_size=BATCH):
            read = table.select(others).to_pylist() if others else [{}] * len(table)
            places = image_places(table.column(columns.image))
            for row, (inside, path) in zip(read, places, strict=True):
                image = Row(images, index, columns.image) if inside else path
                yield row, image, origin(index), root(index)
                index += 1

    return table_entries(rows(), columns, request, source, problems)


def image_places(column: "pa.ChunkedArray") -> Iterator[tuple[bool, str | None]]:
    """For each image whether its bytes are in the table, and its path; the bytes aren't read."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for chunk in column.chunks:
        if not pa.types.is_struct(chunk.type):
            if holds_bytes(chunk.type):
                yield from ((inside, None) for inside in pc.is_valid(chunk).to_pylist())
            else:
                yield from ((False, path) for path in chunk.to_pylist())
            continue
        names = [child.name for child in chunk.type]
        nothing: list[Any] = [None] * len(chunk)
        inside = (
            pc.is_valid(pc.struct_field(chunk, "bytes")).to_pylist()
            if "bytes" in names
            else nothing
        )
        paths = pc.struct_field(chunk, "path").to_pylist() if "path" in names else nothing
        yield from zip(map(bool, inside), paths, strict=True)


def holds_image(kind: "pa.DataType") -> bool:
    """Whether a column of this Arrow type can hold images or their paths."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return bool({"bytes", "path"} & {child.name for child in kind})
    return holds_bytes(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def holds_bytes(kind: "pa.DataType") -> bool:
    """Whether a column of this Arrow type holds files: bytes, or a struct with bytes."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return "bytes" in [child.name for child in kind]
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
