"""`blip2ft attend`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blip2ft.commands.caption import image_paths
from blip2ft.commands.options import add_model_options, command, load_for_answers
from blip2ft.hub import check_model_name, check_revision
from blip2ft.quiet import quiet_libraries

EPILOG = """\
For each image DIR gets a folder:
  attention.png   where the queries look, the mean over queries, heads and layers
  queries.png     each query, the mean over heads and layers
  layers.png      each layer and head, the mean over queries
  text.png        what of the attention speaks for --text
  attention.npz   the arrays, attention.json their shapes and meaning

What --text does depends on the model:
  retrieval       what of the attention speaks for a match of image and text (Grad-CAM of ITM)
  captioning      what of it speaks for these words, as the model would write them (Grad-CAM of
                  their likelihood)
  questions       the Q-Former reads the question, and its queries look where it points; no text.png

text.png is a diagnostic. Attention, weighed by gradients too, is no explanation of an answer.
"""


def add_attend(commands: Any) -> None:
    parser = command(commands, "attend", "Draw where a model looks in images.", _attend)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files or folders")
    parser.add_argument("--text", help="a text, or a question, to look with (see below)")
    add_model_options(parser)
    parser.add_argument("--prompt", help="what the model was tuned with; default: what it says")
    parser.add_argument("--dtype", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")


def _attend(arguments: argparse.Namespace) -> int:
    paths = [path for path, _ in image_paths(arguments.images)]
    if not arguments.model and not arguments.adapter:
        raise ValueError("say which model: --model ID_OR_FOLDER, or --adapter RUN")
    if arguments.model:
        check_model_name(arguments.model)
        check_revision(arguments.model, arguments.revision)
    from blip2ft.whole import check_free

    check_free(arguments.out)
    quiet_libraries()
    from blip2ft.attention.files import write_look
    from blip2ft.attention.look import look, most_at
    from blip2ft.captioner import DEFAULT_PROMPT, QUESTION_TEMPLATE
    from blip2ft.data.images import open_image

    model, processor, description = load_for_answers(arguments, retrievers=True)
    prompt = arguments.prompt
    if prompt is None:
        asks = model.config.model_type == "instructblip"
        prompt = description.get("prompt", QUESTION_TEMPLATE if asks else DEFAULT_PROMPT)
    about = {"model": arguments.model, "adapter": [str(run) for run, _ in arguments.adapter or []]}
    broken = 0
    for path, name in zip(paths, _folder_names(paths), strict=True):
        try:
            image = open_image(path)
        except ValueError as error:
            broken += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        seen = look(model, processor, image, arguments.text, prompt=prompt)
        write_look(arguments.out / name, seen, {"image": str(path), **about})
        line = f"{path}: {arguments.out / name}, looks most at {most_at(seen.map)}"
        if seen.text_map is not None:
            line += f", for the text at {most_at(seen.text_map)} ({seen.scored} {seen.score:.2g})"
        print(line, flush=True)
    if broken:
        print(f"error: {broken} of {len(paths)} images couldn't be read", file=sys.stderr)
    return 2 if broken else 0


def _folder_names(paths: Sequence[Path]) -> list[str]:
    """A name for each image: dog, and dog-2 for a second one of that name."""
    names: list[str] = []
    for path in paths:
        name, number = path.stem, 1
        while name in names:
            number += 1
            name = f"{path.stem}-{number}"
        names.append(name)
    return names
