"""The options of a plan, for the commands that print one."""

import argparse
from pathlib import Path
from typing import Any

from blip2ft.commands.options import positive

PLANNING = ("gpu", "processes", "samples", "tokens", "images_per_second", "like")


def add_planning(parser: argparse.ArgumentParser, *, gpu: str = "") -> None:
    """The options that `planning` reads; gpu: what is planned for without --gpu, for the help."""
    parser.add_argument(
        "--gpu", help=f"memory such as 24GB or 40GiB, or a name such as a100-40{gpu}"
    )
    parser.add_argument(
        "--processes", type=positive, default=1, help="GPUs, or processes, that share a step (1)"
    )
    parser.add_argument("--samples", type=positive, help="training samples of an epoch")
    parser.add_argument("--tokens", type=positive, help="of the longest text with its prompt")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--images-per-second", type=_above_0, metavar="X", help="of all processes")
    speed.add_argument("--like", type=Path, metavar="RUN", help="take the speed of an earlier run")


def planning(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the options say, as `make_plan` takes it; ValueError for what they can't be."""
    from blip2ft.plan.gpu import read_gpu

    gpu = None if arguments.gpu is None else read_gpu(arguments.gpu)
    speed = arguments.images_per_second
    if arguments.like is not None:
        from blip2ft.plan.length import speed_of

        speed = speed_of(arguments.like)
    return {
        "gpu": gpu,
        "processes": arguments.processes,
        "samples": arguments.samples,
        "tokens": arguments.tokens,
        "speed": speed,
    }


def _above_0(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} isn't a number above 0")
    return number
