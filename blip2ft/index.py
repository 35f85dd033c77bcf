"""Search your photos: an index of their features, by words or by another photo."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from blip2ft.bars import progress_bar
from blip2ft.features.together import of_all, together
from blip2ft.photos.encoder import Encoder
from blip2ft.photos.files import Photo, find_photos, is_changed, read_photos
from blip2ft.photos.fingerprint import checked_maker, fingerprint, model_folder
from blip2ft.photos.search import Match, PhotoIndex, check_search
from blip2ft.photos.shards import (
    Maker,
    Shard,
    add_shard,
    is_index,
    read_shards,
    write_maker,
)
from blip2ft.whole import alone, remove_partial

SHARD_PHOTOS = 1024
SHARD_SECONDS = 300.0  # after which a shard is written as it is: a kill loses no more


@dataclass(frozen=True)
class Indexed:
    """What became of a folder's photos.

    added: encoded now; moved: known by their bytes, so not encoded again; kept: there before;
    gone: in the index, but no longer in the folder, so in no result; broken: what is wrong with
    each that couldn't be read.
    """

    added: int
    moved: int
    kept: int
    gone: int
    broken: tuple[str, ...]


def index_photos(
    folder: str | Path,
    out: str | Path,
    *,
    model: str | Path | None = None,
    revision: str | None = None,
    image_size: int | None = None,
    dtype: str = "auto",
    quantize: Mapping[str, str] | None = None,
    batch_size: int = 16,
    workers: int | None = None,
    progress: bool = False,
    accelerator: Accelerator | None = None,
) -> Indexed:
    """Add the photos in `folder`, and in those below, to the index `out`, which may be new.

    Photos that it has are left alone unless their size or time of change differs. What is done is
    kept in whole shards, so that a run that is stopped or killed is gone on with by another.

    model: hub id or folder of a retriever; None: the index's own. image_size: pixels, as for
      `load_retriever`. dtype: "fp32", "bf16", or "auto" for bf16 on a GPU that has it. quantize:
      {"vision": "nf4"} or "int8", which the index then keeps to; None: as it is.
    workers: processes that open photos; None: 8 on a GPU, on a CPU none.
    accelerator: of several processes, which share the photos; all call, and are told the same.

    Raises ValueError for a folder without images, and for an index of another model.
    """
    out, found = Path(out), find_photos(folder)
    rank, world = 0, 1
    if accelerator is not None:
        rank, world = accelerator.process_index, accelerator.num_processes
    encoder = None
    if is_index(out):
        maker, at = checked_maker(out, model, revision, image_size, quantize)
    elif model is None:
        raise ValueError(f"{out} is a new index: name a model, such as Salesforce/blip2-itm-vit-g")
    else:
        at = model_folder(str(model), revision)
        encoder = Encoder(at, image_size, dtype, quantize)  # first, to leave nothing where it fails
        local = Path(model).is_dir()
        maker = Maker(
            str(at if local else model),
            None if local else at.name,
            image_size,
            *fingerprint(at),
            dict(quantize or {}),
        )
        if rank == 0:
            write_maker(out, maker)
    with ExitStack() as stack:

        def begin() -> None:
            if rank == 0:
                stack.enter_context(alone(out, doing="extending"))
                remove_partial(out / "shards")

        begin() if accelerator is None else together(accelerator, begin)
        shards = read_shards(out)
        known = {photo.path: photo for shard in shards for photo in shard.photos}
        new = [photo for photo in found if is_changed(known.get(photo.path), photo)]
        paths = {photo.path for photo in found}
        root = os.path.abspath(folder)
        gone = sum(path not in paths and Path(path).is_relative_to(root) for path in known)
        if accelerator is not None and world > 1:
            (new,) = broadcast_object_list([new])  # the folder may be changing
        mine = new[rank::world]
        added = moved = 0
        broken: list[str] = []
        if mine:
            encoder = encoder or Encoder(at, maker.image_size, dtype, maker.quantize)
            if workers is None:
                workers = 8 if encoder.device.type == "cuda" else 0
            rows = _encode(encoder, shards, mine, broken, batch_size, workers)
            bar = progress_bar(rows, "index", len(mine), hidden=not progress or rank > 0)
            added, moved = _write(out, bar, rank, world)
        if accelerator is not None:
            done = of_all(accelerator, (added, moved, broken))
            added, moved = sum(each[0] for each in done), sum(each[1] for each in done)
            broken = [problem for each in done for problem in each[2]]
    return Indexed(added, moved, len(found) - len(new), gone, tuple(broken))


def search_photos(
    index: str | Path,
    query: str | None = None,
    *,
    image: str | Path | None = None,
    model: str | Path | None = None,
    revision: str | None = None,
    top: int = 20,
    rerank: int | None = None,
    faiss: bool | None = None,
    dtype: str = "auto",
    quantize: Mapping[str, str] | None = None,
) -> list[Match]:
    """The `top` photos of an index that fit a query, or that are like the one in the file `image`.

    model: where the index's model is now, if it moved. quantize: {"vision": "nf4"} or "int8", in
      which the photos that are most like a query are matched with it; None: as the index was made.
      Further arguments: see `PhotoIndex.search`.

    Raises ValueError for a missing index, an index of another model, an empty query or both a
    query and an image, for an image that can't be read, and for one in other bits than the index.
    """
    check_search(query, image, top, rerank, faiss)
    opened = PhotoIndex(index, model=model, revision=revision, dtype=dtype, quantize=quantize)
    return opened.search(query, image=image, top=top, rerank=rerank, faiss=faiss)


def _encode(
    encoder: Encoder,
    shards: Sequence[Shard],
    photos: Sequence[Photo],
    broken: list[str],
    batch_size: int,
    workers: int,
) -> Iterator[tuple[Photo, Tensor, bool]]:
    """Each photo with its features (Q, D), and whether they are those of a known file."""
    known = {p.image_id: (s, row) for s in shards for row, p in enumerate(s.photos)}
    for batch in read_photos(
        photos, encoder.transform, batch_size=batch_size, workers=workers, known=known
    ):
        broken += batch.broken
        for photo in batch.known:
            shard, row = known[photo.image_id]
            yield photo, shard.row(row), True
        if batch.decoded:
            features = encoder.photos(batch.pixels).half().cpu()
            yield from ((p, f, False) for p, f in zip(batch.decoded, features, strict=True))


def _write(
    out: Path, encoded: Iterable[tuple[Photo, Tensor, bool]], rank: int, world: int
) -> tuple[int, int]:
    """Write shards as photos come; how many were encoded, how many known."""
    counts, rows, began = [0, 0], [], time.monotonic()
    try:
        for photo, features, is_known in encoded:
            rows.append((photo, features))
            counts[is_known] += 1
            if len(rows) == SHARD_PHOTOS or time.monotonic() - began > SHARD_SECONDS:
                add_shard(out, *zip(*rows, strict=True), rank=rank, world=world)
                rows, began = [], time.monotonic()
    finally:  # of what Ctrl-C stops, too, what is done is kept
        if rows:
            add_shard(out, *zip(*rows, strict=True), rank=rank, world=world)
    return counts[0], counts[1]
