"""Training with a frozen image encoder: features kept on disk beside features computed each step.

    python scripts/bench/cache.py --shape small

Both train the same captioner on the same JPEGs, from the file to AdamW's step: Q-Former and
projection learn, image encoder and language model are frozen, images aren't augmented. The peer
opens and encodes every image every time, without autograd in the frozen encoder, as the recipe
does without a cache; so what is compared is the cache alone. The first pass over the data, which
computes the features, is timed by itself.

`small` is a quarter of ViT-g, Q-Former and OPT-2.7B in width, at their 364 px (677 tokens), with 12
and 32 layers cut to a quarter too, and ViT-g's 39 to 8, not 10: at this width attention weighs
more, and with 8 the encoder's share of a step's operations is about what it is at full size. Both
shares are counted (PyTorch's FlopCounterMode, on the meta device) and printed: 1 / (1 - share) is
what a cache can give where operations alone cost time.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from captioners import FULL_SIZE, SHAPES, Unmasked, captioner, photos
from loss_memory import PROMPT, QUERIES, captions
from machine import describe_machine, time_in_turn
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import Blip2ForConditionalGeneration

from blip2ft.data.images import EvalTransform, TrainTransform
from blip2ft.data.loading import load_batches, load_pixels
from blip2ft.data.records import Record
from blip2ft.features.build import use_features
from blip2ft.features.level import VISION
from blip2ft.models.parts import set_train_mode, set_trainable
from blip2ft.tasks.caption import caption_loss, count_labels

PARTS = {"vision": "frozen", "qformer": "full", "projection": "full", "language": "frozen"}
NORMAL = ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--dtype", choices=["bf16", "fp32", "int8"], default="bf16")
    parser.add_argument("--images", type=int, default=8, help="of a step")
    parser.add_argument("--steps", type=int, default=4, help="of a pass over the data")
    parser.add_argument("--caption", type=int, default=16, help="tokens of the longest caption")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    precision = "bf16" if options.device == "cuda" else "no"
    accelerator = Accelerator(cpu=options.device == "cpu", mixed_precision=precision)
    model = captioner(options.shape).to(accelerator.device)
    set_trainable(model, PARTS, torch.bfloat16 if precision == "bf16" else torch.float32)
    # what is frozen is shared
    frozen = (model.vision_model.embeddings, model.vision_model.encoder, model.language_model)
    cached = copy.deepcopy(model, {id(part): part for part in frozen})
    full = FULL_SIZE.get(options.shape, options.shape)
    share, at_full_size = (encoder_share(each, options.caption) for each in (options.shape, full))

    with tempfile.TemporaryDirectory(prefix="blip2ft-bench-") as folder:
        records = photos(Path(folder), options.steps * options.images)
        size = model.config.vision_config.image_size
        pixels = TrainTransform(size, *NORMAL, scale=None, flip=False)
        unused = EvalTransform(size, *NORMAL)
        start = time.perf_counter()
        features, _ = use_features(
            cached,
            VISION,
            folder=f"{folder}/features",
            dtype=options.dtype,
            name=options.shape,
            train=records,
            evaluated=[],
            transforms=(pixels, unused),
            accelerator=accelerator,
            workers=options.workers,
        )
        built = time.perf_counter() - start
        ours = trainer(cached, records, features, options, accelerator)
        peer = trainer(model, records, pixels, options, accelerator)
        (found, gradient), (expected, wanted) = ours(), peer()
        fast, slow = time_in_turn((ours, peer), options.repeats, options.device)
        kept = sum(file.stat().st_size for file in Path(folder).glob("features/*/*.rows"))

    losses = max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))
    gradients = float((gradient - wanted).norm() / wanted.norm())
    print(
        f"the encoder has {share:.2f} of a step's operations, so {1 / (1 - share):.1f} times at "
        f"most by these; at full size ({full}) {at_full_size:.2f}"
    )
    count = len(records)
    print(f"ours {count / fast:.2f} images/s, without cache {count / slow:.2f} images/s")
    print(f"features of {count} images: {kept / count:,.0f} bytes each, computed in {built:.1f} s")
    print(
        f"the losses of {len(found)} steps differ by {losses:.1e} of themselves, the first one's "
        f"gradient by {gradients:.1e}"
    )
    print(describe_machine(options.device))
    result = {"ratio": round(slow / fast, 2), "max_difference": max(losses, gradients)}
    result |= {"dtype": options.dtype, "images_per_second": round(count / fast, 2)}
    print(json.dumps({**result, "share": round(share, 3), "full_size": round(at_full_size, 3)}))


def encoder_share(shape: str, longest: int) -> float:
    """The image encoder's share of a training step's operations."""
    family, size, *_, (vocabulary, _, _) = SHAPES[shape]
    with torch.device("meta"):
        model = captioner(shape)
    model.set_attn_implementation("eager")
    set_trainable(model, PARTS)
    batch = captions(family, vocabulary, 2, longest)
    batch["pixel_values"] = torch.empty(2, 3, size, size)
    batch = {key: value.to("meta") for key, value in batch.items()}
    # every position has logits here, in training those of captions alone
    positions = PROMPT + QUERIES if family == "opt" else 0
    with Unmasked(), FlopCounterMode(display=False) as counter:
        found = model(**batch, use_cache=False)
        found.logits[:, positions:].sum().backward()
    total = counter.get_total_flops()
    encoder = counter.get_flop_counts()[f"{type(model).__name__}.vision_model"]
    return sum(encoder.values()) / total


def trainer(
    model: Blip2ForConditionalGeneration,
    records: list[Record],
    transform: Any,
    options: argparse.Namespace,
    accelerator: Accelerator,
) -> Callable[[], tuple[list[float], Tensor]]:
    """A pass over the data, from files to updated weights.

    It gives the losses, and the gradient of the first as one vector.
    """
    family, _, _, _, (vocabulary, _, _) = SHAPES[options.shape]
    texts = captions(family, vocabulary, options.images, options.caption)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    set_train_mode(model)

    def train() -> tuple[list[float], Tensor]:
        losses, first = [], torch.empty(0)
        for step, pixels in enumerate(_loaded(records, transform, options)):
            batch = {**texts, "pixel_values": pixels}
            batch = {key: value.to(options.device) for key, value in batch.items()}
            torch.manual_seed(step)  # the same dropout
            with accelerator.autocast():
                loss = caption_loss(model, batch) / count_labels(batch)
            loss.backward()
            if step == 0:
                first = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return torch.stack(losses).tolist(), first

    return train


def _loaded(records: list[Record], transform: Any, options: argparse.Namespace) -> Iterator[Tensor]:
    numbers = list(range(len(records)))
    size = options.images
    batches = [numbers[i : i + size] for i in range(0, len(numbers), size)]
    yield from load_batches(
        _Photos(records, transform),
        batches,
        torch.stack,
        workers=options.workers,
        pin_memory=options.device == "cuda",
    )


class _Photos(Dataset):
    def __init__(self, records: list[Record], transform: Any) -> None:
        self.records, self.transform = records, transform

    def __getitem__(self, index: int) -> Tensor:
        # whole images, unflipped: nothing is drawn
        return load_pixels(self.records[index], self.transform, np.random.default_rng(0))


if __name__ == "__main__":
    main()
