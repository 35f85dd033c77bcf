"""The longest micro-batch that a run can meet."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blip2ft.data.batches import IGNORE
from blip2ft.plan.model import Setup

TOKENS_PER_WORD = 1.3
QUESTION_TOKENS = 30  # the longest questions of VQAv2 have 23 words


@dataclass(frozen=True)
class TextLength:
    """Tokens of the prompt, with the tokenizer's own special ones, and of the target."""

    prompt: int
    target: int

    def told(self, setup: Setup) -> str:
        if setup.task == "retrieval":
            return f"{self.target} text tokens"
        queries = setup.config.num_query_tokens
        return f"{queries} image, {self.prompt} prompt and {self.target} target tokens"


def text_length(setup: Setup, prompt: str, max_target: int, tokens: int | None) -> TextLength:
    """The longest text: that of `max_target` tokens, or of `tokens` with the prompt.

    Without a tokenizer the prompt's tokens are guessed from its words; of a question, that it is a
    long one. Raises ValueError for a text that doesn't fit the model's positions, or no text.
    """
    words = len(prompt.replace("{}", " ").split())
    ours = math.ceil(words * TOKENS_PER_WORD) + 1
    ours += QUESTION_TOKENS if setup.task == "vqa" else 0
    if setup.task == "retrieval":
        positions = setup.config.qformer_config.max_position_embeddings
        if (tokens or max_target) > positions:
            raise ValueError(
                f"a text of {tokens or max_target} tokens doesn't fit the Q-Former's {positions} "
                "positions; lower data.max_target_tokens"
            )
        return TextLength(0, tokens or max_target)
    if tokens is None:
        return TextLength(ours, max_target)
    if tokens <= ours:
        raise ValueError(
            f"--tokens is {tokens}, and the prompt alone takes about {ours}; give those of prompt "
            "and target together"
        )
    return TextLength(ours, tokens - ours)


def longest_batch(setup: Setup, text: TextLength, size: int) -> dict[str, Any]:
    """A micro-batch of `size` samples of that length; the last is padded, as most are.

    Pixels, or the features in their place, have no values, ids and masks have.
    """
    pixels = torch.empty(size, 3, setup.pixels, setup.pixels, device="meta")
    if setup.level is not None:
        shape = (size, *setup.features_shape)
        pixels = torch.empty(shape, dtype=setup.features_dtype, device="meta")
    batch: dict[str, Any] = {"pixel_values": pixels}
    if setup.task == "retrieval":
        batch["input_ids"], batch["attention_mask"] = _texts(size, text.target)
        batch["image_ids"] = torch.arange(size)
        return batch
    queries, prompt, target = setup.config.num_query_tokens, text.prompt, text.target
    decoder_only = setup.config.use_decoder_only_language_model
    ids, mask = _texts(size, queries + prompt + (target if decoder_only else 0))
    ids[:, :queries] = setup.config.image_token_index
    batch |= {"input_ids": ids, "attention_mask": mask}
    if setup.config.model_type == "instructblip":
        batch["qformer_input_ids"], batch["qformer_attention_mask"] = _texts(
            size, min(prompt, setup.config.qformer_config.max_position_embeddings)
        )
    if decoder_only:
        batch["labels"] = ids.masked_fill(mask == 0, IGNORE)
        batch["labels"][:, : queries + prompt] = IGNORE
        return batch
    there = _texts(size, target)[1]
    batch["labels"] = torch.ones_like(there).masked_fill(there == 0, IGNORE)
    batch |= {"decoder_input_ids": torch.ones_like(there), "decoder_attention_mask": there}
    return batch


def _texts(size: int, length: int) -> tuple[Tensor, Tensor]:
    ids, mask = torch.ones(2, size, length, dtype=torch.long)
    if size > 1 and length > 1:
        mask[-1, -1] = 0
    return ids.clone(), mask.clone()
