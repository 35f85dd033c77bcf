"""`blip2ft report`."""

import argparse
from pathlib import Path
from typing import Any

from blip2ft.commands.options import chosen_dtype, command, positive
from blip2ft.quiet import quiet_libraries

EPILOG = """\
The page is one file that needs no other and no network: scores with their intervals, curves,
answers that improved, worsened or changed most with their images, parts, settings, environment,
time and memory. Several runs of one task are shown side by side, each against the first. Each run
writes its page as it ends.

Paths of images start from the folder in which the run was started: call it there. The page shows
images, paths and settings to whoever gets it.
"""


def add_report(commands: Any) -> None:
    parser = command(
        commands, "report", "Write the page of a run, or one that compares runs.", _report
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run's folder")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to write; else report.html in the run's folder, of several runs "
        "comparison.html here. An earlier page is replaced, any other file never",
    )
    parser.add_argument(
        "--attention",
        type=positive,
        metavar="N",
        help="of one run: show for N of the answers where the model looks, which loads it",
    )


def _report(arguments: argparse.Namespace) -> int:
    if len(arguments.runs) > 1 and arguments.attention:
        raise ValueError("--attention is of one run's page; name one run")
    quiet_libraries()
    from blip2ft.report.report import COMPARISON, write_comparison, write_report

    if len(arguments.runs) > 1:
        out = arguments.out or Path(COMPARISON)
        print(write_comparison(arguments.runs, out))
    elif arguments.attention:
        dtype = chosen_dtype("auto")
        (run,) = arguments.runs
        print(write_report(run, arguments.out, attention=arguments.attention, dtype=dtype))
    else:
        print(write_report(arguments.runs[0], arguments.out))
    return 0
