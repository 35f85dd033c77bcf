"""Make a language model of 0.9 million parameters that soft prompts can steer.

    python scripts/make_tiny_language.py OUT --kind opt

A language model that was trained on plain text alone can't be steered by soft prompts at this size,
and a BLIP-2 with such a one learns nothing. This one learns both at once: its prompt positions hold
an outline of a scene (relation or background, the things, the place; twelve tokens) as blurred
token embeddings, and it writes one of the scene's captions. OPT reads the outline in front of
`</s> a photo of`, a T5 in its encoder.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_training import fit, make_part, part_parser
from tiny_words import OUTLINE, PROMPT, language_tokenizer, outline_ids, random_text
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

HIDDEN, HEADS, BATCH = 128, 4, 128
IGNORED = -100


def make_opt() -> tuple[OPTForCausalLM, PreTrainedTokenizerFast]:
    """As in OPT, `</s>` begins every text; captions end with "\\n", a token of its own."""
    tokenizer = language_tokenizer(
        ["<s>", "<pad>", "</s>", "<unk>"],
        "</s> $A",
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    config = OPTConfig(
        vocab_size=len(tokenizer) + 1,  # and <image>
        hidden_size=HIDDEN,
        word_embed_proj_dim=HIDDEN,
        ffn_dim=4 * HIDDEN,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        max_position_embeddings=128,
        dropout=0.0,
        bos_token_id=2,
        eos_token_id=tokenizer.convert_tokens_to_ids("Ċ"),
        pad_token_id=1,
    )
    return OPTForCausalLM(config), tokenizer


def make_t5() -> tuple[T5ForConditionalGeneration, PreTrainedTokenizerFast]:
    """As in FlanT5, `</s>` ends every text, the feed-forward is gated, the head has own weights."""
    tokenizer = language_tokenizer(
        ["<pad>", "</s>", "<unk>"], "$A </s>", eos_token="</s>", pad_token="<pad>"
    )
    config = T5Config(
        vocab_size=len(tokenizer) + 1,  # and <image>
        d_model=HIDDEN,
        d_kv=HIDDEN // HEADS,
        d_ff=2 * HIDDEN,
        num_layers=3,  # of both: transformers 5.23 can't generate with a deeper decoder
        num_heads=HEADS,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    torch.nn.init.normal_(model.lm_head.weight, std=HIDDEN**-0.5)  # T5's own suits larger models
    return model, tokenizer


def blur(table: Tensor, ids: Tensor) -> Tensor:
    """Embeddings of `ids`, each mixed with another token's, scaled and noisy: B x Q x D."""
    batch, length = ids.shape
    size = table.detach().std()
    other = table[torch.randint(len(table), ids.shape)]
    share = 0.45 * torch.rand(batch, length, 1) * (torch.rand(batch, length, 1) < 0.5)
    mixed = (1 - share) * table[ids] + share * other
    scale = torch.exp(0.4 * torch.randn(batch, 1, 1))
    noise = 0.8 * size * torch.rand(batch, 1, 1) * torch.randn_like(mixed)
    return scale * (mixed + noise)


def opt_loss(
    model: OPTForCausalLM, tokenizer: Any, outlines: Tensor, captions: list[str]
) -> Tensor:
    """Outline, `</s>`, prompt, caption, "\\n"; only caption and "\\n" are in the loss."""
    prompt = len(tokenizer(PROMPT)["input_ids"])
    texts = [tokenizer(f"{PROMPT} {caption}\n")["input_ids"] for caption in captions]
    ids = pad_sequence([torch.tensor(text) for text in texts], True, tokenizer.pad_token_id)
    mask = pad_sequence([torch.ones(len(text), dtype=torch.long) for text in texts], True, 0)
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :prompt] = IGNORED
    embed = model.get_input_embeddings()
    seen = torch.ones_like(outlines)
    return model(
        inputs_embeds=torch.cat([blur(embed.weight, outlines), embed(ids)], 1),
        attention_mask=torch.cat([seen, mask], 1),
        labels=torch.cat([seen * IGNORED, labels], 1),
    ).loss


def t5_loss(
    model: T5ForConditionalGeneration, tokenizer: Any, outlines: Tensor, captions: list[str]
) -> Tensor:
    """The encoder reads outline, prompt and `</s>`, the decoder writes the caption and `</s>`."""
    texts = [torch.tensor(tokenizer(caption)["input_ids"]) for caption in captions]
    asked = torch.tensor(tokenizer(PROMPT)["input_ids"]).expand(len(captions), -1)
    embed = model.get_input_embeddings()
    return model(
        inputs_embeds=torch.cat([blur(embed.weight, outlines), embed(asked)], 1),
        labels=pad_sequence(texts, True, IGNORED),
    ).loss


KINDS = {"opt": (make_opt, opt_loss), "t5": (make_t5, t5_loss)}


@torch.no_grad()
def right_captions(
    model: OPTForCausalLM | T5ForConditionalGeneration, tokenizer: Any, seed: int, count: int = 500
) -> dict[str, float]:
    """How often it writes one of the true captions of an outline, by the number of things."""
    rng = np.random.default_rng([seed, 12])
    fields = [random_text(rng) for _ in range(count)]
    outlines = torch.tensor([outline_ids(tokenizer, f) for f in fields])
    asked = torch.tensor(tokenizer(PROMPT)["input_ids"]).expand(count, -1)
    embed = model.get_input_embeddings()
    inputs = torch.cat([embed(outlines), embed(asked)], 1)
    mask = torch.ones(inputs.shape[:2], dtype=torch.long)
    end = tokenizer(f"{fields[0]['captions'][0]}\n")["input_ids"][-1]
    ids = model.eval().generate(
        inputs_embeds=inputs, attention_mask=mask, max_new_tokens=30, eos_token_id=end
    )
    right = defaultdict(list)
    for scene, text in zip(fields, tokenizer.batch_decode(ids, True), strict=True):
        right[len(scene["things"])].append(text.strip() in scene["captions"])
    return {f"{n} things": round(sum(r) / len(r), 4) for n, r in sorted(right.items())}


def make(kind: str, out: Path, seed: int, steps: int) -> dict[str, Any]:
    """Train and save the language model and its tokenizer; returns its metrics."""
    build, loss = KINDS[kind]
    model, tokenizer = build()
    rng = np.random.default_rng([seed, 11])

    def losses() -> dict[str, Tensor]:
        fields = [random_text(rng) for _ in range(BATCH)]
        outlines = torch.tensor([outline_ids(tokenizer, f) for f in fields])
        captions = [str(rng.choice(f["captions"])) for f in fields]
        return {"language": loss(model, tokenizer, outlines, captions)}

    found = fit(model.parameters(), losses, steps, 2e-3, f"{kind} language model")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    right = right_captions(model, tokenizer, seed)
    return {"parameters": parameters, "outline_tokens": OUTLINE, **found, "right": right}


def main() -> int:
    parser = part_parser(__doc__, 1300)
    parser.add_argument("--kind", choices=KINDS, default="opt")
    options = parser.parse_args()
    return make_part(options, lambda out: make(options.kind, out, options.seed, options.steps))


if __name__ == "__main__":
    sys.exit(main())
