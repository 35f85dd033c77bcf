"""What a run should be told early: a loss that jumps, and a part that doesn't learn."""

import logging
from collections import deque
from statistics import median

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from blip2ft.models.parts import PARTS, parameters_of
from blip2ft.training.sharded import own_shard

DEAD_AFTER = 20  # steps
WINDOW, LEAST = 50, 20  # losses that a new one is compared with
# A spike is so many times the usual distance from the median, and the median half as large again.
# 1.4826 times the median distance is a normal distribution's standard deviation.
DEVIATIONS, SHARE = 10 * 1.4826, 1.5
QUIET = 100  # steps between two warnings of spikes

logger = logging.getLogger(__name__)


class Watch:
    """Warns of losses far above those before, and of parts that train but don't move.

    Call `gradients` between backward and the optimizer's step, `step` behind it, on every process.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator) -> None:
        """model: not wrapped."""
        self.model, self.accelerator = model, accelerator
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.steps, self.told = 0, -QUIET
        self.parts = [part for part in PARTS if _trained(model, part)]
        self.reached: set[str] = set()
        self.before = {part: _sums(model, part) for part in self.parts}

    def gradients(self) -> None:
        """Note which parts a gradient has reached."""
        if self.steps >= DEAD_AFTER:
            return
        for part in self.parts:
            if part not in self.reached:
                found = (p.grad for p in _trained(self.model, part) if p.grad is not None)
                if any(bool(own_shard(gradient).any()) for gradient in found):
                    self.reached.add(part)

    def step(self, step: int, loss: float) -> None:
        """A step is done; loss: the mean over all processes."""
        self.steps += 1
        if self.steps == DEAD_AFTER:
            self._warn_of_dead_parts()
        if len(self.losses) >= LEAST and step - self.told >= QUIET:
            usual = median(self.losses)
            distance = median(abs(value - usual) for value in self.losses)
            if loss > max(usual + DEVIATIONS * distance, SHARE * usual):
                self.told = step
                self._warn(
                    "step %d: the loss is %.4g, and the median of the %d before %.4g; if it stays "
                    "there, go back to an earlier checkpoint with a lower optimizer.lr",
                    *(step, loss, len(self.losses), usual),
                )
        self.losses.append(loss)

    def _warn_of_dead_parts(self) -> None:
        moved = [not torch.equal(_sums(self.model, part), self.before[part]) for part in self.parts]
        flags = [[part in self.reached, move] for part, move in zip(self.parts, moved, strict=True)]
        # of a model in pieces, each process sees its own
        seen = self.accelerator.reduce(
            torch.tensor(flags, dtype=torch.float32, device=self.accelerator.device), "sum"
        )
        for part, (reached, changed) in zip(self.parts, seen.tolist(), strict=True):
            if reached and changed:
                continue
            what = "none of its weights has changed" if reached else "no gradient has reached it"
            hint = "raise optimizer.lr" if reached else "set it to frozen, or mend the model"
            self._warn("part %r trains, but in %d steps %s: %s", part, DEAD_AFTER, what, hint)
        self.before = {}

    def _warn(self, message: str, *values: object) -> None:
        if self.accelerator.is_main_process:
            logger.warning(message, *values)


def _trained(model: nn.Module, part: str) -> list[nn.Parameter]:
    return [p for _, p in parameters_of(model, part) if p.requires_grad]


@torch.no_grad()
def _sums(model: nn.Module, part: str) -> Tensor:
    """The sum of each tensor that trains, in fp64, where almost any change shows."""
    shards = [own_shard(p) for p in _trained(model, part)]
    # Apple's GPUs have no fp64
    wide = {t.device: torch.float32 if t.device.type == "mps" else torch.float64 for t in shards}
    sums = [t.sum(dtype=wide[t.device]) for t in shards]
    return torch.stack(sums) if sums else torch.zeros(0)
