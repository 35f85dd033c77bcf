"""Which setting saves how much memory: each alternative, planned like the run itself."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from blip2ft.plan.batch import TextLength
from blip2ft.plan.memory import Memory, memory_at
from blip2ft.plan.model import Setup, build, weigh


@dataclass(frozen=True)
class Switch:
    """An option as a run takes it, the bytes that it saves on one GPU, and what is then needed."""

    option: str
    saves: int
    total: int


def alternatives(setup: Setup) -> Iterator[tuple[str, Setup]]:
    """Options that make another model, or another pass, of a setup."""
    has_language = setup.task != "retrieval"
    for part in ("vision", "qformer", "language"):
        if part not in setup.checkpointing and (has_language or part != "language"):
            now = (*setup.checkpointing, part)
            option = f"--model.gradient_checkpointing '[{', '.join(now)}]'"
            yield option, replace(setup, checkpointing=now)
    mode = setup.parts["vision"]
    for other in {"full": ("lora", "frozen"), "lora": ("frozen",)}.get(mode, ()):
        parts = {**setup.parts, "vision": other}
        if any(
            how != "frozen" for part, how in parts.items() if has_language or part != "language"
        ):
            yield f"--parts.vision {other}", replace(setup, parts=parts)
    own = setup.config.vision_config.image_size
    if setup.pixels > own:
        yield f"--model.image_size {own}", replace(setup, image_size=own)
    if has_language and setup.parts["language"] != "full" and not setup.quantize:
        for bits in ("nf4", "int8"):
            option = f"--quantize '{{language: {bits}}}'"
            yield option, replace(setup, quantize={"language": bits})


def try_switches(
    setup: Setup,
    text: TextLength,
    now: Memory,
    size: int,
    *,
    accumulates: bool,
    processes: int,
    waiting: int,
) -> list[Switch]:
    """What each alternative saves at micro-batches of `size`, the most first; at least 1 %."""
    found = []
    for option, other in alternatives(setup):
        memory = memory_at(
            other, text, size, accumulates=accumulates, processes=processes, waiting=waiting
        )
        found.append(Switch(option, now.total - memory.total, memory.total))
    if setup.optimizer == "adamw":
        model = build(setup)
        for kind in ("adamw_8bit", "paged_adamw_8bit"):
            memory = replace(now, parts=weigh(model, kind))
            option = f"--optimizer.kind {kind}"
            found.append(Switch(option, now.total - memory.total, memory.total))
    return worth_it(found, now)


def worth_it(switches: list[Switch], now: Memory) -> list[Switch]:
    """Those that save at least 1 %, the most first."""
    saving = [switch for switch in switches if switch.saves >= now.total / 100]
    return sorted(saving, key=lambda switch: -switch.saves)
