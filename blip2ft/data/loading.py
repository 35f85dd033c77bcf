"""Pixels of records, and a loader that leaves training alone: its random state and its signals."""

import signal
import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from blip2ft.data.images import EvalTransform, TrainTransform, open_image

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Features(Protocol):
    """What takes the place of a transform where features of images are kept."""

    def features(self, image: Any, origin: str) -> Tensor:
        """(S, D) of an image, which isn't opened; ValueError where they aren't kept."""
        ...


def load_batches(
    dataset: Dataset,
    keys: Iterable[list[Any]],
    collate: Callable[[list[Any]], Any],
    *,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """The batches `keys` of `dataset`, in order, prepared ahead by `workers` processes."""
    return _Loader(
        dataset,
        batch_sampler=keys,
        collate_fn=collate,
        num_workers=workers,
        # a loader seeds its workers from here, not from the state that dropout draws from
        generator=torch.Generator(),
        worker_init_fn=_leave_signals_to_training,
        pin_memory=pin_memory,
    )


class _Loader(DataLoader):
    """A signal that comes while workers are forked is handled when they are.

    In the hooks of a fork Python drops what a handler raises, and the signal would be lost.
    """

    def __iter__(self) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return super().__iter__()
        came: list[int] = []
        handlers = {number: signal.getsignal(number) for number in STOPPING}
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, lambda got, frame: came.append(got))
        try:
            return super().__iter__()
        finally:
            for number, handler in handlers.items():
                if callable(handler):
                    signal.signal(number, handler)
            for caught in came:
                signal.raise_signal(caught)


def load_pixels(
    record: Any,
    transform: TrainTransform | EvalTransform | Features,
    rng: np.random.Generator | None = None,
) -> Tensor:
    """The image of a `Record` or `Question` as (3, H, W) float32, or its kept features (S, D).

    A `TrainTransform` draws from `rng`.
    """
    if not isinstance(transform, TrainTransform | EvalTransform):
        return transform.features(record.image, record.origin)
    image = open_image(record.image, origin=record.origin, size_hint=transform.size_hint)
    if not isinstance(transform, TrainTransform):
        return transform(image)
    if rng is None:
        raise ValueError(
            "a TrainTransform got no rng, so what it draws could never be drawn again; pass one "
            "with a seed, such as np.random.default_rng([seed, epoch, sample])"
        )
    return transform(image, rng)


def _leave_signals_to_training(_worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the one that trains saves its state and stops.

    SIGUSR1 comes to all processes of a job in the same way. SIGTERM still ends a worker: it is how
    the loader itself ends those that hang.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
