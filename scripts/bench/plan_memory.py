"""The peak memory of training, planned beside measured: two steps with random weights, on CUDA.

    python scripts/bench/plan_memory.py --config recipes/caption/opt-2.7b.yaml

Takes `blip2ft plan`'s settings and overrides; the model's config must be there, its weights aren't
needed. The batch is the longest that the plan assumes. Quantised parts aren't measured. Not
verified yet: it has run on no GPU.
"""

import argparse
import json
import sys

import torch
from accelerate import Accelerator
from machine import describe_machine

from blip2ft.plan.batch import longest_batch, text_length
from blip2ft.plan.gpu import CONTEXT
from blip2ft.plan.memory import LOSSES, memory_at
from blip2ft.plan.model import build
from blip2ft.plan.plan import setup_of
from blip2ft.settings import read_settings
from blip2ft.training.optimizer import make_optimizer

STEPS = 2  # the optimizer's averages are there from the second on


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--tokens", type=int)
    options, overrides = parser.parse_known_args()
    if not torch.cuda.is_available():
        print("this measures memory on CUDA, and torch finds none here", file=sys.stderr)
        return 2
    task, settings = read_settings(options.config, overrides, None)
    setup = setup_of(task, settings, None, [])
    if setup.quantize:
        print("quantised weights need a checkpoint; leave quantize out", file=sys.stderr)
        return 2
    longest = settings["data"]["max_target_tokens"]
    text = text_length(setup, settings.get("prompt", ""), longest, options.tokens)
    size = settings["train"]["micro_batch_size"]
    planned = memory_at(setup, text, size, accumulates=False, processes=1, waiting=0)
    expected = planned.total - planned.context - planned.fragments

    mixed = "no" if setup.precision == "fp32" else setup.precision
    accelerator = Accelerator(mixed_precision=mixed)
    # built for float outputs already, which Accelerate asks for once more
    model = build(setup)
    vars(model).pop("forward", None)
    model = model.to_empty(device=accelerator.device)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(std=0.02)
            else:
                tensor.zero_()
    bare, optimizer = model, make_optimizer(model, lr=1e-6)
    model, optimizer = accelerator.prepare(model, optimizer)
    batch = longest_batch(setup, text, size)
    pixels = torch.randn(batch["pixel_values"].shape)
    batch = {key: v.to(accelerator.device) for key, v in {**batch, "pixel_values": pixels}.items()}
    torch.cuda.reset_peak_memory_stats()
    for _ in range(STEPS):
        accelerator.backward(LOSSES[task](model, batch))
        accelerator.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    measured = torch.cuda.max_memory_allocated()
    reserved = torch.cuda.max_memory_reserved()
    free, whole = torch.cuda.mem_get_info()
    print(f"planned  {expected / 1e9:.2f} GB of tensors, {planned.total / 1e9:.2f} GB in all")
    print(f"measured {measured / 1e9:.2f} GB of tensors, {reserved / 1e9:.2f} GB reserved")
    context = whole - free - torch.cuda.memory_reserved()
    print(f"context  {CONTEXT / 1e9:.2f} GB planned, {context / 1e9:.2f} GB measured")
    print(describe_machine("cuda"))
    result = {"ratio": round(expected / measured, 3), "planned": expected, "measured": measured}
    print(json.dumps({**result, "reserved": reserved, "context": context}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
