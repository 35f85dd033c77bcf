"""Settings of a recipe, given to a command as the recipe takes them."""

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any, get_origin

from blip2ft.config import CaptionConfig, PartsConfig, RetrievalConfig, VqaConfig

TASKS = ("caption", "retrieval", "vqa")


class _Override(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        namespace.overrides = [*namespace.overrides, option, values]


def add_settings(
    parser: argparse.ArgumentParser, *, required: bool = True, task: bool = True, more: str = ""
) -> None:
    """--config, --task and every setting of any recipe, which end up in `overrides`.

    Options that the parser has already stay its own. required: whether --config is; task: whether
    there is a --task; more: of --config, for the help.
    """
    parser.allow_abbrev = False
    parser.add_argument(
        "--config", required=required, metavar="F.yaml", help=f"as the recipe's{more}"
    )
    if task:
        parser.add_argument("--task", choices=TASKS, help="default: told from the settings")
    parser.set_defaults(overrides=[])
    keys = {key for kind in (CaptionConfig, RetrievalConfig, VqaConfig) for key in _keys(kind)}
    for key in sorted(key for key in keys if f"--{key}" not in parser._option_string_actions):
        parser.add_argument(
            f"--{key}", action=_Override, help=argparse.SUPPRESS, default=argparse.SUPPRESS
        )


def _keys(kind: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of a config's settings, groups too."""
    for field in dataclasses.fields(kind):
        yield prefix + field.name
        if get_origin(field.type) is dict:  # by part
            yield from _keys(PartsConfig, f"{prefix}{field.name}.")
        for option in (field.type, *getattr(field.type, "__args__", ())):
            if dataclasses.is_dataclass(option):
                yield from _keys(option, f"{prefix}{field.name}.")
