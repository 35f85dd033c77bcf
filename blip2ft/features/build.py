"""Compute the features of a run's images that aren't kept yet, by all processes."""

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from blip2ft.data.images import EvalTransform, TrainTransform
from blip2ft.data.loading import load_batches, load_pixels
from blip2ft.features.key import Key, image_digest, transform_words
from blip2ft.features.serve import (
    compute_features,
    features_digest,
    features_shape,
    serve_features,
)
from blip2ft.features.store import DIGEST, Store, Writer
from blip2ft.features.together import lock_together, of_all, sharers_of, together

BATCH = 32  # images computed at once; nothing trains yet, so that they fit
GB = 10**9

Say = Callable[[str], object]


@dataclass(frozen=True)
class Wanted:
    """Images whose features a run needs: each one once, by its identity, and how it is opened."""

    store: Store
    transform: TrainTransform | EvalTransform
    records: dict[bytes, Any]

    def missing(self) -> list[bytes]:
        """Those that aren't kept yet."""
        return [digest for digest in self.records if digest not in self.store]


@dataclass(frozen=True)
class Kept:
    """In the place of a transform: the features of an image, which isn't opened."""

    store: Store

    def features(self, image: Any, origin: str) -> Tensor:
        """(S, D) of an image whose features are kept.

        Raises ValueError where there are none: of a file that has changed, and of a cache that was
        removed.
        """
        digest = image_digest(image)
        if digest not in self.store:
            raise ValueError(
                f"{origin}: the image has changed since its features were computed; start again, "
                "and those of changed images are computed"
            )
        try:
            return self.store.row(digest)
        except KeyError as error:
            raise ValueError(
                f"{origin}: its features were removed from {self.store.folder} while the run went "
                "on; start again with --train.resume true, and they are computed anew"
            ) from error


def use_features(
    model: Any,
    level: str,
    *,
    folder: str,
    dtype: str,
    name: str,
    train: Any,
    evaluated: Sequence[Any],
    transforms: tuple[TrainTransform, EvalTransform],
    accelerator: Accelerator,
    workers: int,
    say: Say = print,
) -> tuple[Any, Any]:
    """Let a run take kept features: compute what is missing, and let `model` go on from them.

    model: frozen by its parts and on its device, not yet wrapped; level: see `cache_level`; folder,
    dtype: `CacheConfig`'s; name: the checkpoint's, for people; train, evaluated: records or
    questions.

    Returns what to give in the place of the two transforms. Raises ValueError where the disk is too
    small, an image can't be read or changes meanwhile.
    """
    wanted = together(
        accelerator,
        lambda: want_features(
            model,
            level,
            folder=folder,
            dtype=dtype,
            name=name,
            records=(train, evaluated),
            transforms=transforms,
            precision=accelerator.mixed_precision,
        ),
    )
    build(model, level, wanted, accelerator, workers, say)
    serve_features(model, level)
    for_training, for_evaluation = (Kept(each.store) for each in wanted)
    return for_training, for_evaluation


def want_features(
    model: nn.Module,
    level: str,
    *,
    folder: str,
    dtype: str,
    name: str,
    records: Iterable[Sequence[Any]],
    transforms: Iterable[TrainTransform | EvalTransform],
    precision: str,
) -> list[Wanted]:
    """What a run needs of each transform; training decodes large JPEGs otherwise than evaluation.

    precision: Accelerate's. Nothing is written.
    """
    weights, shape = features_digest(model, level), features_shape(model.config, level)
    precision = "fp32" if precision == "no" else precision
    wanted = []
    for each, transform in zip(records, transforms, strict=True):
        words = transform_words(transform)
        key = Key(level, weights, words, precision, dtype, shape, name)
        by_image: dict[bytes, Any] = {}
        for record in each:
            by_image.setdefault(image_digest(record.image), record)
        wanted.append(Wanted(Store(folder, key), transform, by_image))
    return wanted


def build(
    model: Any,
    level: str,
    wanted: Sequence[Wanted],
    accelerator: Accelerator,
    workers: int = 0,
    say: Say = print,
) -> None:
    """Compute the features that are missing, and keep them; every process returns with all there.

    The processes that see the same folder share the work; those of another node, where the folder
    is another, do it again there. Another run that is at the same features is waited for.

    Raises ValueError on every process for what fails on any. What was computed until then stays.
    """
    stores = [each.store for each in wanted]

    def find() -> int:
        for store in stores:
            store.open()
        return sum(len(each.missing()) for each in wanted)

    found = together(accelerator, find)
    if not any(of_all(accelerator, found)):
        say(f"features of {sum(map(len, stores)):,} images: all there ({_told(stores)})")
        return
    place, sharers = sharers_of(stores[0], accelerator)
    with ExitStack() as stack:
        # in their order, each once
        folders = dict.fromkeys(store.folder for store in stores) if place == 0 else ()
        lock_together(stack, folders, accelerator, say)
        together(accelerator, find)  # again: another run may have computed or removed some
        first = [each.missing() for each in wanted]
        together(accelerator, lambda: _check_room(wanted, first, say))
        compute = partial(_compute, model, level, accelerator, workers, say)
        for each, missing in zip(wanted, first, strict=True):
            _compute_together(compute, each, missing[place::sharers], accelerator)
        for each in wanted:  # where the processes saw other images or other folders
            _compute_together(compute, each, each.missing(), accelerator)
    say(f"features of {sum(len(each.records) for each in wanted):,} images: {_told(stores)}")


def _compute_together(
    compute: Callable[[Wanted, list[bytes]], None],
    wanted: Wanted,
    mine: list[bytes],
    accelerator: Accelerator,
) -> None:
    if not any(of_all(accelerator, len(mine))):
        return
    together(accelerator, lambda: compute(wanted, mine))
    together(accelerator, wanted.store.refresh)


@torch.inference_mode()
def _compute(
    model: Any,
    level: str,
    accelerator: Accelerator,
    workers: int,
    say: Say,
    wanted: Wanted,
    mine: list[bytes],
) -> None:
    batches = [mine[i : i + BATCH] for i in range(0, len(mine), BATCH)]
    loader = load_batches(_Images(wanted), batches, torch.stack, workers=workers)
    start = time.monotonic()
    model.eval()
    bar = tqdm(
        total=len(mine), desc="features", disable=not accelerator.is_main_process, leave=False
    )
    with ExitStack() as stack:
        writer = Writer(wanted.store)
        stack.callback(writer.close)
        stack.enter_context(bar)
        stack.enter_context(accelerator.autocast())
        for number, (digests, pixels) in enumerate(zip(batches, loader, strict=True)):
            features = compute_features(model, level, pixels.to(accelerator.device))
            writer.add(digests, features)
            bar.update(len(digests))
            if number == 0 and len(batches) > 1:
                minutes = (time.monotonic() - start) * (len(batches) - 1) / 60
                say(f"by the first {BATCH}, the rest takes about {minutes:,.1f} minutes")


@dataclass(frozen=True)
class _Images(Dataset):
    wanted: Wanted

    def __getitem__(self, digest: bytes) -> Tensor:
        record = self.wanted.records[digest]
        # the transform draws nothing: Key was made of its words
        pixels = load_pixels(record, self.wanted.transform, np.random.default_rng(0))
        if image_digest(record.image) != digest:
            raise ValueError(
                f"{record.origin}: the image changed while its features were computed; start again "
                "when the data is at rest"
            )
        return pixels


def _check_room(wanted: Sequence[Wanted], missing: Sequence[list[bytes]], say: Say) -> None:
    """Say what is to come; ValueError where it doesn't fit the disk."""
    count = sum(map(len, missing))
    pairs = zip(wanted, missing, strict=True)
    size = sum(len(some) * (each.store.row_bytes + DIGEST) for each, some in pairs)
    store = wanted[0].store
    free = shutil.disk_usage(store.folder).free
    if size > free:
        raise ValueError(
            f"the features of {count:,} images take {size / GB:,.1f} GB "
            f"({store.row_bytes:,} bytes each), and {store.folder.parent} has {free / GB:,.1f} GB "
            "free: make room, set cache.folder to another disk or to null, cache.dtype to "
            "int8, or model.image_size lower"
        )
    say(f"features of {count:,} images to compute, {size / GB:,.2f} GB of {free / GB:,.1f} free")


def _told(stores: Sequence[Store]) -> str:
    return f"level {stores[0].key.level}, {stores[0].key.dtype}, in {stores[0].folder.parent}"
