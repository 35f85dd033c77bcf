"""Quantised linear layers without values: what bitsandbytes' layers hold and keep."""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

# bitsandbytes' defaults: a constant a block of weights, themselves quantised in blocks
BLOCK, CONSTANTS = 64, 256


class PackedLinear(nn.Linear):
    """Stands for Linear4bit or Linear8bitLt; `weight` has the shape, `packed_bytes` the size."""

    kind: Any  # nf4 or int8

    def forward(self, input: Tensor) -> Tensor:
        return _PackedProduct.apply(input, self.weight, self.bias, self.kind)

    def packed_bytes(self) -> int:
        return packed_bytes(self.weight.numel(), self.out_features, self.kind)


def packed_bytes(weights: int, rows: int, kind: str) -> int:
    """Bytes of a quantised matrix.

    nf4 with double quantisation (QLoRA, arXiv 2305.14314, section 3): half a byte a weight, one
    byte a block of 64, four bytes for 256 of those: 4.127 bits a weight; and the tables of the two
    codes. int8: a byte a weight and an fp32 scale a row.
    """
    if kind == "int8":
        return weights + 4 * rows
    blocks = math.ceil(weights / BLOCK)
    return math.ceil(weights / 2) + blocks + 4 * math.ceil(blocks / CONSTANTS) + 4 * (256 + 16 + 1)


def pack(part: nn.Module, kind: str, head: nn.Module | None, kept: Collection[str]) -> None:
    """Make every linear layer of `part` but the output head a `PackedLinear`, in place.

    kept: ends of the names of layers that transformers leaves alone, such as wo of a T5.
    """
    for name, module in part.named_modules():
        if type(module) is nn.Linear and module is not head and not name.endswith((*kept,)):
            module.__class__ = PackedLinear
            vars(module)["kind"] = kind


class _PackedProduct(torch.autograd.Function):
    """The matrix is unpacked for the product, forward and backward; int8 keeps its input too."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, kind: str) -> Tensor:
        if kind == "int8":
            ctx.save_for_backward(input)
            rounded = torch.empty_like(input, dtype=torch.int8)
        else:
            rounded = torch.empty_like(weight)
        output = input.new_empty(*input.shape[:-1], len(weight), dtype=weight.dtype)
        del rounded
        ctx.weight, ctx.like = weight, (input.shape, input.dtype)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        unpacked = torch.empty_like(ctx.weight)
        shape, dtype = ctx.like
        gradient = gradients[0].new_empty(shape, dtype=dtype)
        del unpacked
        return gradient, None, None, None
