"""What the processes of a run do together: find who shares a folder, and stop as one."""

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from blip2ft.errors import plain_message
from blip2ft.features.store import HERE, Store
from blip2ft.whole import InUse, alone

T = TypeVar("T")
PAUSE = 1.0  # seconds between two looks at a lock


def lock_together(
    stack: ExitStack,
    folders: Iterable[Path],
    accelerator: Accelerator,
    say: Callable[[str], object],
) -> None:
    """Keep other runs from computing into `folders` until `stack` ends; wait for one that is at it.

    folders: those that this process locks; none where another does. The processes ask again and
      again, together: who waited in a collective would be stopped by its time-out.
    """
    left, told = list(folders), False

    def take() -> Path | None:
        while left and _taken(stack, left[0]):
            left.pop(0)
        return left[0] if left else None

    while waiting := [held for held in of_all(accelerator, together(accelerator, take)) if held]:
        if not told:
            say(f"another run is computing features into {waiting[0]}; waiting for its end")
        told = True
        time.sleep(PAUSE)


def _taken(stack: ExitStack, folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(alone(folder))
    except (InUse, FileNotFoundError):  # or the folder was removed meanwhile
        return False
    return True


def sharers_of(store: Store, accelerator: Accelerator) -> tuple[int, int]:
    """This process's place among those that see the same folder, and their number."""
    if accelerator.num_processes == 1:
        return 0, 1
    (token,) = broadcast_object_list([uuid4().hex])
    here = store.folder / f"{HERE}{token}-{accelerator.process_index}"
    together(accelerator, here.touch)
    seen = [int(path.name.rpartition("-")[2]) for path in store.folder.glob(f"{HERE}{token}-*")]
    of_all(accelerator, None)
    here.unlink(missing_ok=True)
    return sorted(seen).index(accelerator.process_index), len(seen)


def together(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """What `action` gives; where it fails on any process, ValueError on all."""
    result: Any = None
    failed: Exception | None = None
    try:
        result = action()
    except Exception as error:
        failed = error
    message = None if failed is None else plain_message(failed)
    messages = [found for found in of_all(accelerator, message) if found]
    if messages:
        raise ValueError(messages[0]) from failed
    return result


def of_all(accelerator: Accelerator, value: T) -> list[T]:
    """Every process's value, once all have come here."""
    return gather_object([value]) if accelerator.num_processes > 1 else [value]
