"""Models of every kind that looks at images, and what each is given to look with."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blip2ft.data.batches import Sample, text_layout
from blip2ft.data.pairs import pair_layout
from blip2ft.models.load import load_captioner, load_retriever
from blip2ft.models.vqa import load_vqa

TEXTS = ["a red apple", "the cat on the left of a dog"]  # of two lengths


@dataclass
class Looking:
    """A model, two images (2, 3, h, w), and text for its Q-Former, which may be none."""

    model: Any
    processor: Any
    pixels: Tensor
    text: tuple[Tensor, Tensor] | None

    def batch(self, texts: list[str] = TEXTS) -> dict[str, Tensor]:
        """The images with texts as captions."""
        layout = text_layout(self.model, self.processor, 16)
        pairs = zip(self.pixels, texts, strict=False)
        return layout.collate([Sample(image, "a photo of", text) for image, text in pairs])


def noise(side: int = 28) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def make(kind: str, folder: Callable[[str], Path]) -> Looking:
    """A model of a kind: opt, t5 (captioners), retriever, or vqa, whose Q-Former reads."""
    if kind == "retriever":
        model, processor = load_retriever(folder("retriever"))
        layout = pair_layout(model, processor, 32)
        return Looking(model, processor, noise(), layout.pad(layout.ids(TEXTS)))
    if kind == "vqa":
        model, processor = load_vqa(folder("opt"), stage1=folder("retriever"))
        asked = [Sample(image, text) for image, text in zip(noise(), TEXTS, strict=True)]
        batch = text_layout(model, processor).collate_prompts(asked)
        text = batch["qformer_input_ids"], batch["qformer_attention_mask"]
        return Looking(model, processor, noise(), text)
    model, processor = load_captioner(folder(kind))
    return Looking(model, processor, noise(), None)


@pytest.fixture
def looking_of(opt_folder, t5_folder, retriever_folder):
    """Make a model of a kind."""
    folders = {"opt": opt_folder, "t5": t5_folder, "retriever": retriever_folder}
    return lambda kind: make(kind, folders.__getitem__)


@pytest.fixture(params=["opt", "t5", "retriever", "vqa"])
def looking(request, looking_of) -> Looking:
    """A model of every kind in turn."""
    return looking_of(request.param)


@pytest.fixture(params=["opt", "t5", "retriever"])
def weighing(request, looking_of) -> Looking:
    """A model of every kind that weighs texts in turn."""
    return looking_of(request.param)
