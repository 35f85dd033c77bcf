"""A plan as text for a person, and as JSON for a program."""

from dataclasses import replace
from typing import Any

from blip2ft.counted import counted
from blip2ft.models.parts import PARTS
from blip2ft.plan.gpu import CONTEXT, FRAGMENTS, GB
from blip2ft.plan.plan import Plan

COLUMNS = f"{'':<13}{'mode':<8}{'held in':<15}"


def as_text(plan: Plan) -> str:
    """The tables of a plan, in GB of 10^9 bytes."""
    memory, setup = plan.memory, plan.setup
    lines = [
        _heading(plan),
        "",
        f"memory of one GPU in GB (10^9 bytes), micro-batch {plan.micro_batch_size}",
        f"{COLUMNS}{'weights':>9}{'gradients':>11}{'AdamW':>8}{'activations':>13}",
    ]
    all_trained = max(1, memory.trained)
    for part in PARTS:
        if part not in memory.parts:
            continue
        row = memory.parts[part]
        held = "+".join(_short(dtype) for dtype in row.dtypes)
        gradients = memory.gradients * row.trained / all_trained
        lines.append(
            f"{part:<13}{setup.parts[part]:<8}{held:<15}{_gb(row.size):>9}{_gb(gradients):>11}"
            f"{_gb(row.averages):>8}{_gb(memory.activations.get(part, 0)):>13}"
        )
    activations = sum(memory.activations.values())
    lines.append(
        f"{'all parts':<36}{_gb(memory.weights):>9}{_gb(memory.gradients):>11}"
        f"{_gb(memory.optimizer):>8}{_gb(activations):>13}"
    )
    for name, size in (
        (f"trained weights in {setup.precision}, kept by autocast", memory.casts),
        ("batch and loss", memory.loss),
        ("gradients on their way to other processes (DDP)", memory.buckets),
        ("CUDA's context and workspaces: a constant, not measured", memory.context),
        (f"what the allocator can't use: {FRAGMENTS:.0%}, a guess, not measured", memory.fragments),
    ):
        if size:
            lines.append(f"{name:<69}{_gb(size):>8}")
    lines.append(f"{'peak of a step':<69}{_gb(memory.total):>8}")
    if memory.paged:
        pages = "AdamW's averages in pages: on the host where the GPU has no room"
        lines.append(f"{pages:<69}{_gb(memory.paged):>8}")
    lines += ["", *_fit(plan), *_length(plan), _disk(plan), _saving(plan)]
    if plan.switches:
        lines += ["", "what would save memory, each alone"]
        for switch in plan.switches:
            lines.append(
                f"  {switch.option:<60}{'-' + _gb(switch.saves):>9}  ->{_gb(switch.total):>8}"
            )
    return "\n".join(lines + _notes(plan))


def as_host_text(plan: Plan, free: int, libraries: int) -> str:
    """What is known of a run without a GPU: the memory of its steps against that of the host.

    free: bytes that the host has; libraries: bytes of a process that has computed nothing yet.
    """
    memory = replace(plan.memory, context=0, fragments=0)  # which are a GPU's
    copy = plan.disk["checkpoint"]
    total = plan.processes * (memory.total + libraries) + copy
    verdict = "it fits" if total <= free else "too much; train.micro_batch_size 1 takes the least"
    lines = [
        _heading(plan),
        "",
        f"memory       about {_gb(total)} GB of the {_gb(free)} GB that are free here: {verdict}",
        f"             a process: {_gb(memory.total)} for a step of micro-batch "
        f"{plan.micro_batch_size}, {_gb(libraries)} for Python and its libraries",
        f"             the first one: {_gb(copy)} more while it writes a checkpoint",
        "for a GPU    pass --gpu, such as 24GB or a100-40",
        _step(plan),
        *_length(plan),
        _disk(plan),
    ]
    return "\n".join(lines + _notes(plan))


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan in bytes, counts and hours; null is unknown."""
    memory = plan.memory
    return {
        "task": plan.setup.task,
        "model": plan.model,
        "precision": plan.setup.precision,
        "image_size": plan.setup.pixels,
        "longest_text": plan.text,
        "memory": {
            "total": memory.total,
            "weights": {part: row.size for part, row in memory.parts.items()},
            "dtypes": {part: list(row.dtypes) for part, row in memory.parts.items()},
            "gradients": memory.gradients,
            "optimizer": memory.optimizer,
            "optimizer_pages": memory.paged,
            "activations": dict(memory.activations),
            "autocast": memory.casts,
            "batch_and_loss": memory.loss,
            "ddp_buckets": memory.buckets,
            "cuda_context": memory.context,
            "fragments": memory.fragments,
        },
        "trained": {part: row.trained for part, row in memory.parts.items()},
        "micro_batch_size": plan.micro_batch_size,
        "batch_size": plan.batch_size,
        "processes": plan.processes,
        "accumulation": plan.accumulation,
        "gpu": None if plan.gpu is None else plan.gpu.size,
        "largest_micro_batch": plan.largest,
        "samples": plan.samples,
        "steps": plan.steps,
        "epochs": plan.passes,
        "hours": plan.hours,
        "disk": dict(plan.disk),
        "host_while_saving": plan.disk["checkpoint"],
        "switches": [
            {"option": switch.option, "saves": switch.saves, "total": switch.total}
            for switch in plan.switches
        ],
        "notes": list(plan.notes),
        "not_measured": {"cuda_context": CONTEXT, "fragments": FRAGMENTS},
    }


def _heading(plan: Plan) -> str:
    setup = plan.setup
    return (
        f"{setup.task} with {plan.model}, {setup.precision}, {setup.pixels} px, longest text: "
        f"{plan.text}"
    )


def _step(plan: Plan) -> str:
    return (
        f"step         {counted(plan.batch_size, 'sample')}: {counted(plan.processes, 'process')} "
        f"x {counted(plan.accumulation, 'micro-batch')} of {plan.micro_batch_size}"
    )


def _fit(plan: Plan) -> list[str]:
    if plan.gpu is None:
        return [_step(plan), "fits         pass --gpu, such as 24GB or a100-40, to know"]
    size, free = plan.gpu.size, plan.gpu.size - plan.memory.total
    verdict = f"yes, {_gb(free)} GB spare" if free >= 0 else f"no, {_gb(-free)} GB too much"
    share = plan.batch_size // plan.processes
    if not plan.largest:
        largest = "largest      not even a micro-batch of 1 fits"
    else:
        waits = -(-share // plan.largest)
        also = ": all that a process has of a step" if plan.largest == share else ""
        largest = f"largest      micro-batch {plan.largest}, accumulating {waits}{also}"
    return [_step(plan), f"fits         {_gb(size)} GB: {verdict}", largest]


def _length(plan: Plan) -> list[str]:
    if plan.steps is None:
        steps = f"unknown: give --samples N ({plan.samples_from})"
    else:
        steps = f"{plan.steps:,}"
        if plan.passes is not None:
            steps += f", {plan.passes:.1f} epochs of {counted(plan.samples or 0, 'sample')}"
    if plan.hours is not None:
        time = f"{plan.hours:.1f} h of training; evaluations and checkpoints come on top"
    elif plan.steps is None:
        time = "unknown, as the steps are"
    else:
        time = "unknown: give --images-per-second X, or --like RUN for an earlier run's"
    return [f"steps        {steps}", f"time         {time}"]


def _saving(plan: Plan) -> str:
    copy = _gb(plan.disk["checkpoint"])
    return (
        f"host         {copy} GB of its memory, on the first process, while a checkpoint is written"
    )


def _notes(plan: Plan) -> list[str]:
    return ["", *(f"note: {note}" for note in plan.notes)] if plan.notes else []


def _disk(plan: Plan) -> str:
    disk = plan.disk
    text = (
        f"{_gb(disk['checkpoint'])} GB a checkpoint, at most {_gb(disk['checkpoints'])} GB of "
        f"them; adapter {_gb(disk['adapter'])} GB"
    )
    if disk["cache"]:
        text += f"; shards in the cache up to {_gb(disk['cache'])} GB"
    if disk["features"]:
        text += f"; kept features {_gb(disk['features'])} GB"
    return f"disk         {text}"


def _gb(size: float) -> str:
    return f"{size / GB:.2f}"


def _short(dtype: str) -> str:
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(dtype, dtype)
