"""Which images' features a run needs, and where they are kept."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from blip2ft.data.images import EvalTransform, TrainTransform
from blip2ft.features.key import Key, image_digest, transform_words
from blip2ft.features.level import cache_folder
from blip2ft.features.serve import features_digest, features_shape
from blip2ft.features.store import Store

# In what quantised weights are held; see models/source.py.
PACKED = {torch.uint8: "nf4", torch.int8: "int8"}


@dataclass(frozen=True)
class Wanted:
    """Images whose features a run needs: each one once, by its identity, and how it is opened."""

    store: Store
    transform: TrainTransform | EvalTransform
    records: dict[bytes, Any]

    def missing(self) -> list[bytes]:
        """Those that aren't kept yet."""
        return [digest for digest in self.records if digest not in self.store]


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

    precision: "fp32", "bf16" or "fp16". Nothing is written.
    """
    weights, shape = features_digest(model, level), features_shape(model.config, level)
    place, told = cache_folder(folder), name + _quantized(model)
    wanted = []
    for each, transform in zip(records, transforms, strict=True):
        words = transform_words(transform)
        key = Key(level, weights, words, precision, dtype, shape, told)
        by_image: dict[bytes, Any] = {}
        for record in each:
            by_image.setdefault(image_digest(record.image), record)
        wanted.append(Wanted(Store(place, key), transform, by_image))
    return wanted


def _quantized(model: Any) -> str:
    """How the image encoder is held, to be told behind the model's name; "" where it is whole."""
    kinds = {PACKED.get(parameter.dtype) for parameter in model.vision_model.parameters()}
    return "".join(f" in {kind}" for kind in kinds if kind)
