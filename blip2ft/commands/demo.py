"""`blip2ft demo`."""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from blip2ft.commands.options import (
    add_quantize_option,
    chosen_dtype,
    command,
    load_for_answers,
    quantized,
)
from blip2ft.hub import check_model_name, check_revision
from blip2ft.quiet import quiet_libraries

LOOPBACK = "127.0.0.1"
EXPOSED = (
    "lets in whoever reaches this computer, without a password: to ask the model, send pictures "
    "and reports, and see the photos of an index"
)


def port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give a number from 1 to 65535")
    return int(text)


def add_demo(commands: Any) -> None:
    parser = command(commands, "demo", "Open a page to try a model on.", _demo)
    parser.add_argument("model", metavar="MODEL", help="hub id, folder, or a run")
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument(
        "--adapter",
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
    parser.add_argument("--port", type=port, help="port (the first free one from 7860)")
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
    from blip2ft.demo.server import (
        address_of,
        end_with_terminal,
        folder_of_uploads,
        listen,
        make_server,
    )
    from blip2ft.training.signals import stop_at_once
    from blip2ft.whole import check_writable

    check_writable(arguments.reports)
    stop_at_once(lambda _: "stopped")
    end_with_terminal()
    with listen(arguments.host, arguments.port) as listener, folder_of_uploads() as folder:
        from blip2ft.demo.page import make_page
        from blip2ft.demo.search import search_in

        search = None
        if arguments.index is not None:
            search = search_in(arguments.index, dtype=arguments.dtype)
        answering = _load(arguments)
        if not answering.writes:
            more = "" if search else "; --index shows what it finds"
            print(f"{answering.name} writes no captions: it compares images and texts{more}")
        page = make_page(answering, arguments.reports, search)
        server = make_server(page, listener, folder)
        address, alone = address_of(listener)
        if not alone:
            print(f"{arguments.host} {EXPOSED}")
        print(f"{address} is the page; Ctrl-C ends it", flush=True)
        try:
            server.run(sockets=[listener])
        finally:
            answering.stopping.set()
    return 0


def _load(arguments: argparse.Namespace) -> Any:
    """The model as an `Answering`, with its adapters to switch to where runs are named."""
    from blip2ft.captioner import default_device
    from blip2ft.demo.answering import Answering
    from blip2ft.finetuned import adapter_folder, is_run, load_mixed
    from blip2ft.models.adapters import read_description
    from blip2ft.models.hub_adapter import holds_adapter, read_notes

    base, revision, runs = arguments.model, arguments.revision, arguments.adapter
    (name,) = _shown([base])
    if is_run(base) or holds_adapter(base, revision):
        # its base is the one that it was trained on
        runs = [f"{base}@{revision}" if revision else base, *runs]
        base = revision = None
    if not runs:
        arguments.adapter = None
        model, processor, description = load_for_answers(arguments, retrievers=True)
        return Answering(name, model.eval(), processor, {None: description})
    adapters, processor, description = load_mixed(
        dict.fromkeys(runs, 0.0) | {runs[0]: 1.0},
        base=base,
        revision=revision,
        dtype=chosen_dtype(arguments.dtype),
        quantize=quantized(arguments.quantize),
    )
    adapters.model.to(default_device())
    shown = dict(zip(_shown(runs), runs, strict=True))
    known: dict[str | None, dict[str, Any]] = {
        key: read_description(adapter_folder(run)) for key, run in shown.items()
    }
    if base is None:
        base, revision = description["base"], description["revision"]
    known[None] = read_notes(base, revision)
    return Answering(name, adapters.model, processor, known, adapters, shown)


def _shown(names: Sequence[str]) -> list[str]:
    """What the page calls models and runs.

    Of a folder its own name, as its place on this computer is nobody's business, unless two have
    the same.
    """
    short = [Path(name).resolve().name if Path(name).exists() else name for name in names]
    return [s if short.count(s) == 1 else name for s, name in zip(short, names, strict=True)]
