"""CapFilt: images of the web keep the best of their captions and of those that a model writes.

BLIP, arXiv 2201.12086, section 3.3. BLIP-2's paper, section 3.4: ten synthetic captions an image
are ranked with the web's by how well image and text match; the best two are kept, and training
draws one of them.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from blip2ft.bars import progress_bar
from blip2ft.data.cache import FETCHED, Cache, default_cache
from blip2ft.data.loading import load_batches
from blip2ft.data.shard_records import Source
from blip2ft.data.stream import GB, open_source
from blip2ft.export import DTYPES
from blip2ft.tasks.candidates import Captioner, Scorer
from blip2ft.webimages.filtering import Rules, check_rules, filter_images
from blip2ft.webimages.folder import (
    Counts,
    Outcome,
    begin,
    check_made,
    finish,
    read_counts,
    write_shard,
)
from blip2ft.webimages.models import choose_device, digest, open_captioner, open_scorer
from blip2ft.webimages.reading import WebImages, shard_names
from blip2ft.whole import LOCK, alone

CACHE_GB = 50


def capfilt(
    source: str | Path,
    out: str | Path,
    *,
    captioner: str | Path,
    scorer: str | Path,
    rules: Rules | None = None,
    prompt: str | None = None,
    batch_size: int = 16,
    dtype: str = "auto",
    quantize: Mapping[str, str] | None = None,
    workers: int | None = None,
    split: str | None = None,
    image_column: str = "image",
    caption_column: str | None = None,
    cache: str | Path | None = None,
    progress: bool = False,
) -> Counts | None:
    """Write the shards of `source` with other captions to `out`, each as soon as it is done.

    Whole shards are kept, so that a run that is stopped or killed is gone on with by another. Each
    of the processes of torchrun takes every so many-th shard; the last to end writes the index.
    What is drawn for an image depends on its name and the seed, never on batches or processes.

    Args:
        source: Tars or Parquet files, as a stream reads them: see `open_source`, also for split,
            image_column and caption_column. Captions may be missing.
        out: New, or a folder that was begun with the same source, models and rules.
        captioner: Hub id, folder or run of a model that captions.
        scorer: Hub id, folder or run of a model that compares images with texts.
        prompt: Text that captions go on from; None is what the captioner was tuned on, else
            "a photo of".
        batch_size: Images at once.
        dtype: "fp32", "bf16", or "auto" for bf16 on a GPU that has it.
        quantize: Parts to hold in fewer bits, such as {"language": "nf4"}: the captioner's, and the
            scorer's vision.
        workers: Processes that open images; None: 8 on a GPU, on a CPU none.
        cache: Folder for shards that aren't local; None is blip2ft's own.

    Returns:
        What became of all samples, in this run and those before; None where another process is
        to say so.

    Raises:
        ValueError: What `open_source` and the models' loaders find; rules out of range; an `out`
            that is in use, or was begun with other settings or another source.
    """
    out, rules = Path(out), rules or Rules()
    check_rules(rules)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: allowed is 1 or more")
    device, kind = choose_device(dtype)
    folder = Path(cache).expanduser() if cache is not None else default_cache()
    opened = open_source(
        os.fspath(source),
        cache=folder,
        split=split,
        image_column=image_column,
        caption_column=caption_column,
        require_captions=False,
    )
    names = shard_names(opened.shards)
    sizes = {n: [s.samples, s.size] for n, s in zip(names, opened.shards, strict=True)}
    made: dict[str, Any] = {"captioner": str(captioner), "scorer": str(scorer), **asdict(rules)}
    made |= {"split": split, "image_column": image_column, "caption_column": caption_column}
    bits = dict(quantize or {})
    made |= {"dtype": kind, "quantize": bits} | ({} if prompt is None else {"prompt": prompt})
    check_made(out, made, sizes)

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    whole = {name for name in names if (out / name).is_file()}
    left = [i for i in range(len(names))[rank::world] if names[i] not in whole]
    if left:
        seeing = {part: bits[part] for part in bits if part == "vision"}
        judge = open_scorer(
            scorer, dtype=DTYPES[kind], device=device, quantize=seeing, score=rules.score
        )
        writer = open_captioner(
            captioner,
            dtype=DTYPES[kind],
            device=device,
            quantize=bits,
            prompt=prompt,
            max_new_tokens=rules.max_new_tokens,
        )
        weights = {"captioner_weights": digest(writer.model), "scorer_weights": digest(judge.model)}
        begin(out, made | {"prompt": writer.prompt} | weights, sizes)
        transforms = tuple(dict.fromkeys((writer.transform, judge.transform)))
        images = WebImages(opened, Cache(folder / FETCHED, CACHE_GB * GB), transforms)
        if workers is None:
            workers = 8 if device.type == "cuda" else 0
        loader = load_batches(images, _batches(left, opened, batch_size), list, workers=workers)
        samples = sum(opened.shards[i].samples for i in left)
        hidden = not progress or rank != 0
        bar = progress_bar(total=samples, desc="capfilt", unit=" samples", hidden=hidden)
        with alone(out, f"{LOCK}-{rank}"), bar:
            batches = iter(loader)
            for i in left:
                own = islice(batches, -(-opened.shards[i].samples // batch_size))
                outcomes = _outcomes(own, names[i], writer, judge, rules, bar)
                write_shard(out, names[i], outcomes)
    told = finish(out, names) or (len(whole) == len(names) and rank == 0)
    return read_counts(out, names) if told else None


def _outcomes(
    batches: Iterator[list],
    name: str,
    captioner: Captioner,
    scorer: Scorer,
    rules: Rules,
    bar: tqdm,
) -> Iterator[Outcome]:
    for batch in batches:
        yield from filter_images(batch, name, captioner, scorer, rules)
        bar.update(len(batch))


def _batches(
    shards: Sequence[int], source: Source, batch_size: int
) -> Iterator[list[tuple[int, int]]]:
    """The shard and number of each sample of a batch.

    No batch goes over the end of a shard: so each sample is in the same company in every run.
    """
    for shard in shards:
        size = source.shards[shard].samples
        for start in range(0, size, batch_size):
            yield [(shard, i) for i in range(start, min(start + batch_size, size))]
