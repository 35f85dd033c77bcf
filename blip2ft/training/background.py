"""What is written while training goes on: one thing at a time, and its failure told."""

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from blip2ft.errors import plain_message
from blip2ft.whole import WRITING

logger = logging.getLogger(__name__)


class Writer:
    """Writes in a thread, one thing after the other.

    As a context it ends when all is written, except after a KeyboardInterrupt, which doesn't wait.
    After a failure nothing more is written.
    """

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Call `write` in the thread; what was begun before is waited for first."""
        self.wait()
        if self.error is None:
            self.thread = threading.Thread(
                target=self._run, args=(write,), name=WRITING, daemon=True
            )
            self.thread.start()

    def wait(self) -> None:
        """Wait until what was begun is written, or has failed."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    @property
    def failed(self) -> bool:
        """Whether something couldn't be written, as far as is known by now."""
        return self.error is not None

    def check(self) -> None:
        """Wait, and raise what this process failed with."""
        self.wait()
        if self.error is not None:
            raise self.error

    def settle(self, accelerator: Accelerator) -> None:
        """Wait, and raise on every process what one of them failed with; every one must call."""
        self.wait()
        told = self.error and plain_message(self.error)
        (told,) = broadcast_object_list([told])  # the first process writes
        self.check()
        if told:
            raise ValueError(told)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            return
        self.wait()
        if self.error is not None and self.error is not error:
            # what ends the run is another error, and both are to be told
            logger.warning("%s", self.error)

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:
            self.error = error
