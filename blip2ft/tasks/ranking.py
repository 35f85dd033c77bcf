"""Two-stage search: similarity of features over all pairs, then the matching head on the best.

Paper, section 4.4; LAVIS models/blip2_models/blip2_qformer.py, compute_sim_matrix.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import Dataset

from blip2ft.bars import progress_bar
from blip2ft.data.images import EvalTransform
from blip2ft.data.loading import load_batches, load_pixels
from blip2ft.data.pairs import PairLayout
from blip2ft.data.records import Record
from blip2ft.gather import is_distributed
from blip2ft.losses import similarities
from blip2ft.models.qformer import ImageKeys, project_images
from blip2ft.models.retriever import Retriever

CHUNK_BYTES = 2**28  # of similarities held at once


@dataclass(frozen=True)
class Ranking:
    """For each of N queries its K best candidates, best first.

    indices: (N, K) int64; scores: (N, K) float32.
    """

    indices: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Rankings:
    """The best texts of each image, and the best images of each text."""

    texts_of_images: Ranking
    images_of_texts: Ranking


@torch.inference_mode()
def rank(
    model: Retriever,
    layout: PairLayout,
    transform: EvalTransform,
    records: Sequence[Record],
    texts: Sequence[str],
    *,
    candidates: int = 128,
    rerank: bool = True,
    batch_size: int = 16,
    pairs_at_once: int = 256,
    workers: int = 0,
    accelerator: Accelerator | None = None,
    progress: bool = False,
) -> Rankings:
    """Rank all texts for each image and all images for each text; the same on every process.

    candidates: how many of the most similar to keep; `rerank` scores those by similarity plus
    matching logit. batch_size: images or texts encoded at once; pairs_at_once: texts matched with
    an image at once.

    Images are split over the processes. Each image's features are computed once and kept in memory
    or, where they don't fit, in a file; its keys and values are projected once, for all texts
    that it is a candidate of, in either direction.
    """
    if not records or not texts:
        raise ValueError(f"nothing to rank: {len(records)} images and {len(texts)} texts")
    process, world = (0, 1)
    if accelerator is not None:
        process, world = accelerator.process_index, accelerator.num_processes
    mine = np.arange(len(records))[process::world]
    show = progress and process == 0
    rows = layout.ids(texts)
    model.eval()
    with ExitStack() as stack:
        if accelerator is not None:
            stack.enter_context(accelerator.autocast())
        of_texts = text_features(model, layout, rows[process::world], batch_size)
        of_texts = torch.from_numpy(_interleave(of_texts.cpu().numpy())).to(model.device)
        my_records = [records[i] for i in mine]
        embeds, of_images = stack.enter_context(
            _image_features(model, transform, my_records, batch_size, workers, show)
        )
        best_texts, best_images = _most_similar(of_images, of_texts, mine, candidates)
        wanted = _wanted_texts(best_texts, best_images, mine)
        scores = []
        bar = progress_bar(wanted, "match", hidden=not show, leave=False)
        for i, chosen in enumerate(bar):
            score = similarities(of_images[i : i + 1], of_texts[chosen])[0]
            if rerank:
                keys = project_images(model.qformer, embeds[i : i + 1].to(model.device))
                score += match_texts(model, layout, keys, [rows[j] for j in chosen], pairs_at_once)
            scores.append(score.cpu().numpy())

    # from here on all is small: K scores for each image and each text
    pairs = [i * len(texts) + chosen for i, chosen in zip(mine, wanted, strict=True)]
    joined = np.concatenate([np.empty(0, np.int64), *pairs])
    table = _Scores.of_all(joined, np.concatenate([np.empty(0, np.float32), *scores]))
    all_texts = _interleave(best_texts)
    image, text = np.arange(len(records))[:, None], np.arange(len(texts))[:, None]
    return Rankings(
        table.order(all_texts, image * len(texts) + all_texts),
        table.order(best_images, best_images * len(texts) + text),
    )


def text_features(
    model: Retriever, layout: PairLayout, rows: Sequence[Sequence[int]], batch_size: int
) -> Tensor:
    """Features (M, D) in fp32 of texts given as token ids; those of like length share a batch."""
    features = torch.empty(len(rows), model.text_projection.out_features, device=model.device)
    for chosen, ids, mask in _by_length(layout, rows, batch_size):
        features[chosen] = model.encode_texts(ids.to(model.device), mask.to(model.device)).float()
    return features


def match_texts(
    model: Retriever,
    layout: PairLayout,
    image: ImageKeys,
    rows: Sequence[Sequence[int]],
    pairs_at_once: int = 256,
) -> Tensor:
    """Matching logits (M,) in fp32 of texts, given as token ids, with one image."""
    logits = torch.empty(len(rows), device=model.device)
    for chosen, ids, mask in _by_length(layout, rows, pairs_at_once):
        both = model.match([(image, len(chosen))], ids.to(model.device), mask.to(model.device))
        logits[chosen] = both[:, 1]
    return logits


def _by_length(
    layout: PairLayout, rows: Sequence[Sequence[int]], size: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Batches of texts of like length: their places in `rows`, ids and mask."""
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(rows), size):
        chosen = by_length[start : start + size]
        yield chosen, *layout.pad([rows[i] for i in chosen])


@contextmanager
def _image_features(
    model: Retriever,
    transform: EvalTransform,
    records: Sequence[Record],
    batch_size: int,
    workers: int,
    progress: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the image encoder gives (N, S, D_image), kept on the CPU, and features (N, Q, D)."""
    vision = model.config.vision_config
    length = (vision.image_size // vision.patch_size) ** 2 + 1
    half = torch.is_autocast_enabled(model.device.type) or model.dtype != torch.float32
    queries, width = model.query_tokens.shape[1], model.vision_projection.out_features
    features = torch.empty(len(records), queries, width, device=model.device)
    shape = (len(records), length, vision.hidden_size)
    loader = load_batches(
        _Images(records, transform),
        [list(range(len(records)))[i : i + batch_size] for i in range(0, len(records), batch_size)],
        torch.stack,
        workers=workers,
    )
    with _kept(shape, torch.bfloat16 if half else torch.float32) as embeds:
        bar = progress_bar(total=len(records), desc="encode", hidden=not progress, leave=False)
        start = 0
        for pixels in loader:
            rows = slice(start, start + len(pixels))
            states = model.vision_model(pixels.to(model.device)).last_hidden_state
            embeds[rows] = states
            features[rows] = model.encode_images(project_images(model.qformer, states)).float()
            start += len(pixels)
            bar.update(len(pixels))
        bar.close()
        yield embeds, features


@contextmanager
def _kept(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
    """Room for a tensor: in memory, or in a temporary file where a quarter of what is free, shared
    by the processes of this machine, is too little."""
    count = int(np.prod(shape))
    free = psutil.virtual_memory().available // (4 * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if count * dtype.itemsize <= free:
        yield torch.empty(shape, dtype=dtype)
        return
    with tempfile.TemporaryDirectory(prefix="blip2ft-") as folder:
        file = str(Path(folder) / "features")
        yield torch.from_file(file, shared=True, size=count, dtype=dtype).view(shape)


def _most_similar(
    of_images: Tensor, of_texts: Tensor, mine: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of each of our images the best texts (N, K), of each text the best of all images (M, K').

    Over chunks of images, so that memory stays bounded.
    """
    images, queries = of_images.shape[:2]
    chunk = max(1, CHUNK_BYTES // (4 * queries * len(of_texts)))
    keep = min(count, len(of_texts))
    best_texts = [torch.empty(0, keep, dtype=torch.long, device=of_images.device)]
    scores = of_images.new_empty(len(of_texts), 0)
    places = torch.empty(len(of_texts), 0, dtype=torch.long, device=of_images.device)
    numbers = torch.from_numpy(mine).to(of_images.device)
    for start in range(0, images, chunk):
        found = similarities(of_images[start : start + chunk], of_texts)
        best_texts.append(found.topk(keep, dim=1).indices)
        scores = torch.cat([scores, found.T], dim=1)
        here = numbers[start : start + chunk].expand(len(of_texts), -1)
        places = torch.cat([places, here], dim=1)
        scores, kept = scores.topk(min(count, scores.shape[1]), dim=1)
        places = places.gather(1, kept)
    all_scores = np.concatenate(_gather(scores.cpu().numpy()), axis=1)
    all_places = np.concatenate(_gather(places.cpu().numpy()), axis=1)
    order = np.argsort(-all_scores, axis=1, kind="stable")[:, :count]
    return torch.cat(best_texts).cpu().numpy(), np.take_along_axis(all_places, order, axis=1)


def _wanted_texts(
    best_texts: np.ndarray, best_images: np.ndarray, mine: np.ndarray
) -> list[np.ndarray]:
    """For each of our images the texts to match it with: its candidates, and whose it is one."""
    asking = best_images.reshape(-1)
    texts = np.repeat(np.arange(len(best_images)), best_images.shape[1])
    order = np.argsort(asking, kind="stable")
    starts, ends = (np.searchsorted(asking[order], mine, side) for side in ("left", "right"))
    return [
        np.union1d(own, texts[order[start:end]])
        for own, start, end in zip(best_texts, starts, ends, strict=True)
    ]


@dataclass(frozen=True)
class _Scores:
    """Scores of pairs by number, in ascending order of the numbers."""

    pairs: np.ndarray
    scores: np.ndarray

    @classmethod
    def of_all(cls, pairs: np.ndarray, scores: np.ndarray) -> "_Scores":
        """Those of all processes, from each one's own."""
        all_pairs = np.concatenate(_gather(pairs))
        order = np.argsort(all_pairs)
        return cls(all_pairs[order], np.concatenate(_gather(scores))[order])

    def order(self, candidates: np.ndarray, pairs: np.ndarray) -> Ranking:
        """Candidates (N, K) by the scores of `pairs` (N, K), best first."""
        scores = self.scores[np.searchsorted(self.pairs, pairs)]
        order = np.argsort(-scores, axis=1, kind="stable")
        return Ranking(
            np.take_along_axis(candidates, order, axis=1),
            np.take_along_axis(scores, order, axis=1),
        )


def _gather(array: np.ndarray) -> list[np.ndarray]:
    """Every process's array."""
    return gather_object([array]) if is_distributed() else [array]


def _interleave(rows: np.ndarray) -> np.ndarray:
    """Every process's rows, of which process r has those numbered r, r + W, r + 2 W ..."""
    parts = _gather(rows)
    joined = np.empty((sum(map(len, parts)), *rows.shape[1:]), rows.dtype)
    for first, part in enumerate(parts):
        joined[first :: len(parts)] = part
    return joined


@dataclass(frozen=True)
class _Images(Dataset):
    records: Sequence[Record]
    transform: EvalTransform

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Tensor:
        return load_pixels(self.records[index], self.transform)
