"""What was counted once and for all: kept in the cache, and counted by one process for all."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from blip2ft.data.remote import is_remote
from blip2ft.whole import write_text


def keep_counts(
    urls: Sequence[str], cache: Path, count: Callable[[Sequence[str]], Mapping[str, Any]]
) -> dict[str, Any]:
    """What `count` says of each file, as JSON; only new or changed files are counted.

    A local file is the same while its size and time of change are, a remote one always. While one
    process counts, others wait.
    """
    if not urls:
        return {}
    digest = hashlib.sha256("\n".join(sorted(urls)).encode()).hexdigest()[:32]
    kept = cache / f"counts-{digest}.json"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):
        known = json.loads(kept.read_text()) if kept.is_file() else {}
        prints = {url: fingerprint(url) for url in urls}
        new = [url for url in urls if prints[url] not in known]
        if new:
            counted = count(new)
            known = {prints[url]: known.get(prints[url]) for url in urls}
            known |= {prints[url]: counted[url] for url in new}
            write_text(kept, json.dumps(known))
    return {url: known[prints[url]] for url in urls}


def fingerprint(url: str) -> str:
    """A name for what a file holds: of a remote one its address, of a local one size and time too.

    Raises FileNotFoundError where a local one isn't there.
    """
    if is_remote(url):
        return url
    status = os.stat(url)
    return f"{os.path.abspath(url)} {status.st_size} {status.st_mtime_ns}"
