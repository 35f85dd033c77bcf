"""`blip2ft index` and `blip2ft search`."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from blip2ft.commands.options import add_quantize_option, command, positive, quantized
from blip2ft.counted import counted
from blip2ft.quiet import quiet_libraries


def add_index(commands: Any) -> None:
    parser = command(commands, "index", "Index the photos of a folder, for search.", _index)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="photos, in folders below too")
    parser.add_argument("--out", type=Path, required=True, help="the index: new, or to be extended")
    parser.add_argument(
        "--model", help="hub id or folder of a retriever, or a run; default: the index's own"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument("--image-size", type=positive, help="pixels; default: the model's own")
    parser.add_argument("--batch-size", type=positive, default=16, help="photos at once (16)")
    parser.add_argument("--workers", type=int, help="processes that open photos (8 with a GPU)")
    parser.add_argument("--dtype", choices=["auto", "fp32", "bf16"], default="auto")
    add_quantize_option(parser, "; a retriever has no language model. Default: as the index is")


def _index(arguments: argparse.Namespace) -> int:
    quiet_libraries()
    from blip2ft.index import index_photos

    accelerator = None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from blip2ft.training.processes import start_processes

        accelerator = start_processes("fp32", [], arguments.out)
    done = index_photos(
        arguments.folder,
        arguments.out,
        model=arguments.model,
        revision=arguments.revision,
        image_size=arguments.image_size,
        dtype=arguments.dtype,
        quantize=quantized(arguments.quantize) or None,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        progress=True,
        accelerator=accelerator,
    )
    if accelerator is not None:
        accelerator.end_training()
        if not accelerator.is_main_process:
            return 0
    counts = [f"{counted(done.added, 'photo')} added", f"{done.kept} there already"]
    counts += [f"{done.moved} moved or copied"] if done.moved else []
    counts += [f"{done.gone} gone, which searches leave out"] if done.gone else []
    print(f"{arguments.out}: {', '.join(counts)}")
    for problem in done.broken:
        print(f"error: {problem}", file=sys.stderr)
    if done.broken:
        print(f"error: {counted(len(done.broken), 'photo')} couldn't be read", file=sys.stderr)
    return 1 if done.broken else 0


def add_search(commands: Any) -> None:
    parser = command(commands, "search", "Find photos of an index by words or a photo.", _search)
    parser.add_argument("index", type=Path, metavar="INDEX", help="the --out of blip2ft index")
    parser.add_argument("query", nargs="?", metavar="QUERY", help='such as "a red flag"')
    parser.add_argument("--image", type=Path, help="find photos like this one instead")
    parser.add_argument("--top", type=positive, default=20, help="photos to show (20)")
    parser.add_argument(
        "--rerank",
        type=int,
        metavar="K",
        help="match the K most similar photos with the query, each opened and encoded again, as "
        "what this needs of a photo would fill 2 MB of the index; 0: none (32, or 128 on a GPU)",
    )
    parser.add_argument("--html", type=Path, help="contact sheet; default: in INDEX/searches/")
    parser.add_argument(
        "--faiss",
        action="store_true",
        default=None,
        help="find the most similar by faiss; from a million photos used where it is installed",
    )
    parser.add_argument("--model", help="where the index's model is now, if it moved")
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument("--dtype", choices=["auto", "fp32", "bf16"], default="auto")
    add_quantize_option(parser, "; a retriever has no language model. Default: as the index is")


def _search(arguments: argparse.Namespace) -> int:
    quiet_libraries()
    from blip2ft.contact_sheet import check_new, fresh_file, write_contact_sheet
    from blip2ft.index import search_photos
    from blip2ft.photos.files import shown

    query, image = arguments.query, arguments.image
    if arguments.html:
        check_new(arguments.html)
    found = search_photos(
        arguments.index,
        query,
        image=image,
        model=arguments.model,
        revision=arguments.revision,
        top=arguments.top,
        rerank=arguments.rerank,
        faiss=arguments.faiss,
        dtype=arguments.dtype,
        quantize=quantized(arguments.quantize) or None,
    )
    name = query or f"like {image.stem}"
    sheet = arguments.html or fresh_file(arguments.index / "searches", name)
    matched = query and arguments.rerank != 0
    note = "Score: similarity" + (" plus matching logit" if matched else "")
    write_contact_sheet(sheet, found, query=query, image=image, note=note)
    print("rank    score  file")
    for rank, match in enumerate(found, start=1):
        print(f"{rank:4}  {match.score:7.3f}  {shown(match.path)}")
    print(f"contact sheet: {sheet}", file=sys.stderr)
    return 0
