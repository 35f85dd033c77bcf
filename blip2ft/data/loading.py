"""A loader that leaves training alone: its random state and its signals."""

import signal
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


def load_batches(
    dataset: Dataset,
    keys: Iterable[list[Any]],
    collate: Callable[[list[Any]], Any],
    *,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """The batches `keys` of `dataset`, in order, prepared ahead by `workers` processes."""
    return DataLoader(
        dataset,
        batch_sampler=keys,
        collate_fn=collate,
        num_workers=workers,
        # a loader seeds its workers from here, not from the state that dropout draws from
        generator=torch.Generator(),
        worker_init_fn=_leave_interrupts_to_training,
        pin_memory=pin_memory,
    )


def _leave_interrupts_to_training(_worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the one that trains saves its state and stops.

    SIGTERM still ends a worker: it is how the loader itself ends those that hang.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
