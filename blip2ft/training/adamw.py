"""The kinds of AdamW: torch's, and those of bitsandbytes, whose averages take less of the GPU.

adamw              two averages a weight in 32 bits: 8 bytes
adamw_8bit         averages of matrices in 8 bits, a scale for each 256 (arXiv 2110.02861)
paged_adamw        in 32 bits, in pages that move to the host's memory where the GPU's runs out
                   (QLoRA, arXiv 2305.14314, section 3)
paged_adamw_8bit   both
"""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

KINDS = ("adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit")
# bitsandbytes' numbers: the smallest average in 8 bits, those that share a scale, and the smallest
# that is paged (Optimizer2State.init_state, Optimizer8bit.get_state_buffer).
SMALLEST_8BIT, BLOCK, SMALLEST_PAGED = 4096, 256, 100_000


def make_adamw(
    kind: str, model: nn.Module, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]
) -> Optimizer:
    """AdamW of one of `KINDS` over parameter groups of `model`, which is on its device.

    Raises ValueError as `check_kind` does.
    """
    check_kind(kind, next(model.parameters()).device)
    for group in groups:
        group["kind"] = kind  # a checkpoint tells it
    if kind == "adamw":
        return AdamW(groups, lr=lr, betas=betas, fused=True)
    from bitsandbytes import optim

    optimizer = optim.AdamW(
        groups,
        lr=lr,
        betas=betas,
        optim_bits=8 if kind.endswith("8bit") else 32,
        min_8bit_size=SMALLEST_8BIT,
        is_paged=kind.startswith("paged"),
    )
    # a manager of its own: the global one goes by id(), which Python gives to other tensors later
    optimizer.mng = object.__new__(optim.GlobalOptimManager)
    optimizer.mng.initialize()
    in_8_bits = {id(parameter) for parameter in parameters_in_8_bits(model)}
    for i, group in enumerate(groups):
        for j, parameter in enumerate(group["params"]):
            if id(parameter) not in in_8_bits:
                optimizer.mng.index2config[i, j] = {"optim_bits": 32}
    return optimizer


def check_kind(kind: str, device: torch.device) -> None:
    """Raise ValueError for an AdamW that can't be: unknown, not installed, pages without a GPU."""
    if kind not in KINDS:
        raise ValueError(f"optimizer.kind is {kind!r}: allowed are {', '.join(KINDS)}")
    if kind != "adamw" and find_spec("bitsandbytes") is None:
        raise ValueError(
            f'optimizer.kind {kind} needs bitsandbytes: pip install "blip2ft[quantize]", or take '
            "adamw"
        )
    if kind.startswith("paged") and device.type != "cuda":
        raise ValueError(
            f"optimizer.kind is {kind}, but pages go between a CUDA GPU and its host, and this "
            f"runs on {device.type}; take {kind.removeprefix('paged_')}"
        )


def parameters_in_8_bits(model: nn.Module) -> Iterator[nn.Parameter]:
    """What trains of `model` and has averages of 8 bits under the kinds that end in 8bit.

    Embeddings stay in 32 bits, for their gradients are uneven (arXiv 2110.02861, section 2.3), and
    so do vectors such as norms and biases, and what has fewer than 4096 numbers.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, parameter in model.named_parameters():
        # the ViT's positions and the query tokens are tables without a module
        is_table = id(parameter) in tables or name.endswith(("_embedding", "query_tokens"))
        large = parameter.ndim > 1 and parameter.numel() >= SMALLEST_8BIT
        if parameter.requires_grad and large and not is_table:
            yield parameter


def average_bytes(kind: str, model: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Of all that trains: its name, and the bytes of its averages held on the GPU and in pages.

    The tables of the two codes, 2 KiB for all, are left out.
    """
    in_8_bits = set()
    if kind.endswith("8bit"):
        in_8_bits = {id(parameter) for parameter in parameters_in_8_bits(model)}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        count = parameter.numel()
        size, scales = 2 * 4 * count, 0
        if id(parameter) in in_8_bits:
            size, scales = 2 * count, 2 * 4 * -(-count // BLOCK)
        pages = kind.startswith("paged") and count >= SMALLEST_PAGED
        yield name, scales + (0 if pages else size), size if pages else 0


def page_again(optimizer: Optimizer) -> None:
    """Put averages that were loaded into pages, where the kind has them, in place.

    bitsandbytes leaves what it loads in the GPU's memory, where the run might no longer fit.
    """
    bare: Any = getattr(optimizer, "optimizer", optimizer)  # within Accelerate's
    if not getattr(bare, "is_paged", False):
        return
    for parameter, state in bare.state.items():
        for name in ("state1", "state2"):
            loaded = state[name]
            state[name] = bare.get_state_buffer(parameter, dtype=loaded.dtype)
            state[name].copy_(loaded)
