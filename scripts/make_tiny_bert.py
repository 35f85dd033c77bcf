"""Make a BERT of 0.7 million parameters that knows the captions of scenes.

    python scripts/make_tiny_bert.py OUT

It stands for bert-base-uncased: the Q-Former's self-attention, feed-forward, embeddings and
generation head start from it. It learns masked language modelling (arXiv 1810.04805, section 3.1)
on the captions of scenes that are never drawn.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_training import fit, make_part, part_parser
from tiny_words import bert_tokenizer, random_text
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

HIDDEN, HEADS, BATCH = 128, 4, 128
IGNORED = -100


def hide(ids: Tensor, special: Tensor, mask_token: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Hide 15 % of the tokens: 80 % of them as [MASK], 10 % as another, 10 % as they are."""
    chosen = (torch.rand(ids.shape) < 0.15) & ~special
    labels = ids.masked_fill(~chosen, IGNORED)
    how = torch.rand(ids.shape)
    hidden = ids.masked_fill(chosen & (how < 0.8), mask_token)
    return torch.where(chosen & (how > 0.9), torch.randint_like(ids, vocabulary), hidden), labels


def make(out: Path, seed: int, steps: int) -> dict[str, Any]:
    """Train and save BERT and its tokenizer; returns its metrics."""
    tokenizer = bert_tokenizer()
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            num_hidden_layers=3,
            num_attention_heads=HEADS,
            intermediate_size=4 * HIDDEN,
            max_position_embeddings=48,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    rng = np.random.default_rng([seed, 22])

    def losses() -> dict[str, Tensor]:
        texts = [str(rng.choice(random_text(rng)["captions"])) for _ in range(BATCH)]
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        special = (ids == tokenizer.cls_token_id) | (ids == tokenizer.sep_token_id) | (mask == 0)
        hidden, labels = hide(ids, special, tokenizer.mask_token_id, len(tokenizer))
        return {"masked": model(hidden, attention_mask=mask, labels=labels).loss}

    found = fit(model.parameters(), losses, steps, 1e-3, "BERT")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {"parameters": sum(parameter.numel() for parameter in model.parameters()), **found}


def main() -> int:
    options = part_parser(__doc__, 1500).parse_args()
    return make_part(options, lambda out: make(out, options.seed, options.steps))


if __name__ == "__main__":
    sys.exit(main())
