"""Ctrl-C and SIGTERM while training: the step ends, the state is saved."""

import logging
import signal
from types import FrameType

logger = logging.getLogger(__name__)


class Signals:
    """Remember Ctrl-C and SIGTERM until the step is done; a second one quits at once.

    A loader's worker that dies is told where its batch is waited for, not in the middle of a step,
    where torch's handler of SIGCHLD would raise.
    """

    def __init__(self) -> None:
        self.received, self.number = 0, signal.SIGINT

    def __enter__(self) -> "Signals":
        self.old = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        self.old[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received, self.number = 1, signal.Signals(number)
        logger.warning("stopping after this step; once more to quit without saving")
