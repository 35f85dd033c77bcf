"""`blip2ft plan`."""

import argparse
import json
from typing import Any

from blip2ft.commands.options import command
from blip2ft.commands.overrides import add_settings
from blip2ft.commands.planning import add_planning, planning
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
    add_planning(parser)
    parser.add_argument("--json", action="store_true", help="print bytes and counts as JSON")


def _plan(arguments: argparse.Namespace) -> int:
    quiet_libraries()
    asked = planning(arguments)
    from blip2ft.hub import check_model_name
    from blip2ft.plan.plan import make_plan
    from blip2ft.plan.report import as_json, as_text
    from blip2ft.settings import read_settings

    task, settings = read_settings(arguments.config, arguments.overrides, arguments.task)
    check_model_name(settings["model"]["name"])
    plan = make_plan(task, settings, **asked)
    print(json.dumps(as_json(plan), indent=2) if arguments.json else as_text(plan))
    return 0
