"""Files that are there as a whole or not at all, and folders that one run writes to at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
PARTIAL = ".partial-"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file that is then put on the disk and renamed to `path`.

    After an error there is none, nor where none was written.
    """
    # several processes may be at it
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    try:
        yield partial
        if partial.exists():
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def remove_partial(folder: Path) -> None:
    """Remove what killed runs left half-written, while no other run writes."""
    for path in folder.glob(f"{PARTIAL}*"):
        path.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Keep other runs from writing to the same folder; a run that is killed lets go of it.

    name: of the lock, where several processes share the work.

    Raises ValueError where another has it.
    """
    lock = FileLock(folder / name, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"another run is writing to {folder}; wait for its end") from error
    try:
        yield
    finally:
        lock.release()
