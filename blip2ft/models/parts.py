"""The four parts of a BLIP-2 model, and how each trains.

That table is the whole policy on freezing and adapters: every parameter belongs to exactly one
part, and every part is frozen, trained in full, or trained through LoRA.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

# Top-level attributes of the stock classes (Blip2ForConditionalGeneration,
# InstructBlipForConditionalGeneration, Blip2ForImageTextRetrieval) and of our Retriever that make
# up each part.
PARTS: dict[str, tuple[str, ...]] = {
    "vision": ("vision_model",),
    "qformer": ("qformer", "query_tokens", "embeddings"),
    "projection": (
        "language_projection",
        "vision_projection",
        "text_projection",
        "itm_head",
        "itg_head",
        "temperature",
    ),
    "language": ("language_model",),
}
# The starting value beside a LoRA's factor, where it started from the weight (see lora_init.py).
FROZEN_START = ".initial"
# The norm after the image encoder's blocks learns with the Q-Former, for whom it is: of a new image
# encoder it is new. LAVIS has it as ln_vision beside the visual_encoder that it freezes
# (models/blip2_models/blip2.py, init_vision_encoder).
NORM = "vision_model.post_layernorm"
MODES = ("frozen", "lora", "full")


def part_of(name: str) -> str:
    """The part that the parameter or module called `name` belongs to.

    Raises ValueError where it belongs to none, so that nothing is ever left out silently.
    """
    if name.startswith(NORM):
        return "qformer"
    top = name.split(".", 1)[0]
    for part, attributes in PARTS.items():
        if top in attributes:
            return part
    raise ValueError(
        f"{name!r} belongs to none of the parts {', '.join(PARTS)}; "
        "if the model has a new head, add its attribute to PARTS in blip2ft/models/parts.py"
    )


def check_parts(parts: Mapping[str, str], quantize: Collection[str] = ()) -> None:
    """Raise ValueError where `parts` or `quantize` names no part or mode, or the two clash."""
    for part, mode in parts.items():
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}: allowed are {_nearest(part, PARTS)}")
        if mode not in MODES:
            raise ValueError(f"part {part!r} has mode {mode!r}: allowed are {', '.join(MODES)}")
    if all(parts.get(part, "frozen") == "frozen" for part in PARTS):
        raise ValueError("every part is frozen, so nothing would train; set one to full or lora")
    check_quantized(quantize)
    for part in quantize:
        if parts.get(part) == "full":
            raise ValueError(
                f"part {part!r} is quantised and set to full, but quantised weights can't be "
                f"updated; set parts.{part} to lora or frozen, or take it out of quantize"
            )


def check_quantized(quantize: Collection[str]) -> None:
    """Raise ValueError where `quantize` names no part, or one that is never quantised."""
    for part in quantize:
        if part not in PARTS:
            allowed = _nearest(part, ("language", "vision"))
            raise ValueError(f"quantize names an unknown part {part!r}: allowed are {allowed}")
        if part in ("qformer", "projection"):
            raise ValueError(
                f"quantize names {part!r}, but only language and vision can be quantised: "
                f"{part} is small, and its rounding errors would reach every answer"
            )


def _nearest(part: str, allowed: Collection[str]) -> str:
    near = get_close_matches(part, allowed, 1)
    return ", ".join(allowed) + (f"; did you mean {near[0]!r}?" if near else "")


def parameters_of(model: nn.Module, part: str) -> Iterator[tuple[str, nn.Parameter]]:
    """The names and parameters of `part`, adapters included."""
    return ((n, p) for n, p in model.named_parameters() if part_of(n) == part)


def modules_of(model: nn.Module, part: str) -> list[nn.Module]:
    """The top-level modules of `part` that `model` has; a bare parameter isn't one."""
    found = (getattr(model, attribute, None) for attribute in PARTS[part])
    return [module for module in found if isinstance(module, nn.Module)]


def set_trainable(
    model: nn.Module, parts: Mapping[str, str], frozen_dtype: torch.dtype = torch.float32
) -> None:
    """Freeze and unfreeze `model` by the table, in place; adapters must be attached already.

    Trained parameters become fp32: in fp16 they overflow to NaN, in bf16 they lose updates smaller
    than 1/256 of themselves. Frozen ones are kept in `frozen_dtype`, quantised ones as they are.

    Raises ValueError for a part in mode "full" that the model hasn't, or that is quantised.
    """
    has = {part_of(name) for name, _ in model.named_parameters()}
    for part, mode in parts.items():
        if mode == "full" and part not in has:
            raise ValueError(
                f"parts.{part} is full, but a {type(model).__name__} has no such part; set it to "
                "frozen"
            )
    for name, parameter in model.named_parameters():
        mode = parts.get(part_of(name), "frozen")
        # peft names all that it adds lora_*: lora_A, lora_B, and DoRA's lora_magnitude_vector
        trains = mode == "full" or (mode == "lora" and ".lora_" in name)
        if name.endswith(FROZEN_START):
            continue  # it stays as it is, or the LoRA's other half would no longer cancel it
        if trains and not parameter.is_floating_point():
            raise ValueError(f"{name} is quantised and can't be trained in full; use lora")
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if trains else frozen_dtype)
        parameter.requires_grad_(trains)


def set_train_mode(model: nn.Module) -> None:
    """Train mode (dropout) for parts that train, eval mode for frozen ones.

    A frozen part drops nothing out: its noise would only blur the gradient that passes through it.
    Layers that checkpoint gradients look at their own `training` flag, so it stays set on those
    of a frozen part, with the dropout that some keep as a number turned off.
    """
    model.train()
    for part in PARTS:
        if any(p.requires_grad for _, p in parameters_of(model, part)):
            continue
        for module in modules_of(model, part):
            module.eval()
            for layer in module.modules():
                if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
                    layer.training = True
                    if isinstance(getattr(layer, "dropout", None), float):
                        layer.dropout = 0.0


def checkpoint_gradients(model: nn.Module, parts: Collection[str]) -> None:
    """Recompute the activations of `parts` in the backward pass instead of keeping them."""
    for part in parts:
        if part not in ("vision", "qformer", "language"):
            raise ValueError(
                f"gradient_checkpointing names {part!r}: allowed are vision, qformer, language"
            )
        for module in modules_of(model, part):
            if hasattr(module, "activation_checkpointing_enable"):
                enable: Any = module.activation_checkpointing_enable
                enable({"use_reentrant": False})


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Trainable and total number of parameters of each part; packed 4-bit weights count in full."""
    counts = dict.fromkeys(PARTS, (0, 0))
    for name, parameter in model.named_parameters():
        packed = getattr(parameter, "quant_state", None)
        size = packed.shape.numel() if packed is not None else parameter.numel()
        part = part_of(name)
        trainable, total = counts[part]
        counts[part] = (trainable + size * parameter.requires_grad, total + size)
    return counts


@dataclass(frozen=True)
class PartRow:
    """A line of the table of parts: its mode and dtypes, and how many parameters it has."""

    part: str
    mode: str
    dtype: str
    trainable: int
    total: int


def part_rows(model: nn.Module, parts: Mapping[str, str] | None = None) -> list[PartRow]:
    """The parts that `model` has.

    The mode of a part that `parts` doesn't name is the one that its parameters show.
    """
    rows = []
    for part, (trainable, total) in count_parameters(model).items():
        if not total:
            continue
        own = dict(parameters_of(model, part))
        dtypes = {str(p.dtype).removeprefix("torch.") for p in own.values()}
        adapted = any(".lora_" in name for name in own)
        seen = "frozen" if not trainable else "lora" if adapted else "full"
        mode = (parts or {}).get(part, seen)
        rows.append(PartRow(part, mode, "+".join(sorted(dtypes)), trainable, total))
    return rows


def parts_table(model: nn.Module, parts: Mapping[str, str] | None = None) -> str:
    """The table of parts as text; see `part_rows`."""
    rows = part_rows(model, parts)
    sums = sum(row.trainable for row in rows), sum(row.total for row in rows)
    return "\n".join(
        [
            f"{'part':<12}{'mode':<10}{'dtype':<12}{'trainable':>16}{'total':>16}",
            *(
                f"{r.part:<12}{r.mode:<10}{r.dtype:<12}{r.trainable:>16,}{r.total:>16,}"
                for r in rows
            ),
            f"{'all':<34}{sums[0]:>16,}{sums[1]:>16,}",
        ]
    )
