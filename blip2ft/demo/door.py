"""What is let in to the page's server: the page's own requests and nothing else that Gradio serves.

Gradio brings more than a page needs: it fetches addresses that a client names, records the screen,
keeps runs, draws its own statistics. None of that is reached through here.
"""

import json
import logging
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)
UPLOAD = 20 << 20  # bytes of a picture
ENVELOPE = 10_000  # of what a browser sends around it
MESSAGE = 4 << 20  # bytes of a request without a picture; a text has its own, smaller limit
KEPT = 3600.0  # seconds that pictures stay while the server runs
ROOM = 1_000_000_000  # bytes of all of them; the oldest go first

API = "/gradio_api"
READ = (
    "/",
    "/config",
    "/theme.css",
    "/favicon.ico",
    "/manifest.json",
    f"{API}/startup-events",
    f"{API}/queue/data",
    f"{API}/upload_progress",
)
BELOW = ("/assets/", "/static/", f"{API}/heartbeat/")
FILE = f"{API}/file="
SENT = {
    f"{API}/upload": UPLOAD + ENVELOPE,
    f"{API}/queue/join": MESSAGE,
    f"{API}/cancel": MESSAGE,
    f"{API}/reset": MESSAGE,
}


class Door:
    """An ASGI app in front of Gradio's.

    folder: of the files that Gradio keeps, the only ones that are sent or read.
    hosts: by what names a browser may ask, so that no other site's page reaches a server on this
      computer by having its own name mean 127.0.0.1; None for any.
    """

    def __init__(
        self, app: ASGIApp, folder: Path, hosts: Collection[str | None] | None = None
    ) -> None:
        self.app = app
        self.folder = folder.resolve()
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the server's own start and end
            await self.app(scope, receive, send)
            return
        joins = scope["path"] == f"{API}/queue/join"
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        refused = self._refusal(scope["method"], scope["path"], headers)
        if refused is None and joins:
            body = await _read(receive)
            receive = _again(body, receive)
            if not all(map(self._is_kept, _paths(body))):
                refused = 403, "only pictures that were uploaded to this page are read"
        if refused is not None:
            status, reason = refused
            # as Gradio's own page shows them
            told = JSONResponse({"detail": reason}) if joins else PlainTextResponse(reason)
            told.status_code = status
            await told(scope, receive, send)
            return
        if scope["method"] == "POST":
            make_room(self.folder)
        await self.app(scope, receive, send)

    def _refusal(self, method: str, path: str, headers: dict[str, bytes]) -> tuple[int, str] | None:
        """Status and reason where a request is refused by its head alone."""
        if self.hosts is not None and _host(headers.get("host", b"")) not in self.hosts:
            return 403, "this page is served under the names of this computer itself alone"
        if method == "POST" and path in SENT:
            length = headers.get("content-length", b"").decode("latin-1")
            if not length.isdecimal():
                return 411, "the length of what is sent has to be told"
            if int(length) > SENT[path]:
                return 413, f"up to {SENT[path] >> 20} MB are taken"
            # Gradio writes a picture, and then a copy
            needed = 2 * int(length) if path == f"{API}/upload" else 0
            if shutil.disk_usage(self.folder).free < needed:
                logger.warning("%s: no space left on the disk for what is sent", self.folder)
                return 507, "the disk of the computer that runs this page is full"
            return None
        if method not in ("GET", "HEAD"):
            return 404, "there is nothing of that kind here"
        if path.startswith(FILE):
            kept = self._is_kept(path.removeprefix(FILE))
            return None if kept else (403, "only pictures of this page are sent")
        known = path in READ or path.startswith(BELOW)
        return None if known else (404, "there is no such page here")

    def _is_kept(self, path: Any) -> bool:
        if not isinstance(path, str) or "\0" in path:
            return False
        return Path(path).resolve().is_relative_to(self.folder)


def _host(header: bytes) -> str | None:
    """The name in a Host header, without the port; None for none."""
    try:
        return urlsplit(f"//{header.decode('latin-1')}").hostname
    except ValueError:  # such as [
        return None


def make_room(folder: Path, kept: float = KEPT, room: int = ROOM) -> None:
    """Delete files that are older than `kept` seconds, then the oldest, until `room` bytes do."""
    found = []
    for file in folder.rglob("*"):
        try:
            status = file.stat()
        except FileNotFoundError:  # by another request
            continue
        if file.is_file():
            found.append((status.st_mtime, status.st_size, file))
    left, oldest = sum(size for _, size, _ in found), time.time() - kept
    for changed, size, file in sorted(found):
        if changed >= oldest and left <= room:
            return
        file.unlink(missing_ok=True)
        left -= size


def _paths(body: bytes) -> Iterator[Any]:
    """All that a request names as files; one that isn't JSON names none, and Gradio refuses it."""
    try:
        inside = [json.loads(body)]
    except ValueError:
        return
    while inside:
        value = inside.pop()
        if isinstance(value, dict):
            if value.get("path") is not None:
                yield value["path"]
            inside += value.values()
        elif isinstance(value, list):
            inside += value


async def _read(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives what was read already, then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def read() -> Message:
        return messages.pop() if messages else await receive()

    return read
