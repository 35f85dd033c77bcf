"""BLIP-2s of several shapes with random weights, and photos: what benchmarks of training share."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from loss_memory import QUERIES
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig, T5Config

from blip2ft.data.records import Record

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
PHOTO = (640, 480)  # COCO's
CAPTION = "a brown dog asleep on a red sofa beside two children who read a very large book"


def captioner(shape: str, pixels: int | None = None) -> Blip2ForConditionalGeneration:
    """A BLIP-2 of a shape with random weights; of images of `pixels`, where not the shape's own."""
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
        vision_config={**_lively(vision, 88), "image_size": pixels or size},
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


class Unmasked(TorchDispatchMode):
    """The answer to what stock asks of values, which the meta device hasn't: is all unmasked?"""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True
        return func(*args, **(kwargs or {}))


def photos(folder: Path, count: int, size: tuple[int, int] = PHOTO) -> list[Record]:
    """JPEGs of a photo's size, smooth with some noise, as records with a caption each."""
    rng, words, records = np.random.default_rng(0), CAPTION.split(), []
    for i in range(count):
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
        noisy = smooth + rng.normal(0, 8, smooth.shape)
        path = folder / f"{i}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        caption = " ".join(words[: 1 + i % len(words)])
        records.append(Record(path, i, (caption,), path.name, {}))
    return records
