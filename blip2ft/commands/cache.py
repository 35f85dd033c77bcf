"""`blip2ft cache`: build, list and prune kept features."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from blip2ft.commands.options import command
from blip2ft.commands.overrides import add_settings
from blip2ft.features.level import cache_folder
from blip2ft.features.size import told_size
from blip2ft.quiet import quiet_libraries

BUILD = """\
Settings are overridden as the recipes take them: --cache.folder features. A run computes what is
missing by itself: this is for doing it before, or elsewhere. A build that was stopped goes on where
it was. Several GPUs share the work:
accelerate launch --num_processes 8 -m blip2ft cache build --config F.yaml
"""
PRUNE = """\
Caches are removed as a whole, never single images. Give --older-than, --unused-by or both: then a
cache is removed where both apply, so that one used lately stays. Caches that a run is computing,
and files that aren't the caches' own, are left alone.
"""
# columns of a line of `list`, and their widths; the model comes last
HEAD = f"{'cache':<8}{'images':>11}{'size':>10}  {'last used':<16}"
KIND = "  {:<7}  {:<6}  {:<4}  {:<8}  {:<7}  {}"


def add_cache(commands: Any) -> None:
    about = "Keep what frozen parts compute of images (cache.folder)."
    parser = command(commands, "cache", about, _help)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", parser_class=type(parser))
    build = command(actions, "build", "Compute the features that a run would.", _build)
    build.formatter_class, build.epilog = argparse.RawDescriptionHelpFormatter, BUILD
    add_settings(build)
    listing = command(actions, "list", "Tell what is kept in a folder.", _list)
    prune = command(actions, "prune", "Remove caches that aren't needed any more.", _prune)
    prune.formatter_class, prune.epilog = argparse.RawDescriptionHelpFormatter, PRUNE
    for action in (listing, prune):
        action.add_argument("folder", type=_folder, metavar="FOLDER", help="cache.folder of a run")
    prune.add_argument(
        "--older-than", type=_days, metavar="DAYS", help="caches not used for so many days"
    )
    prune.add_argument(
        "--unused-by",
        action="append",
        metavar="F.yaml",
        help="caches that no run of these settings uses, in any precision where model.precision is "
        "auto; may be given several times; overrides aren't taken: a run's own config.yaml, in its "
        "folder, has them",
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
    if not caches:
        print(f"{arguments.folder} holds no kept features")
        return 0
    print(HEAD + KIND.format("level", "image", "kept", "computed", "JPEGs", "model"))
    for cache in caches:
        print(_line(cache))
    print(f"{told_size(sum(cache.size for cache in caches))} in {arguments.folder}")
    return 1 if any(cache.problem for cache in caches) else 0


def _prune(arguments: argparse.Namespace) -> int:
    quiet_libraries()
    from blip2ft.features.manage import choose, list_caches, remove
    from blip2ft.whole import InUse

    caches, keep = list_caches(arguments.folder), None
    if arguments.unused_by:
        keep = {
            name for config in arguments.unused_by for name in _used_by(config, arguments.folder)
        }
    chosen = choose(caches, older_than=arguments.older_than, keep=keep)
    if not caches:
        print(f"{arguments.folder} holds no kept features")
        return 0
    gone, failed = [], False
    for cache in chosen:
        try:
            said = "would be removed" if arguments.dry_run else remove(cache)
            gone.append(cache)
        except InUse:
            said = "kept: a run is computing it"
        except ValueError as error:
            said, failed = f"kept: {error}", True
        print(f"{_line(cache)}: {said}", flush=True)
    size = told_size(sum(cache.size for cache in gone))
    print(f"{len(gone)} of {len(caches)} caches, {size}")
    return 1 if failed else 0


def _used_by(config: str, folder: Path) -> set[str]:
    """The caches in `folder` that a run of the settings in a file uses."""
    from blip2ft.features.of_run import names_for
    from blip2ft.settings import read_settings

    path = Path(config).expanduser()
    if not path.is_file():
        own = path / "config.yaml"
        advice = f"give {own}" if own.is_file() else "give a recipe's YAML or a run's config.yaml"
        what = "is a folder" if path.is_dir() else "isn't there"
        raise ValueError(f"--unused-by {config} {what}; {advice}")
    try:
        return names_for(*read_settings(str(path), ["--cache.folder", str(folder)], None))
    except ValueError as error:
        raise ValueError(f"--unused-by {config}: {error}") from error


def _line(cache: Any) -> str:
    used = f"{cache.used:%Y-%m-%d %H:%M}"
    key, images, size = cache.key, f"{cache.images:,}", told_size(cache.size)
    if cache.problem and not cache.size:  # nobody could look
        images = size = "?"
    start = f"{cache.folder.name[:8]}{images:>11}{size:>10}  {used}"
    if key is None:
        return f"{start}  {cache.problem}"
    image, _, decoded = key.transform.partition(", ")
    jpegs = "whole" if decoded.startswith("JPEGs in full") else "reduced"
    names = key.model.split("/")
    model = key.model if len(names) <= 2 else "/".join(["...", *names[-2:]])
    return start + KIND.format(key.level, image, key.dtype, key.precision, jpegs, model)


def _folder(text: str) -> Path:
    try:
        return cache_folder(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < 36_500:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a number of days, 0 or more")
    return days
