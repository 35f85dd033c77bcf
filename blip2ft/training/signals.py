"""Ctrl-C and SIGTERM while a run computes: what was begun ends, and what is done is saved."""

import logging
import signal
import time
from types import FrameType

logger = logging.getLogger(__name__)
# A launcher passes on what its processes got already, as members of its group: that is one signal.
ONE_SIGNAL_SECONDS = 2.0


class Signals:
    """Remember Ctrl-C and SIGTERM until the step is done; a second one, later, quits at once.

    notice: what to say of the first.

    A loader's worker that dies is told where its batch is waited for, not in the middle of a step,
    where torch's handler of SIGCHLD would raise.
    """

    def __init__(
        self, notice: str = "stopping after this step; once more to quit without saving"
    ) -> None:
        self.notice = notice
        self.received, self.number = 0, signal.SIGINT
        self.first = 0.0

    def __enter__(self) -> "Signals":
        self.old = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        self.mute_workers()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def mute_workers(self) -> None:
        """Take torch's handler of SIGCHLD away; torch sets it where the first workers start."""
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if handler is not signal.SIG_DFL:
            self.old[signal.SIGCHLD] = handler

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received:
            if now - self.first > ONE_SIGNAL_SECONDS:
                raise KeyboardInterrupt
            return
        self.received, self.number, self.first = 1, signal.Signals(number), now
        logger.warning(self.notice)
