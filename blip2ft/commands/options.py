"""What several commands share: their parser, numbers, model and decoding."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KINDS = ("nf4", "int8")
DECODING = ("num_beams", "max_new_tokens", "length_penalty")


def command(commands: Any, name: str, help_line: str, run: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help_line, description=help_line)
    parser.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,  # not to hide that of the command around this one
        help="show the traceback of an error",
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a whole number above 0")
    return int(text)


def weighted_path(text: str) -> tuple[Path, float]:
    """RUN, or RUN=WEIGHT; a folder may have an = in its name."""
    name, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), 1.0
    try:
        number = float(weight)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no folder, and {weight!r} behind the = is no number"
        ) from None
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r}: a weight is a finite number, such as 0.5")
    return Path(name), number


def quantized_part(text: str) -> tuple[str, str]:
    """PART=KIND, or KIND for the language model."""
    part, _, kind = text.rpartition("=")
    if kind not in KINDS or part not in ("", "language", "vision"):
        raise argparse.ArgumentTypeError(
            f"{text!r}: allowed are {' and '.join(KINDS)}, or with a part language=nf4, vision=nf4"
        )
    return part or "language", kind


def add_quantize_option(parser: argparse.ArgumentParser, more: str = "") -> None:
    """The option that `quantized` reads."""
    parser.add_argument(
        "--quantize",
        type=quantized_part,
        action="append",
        default=[],
        metavar="[PART=]KIND",
        help="hold a part in fewer bits, nf4 or int8: language=KIND (KIND alone says the same), "
        f"vision=KIND; may be given for both{more}",
    )


def quantized(given: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The parts to quantise and how; ValueError for one that is named twice."""
    found = dict(given)
    if len(found) < len(given):
        raise ValueError("--quantize names a part twice; give it once, with one kind")
    return found


def add_model_options(
    parser: argparse.ArgumentParser,
    asked: str = ", and asked with the first one's prompt and decoding",
) -> None:
    """The options that `named_model` reads; asked: how several runs are asked, for the help."""
    parser.add_argument(
        "--model", help="hub id of a model or of a pushed run, or folder; default: adapter's base"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument(
        "--adapter",
        type=weighted_path,
        action="append",
        metavar="RUN[=WEIGHT]",
        help="a run, its adapter folder, or OWNER/NAME[@REVISION] of a pushed run; several are "
        f"mixed, each with weight 1 where none is given{asked}",
    )
    add_quantize_option(parser)


def add_decoding_options(
    parser: argparse.ArgumentParser, *, longest: int, length_penalty: float
) -> None:
    """The options that `decoding` reads; the numbers are what the command does without them."""
    parser.add_argument("--num-beams", type=positive, help="beams of the search (5)")
    parser.add_argument("--max-new-tokens", type=positive, help=f"longest answer ({longest})")
    parser.add_argument(
        "--length-penalty", type=float, help=f"above 0 favours long answers ({length_penalty})"
    )


def decoding(arguments: argparse.Namespace, description: dict[str, Any]) -> dict[str, Any]:
    """The options of `generate` that were given, else those that the model was tuned for."""
    found = dict(description.get("generation", {}))
    given = {name: getattr(arguments, name) for name in DECODING}
    found |= {name: value for name, value in given.items() if value is not None}
    return {name: found[name] for name in DECODING if name in found}


def named_model(
    arguments: argparse.Namespace,
) -> tuple[str | None, str | None, dict[Path, float]]:
    """What --model, --revision and --adapter name: base, its revision, and runs with weights.

    A --model that is a pushed run is that run, on the base that it was trained on.
    """
    from blip2ft.models.hub_adapter import holds_adapter

    name, revision, given = arguments.model, arguments.revision, arguments.adapter or []
    if name is not None and not given and holds_adapter(name, revision):
        return None, None, {Path(f"{name}@{revision}" if revision else name): 1.0}
    runs = dict(given)
    if len(runs) < len(given):
        raise ValueError("--adapter names a run twice; give it once, with one weight")
    return name, revision, runs


def chosen_dtype(name: str) -> Any:
    """The torch.dtype of --dtype; "auto" is bf16 on a GPU that has it, else fp32."""
    import torch

    from blip2ft.captioner import default_device
    from blip2ft.export import DTYPES

    cuda = default_device().type == "cuda"
    half = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return DTYPES[("bf16" if half else "fp32") if name == "auto" else name]


def load_for_answers(
    arguments: argparse.Namespace, *, retrievers: bool = False
) -> tuple[Any, Any, dict[str, Any]]:
    """Model, processor and what is known of prompt and decoding, on the best device.

    retrievers: take those too, which write no answers.
    """
    from blip2ft.captioner import default_device
    from blip2ft.finetuned import load_finetuned, load_mixed
    from blip2ft.models.hub_adapter import read_notes
    from blip2ft.models.load import load_retriever
    from blip2ft.models.source import is_retriever, read_config
    from blip2ft.models.vqa import load_vqa

    dtype = chosen_dtype(arguments.dtype)
    quantize = quantized(arguments.quantize)
    name, revision, runs = named_model(arguments)
    if runs:
        found: dict[str, Any] = {"base": name, "revision": revision}
        found |= {"dtype": dtype, "quantize": quantize}
        first, *_ = runs
        if runs == {first: 1.0}:
            model, processor, description = load_finetuned(first, **found)
        else:
            adapters, processor, description = load_mixed(runs, **found)
            model = adapters.model
        if description["task"] == "retrieval" and not retrievers:
            raise ValueError(
                f"{first} compares images and texts and writes none; search with it: "
                "blip2ft index, blip2ft search"
            )
    else:
        assert name is not None  # the commands ask for one of the two
        config = read_config(name, revision, ("blip-2", "instructblip"))
        options: dict[str, Any] = {"revision": revision}
        options |= {"dtype": dtype, "quantize": quantize}
        if retrievers and is_retriever(config):
            heads = {"itc": 1.0, "itm": 1.0}  # without that of text generation
            model, processor = load_retriever(name, objectives=heads, **options)
        else:
            options["question_in_qformer"] = config.model_type == "instructblip"
            model, processor = load_vqa(name, **options)
        description = read_notes(name, revision)
    return model.to(default_device()), processor, description
