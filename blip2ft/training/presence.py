"""Each process of a run knows at once when another one ends before its time.

All keep a connection to the first, which the system closes when a process dies, and within about a
minute when its machine does. So nobody waits for it as long as for one that is only slow: the first
process may score with SPICE for an hour while the others wait.
"""

import atexit
import hashlib
import logging
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from blip2ft.whole import WRITING

GRACE = 30.0  # seconds to end by oneself, as launchers give; a background save may still be written
TOGETHER = 2.0  # seconds within which processes that fail by the same error all have
CONNECTING, SAYING = 20.0, 5.0  # seconds, until the first is reached, and until who calls is known
BYE, FAILED, STOPPED, KILLED = "bye", "failed", "stopped", "killed"

logger = logging.getLogger(__name__)


class Presence:
    """This process's side: what it says of itself, hears of others, and does about it.

    A process says how it ends, in one line; the first passes on who did, as "failed 3 pid 71 on
    node2", and by which error it fails itself, as "failed:5f0a 0 pid 70 on node1". One that ends
    without a word was killed.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.lost = threading.Event()
        self.over = False
        self.message, self.telling = "", threading.Lock()
        self.news = ""  # what the first passes on
        self.error_of_first = ""  # its digest
        self.connections: dict[int, socket.socket] = {}  # by the process at the other end
        self.passing = threading.Lock()  # who connects while news go out gets them, and once
        os.register_at_fork(after_in_child=self._close)  # loaders would hold them open

    def end(self, how: str, error: str = "") -> None:
        """Say that this process ends: BYE, FAILED or STOPPED; error: the digest of what it says."""
        if not self.over:
            self.over = True
            said = f"{how}:{error}" if error else how
            self._send(how if self.rank or how == BYE else f"{said} {_name(0)}")

    def hear(self, how: str, who: str) -> None:
        """Another process was lost: tell all, and end, at the latest when the grace is over.

        Processes that computed together can't go on with one less.
        """
        if self.over or self.lost.is_set():
            return
        how, _, self.error_of_first = how.partition(":")
        self.message = _told(how, who, self.world) if self._speaks(int(who.split()[0])) else ""
        if self.rank == 0:
            self._send(f"{how} {who}")
        self.lost.set()  # from here on this process may end, and say so
        if how == KILLED:
            self.tell()
        else:
            _later(TOGETHER, self.tell)
        _later(GRACE, _end_at_last)

    def tell(self) -> None:
        """Say who was lost, once, on one process of a machine."""
        with self.telling:  # who asks while it is being told waits until it is
            if self.message and not self.over:
                print(self.message, file=sys.stderr, flush=True)
            self.message = ""

    def listen_to_first(self, address: tuple[str, int], token: str) -> None:
        """Connect to the first process, and listen from now on, in a thread."""
        first = socket.create_connection(address, timeout=CONNECTING)
        first.settimeout(None)
        _keep_alive(first)
        first.sendall(f"{token} {_name(self.rank)}\n".encode())
        self.connections[0] = first
        _in_thread(self._listen, first)

    def listen_to_all(self, server: socket.socket, token: str) -> None:
        """Let all others connect, and listen from now on, in a thread."""
        _in_thread(self._serve, server, token)

    def _listen(self, first: socket.socket) -> None:
        how, _, who = _receive(first).partition(" ")
        if how == BYE:
            self.over = True
        self.hear(how or KILLED, who or "0")

    def _serve(self, server: socket.socket, token: str) -> None:
        names: dict[object, str] = {}
        callers: dict[socket.socket, float] = {}  # who is yet to say its name, and until when
        with server, selectors.DefaultSelector() as selector:
            selector.register(server, selectors.EVENT_READ)
            while not self.over:
                for key, _ in selector.select(timeout=1.0):
                    connection: socket.socket = key.fileobj  # type: ignore[assignment]
                    if connection is server:
                        if (caller := _accept(server)) is not None:
                            callers[caller] = time.monotonic() + SAYING
                            selector.register(caller, selectors.EVENT_READ)
                    elif callers.pop(connection, None) is not None:
                        if name := _name_of(connection, token):
                            names[connection] = name
                            self._welcome(connection, name)
                        else:
                            selector.unregister(connection)
                            connection.close()
                    else:
                        selector.unregister(connection)
                        how = _receive(connection)
                        if how != BYE:
                            self.hear(how or KILLED, names[connection])
                for caller in [c for c, until in callers.items() if time.monotonic() > until]:
                    del callers[caller]
                    selector.unregister(caller)
                    caller.close()
        for caller in callers:
            caller.close()

    def _welcome(self, connection: socket.socket, name: str) -> None:
        """Count another process of the run in; who comes late is told what there was to tell."""
        with self.passing:
            self.connections[int(name.split()[0])] = connection
            if self.news:
                _say(connection, self.news)

    def _send(self, line: str) -> None:
        with self.passing:
            self.news = "" if line == BYE else line
            for connection in self.connections.values():
                _say(connection, line)

    def _speaks(self, lost: int) -> bool:
        """One process of each machine does: its first, or its second if that is the lost one."""
        first = self.rank - int(os.environ.get("LOCAL_RANK", "0"))
        return self.rank == first + (lost == first)

    def _close(self) -> None:
        for connection in self.connections.values():
            connection.close()


_present: list[Presence] = []  # this process's, once there are several


def attend(rank: int, world: int, share: Callable[[list[str]], list[str]]) -> None:
    """Be present from now on, until this process ends; every process must call.

    share: gives every process the strings that the first one has.
    """
    presence = Presence(rank, world)
    server = _listener() if rank == 0 else None
    own = "" if server is None else str(server.getsockname()[1])
    port, token = share([own, secrets.token_hex(8)])
    if server is not None:
        presence.listen_to_all(server, token)
    elif rank and port:
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        try:
            presence.listen_to_first((host, int(port)), token)
        except OSError as error:
            logger.warning(
                "process %d can't reach the first one at %s:%s (%s), and won't know if that ends; "
                "let processes reach each other at any port",
                *(rank, host, port, error),
            )
    _present.append(presence)


def fail(message: str = "") -> None:
    """Say that this process ends by an error of its own; nothing where it is the only one."""
    for presence in _present:
        presence.end(FAILED, _digest(message))


def told_by_first(message: str) -> bool:
    """Whether the first process fails by the same error and tells it, before this one says so.

    Before processes know of each other, as settings are read, others than the first of a machine
    wait a little: a launcher ends them when that one fails.
    """
    if not _present:
        if int(os.environ.get("LOCAL_RANK", "0")):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(TOGETHER)
        return False
    presence = _present[-1]
    if presence.rank == 0:
        return False
    # a launcher may end this one as soon as the first has: what it has to say comes before
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return presence.lost.wait(TOGETHER) and presence.error_of_first == _digest(message)


def stop() -> None:
    """Say that this process ends by a signal, so that one which got none doesn't wait for it."""
    for presence in _present:
        presence.end(STOPPED)


def lost_another(wait: float = 3.0) -> bool:
    """Whether another process was lost, which then is told; `wait`: seconds for it to be known."""
    lost = [presence for presence in _present if presence.lost.wait(wait)]
    for presence in lost:
        presence.tell()
    return bool(lost)


@atexit.register
def _leave() -> None:
    for presence in _present:
        presence.end(BYE)


def _told(how: str, who: str, world: int) -> str:
    number, _, where = who.partition(" ")
    named = f"process {number} of {world}" + (f" ({where})" if where else "")
    if how == STOPPED:
        return (
            f"\nerror: {named} was stopped by a signal, so the others stop. What was saved is "
            "whole: the same command with --resume goes on"
        )
    if how == FAILED:
        return f"\nerror: {named} has stopped with an error of its own, so the others stop"
    return (
        f"\nerror: {named} was killed, so the others stop: memory ran out, or somebody or its "
        "machine ended it. What was saved is whole: the same command with --resume goes on"
    )


def _digest(message: str) -> str:
    return hashlib.blake2b(message.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def _name(rank: int) -> str:
    return f"{rank} pid {os.getpid()} on {socket.gethostname()}"


def _listener() -> socket.socket | None:
    try:
        return socket.create_server(("", 0))
    except OSError as error:  # an error would leave the others waiting for where to connect
        logger.warning(
            "no port can be listened at (%s): if a process ends before its time, the others won't "
            "know, and wait",
            error,
        )
        return None


def _accept(server: socket.socket) -> socket.socket | None:
    try:
        connection, _ = server.accept()
    except OSError:  # it is gone already
        return None
    connection.settimeout(SAYING)
    return connection


def _name_of(connection: socket.socket, token: str) -> str:
    """Who of our run has called; "" for anything else that calls."""
    said, _, name = _receive(connection).partition(" ")
    if said != token:
        return ""
    connection.settimeout(None)
    _keep_alive(connection)
    return name


def _receive(connection: socket.socket) -> str:
    """A line of the other side; "" where it is gone."""
    try:
        return connection.recv(1024).decode(errors="replace").strip()
    except OSError:
        return ""


def _say(connection: socket.socket, line: str) -> None:
    with suppress(OSError):  # of the one that was lost
        connection.sendall(f"{line}\n".encode())


def _keep_alive(connection: socket.socket) -> None:
    """Have the system ask, after 30 seconds of silence, whether the other machine is there."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)


def _end_at_last() -> None:
    """End, after a checkpoint that is being written, and what this process does then."""
    writing = [thread for thread in threading.enumerate() if thread.name == WRITING]
    for thread in writing:
        thread.join()
    if writing:
        time.sleep(GRACE)
    os._exit(1)


def _later(seconds: float, do: Callable[..., object], *arguments: object) -> None:
    timer = threading.Timer(seconds, do, arguments)
    timer.daemon = True
    timer.start()


def _in_thread(target: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, name="presence", daemon=True).start()
