"""The plan of a run: from its settings to memory, largest micro-batch, steps, time and disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from blip2ft.counted import counted
from blip2ft.data.order import Order
from blip2ft.features.level import cache_level
from blip2ft.features.store import DIGEST, row_bytes
from blip2ft.plan.batch import longest_batch, text_length
from blip2ft.plan.gpu import Gpu
from blip2ft.plan.length import count_images, count_samples, count_steps, disk
from blip2ft.plan.memory import Memory, Rehearsed, rehearse_sizes
from blip2ft.plan.model import Setup, read_model_config
from blip2ft.plan.switches import Switch, try_switches, worth_it
from blip2ft.training.settings import lora_warning


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    memory: at `micro_batch_size`, of each of `processes`. largest: the largest micro-batch that
    fits `gpu`; 0 where none does, None without a GPU. steps, passes, hours, samples: None where
    they are unknown; samples_from says where they are from. disk: bytes, None where unknown.
    notes: what was assumed.
    """

    setup: Setup
    model: str
    text: str
    memory: Memory
    micro_batch_size: int
    batch_size: int
    processes: int
    accumulation: int
    gpu: Gpu | None
    largest: int | None
    samples: int | None
    samples_from: str
    steps: int | None
    passes: float | None
    hours: float | None
    disk: Mapping[str, Any]
    switches: Sequence[Switch]
    notes: Sequence[str]


def make_plan(
    task: str,
    settings: Mapping[str, Any],
    *,
    gpu: Gpu | None = None,
    processes: int = 1,
    samples: int | None = None,
    tokens: int | None = None,
    speed: float | None = None,
) -> Plan:
    """Plan a run of `task`.

    gpu: of each process. samples: of an epoch, instead of counting them. tokens: of the longest
    text with its prompt. speed: images a second of all processes together.

    Raises ValueError for settings that the recipe refuses too.
    """
    if settings.get("evaluate_only"):
        raise ValueError(
            "evaluate_only is true, so nothing is trained and there is nothing to plan; set it to "
            "false to plan a training run"
        )
    warning = lora_warning(settings)
    notes = [] if warning is None else [warning.removeprefix("warning: ")]
    setup = setup_of(task, settings, gpu, notes)
    longest = settings["data"]["max_target_tokens"]
    text = text_length(setup, settings.get("prompt", ""), longest, tokens)
    train = settings["train"]
    micro, batch = train["micro_batch_size"], train["batch_size"]
    order = Order(samples or 1, batch, settings["seed"])
    accumulation = order.accumulation(processes, micro)
    share = batch // processes
    if micro > share:
        notes.append(f"micro_batch_size is {micro}, but a process has {share} of a step")
        micro = share
    elif share % micro:
        notes.append(f"the last micro-batch of a step has {counted(share % micro, 'sample')}")
    if processes > 1:
        notes.append(
            "each process is planned to hold the whole model (DDP); in shards (FSDP2) weights, "
            "gradients and averages of a step are cut by their number: see docs/launching.md"
        )
    waiting = 0
    if settings.get("objectives", {}).get("cache_itc") and accumulation > 1:
        # all micro-batches of the step, as pixels or features
        waiting = longest_batch(setup, text, share)["pixel_values"].nbytes

    rehearsed = rehearse_sizes(setup, text)
    how: dict[str, Any] = {"processes": processes, "waiting": waiting}
    memory = rehearsed.memory(micro, accumulates=accumulation > 1, **how)
    switches = try_switches(setup, text, memory, micro, accumulates=accumulation > 1, **how)
    if micro > 1:
        half = micro // 2
        halved = rehearsed.memory(half, accumulates=True, **how)
        option = f"--train.micro_batch_size {half}"
        switches.append(Switch(option, memory.total - halved.total, halved.total))

    where = "given"
    if samples is None:
        samples, where = count_samples(task, settings)
    stream = settings["data"].get("stream") is not None
    steps, passes = count_steps(train, samples, stream=stream)
    hours = None if speed is None or steps is None else steps * batch / speed / 3600
    largest = None if gpu is None else _largest(rehearsed, gpu, share, how)
    images, an_image = None, 0
    if setup.level is not None:
        an_image = row_bytes(setup.features_shape, settings["cache"]["dtype"]) + DIGEST
        images, why = count_images(task, settings)
        if images is None:
            notes.append(
                f"disk of cache.folder: {an_image:,} bytes an image, of how many is unknown ({why})"
            )
    return Plan(
        setup=setup,
        model=settings["model"]["name"],
        text=text.told(setup),
        memory=memory,
        micro_batch_size=micro,
        batch_size=batch,
        processes=processes,
        accumulation=accumulation,
        gpu=gpu,
        largest=largest,
        samples=samples,
        samples_from=where,
        steps=steps,
        passes=passes,
        hours=hours,
        disk=disk(settings, memory.saved, memory.optimizer + memory.paged, images, an_image),
        switches=worth_it(switches, memory),
        notes=notes,
    )


def setup_of(task: str, settings: Mapping[str, Any], gpu: Gpu | None, notes: list[str]) -> Setup:
    """What of the settings shapes the model; what had to be assumed is added to `notes`."""
    level = cache_level(settings)
    model, objectives = settings["model"], settings.get("objectives", {})
    attention = dict(model["attention"])
    for part, kind in model["attention"].items():
        if kind not in ("eager", "sdpa"):
            notes.append(
                f"model.attention: {part} is planned by sdpa, which keeps what {kind} does"
            )
            del attention[part]
    precision = model["precision"]
    if precision == "auto":
        precision = "fp32" if gpu is not None and not gpu.bf16 else "bf16"
    if precision == "bf16" and gpu is not None and not gpu.bf16:
        raise ValueError("model.precision is bf16, which this GPU lacks; use fp32 or fp16")
    return Setup(
        task=task,
        config=read_model_config(task, settings, notes),
        precision=precision,
        image_size=model["image_size"],
        checkpointing=tuple(model["gradient_checkpointing"]),
        parts=settings["parts"],
        lora=settings["lora"],
        quantize=settings["quantize"],
        optimizer=settings["optimizer"]["kind"],
        objectives={name: objectives[name] for name in ("itc", "itm", "itg") if objectives},
        attention=attention,
        level=level,
        features_dtype=torch.bfloat16 if settings["cache"]["dtype"] == "bf16" else torch.float32,
    )


def _largest(rehearsed: Rehearsed, gpu: Gpu, share: int, how: Mapping[str, Any]) -> int:
    """The largest micro-batch that fits; `share` is all that a process has of a step."""

    def fits(size: int) -> bool:
        return rehearsed.memory(size, accumulates=size < share, **how).total <= gpu.size

    if fits(share):  # nothing accumulates then, so that it may take less than a smaller one
        return share
    low, high = 0, share - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
