"""A model's look at one image, with or without a text."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import Blip2ForImageTextRetrieval, InstructBlipForConditionalGeneration

from blip2ft.attention.maps import (
    cross_attention,
    itm_gradcam,
    likelihood_gradcam,
)
from blip2ft.data.batches import IGNORE, Sample, text_layout
from blip2ft.data.images import transforms_for, upright_rgb
from blip2ft.data.pairs import pair_layout
from blip2ft.tasks.vqa import ask

LONGEST = 64  # tokens of a caption


@dataclass(frozen=True)
class Look:
    """Where the queries look, and what of it speaks for a text.

    image: upright RGB, which the maps lie over.
    attention: (L, heads, Q, H, W) float32, the share of its attention that a query gives a patch;
      of a text that the Q-Former reads, what it gives after that text.
    layers: the numbers of the L layers, from 0, of those of the Q-Former that look at the image.
    text: None for none.
    score, scored: of 0 to 1, of a text that is weighed, and what it is; None of a question.
    weighed: (L, heads, Q, H, W) float32, from 0 on, of a text that is weighed: see `Weighed`.
    """

    image: Image.Image
    attention: np.ndarray
    layers: tuple[int, ...]
    text: str | None = None
    score: float | None = None
    scored: str | None = None
    weighed: np.ndarray | None = None

    @property
    def map(self) -> np.ndarray:
        """(H, W) float32: the mean over queries, heads and layers."""
        return self.attention.mean((0, 1, 2))

    @property
    def text_map(self) -> np.ndarray | None:
        """(H, W) float32, from 0 on: what of the attention speaks for the text."""
        return None if self.weighed is None else self.weighed.mean((0, 1, 2))


def look(
    model: Any, processor: Any, image: Image.Image, text: str | None = None, *, prompt: str = ""
) -> Look:
    """What a model in eval mode looks at in an image.

    text: what it does depends on the model.
      A retriever reads it, and what speaks for a match is weighed (`itm_gradcam`).
      A Q-Former that reads questions needs it: its queries look where the question points.
      Any other captioner could write it, and what speaks for its words is weighed
      (`likelihood_gradcam`), without its end: it may be a part of a caption.
    prompt: what the model was tuned with: what comes before a caption, or a question's template.

    Raises ValueError for a text that is missing, empty or too long, and for one to a model that
    answers questions without its Q-Former's reading them.
    """
    image = upright_rgb(image)
    _, transform = transforms_for(processor.image_processor)
    pixels = transform(image)
    blocks = enumerate(model.qformer.encoder.layer)
    layers = tuple(number for number, block in blocks if block.has_cross_attention)
    if text is not None and not text.strip():
        raise ValueError("an empty text points at nothing; leave it out, or give words")
    if isinstance(model, InstructBlipForConditionalGeneration):
        question = _question(model, processor, pixels, text, prompt)
        attention = cross_attention(model, pixels[None], text=question)
        return Look(image, _array(attention), layers, text)
    if text is None:
        return Look(image, _array(cross_attention(model, pixels[None])), layers)
    if isinstance(model, Blip2ForImageTextRetrieval):
        scored = "probability of a match"
        found = itm_gradcam(model, pixels[None], *_pair(model, processor, text))
    else:
        scored = "mean probability of its tokens"
        found = likelihood_gradcam(model, _caption(model, processor, pixels, text, prompt))
    score, weighed = float(found.scores[0]), _array(found.weighed)
    return Look(image, _array(found.attention), layers, text, score, scored, weighed)


def most_at(heat: np.ndarray) -> str:
    """Where a map (H, W) is highest: the middle of that patch, in per cent of the image."""
    rows, columns = heat.shape
    row, column = divmod(int(heat.argmax()), columns)
    return f"{100 * (column + 0.5) / columns:.0f} % across, {100 * (row + 0.5) / rows:.0f} % down"


def _array(maps: Tensor) -> np.ndarray:
    return maps[0].cpu().numpy()


def _question(
    model: Any, processor: Any, pixels: Tensor, text: str | None, prompt: str
) -> tuple[Tensor, Tensor]:
    if text is None:
        raise ValueError(
            "this model's Q-Former reads the question, and looks where it points: give a question "
            "as text (--text)"
        )
    asked = ask(prompt, text) if "{}" in prompt else text
    batch = text_layout(model, processor).collate_prompts([Sample(pixels, asked)])
    return batch["qformer_input_ids"], batch["qformer_attention_mask"]


def _pair(model: Any, processor: Any, text: str) -> tuple[Tensor, Tensor]:
    positions = model.config.qformer_config.max_position_embeddings
    tokens = len(processor.tokenizer(text)["input_ids"])
    if tokens > positions:
        raise ValueError(
            f"the text has {tokens} tokens and the model reads {positions}; shorten it"
        )
    layout = pair_layout(model, processor, positions)
    return layout.pad(layout.ids([text]))


def _caption(
    model: Any, processor: Any, pixels: Tensor, text: str, prompt: str
) -> dict[str, Tensor]:
    if "{}" in prompt:
        raise ValueError(
            "this model answers questions that its Q-Former doesn't read, so the question changes "
            "nothing in where it looks; leave the text out"
        )
    layout = text_layout(model, processor, max_target_tokens=LONGEST)
    batch = layout.collate([Sample(pixels, prompt, text)])
    labels = batch["labels"][0]
    words = (labels != IGNORE).nonzero().flatten()
    if labels[words[-1]] != layout.end_token_id:
        raise ValueError(f"the text has more than {LONGEST - 1} tokens; shorten it")
    labels[words[-1]] = IGNORE
    return batch
