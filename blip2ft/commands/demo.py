"""`blip2ft demo`."""

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from blip2ft.commands.options import (
    add_quantize_option,
    chosen_dtype,
    command,
    load_for_answers,
    positive,
    quantized,
)
from blip2ft.hub import check_model_name, check_revision
from blip2ft.quiet import quiet_libraries

LOOPBACK = "127.0.0.1"


def add_demo(commands: Any) -> None:
    parser = command(commands, "demo", "Open a page to try a model on.", _demo)
    parser.add_argument("model", metavar="MODEL", help="hub id, folder, or a run")
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument(
        "--adapter",
        type=Path,
        action="append",
        default=[],
        metavar="RUN",
        help="a run on this model to switch to on the page; may be given several times",
    )
    parser.add_argument("--index", type=Path, help="photos to search: the --out of blip2ft index")
    parser.add_argument(
        "--reports",
        type=Path,
        default=Path("reports"),
        metavar="FOLDER",
        help="where bad answers that are reported are kept (reports)",
    )
    parser.add_argument(
        "--host",
        default=LOOPBACK,
        help=f"address to listen on ({LOOPBACK}, this computer alone); 0.0.0.0 lets in whoever "
        "reaches this computer, without a password",
    )
    parser.add_argument("--port", type=positive, help="port (the first free one from 7860)")
    add_quantize_option(parser)
    parser.add_argument("--dtype", choices=["auto", "fp32", "bf16"], default="auto")


def _demo(arguments: argparse.Namespace) -> int:
    if find_spec("gradio") is None:
        raise ValueError('the page needs Gradio: pip install "blip2ft[demo]"')
    if len(set(arguments.adapter)) < len(arguments.adapter):
        raise ValueError("--adapter names a run twice; give it once")
    check_model_name(arguments.model)
    check_revision(arguments.model, arguments.revision)
    quiet_libraries()
    from blip2ft.captioner import default_device
    from blip2ft.demo.answering import Answering, search_in
    from blip2ft.demo.page import make_page, open_page
    from blip2ft.finetuned import load_mixed
    from blip2ft.models.hub_adapter import holds_adapter

    search = None
    if arguments.index is not None:
        search = search_in(arguments.index, dtype=arguments.dtype)
    # of a folder its own name: its place on this computer is nobody's business
    here = Path(arguments.model)
    name = here.resolve().name if here.exists() else arguments.model
    base, revision, runs = arguments.model, arguments.revision, list(map(str, arguments.adapter))
    if holds_adapter(base, revision):
        # its base is the one that it was trained on
        runs.insert(0, f"{base}@{revision}" if revision else base)
        base = revision = None
    if runs:
        adapters, processor, description = load_mixed(
            dict.fromkeys(runs, 0.0) | {runs[0]: 1.0},
            base=base,
            revision=revision,
            dtype=chosen_dtype(arguments.dtype),
            quantize=quantized(arguments.quantize),
        )
        adapters.model.to(default_device())
        answering = Answering(name, adapters.model, processor, description, adapters)
    else:
        arguments.adapter = None
        model, processor, description = load_for_answers(arguments, retrievers=True)
        answering = Answering(name, model.eval(), processor, description)
    page = make_page(answering, arguments.reports, search)
    open_page(page, arguments.host, arguments.port)
    return 0
