"""One image with one of its texts: what every task that trains on captions takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from blip2ft.data.broken import Broken, broken_image
from blip2ft.data.images import TrainTransform
from blip2ft.data.loading import load_pixels
from blip2ft.data.order import Key
from blip2ft.data.records import Record
from blip2ft.data.shard_records import Records
from blip2ft.data.stream import Stream


class ImageText(NamedTuple):
    """pixels: (3, H, W) float32; text: a caption; record: the image's number, as for all its
    captions."""

    pixels: Tensor
    text: str
    record: int


@dataclass(frozen=True)
class ImageTexts(Dataset):
    """Images with their captions, augmented; what is drawn depends on seed, epoch and sample alone,
    never on the worker.

    pairs: record and caption of each sample. None takes each record as one sample and draws one of
      its captions every epoch, as nobody knows how many a stream has.
    skip: a sample whose image can't be read is `Broken`, else an error.
    """

    records: Sequence[Record] | Records
    pairs: Sequence[tuple[int, int]] | None
    transform: TrainTransform
    seed: int
    skip: bool

    def __len__(self) -> int:
        return len(self.records) if self.pairs is None else len(self.pairs)

    def length(self, key: Key) -> int:
        """Characters of a sample's text; only where `pairs` are given."""
        assert self.pairs is not None
        number, caption = self.pairs[key.sample]
        record = self.records[number]
        assert isinstance(record, Record)
        return len(record.captions[caption])

    def origin(self, key: Key) -> str:
        """Which image a sample has and where it was named, for messages."""
        found = self.records[key.sample if self.pairs is None else self.pairs[key.sample][0]]
        return found.origin if isinstance(found, Broken) else f"{found.image_id} ({found.origin})"

    def __getitem__(self, key: Key) -> ImageText | Broken:
        rng = np.random.default_rng([self.seed, key.epoch, key.sample])
        if self.pairs is None:
            number, caption = key.sample, None
        else:
            number, caption = self.pairs[key.sample]
        found = self.records[number]
        if isinstance(found, Broken):
            return found
        if caption is None:
            caption = int(rng.integers(len(found.captions)))
        try:
            pixels = load_pixels(found, self.transform, rng)
        except ValueError as error:
            return broken_image(found.origin, error, skip=self.skip)
        return ImageText(pixels, found.captions[caption], number)


def image_texts(
    source: Sequence[Record] | Stream, transform: TrainTransform, seed: int, *, skip: bool = False
) -> ImageTexts:
    """The training samples of `source`: of records one for each caption, as the original counts
    them; of a stream one for each image.

    skip: leave out records whose image can't be read; of a stream they always are.
    """
    if isinstance(source, Stream):
        return ImageTexts(source.records, None, transform, seed, skip=True)
    pairs = [(i, j) for i, record in enumerate(source) for j in range(len(record.captions))]
    return ImageTexts(source, pairs, transform, seed, skip)
