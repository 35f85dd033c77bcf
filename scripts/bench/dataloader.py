"""Batches of photos and captions from JPEGs: ours beside transformers' processor in a DataLoader.

    python scripts/bench/dataloader.py --shape small --photo 1600x1200

Both load the same files in the same order, whole images without augmentation, in as many workers,
with captions padded to the longest of a batch. The peer is what transformers' guides give, made
correct: image tokens before the text, labels on the caption alone. Ours lets the JPEG decoder halve
images that are more than twice as large as the model sees them, so pixels differ a little: told is
the largest mean difference of an image, in steps of 8 bits, by the decoder alone (`--whole` turns
it off: then none is left). The first batches, for which workers start, count for neither.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from captioners import photos
from machine import describe_machine
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Blip2Processor

from blip2ft.data.batches import IGNORE, text_layout
from blip2ft.data.images import TrainTransform, transforms_for
from blip2ft.data.loading import load_batches
from blip2ft.data.order import Key
from blip2ft.data.records import Record
from blip2ft.models.load import load_captioner
from blip2ft.tasks.caption import caption_pairs

ROOT = Path(__file__).resolve().parents[2]
PIXELS = {"tiny": 64, "small": 224, "opt-2.7b": 364, "opt-6.7b": 364, "flan-t5-xl": 364}
PROMPT = "a photo of"
SKIPPED = 2  # batches


class Photos(Dataset):
    """The peer's samples: an opened image and its caption."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        record = self.records[index]
        return Image.open(str(record.image)).convert("RGB"), record.captions[0]


class Collate:
    """The peer's batches, by transformers' processor."""

    def __init__(self, processor: Blip2Processor) -> None:
        self.processor = processor

    def __call__(self, samples: list[tuple[Image.Image, str]]) -> dict[str, Tensor]:
        images, captions = zip(*samples, strict=True)
        texts = [f"{PROMPT} {caption}\n" for caption in captions]
        batch = self.processor(images=list(images), text=texts, padding=True, return_tensors="pt")
        prompt = self.processor.tokenizer(PROMPT)["input_ids"]
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE)
        labels[:, : self.processor.num_query_tokens + len(prompt)] = IGNORE
        return {**batch, "labels": labels}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", choices=list(PIXELS), default="small")
    parser.add_argument("--photo", default="640x480", help="width x height of the files")
    parser.add_argument("--whole", action="store_true", help="decode at full size")
    parser.add_argument("--images", type=int, default=32, help="of a batch")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    width, height = map(int, options.photo.split("x"))
    model, processor = load_captioner(ROOT / "data" / "tiny-blip2")
    layout = text_layout(model, processor)
    size = PIXELS[options.shape]
    processor.image_processor.size = {"height": size, "width": size}
    augment, _ = transforms_for(processor.image_processor, scale=None, flip=False)
    if options.whole:
        augment = WholeImages(size, augment.mean, augment.std, scale=None, flip=False)
    pinned = options.device == "cuda"

    with tempfile.TemporaryDirectory(prefix="blip2ft-bench-") as folder:
        records = photos(Path(folder), options.batches * options.images, (width, height))
        numbers = range(len(records))
        batches = [list(numbers)[i :: options.batches] for i in range(options.batches)]
        samples = caption_pairs(records, augment, PROMPT, seed=0)
        collate = Collate(processor)

        def ours() -> Iterable[dict[str, Tensor]]:
            keys = [[Key(0, number) for number in batch] for batch in batches]
            return load_batches(
                samples, keys, layout.collate, workers=options.workers, pin_memory=pinned
            )

        def peer() -> Iterable[dict[str, Tensor]]:
            return DataLoader(
                Photos(records),
                batch_sampler=batches,
                collate_fn=collate,
                num_workers=options.workers,
                pin_memory=pinned,
            )

        difference = compare(ours(), peer(), augment)
        speeds: dict[str, list[float]] = {"ours": [], "peer": []}
        for _ in range(options.repeats):
            for name, loader in (("ours", ours()), ("peer", peer())):
                speeds[name].append(images_per_second(iter(loader), options.images))

    fast, slow = (sorted(found)[options.repeats // 2] for found in speeds.values())
    print(f"{options.photo} to {size}, {options.workers} workers")
    print(f"ours {fast:.1f} images/s, transformers' processor {slow:.1f} images/s")
    print(f"pixels of an image differ by {difference:.2f} of 255 in the mean at most, texts do not")
    print(describe_machine(options.device))
    result = {"ratio": round(fast / slow, 2), "max_difference": round(difference, 3)}
    print(json.dumps({**result, "images_per_second": round(fast, 1), "photo": options.photo}))


class WholeImages(TrainTransform):
    """Ours without the decoder's smaller sizes."""

    @property
    def size_hint(self) -> None:  # type: ignore[override]
        return None


def compare(
    ours: Iterable[dict[str, Tensor]], peer: Iterable[dict[str, Tensor]], augment: TrainTransform
) -> float:
    """The largest mean difference of an image's pixels, of 255; SystemExit where texts differ."""
    largest = 0.0
    for a, b in zip(ours, peer, strict=True):
        for name in ("input_ids", "attention_mask", "labels"):
            if not torch.equal(a[name], b[name]):
                raise SystemExit(f"{name} differ: {a[name][0].tolist()}, {b[name][0].tolist()}")
        steps = 255 * torch.tensor(augment.std)[:, None, None]
        means = ((a["pixel_values"] - b["pixel_values"]).abs() * steps).mean((1, 2, 3))
        largest = max(largest, float(means.max()))
    return largest


def images_per_second(loaded: Iterator[Any], size: int) -> float:
    for _ in range(SKIPPED):
        next(loaded)
    start = time.perf_counter()
    count = sum(1 for _ in loaded)
    return count * size / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
