"""Files that are made when they are needed, once on each machine, and removed for newer ones."""

import hashlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from blip2ft.whole import PARTIAL, whole

FETCHED = "fetched"  # the folder in a cache for files that are removed for newer ones
OWN = re.compile(r"[0-9a-f]{32}")  # names of such files: no other is ever removed
LEFT = re.compile(
    rf"{PARTIAL}[0-9a-f]{{32}}-{OWN.pattern}"
)  # and of those that a kill left half-written
LOCKS = 64  # more would be a litter of files; two shards with the same lock wait for each other
ABANDONED = 24 * 3600.0  # seconds after which what a kill left half-written is removed


def default_cache() -> Path:
    """Where shards are kept unless a run names another folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "blip2ft"


@dataclass(frozen=True)
class Cache:
    """A folder of files that together have at most `limit` bytes, or one file more.

    Several processes may use it at once, and several runs. Other files in it count for nothing.
    """

    folder: Path
    limit: int

    def get(self, name: str, make: Callable[[Path], None]) -> Path:
        """The file called `name`; made by `make(path)` where it isn't there, by one process.

        A file may be gone again by the time it is opened: then get it again.
        """
        digest = hashlib.sha256(name.encode()).hexdigest()
        path = self.folder / digest[:32]
        if _touch(path):
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".lock-{int(digest, 16) % LOCKS}"):
            if _touch(path):  # made by another process meanwhile
                return path
            with whole(path) as partial:
                make(partial)
                self._make_room(partial.stat().st_size)
        return path

    def _make_room(self, size: int) -> None:
        """Remove what was longest unused, until `size` more bytes are within the limit."""
        with FileLock(self.folder / ".lock"):
            now, held = time.time(), []
            for path in self.folder.iterdir():
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                if OWN.fullmatch(path.name):
                    held.append((status.st_mtime, status.st_size, path))
                    continue
                if LEFT.fullmatch(path.name) and now - status.st_mtime > ABANDONED:
                    path.unlink(missing_ok=True)
            total = size + sum(bytes_ for _, bytes_, _ in held)
            for _, bytes_, path in sorted(held):
                if total <= self.limit:
                    break
                path.unlink(missing_ok=True)
                total -= bytes_


def _touch(path: Path) -> bool:
    """Mark a file as used now; whether there is one."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
