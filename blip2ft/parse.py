"""From YAML and command line to the settings of a run; from an error to a clear message."""

import dataclasses
import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jsonargparse import ArgumentParser

from blip2ft.errors import IN_PLACE_OF_DEEPSPEED, Stopped, plain_message
from blip2ft.training.presence import fail, lost_another, told_by_first
from blip2ft.training.presence import stop as stop_all
from blip2ft.whole import WRITING

Config = TypeVar("Config")

# What a disk answers that takes no more.
FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "your share of the disk is full (quota)",
    errno.EFBIG: "the disk, or a limit (ulimit -f), allows no larger file",
}

# What scripts for DeepSpeed are given, and what its launcher adds to a command.
OF_DEEPSPEED = ("deepspeed", "deepspeed_config", "local_rank")

# What a setting that is a mapping may be.
MAPPINGS = {"quantize": "{language: nf4}", "model.attention": "{vision: sdpa}"}


class _Parser(ArgumentParser):
    """Errors as ValueError, so that they are shown like all others."""

    failed_file = ""

    def parse_path(self, path: Any, *args: Any, **options: Any) -> Any:
        """As jsonargparse does, but the file that an error is in is kept for the message."""
        try:
            return super().parse_path(path, *args, **options)
        except Exception:
            self.failed_file = f"{path}: "
            raise

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(message)


def parse_config(config_class: type[Config], argv: Sequence[str], prog: str) -> tuple[Config, str]:
    """The settings in `argv` and all of them, resolved, as YAML.

    `--config F.yaml` is read first, `--a.b value` overrides it, in the order given. Raises
    ValueError for an unknown key, with the nearest known one, and for a value of the wrong type.
    """
    for word, after in pairwise([*argv, ""]):
        option, _, value = word.partition("=")
        if option == "--config" and (value or after):
            check_config_file(value or after)
    parser = _Parser(
        prog=prog,
        description=(config_class.__doc__ or "").strip().splitlines()[0],
        epilog=f"See the YAML files beside {prog} for settings that were used.",
        default_env=False,
        allow_abbrev=False,  # --train.epoch is a typing error, not train.epochs
    )
    parser.add_argument(
        "--config", action="config", help="YAML file with any of the settings below"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    keys = _keys(config_class)
    if "train.resume" in keys:
        parser.add_argument(
            "--resume",
            nargs="?",
            type=bool,
            const=True,
            default=False,
            help="go on with the run in the output folder, from its newest whole checkpoint; the "
            "same as --train.resume true",
        )
    parser.add_class_arguments(config_class, None)
    try:
        settings = parser.parse_args(list(argv))
        settings.pop("config", None)
        settings.pop("debug", None)
        resume = settings.pop("resume", False)
        _check_groups(config_class, settings)
        if resume:
            settings.train.resume = True
        # parse_args lets a null pass for a value of any type
        parser.validate(settings, skip_unset=False)
    except (ValueError, TypeError) as error:
        message = _readable(str(error), [*keys, "resume"])
        raise ValueError(f"{parser.failed_file}{message}") from error
    # nulls too: where the default is a value, leaving them out would bring it back
    yaml = parser.dump(settings, skip_validation=True, skip_unset=False)
    built = parser.instantiate(settings)
    return config_class(**{f.name: built[f.name] for f in dataclasses.fields(config_class)}), yaml  # type: ignore[arg-type]


def check_config_file(path: str) -> None:
    """Raise ValueError where `--config` names no file: what it is, and what to give."""
    named = Path(path)
    if named.is_dir():
        inside = sorted(found.name for found in named.glob("*.yaml"))
        hint = f"it holds {', '.join(inside)}" if inside else "no YAML file is in it"
        raise ValueError(f"--config {path}: this is a folder; give a recipe's YAML, {hint}")
    if not named.exists():
        raise ValueError(f"--config {path}: there is no such file; give a recipe's YAML")


def run_cleanly(main: Callable[[], int | None], *, debug: bool) -> NoReturn:
    """Call `main` and exit with its own status, or 0, or 2 with the message of an error.

    Of processes that fail alike the first tells it.

    128 and the signal's number where one stopped it: 130 Ctrl-C, 138 SIGUSR1, 143 SIGTERM, and 141
    where what reads its output ends before it. 1 where another process of the run was lost, which
    is told, and after an error that isn't foreseen, with its traceback.

    With `debug` every error shows its traceback.
    """
    try:
        status = main() or 0
    except Stopped as stop:
        stop_all()
        print(f"\n{stop}", file=sys.stderr)
        status = 128 + stop.signal_number
    except KeyboardInterrupt:
        stop_all()
        print("\nstopped", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # what reads our output, such as head, has seen enough
        status = 128 + signal.SIGPIPE
    except Exception as error:
        # by any other error, of a connection say, a process notices that another one was lost
        ours = isinstance(error, ValueError | OSError) or _full_disk(error)
        if not ours and lost_another():
            status = 1
        else:
            message = f"error: {_told(error)}"
            told = ours and told_by_first(message)
            fail(message)
            if not ours:
                raise
            if debug:
                traceback.print_exc()
            if not told:
                print(message, file=sys.stderr)
            status = 2
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if any(thread.name == WRITING for thread in threading.enumerate()):
        # after a second Ctrl-C: an end by Python would find the thread outside of it, and abort
        os._exit(status)
    sys.exit(status)


def _told(error: Exception) -> str:
    if full := _full_disk(error):
        name = getattr(error, "filename", None)
        where = f" at {name}" if name else ""
        return (
            f"{full}{where}; what was saved before is whole: free some space and run the same "
            "command again, a training run with --resume"
        )
    return plain_message(error)


def _full_disk(error: Exception) -> str:
    """In which way there is no space left, or ""; safetensors' error says it in its text alone."""
    number = getattr(error, "errno", None)
    return next(
        (said for n, said in FULL.items() if number == n or f"(os error {n})" in str(error)), ""
    )


def _keys(config_class: Any, prefix: str = "") -> list[str]:
    keys = []
    for field in dataclasses.fields(config_class):
        keys.append(prefix + field.name)
        options = [field.type, *getattr(field.type, "__args__", ())]
        for option in options:
            if dataclasses.is_dataclass(option):
                keys += _keys(option, f"{prefix}{field.name}.")
    return keys


def _check_groups(config_class: Any, settings: Any, prefix: str = "") -> None:
    """Raise ValueError where YAML gives something else for a group than its settings."""
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(field.type):
            key, value = prefix + field.name, getattr(settings, field.name)
            if not hasattr(value, "__dict__"):
                raise ValueError(_no_group(key, value, _keys(field.type, f"{key}.")))
            _check_groups(field.type, value, f"{key}.")


def _no_group(key: str, value: object, keys: Sequence[str]) -> str:
    inside = next(other for other in keys if other.startswith(f"{key}."))
    return f"{key} is {value!r}: allowed is a group of settings, such as {inside}"


def _readable(message: str, keys: Sequence[str]) -> str:
    """The parser's message in fewer words, with the nearest known key for an unknown one."""
    message = " ".join(message.split())
    for theirs, ours in (
        ("Problems parsing config", "not valid YAML"),
        (' in "<unicode string>",', " at"),
        ("Unexpected config:", "expected lines of `key: value`, got:"),
        ('Parser key "config": ', ""),
    ):
        message = message.replace(theirs, ours)
    unknown = _unknown_key(message)
    if unknown is None or unknown in keys:
        return _wrong_value(message, keys) or message
    if unknown in OF_DEEPSPEED:
        return f"unknown setting {unknown!r}, of a command for DeepSpeed: {IN_PLACE_OF_DEEPSPEED}"
    near = [repr(key) for key in _nearest_keys(unknown, keys)]
    hint = f"did you mean {' or '.join(near)}?" if near else "--help lists them all"
    return f"unknown setting {unknown!r}: {hint}"


def _nearest_keys(unknown: str, keys: Sequence[str]) -> list[str]:
    """The settings that end in the same name, whatever their groups; else the one most alike."""
    last = unknown.rpartition(".")[2]
    same = [key for key in keys if key.rpartition(".")[2] == last]
    if same:
        in_group = "." in unknown and get_close_matches(unknown, same, 1, cutoff=0.5)
        return in_group or same[:3]
    ends = {key.rpartition(".")[2]: key for key in reversed(keys)}
    return get_close_matches(unknown, keys, 1, cutoff=0.5) or [
        ends[end] for end in get_close_matches(last, ends, 1)
    ]


def _unknown_key(message: str) -> str | None:
    for pattern in (
        r"Group '([\w.]+)' does not accept option '([\w.]+)'",
        r"^Parser key \"([\w.]+)\": Does not validate .* Option '([\w.]+)' is not accepted",
        r"(?:unrecognized arguments: --|^[Oo]ption '|^Key ')([\w.-]+)",
    ):
        found = re.search(pattern, message)
        if found:
            return ".".join(found.groups())
    return None


def _wrong_value(message: str, keys: Sequence[str]) -> str | None:
    group = re.search(r"Parser key \"([\w.]+)\": Unable to load config '(.*?)'", message)
    if group:
        return _no_group(group[1], group[2], keys)
    kind = re.search(r'Parser key "([\w.]+)": Expected an? (.+?)\. Got value: (.*)', message)
    # of an optional value; where that is a group, the error of one of its settings is inside
    optional = re.match(
        r'Parser key "([\w.]+)": Does not validate .*? Subtypes: \[(.*?)\] Errors: .* '
        r"Given value: (.*)",
        message,
    )
    if optional and kind:
        key, kinds = f"{optional[1]}.{kind[1]}", kind[2]
        value = kind[3].partition(" - Expected")[0]
    elif optional or kind:
        key, kinds, value = (optional or kind).groups()  # type: ignore[union-attr]
    else:
        return None
    inside = [other for other in keys if other.startswith(f"{key}.")]
    if inside and not value.startswith("Namespace("):
        return _no_group(key, value, inside)
    if value.startswith("Namespace("):
        needed = inside[0]
        return f"{key} lacks a setting that it needs: {needed}"
    kinds = re.sub(r"typing\.|Literal|<class '(?:\w+\.)*(\w+)'>", r"\1", kinds)
    if key in MAPPINGS and kinds != "dict":
        key = f"a value of {key}"
    mapping = f"a mapping, such as {MAPPINGS.get(key, '{NAME: VALUE}')}"
    for theirs, ours in (("NoneType", "null"), ("bool", "true or false"), ("dict", mapping)):
        kinds = kinds.replace(theirs, ours)
    # to YAML {language:nf4} is one word
    spaced = re.sub(r":(?=[^\s:])", ": ", value)
    hint = f"; did you mean {spaced!r}?" if "a mapping" in kinds and spaced != value else ""
    return f"{key} is {value!r}: allowed is {kinds}{hint}"
