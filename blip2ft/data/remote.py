"""Files at addresses such as https://, hf:// and s3://, through fsspec."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path
from typing import Any, NamedTuple

MISSING = (401, 403, 404, 410)  # what servers answer: without the right to list, often 403
TRIES = 4  # to fetch a file; the pauses between them are 1, 4 and 16 seconds
PAUSE = 1.0
SECONDS, CONNECT_SECONDS = 60.0, 10.0  # in which one image has to come, and a server to answer


class Address(NamedTuple):
    """A file system of fsspec's, and a path in it."""

    system: Any
    path: str


@dataclass(frozen=True, slots=True)
class Remote:
    """An image at an address, fetched when asked for."""

    url: str

    def read(self) -> bytes:
        """The bytes of the image file.

        Tries again where the connection fails or hangs. Raises ValueError where there is no such
        file, or it can't be fetched.
        """
        found: list[bytes] = []

        def fetch() -> None:
            system, path = locate_remote(self.url, **_patience(self.url))
            found.append(system.cat_file(path))

        persist(fetch, self.url)
        return found[-1]


def _patience(url: str) -> dict[str, Any]:
    """Time-outs for one image; other file systems than the web's have their own."""
    if not url.lower().startswith(("http://", "https://")):
        return {}
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=SECONDS, sock_connect=CONNECT_SECONDS)
    return {"client_kwargs": {"timeout": timeout}}


def is_remote(url: str) -> bool:
    """Whether it is an address, not a path."""
    return "://" in url


def bare(url: str) -> str:
    """A web address without its query, such as ?download=true; all else as it is."""
    web = url.lower().startswith(("http://", "https://"))
    return url.partition("#")[0].partition("?")[0] if web else url


def locate_remote(url: str, **options: Any) -> Address:
    """The file system of an address. Raises ValueError where a package for it is missing."""
    from fsspec.core import url_to_fs

    try:
        return Address(*url_to_fs(url, **options))
    except ImportError as error:
        scheme = url.partition("://")[0]
        package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs"}.get(scheme, scheme)
        raise ValueError(
            f"{url}: a package that reads {scheme}:// isn't installed: pip install {package}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{url}: no such kind of address ({error}).") from error


def list_remote(pattern: str) -> list[str]:
    """The addresses that a pattern with *, ? or [..] names, sorted."""
    system, path = locate_remote(pattern)
    try:
        found = system.glob(path)
    except Exception as error:  # each file system has errors of its own
        raise ValueError(f"{pattern}: can't be listed ({_say(error)}).") from error
    return sorted(system.unstrip_protocol(name) for name in found)


def read_remote(url: str) -> bytes | None:
    """What a small file holds; None where there is none, or none that may be read."""
    system, path = locate_remote(url)
    try:
        return system.cat_file(path)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        return None
    except Exception as error:  # each file system has errors of its own
        answer = getattr(error, "response", error)
        status = getattr(answer, "status", None) or getattr(answer, "status_code", None)
        if status in MISSING:
            return None
        raise ValueError(f"{url}: can't be read ({_say(error)}).") from error


def download(url: str, path: Path, size: int | None) -> None:
    """Write a file to `path`.

    size: what it must have in bytes, where that is known.

    Raises ValueError where it has another, and as `persist` does.
    """

    def fetch() -> None:
        system, place = locate_remote(url)
        system.get_file(place, str(path))

    persist(fetch, url)
    fetched = path.stat().st_size
    if size is not None and fetched != size:
        raise ValueError(
            f"{url}: {fetched} bytes were fetched, but its index says {size}. If it was changed "
            "since, write the index anew (blip2ft shard --index); else fetch it again."
        )


def persist(fetch: Callable[[], None], url: str) -> None:
    """Call `fetch`, and again where the connection fails.

    Raises ValueError where there is no such file, or it can't be fetched.
    """
    for tried in range(1, TRIES + 1):
        try:
            fetch()
            return
        except FileNotFoundError as error:
            raise ValueError(
                f"{url}: no such file. Correct the address, or the index that names it."
            ) from error
        except Exception as error:  # each file system has errors of its own
            if isinstance(error, ValueError) or getattr(error, "errno", None) == ENOSPC:
                raise
            if tried == TRIES:
                raise ValueError(
                    f"{url}: can't be fetched, tried {TRIES} times ({_say(error)}). Check the "
                    "network, and go on."
                ) from error
            time.sleep(PAUSE * 4 ** (tried - 1))


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
