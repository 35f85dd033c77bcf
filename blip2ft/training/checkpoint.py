"""What a checkpoint holds: what trains, and all that makes the run go on."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import safe_open
from torch import Tensor, nn

from blip2ft.models.adapters import trainable_state
from blip2ft.models.lora_init import frozen_starts
from blip2ft.training.adamw import page_again
from blip2ft.training.background import Writer
from blip2ft.training.sharded import give_shards, like, whole_tensor
from blip2ft.training.stored import REST, WEIGHTS, checkpoint_of, read_state, write_checkpoint


@dataclass(frozen=True)
class Taken:
    """A run at one step, on the host: no later step changes it.

    weights: what trains, in full, by name; rest: optimizer, schedule, scaler, random states of all
    processes, of tensors and what `torch.load` takes with `weights_only`.
    """

    weights: dict[str, Tensor]
    rest: dict[str, Any]


def take(
    *,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
) -> Taken | None:
    """What a checkpoint of this moment holds, for the process that writes it; None on the others.

    Every process must call.
    """
    random_states = gather_object([random_state()])
    weights, averages = _weights_of(accelerator.unwrap_model(model)), optimizer.state_dict()
    scaler = accelerator.scaler
    rest = {
        "optimizer": averages,
        "schedule": {"last_epoch": schedule.last_epoch},
        "scaler": scaler.state_dict() if scaler is not None else None,
        "random": random_states,
    }
    if not accelerator.is_main_process:
        give_shards([weights, averages])
        return None
    return Taken(**_on_host({"weights": weights, "rest": rest}))


def save_checkpoint(
    folder: Path,
    *,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    state: dict[str, Any],
    writer: Writer | None = None,
    then: Callable[[], None] = lambda: None,
) -> Path:
    """Save `folder`/step-00000123 and return it; every process must call.

    state: JSON, of which "step" names the checkpoint; one that is there is never written again.
    writer: writes it while training goes on, and says whether it could; without one it is written
      on return. then: called by the process that writes, when it is written.

    Raises ValueError as `write_checkpoint` does, where there is no writer.
    """
    final = checkpoint_of(folder, state["step"])
    if writer is not None:
        writer.wait()  # one is held in memory at a time
    (there,) = broadcast_object_list([final.exists()])
    if there:
        return final
    taken = take(accelerator=accelerator, model=model, optimizer=optimizer, schedule=schedule)

    def write() -> None:
        if taken is not None:
            write_checkpoint(final, taken.weights, taken.rest, state)
            then()

    if writer is None:
        write()
        accelerator.wait_for_everyone()
    elif taken is not None:
        writer.start(write)
    return final


def load_checkpoint(
    checkpoint: Path,
    *,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
) -> dict[str, Any]:
    """Put everything back as `save_checkpoint` found it, in place, and return its `state`.

    The optimizer's settings, such as rate, betas and weight decay, stay as they are given now.

    Raises ValueError where what trains now isn't what trained then.
    """
    load_weights(checkpoint, accelerator.unwrap_model(model))
    # mapped: all processes of a machine read the same memory, and none holds all of it
    rest = torch.load(checkpoint / REST, map_location="cpu", weights_only=True, mmap=True)
    _load_optimizer(checkpoint, optimizer, rest["optimizer"])
    # the schedule is a function of the step
    schedule.last_epoch = rest["schedule"]["last_epoch"]
    for group, peak, factor in zip(
        optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = peak * factor(schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]
    if accelerator.scaler is not None and rest["scaler"] is not None:
        accelerator.scaler.load_state_dict(rest["scaler"])
    if len(rest["random"]) == accelerator.num_processes:
        set_random_state(rest["random"][accelerator.process_index])
    return read_state(checkpoint)


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Copy the checkpoint's weights into what trains in `model`, and what LoRA started from.

    Raises ValueError where the two don't have the same names.
    """
    own = _weights_of(model)
    with safe_open(checkpoint / WEIGHTS, framework="pt") as weights, torch.no_grad():
        if other := sorted(own.keys() ^ set(weights.keys())):
            raise ValueError(
                f"{checkpoint} can't be resumed: it and this run differ in {len(other)} trained "
                f"tensors, such as {other[0]}; parts, lora and model must be the same as then"
            )
        for name, tensor in own.items():  # one at a time is held, of what may be many gigabytes
            tensor.copy_(like(tensor, weights.get_tensor(name)))


def random_state() -> dict[str, Any]:
    """The state of every random generator of this process."""
    numpy_state: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, gauss = numpy_state
    version, internal, gauss_next = random.getstate()
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _weights_of(model: nn.Module) -> dict[str, Tensor]:
    """What trains, and the frozen values that a LoRA subtracts: decomposed anew they may differ."""
    return trainable_state(model) | frozen_starts(model)


def _on_host(value: Any) -> Any:
    """A copy in the host's memory of all tensors in nested mappings, lists and tuples."""
    if torch.cuda.is_available():
        # kernels may still write; of paged averages the host's own memory
        torch.cuda.synchronize()
    copied = _copied(value)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return copied


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = whole_tensor(value)
        if value.device.type != "cuda":
            return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        # pinned: the copies of many tensors run on, without one wait each
        pinned = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        return pinned.copy_(value.detach(), non_blocking=True)
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return value


def _load_optimizer(
    checkpoint: Path, optimizer: torch.optim.Optimizer, saved: dict[str, Any]
) -> None:
    """Moments and step counts from `saved`; the groups keep their own settings."""
    groups = optimizer.param_groups
    then, now = ([len(g["params"]) for g in gs] for gs in (saved["param_groups"], groups))
    if then != now:
        raise ValueError(
            f"{checkpoint} can't be resumed: its optimizer has {len(then)} groups of parameters, "
            f"this run's {len(now)}, or others; optimizer.vision_layer_decay must be "
            "1 in both or in neither, and optimizer.lora_lr_ratio too"
        )
    kind, own_kind = (gs[0].get("kind", "adamw") for gs in (saved["param_groups"], groups))
    if kind != own_kind:
        raise ValueError(
            f"{checkpoint} can't be resumed with optimizer.kind {own_kind}: its averages are those "
            f"of {kind}; go on with --optimizer.kind {kind}"
        )
    settings = [{key: v for key, v in group.items() if key != "params"} for group in groups]
    places = dict(enumerate(parameter for group in groups for parameter in group["params"]))
    averages = {
        number: {name: _in_shards(places[number], value) for name, value in values.items()}
        for number, values in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": averages})
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    page_again(optimizer)


def _in_shards(parameter: Tensor, value: Any) -> Any:
    """An average of `parameter` cut as that is; what isn't of its shape, as a copy.

    Nothing of it may stay a part of the file that it is mapped from, which may go.
    """
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return _copied(value)
    average = like(parameter, value)
    # to a device the optimizer copies by itself
    return average.clone() if parameter.device.type == "cpu" else average
