"""A photo index on disk: whole shards of features, each with a line for every photo.

INDEX/index.json                 the model that made it, and the version of this format
INDEX/shards/000000.safetensors  "features" (N, Q, D) fp16, of unit length
INDEX/shards/000000.jsonl        N lines {"path", "size", "mtime", "image_id"}
INDEX/searches/                  contact sheets
INDEX/faiss/                     the features again, arranged for faiss

Shards are only ever added. The lines are written last: a shard without them doesn't count.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from blip2ft.photos.files import Photo
from blip2ft.whole import LOCK, PARTIAL, whole, write_text

FORMAT = 1
DESCRIPTION = "index.json"


@dataclass(frozen=True)
class Maker:
    """The model that an index was made with.

    model: hub id or absolute folder; revision: of a hub model, its commit; image_size: what it was
    resized to, None for its own; fingerprint: of its weights; files: what their stat was then;
    quantize: its parts that were held in fewer bits.
    """

    model: str
    revision: str | None
    image_size: int | None
    fingerprint: str
    files: dict[str, list]
    quantize: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """Some photos of an index and the file of their features."""

    file: Path
    photos: list[Photo]

    def features(self) -> Tensor:
        """(N, Q, D) fp16. Raises ValueError where the file is missing or damaged."""
        return self._read(lambda features: features[:])

    def row(self, number: int) -> Tensor:
        """(Q, D) fp16, that of one photo alone."""
        return self._read(lambda features: features[number : number + 1])[0]

    def _read(self, take: Callable[..., Tensor]) -> Tensor:
        try:
            with safe_open(self.file, "pt") as tensors:
                features = tensors.get_slice("features")
                if features.get_shape()[0] != len(self.photos):
                    raise ValueError(f"{len(self.photos)} lines, {features.get_shape()[0]} rows")
                return take(features)
        except (OSError, SafetensorError, ValueError) as error:
            raise _damaged(self.file, error) from error


def is_index(folder: Path) -> bool:
    """Whether an index is there; ValueError where something else is."""
    if (folder / DESCRIPTION).is_file():
        return True
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose a folder for the index")
    held = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if any(name != LOCK and not name.startswith(PARTIAL) for name in held):
        raise ValueError(f"{folder} is in use and is no index ({held[0]}); choose another --out")
    return False


def read_maker(folder: Path) -> Maker:
    """What `index.json` says. Raises ValueError where it is missing, damaged or of the future."""
    path = folder / DESCRIPTION
    if not path.is_file():
        raise ValueError(
            f"{folder} is no photo index; make one: blip2ft index FOLDER --model M --out {folder}"
        )
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        version = saved.pop("format")
        if version == FORMAT:
            return Maker(**saved)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); make the index again") from error
    raise ValueError(
        f"{path}: the index has format {version}, this blip2ft reads {FORMAT}; make it again, or "
        "use the blip2ft that made it"
    )


def write_maker(folder: Path, maker: Maker) -> None:
    """Begin an index."""
    text = json.dumps({"format": FORMAT, **asdict(maker)}, indent=2) + "\n"
    write_text(folder / DESCRIPTION, text)


def read_shards(folder: Path) -> list[Shard]:
    """All whole shards, in the order in which they were added."""
    shards = []
    for lines in sorted((folder / "shards").glob("[0-9]*.jsonl")):
        try:
            text = lines.read_text(encoding="utf-8")
            photos = [Photo(**json.loads(line)) for line in text.splitlines()]
        except (OSError, ValueError, TypeError) as error:
            raise _damaged(lines, error) from error
        shards.append(Shard(lines.with_suffix(".safetensors"), photos))
    return shards


def add_shard(
    folder: Path,
    photos: Sequence[Photo],
    features: Sequence[Tensor],
    *,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Write photos and their features (Q, D) as the next shard, which is there as a whole or not
    at all.

    rank, world: of the processes that add shards at once; each takes every `world`-th number.
    """
    numbers = [int(path.stem) for path in (folder / "shards").glob("[0-9]*.jsonl")]
    number = max(numbers, default=-1) + 1
    number += (rank - number) % world
    file = folder / "shards" / f"{number:06d}.safetensors"
    tensors = {"features": torch.stack(list(features)).half().cpu().contiguous()}
    # escaped, as names of files need not be valid UTF-8
    lines = "".join(json.dumps(asdict(photo)) + "\n" for photo in photos)
    with whole(file) as partial:
        partial.write_bytes(save(tensors))
    write_text(file.with_suffix(".jsonl"), lines)


def _damaged(file: Path, error: Exception) -> ValueError:
    names = f"{file.with_suffix('.safetensors')} and .jsonl"
    return ValueError(
        f"{file} is damaged ({error}); remove {names}, and index again: only their photos are read"
    )
