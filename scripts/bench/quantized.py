"""A LoRA step and a greedy caption on a language model in 4 or 8 bits: ours beside plain peft.

    python scripts/bench/quantized.py --shape small --kind nf4

Both load the same BLIP-2 with random weights, its language model quantised by bitsandbytes and
nothing else, put the same LoRA on all its linear layers, and train that alone on the same captions.
The peer is what transformers' and peft's guides give, made correct: image tokens before the text,
labels on the caption alone, all but the language model told to be skipped, every linear layer of it
named as a target; `prepare_model_for_kbit_training`, without checkpoints of gradients, and stock's
loss. Weights are fp32 on a CPU, under bf16 autocast on CUDA frozen ones are bf16.

The difference is that of loss or gradient between the two, whichever is greater, relative; that of
the logits is between the quantised model and the unquantised one, as a share of the largest.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from typing import Any

import peft
import torch
from captioners import SHAPES, captioner
from loss_memory import PROMPT, QUERIES, captions
from machine import describe_machine, time_in_turn
from plain import turn_off_dropout
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, Blip2ForConditionalGeneration

from blip2ft.models.adapters import attach_lora
from blip2ft.models.parts import set_train_mode, set_trainable
from blip2ft.models.source import leave_unpacked, quantization_config
from blip2ft.tasks.caption import caption_loss, count_labels
from blip2ft.training.optimizer import make_optimizer

PARTS = {"vision": "frozen", "qformer": "frozen", "projection": "frozen", "language": "lora"}
LORA: dict[str, Any] = {"r": 16, "alpha": 32, "dropout": 0.0}
PIXELS, WORDS = 224, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--kind", choices=["nf4", "int8"], default="nf4")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device, kind = options.device, options.kind
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    family, *_, (vocabulary, _, _) = SHAPES[options.shape]
    batch = captions(family, vocabulary, options.images, WORDS)
    pixels = torch.Generator().manual_seed(2)
    batch["pixel_values"] = torch.randn(options.images, 3, PIXELS, PIXELS, generator=pixels)
    batch = {key: value.to(device) for key, value in batch.items()}
    with tempfile.TemporaryDirectory() as folder:
        made = captioner(options.shape, PIXELS).to(dtype)
        fp32 = 4 * made.num_parameters()
        made.save_pretrained(folder)
        exact = logits_of(made.to(device), batch, dtype)
        del made
        ours = load_ours(folder, kind, dtype, device)
        held = weight_bytes(ours)
        logits = logits_of(ours, batch, dtype)
        peer = load_peer(folder, kind, dtype, device)
        peer_held = weight_bytes(peer)
    attach_lora(ours, PARTS, **LORA)
    set_trainable(ours, PARTS, dtype)
    set_train_mode(ours)
    twins(ours, peer)
    for model in (ours, peer):
        turn_off_dropout(model)

    def our_loss() -> Tensor:
        return caption_loss(ours, batch) / count_labels(batch)

    def peer_loss() -> Tensor:
        return peer(**batch, use_cache=False).loss

    step = step_of(our_loss, make_optimizer(ours, lr=0.0), dtype)
    trained = [p for p in peer.parameters() if p.requires_grad]
    peer_step = step_of(peer_loss, torch.optim.AdamW(trained, lr=0.0), dtype)
    found, expected = step(), peer_step()
    difference = abs(found - expected) / abs(expected)
    gradient, wanted = gradient_of(ours), gradient_of(peer)
    relative = float((gradient - wanted).norm() / wanted.norm())
    fast, slow = time_in_turn((step, peer_step), options.repeats, device)

    asked = {key: batch[key][:, : QUERIES + PROMPT] for key in ("input_ids", "attention_mask")}
    asked["pixel_values"] = batch["pixel_values"]
    answer, peer_answer = (caption_of(model.eval(), asked, dtype) for model in (ours, peer))
    same = float((answer() == peer_answer()).float().mean())
    quick, slack = time_in_turn((answer, peer_answer), options.repeats, device)

    far = float((logits - exact).abs().max() / exact.abs().max())
    mib = 2**20
    print(f"{options.shape}, {kind}, {options.images} images, rank {LORA['r']}")
    print(f"weights: ours {held / mib:.0f} MiB, peer {peer_held / mib:.0f}, fp32 {fp32 / mib:.0f}")
    print(f"LoRA step: ours {fast:.3f} s, peer {slow:.3f} s")
    print(
        f"{WORDS} tokens greedily: ours {quick:.3f} s, peer {slack:.3f} s; {same:.0%} are the same"
    )
    print(f"the loss differs by {difference:.1e}, the gradient by {relative:.1e}, of themselves")
    print(f"quantised logits differ from exact ones by {far:.1e} of the largest")
    print(describe_machine(device))
    result = {"ratio": round(slow / fast, 2), "max_difference": max(difference, relative)}
    result |= {"caption_ratio": round(slack / quick, 2), "weights_of_fp32": round(held / fp32, 3)}
    print(json.dumps({**result, "logits_difference": far}))


def load_ours(folder: str, kind: str, dtype: torch.dtype, device: str) -> Any:
    """As `load_captioner` loads it; there is no tokenizer here."""
    config = quantization_config({"language": kind}, dtype)
    model = Blip2ForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, quantization_config=config
    )
    leave_unpacked(model)
    return model.eval().to(device)


def load_peer(folder: str, kind: str, dtype: torch.dtype, device: str) -> Any:
    """As the guides of transformers and peft have it, with what they leave out of BLIP-2."""
    skipped = ["vision_model", "qformer", "language_projection", "lm_head"]
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    if kind == "nf4":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=skipped,
        )
    model = Blip2ForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, quantization_config=config
    ).to(device)
    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    layers = "q_proj|k_proj|v_proj|out_proj|fc1|fc2|q|k|v|o|wi_0|wi_1|wo"
    lora = peft.LoraConfig(
        r=LORA["r"],
        lora_alpha=LORA["alpha"],
        target_modules=rf"language_model\..*\.({layers})",
    )
    return peft.get_peft_model(model, lora).train()


def twins(ours: nn.Module, peer: nn.Module) -> None:
    """Give both the same LoRA, one that changes something."""
    own, other = lora_of(ours), lora_of(peer)
    if own.keys() != other.keys():
        raise ValueError(f"the two train other layers: {sorted(own.keys() ^ other.keys())[:3]}")
    torch.manual_seed(3)
    for name, parameter in own.items():
        parameter.data.normal_(std=0.01)
        other[name].data.copy_(parameter)


def lora_of(model: nn.Module) -> dict[str, nn.Parameter]:
    found = {n.removeprefix("base_model.model."): p for n, p in model.named_parameters()}
    return {name: found[name] for name in sorted(found) if ".lora_" in name}


def gradient_of(model: nn.Module) -> Tensor:
    """That of all factors, in the order of their names."""
    return torch.cat([p.grad.flatten() for p in lora_of(model).values() if p.grad is not None])


def step_of(
    loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, dtype: torch.dtype
) -> Callable[[], float]:
    """Forward, backward and a step at rate 0; gives the loss."""

    def step() -> float:
        optimizer.zero_grad()
        with half(dtype):
            value = loss()
        value.backward()
        optimizer.step()
        return value.item()

    return step


def caption_of(model: Any, asked: dict[str, Tensor], dtype: torch.dtype) -> Callable[[], Tensor]:
    """Greedy captions of `WORDS` tokens, which never end earlier."""

    @torch.inference_mode()
    def caption() -> Tensor:
        with half(dtype):
            length = {"max_new_tokens": WORDS, "min_new_tokens": WORDS}
            return model.generate(**asked, **length, do_sample=False)[:, -WORDS:]

    return caption


@torch.inference_mode()
def logits_of(model: Any, batch: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    with half(dtype):
        return model(**batch, use_cache=False).logits.float()


def half(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights but LoRA's, with what quantised ones need beside their codes."""
    total = 0
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        total += parameter.nbytes
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            scales = [state.absmax, state.code, state.state2.absmax, state.state2.code]
            total += sum(tensor.nbytes for tensor in scales)
        scales8 = getattr(parameter, "SCB", None)
        total += 0 if scales8 is None else scales8.nbytes
    return total


if __name__ == "__main__":
    main()
