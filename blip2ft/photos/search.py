"""An index and its model: the photos that fit words, or another photo."""

import bisect
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip2ft.counted import counted
from blip2ft.data.images import open_image
from blip2ft.losses import similarities
from blip2ft.photos.encoder import Encoder
from blip2ft.photos.files import is_changed, look_at, read_photos
from blip2ft.photos.fingerprint import check_bits, checked_maker
from blip2ft.photos.nearest import (
    FAISS_FROM,
    arrange,
    best_first,
    import_faiss,
    nearest_photos,
    similar_to_image,
    similar_to_text,
)
from blip2ft.photos.shards import read_shards

logger = logging.getLogger(__name__)

RERANK = {"cpu": 32, "cuda": 128}  # photos that are opened again and matched


@dataclass(frozen=True)
class Match:
    """A photo that was found; image_id is the same for copies of it."""

    path: str
    score: float
    image_id: str


class PhotoIndex:
    """An index and its model, which the first search loads, for one search after the other."""

    def __init__(
        self,
        folder: str | Path,
        *,
        model: str | Path | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        quantize: Mapping[str, str] | None = None,
    ) -> None:
        """See `search_photos`."""
        self.folder = Path(folder)
        self.maker, self.at = checked_maker(self.folder, model, revision, None)
        self.dtype, self.quantize = dtype, quantize
        self.shards = read_shards(self.folder)
        if not self.shards:
            raise ValueError(f"{folder} holds no photo yet: blip2ft index FOLDER --out {folder}")
        self.photos = [photo for shard in self.shards for photo in shard.photos]
        # of a photo that was indexed again, the last row counts
        self.current = {photo.path: row for row, photo in enumerate(self.photos)}
        self._faiss: Any = None

    @cached_property
    def encoder(self) -> Encoder:
        quantize = self.maker.quantize if self.quantize is None else self.quantize
        with torch.inference_mode(False):  # whoever asks for it first, its weights are plain ones
            return Encoder(self.at, self.maker.image_size, self.dtype, quantize)

    @torch.inference_mode()
    def search(
        self,
        query: str | None = None,
        *,
        image: str | Path | None = None,
        top: int = 20,
        rerank: int | None = None,
        faiss: bool | None = None,
    ) -> list[Match]:
        """The `top` photos for a query or an image file, best first.

        A query is compared with each photo by the best of its Q features. Of the most similar,
        `rerank` (and at least `top`) are opened again, and scored by similarity plus matching
        logit; 0 for none, None for 32 on a CPU and 128 on a GPU. With an image, the score is the
        mean over its features of the best similarity to one of the photo's; 1 for the same photo.

        faiss: find the most similar by faiss; None where it is installed, from a million photos.

        Photos that are gone from the disk are left out, with a log line.
        """
        check_search(query, image, top, rerank, faiss)
        if image is not None:
            check_bits(self.folder, self.maker, self.quantize)
            pixels = self.encoder.transform(open_image(image))[None]
            scores: Any = similar_to_image(self.shards, self.encoder.photos(pixels)[0].float())
            return self._matches(self._present(best_first(scores), top), scores)
        assert query is not None
        ids = self.encoder.ids(query)
        text = self.encoder.text(ids)
        if rerank is None:
            rerank = RERANK[self.encoder.device.type]
        wanted = max(top, rerank) if rerank else top
        if faiss is None:
            faiss = len(self.photos) >= FAISS_FROM and find_spec("faiss") is not None
        if faiss:
            rows = self._present(self._by_faiss(text, wanted), wanted)
            scores = self._scores(rows, text)
            rows.sort(key=lambda row: -float(scores[row]))
        else:
            scores = similar_to_text(self.shards, text)
            rows = self._present(best_first(scores), wanted)
        return self._rerank(rows, ids)[:top] if rerank else self._matches(rows, scores)

    def _present(self, rows: Iterable[int], count: int) -> list[int]:
        """The first `count` of `rows` whose photos are on the disk."""
        taken: dict[int, None] = {}
        gone = changed = 0
        for row in rows:
            if len(taken) == count:
                break
            photo = self.photos[row]
            if self.current[photo.path] != row or row in taken:
                continue
            now = look_at(photo.path)
            if now is None:
                gone += 1
                continue
            changed += is_changed(photo, now)
            taken[row] = None
        if gone:
            logger.warning("left out, as gone from the disk: %s", counted(gone, "photo"))
        if changed:
            logger.warning("changed since, so index again: %s", counted(changed, "photo"))
        if not taken:
            raise ValueError(
                f"none of the {len(self.current)} photos of {self.folder} is there now, such as "
                f"{self.photos[0].path}; connect the disk, or index them where they are"
            )
        return list(taken)

    def _by_faiss(self, text: Tensor, count: int) -> Iterator[int]:
        """Rows, most similar first; more are looked for when the first `count` don't do."""
        if self._faiss is None:
            self._faiss = arrange(self.folder, self.shards)
        while True:
            yield from nearest_photos(self._faiss, self.shards, text, count)
            if count >= len(self.photos):
                return
            count *= 4

    def _scores(self, rows: Sequence[int], text: Tensor) -> dict[int, float]:
        """Similarities of a few photos."""
        starts = list(itertools.accumulate((len(s.photos) for s in self.shards), initial=0))
        shards = [bisect.bisect(starts, row) - 1 for row in rows]
        features = [
            self.shards[i].row(row - starts[i]) for i, row in zip(shards, rows, strict=True)
        ]
        found = similarities(torch.stack(features).to(text.device), text[None])[:, 0]
        return dict(zip(rows, found.tolist(), strict=True))

    def _rerank(self, rows: Sequence[int], ids: Tensor) -> list[Match]:
        workers = 8 if self.encoder.device.type == "cuda" else 0
        photos = [self.photos[row] for row in rows]
        found = []
        for batch in read_photos(photos, self.encoder.transform, batch_size=8, workers=workers):
            for problem in batch.broken:
                logger.warning("left out: %s", problem)
            if batch.decoded:
                scores = self.encoder.match(batch.pixels, ids).tolist()
                pairs = zip(batch.decoded, scores, strict=True)
                found += [Match(photo.path, score, photo.image_id) for photo, score in pairs]
        return sorted(found, key=lambda match: -match.score)

    def _matches(self, rows: Sequence[int], scores: Any) -> list[Match]:
        chosen = [(self.photos[row], float(scores[row])) for row in rows]
        return [Match(photo.path, score, photo.image_id) for photo, score in chosen]


def check_search(
    query: str | None,
    image: str | Path | None,
    top: int = 20,
    rerank: int | None = None,
    faiss: bool | None = None,
) -> None:
    """Raise ValueError for arguments of a search that don't fit together, before a model loads."""
    if (query is None) == (image is None):
        raise ValueError("search for a query or for an image (--image FILE): one of the two")
    if query is not None and not query.strip():
        raise ValueError('the query is empty; say what to look for, such as "a red flag"')
    if image is not None and (rerank or faiss):
        raise ValueError("an image is compared by features alone: leave rerank and faiss out")
    if top < 1 or (rerank or 0) < 0:
        raise ValueError(f"top is {top}, rerank is {rerank}: allowed are from 1, and from 0")
    if image is not None:
        open_image(image)
    if faiss:
        import_faiss()
