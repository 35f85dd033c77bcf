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
from loss_memory import PROMPT, QUERIES, captions
from machine import describe_machine, time_in_turn
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig, T5Config

from blip2ft.data.images import EvalTransform, TrainTransform
from blip2ft.data.loading import load_batches, load_pixels
from blip2ft.data.records import Record
from blip2ft.features.build import use_features
from blip2ft.features.level import VISION
from blip2ft.models.parts import set_train_mode, set_trainable
from blip2ft.tasks.caption import caption_loss, count_labels

PARTS = {"vision": "frozen", "qformer": "full", "projection": "full", "language": "frozen"}
VIT_G = {"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39}
QFORMER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
# family, pixels, image encoder, Q-Former, language model: vocabulary, width, layers
SHAPES: dict[str, tuple[str, int, dict, dict, tuple[int, int, int]]] = {
    "tiny": (
        "opt",
        56,
        {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4},
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        (500, 64, 2),
    ),
    "small": (
        "opt",
        364,
        {"hidden_size": 352, "intermediate_size": 1536, "num_hidden_layers": 8},
        {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 3},
        (3_142, 640, 8),
    ),
    "opt-2.7b": ("opt", 364, VIT_G, QFORMER, (50_304, 2560, 32)),
    "opt-6.7b": ("opt", 364, VIT_G, QFORMER, (50_304, 4096, 32)),
    "flan-t5-xl": ("t5", 364, VIT_G, QFORMER, (32_128, 2048, 24)),
}
FULL_SIZE = {"small": "opt-2.7b"}  # what a shape is like
NORMAL = ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276))
PHOTO = (640, 480)  # COCO's


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


def captioner(shape: str) -> Blip2ForConditionalGeneration:
    """A BLIP-2 of a shape with random weights."""
    family, size, vision, qformer, (vocabulary, width, layers) = SHAPES[shape]
    text: Any
    if family == "opt":
        text = OPTConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            word_embed_proj_dim=width,
            ffn_dim=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=layers,  # OPT's of these sizes have as many
        )
    else:
        text = T5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_ff=5120,
            num_layers=layers,
            num_heads=32,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
        )
    config = Blip2Config(
        vision_config={**_lively(vision, 88), "image_size": size},
        qformer_config=_lively(qformer, 64),
        text_config=text,
        initializer_range=qformer["hidden_size"] ** -0.5,
        num_query_tokens=QUERIES,
        image_token_index=vocabulary - 1,
    )
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)
    return model.eval()


def _lively(part: dict[str, int], head: int) -> dict[str, Any]:
    """Weights that keep variance, where 0.02 would let next to nothing of the image through."""
    heads = max(1, part["hidden_size"] // head)
    return {**part, "num_attention_heads": heads, "initializer_range": part["hidden_size"] ** -0.5}


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
    with _Yes(), FlopCounterMode(display=False) as counter:
        found = model(**batch, use_cache=False)
        found.logits[:, positions:].sum().backward()
    total = counter.get_total_flops()
    encoder = counter.get_flop_counts()[f"{type(model).__name__}.vision_model"]
    return sum(encoder.values()) / total


class _Yes(TorchDispatchMode):
    """The answer to what stock asks of values, which the meta device hasn't: is all unmasked?"""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True
        return func(*args, **(kwargs or {}))


def photos(folder: Path, count: int) -> list[Record]:
    """JPEGs of a photo's size, smooth with some noise, as records."""
    rng, records = np.random.default_rng(0), []
    for i in range(count):
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(PHOTO, Image.Resampling.BICUBIC))
        noisy = smooth + rng.normal(0, 8, smooth.shape)
        path = folder / f"{i}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        records.append(Record(path, i, (), path.name, {}))
    return records


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
