"""A retriever at work: features of photos and words, and how well the two match."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip2ft.captioner import default_device
from blip2ft.data.images import transforms_for
from blip2ft.data.pairs import pair_layout
from blip2ft.export import DTYPES
from blip2ft.finetuned import is_run, load_finetuned
from blip2ft.losses import similarities
from blip2ft.models.adapters import read_description
from blip2ft.models.load import load_retriever
from blip2ft.models.qformer import project_images

logger = logging.getLogger(__name__)


class Encoder:
    """A model on its device with what prepares its inputs.

    folder, image_size, quantize: as for `load_retriever`, or the folder of a run's adapter; dtype:
    "fp32", "bf16", or "auto" for bf16 on a GPU that has it.
    """

    def __init__(
        self,
        folder: Path,
        image_size: int | None,
        dtype: str = "auto",
        quantize: Mapping[str, str] | None = None,
    ) -> None:
        self.device = default_device()
        half = self.device.type == "cuda" and torch.cuda.is_bf16_supported(
            including_emulation=False
        )
        if dtype != "auto" and dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}: allowed are auto, {', '.join(DTYPES)}")
        self.dtype = DTYPES[("bf16" if half else "fp32") if dtype == "auto" else dtype]
        if is_run(folder):
            model, processor = _load_trained(folder, image_size, self.dtype, quantize)
        else:
            model, processor = load_retriever(
                folder,
                image_size=image_size,
                dtype=self.dtype,
                quantize=quantize,
                objectives={"itc": 1.0, "itm": 1.0},  # the head of ITG isn't needed, nor looked for
            )
        self.model = model.to(self.device)
        self.tokens = model.config.qformer_config.max_position_embeddings
        self.layout = pair_layout(model, processor, self.tokens)
        _, self.transform = transforms_for(processor.image_processor)

    @torch.inference_mode()
    def photos(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> features (B, Q, D) of unit length."""
        return self.model.encode_images(project_images(self.model.qformer, self._see(pixels)))

    def ids(self, text: str) -> Tensor:
        """(1, T) int64; what is longer than the model's positions is cut off, with a log line."""
        length = len(self.layout.tokenizer(text)["input_ids"])
        if length > self.tokens:
            logger.warning(
                "the query has %d tokens and the model reads %d: the rest is cut off",
                length,
                self.tokens,
            )
        return torch.tensor(self.layout.ids([text]), device=self.device)

    @torch.inference_mode()
    def text(self, ids: Tensor) -> Tensor:
        """(1, T) -> features (D,) in fp32, of unit length."""
        return self.model.encode_texts(ids, torch.ones_like(ids))[0].float()

    @torch.inference_mode()
    def match(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Similarity plus matching logit (B,) in fp32 of photos (B, 3, H, W) with one text (1, T).

        Paper, section 4.4.
        """
        keys = project_images(self.model.qformer, self._see(pixels))
        similar = similarities(self.model.encode_images(keys), self.text(ids)[None])[:, 0]
        rows = ids.expand(len(pixels), -1)
        return similar + self.model.match([(keys, 1)], rows, torch.ones_like(rows))[:, 1]

    def _see(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.device, self.dtype)
        return self.model.vision_model(pixels).last_hidden_state


def _load_trained(
    folder: Path,
    image_size: int | None,
    dtype: torch.dtype,
    quantize: Mapping[str, str] | None,
) -> tuple[Any, Any]:
    description = read_description(folder)
    if description["task"] != "retrieval":
        raise ValueError(
            f"{folder} was trained for {description['task']}, and doesn't compare images with "
            "texts; name a run of recipes/retrieval.py"
        )
    if image_size not in (None, description["image_size"]):
        raise ValueError(
            f"{folder} was trained at {description['image_size']} px, not {image_size}; leave the "
            "image size out"
        )
    model, processor, _ = load_finetuned(folder, dtype=dtype, quantize=quantize)
    return model, processor
