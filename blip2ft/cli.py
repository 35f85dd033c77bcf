"""The command line `blip2ft`. Heavy imports stay inside the commands, so that --help is quick."""

import argparse
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from blip2ft import __version__
from blip2ft.commands.ask import add_ask
from blip2ft.commands.assemble import add_assemble
from blip2ft.commands.attend import add_attend
from blip2ft.commands.cache import add_cache
from blip2ft.commands.capfilt import add_capfilt
from blip2ft.commands.caption import add_caption
from blip2ft.commands.card import add_card
from blip2ft.commands.check import add_check
from blip2ft.commands.compare import add_compare
from blip2ft.commands.convert import add_convert
from blip2ft.commands.demo import add_demo
from blip2ft.commands.doctor import add_doctor
from blip2ft.commands.evaluate import add_evaluate
from blip2ft.commands.export import add_export
from blip2ft.commands.inspect import add_inspect
from blip2ft.commands.photos import add_index, add_search
from blip2ft.commands.plan import add_plan
from blip2ft.commands.push import add_push
from blip2ft.commands.report import add_report
from blip2ft.commands.score import add_score
from blip2ft.commands.shard import add_shard


class _Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # of -5GB argparse would say only that an argument is missing; no option begins with a digit
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> NoReturn:
        """One line, with the nearest option, command or choice where one is unknown."""
        hint, near = "", []
        option = re.search(r"unrecognized arguments: .*?(--[^\s=]+)", message)
        choice = re.search(r"argument (\S+): invalid choice: '(.*?)'", message)
        if option:
            # without the dashes, which are alike in all of them
            near = get_close_matches(option[1][2:], [o[2:] for o in self._option_string_actions], 1)
            near = [f"--{name}" for name in near]
        elif choice:
            named = [
                a for a in self._actions if choice[1] in (*a.option_strings, a.metavar, a.dest)
            ]
            choices = [str(c) for action in named for c in action.choices or ()]
            near = get_close_matches(choice[2], choices, 1)
        if near:
            hint = f"; did you mean {near[0]}?"
        print(f"error: {message}{hint} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the command `blip2ft`."""
    parser = _Parser(prog="blip2ft", description="Fine-tune BLIP-2 on your own images.")
    parser.add_argument("--version", action="version", version=f"blip2ft {__version__}")
    parser.set_defaults(debug=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for add in (
        add_caption,
        add_ask,
        add_index,
        add_search,
        add_attend,
        add_demo,
        add_score,
        add_evaluate,
        add_compare,
        add_check,
        add_shard,
        add_export,
        add_push,
        add_card,
        add_convert,
        add_assemble,
        add_capfilt,
        add_inspect,
        add_report,
        add_plan,
        add_doctor,
        add_cache,
    ):
        add(commands)
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command is None and rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.command is None:
        parser.print_help(sys.stderr)
        sys.exit(2)
    if rest:
        # the command's own parser knows the options that could have been meant
        arguments.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    from blip2ft.parse import run_cleanly

    run_cleanly(lambda: arguments.run(arguments), debug=arguments.debug)
