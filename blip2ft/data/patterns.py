"""Names of the files that a source consists of: a folder, a glob, or numbers in braces."""

import glob
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from blip2ft.data.entries import SHOWN, unknown_split

SPLIT_NAME = re.compile(r"(train|training|validation|valid|val|dev|test|testing)(?=$|[-_.])")
KINDS = {".parquet": "Parquet files", ".tar": "tar files"}
BRACES = re.compile(r"\{([^{}]*)\}")


def is_pattern(source: str) -> bool:
    """Whether a source names several files: by *, ?, [..] or {..}."""
    return glob.has_magic(source) or BRACES.search(source) is not None


def find_files(source: str, suffix: str, split: str | None) -> tuple[list[Path], bool]:
    """The local files of a source, sorted, and whether their names alone chose the split.

    In a folder, a split is told from the file names (train-00000-of-00002.parquet, train.tar) or
    from a folder in it.

    suffix: one of `KINDS`.

    Raises ValueError where there are none, or not all that braces name, or no such split.
    """
    folder = Path(source)
    if folder.is_file():
        return [folder], False
    if folder.is_dir():
        files = sorted(f for f in folder.rglob(f"*{suffix}") if not f.name.startswith("."))
    else:
        files = _matches(source)
    if not files:
        raise ValueError(
            f"{source}: no {KINDS[suffix]} there. Give a file, a folder with *{suffix} in it, or "
            f"a pattern such as 'shards/train-*{suffix}'."
        )
    if not folder.is_dir():
        return files, False
    chosen = of_split([file.relative_to(folder).as_posix() for file in files], split, source)
    if chosen is None:
        return files, False
    return [files[number] for number in chosen], True


def of_split(names: Sequence[str], split: str | None, source: str) -> list[int] | None:
    """The numbers of those names that are of a split; None where no name tells one.

    Raises ValueError where there is no such split, or one has to be named.
    """
    by_split: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        *parents, base = name.split("/")
        found = next(filter(None, map(SPLIT_NAME.match, (*reversed(parents), base))), None)
        by_split.setdefault(found.group(1) if found else "", []).append(number)
    named = [name for name in by_split if name]
    if split is not None and split in named:
        return by_split[split]
    if named and (split is not None or len(by_split) > 1):
        raise unknown_split(source, split, named)
    return None


def expand_braces(pattern: str) -> list[str]:
    """What braces stand for: x{08..10}.tar is x08.tar, x09.tar, x10.tar; x{a,b}.tar two files.

    Raises ValueError for a range that runs backwards.
    """
    choices: list[list[str]] = []
    for number, part in enumerate(BRACES.split(pattern)):
        ends = re.fullmatch(r"(\d+)\.\.(\d+)", part)
        if number % 2 == 0:
            choices.append([part])
        elif ends is None:
            choices.append(part.split(","))
        elif int(ends[1]) > int(ends[2]):
            raise ValueError(f"{pattern}: {{{part}}} runs backwards; write the smaller one first.")
        else:
            width = len(ends[1])
            choices.append([f"{n:0{width}}" for n in range(int(ends[1]), int(ends[2]) + 1)])
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _matches(source: str) -> list[Path]:
    files: list[Path] = []
    missing: list[str] = []
    for pattern in expand_braces(source):
        if glob.has_magic(pattern):
            files += map(Path, sorted(glob.glob(pattern, recursive=True)))
        elif os.path.exists(pattern):
            files.append(Path(pattern))
        else:
            missing.append(pattern)
    if missing and files:
        rest = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise ValueError(
            f"{source}: no file {', '.join(missing[:SHOWN])}{rest}. Correct the numbers in braces, "
            "or fetch what is missing."
        )
    return files
