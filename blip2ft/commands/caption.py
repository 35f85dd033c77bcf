"""`blip2ft caption`."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from blip2ft.commands.options import (
    add_decoding_options,
    add_model_options,
    command,
    decoding,
    load_for_answers,
    positive,
)
from blip2ft.data.tables import IMAGE_SUFFIXES
from blip2ft.hub import check_model_name, check_revision
from blip2ft.quiet import quiet_libraries


def add_caption(commands: Any) -> None:
    parser = command(commands, "caption", "Caption images, or answer any instruction.", _caption)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files or folders")
    add_model_options(parser)
    parser.add_argument("--prompt", help="text to continue; default: what the model was tuned on")
    add_decoding_options(parser, longest=30, length_penalty=1.0)
    parser.add_argument("--batch-size", type=positive, default=16, help="images at once (16)")
    parser.add_argument("--dtype", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--out", type=Path, help="write JSON lines here; default: standard output")


def _caption(arguments: argparse.Namespace) -> int:
    paths = list(image_paths(arguments.images))
    if arguments.model:
        check_model_name(arguments.model)
        check_revision(arguments.model, arguments.revision)
    if arguments.out and arguments.out.exists():
        raise ValueError(f"{arguments.out} exists and is not overwritten; choose another --out")
    if not arguments.model and not arguments.adapter:
        raise ValueError("say which model: --model ID_OR_FOLDER, or --adapter RUN")
    quiet_libraries()
    from blip2ft.bars import progress_bar
    from blip2ft.captioner import DEFAULT_PROMPT, caption
    from blip2ft.data.images import open_image

    model, processor, description = load_for_answers(arguments)
    prompt = arguments.prompt
    if prompt is None:
        prompt = description.get("prompt", DEFAULT_PROMPT)
    options = decoding(arguments, description)
    broken = 0
    out = arguments.out.open("w", encoding="utf-8") if arguments.out else sys.stdout
    # no bar among the answers on a terminal
    hidden = len(paths) < 2 or (out is sys.stdout and out.isatty())
    bar = progress_bar(total=len(paths), desc="caption", hidden=hidden)
    with bar:
        for start in range(0, len(paths), arguments.batch_size):
            chunk = paths[start : start + arguments.batch_size]
            images = []
            for path, image_id in chunk:
                try:
                    images.append((path, image_id, open_image(path)))
                except ValueError as error:
                    broken += 1
                    bar.write(f"error: {error}", file=sys.stderr)
            if images:
                texts = caption(
                    model,
                    processor,
                    [image for _, _, image in images],
                    prompt=prompt,
                    batch_size=arguments.batch_size,
                    **options,
                )
                for (path, image_id, _), text in zip(images, texts, strict=True):
                    row = {"image": str(path), "image_id": image_id, "caption": text}
                    print(json.dumps(row, ensure_ascii=False), file=out, flush=True)
            bar.update(len(chunk))
    if arguments.out:
        out.close()
    if broken:
        print(f"error: {broken} of {len(paths)} images couldn't be read", file=sys.stderr)
    return 2 if broken else 0


def _fail(error: OSError) -> NoReturn:
    raise error  # else a folder that can't be read would be left out


def image_paths(given: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """The images in `given` files and folders, each with its id; all before a model is loaded.

    The id is what a table in the folder calls the image: its path from there; of a file, the path
    as it is given.
    """
    for path in given:
        if path.is_dir():
            walked = os.walk(path, onerror=_fail)
            inside = (Path(place, name) for place, _, names in walked for name in names)
            found = sorted(file for file in inside if file.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                allowed = ", ".join(sorted(IMAGE_SUFFIXES))
                raise ValueError(f"the folder {path} holds no image ({allowed})")
            yield from ((image, image.relative_to(path).as_posix()) for image in found)
        elif path.exists():
            yield path, path.as_posix()
        else:
            raise ValueError(f"there is no image at {path}")
