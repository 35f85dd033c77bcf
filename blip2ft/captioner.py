"""Captions for images, and answers to questions about them, in one call."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from blip2ft.data.batches import Sample, text_layout
from blip2ft.data.images import open_image, transforms_for, upright_rgb
from blip2ft.tasks.caption import generate
from blip2ft.tasks.vqa import ask as fill_template

DEFAULT_PROMPT = "a photo of"
QUESTION_TEMPLATE = "Question: {} Answer:"


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
    asked = [(image, prompt) for image in images]
    return _answer(model, processor, asked, batch_size, options)


def ask(
    model: Any,
    processor: Any,
    questions: Sequence[tuple[str | Path | bytes | Image, str]],
    *,
    template: str = QUESTION_TEMPLATE,
    batch_size: int = 16,
    num_beams: int = 5,
    max_new_tokens: int = 10,
    length_penalty: float = -1.0,
    **options: Any,
) -> list[str]:
    """One answer for each (image, question), in order; decoded as in the paper's section 4.3.

    model, processor: as `load_vqa` returns them. template: what a question becomes; it has to be
    that of the training. images and further options: see `caption`.

    Raises ValueError for an image that is missing or broken, and for an empty question.
    """
    decoding = {"num_beams": num_beams, "max_new_tokens": max_new_tokens}
    options |= {**decoding, "length_penalty": length_penalty}
    asked = [(image, fill_template(template, question)) for image, question in questions]
    return _answer(model, processor, asked, batch_size, options)


def _answer(
    model: Any,
    processor: Any,
    asked: Sequence[tuple[Any, str]],
    batch_size: int,
    options: dict[str, Any],
) -> list[str]:
    layout = text_layout(model, processor, max_target_tokens=1)
    _, transform = transforms_for(processor.image_processor)
    answers: list[str] = []
    dtype = next(model.vision_model.parameters()).dtype
    for start in range(0, len(asked), batch_size):
        samples = []
        for source, prompt in asked[start : start + batch_size]:
            if isinstance(source, Image):
                image = upright_rgb(source)
            else:
                path = Path(source) if isinstance(source, str) else source
                image = open_image(path)
            samples.append(Sample(transform(image).to(dtype), prompt))
        answers += generate(model, layout, samples, **options)
    return answers


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
