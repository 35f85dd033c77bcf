"""Shards that aren't here yet, fetched by a process of its own before they are read."""

import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection

from blip2ft.data.order import Key

logger = logging.getLogger(__name__)


def fetch_ahead(
    batches: Iterable[list[Key]],
    shard_of: Callable[[int], int],
    fetch: Callable[[int], object],
    *,
    ahead: int,
    remember: int,
) -> Iterator[list[Key]]:
    """The same batches; meanwhile `fetch(shard)` is called for what comes `ahead` samples later.

    The process that calls it ends with the batches, or with ours. What it can't fetch is left to
    the one that reads it, who says why.

    shard_of: the shard of a sample. remember: a shard isn't fetched again while it is among so
      many that were last.
    """
    theirs, ours = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=_fetch, args=(theirs, ours, fetch), daemon=True)
    process.start()
    theirs.close()
    waiting: deque[list[Key]] = deque()
    samples = 0
    seen: dict[int, None] = {}  # in the order in which they were last
    try:
        for batch in batches:
            waiting.append(batch)
            samples += len(batch)
            for shard in {shard_of(key.sample): None for key in batch}:
                if shard not in seen:
                    with suppress(OSError):  # it is gone: each reader fetches what it needs
                        ours.send(shard)
                seen.pop(shard, None)
                seen[shard] = None
            while len(seen) > remember:
                del seen[next(iter(seen))]
            while waiting and samples - len(waiting[0]) >= ahead:
                samples -= len(waiting[0])
                yield waiting.popleft()
        yield from waiting
    finally:
        ours.close()
        process.terminate()
        process.join()


def _fetch(theirs: Connection, ours: Connection, fetch: Callable[[int], object]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that trains
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ours.close()
    while True:
        try:
            fetch(theirs.recv())
        except EOFError:  # the one that trains is gone
            return
        except Exception as error:  # each file system has errors of its own
            logger.info("not fetched ahead: %s", error)
