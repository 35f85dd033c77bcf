"""A step of the paper's captioning recipe: ours beside a plain transformers loop.

    python scripts/bench/caption_step.py --shape small

ViT, Q-Former and projection train, the language model is frozen (paper, section 4.2). The peer is
what transformers' guides give, made correct: image tokens before the text, labels on the caption
alone, padding to the longest of the batch, stock's loss, AdamW as PyTorch has it, all weights in
fp32 and, on CUDA, under bf16 autocast. Ours keeps frozen weights in bf16 there, computes logits of
labels alone, and takes the fused AdamW. Batches lie on the device: loading is in dataloader.py.

Memory is what weights, averages and a step hold at most, of each model by itself. The share of the
matrix products' measured peak counts the products of a step, without those that checkpointing
repeats.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from captioners import SHAPES, Unmasked, captioner
from loss_memory import PROMPT, QUERIES, captions, peak_memory
from machine import describe_machine, time_in_turn
from plain import turn_off_dropout
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import Blip2ForConditionalGeneration

from blip2ft.models.kernels import compile_blocks
from blip2ft.models.parts import checkpoint_gradients, set_train_mode, set_trainable
from blip2ft.tasks.caption import caption_loss, count_labels
from blip2ft.training.optimizer import make_optimizer

PARTS = {"vision": "full", "qformer": "full", "projection": "full", "language": "frozen"}
Step = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--caption", type=int, default=16, help="tokens of the longest caption")
    parser.add_argument("--checkpoint", nargs="*", default=[], help="parts, of both models")
    parser.add_argument("--compile", nargs="*", default=[], help="parts, of ours alone")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device = options.device
    family, size, *_, (vocabulary, _, _) = SHAPES[options.shape]
    batch = captions(family, vocabulary, options.images, options.caption)
    pixels = torch.Generator().manual_seed(2)
    batch["pixel_values"] = torch.randn(options.images, 3, size, size, generator=pixels)
    operations = count_operations(options.shape, batch)
    batch = {key: value.to(device) for key, value in batch.items()}

    ours, peer = captioner(options.shape), captioner(options.shape)
    set_trainable(ours, PARTS, torch.bfloat16 if device == "cuda" else torch.float32)
    set_train_mode(ours)
    checkpoint_gradients(ours, options.checkpoint)
    compile_blocks(ours.to(device), options.compile)
    peer.language_model.requires_grad_(False)
    peer.train().to(device)
    checkpoint_gradients(peer, options.checkpoint)
    for model in (ours, peer):
        turn_off_dropout(model)
    optimizer = make_optimizer(ours, lr=0.0)
    trained = [p for p in peer.parameters() if p.requires_grad]
    peer_optimizer = torch.optim.AdamW(trained, lr=0.0)

    step = step_of(lambda: caption_loss(ours, batch) / count_labels(batch), optimizer, device)
    peer_step = step_of(lambda: peer(**batch, use_cache=False).loss, peer_optimizer, device)
    found, expected = step(), peer_step()
    gradient, wanted = gradient_of(ours), gradient_of(peer)
    difference = abs(found - expected) / abs(expected)
    relative = float((gradient - wanted).norm() / wanted.norm())
    del gradient, wanted
    for each in (optimizer, peer_optimizer):
        each.zero_grad()
    small, large = (
        held_bytes(model, own) + peak_memory(call, device)
        for model, own, call in ((ours, optimizer, step), (peer, peer_optimizer, peer_step))
    )
    fast, slow = time_in_turn((step, peer_step), options.repeats, device)

    rate = operations / fast
    print(
        f"{options.shape}: {options.images} images of {size} px, {operations:.3g} operations a step"
    )
    print(f"ours {options.images / fast:.2f} images/s, peer {options.images / slow:.2f} images/s")
    print(f"memory: ours {small / 2**30:.2f} GiB, peer {large / 2**30:.2f} GiB")
    print(f"the loss differs by {difference:.1e}, the gradient by {relative:.1e}, of themselves")
    peak = matrix_peak(device)
    print(f"ours computes {rate:.3g} operations/s, {rate / peak:.2f} of the products' peak")
    print(describe_machine(device))
    result = {"ratio": round(slow / fast, 2), "max_difference": max(difference, relative)}
    result |= {"memory_ratio": round(small / large, 3), "of_peak": round(rate / peak, 3)}
    print(json.dumps({**result, "images_per_second": round(options.images / fast, 2)}))


def step_of(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, device: str) -> Step:
    """Forward, backward and AdamW at rate 0; gives the loss and leaves the gradient."""

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            value = loss()
        value.backward()
        optimizer.step()
        return value.item()

    return step


def gradient_of(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def held_bytes(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Weights, buffers and the optimizer's averages."""
    averages = [t for state in optimizer.state.values() for t in state.values()]
    tensors = [*model.parameters(), *model.buffers(), *averages]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


def count_operations(shape: str, batch: dict[str, Tensor]) -> int:
    """Those of a step's matrix products: two for each multiplication with its addition."""
    with torch.device("meta"):
        model: Blip2ForConditionalGeneration = captioner(shape)
    model.set_attn_implementation("eager")
    set_trainable(model, PARTS)
    on_meta = {key: value.to("meta") for key, value in batch.items()}
    positions = PROMPT + QUERIES if SHAPES[shape][0] == "opt" else 0
    with Unmasked(), FlopCounterMode(display=False) as counter:
        model(**on_meta, use_cache=False).logits[:, positions:].sum().backward()
    return counter.get_total_flops()


def matrix_peak(device: str, seconds: float = 2.0) -> float:
    """Operations a second of large matrix products: in bf16 on CUDA, in fp32 on a CPU."""
    side, dtype = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    (a @ b).sum().item()
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        for _ in range(4):
            product = a @ b
        product[0, 0].item()
        best = max(best, 4 * 2 * side**3 / (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    main()
