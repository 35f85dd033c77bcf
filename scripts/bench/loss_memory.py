"""Memory of logits and loss, forward and backward: ours beside stock transformers.

    python scripts/bench/loss_memory.py --shape opt-2.7b

Stock computes the logits of every position, image, prompt and padding too, and keeps them. Both get
the same captions in fp32 and differentiate with respect to the projection; the language model is
frozen, as in the paper. It has its vocabulary and width but one layer with next to no feed-forward,
and ViT and Q-Former are tiny, so that little but logits and loss is measured; what is left of the
rest counts for both.
Peaks are of what the allocator gave out above what was there before: on the CPU as PyTorch's
profiler records it, on CUDA as `torch.cuda.max_memory_allocated` says.
"""

import argparse
import json
from collections.abc import Callable
from itertools import accumulate

import torch
from machine import describe_machine, time_in_turn
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig, T5Config

from blip2ft.data.batches import IGNORE
from blip2ft.tasks.caption import caption_loss, count_labels

# family, vocabulary, width
SHAPES = {
    "tiny": ("opt", 2_000, 64),
    "small": ("opt", 50_272, 768),
    "opt-2.7b": ("opt", 50_304, 2560),
    "opt-6.7b": ("opt", 50_304, 4096),
    "flan-t5-xl": ("t5", 32_128, 2048),
}
QUERIES, PROMPT = 32, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--caption", type=int, default=16, help="tokens of the longest caption")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    family, vocabulary, width = SHAPES[options.shape]
    model = head_alone(family, vocabulary, width).to(options.device)
    batch = captions(family, vocabulary, options.images, options.caption)
    batch = {key: value.to(options.device) for key, value in batch.items()}

    def ours() -> tuple[Tensor, Tensor]:
        return _differentiate(model, caption_loss(model, batch) / count_labels(batch))

    def stock() -> tuple[Tensor, Tensor]:
        return _differentiate(model, model(**batch, use_cache=False).loss)

    (found, gradient), (expected, wanted) = ours(), stock()
    difference = float((found - expected).abs() / expected.abs())
    relative = float((gradient - wanted).norm() / wanted.norm())
    small, large = (peak_memory(call, options.device) for call in (ours, stock))
    fast, slow = time_in_turn((ours, stock), options.repeats, options.device)
    labels = int((batch["labels"] != IGNORE).sum())
    print(
        f"{options.shape}: {batch['labels'].numel()} positions, {labels} labels, {vocabulary} words"
    )
    print(f"peak: ours {small / 2**20:.1f} MiB, stock {large / 2**20:.1f} MiB")
    print(f"time: ours {fast:.3f} s, stock {slow:.3f} s")
    print(f"the loss differs by {difference:.1e}, the gradient by {relative:.1e}, of themselves")
    print(describe_machine(options.device))
    result = {"ratio": round(small / large, 3), "max_difference": max(difference, relative)}
    result |= {"ours_mib": round(small / 2**20, 1), "stock_mib": round(large / 2**20, 1)}
    print(json.dumps({**result, "time_ratio": round(fast / slow, 2)}))


def head_alone(family: str, vocabulary: int, width: int) -> Blip2ForConditionalGeneration:
    """A BLIP-2 with the head of its language model in full and next to nothing before it."""
    if family == "opt":
        text = OPTConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            word_embed_proj_dim=width,
            ffn_dim=8,
            num_hidden_layers=1,
            num_attention_heads=8,
        )
    else:
        text = T5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_ff=8,
            num_layers=0,
            num_decoder_layers=1,
            num_heads=1,
            decoder_start_token_id=0,
        )
    small = {"num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = Blip2Config(
        vision_config={**small, "hidden_size": 16, "image_size": 28, "patch_size": 14},
        qformer_config={**small, "hidden_size": 16, "vocab_size": 8},
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=vocabulary - 1,
    )
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config).eval().requires_grad_(False)
    model.query_tokens.normal_()
    model.language_projection.requires_grad_(True)
    return model


def captions(family: str, vocabulary: int, images: int, longest: int) -> dict[str, Tensor]:
    """A batch of captions of half the longest length to the longest, as `TextLayout` lays them."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.linspace(longest, max(1, longest // 2), images).long()
    words = torch.randint(3, vocabulary - 1, (images, PROMPT + longest), generator=generator)
    there = torch.arange(longest) < lengths[:, None]
    target = words[:, PROMPT:].where(there, IGNORE)
    head = torch.cat([words.new_full((images, QUERIES), vocabulary - 1), words[:, :PROMPT]], 1)
    batch = {"pixel_values": torch.randn(images, 3, 28, 28, generator=generator)}
    if family == "t5":
        start = words.new_zeros(images, 1)
        before = torch.cat([start, target[:, :-1].clamp(min=0)], 1)
        batch |= {"input_ids": head, "attention_mask": torch.ones_like(head), "labels": target}
        return batch | {"decoder_input_ids": before, "decoder_attention_mask": there.long()}
    seen = torch.cat([torch.ones_like(head), there.long()], 1)
    labels = torch.cat([torch.full_like(head, IGNORE), target], 1)
    inputs = torch.cat([head, target.where(there, 1)], 1)
    return batch | {"input_ids": inputs, "attention_mask": seen, "labels": labels}


def peak_memory(call: Callable[[], object], device: str) -> int:
    """Bytes that `call` has at most at a time, above what there was before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = recorded.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in changes), default=0)


def _differentiate(model: Blip2ForConditionalGeneration, loss: Tensor) -> tuple[Tensor, Tensor]:
    weight = model.language_projection.weight
    (gradient,) = torch.autograd.grad(loss, weight)
    return loss.detach(), gradient


if __name__ == "__main__":
    main()
