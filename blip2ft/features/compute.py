"""Compute features batch by batch, all processes side by side: what stops one stops all."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from blip2ft.bars import progress_bar
from blip2ft.counted import counted
from blip2ft.data.loading import load_batches, load_pixels
from blip2ft.errors import Stopped
from blip2ft.features.key import image_digest
from blip2ft.features.serve import compute_features
from blip2ft.features.store import Writer
from blip2ft.features.together import of_all, together
from blip2ft.features.wanted import Wanted
from blip2ft.training.processes import precision_of
from blip2ft.training.signals import Signals

BATCH = 32  # images computed at once; nothing trains yet, so that they fit

Batch = tuple[int, list[bytes]]  # the place in `wanted`, and the images by their identity


def compute_shares(
    model: Any,
    level: str,
    wanted: Sequence[Wanted],
    mine: Sequence[list[bytes]],
    accelerator: Accelerator,
    workers: int,
    say: Callable[[str], object],
    signals: Signals,
) -> None:
    """Compute and keep features, of each of `wanted` the images `mine`: this process's share.

    signals: entered. Raises on every process ValueError for what fails on any, and Stopped where
    any got a signal. What was computed until then stays.
    """
    batches = [
        (place, share[i : i + BATCH])
        for place, share in enumerate(mine)
        for i in range(0, len(share), BATCH)
    ]
    rounds = max(of_all(accelerator, len(batches)))
    if not rounds:
        return
    steps = _compute(model, level, wanted, batches, accelerator, workers, say)

    def step() -> int:
        try:
            next(steps, None)
        except Exception:
            if not signals.received:  # to the whole group: it ended the loader's workers too
                raise
        return signals.received

    with closing(steps):
        together(accelerator, lambda: next(steps))
        signals.mute_workers()
        for _ in range(rounds):
            if any(of_all(accelerator, together(accelerator, step))):
                break
    for each in wanted:
        together(accelerator, each.store.refresh)
    stop_together(wanted, accelerator, signals)


def stop_together(wanted: Sequence[Wanted], accelerator: Accelerator, signals: Signals) -> None:
    """Raise Stopped on every process where any got a signal."""
    numbers = [n for n in of_all(accelerator, signals.received) if n]
    if not numbers:
        return
    count = sum(len(each.records) for each in wanted)
    kept = count - sum(len(each.missing()) for each in wanted)
    raise Stopped(
        f"stopped while images were encoded: {kept:,} of {count:,} are kept in "
        f"{wanted[0].store.folder.parent}; the same command goes on from there",
        numbers[0],
    )


def _compute(
    model: Any,
    level: str,
    wanted: Sequence[Wanted],
    batches: Sequence[Batch],
    accelerator: Accelerator,
    workers: int,
    say: Callable[[str], object],
) -> Generator[None, None, None]:
    """Yields when the loader has begun, and after each batch that is kept."""
    keys = [[(place, digest) for digest in digests] for place, digests in batches]
    loader = iter(load_batches(_Images(wanted), keys, torch.stack, workers=workers))
    start = time.monotonic()
    model.eval()
    with ExitStack() as stack:
        writers = [Writer(each.store) for each in wanted]
        for writer in writers:
            stack.callback(writer.close)
        bar = stack.enter_context(
            progress_bar(
                total=sum(map(len, keys)),
                desc="features",
                hidden=not accelerator.is_main_process,
                leave=False,
            )
        )
        yield
        for number, ((place, digests), pixels) in enumerate(zip(batches, loader, strict=True)):
            with torch.inference_mode(), accelerator.autocast():
                features = compute_features(model, level, pixels.to(accelerator.device))
                _check_finite(features, wanted[place], digests, accelerator)
                writers[place].add(digests, features)
            bar.update(len(digests))
            if number == 0 and len(batches) > 1:
                minutes = (time.monotonic() - start) * (len(batches) - 1) / 60
                say(f"by the first {len(digests)}, the rest takes about {minutes:,.1f} minutes")
            yield


def _check_finite(
    features: Tensor, wanted: Wanted, digests: Sequence[bytes], accelerator: Accelerator
) -> None:
    finite = torch.isfinite(features).flatten(1).all(1).tolist()
    if not all(finite):
        origins = [
            wanted.records[digest].origin
            for digest, good in zip(digests, finite, strict=True)
            if not good
        ]
        raise ValueError(
            f"the frozen parts compute NaN or infinity in {precision_of(accelerator)} of "
            f"{counted(len(origins), 'image')}, such as {origins[0]}; set model.precision to fp32, "
            "or look at the checkpoint's weights"
        )


@dataclass(frozen=True)
class _Images(Dataset):
    wanted: Sequence[Wanted]

    def __getitem__(self, key: tuple[int, bytes]) -> Tensor:
        place, digest = key
        record, transform = self.wanted[place].records[digest], self.wanted[place].transform
        # the transform draws nothing: Key was made of its words
        pixels = load_pixels(record, transform, np.random.default_rng(0))
        if image_digest(record.image) != digest:
            raise ValueError(
                f"{record.origin}: the image changed while its features were computed; start again "
                "when the data is at rest"
            )
        return pixels
