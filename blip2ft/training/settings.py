"""The settings of a run that no run can work with, found before anything is loaded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from blip2ft.config.model import LoraConfig
from blip2ft.counted import counted
from blip2ft.filters.rules import is_idle, wrong_filters

Rule = tuple[Callable[[Any], bool], str]


def _at_least_1(more: str = "") -> Rule:
    return lambda value: value >= 1, f"1 or more{more}"


NOT_NEGATIVE: Rule = (lambda value: value >= 0, "0 or more")
POSITIVE: Rule = (lambda value: value > 0, "more than 0")
# What each setting may be; null is left to the types.
RULES: dict[str, Rule] = {
    "model.image_size": _at_least_1(", or null for the checkpoint's"),
    "data.crop_scale": (
        lambda value: 0 < value[0] <= value[1] <= 1,
        "two shares of the area, 0 < low <= high <= 1, or null for no crop",
    ),
    "data.stream.shuffle": _at_least_1(),
    "data.stream.cache_gb": POSITIVE,
    "data.stream.max_broken": (lambda value: 0 <= value <= 1, "0 to 1"),
    "data.max_target_tokens": _at_least_1(),
    "data.max_bad_images": (lambda value: 0 < value <= 1, "more than 0, up to 1"),
    "data.workers": NOT_NEGATIVE,
    "lora.r": _at_least_1(),
    "lora.alpha": _at_least_1(),
    "lora.dropout": (lambda value: 0 <= value < 1, "0 or more, below 1"),
    "optimizer.lora_lr_ratio": POSITIVE,
    "optimizer.lr": POSITIVE,
    "optimizer.min_lr": NOT_NEGATIVE,
    "optimizer.warmup_steps": NOT_NEGATIVE,
    "optimizer.betas": (
        lambda value: all(0 <= beta < 1 for beta in value),
        "two numbers of 0 or more, below 1",
    ),
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.vision_layer_decay": (lambda value: 0 < value <= 1, "more than 0, up to 1"),
    "optimizer.max_grad_norm": (lambda value: value > 0, "more than 0, or null for no clipping"),
    "train.epochs": _at_least_1(),
    "train.max_steps": _at_least_1(", or null for all epochs"),
    "train.batch_size": _at_least_1(),
    "train.micro_batch_size": _at_least_1(),
    "train.evaluate_every": _at_least_1(", or null for once an epoch"),
    "train.checkpoint_every": _at_least_1(", or null for each evaluation"),
    "train.keep_checkpoints": _at_least_1(": the newest is what a run resumes from"),
    "train.max_nonfinite": NOT_NEGATIVE,
    "train.log_every": _at_least_1(),
    "generation.num_beams": _at_least_1(),
    "generation.max_new_tokens": _at_least_1(),
    "generation.batch_size": _at_least_1(),
    "search.candidates": _at_least_1(),
    "search.batch_size": _at_least_1(),
    "search.pairs_at_once": _at_least_1(),
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise one ValueError with every setting outside its range.

    settings: groups by name, as `asdict` makes them of a recipe's config; groups and settings that
      `RULES` doesn't know, or that aren't there, pass.
    """
    wrong = []
    for key, (fits, allowed) in RULES.items():
        value: Any = settings
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        # not `value > limit`: NaN is on neither side
        if value is not None and not fits(value):
            wrong.append(f"{key} is {_shown(value)}: allowed is {allowed}")
    lora = settings.get("lora", {})
    if lora.get("init") == "orthogonal" and lora.get("r", 0) % 2:
        wrong.append(f"lora.r is {lora['r']}: allowed with lora.init orthogonal is an even rank")
    optimizer = settings.get("optimizer", {})
    lr, min_lr = optimizer.get("lr"), optimizer.get("min_lr")
    if lr is not None and min_lr is not None and min_lr > lr > 0:
        wrong.append(f"optimizer.min_lr is {min_lr}: allowed is 0 up to optimizer.lr, {lr}")
    wrong += _wrong_kinds(settings.get("quantize", {}))
    data = settings.get("data", {})
    if data.get("filters") and not is_idle(data["filters"]):
        wrong += [f"data.{line}" for line in wrong_filters(data["filters"])]
        if data.get("stream") is not None:
            wrong.append(
                "data.filters is for data.train, and data.stream is given: filter a stream once, "
                "as its shards are written, with blip2ft shard SOURCE --out FOLDER --harmful drop "
                "--personal mask"
            )
    if wrong:
        raise ValueError("\n".join(wrong))


def _wrong_kinds(quantize: Mapping[str, str]) -> Iterator[str]:
    kinds = ("nf4", "int8")
    wrong = [part for part, kind in quantize.items() if kind not in kinds]
    for part in wrong:
        yield f"quantize.{part} is {quantize[part]!r}: allowed are {' and '.join(kinds)}"
    if not wrong and len(set(quantize.values())) > 1:
        told = " and ".join(f"{part} in {kind}" for part, kind in quantize.items())
        yield f"quantize has {told}: allowed is one kind for both, {' or '.join(kinds)}"


def lora_warning(settings: Mapping[str, Any]) -> str | None:
    """What to say of settings for a LoRA where no part has one; None where there are none."""
    if "lora" in settings["parts"].values():
        return None
    default = asdict(LoraConfig())
    idle = [f"lora.{name}" for name, value in settings["lora"].items() if value != default[name]]
    if settings["optimizer"]["lora_lr_ratio"] != 1:
        idle.append("optimizer.lora_lr_ratio")
    if not idle:
        return None
    return (
        f"warning: no part is lora, so nothing comes of {', '.join(idle)}; set a part to lora, or "
        "leave them out"
    )


def warmup_warning(warmup_steps: int, steps: int) -> str | None:
    """What to say of a warm-up that takes the whole run; None where it doesn't."""
    if warmup_steps < steps:
        return None
    return (
        f"warning: optimizer.warmup_steps is {warmup_steps} and the run has "
        f"{counted(steps, 'step')}, so the rate never reaches optimizer.lr; take about "
        f"{max(1, steps // 10)}, or train longer"
    )


def _shown(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, Sequence) else str(value)
