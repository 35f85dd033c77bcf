"""`blip2ft report`."""

import argparse
from pathlib import Path
from typing import Any

from blip2ft.commands.options import command
from blip2ft.quiet import quiet_libraries


def add_report(commands: Any) -> None:
    parser = command(
        commands, "report", "Write the page of a run, or one that compares runs.", _report
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run's folder")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to write; else report.html in the run's folder, of several runs "
        "comparison.html here. An earlier page is replaced, any other file never",
    )


def _report(arguments: argparse.Namespace) -> int:
    quiet_libraries()
    from blip2ft.report.report import COMPARISON, write_comparison, write_report

    if len(arguments.runs) == 1:
        print(write_report(arguments.runs[0], arguments.out))
    else:
        print(write_comparison(arguments.runs, arguments.out or Path(COMPARISON)))
    return 0
