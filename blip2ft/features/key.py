"""What features depend on: the model that computes them, and the image that they are of."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from blip2ft.data.images import EvalTransform, TrainTransform

FORMAT = 1
# In a config, but nothing that features depend on: a checkpoint's past, and the name of the class,
# as Blip2 and InstructBLIP have the same image encoder.
PAST = {"_name_or_path", "architectures", "dtype", "model_type", "transformers_version"}


@dataclass(frozen=True)
class Key:
    """All that decides on the features of an image, and how they are kept.

    Args:
        level: "vision", the hidden states of the image encoder's blocks, or "queries", what the
            projection gives the language model.
        weights: sha256 over the config and weights that compute them.
        transform: What an image goes through before, in words.
        precision: How it is computed: "fp32", "bf16" or "fp16".
        dtype: What is kept: "bf16", "fp32" or "int8".
        shape: Of one image's features, (S, D).
        model: The checkpoint's name, and how a quantised image encoder is held. It is told to
            people and decides on nothing.
    """

    level: str
    weights: str
    transform: str
    precision: str
    dtype: str
    shape: tuple[int, int]
    model: str = ""

    @property
    def name(self) -> str:
        """Of the folder: 32 hexadecimal digits, of this format and this transformers alone."""
        decides = {**asdict(self), "model": None}
        versions = [FORMAT, transformers.__version__]
        text = json.dumps([versions, decides], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def weights_digest(config: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over a config and tensors with their names, dtypes and shapes; of 2 GB in seconds."""
    digest = hashlib.sha256(json.dumps(_without_past(config), sort_keys=True, default=str).encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(data.numpy().data)
    return digest.hexdigest()


def transform_words(transform: TrainTransform | EvalTransform) -> str:
    """What an image goes through, in words that differ where the pixels may.

    Raises ValueError for a transform that draws at random.
    """
    if isinstance(transform, TrainTransform) and (transform.scale is not None or transform.flip):
        raise ValueError(
            "features of augmented images can't be kept: each epoch has others; set "
            "data.crop_scale to null and data.flip to false, or cache.folder to null"
        )
    hint = transform.size_hint
    decoded = "JPEGs in full" if hint is None else f"JPEGs decoded from {hint} px on"
    return (
        f"{transform.size} px, {decoded}, mean {_numbers(transform.mean)}, "
        f"std {_numbers(transform.std)}"
    )


def image_digest(image: Any) -> bytes:
    """The identity of a record's image, 32 bytes.

    A file's is path, size and mtime, by which rsync too tells what has changed, and so is that of a
    tar's part, with its place; of bytes and table rows it is that of the content. Not ctime or
    inode: a data set that each job unpacks on its node would never be found again.

    Raises ValueError for a file that isn't there.
    """
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    path, place = image, ""
    if not isinstance(image, str | Path):
        if not hasattr(image, "tar"):
            return hashlib.sha256(image.read()).digest()
        path, place = image.tar, f"{image.offset} {image.size}"
    try:
        status = os.stat(path)
    except OSError as error:
        raise ValueError(
            f"{path}: can't be read ({error.strerror}). Correct the path, or check the disk."
        ) from error
    seen = [os.path.abspath(path), status.st_size, status.st_mtime_ns, place]
    return hashlib.sha256(json.dumps(seen).encode()).digest()


def _without_past(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_past(v) for k, v in value.items() if k not in PAST}
    return value


def _numbers(values: Iterable[float]) -> str:
    # all digits: another mean is another transform
    return " ".join(map(repr, values))
