"""From YAML and command line to the settings of a run; from an error to one clear line."""

import dataclasses
import errno
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar

from jsonargparse import ArgumentParser

Config = TypeVar("Config")


class _Parser(ArgumentParser):
    """Errors as ValueError, so that they are shown like all others."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(message)


def parse_config(config_class: type[Config], argv: Sequence[str], prog: str) -> tuple[Config, str]:
    """The settings in `argv` and all of them, resolved, as YAML.

    `--config F.yaml` is read first, `--a.b value` overrides it, in the order given. Raises
    ValueError for an unknown key, with the nearest known one, and for a value of the wrong type.
    """
    parser = _Parser(
        prog=prog,
        description=(config_class.__doc__ or "").strip().splitlines()[0],
        epilog=f"See the YAML files beside {prog} for settings that were used.",
        default_env=False,
    )
    parser.add_argument(
        "--config", action="config", help="YAML file with any of the settings below"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_class_arguments(config_class, None)
    try:
        settings = parser.parse_args(list(argv))
    except (ValueError, TypeError) as error:
        raise ValueError(_readable(str(error), _keys(config_class))) from error
    settings.pop("config", None)
    settings.pop("debug", None)
    yaml = parser.dump(settings, skip_validation=True)
    built = parser.instantiate(settings)
    return config_class(**{f.name: built[f.name] for f in dataclasses.fields(config_class)}), yaml  # type: ignore[arg-type]


def run_cleanly(main: Callable[[], int | None], *, debug: bool) -> NoReturn:
    """Call `main` and exit: 0, its own status, 2 with one line for an error, 130 for Ctrl-C.

    With `debug` an error shows its traceback.
    """
    from blip2ft.errors import Interrupted

    try:
        status = main() or 0
    except Interrupted as stop:
        print(f"\n{stop}", file=sys.stderr)
        status = 128 + stop.signal_number
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        status = 130
    except (ValueError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {_one_line(error)}", file=sys.stderr)
        status = 2
    sys.stdout.flush()
    sys.exit(status)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" at {error.filename}" if error.filename else ""
        return (
            f"no space left on the disk{where}; what was saved before is whole: free some space "
            "and go on with --train.resume true"
        )
    return " ".join(str(error).split())


def _keys(config_class: Any, prefix: str = "") -> list[str]:
    keys = []
    for field in dataclasses.fields(config_class):
        keys.append(prefix + field.name)
        options = [field.type, *getattr(field.type, "__args__", ())]
        for option in options:
            if dataclasses.is_dataclass(option):
                keys += _keys(option, f"{prefix}{field.name}.")
    return keys


def _readable(message: str, keys: Sequence[str]) -> str:
    """The parser's message, with the nearest known key where it complains of an unknown one."""
    message = " ".join(message.split())
    wrong = re.search(r'Parser key "([\w.]+)": Expected a (.+?)\. Got value: (.*)', message)
    if wrong:
        kind = re.sub(r"typing\.|Literal|<class '(\w+)'>", r"\1", wrong[2])
        return f"{wrong[1]} is {wrong[3]!r}: allowed is {kind}"
    group = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    unknown = re.search(r"(?:unrecognized arguments: --|[Oo]ption '|Key ')([\w.-]+)", message)
    if group:
        name = f"{group[1]}.{group[2]}"
    elif unknown and unknown[1] not in keys:
        name = unknown[1]
    else:
        return message
    near = get_close_matches(name, keys, 1, cutoff=0.5) or get_close_matches(
        name.rpartition(".")[2], [k.rpartition(".")[2] for k in keys], 1
    )
    hint = f"did you mean {near[0]!r}?" if near else "--help lists them all"
    return f"unknown setting {name!r}: {hint}"
