"""Ctrl-C, SIGTERM and SIGUSR1 while a run computes: what was begun ends, what is done is saved."""

import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from blip2ft.errors import Stopped

logger = logging.getLogger(__name__)
# A launcher passes on what its processes got already, as members of its group: that is one signal.
ONE_SIGNAL_SECONDS = 0.5
# Schedulers send SIGTERM, or SIGUSR1 a while before, as Slurm does where it is told to.
FROM_SCHEDULERS = (signal.SIGTERM, signal.SIGUSR1)
STOPPING = (signal.SIGINT, *FROM_SCHEDULERS)


def stop_at_once(
    say: Callable[[int], str], signals: Sequence[signal.Signals] = FROM_SCHEDULERS
) -> None:
    """From now on these signals raise Stopped wherever no `Signals` is entered.

    say: what to tell of it, given the signal's number. Where a run loads and evaluates, nothing has
    to be ended: it is done again.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        for other in FROM_SCHEDULERS:
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(say(number), number)

    for number in signals:
        signal.signal(number, handle)


class StopNow(BaseException):
    """A signal came where what is computed needn't end: it is done again when the run goes on."""


class Signals:
    """Remember the first of these signals until the step is done; Ctrl-C, later, quits at once.

    notice: what to say of the first. received: its number, 0 before it.

    Others that follow are a scheduler's, which goes from SIGUSR1 to SIGTERM, and change nothing.

    A loader's worker that dies is told where its batch is waited for, not in the middle of a step,
    where torch's handler of SIGCHLD would raise.
    """

    def __init__(
        self, notice: str = "stopping after this step; Ctrl-C once more quits without saving"
    ) -> None:
        self.notice = notice
        self.received = 0
        self.first = 0.0
        self.now = False

    def __enter__(self) -> "Signals":
        self.old = {n: signal.signal(n, self._handle) for n in STOPPING}
        self.mute_workers()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, the first signal raises StopNow; one that came before does at once."""
        self.now = True
        try:
            if self.received:
                raise StopNow
            yield
        finally:
            self.now = False

    def mute_workers(self) -> None:
        """Take torch's handler of SIGCHLD away; torch sets it where the first workers start."""
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if handler is not signal.SIG_DFL:
            self.old[signal.SIGCHLD] = handler

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received:
            if number == signal.SIGINT and now - self.first > ONE_SIGNAL_SECONDS:
                raise KeyboardInterrupt
            return
        self.received, self.first = number, now
        logger.warning("stopping" if self.now else self.notice)
        if self.now:
            raise StopNow
