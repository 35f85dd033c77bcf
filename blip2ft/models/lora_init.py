"""Where a LoRA starts; every start leaves the model's answers as they are.

PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775) start the factors B and A from the largest
part of the weight itself. peft then takes that part out of the frozen weight, so what it trained
fits no other copy of the base. Here the weight stays, quantised or not, and the starting factors
are taken off the update instead:

    W x + s B A x - s B0 A0 x  =  W x + s [B, -B0] [A; A0] x

That is the same function with the same gradients, and it is an ordinary LoRA of twice the rank,
as which it is saved. Only B and A train; B0 and A0 are frozen and go into checkpoints, so that a
run that goes on elsewhere needs no decomposition to come out alike. Dropout falls on the
difference, as in LoRA, and not on the weight's largest part.
"""

from difflib import get_close_matches
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.nn.utils import parametrize

from blip2ft.models.parts import FROZEN_START

# Name -> what peft is told; FROM_WEIGHT are done here.
INITS: dict[str, Any] = {
    "default": True,
    "gaussian": "gaussian",
    "orthogonal": "orthogonal",
    "pissa": True,
    "pissa_niter_16": True,
    "olora": True,
    "eva": True,  # and then training/eva.py
}
FROM_WEIGHT = ("pissa", "pissa_niter_16", "olora")


class Beside(nn.Module):
    """A factor that trains with a frozen one beside it: (r, D) -> (2r, D), or (D, r) -> (D, 2r)."""

    def __init__(self, initial: Tensor, dim: int) -> None:
        super().__init__()
        self.initial = nn.Parameter(initial, requires_grad=False)
        self.dim = dim

    def forward(self, trained: Tensor) -> Tensor:
        return torch.cat([trained, self.initial], self.dim)


def check_init(init: str, r: int) -> None:
    """Raise ValueError for an unknown start, with the nearest name, or one that r doesn't fit."""
    if init not in INITS:
        near = get_close_matches(str(init), INITS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"lora.init is {init!r}: allowed are {', '.join(INITS)}{hint}")
    if init == "orthogonal" and r % 2:
        raise ValueError(f"lora.r is {r}, and lora.init orthogonal needs an even rank; try {r + 1}")


@torch.no_grad()
def start_from_weight(
    layer: LoraLayer, init: str, device: torch.device, adapter: str = "default"
) -> None:
    """Start the LoRA of `layer` from the layer's own weight, in place; the weight stays.

    init: one of FROM_WEIGHT, computed on `device`, from which the factors come back. A rank above
      that of the weight leaves the rows too many as they are.
    """
    weight = dequantize_module_weight(layer.get_base_layer()).detach()
    weight = weight.to(device, torch.float32)
    lora_A, lora_B = layer.lora_A[adapter], layer.lora_B[adapter]
    rank = min(layer.r[adapter], *weight.shape)
    left, right = largest_part(weight, rank, init, layer.scaling[adapter])
    lora_A.weight[:rank].copy_(right)
    lora_B.weight[:, :rank].copy_(left)
    for factor, initial, dim in (
        (lora_A, lora_A.weight.clone(), 0),
        (lora_B, -lora_B.weight, 1),
    ):
        parametrize.register_parametrization(factor, "weight", Beside(initial, dim), unsafe=True)


def largest_part(
    weight: Tensor, rank: int, init: str, scaling: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Factors (out, rank) and (rank, in) of the largest part of `weight`, (out, in), as in peft.

    "pissa": those of its singular value decomposition, over `scaling`; "pissa_niter_16": nearly
    those, by 16 iterations from a seed of its own, several times faster; "olora": the first columns
    and rows of its QR decomposition.
    """
    if init == "olora":
        q, r = torch.linalg.qr(weight)
        return q[:, :rank].contiguous(), r[:rank].contiguous()
    if init == "pissa":
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    else:
        devices = [weight.device] if weight.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(weight, rank, niter=16)
        vh = v.T
    root = (s[:rank] / scaling).sqrt()
    return u[:, :rank] * root, root[:, None] * vh[:rank]


def frozen_starts(model: nn.Module) -> dict[str, Tensor]:
    """The starting factors of a model whose LoRA started from its weights, by name."""
    return {n: p.detach() for n, p in model.named_parameters() if n.endswith(FROZEN_START)}


def whole_factors(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA's `state`, as peft names it, with both halves of each factor in one tensor."""
    whole = {name: tensor for name, tensor in state.items() if ".parametrizations." not in name}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight") and ".lora_" in name:
            factor = name.rpartition(".")[0]  # without the adapter's name
            whole[f"{factor}.weight"] = module.weight.detach()
    return whole
