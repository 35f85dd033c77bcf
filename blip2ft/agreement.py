"""Whether models answer alike: their logits and captions on some images of noise."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Blip2ForImageTextRetrieval

from blip2ft.data.batches import Sample, text_layout
from blip2ft.data.pairs import pair_layout
from blip2ft.tasks.caption import generate

IMAGES, TOKENS = 4, 16
TEXTS = ("a dog", "a red car and a small dog", "two people", "a photo of the sea")


@dataclass(frozen=True)
class Answers:
    """What a model answers: captions, and the logits of its forward in fp32.

    Logits of padding and of image tokens, which nothing reads, are left out. Those of a retriever
    are matching and similarity; it has no captions.
    """

    logits: Tensor
    captions: tuple[str, ...]

    @property
    def largest(self) -> float:
        return float(self.logits.abs().max())

    def difference(self, others: "Answers") -> float:
        """The largest difference of a logit; NaN where one isn't a number."""
        return float((self.logits - others.logits).abs().max())

    def same_captions(self, others: "Answers") -> int:
        """How many captions are the same."""
        return sum(a == b for a, b in zip(self.captions, others.captions, strict=True))


@torch.inference_mode()
def answers(model: Any, processor: Any, description: Mapping[str, Any]) -> Answers:
    """The answers of a model in eval mode that was trained as `description` says.

    Logits are those of stock's forward with a text given; captions are decoded greedily.
    """
    size = model.config.vision_config.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, size, size, generator=generator)
    if description["task"] == "retrieval":
        layout = pair_layout(model, processor, max_tokens=description["max_text_tokens"])
        return Answers(_scores(model, images, *layout.pad(layout.ids(TEXTS))), ())
    prompt = description["prompt"].replace("{}", "what is it?")
    texts = text_layout(model, processor, max_target_tokens=TOKENS)
    samples = [Sample(image, prompt, text) for image, text in zip(images, TEXTS, strict=True)]
    batch = {key: value.to(model.device) for key, value in texts.collate(samples).items()}
    del batch["labels"]
    logits = model(**batch).logits.float()
    is_text = (batch["input_ids"] != texts.image_token_id) & batch["attention_mask"].bool()
    if texts.is_encoder_decoder:
        is_text = batch["decoder_attention_mask"].bool()
    logits = logits[is_text].cpu()
    asked = [Sample(image, prompt) for image in images]
    return Answers(logits, tuple(generate(model, texts, asked, num_beams=1, max_new_tokens=TOKENS)))


def _scores(model: Blip2ForImageTextRetrieval, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    token = model.config.image_token_index
    if token is not None:  # stock then expects image tokens before the text
        places = (model.config.num_query_tokens, 0)
        ids = functional.pad(ids, places, value=token)
        mask = functional.pad(mask, places, value=1)
    inputs = {"pixel_values": images, "input_ids": ids, "attention_mask": mask}
    inputs = {key: value.to(model.device) for key, value in inputs.items()}
    scores = [
        model(**inputs, use_image_text_matching_head=matching).logits_per_image
        for matching in (True, False)
    ]
    return torch.cat([score.float().cpu().flatten() for score in scores])
