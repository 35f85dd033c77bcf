"""A run's folder belongs to one run at a time: two that write there would spoil each other's."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from blip2ft.whole import InUse, alone

if TYPE_CHECKING:
    from accelerate import Accelerator

_held = ExitStack()

logger = logging.getLogger(__name__)


@contextmanager
def holding() -> Iterator[None]:
    """Let go, at its end, of what `hold` took; around a recipe."""
    with _held:
        yield


def hold(run: Path, accelerator: "Accelerator") -> None:
    """Keep other runs from the folder `run`, which is made, until `holding` ends.

    Every process must call; the first one holds it, and a kill lets go. A disk that knows no locks
    is a warning.

    Raises InUse, a ValueError, on every process where another run holds it.
    """
    problem = ""
    if accelerator.is_main_process:
        run.mkdir(parents=True, exist_ok=True)
        try:
            _held.enter_context(alone(run, doing="training in", by_file=False))
        except InUse as error:
            problem = f"{error}, or begin another run with --output FOLDER"
        except OSError as error:
            logger.warning("%s can't be locked (%s): see that no other run is in it", run, error)
    from accelerate.utils import broadcast_object_list  # here: --help must answer at once

    (problem,) = broadcast_object_list([problem])
    if problem:
        raise InUse(problem)
