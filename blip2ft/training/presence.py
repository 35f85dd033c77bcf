"""Each process of a run knows at once when another one ends before its time.

All keep a connection to the first, which the system closes when a process dies, and within about a
minute when its machine does. So nobody waits for it as long as for one that is only slow: the first
process may score with SPICE for an hour while the others wait.
"""

import atexit
import logging
import os
import secrets
import selectors
import socket
import sys
import threading
from collections.abc import Callable

GRACE = 30.0  # seconds to end by oneself, as launchers give; a background save may still be written
TOGETHER = 2.0  # seconds within which processes that fail by the same error all have
CONNECTING, SAYING = 20.0, 5.0  # seconds, until the first is reached, and until who calls is known
BYE, FAILED, KILLED = "bye", "failed", "killed"

logger = logging.getLogger(__name__)


class Presence:
    """This process's side: what it says of itself, hears of others, and does about it.

    A process says how it ends, in one line; the first passes on who did, as "failed 3 pid 71 on
    node2". One that ends without a word was killed.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.lost = threading.Event()
        self.over = False
        self.message, self.telling = "", threading.Lock()
        self.news = ""  # what the first passes on
        self.connections: dict[int, socket.socket] = {}  # by the process at the other end
        os.register_at_fork(after_in_child=self._close)  # loaders would hold them open

    def end(self, how: str) -> None:
        """Say that this process ends, BYE or FAILED."""
        if not self.over:
            self.over = True
            self._send(how if self.rank or how == BYE else f"{how} {_name(0)}")

    def hear(self, how: str, who: str) -> None:
        """Another process was lost: tell all, and end, at the latest when the grace is over.

        Processes that computed together can't go on with one less.
        """
        if self.over or self.lost.is_set():
            return
        self.message = _told(how, who, self.world) if self._speaks(int(who.split()[0])) else ""
        if self.rank == 0:
            self.news = f"{how} {who}"
            self._send(self.news)
        self.lost.set()  # from here on this process may end, and say so
        if how == KILLED:
            self.tell()
        else:
            _later(TOGETHER, self.tell)
        _later(GRACE, os._exit, 1)

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
        how, _, who = _receive(first).decode(errors="replace").strip().partition(" ")
        if how == BYE:
            self.over = True
        self.hear(how or KILLED, who or "0")

    def _serve(self, server: socket.socket, token: str) -> None:
        names: dict[object, str] = {}
        with server, selectors.DefaultSelector() as selector:
            selector.register(server, selectors.EVENT_READ)
            while not self.over:
                for key, _ in selector.select(timeout=1.0):
                    if key.fileobj is server:
                        other = _admit(server, token)
                        if other is not None:
                            connection, name = other
                            names[connection] = name
                            self.connections[int(name.split()[0])] = connection
                            selector.register(connection, selectors.EVENT_READ)
                            if self.news:  # who comes late is told too
                                connection.sendall(f"{self.news}\n".encode())
                    else:
                        selector.unregister(key.fileobj)
                        how = _receive(key.fileobj).decode(errors="replace").strip()  # type: ignore[arg-type]
                        if how != BYE:
                            self.hear(how or KILLED, names[key.fileobj])

    def _send(self, line: str) -> None:
        for connection in self.connections.values():
            try:
                connection.sendall(f"{line}\n".encode())
            except OSError:
                continue  # it is the one that was lost

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
    server = socket.create_server(("", 0)) if rank == 0 else None
    port = server.getsockname()[1] if server is not None else 0
    port, token = share([str(port), secrets.token_hex(8)])
    if server is not None:
        presence.listen_to_all(server, token)
    else:
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


def fail() -> None:
    """Say that this process ends by an error of its own; nothing where it is the only one."""
    for presence in _present:
        presence.end(FAILED)


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
    if how == FAILED:
        return f"\nerror: {named} has stopped with an error of its own, so the others stop"
    return (
        f"\nerror: {named} was killed, so the others stop: memory ran out, or somebody or its "
        "machine ended it. What was saved is whole: the same command with --resume goes on"
    )


def _name(rank: int) -> str:
    return f"{rank} pid {os.getpid()} on {socket.gethostname()}"


def _admit(server: socket.socket, token: str) -> tuple[socket.socket, str] | None:
    """A connection of our run and who is there; None for anything else that calls."""
    connection, _ = server.accept()
    connection.settimeout(SAYING)
    said, _, name = _receive(connection).decode(errors="replace").strip().partition(" ")
    if said != token:
        connection.close()
        return None
    connection.settimeout(None)
    _keep_alive(connection)
    return connection, name


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1024)
    except OSError:
        return b""


def _keep_alive(connection: socket.socket) -> None:
    """Have the system ask, after 30 seconds of silence, whether the other machine is there."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)


def _later(seconds: float, do: Callable[..., object], *arguments: object) -> None:
    timer = threading.Timer(seconds, do, arguments)
    timer.daemon = True
    timer.start()


def _in_thread(target: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, name="presence", daemon=True).start()
