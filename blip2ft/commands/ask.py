"""`blip2ft ask`."""

import argparse
import json
from pathlib import Path
from typing import Any

from blip2ft.commands.options import (
    add_decoding_options,
    add_model_options,
    command,
    decoding,
    load_for_answers,
    positive,
)
from blip2ft.hub import check_model_name, check_revision
from blip2ft.quiet import quiet_libraries


def add_ask(commands: Any) -> None:
    parser = command(commands, "ask", "Answer questions about images.", _ask)
    parser.add_argument("image", nargs="?", type=Path, metavar="IMAGE", help="one image")
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="what to ask about it")
    parser.add_argument(
        "--questions",
        type=Path,
        help="many instead: a table or JSON lines with image and question, or VQAv2's file",
    )
    parser.add_argument("--image-root", type=Path, help="folder of the images of --questions")
    add_model_options(parser)
    parser.add_argument("--prompt", help="with {} for the question; default: that of the training")
    add_decoding_options(parser, longest=10, length_penalty=-1.0)
    parser.add_argument("--batch-size", type=positive, default=16, help="questions at once (16)")
    parser.add_argument("--dtype", choices=["auto", "fp32", "bf16"], default="auto")


def _ask(arguments: argparse.Namespace) -> int:
    one = arguments.image is not None
    if one == (arguments.questions is not None) or (one and arguments.question is None):
        raise ValueError('say what to ask: IMAGE "QUESTION" for one, or --questions FILE for many')
    if arguments.model:
        check_model_name(arguments.model)
        check_revision(arguments.model, arguments.revision)
    if not arguments.model and not arguments.adapter:
        raise ValueError("say which model: --model ID_OR_FOLDER, or --adapter RUN")
    if one and not arguments.image.is_file():
        raise ValueError(f"there is no image at {arguments.image}")
    quiet_libraries()
    from blip2ft.captioner import QUESTION_TEMPLATE, ask
    from blip2ft.data.images import open_image
    from blip2ft.data.questions import read_questions

    asked = []
    if not one:
        asked = read_questions(
            arguments.questions, image_root=arguments.image_root, require_answers=False
        )
    model, processor, description = load_for_answers(arguments)
    template = arguments.prompt or description.get("prompt", QUESTION_TEMPLATE)
    options = decoding(arguments, description)
    if one:
        print(
            ask(
                model,
                processor,
                [(arguments.image, arguments.question)],
                template=template,
                **options,
            )[0]
        )
        return 0
    for start in range(0, len(asked), arguments.batch_size):
        chunk = asked[start : start + arguments.batch_size]
        images = [open_image(q.image, origin=q.origin) for q in chunk]
        pairs = [(image, q.question) for image, q in zip(images, chunk, strict=True)]
        answers = ask(model, processor, pairs, template=template, batch_size=len(pairs), **options)
        for q, text in zip(chunk, answers, strict=True):
            row = {"question_id": q.question_id, "question": q.question, "answer": text}
            print(json.dumps(row, ensure_ascii=False), flush=True)
    return 0
