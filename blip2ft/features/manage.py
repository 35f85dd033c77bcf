"""The caches in a folder: what they are, how large, when they were used, and their removal."""

import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from blip2ft.features.key import Key
from blip2ft.features.store import DESCRIPTION, DIGEST, HERE, IDS, ROWS, USED, read_key
from blip2ft.whole import LOCK, PARTIAL, InUse, alone

NAME = re.compile(r"[0-9a-f]{32}")
OWN = (f"*{ROWS}", f"*{IDS}", f"{HERE}*", f"{PARTIAL}*", USED, DESCRIPTION)


@dataclass(frozen=True)
class Cache:
    """The features of one key. images: how many; size: in bytes; used: when last."""

    folder: Path
    key: Key
    images: int
    size: int
    used: datetime


def list_caches(folder: Path) -> list[Cache]:
    """The caches in a folder, the last used first; what isn't one is left out.

    Raises ValueError where there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give the cache.folder of a run")
    found = []
    for path in folder.iterdir():
        if not NAME.fullmatch(path.name) or not (path / DESCRIPTION).is_file():
            continue
        files = [file.stat() for file in path.iterdir() if file.is_file()]
        images = sum(ids.stat().st_size // DIGEST for ids in path.glob(f"*{IDS}"))
        mark = path / USED
        used = (mark if mark.is_file() else path / DESCRIPTION).stat().st_mtime
        size = sum(file.st_size for file in files)
        cache = Cache(path, read_key(path), images, size, datetime.fromtimestamp(used))
        found.append(cache)
    return sorted(found, key=lambda cache: cache.used, reverse=True)


def choose(
    caches: Collection[Cache], *, older_than: float | None, keep: Collection[str] | None
) -> list[Cache]:
    """Those not used for `older_than` days, and whose name isn't in `keep`; None asks for nothing.

    Raises ValueError where neither is given.
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
    """Remove a cache's own files and, if nothing else is in it, its folder; what to say of it."""
    try:
        with alone(cache.folder):
            # the description last: until then, what a kill leaves is still known for what it is
            for pattern in OWN:
                for file in cache.folder.glob(pattern):
                    file.unlink(missing_ok=True)
            # while it is held: who waits for it, or comes later, makes a new one
            (cache.folder / LOCK).unlink(missing_ok=True)
    except InUse:
        return "kept: a run is computing it"
    left = [path.name for path in cache.folder.iterdir()]
    if left:
        return f"removed, but for what isn't its own: {', '.join(sorted(left))}"
    with suppress(OSError):  # a run that waited may have begun anew
        cache.folder.rmdir()
    return "removed"
