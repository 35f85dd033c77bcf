"""A step whose loss or gradient isn't finite: which part does it, and for which samples."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from blip2ft.models.parts import PARTS, modules_of, parameters_of
from blip2ft.training.run import append_line
from blip2ft.training.sharded import own_shard

FILE = "nonfinite.jsonl"  # in a run's folder
TOLD = 4  # samples named in a message; the file has all


def explain_step(
    *,
    accelerator: Accelerator,
    run: Path,
    step: int,
    model: nn.Module,
    batches: Sequence[dict[str, Any]],
    loss: Callable[[nn.Module, dict[str, Any]], Tensor],
    mean_loss: float,
    samples: Sequence[Sequence[str]],
) -> str:
    """Find what a step's loss or gradient became infinite or NaN by; call on every process.

    model: not wrapped; its gradient is lost; batches: this process's micro-batches, on the
    device; samples: where theirs come from, of each.

    Computes them again, one after the other. Adds a line to nonfinite.jsonl with step, loss, reason
    and samples, those of the micro-batches that do it, and returns the same in words. Of a model in
    shards a gradient is that of all processes, and so are the samples.
    """
    look = _nonfinite_gradient if math.isfinite(mean_loss) else name_nonfinite_part
    found: list[tuple[str, list[str]]] = []
    for batch, names in zip(batches, samples, strict=True):
        # all of them, whatever the first says: processes that share a model compute alike
        where = look(model, lambda m, b=batch: loss(m, b), accelerator)  # type: ignore[misc]
        if where:
            found.append((where, list(names)))
    found = [each for own in gather_object([found]) for each in own]
    reason = found[0][0] if found else "computed again it is finite: dropout made the difference"
    if not found:
        own = [name for names in samples for name in names]
        found = [(reason, names) for names in gather_object([own])]
    concerned = list(dict.fromkeys(name for _, names in found for name in names))
    if accelerator.is_main_process:
        line = {"step": step, "loss": str(mean_loss), "reason": reason, "samples": concerned}
        append_line(run / FILE, line)
    accelerator.wait_for_everyone()
    what = "the gradient isn't finite" if math.isfinite(mean_loss) else f"the loss is {mean_loss}"
    more = f" and {len(concerned) - TOLD} more" if len(concerned) > TOLD else ""
    return f"step {step}: {what}; {reason}; for {', '.join(concerned[:TOLD])}{more} ({run / FILE})"


def name_nonfinite_part(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], accelerator: Accelerator
) -> str:
    """Which part first computes NaN or infinity for a batch; "" where all is finite."""
    order: list[str] = []

    def watch(part: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if part not in order and not _all_finite(output):
                order.append(part)

        return hook

    # on every module: some models call a part's layers and not the part
    handles = [
        module.register_forward_hook(watch(part))
        for part in PARTS
        for top in modules_of(model, part)
        for module in top.modules()
    ]
    try:
        with torch.no_grad(), accelerator.autocast():
            value = loss(model)
    finally:
        for handle in handles:
            handle.remove()
    if order:
        weights = [n for n, p in parameters_of(model, order[0]) if not _all_finite(p)]
        if weights:
            return (
                f"it comes from part {order[0]!r}, whose weight {weights[0]} isn't finite: fetch "
                "the checkpoint that the run starts from again, or go on from an earlier one"
            )
        return (
            f"it comes from part {order[0]!r} (its weights are finite); in fp16 this is an "
            "overflow: use model.precision bf16 or fp32; otherwise lower optimizer.lr"
        )
    if not bool(torch.isfinite(value)):
        return "every part is finite, so it is the loss itself: is a batch without any label?"
    return ""


def _nonfinite_gradient(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], accelerator: Accelerator
) -> str:
    """Which part has a gradient of a batch that isn't finite; "" where all are."""
    model.zero_grad(set_to_none=True)
    with accelerator.autocast():
        value = loss(model)
    value.backward()
    for part in PARTS:
        for name, parameter in parameters_of(model, part):
            if parameter.grad is not None and not _all_finite(parameter.grad):
                return (
                    f"it comes from part {part!r}, such as that of {name}; lower optimizer.lr, or "
                    "set model.precision to fp32"
                )
    return ""


def _all_finite(value: object) -> bool:
    if isinstance(value, Tensor):
        # quantised weights are integers; of shards each process looks at its own
        return not value.is_floating_point() or bool(torch.isfinite(own_shard(value)).all())
    if isinstance(value, dict):
        return all(_all_finite(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return all(_all_finite(v) for v in value)
    return True
