"""`blip2ft shard`."""

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blip2ft.commands.options import command, positive
from blip2ft.counted import counted
from blip2ft.data.entries import ALLOWABLE
from blip2ft.filters.rules import HARMFUL, PERSONAL, Rules
from blip2ft.quiet import quiet_libraries

READING = ("format", "split", "image_root", "image_column", "caption_column", "id_column")
FILTERS = asdict(Rules())
LISTED = 20  # broken images named; all are in broken.jsonl


def add_shard(commands: Any) -> None:
    parser = command(
        commands,
        "shard",
        "Write images and captions as tar shards, which training reads as a stream.",
        _shard,
    )
    parser.add_argument("source", metavar="SOURCE", help="what a recipe trains on; or with --index")
    parser.add_argument("--out", type=Path, help="folder to write, or to go on writing")
    parser.add_argument(
        "--index",
        action="store_true",
        help="only write index.json, beside tars that are there: a folder, or 'x-{000..123}.tar'; "
        "or into --out for tars at addresses, which are fetched one by one to be counted",
    )
    parser.add_argument("--size", type=positive, default=1000, help="samples in a shard (1000)")
    parser.add_argument(
        "--image-size",
        type=positive,
        metavar="PX",
        help="shrink images to this shorter side; default: their bytes as they are",
    )
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="mix all records first")
    parser.add_argument("--workers", type=int, help="processes that write (one a core, up to 8)")
    parser.add_argument("--format", default="auto", help="as data.train.format of the recipes")
    parser.add_argument("--split", help="of a source that holds several; names the shards")
    parser.add_argument("--image-root", help="folder that image paths are relative to")
    parser.add_argument("--image-column", default="image", help="column of the image (image)")
    parser.add_argument("--caption-column", help="column of the caption or captions")
    parser.add_argument("--id-column", help="column of the image's id")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        choices=ALLOWABLE,
        help="image paths that leave their folder, or addresses; may be given for both",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub dataset")
    filters = parser.add_argument_group(
        "filters",
        'Captions that are dropped or masked, each told in filtered.jsonl; pip install "blip2ft'
        '[filters]". Other columns are written as they are. They miss much and have false alarms. '
        "--languages, --allow-words and --countries may be given several times.",
    )
    filters.add_argument(
        "--harmful", default="keep", choices=HARMFUL, help="captions with a harmful word (keep)"
    )
    filters.add_argument(
        "--personal",
        default="keep",
        choices=PERSONAL,
        help="email addresses, phone, card and account numbers, @names; masked by words such as "
        '"phone number" (keep)',
    )
    filters.add_argument(
        "--languages", action="append", metavar="NAME", help="whose harmful words (english)"
    )
    filters.add_argument(
        "--allow-words", action="append", metavar="WORD", help="harmful words to leave alone"
    )
    filters.add_argument(
        "--countries",
        action="append",
        metavar="CODE",
        help="whose phone numbers are found without a leading + (US)",
    )


def _shard(arguments: argparse.Namespace) -> int:
    if not arguments.index and arguments.out is None:
        raise ValueError("pass --out FOLDER to write shards, or --index for tars that are there")
    quiet_libraries()
    from blip2ft.sharding import BROKEN, index_elsewhere, index_shards, write_shards

    if arguments.index:
        if arguments.out is None:
            path, shards, samples = index_shards(arguments.source)
        else:
            read = {"split": arguments.split, "revision": arguments.revision}
            path, shards, samples = index_elsewhere(arguments.source, arguments.out, **read)
        print(f"{path}: {counted(shards, 'shard')}, {counted(samples, 'sample')}")
        return 0
    workers = arguments.workers
    done = write_shards(
        arguments.source,
        arguments.out,
        size=arguments.size,
        image_size=arguments.image_size,
        shuffle=arguments.shuffle,
        workers=min(os.cpu_count() or 1, 8) if workers is None else workers,
        progress=True,
        revision=arguments.revision,
        filters={name: getattr(arguments, name) or default for name, default in FILTERS.items()},
        **{name: getattr(arguments, name) for name in (*READING, "allow")},
    )
    sizes = f"{counted(done.shards, 'shard')}, {counted(done.samples, 'sample')}"
    print(f"{arguments.out}: {sizes}")
    if done.filtered:
        print(done.filtered)
    if done.broken:
        for sample in done.broken[:LISTED]:
            print(f"{sample['origin']}: {sample['reason']}", file=sys.stderr)
        print(
            f"warning: {counted(len(done.broken), 'image')} couldn't be read and were left out; "
            f"see {arguments.out / BROKEN}",
            file=sys.stderr,
        )
    return 0
