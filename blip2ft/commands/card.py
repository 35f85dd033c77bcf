"""`blip2ft card`, and the options for a card that `blip2ft push` has too."""

import argparse
import sys
from pathlib import Path
from typing import Any

from blip2ft.commands.options import command
from blip2ft.quiet import quiet_libraries


def add_card(commands: Any) -> None:
    parser = command(
        commands,
        "card",
        "Write the model card of a run: what it recorded, and what you say of it.",
        _card,
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the --output of a run")
    add_card_options(parser)
    parser.add_argument(
        "--ask",
        action="store_true",
        help="write the questions that are left, as a YAML to fill in for --about, instead",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to write, instead of printing. An earlier card that nobody changed is "
        "replaced, any other file never",
    )
    parser.add_argument("--repo", metavar="OWNER/NAME", help="where it will be on the hub")
    parser.add_argument(
        "--merged", action="store_true", help="of the whole model; default: of the adapter"
    )


def add_card_options(parser: argparse.ArgumentParser) -> None:
    """What a person says for a card, and by what its results are told apart; see `read_answers`."""
    parser.add_argument(
        "--about", type=Path, metavar="FILE.yaml", help="what you say for the card: see card --ask"
    )
    parser.add_argument(
        "--say",
        action="append",
        default=[],
        metavar="QUESTION=ANSWER",
        help="one answer, such as license=mit, over those of --about",
    )
    parser.add_argument(
        "--by",
        nargs="+",
        metavar="FIELD",
        help="tell the card's results apart by these fields of the data; default: those with a "
        "few values. Field names and values become part of the card",
    )


def read_answers(arguments: argparse.Namespace) -> dict[str, str | list[str]]:
    """What a person says by --about and --say; ValueError for what isn't asked."""
    from blip2ft.card.said import parse_said, read_said

    said = read_said(arguments.about) if arguments.about else {}
    return said | parse_said(arguments.say)


def _card(arguments: argparse.Namespace) -> int:
    out = arguments.out
    said = read_answers(arguments)
    quiet_libraries()
    from blip2ft.card.card import model_card
    from blip2ft.card.facts import Release
    from blip2ft.card.file import check_replaceable, write_card, write_new
    from blip2ft.card.said import write_questions

    if out is not None and not arguments.ask:
        check_replaceable(out)  # before seconds of scoring
    fields = None if arguments.by is None else tuple(arguments.by)
    release = Release(repo=arguments.repo, merged=arguments.merged, fields=fields)
    card = model_card(arguments.run_folder, said, release)
    text = write_questions(card.missing, said) if arguments.ask else card.text
    if out is None:
        print(text, end="")
    else:
        (write_new if arguments.ask else write_card)(out, text)
        print(out)
    if not arguments.ask:
        # what is printed may go on to a file
        print(told_missing(card.missing), file=sys.stdout if out else sys.stderr)
        for leak in _private(card.text, said):
            print(f"looks private: {leak}", file=sys.stderr)
    return 0


def told_missing(missing: list[str]) -> str:
    """What a card lacks that only a person knows, and how to say it."""
    from blip2ft.card.said import QUESTIONS

    if not missing:
        return "nothing is missing that only you know"
    width = max(map(len, missing))
    # what comes behind the question is in the file
    asked = {name: f"{QUESTIONS[name].ask.partition('?')[0]}?" for name in missing}
    lines = [f"  {name.ljust(width)}  {ask}" for name, ask in asked.items()]
    return "\n".join(
        [
            "the card lacks what only you know; say it with --say QUESTION=ANSWER, or all of it in "
            "a file for --about, which blip2ft card RUN --ask --out about.yaml writes:",
            *lines,
        ]
    )


def _private(text: str, said: dict[str, str | list[str]]) -> list[str]:
    from blip2ft.publish.private import leaks, of_this_machine

    known = of_this_machine(said=" ".join(map(str, said.values())))
    return list(leaks("card", text, known, ()))
