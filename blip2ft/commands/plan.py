"""`blip2ft plan`."""

import argparse
import json
from pathlib import Path
from typing import Any

from blip2ft.commands.options import command, positive
from blip2ft.commands.overrides import add_settings
from blip2ft.quiet import quiet_libraries

EPILOG = """\
Settings are overridden as the recipes take them: --train.micro_batch_size 8.
Nothing is loaded but the model's config: a step is rehearsed on shapes alone. What is planned is
training; evaluation and its beam search come on top where they need more.
"""


def add_plan(commands: Any) -> None:
    parser = command(
        commands, "plan", "Say what a run will take: memory, steps, time and disk.", _plan
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add_settings(parser)
    parser.add_argument("--gpu", help="memory such as 24GB or 40GiB, or a name such as a100-40")
    parser.add_argument("--processes", type=positive, default=1, help="GPUs that share a step (1)")
    parser.add_argument("--samples", type=positive, help="training samples of an epoch")
    parser.add_argument("--tokens", type=positive, help="of the longest text with its prompt")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--images-per-second", type=_above_0, metavar="X", help="of all processes")
    speed.add_argument("--like", type=Path, metavar="RUN", help="take the speed of an earlier run")
    parser.add_argument("--json", action="store_true", help="print bytes and counts as JSON")


def _plan(arguments: argparse.Namespace) -> int:
    quiet_libraries()
    from blip2ft.hub import check_model_name
    from blip2ft.plan.gpu import read_gpu

    gpu = None if arguments.gpu is None else read_gpu(arguments.gpu)
    from blip2ft.plan.length import speed_of
    from blip2ft.plan.plan import make_plan
    from blip2ft.plan.report import as_json, as_text
    from blip2ft.settings import read_settings

    speed = arguments.images_per_second
    if arguments.like is not None:
        speed = speed_of(arguments.like)
    task, settings = read_settings(arguments.config, arguments.overrides, arguments.task)
    check_model_name(settings["model"]["name"])
    plan = make_plan(
        task,
        settings,
        gpu=gpu,
        processes=arguments.processes,
        samples=arguments.samples,
        tokens=arguments.tokens,
        speed=speed,
    )
    print(json.dumps(as_json(plan), indent=2) if arguments.json else as_text(plan))
    return 0


def _above_0(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} isn't a number above 0")
    return number
