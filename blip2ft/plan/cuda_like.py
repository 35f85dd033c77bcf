"""What a GPU does otherwise than the meta device: autocast, dropout and attention kernels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

# torch.amp autocasts these on CUDA; of torch's lists those that models here call.
LOWER = {
    functional.linear,
    functional.conv2d,
    torch.conv2d,
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.__rmatmul__,
    torch.bmm,
    Tensor.bmm,
    torch.baddbmm,
    torch.addmm,
    torch.mm,
    torch.einsum,
    functional.scaled_dot_product_attention,
}
FULL = {
    functional.layer_norm,
    torch.layer_norm,
    functional.softmax,
    torch.softmax,
    Tensor.softmax,
    functional.log_softmax,
    torch.log_softmax,
    functional.cross_entropy,
    functional.nll_loss,
    functional.normalize,
    torch.pow,
    Tensor.pow,
    torch.rsqrt,
    Tensor.rsqrt,
    torch.exp,
    Tensor.exp,
    torch.norm,
    Tensor.norm,
    torch.sum,
    Tensor.sum,
    torch.cumsum,
    Tensor.cumsum,
}


class CudaLike(TorchFunctionMode):
    """Makes the meta device keep what CUDA keeps.

    dtype: autocast to this; None for none. A weight is cast once in a forward pass, as autocast
    caches it. Dropout keeps a mask of bytes. Attention is fused: it keeps query, key, value,
    output and a number a row, never the scores.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype, self.enabled, self.caches = dtype, dtype is not None, True
        self.cache: dict[int, Tensor] = {}

    @contextmanager
    def forward(self) -> Iterator[None]:
        """A forward pass; casts of weights are kept until its end."""
        self.caches = True
        try:
            with self._known(), self:
                yield
        finally:
            self.cache.clear()

    @contextmanager
    def backward(self) -> Iterator[None]:
        """A backward pass; what checkpointing runs again casts its weights again."""
        self.caches = False
        with self._known():
            yield

    @contextmanager
    def _known(self) -> Iterator[None]:
        """Torch's questions on autocast of the meta device, which has none, are answered here."""
        is_enabled, get_dtype = torch.is_autocast_enabled, torch.get_autocast_dtype

        def enabled(*device: str) -> bool:
            return self.enabled if device == ("meta",) else is_enabled(*device)

        def dtype(device: str) -> torch.dtype | None:
            return self.dtype if device == "meta" else get_dtype(device)

        with (
            mock.patch("torch.autocast", self.switch),
            mock.patch("torch.is_autocast_enabled", enabled),
            mock.patch("torch.get_autocast_dtype", dtype),
        ):
            yield

    def again(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        """`checkpoint`, but what it runs again in the backward pass runs as it did in the forward.

        Torch leaves such modes out while it runs backward.
        """

        def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            def same(*inner: Any, **options: Any) -> Any:
                if not self.caches:
                    with self:
                        return function(*inner, **options)
                return function(*inner, **options)

            return checkpoint(same, *args, **kwargs)

        return run

    @contextmanager
    def switch(self, device_type: str, *_: Any, enabled: bool = True, **__: Any) -> Iterator[None]:
        """Stands for torch.autocast, which knows no meta device."""
        before, self.enabled = self.enabled, enabled and self.dtype is not None
        try:
            yield
        finally:
            self.enabled = before

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.enabled and func in LOWER:
            args, kwargs = tree_map_only(Tensor, self._lower, (args, kwargs))
        elif self.enabled and func in FULL:
            args, kwargs = tree_map_only(Tensor, self._full, (args, kwargs))
        if func is functional.scaled_dot_product_attention:
            return _attend(*args, **kwargs)
        if func in (functional.dropout, torch.dropout):
            return _drop(*args, **kwargs)
        return func(*args, **kwargs)

    def _lower(self, tensor: Tensor) -> Tensor:
        if tensor.dtype == self.dtype or not _is_half_or_float(tensor):
            return tensor
        if not (self.caches and tensor.is_leaf and tensor.requires_grad):
            return tensor.to(self.dtype)
        if id(tensor) not in self.cache:
            self.cache[id(tensor)] = tensor.to(self.dtype)
        return self.cache[id(tensor)]

    def _full(self, tensor: Tensor) -> Tensor:
        return tensor.float() if _is_half_or_float(tensor) else tensor


def _is_half_or_float(tensor: Tensor) -> bool:
    return tensor.device.type == "meta" and tensor.dtype in (
        torch.float32,
        torch.bfloat16,
        torch.float16,
    )


def _drop(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0:
        return input
    return torch.native_dropout(input, p, True)[0]


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if attn_mask is not None and not attn_mask.is_floating_point():
        # it becomes a bias of the scores
        attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device=query.device)
    elif attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype)
    return _FusedAttention.apply(query, key, value, attn_mask)


class _FusedAttention(torch.autograd.Function):
    """The shapes of flash and memory-efficient attention, and what they keep."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        rows, heads, length, _ = query.shape
        # laid out as (B, L, H, D): what follows joins the heads without a copy
        output = query.new_empty(rows, length, heads, value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(rows, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums, mask)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, *_, mask = ctx.saved_tensors
        wants = ctx.needs_input_grad[3]
        return (
            torch.empty_like(query),
            torch.empty_like(key),
            torch.empty_like(value),
            torch.empty_like(mask) if wants else None,
        )
