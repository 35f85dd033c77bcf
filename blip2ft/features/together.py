"""What the processes of a run do together: find who shares a folder, and stop as one."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar
from uuid import uuid4

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from filelock import FileLock, Timeout

from blip2ft.errors import plain_message
from blip2ft.features.store import HERE, LOCK, Store

T = TypeVar("T")


def hold_lock(stack: ExitStack, store: Store, say: Callable[[str], object]) -> None:
    """Keep other runs from computing the same features until `stack` ends; wait for one that is
    at it."""
    lock = FileLock(store.folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another run is computing features into {store.folder}; waiting for its end")
        lock.acquire()
    stack.callback(lock.release)


def sharers_of(store: Store, accelerator: Accelerator) -> tuple[int, int]:
    """This process's place among those that see the same folder, and their number."""
    if accelerator.num_processes == 1:
        return 0, 1
    (token,) = broadcast_object_list([uuid4().hex])
    here = store.folder / f"{HERE}{token}-{accelerator.process_index}"
    here.touch()
    of_all(accelerator, None)
    seen = [int(path.name.rpartition("-")[2]) for path in store.folder.glob(f"{HERE}{token}-*")]
    of_all(accelerator, None)
    here.unlink()
    return sorted(seen).index(accelerator.process_index), len(seen)


def together(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """What `action` gives; where it fails on any process, ValueError on all."""
    result: Any = None
    failed: Exception | None = None
    try:
        result = action()
    except (ValueError, OSError, RuntimeError) as error:
        failed = error
    message = None if failed is None else plain_message(failed)
    messages = [found for found in of_all(accelerator, message) if found]
    if messages:
        raise ValueError(messages[0]) from failed
    return result


def of_all(accelerator: Accelerator, value: T) -> list[T]:
    """Every process's value, once all have come here."""
    return gather_object([value]) if accelerator.num_processes > 1 else [value]
