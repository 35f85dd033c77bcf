"""Which weights a checkpoint's name stands for: its commit on the hub, and a digest of them."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils.hub import cached_file, extract_commit_hash

from blip2ft.models.source import explained

# In the order in which transformers looks for them.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class Base:
    """What a run starts from.

    base: hub id, or a folder by its full path; revision: of a hub id, the commit;
    base_digest: see `weights_sample`.
    """

    base: str
    revision: str | None
    base_digest: str


def identify(name: str, revision: str | None = None) -> Base:
    """What `name` is now. ValueError for a checkpoint that is missing or has no weights."""
    files = weight_files(name, revision)
    if not Path(name).is_dir():
        revision = extract_commit_hash(str(files[0]), None) or revision
    return Base(locate_source(name), revision, weights_sample(files))


def locate_source(name: str) -> str:
    """A hub id as it is, a local folder by its full path."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def check_base(
    whose: str | Path, recorded: Mapping[str, Any], name: str, revision: str | None = None
) -> None:
    """Raise ValueError where `name` isn't what the weights of `whose` were trained on.

    recorded: what `Base` holds; without a digest nothing is known.
    """
    digest = recorded.get("base_digest")
    if digest is None or identify(name, revision).base_digest == digest:
        return
    was, commit = recorded["base"], recorded.get("revision")
    at = f"{was} at {commit[:12]}" if commit else was
    here = "which has changed since" if locate_source(name) == was else f"and {name} is another"
    raise ValueError(
        f"{whose} was trained on {at}, {here}: the weights differ, so the model would answer "
        "wrongly; give the base that it was trained on"
    )


def weight_files(name: str, revision: str | None = None) -> list[Path]:
    """The files of a checkpoint's weights, of a hub id in the local cache.

    Raises ValueError where there are none.
    """

    def find(file: str) -> Path | None:
        found = cached_file(
            name,
            file,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
        )
        return None if found is None else Path(found)

    with explained(name):
        for first in WEIGHTS:
            found = find(first)
            if found is None:
                continue
            if found.suffix != ".json":
                return [found]
            table = json.loads(found.read_text(encoding="utf-8"))["weight_map"]
            parts = [find(part) for part in sorted(set(table.values()))]
            return [part for part in parts if part is not None]
    raise ValueError(f"{name} holds no weights; download or export the model again")


def weights_sample(files: list[Path]) -> str:
    """sha256 over the shapes and some values of all tensors in `files`.

    The first, the middle and the last row of each tensor count, rounded to bf16: so that little of
    a large checkpoint is read, and the digest is the same for a copy in bf16, in other files, under
    other names or with tied weights written once. Training moves all rows. That no bit of a file is
    damaged isn't said.
    """
    digest = hashlib.sha256()
    for shape, values in sorted({sample for file in files for sample in _samples(file)}):
        digest.update(f"{shape}".encode())
        digest.update(values)
    return digest.hexdigest()


def _samples(file: Path) -> Iterator[tuple[tuple[int, ...], bytes]]:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                part = tensors.get_slice(name)
                shape = tuple(part.get_shape())
                rows = [part[i : i + 1] for i in _rows(shape)] or [tensors.get_tensor(name)]
                yield shape, _bytes(rows)
        return
    for tensor in torch.load(file, map_location="cpu", mmap=True, weights_only=True).values():
        shape = tuple(tensor.shape)
        rows = [tensor[i : i + 1] for i in _rows(shape)] or [tensor]
        yield shape, _bytes(rows)


def _rows(shape: tuple[int, ...]) -> list[int]:
    return sorted({0, shape[0] // 2, shape[0] - 1}) if shape and shape[0] else []


def _bytes(rows: list[Tensor]) -> bytes:
    values = torch.cat([row.reshape(-1) for row in rows])
    if values.is_floating_point():
        values = values.bfloat16()
    return values.contiguous().view(torch.uint8).numpy().tobytes()
