"""`blip2ft inspect`."""

import argparse
from typing import Any

from blip2ft.commands.options import command
from blip2ft.hub import check_model_name
from blip2ft.quiet import quiet_libraries


def add_inspect(commands: Any) -> None:
    parser = command(commands, "inspect", "Show the parts of a model or a run.", _inspect)
    parser.add_argument("model", metavar="MODEL_OR_RUN", help="hub id, folder, or run")
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")


def _inspect(arguments: argparse.Namespace) -> int:
    check_model_name(arguments.model)
    quiet_libraries()
    from blip2ft.inspection import describe

    print(describe(arguments.model, revision=arguments.revision))
    return 0
