"""All images looked at, by several processes, each decoding one at a time."""

import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from blip2ft.audit.contents import Picture
from blip2ft.audit.looks import Look, look_at
from blip2ft.data.loading import load_batches

AT_ONCE = 32  # images that a process looks at before it tells
AHEAD = 2  # times so many are given to a process before (torch's prefetch_factor)


@dataclass(frozen=True)
class _Pictures(Dataset):
    pictures: Sequence[Picture]

    def __getitem__(self, number: int) -> Look:
        return look_at(self.pictures[number].image)


def look_at_all(
    pictures: Sequence[Picture], numbers: Sequence[int], workers: int
) -> Iterator[tuple[list[int], list[Look]]]:
    """What is seen of the images of these numbers, a few at a time.

    workers: processes; 0 looks in this one. An image at which a process dies is a fault of its own,
    and the others are looked at all the same.
    """
    todo = [list(numbers[i : i + AT_ONCE]) for i in range(0, len(numbers), AT_ONCE)]
    while todo:
        done = 0
        try:
            loader = iter(load_batches(_Pictures(pictures), todo, list, workers=workers))
            _hear_of_deaths_here()
            for looks in loader:
                yield todo[done], looks
                done += 1
        except RuntimeError as error:
            if not _has_died(error):
                raise
            # it was at one of those that the processes had before them
            some = todo[done : done + AHEAD * workers]
            yield from ((batch, _look_warily(pictures, batch)) for batch in some)
            done += len(some)
        todo = todo[done:]


def _look_warily(pictures: Sequence[Picture], batch: list[int]) -> list[Look]:
    """What is seen of a few images, each in a process of its own where they kill one together."""
    try:
        loader = iter(load_batches(_Pictures(pictures), [batch], list, workers=1))
        _hear_of_deaths_here()
        return next(loader)
    except RuntimeError as error:
        if not _has_died(error):
            raise
    if len(batch) == 1:
        why = "the process that opened it died; is it damaged, or memory short?"
        return [Look("unreadable", why)]
    return [look for number in batch for look in _look_warily(pictures, [number])]


def _hear_of_deaths_here() -> None:
    """Let a loader tell of a process's death where it is waited for.

    torch's handler of SIGCHLD raises wherever the program is: while something is written, say.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _has_died(error: RuntimeError) -> bool:
    return "DataLoader worker (pid" in str(error)  # not the error that one was caught with
