"""First stage of a search: the photos whose features are nearest, shard by shard or by faiss."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip2ft.losses import similarities
from blip2ft.photos.shards import Shard
from blip2ft.whole import whole

logger = logging.getLogger(__name__)

FAISS_FROM = 1_000_000  # photos from which faiss is used where it is installed
# Vectors up to which faiss compares all (131,000 photos of 32 queries, 4.3 GB of memory).
FLAT_UP_TO = 2**22
PROBES = 64  # lists of an inverted file that a search looks into
CHUNK = 256  # photos compared at once


def similar_to_text(shards: Sequence[Shard], text: Tensor) -> Tensor:
    """Similarity of every photo's best query to a text (D,): (N,) in fp32 on the CPU."""
    parts = [similarities(chunk, text[None])[:, 0].cpu() for chunk in _chunks(shards, text.device)]
    return torch.cat(parts)


def similar_to_image(shards: Sequence[Shard], image: Tensor) -> Tensor:
    """Similarity of every photo to another, given its features (Q, D): (N,) in fp32 on the CPU.

    For each of its queries the best of the photo's, and of these the mean: 1 for the same photo.
    The best pair alone, which texts are compared by, would be near 1 for any two photos that
    share one thing.
    """
    parts = [similarities(chunk, image).mean(1).cpu() for chunk in _chunks(shards, image.device)]
    return torch.cat(parts)


def best_first(scores: Tensor) -> list[int]:
    """Numbers of all photos; of equals the first."""
    return scores.argsort(descending=True, stable=True).tolist()


def arrange(folder: Path, shards: Sequence[Shard]) -> Any:
    """The faiss index of all vectors, extended by those of shards that are new, and kept."""
    faiss = import_faiss()
    queries, width = shards[0].row(0).shape
    total = sum(len(shard.photos) for shard in shards) * queries
    kind = "flat" if total <= FLAT_UP_TO else "ivf"
    files = [folder / "faiss" / f"{kind}-{name}.faiss" for name in _names(shards)]
    done = next((i for i in range(len(shards), 0, -1) if files[i - 1].is_file()), 0)
    if done == len(shards):
        index = faiss.read_index(str(files[-1]), faiss.IO_FLAG_MMAP if kind == "ivf" else 0)
    else:
        logger.info("arranging %d photos for faiss", total // queries)
        if done:
            index = faiss.read_index(str(files[done - 1]))
        elif kind == "flat":
            index = faiss.IndexFlatIP(width)
        else:
            index = _trained(faiss, shards, width, total)
        for shard in shards[done:]:
            index.add(shard.features().float().flatten(0, 1).numpy())
        with whole(files[-1]) as partial:
            faiss.write_index(index, str(partial))
        for other in set((folder / "faiss").glob("*.faiss")) - {files[-1]}:
            other.unlink(missing_ok=True)
    if kind == "ivf":
        index.nprobe = PROBES
    return index


def nearest_photos(index: Any, shards: Sequence[Shard], text: Tensor, count: int) -> list[int]:
    """Numbers of at least `count` photos (all, where there are fewer), the most similar first.

    Those of the exact search while all vectors are compared; beyond `FLAT_UP_TO`, faiss looks
    into the nearest lists of an inverted file, and may miss some.
    """
    queries = shards[0].row(0).shape[0]
    # one photo may have all its queries among the best, before the next photo's first
    wanted = min(count * queries, index.ntotal)
    _, found = index.search(text.cpu().numpy()[None], wanted)
    return list(dict.fromkeys((found[0][found[0] >= 0] // queries).tolist()))


def import_faiss() -> Any:
    """faiss, or a ValueError with the command that installs it."""
    try:
        import faiss
    except ImportError:
        raise ValueError('this search needs faiss: pip install "blip2ft[search]"') from None
    return faiss


def _chunks(shards: Sequence[Shard], device: torch.device) -> Iterator[Tensor]:
    """Features (N, Q, D) in fp32 of a few photos after the other."""
    for shard in shards:
        for chunk in shard.features().split(CHUNK):
            yield chunk.to(device).float()


def _trained(faiss: Any, shards: Sequence[Shard], width: int, total: int) -> Any:
    """An empty inverted file of 4 sqrt(N) lists, trained on 64 vectors for each."""
    lists = int(4 * total**0.5)
    index = faiss.index_factory(width, f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
    share = min(1.0, 64 * lists / total)
    generator = torch.Generator().manual_seed(0)
    sample = []
    for shard in shards:
        vectors = shard.features().flatten(0, 1)
        chosen = torch.rand(len(vectors), generator=generator) < share
        sample.append(vectors[chosen].float())
    index.train(torch.cat(sample).numpy())
    return index


def _names(shards: Sequence[Shard]) -> Iterator[str]:
    """For each shard what stands for it and all before it, with their photos."""
    digest = hashlib.sha256()
    for shard in shards:
        ids = "".join(photo.image_id for photo in shard.photos)
        digest.update(f"{shard.file.name} {ids}\n".encode())
        yield digest.hexdigest()[:16]
