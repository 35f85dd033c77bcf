"""Captions for images in one call."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from blip2ft.data.batches import Sample, text_layout
from blip2ft.data.images import open_image, transforms_for, upright_rgb
from blip2ft.tasks.caption import generate

DEFAULT_PROMPT = "a photo of"


def caption(
    model: Blip2ForConditionalGeneration,
    processor: Blip2Processor,
    images: Sequence[str | Path | bytes | Image],
    *,
    prompt: str = DEFAULT_PROMPT,
    batch_size: int = 16,
    **options: Any,
) -> list[str]:
    """One caption, or one answer to any instruction in `prompt`, for each image, in order.

    images: paths, bytes of image files, or opened Pillow images.
    options: num_beams (5), max_new_tokens (30), length_penalty (1.0) and what else transformers'
    `generate` takes.

    Raises ValueError for an image that is missing or broken, naming it.
    """
    layout = text_layout(model, processor, max_target_tokens=1)
    _, transform = transforms_for(processor.image_processor)
    captions: list[str] = []
    dtype = next(model.vision_model.parameters()).dtype
    for start in range(0, len(images), batch_size):
        samples = []
        for source in images[start : start + batch_size]:
            if isinstance(source, Image):
                image = upright_rgb(source)
            else:
                path = Path(source) if isinstance(source, str) else source
                image = open_image(path)
            samples.append(Sample(transform(image).to(dtype), prompt))
        captions += generate(model, layout, samples, **options)
    return captions


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
