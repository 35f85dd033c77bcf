"""The page's server: where it listens, what it keeps meanwhile, and how it ends."""

import errno
import ipaddress
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

FIRST, LAST = 7860, 7959  # ports that are tried where none is asked for
OWN_NAMES = ("127.0.0.1", "localhost", "::1")
FONT = ["system-ui", "sans-serif"]  # that are there: nothing is fetched from elsewhere
MONO = ["ui-monospace", "monospace"]
# four tabs beside each other on a phone; messages at the bottom, where they cover no tab
CSS = """
@media (max-width: 480px) { .tab-container button { padding-inline: 7px !important } }
.toast-wrap { top: auto !important; bottom: 12px }
"""


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens on `host`, at `port` or the first free one from `FIRST`.

    Raises ValueError for a host that isn't this computer's, and for a port that is taken or not
    for everyone.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ValueError(
            f"--host {host}: there is no such address ({error.strerror}); give 127.0.0.1 for this "
            "computer alone, or 0.0.0.0 for all that reach it"
        ) from error
    for number in [port] if port is not None else range(FIRST, LAST + 1):
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # elsewhere it would take a port that is in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((where[0], number))
            listener.listen()
            return listener
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE or port is not None:
                raise ValueError(_told(host, number, error)) from error
    raise ValueError(f"all ports from {FIRST} to {LAST} are taken on {host}; choose a --port")


def _told(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} is taken on {host}; choose another --port, or leave it out for the first "
            f"free one from {FIRST}"
        )
    if error.errno == errno.EACCES:
        return f"port {port} is for administrators; choose a --port from 1024 on"
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"--host {host} is no address of this computer; give 127.0.0.1 for this computer "
            "alone, 0.0.0.0 for all that reach it, or one of its own"
        )
    return f"{host} can't be listened on at port {port}: {error.strerror}"


def address_of(listener: socket.socket) -> tuple[str, bool]:
    """The address to open in a browser on this computer, and whether only this computer can."""
    name, port = listener.getsockname()[:2]
    ip = ipaddress.ip_address(name.partition("%")[0])
    if ip.is_unspecified:
        name = "[::1]" if ip.version == 6 else "127.0.0.1"
    elif ip.version == 6:
        name = f"[{name}]"
    return f"http://{name}:{port}", ip.is_loopback


@contextmanager
def folder_of_uploads() -> Iterator[Path]:
    """A folder for all that the page keeps meanwhile, which is gone with its content afterwards.

    Gradio learns of it as it is imported: enter this before.
    """
    folder = Path(tempfile.mkdtemp(prefix="blip2ft-demo-"))
    before = os.environ.get("GRADIO_TEMP_DIR"), tempfile.tempdir
    os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = before[1]
        if before[0] is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before[0]
        shutil.rmtree(folder, ignore_errors=True)


def make_server(page: Any, listener: socket.socket, folder: Path) -> Any:
    """A uvicorn.Server of a Gradio page.

    `server.run(sockets=[listener])` serves it until Ctrl-C or SIGTERM, which it then raises anew.

    folder: see `folder_of_uploads`.
    """
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    from blip2ft.demo.door import UPLOAD, Door

    theme = gr.themes.Default(primary_hue="blue", font=FONT, font_mono=MONO)
    # Gradio's own grey is too light to be read by everyone
    theme.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300")
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="/",
        show_error=False,
        max_file_size=UPLOAD,
        allowed_paths=[],
        theme=theme,
        css=CSS,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
    )
    address, alone = address_of(listener)
    door = Door(app, folder, {*OWN_NAMES, urlsplit(address).hostname} if alone else None)
    # a page that is open keeps a connection, which the end waits for no longer than that
    server = uvicorn.Server(
        uvicorn.Config(door, log_level="error", ws="none", timeout_graceful_shutdown=1)
    )
    # what breaks off because of the end is no error
    logging.getLogger("uvicorn.error").addFilter(lambda _: not server.should_exit)
    return server


def end_with_terminal() -> None:
    """Have a terminal that is closed end it as SIGTERM does, unless it was told to stay (nohup)."""
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:
        signal.signal(hangup, lambda *_: signal.raise_signal(signal.SIGTERM))
