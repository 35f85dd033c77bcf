"""`blip2ft cache`: build, list and prune kept features."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from blip2ft.commands.options import command
from blip2ft.commands.overrides import add_settings
from blip2ft.quiet import quiet_libraries

BUILD = """\
Settings are overridden as the recipes take them: --cache.folder features. A run computes what is
missing by itself: this is for doing it before, or elsewhere. Several GPUs share the work:
accelerate launch --num_processes 8 -m blip2ft cache build --config F.yaml
"""
GB = 10**9


def add_cache(commands: Any) -> None:
    about = "Keep what frozen parts compute of images (cache.folder)."
    parser = command(commands, "cache", about, _help)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", parser_class=type(parser))
    build = command(actions, "build", "Compute the features that a run would.", _build)
    build.formatter_class, build.epilog = argparse.RawDescriptionHelpFormatter, BUILD
    add_settings(build)
    listing = command(actions, "list", "Tell what is kept in a folder.", _list)
    listing.add_argument("folder", type=Path, metavar="FOLDER", help="cache.folder of a run")
    prune = command(actions, "prune", "Remove kept features; other files are left alone.", _prune)
    prune.add_argument("folder", type=Path, metavar="FOLDER", help="cache.folder of a run")
    prune.add_argument("--older-than", type=_days, metavar="DAYS", help="not used for so long")
    prune.add_argument(
        "--unused-by",
        action="append",
        metavar="F.yaml",
        help="that no run of these settings uses, in any precision where model.precision is auto; "
        "overrides aren't taken: a run's own config.yaml, in its folder, has them",
    )
    prune.add_argument("--dry-run", action="store_true", help="tell, and remove nothing")


def _help(arguments: argparse.Namespace) -> int:
    arguments.parser.print_help(sys.stderr)
    return 2


def _build(arguments: argparse.Namespace) -> int:
    quiet_libraries()
    from blip2ft.hub import check_model_name
    from blip2ft.settings import read_settings

    task, settings = read_settings(arguments.config, arguments.overrides, arguments.task)
    check_model_name(settings["model"]["name"])
    from blip2ft.features.of_run import build_for

    build_for(task, settings, partial(print, flush=True))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from blip2ft.features.manage import list_caches

    caches = list_caches(arguments.folder)
    print(f"{'cache':<10}{'images':>12}{'GB':>10}  {'last used':<18}what")
    for cache in caches:
        print(_line(cache))
    print(f"{sum(cache.size for cache in caches) / GB:.2f} GB in {arguments.folder}")
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    quiet_libraries()
    from blip2ft.features.manage import choose, list_caches, remove

    caches, keep = list_caches(arguments.folder), None
    if arguments.unused_by:
        from blip2ft.features.of_run import names_for
        from blip2ft.settings import read_settings

        keep = set()
        for config in arguments.unused_by:
            folder = ["--cache.folder", str(arguments.folder)]
            keep |= names_for(*read_settings(config, folder, None))
    chosen = choose(caches, older_than=arguments.older_than, keep=keep)
    for cache in chosen:
        said = "would be removed" if arguments.dry_run else remove(cache)
        print(f"{_line(cache)}: {said}", flush=True)
    print(f"{len(chosen)} of {len(caches)} caches, {sum(c.size for c in chosen) / GB:.2f} GB")
    return 0


def _line(cache: Any) -> str:
    used = f"{cache.used:%Y-%m-%d %H:%M}"
    size = f"{cache.size / GB:.2f}"
    return f"{cache.folder.name[:8]:<10}{cache.images:>12,}{size:>10}  {used:<18}{cache.key.told()}"


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < 36_500:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a number of days, 0 or more")
    return days
