"""Files and folders that are there as a whole or not at all, and that one run writes at a time."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

LOCK = ".lock"
PARTIAL = ".partial-"
WRITING = "writing"  # the name of a thread that writes a folder


class InUse(ValueError):
    """Another run writes to the folder."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file that is then put on the disk and renamed to `path`.

    After an error there is none, nor where none was written. Folders above it are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # several processes may be at it, of several machines too
    partial = path.with_name(f"{PARTIAL}{uuid4().hex}-{path.name}")
    try:
        yield partial
        if partial.exists():
            _flush(partial)
            partial.replace(path)
            _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder whose files are then put on the disk, and that is renamed to `path`.

    After an error there is none. `path` may be an empty folder; folders above it are made.
    replace: `path` may be any folder, which is removed then; after an error it is still there, and
      after a kill one of the two is, or none.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}")
    former = path.with_name(f"{PARTIAL}former-{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for written in (*partial.rglob("*"), partial):
            _flush(written)
        if path.exists() and replace:
            shutil.rmtree(former, ignore_errors=True)
            path.rename(former)
        elif path.exists():
            path.rmdir()
        try:
            partial.rename(path)
        except OSError:
            if former.exists():
                former.rename(path)
            raise
        _flush(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)


def in_use(folder: Path) -> bool:
    """Whether there is a file in the place of `folder`, or more in it than a lock."""
    if not folder.exists():
        return False
    return not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())


def check_free(out: Path) -> None:
    """Raise ValueError where the folder `out` is in use, or can't be made or written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is in use and is not overwritten; choose another folder")
    check_writable(out)


def check_writable(folder: Path) -> None:
    """Raise ValueError where `folder`, which may not be there yet, can't be made or written.

    Nothing is left of the folder that is made to find that out.
    """
    place = Path(os.path.abspath(folder))
    there = next(place for place in (place, *place.parents) if os.path.lexists(place))
    if not there.is_dir():
        what = "a link to nothing" if there.is_symlink() else "a file"
        raise ValueError(f"{folder} can't be made: {there} is {what}; choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(
            f"{folder} can't be written: not allowed to write in {there}; change its permissions, "
            "or choose another folder"
        )
    if there != place:
        # its own name, since several processes may be at it
        trial = there / f"{PARTIAL}{uuid4().hex}"
        try:
            (trial / place.relative_to(there)).mkdir(parents=True)
        except OSError as error:
            raise ValueError(
                f"{folder} can't be made: {there} takes no such folder ({error.strerror}); choose "
                "another"
            ) from error
        finally:
            shutil.rmtree(trial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def remove_partial(folder: Path) -> None:
    """Remove what killed runs left half-written, while no other run writes."""
    for path in folder.glob(f"{PARTIAL}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def alone(
    folder: Path, name: str = LOCK, *, doing: str = "writing to", by_file: bool = True
) -> Iterator[None]:
    """Keep other runs from writing to the same folder; a run that is killed lets go of it.

    name: of the lock, where several processes share the work; doing: what they do, for the error;
    by_file: on a disk that knows no locks, a file is one, which a kill on another machine leaves.

    Raises InUse, a ValueError, where another has it, and OSError on such a disk without `by_file`.
    """
    lock = FileLock(folder / name, timeout=0, fallback_to_soft=by_file)
    try:
        lock.acquire()
    except Timeout as error:
        raise InUse(f"another run is {doing} {folder}; wait for its end") from error
    try:
        yield
    finally:
        lock.release()


def _flush(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
