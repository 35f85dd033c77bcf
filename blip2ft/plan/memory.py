"""The memory of one process in training: what is held all along, and the peak of a step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from blip2ft.plan.batch import TextLength, longest_batch
from blip2ft.plan.cuda_like import CudaLike
from blip2ft.plan.gpu import CONTEXT, FRAGMENTS
from blip2ft.plan.model import PartWeights, Setup, build, weigh
from blip2ft.plan.rehearsal import CASTS, GRADIENTS, LOSS, rehearse
from blip2ft.plan.timeline import Peak, Scale, Timeline
from blip2ft.tasks.caption import caption_loss
from blip2ft.tasks.retrieval import retrieval_loss

SIZES = (2, 3)  # micro-batches that are rehearsed; one alone has no padding and no negatives
LOSSES = {"caption": caption_loss, "retrieval": retrieval_loss, "vqa": caption_loss}
GRADIENT = 4  # fp32, as the weight


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the peak of a training step.

    parts: weights as held. activations: by part. gradients: at the peak, of trained weights; with
    accumulation all of them. casts: autocast's copies. loss: of batch and loss. buckets: the copy
    of the gradients that processes exchange. context, fragments: see gpu.py.
    """

    parts: Mapping[str, PartWeights]
    activations: Mapping[str, int]
    gradients: int
    casts: int
    loss: int
    buckets: int
    context: int
    fragments: int

    @property
    def weights(self) -> int:
        return sum(part.size for part in self.parts.values())

    @property
    def trained(self) -> int:
        return sum(part.trained for part in self.parts.values())

    @property
    def saved(self) -> int:
        """Weights that a checkpoint and an adapter hold."""
        return self.trained + sum(part.starts for part in self.parts.values())

    @property
    def optimizer(self) -> int:
        return sum(part.averages for part in self.parts.values())

    @property
    def paged(self) -> int:
        """Of AdamW's averages in pages: on the GPU while it has room, and no part of the total."""
        return sum(part.paged for part in self.parts.values())

    @property
    def total(self) -> int:
        kept = self.weights + self.optimizer + self.gradients + self.buckets
        passing = sum(self.activations.values()) + self.casts + self.loss
        return kept + passing + self.context + self.fragments


def memory_of(
    parts: Mapping[str, PartWeights], peak: Peak, *, processes: int, waiting: int = 0
) -> Memory:
    """The memory of a model of these weights with that peak.

    waiting: bytes of batches that wait on the GPU for their turn.
    """
    named = (GRADIENTS, CASTS, LOSS)
    gradients, casts, loss = (peak.by_part.get(name, 0) for name in named)
    activations = {part: size for part, size in peak.by_part.items() if part not in named}
    trained = sum(part.trained for part in parts.values())
    return Memory(
        parts,
        activations,
        gradients,
        casts,
        loss + waiting,
        # DDP's default: buckets beside the gradients, not in their place
        GRADIENT * trained if processes > 1 else 0,
        CONTEXT,
        int(FRAGMENTS * (peak.size - gradients)),
    )


@dataclass(frozen=True)
class Rehearsed:
    """A model that was rehearsed: its weights and the peaks at any micro-batch size."""

    parts: Mapping[str, PartWeights]
    scale: Scale

    def memory(self, size: int, *, accumulates: bool, processes: int, waiting: int = 0) -> Memory:
        peak = self.scale.peak(size, accumulates=accumulates)
        return memory_of(self.parts, peak, processes=processes, waiting=waiting)


def rehearse_sizes(setup: Setup, text: TextLength) -> Rehearsed:
    """Rehearse the model of `setup` with texts of that length."""
    model = build(setup)
    small, large = (_pass(model, setup, text, size) for size in SIZES)
    return Rehearsed(weigh(model, setup.optimizer), Scale(small, large, SIZES))


def memory_at(
    setup: Setup, text: TextLength, size: int, *, accumulates: bool, processes: int, waiting: int
) -> Memory:
    """The memory at one micro-batch size, in half the time."""
    model = build(setup)
    peak = _pass(model, setup, text, size).peak(accumulates=accumulates)
    return memory_of(weigh(model, setup.optimizer), peak, processes=processes, waiting=waiting)


def _pass(model: nn.Module, setup: Setup, text: TextLength, size: int) -> Timeline:
    backend = CudaLike(None if setup.dtype == torch.float32 else setup.dtype)
    loss: Any = LOSSES[setup.task]
    return rehearse(model, loss, longest_batch(setup, text, size), backend)
