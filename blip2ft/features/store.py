"""Features on disk: rows of one size, found by the image's identity.

FOLDER/<key>/cache.json      what they are of: `Key`
FOLDER/<key>/<writer>.rows   rows, one after the other
FOLDER/<key>/<writer>.ids    the identity of each, 32 bytes: on the disk only after the row itself
FOLDER/<key>/used            its time is that of the last use

Each process that computes features writes files of its own and only ever adds to them, so that
processes need not agree on places, and a kill loses at most the rows that are being written. A row
without an identity doesn't count.
"""

import errno
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from blip2ft.features.key import Key
from blip2ft.whole import write_text

DESCRIPTION, USED = "cache.json", "used"
ROWS, IDS = ".rows", ".ids"
HERE = ".here-"  # by which processes find out that they share a folder
DIGEST = 32  # bytes of an identity
BLOCK = 64  # int8: so many channels of a token share a scale, at most


def row_bytes(shape: tuple[int, int], dtype: str) -> int:
    """What one image takes, in bytes.

    Raises ValueError for a dtype that nothing is kept in.
    """
    count = math.prod(shape)
    sizes = {"fp32": 4 * count, "bf16": 2 * count}
    sizes["int8"] = count + 4 * count // _block(shape[1])
    if dtype not in sizes:
        raise ValueError(f"cache.dtype is {dtype!r}: allowed are bf16, fp32, int8")
    return sizes[dtype]


def encode(features: Tensor, dtype: str) -> np.ndarray:
    """Features (B, S, D) as rows of bytes (B, `row_bytes`).

    int8: of each token, 64 channels (or the largest divisor of D and 64) share one fp32 scale,
    their largest magnitude over 127; the scales come first. A token's few huge channels, which the
    hidden states of large encoders have (arXiv 2309.16588), would round all others to nothing under
    a scale of the whole token.
    """
    features = features.detach().float().cpu()
    if dtype == "fp32":
        kept = features.contiguous()
    elif dtype == "bf16":
        kept = features.bfloat16().contiguous()
    else:
        blocks = features.unflatten(-1, (-1, _block(features.shape[-1])))
        scales = (blocks.abs().amax(-1, keepdim=True) / 127).clamp(min=torch.finfo().tiny)
        small = (blocks / scales).round().to(torch.int8)
        parts = [scales.flatten(1).view(torch.uint8), small.flatten(1).view(torch.uint8)]
        return torch.cat(parts, 1).numpy()
    return kept.flatten(1).view(torch.uint8).numpy()


def decode(row: Tensor, shape: tuple[int, int], dtype: str) -> Tensor:
    """One row of bytes as features (S, D): bf16 for "bf16", else fp32."""
    if dtype == "fp32":
        return row.view(torch.float32).view(shape)
    if dtype == "bf16":
        return row.view(torch.bfloat16).view(shape)
    size = math.prod(shape)
    scales = row[:-size].view(torch.float32)
    small = row[-size:].view(torch.int8).view(len(scales), -1)
    return (small * scales[:, None]).view(shape)


class Store:
    """The features of one key; images are asked for by `image_digest`.

    Rows are memory-mapped, and the maps are shared with the processes of a loader.
    """

    def __init__(self, folder: str | Path, key: Key) -> None:
        self.key, self.folder = key, Path(folder) / key.name
        self.row_bytes = row_bytes(key.shape, key.dtype)
        self._places: dict[bytes, tuple[Path, int]] = {}
        self._maps: dict[Path, np.ndarray] = {}

    def open(self) -> None:
        """Make the folder where there is none, mark it as used and find the rows.

        Raises ValueError where the folder can't be made, or says that it is something else.
        """
        path = self.folder / DESCRIPTION
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                write_text(path, json.dumps(asdict(self.key), indent=2) + "\n")
            (self.folder / USED).touch()
        except OSError as error:
            raise ValueError(
                f"cache.folder: {self.folder} can't be written ({error.strerror}); choose another"
            ) from error
        if read_key(self.folder).name != self.key.name:
            raise ValueError(f"{path} has been changed; remove {self.folder}")
        # not what another run removed since
        self._places.clear()
        self._maps.clear()
        self.refresh()

    def refresh(self) -> None:
        """Look again for rows that were written, by whomever."""
        for ids in sorted(self.folder.glob(f"*{IDS}")):
            file = ids.with_suffix(ROWS)
            data = ids.read_bytes()
            whole = file.stat().st_size // self.row_bytes if file.is_file() else 0
            count = min(len(data) // DIGEST, whole)
            if not count or (file in self._maps and len(self._maps[file]) == count):
                continue
            self._maps[file] = np.memmap(
                file, dtype=np.uint8, mode="r", shape=(count, self.row_bytes)
            )
            for i in range(count):
                self._places[data[i * DIGEST : (i + 1) * DIGEST]] = (file, i)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def __len__(self) -> int:
        return len(self._places)

    def row(self, digest: bytes) -> Tensor:
        """The features (S, D) of an image; KeyError where there are none."""
        file, number = self._places[digest]
        if file not in self._maps:
            self.refresh()
        # a copy, which ends up in a batch
        row = torch.from_numpy(np.array(self._maps[file][number]))
        return decode(row, self.key.shape, self.key.dtype)

    def __getstate__(self) -> dict[str, Any]:
        # a process that doesn't share memory maps the files itself, and isn't sent them
        return {**self.__dict__, "_maps": {}}


class Writer:
    """Adds rows to a store; to be closed."""

    def __init__(self, store: Store) -> None:
        self.store, self.count = store, 0
        stem = uuid4().hex
        self._rows = (store.folder / f"{stem}{ROWS}").open("xb", buffering=0)
        self._ids = (store.folder / f"{stem}{IDS}").open("xb", buffering=0)

    def add(self, digests: Sequence[bytes], features: Tensor) -> None:
        """Write the features (B, S, D) of images, and have them on the disk.

        Raises ValueError where that fails, as on a full disk; what was there before stays.
        """
        try:
            _write(self._rows, encode(features, self.store.key.dtype).data)
            _write(self._ids, b"".join(digests))
        except OSError as error:
            self._forget_half()
            raise ValueError(self._told(error)) from error
        self.count += len(digests)

    def close(self) -> None:
        """Leave no files behind where nothing was added."""
        for file in (self._rows, self._ids):
            file.close()
            if not self.count:
                Path(file.name).unlink(missing_ok=True)

    def _forget_half(self) -> None:
        os.ftruncate(self._rows.fileno(), self.count * self.store.row_bytes)
        os.ftruncate(self._ids.fileno(), self.count * DIGEST)

    def _told(self, error: OSError) -> str:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = "the disk is full" if full else f"writing failed ({error.strerror})"
        return (
            f"{self.store.folder}: {what} after {self.count} images of this process. They stay: "
            "make room, or set cache.folder to another disk, and start again; it goes on from "
            "there"
        )


def read_key(folder: Path) -> Key:
    """What a cache's folder is of. Raises ValueError where it isn't a cache, or is damaged."""
    path = folder / DESCRIPTION
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        return Key(**{**saved, "shape": tuple(saved["shape"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} is no cache of features, or a damaged one ({path.name}: {error}); remove "
            "it, and they are computed anew"
        ) from error


def _write(file: Any, data: memoryview | bytes) -> None:
    left = memoryview(data).cast("B")
    while left:
        left = left[file.write(left) :]
    os.fsync(file.fileno())


def _block(width: int) -> int:
    return math.gcd(width, BLOCK)
