"""Pairs of an image and a text, for models that compare the two."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from blip2ft.data.entries import IMAGE_TOKEN


@dataclass(frozen=True, slots=True)
class Pair:
    """One image with one text that belongs to it.

    pixel_values: (3, H, W) float, normalised, or kept features (S, D); image: the image's number,
    the same in all its pairs.
    """

    pixel_values: Tensor
    text: str
    image: int


@dataclass(frozen=True)
class PairLayout:
    """Texts as the Q-Former reads them: `[CLS] a dog on the grass [SEP]`, padded on the right.

    Longer texts are cut to `max_tokens`, special tokens included; LAVIS trains with 32 (stage 1)
    and 35 (retrieval).
    """

    tokenizer: Any
    max_tokens: int = 35

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; ValueError for an empty one, and for one with the image token."""
        for text in texts:
            if not text.strip():
                raise ValueError("an empty text can't be compared with images; leave it out")
            if IMAGE_TOKEN in text:
                raise ValueError(f"the text {text!r} holds the image token; take it out")
        cut = {"truncation": True, "max_length": self.max_tokens}
        return self.tokenizer(list(texts), **cut)["input_ids"]

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask, both (B, T) int64, T the longest of `rows`."""
        tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
        ids = pad_sequence(tensors, True, self.tokenizer.pad_token_id or 0)
        mask = pad_sequence([torch.ones_like(row) for row in tensors], True, 0)
        return ids, mask

    def collate(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """A training batch: pixel_values (B, 3, H, W), input_ids, attention_mask (B, T), image_ids
        (B,)."""
        ids, mask = self.pad(self.ids([pair.text for pair in pairs]))
        return {
            "pixel_values": torch.stack([pair.pixel_values for pair in pairs]),
            "input_ids": ids,
            "attention_mask": mask,
            "image_ids": torch.tensor([pair.image for pair in pairs]),
        }


def pair_layout(model: Any, processor: Any, max_tokens: int = 35) -> PairLayout:
    """The layout for a model and its processor, as `load_retriever` returns them.

    Raises ValueError where the text positions can't hold `max_tokens`.
    """
    positions = model.config.qformer_config.max_position_embeddings
    if not 3 <= max_tokens <= positions:
        raise ValueError(
            f"max_target_tokens is {max_tokens}: the Q-Former reads texts of 3 to {positions} "
            "tokens, [CLS] and [SEP] included"
        )
    return PairLayout(processor.tokenizer, max_tokens)
