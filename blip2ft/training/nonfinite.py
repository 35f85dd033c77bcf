"""A step whose loss or gradient isn't finite: which part does it, and for which samples."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from blip2ft.models.parts import PARTS, modules_of, parameters_of
from blip2ft.training.run import append_line, read_lines
from blip2ft.training.sharded import own_shard
from blip2ft.training.stored import list_checkpoints, step_of

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


def last_finite(run: Path, step: int, accelerator: Accelerator) -> int:
    """The last of `step` steps that wasn't left out, 0 where all were; call on every process."""
    finite = 0
    if accelerator.is_main_process:
        left_out = {row["step"] for row in read_lines(run / FILE)}
        finite = max(set(range(1, step + 1)) - left_out, default=0)
    (finite,) = broadcast_object_list([finite])
    return finite


def way_on(checkpoints: Path, finite: int, saved: Path | None) -> str:
    """What to do about a run that stopped because too many of its steps weren't finite.

    checkpoints: their folder; finite: the last step that was, which left the weights that the run
    has; saved: its state, where that is worth to go on from.

    Weights are known to be sound where a finite step began with them.
    """
    settings = "train.max_nonfinite says how many steps may be left out"
    if not finite:
        return (
            "No step was finite, so nothing was learned: change what is wrong and begin anew with "
            f"--output FOLDER; {settings}."
        )
    found = list_checkpoints(checkpoints)
    sound = [path.name for path in found if step_of(path) < finite]
    doubtful = [path.name for path in found if step_of(path) >= finite]
    away = f", move {' and '.join(doubtful)} in {checkpoints} away" if doubtful else ""
    from_there = f"from {sound[-1]}" if sound else "from the beginning"
    back = f"lower optimizer.lr{away} and go on with --resume, {from_there}"
    if saved is None:
        others = f", also those of {' and '.join(doubtful)}" if doubtful else ""
        return (
            f"No step after step {finite} was finite, whatever its samples: the weights that it "
            f"left are ruined{others}. To go on, {back}."
        )
    return (
        f"The state of before the step is saved in {saved}. If samples or the precision are "
        f"to blame, change that and go on with --resume; {settings}. If the loss was rising before "
        f"(log.jsonl), its weights are ruined: {back}."
    )


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
        if damage := _nonfinite_weight(model, order[0]):
            return damage
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
    """Which part has a gradient of a batch, or a weight, that isn't finite; "" where all are."""
    model.zero_grad(set_to_none=True)
    with accelerator.autocast():
        value = loss(model)
    value.backward()
    for part in PARTS:
        if damage := _nonfinite_weight(model, part):
            return damage
    for part in PARTS:
        for name, parameter in parameters_of(model, part):
            if parameter.grad is not None and not _all_finite(parameter.grad):
                return (
                    f"it comes from part {part!r}, such as that of {name}; lower optimizer.lr, or "
                    "set model.precision to fp32"
                )
    return ""


def _nonfinite_weight(model: nn.Module, part: str) -> str:
    """The first weight of `part` that isn't finite, and what to do; "" where all are."""
    for name, parameter in parameters_of(model, part):
        if not _all_finite(parameter):
            return (
                f"it comes from part {part!r}, whose weight {name} isn't finite: fetch the "
                "checkpoint that the run starts from again, or go on from an earlier one"
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
