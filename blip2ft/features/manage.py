"""The caches in a folder: what they are, how large, when they were used, and their removal."""

import os
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from stat import S_ISREG

from blip2ft.features.key import Key
from blip2ft.features.store import DESCRIPTION, DIGEST, HERE, IDS, ROWS, USED, read_key
from blip2ft.whole import LOCK, PARTIAL, alone

NAME = re.compile(r"[0-9a-f]{32}")
OWN = (f"*{ROWS}", f"*{IDS}", f"{HERE}*", f"{PARTIAL}*", USED, DESCRIPTION)


@dataclass(frozen=True)
class Cache:
    """The features of one key.

    key: None where it can't be told, and `problem` says why; images: how many; size: in bytes;
    used: when last.
    """

    folder: Path
    key: Key | None
    images: int
    size: int
    used: datetime
    problem: str = ""


def list_caches(folder: Path) -> list[Cache]:
    """The caches in a folder, the last used first; what isn't one is left out.

    Raises ValueError where there is no such folder, it is a single cache, or can't be read.
    """
    try:
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}; give the cache.folder of a run")
        if NAME.fullmatch(folder.name) and (folder / DESCRIPTION).is_file():
            raise ValueError(f"{folder} is one cache; give the folder that it lies in")
        paths = [path for path in folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
    except OSError as error:
        raise ValueError(
            f"{folder} can't be read ({error.strerror}); check whose it is, and its permissions"
        ) from error
    found = [cache for path in paths if (cache := _look_at(path))]
    return sorted(found, key=lambda cache: cache.used, reverse=True)


def _look_at(folder: Path) -> Cache | None:
    """The cache in a folder; None where there is none."""
    files: dict[str, os.stat_result] = {}
    try:
        changed = datetime.fromtimestamp(folder.stat().st_mtime)
        for path in folder.iterdir():
            with suppress(FileNotFoundError):  # removed meanwhile
                files[path.name] = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        return Cache(folder, None, 0, 0, changed, f"can't be read ({error.strerror})")
    if DESCRIPTION not in files:
        return None
    key, problem = None, ""
    try:
        key = read_key(folder)
    except ValueError as error:
        if not any(name == USED or name.endswith((ROWS, IDS)) for name in files):
            return None  # another program's cache.json
        cause = error.__cause__
        why = f"can't be read ({cause.strerror})" if isinstance(cause, OSError) else "is damaged"
        problem = f"its {DESCRIPTION} {why}"
    ids = (status for name, status in files.items() if name.endswith(IDS))
    images = sum(status.st_size // DIGEST for status in ids)
    size = sum(status.st_size for status in files.values() if S_ISREG(status.st_mode))
    used = datetime.fromtimestamp(files.get(USED, files[DESCRIPTION]).st_mtime)
    return Cache(folder, key, images, size, used, problem)


def choose(
    caches: Collection[Cache], *, older_than: float | None, keep: Collection[str] | None
) -> list[Cache]:
    """Those not used for `older_than` days, and whose name isn't in `keep`; None asks for nothing.

    Where both are given, both have to apply. Raises ValueError where neither is given.
    """
    if older_than is None and keep is None:
        raise ValueError("say what to remove: --older-than DAYS, --unused-by F.yaml, or both")
    before = datetime.now() - timedelta(days=older_than or 0)
    return [
        cache
        for cache in caches
        if (older_than is None or cache.used < before)
        and (keep is None or cache.folder.name not in keep)
    ]


def remove(cache: Cache) -> str:
    """Remove a cache's own files and, if nothing else is in it, its folder; what to say of it.

    Raises InUse, a ValueError, where a run is computing it, and ValueError where its files can't be
    removed.
    """
    try:
        return _remove(cache)
    except OSError as error:
        raise ValueError(f"it can't be removed ({error.strerror})") from error


def _remove(cache: Cache) -> str:
    with alone(cache.folder):
        # the description last: until then, what a kill leaves is still known for what it is
        for pattern in OWN:
            for file in cache.folder.glob(pattern):
                file.unlink(missing_ok=True)
        # while it is held: who waits for it, or comes later, makes a new one
        (cache.folder / LOCK).unlink(missing_ok=True)
    left = [path.name for path in cache.folder.iterdir()]
    if left:
        return f"removed, but for what isn't its own: {', '.join(sorted(left))}"
    with suppress(OSError):  # a run that waited may have begun anew
        cache.folder.rmdir()
    return "removed"
