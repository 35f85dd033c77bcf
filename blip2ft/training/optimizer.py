"""AdamW's parameter groups with layer-wise decay, and the learning-rate schedule."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from blip2ft.models.parts import part_of
from blip2ft.training.adamw import make_adamw

_VISION_LAYER = re.compile(r"^vision_model\.encoder\.layers\.(\d+)\.")


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    vision_layer_decay: float = 1.0,
    lora_lr_ratio: float = 1.0,
) -> list[dict[str, Any]]:
    """Every trainable parameter in exactly one group, by part, layer and weight decay.

    Vectors (norms, biases) have no weight decay. With L ViT blocks and decay d, block i (from 0)
    learns at lr * d ** (L - i), the patch, class and position embeddings at lr * d ** (L + 1), and
    the norm after the blocks, like every other part, at lr (BEiT's rule, as in LAVIS
    models/blip2_models/blip2.py, get_optimizer_params, which computes and never applies it).
    lora_B learns at `lora_lr_ratio` times the rate that its layer has otherwise (LoRA+, arXiv
    2402.12354, section 4).

    Raises ValueError for fp16 parameters and for a model in which nothing trains.
    """
    layers = len(model.get_submodule("vision_model.encoder.layers"))  # type: ignore[arg-type]
    groups: dict[tuple[str, float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dtype == torch.float16:
            raise ValueError(
                f"{name} trains in fp16, where Adam's small updates vanish and activations "
                "overflow to NaN; keep trained weights in fp32 (set_trainable does), under bf16 "
                "autocast for speed"
            )
        part = part_of(name)
        depth = _vision_depth(name, layers) if part == "vision" else 0
        scale = vision_layer_decay**depth * (lora_lr_ratio if ".lora_B." in name else 1.0)
        decays = parameter.ndim > 1 and not name.endswith(".bias")
        groups[part, scale, decays].append(parameter)
    if not groups:
        raise ValueError("no parameter trains; set a part to full or lora")
    return [
        {
            "params": parameters,
            "lr": lr * scale,
            "weight_decay": weight_decay if decays else 0.0,
            "part": part,
            "lr_scale": scale,
        }
        for (part, scale, decays), parameters in groups.items()
    ]


def make_optimizer(
    model: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.05,
    vision_layer_decay: float = 1.0,
    lora_lr_ratio: float = 1.0,
    kind: str = "adamw",
) -> Optimizer:
    """AdamW over `parameter_groups`; kind: see adamw.py."""
    groups = parameter_groups(
        model,
        lr=lr,
        weight_decay=weight_decay,
        vision_layer_decay=vision_layer_decay,
        lora_lr_ratio=lora_lr_ratio,
    )
    return make_adamw(kind, model, groups, lr, betas)


def learning_rate_factor(
    step: int, *, steps: int, warmup_steps: int, lr: float, min_lr: float
) -> float:
    """The share of the peak rate at `step` (from 0): linear warm-up, then a cosine to `min_lr`.

    The cosine moves at every step (paper, appendix); the original's moves once an epoch.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    floor = min_lr / lr
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_schedule(
    optimizer: Optimizer, *, steps: int, warmup_steps: int, lr: float, min_lr: float = 0.0
) -> LambdaLR:
    """`learning_rate_factor` on every group, each with its own layer-wise scale.

    Raises ValueError for a rate that isn't positive or a minimum above the peak.
    """
    if lr <= 0 or not 0 <= min_lr <= lr:
        raise ValueError(
            f"optimizer.lr is {lr} and optimizer.min_lr {min_lr}: allowed is 0 <= min_lr <= lr, "
            "with lr above 0"
        )
    return LambdaLR(
        optimizer,
        lambda step: learning_rate_factor(
            step, steps=steps, warmup_steps=warmup_steps, lr=lr, min_lr=min_lr
        ),
    )


def base_rate(optimizer: Optimizer) -> float:
    """The rate of this step, before a ViT block or lora_B makes it their own."""
    group = optimizer.param_groups[0]
    return group["lr"] / group.get("lr_scale", 1.0)


def optimizer_and_schedule(
    model: nn.Module, steps: int, settings: Mapping[str, Any]
) -> tuple[Optimizer, LambdaLR]:
    """Both as the `optimizer` group of a run's settings says, for a run of `steps`."""
    schedule = {key: settings[key] for key in ("warmup_steps", "lr", "min_lr")}
    elsewhere = ("warmup_steps", "min_lr", "max_grad_norm")
    own = {key: value for key, value in settings.items() if key not in elsewhere}
    optimizer = make_optimizer(model, **own)
    return optimizer, make_schedule(optimizer, steps=steps, **schedule)


def _vision_depth(name: str, layers: int) -> int:
    """How many factors of the decay a ViT parameter has."""
    if name.startswith("vision_model.embeddings."):
        return layers + 1
    block = _VISION_LAYER.match(name)
    return layers - int(block.group(1)) if block else 0
