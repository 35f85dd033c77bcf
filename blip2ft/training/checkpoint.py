"""Checkpoints that are whole or aren't there: what trains, and all that makes the run go on."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import nn

from blip2ft.models.adapters import trainable_state
from blip2ft.models.lora_init import frozen_starts
from blip2ft.training.adamw import page_again
from blip2ft.whole import PARTIAL, whole_folder, write_text

PREFIX = "step-"


def save_checkpoint(
    folder: Path,
    *,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    state: dict[str, Any],
) -> Path:
    """Write `folder`/step-00000123 and return it; every process must call.

    Trained weights, optimizer, schedule, gradient scaler, random states of all processes, and
    `state` (JSON), of which "step" names the checkpoint. Written beside, flushed to disk, renamed:
    a kill at any moment leaves the checkpoint whole or no checkpoint. Frozen weights aren't saved.
    """
    final = checkpoint_of(folder, state["step"])
    random_states = gather_object([random_state()])
    if accelerator.is_main_process and not final.exists():
        scaler = accelerator.scaler
        rest = {
            "optimizer": optimizer.state_dict(),
            "schedule": {"last_epoch": schedule.last_epoch},
            "scaler": scaler.state_dict() if scaler is not None else None,
            "random": random_states,
        }
        _write(final, _weights_of(accelerator.unwrap_model(model)), rest, state)
    accelerator.wait_for_everyone()
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
    rest = torch.load(checkpoint / "rest.pt", map_location="cpu", weights_only=True)
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
    return json.loads((checkpoint / "state.json").read_text())


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Copy the checkpoint's weights into what trains in `model`, and what LoRA started from.

    Raises ValueError where the two don't have the same names.
    """
    own = _weights_of(model)
    weights = load_file(checkpoint / "trained.safetensors")
    if weights.keys() != own.keys():
        other = sorted(weights.keys() ^ own.keys())
        raise ValueError(
            f"{checkpoint} can't be resumed: it and this run differ in {len(other)} trained "
            f"tensors, such as {other[0]}; parts, lora and model must be the same as then"
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def rewrite_state(checkpoint: Path, state: dict[str, Any]) -> None:
    """Put another `state` in the place of a checkpoint's own, at once; call on one process."""
    write_text(checkpoint / "state.json", _json(state))


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in `folder`, oldest first."""
    found = (p for p in folder.glob(f"{PREFIX}*") if (p / "state.json").is_file())
    return sorted(found, key=lambda p: int(p.name.removeprefix(PREFIX)))


def checkpoint_of(folder: Path, step: int) -> Path:
    """The checkpoint of `step` in `folder`."""
    return folder / f"{PREFIX}{step:08d}"


def remove_old(folder: Path, keep: int, best: int | None) -> None:
    """Remove all but the `keep` newest checkpoints and that of step `best`."""
    checkpoints = list_checkpoints(folder)
    for checkpoint in checkpoints[: max(0, len(checkpoints) - keep)]:
        if int(checkpoint.name.removeprefix(PREFIX)) != best:
            # renamed first: a half-removed checkpoint must not look whole
            gone = checkpoint.rename(folder / f"{PARTIAL}{checkpoint.name}")
            shutil.rmtree(gone)


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


def _weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """What trains, and the frozen values that a LoRA subtracts: decomposed anew they may differ."""
    return trainable_state(model) | frozen_starts(model)


def _write(
    final: Path, weights: dict[str, torch.Tensor], rest: dict[str, Any], state: dict[str, Any]
) -> None:
    with whole_folder(final) as partial:
        weights = {name: t.cpu().contiguous() for name, t in weights.items()}
        save_file(weights, partial / "trained.safetensors", {"format": "pt"})
        # to an open file: to a path, torch hides why it failed, such as a full disk
        with (partial / "rest.pt").open("wb") as file:
            torch.save(rest, file)
        (partial / "state.json").write_text(_json(state))


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
    optimizer.load_state_dict(saved)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    page_again(optimizer)


def _json(state: dict[str, Any]) -> str:
    return json.dumps(state, indent=2) + "\n"
