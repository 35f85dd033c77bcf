"""Rows of all processes as one batch, with the gradient flowing back to whose they are."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor


@dataclass(frozen=True)
class Shares:
    """How a batch lies on the processes: `sizes` rows on each; ours begin at `offset`.

    seed: the first process's draw, the same on all, for what all must draw alike.
    """

    sizes: tuple[int, ...]
    offset: int
    width: int
    seed: int

    @property
    def total(self) -> int:
        return sum(self.sizes)

    def gather(self, rows: Tensor) -> Tensor:
        """Our rows (B, ...) -> all processes' rows (total, ...), in the order of the processes.

        The gradient of a row is the sum of what every process's loss asks of it.
        """
        if len(self.sizes) == 1:
            return rows
        missing = max(self.sizes) - len(rows)
        if missing:
            rows = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
        everyone = _Gather.apply(rows.contiguous())
        return torch.cat([part[:size] for part, size in zip(everyone, self.sizes, strict=True)])


def share_batch(rows: int, width: int, device: torch.device) -> Shares:
    """Tell every process how many rows we have; every process must call.

    `width` of the result is the largest that any process gave: texts are padded to it before they
    are gathered. The seed comes from the first process's default generator, and advances ours too.
    """
    seed = int(torch.randint(2**31, ()))
    if not is_distributed():
        return Shares((rows,), 0, width, seed)
    ours = torch.tensor([rows, width, seed], device=device)
    told = [torch.empty_like(ours) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(told, ours)
    sizes, widths, seeds = zip(*(t.tolist() for t in told), strict=True)
    return Shares(sizes, sum(sizes[: torch.distributed.get_rank()]), max(widths), seeds[0])


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> tuple[Tensor, ...]:
        everyone = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(everyone, rows)
        return tuple(everyone)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = torch.stack(gradients)
        torch.distributed.all_reduce(summed)
        return summed[torch.distributed.get_rank()]
