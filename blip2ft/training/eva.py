"""EVA: a LoRA that starts from what its layers read (arXiv 2410.07170).

The rows of A become the directions in which a layer's inputs vary most, over the first samples of
the run, and B stays zero, so that the model's answers stay. Every layer keeps the rank it was
given: the paper also moves ranks between layers, which is left out, so that a run that goes on
finds the shapes that its settings tell.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from peft.tuners.lora import LoraLayer
from peft.utils.incremental_pca import IncrementalPCA
from torch import Tensor, nn

from blip2ft.models.parts import part_of
from blip2ft.training.feed import Feed

Masks = dict[tuple[int, ...], Tensor]
SAMPLES = 256  # at most, of the first step
ROWS = 2048  # of a layer's inputs at once, drawn by a seed


def start_from_inputs(
    model: nn.Module,
    feed: Feed,
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor],
    accelerator: Accelerator,
) -> None:
    """Start each LoRA of `model` from the inputs that its layer gets, in place.

    Every process computes the same, of the same samples, and takes the first one's. A layer that
    reads fewer rows than four times its rank keeps the start that it had. Padding is left out where
    a layer reads texts, with queries before them or without. Seeds and the model's mode stay.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    if not layers:
        return
    readers = {name: _Reader(layer) for name, layer in layers.items()}
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    queries, was_training = model.get_parameter("query_tokens").shape[1], model.training
    hooks = [layers[name].register_forward_pre_hook(readers[name].read) for name in layers]
    try:
        with torch.random.fork_rng(devices), torch.no_grad(), accelerator.autocast():
            torch.manual_seed(0)
            model.eval()
            samples = feed.first(SAMPLES)
            for start in range(0, len(samples), feed.size):
                batch = feed.collate(samples[start : start + feed.size])
                batch = {key: value.to(accelerator.device) for key, value in batch.items()}
                for name, reader in readers.items():
                    reader.masks = _masks_of(batch, name, queries)
                loss(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    for name, layer in layers.items():
        weight: Any = layer.lora_A["default"].weight
        found = readers[name].directions()
        with torch.no_grad():
            weight[: len(found)].copy_(found)
            weight.copy_(broadcast(weight.detach().clone()))


def _masks_of(batch: Mapping[str, Tensor], name: str, queries: int) -> Masks:
    """Which positions of what layer `name` reads aren't padding, by the shapes that it comes in.

    The Q-Former reads texts alone or after the queries, OPT's feed-forward (B * T, D).
    """
    part, keys = part_of(name), ["attention_mask"]
    if part == "qformer" and "qformer_attention_mask" in batch:
        keys = ["qformer_attention_mask"]
    if "decoder_attention_mask" in batch and ".decoder." in name:  # reads the encoder's too
        keys.append("decoder_attention_mask")
    masks: Masks = {}
    for mask in [batch[key].bool() for key in keys if part in ("qformer", "language")]:
        both = torch.cat([mask.new_ones(len(mask), queries), mask], 1)
        each = (mask, mask.flatten()) if part == "language" else (mask, both)
        masks |= {tuple(found.shape): found for found in each}
    return masks


class _Reader:
    """The directions in which the inputs of one layer vary most, batch by batch."""

    def __init__(self, layer: LoraLayer) -> None:
        self.masks: Masks = {}
        self._rank = layer.r["default"]
        # twice as many as are wanted: from batch to batch the last ones blur
        kept, width = 2 * self._rank, layer.in_features
        self._found = IncrementalPCA(min(kept, width), lowrank=8 * kept < width, lowrank_seed=0)
        self._few: list[Tensor] = []  # rows that are too few for a first estimate

    def read(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        mask = self.masks.get(tuple(x.shape[:-1]))
        rows = x[mask] if mask is not None else x.reshape(-1, x.shape[-1])
        if len(rows) > ROWS:
            rows = rows[torch.randperm(len(rows))[:ROWS].to(rows.device)]
        self._few.append(rows.float())
        if sum(map(len, self._few)) >= 4 * self._rank:
            with torch.autocast(x.device.type, enabled=False):
                self._found.partial_fit(torch.cat(self._few))
            self._few = []

    def directions(self) -> Tensor:
        """(at most rank, in), of length 1, those of most variance first."""
        found: Tensor = getattr(self._found, "components_", torch.empty(0, 1))
        return found[: self._rank]
