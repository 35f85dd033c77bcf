"""Compute the features of a run's images that aren't kept yet, by all processes."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from blip2ft.data.images import EvalTransform, TrainTransform
from blip2ft.features.compute import compute_shares, stop_together
from blip2ft.features.key import image_digest
from blip2ft.features.serve import serve_features
from blip2ft.features.size import told_size
from blip2ft.features.store import DIGEST, Store
from blip2ft.features.together import lock_together, of_all, sharers_of, together
from blip2ft.features.wanted import Wanted, want_features
from blip2ft.training.processes import precision_of
from blip2ft.training.signals import Signals

STOPPING = "stopping after these images; Ctrl-C once more quits at once"

Say = Callable[[str], object]


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
                "on; start again with --resume, and they are computed anew"
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
    small, an image can't be read or changes meanwhile; Stopped after Ctrl-C or SIGTERM.
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
            precision=precision_of(accelerator),
        ),
    )
    build(model, level, wanted, accelerator, workers, say)
    serve_features(model, level)
    for_training, for_evaluation = (Kept(each.store) for each in wanted)
    return for_training, for_evaluation


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

    Raises on every process ValueError for what fails on any, and Stopped after Ctrl-C or SIGTERM
    to any. What was computed until then stays.
    """
    stores = [each.store for each in wanted]

    def find() -> int:
        for store in stores:
            store.open()
        return sum(len(each.missing()) for each in wanted)

    count = sum(len(each.records) for each in wanted)
    found = together(accelerator, find)
    if not any(of_all(accelerator, found)):
        say(f"features of {count:,} images: all there ({_told(stores)})")
        return
    place, sharers = sharers_of(stores[0], accelerator)
    with ExitStack() as stack:
        # in their order, each once
        folders = dict.fromkeys(store.folder for store in stores) if place == 0 else ()
        lock_together(stack, folders, accelerator, say)
        signals = stack.enter_context(Signals(STOPPING))
        together(accelerator, find)  # again: another run may have computed or removed some
        missing = [each.missing() for each in wanted]
        together(accelerator, lambda: _check_room(wanted, missing, say))

        def compute(mine: Sequence[list[bytes]]) -> None:
            compute_shares(model, level, wanted, mine, accelerator, workers, say, signals)

        compute([some[place::sharers] for some in missing])
        # where the processes saw other images or other folders
        compute([each.missing() for each in wanted])
    stop_together(wanted, accelerator, signals)  # what came when all was computed
    say(f"features of {count:,} images: {_told(stores)}")


def _check_room(wanted: Sequence[Wanted], missing: Sequence[list[bytes]], say: Say) -> None:
    """Say what is to come; ValueError where it doesn't fit the disk."""
    count = sum(map(len, missing))
    pairs = zip(wanted, missing, strict=True)
    size = sum(len(some) * (each.store.row_bytes + DIGEST) for each, some in pairs)
    store = wanted[0].store
    free = shutil.disk_usage(store.folder).free
    if size > free:
        raise ValueError(
            f"the features of {count:,} images take {told_size(size)} "
            f"({store.row_bytes:,} bytes each), and {store.folder.parent} has {told_size(free)} "
            "free: make room, set cache.folder to another disk or to null, cache.dtype to "
            "int8, or model.image_size lower"
        )
    say(f"features of {count:,} images to compute, {told_size(size)} of {told_size(free)} free")


def _told(stores: Sequence[Store]) -> str:
    return f"level {stores[0].key.level}, {stores[0].key.dtype}, in {stores[0].folder.parent}"
