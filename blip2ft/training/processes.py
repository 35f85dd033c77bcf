"""Start Accelerate with a precision that the hardware and the model can bear."""

import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    LoggerType,
    broadcast_object_list,
    patch_environment,
)
from transformers import PreTrainedConfig

from blip2ft.errors import IN_PLACE_OF_DEEPSPEED
from blip2ft.gather import is_distributed
from blip2ft.training.presence import attend
from blip2ft.training.sharded import ASKED, asked_sharding

# Variables by which `accelerate launch` asks for models in pieces of another kind than FSDP's.
IN_PIECES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
# The others wait while one process scores with SPICE, which may take longer than NCCL's 10 minutes.
# Of one that ended they learn at once: see presence.py.
TIMEOUT = timedelta(hours=3)
# What frozen weights are kept in, by precision.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

logger = logging.getLogger(__name__)


def start_processes(precision: str, log_with: list[str], output: str | Path) -> Accelerator:
    """An Accelerator for "auto", "fp32", "bf16" or "fp16".

    "auto" takes what `accelerate launch --mixed_precision` asked for, else bf16 on hardware that
    has it, else fp32. Accumulation is the loop's own, and so is FSDP (see sharded.py), whatever
    Accelerate was told of them.

    Raises ValueError for bf16 on a GPU that lacks it, fp16 without a GPU, trackers that aren't
    installed, for what else holds a model in pieces, and as `asked_sharding` does.
    """
    check_trackers(log_with)
    for variable, name in IN_PIECES.items():
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise ValueError(_no_pieces(f"{name} ({variable} is true)"))
    asked_sharding()
    # transformers would give weights to the first process alone
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    bf16_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        precision = asked if asked in ("bf16", "fp16") else ("bf16" if bf16_gpu else "fp32")
    if precision == "bf16" and torch.cuda.is_available() and not bf16_gpu:
        raise ValueError(
            "model.precision is bf16, which this GPU lacks; use fp32, or fp16 for OPT models"
        )
    has_device = torch.accelerator.is_available()
    if precision == "fp16" and not has_device:
        raise ValueError(
            "model.precision is fp16, which needs a GPU, and torch finds none here; on a CPU use "
            "fp32 or bf16, or leave it at auto without --mixed_precision fp16"
        )
    if int(os.environ.get("RANK", "0")):
        logging.getLogger("blip2ft").setLevel(logging.WARNING)  # the first process says it all
    mixed = "no" if precision == "fp32" else precision
    with patch_environment(**{ASKED: "false"}):  # Accelerate's own FSDP needs a GPU
        accelerator = Accelerator(
            # untold, several processes without a device would each take themselves for the only one
            cpu=not has_device,
            mixed_precision=mixed,
            log_with=log_with or None,
            project_dir=str(output),
            # a plugin, since a number gives way to ACCELERATE_GRADIENT_ACCUMULATION_STEPS
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
        )
    if not is_distributed() and _meant_for_several():
        logger.warning(
            "accelerate launch was told of several processes, and starts this one alone where it "
            "finds no GPU: on a CPU, torchrun --standalone --nproc_per_node N starts several"
        )
    if is_distributed():
        attend(accelerator.process_index, accelerator.num_processes, broadcast_object_list)
    kind = accelerator.distributed_type.value
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise ValueError(_no_pieces(kind))
    return accelerator


def _meant_for_several() -> bool:
    """Whether `accelerate launch` gave this process, but no other, an address to meet others at."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    return launched and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ


def usable_workers(workers: int) -> int:
    """So many loading processes, but no more than this process has cores: they would only wait."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if workers > cores:
        logger.info("data.workers is %d, of which %d are used, one for each core", workers, cores)
    return min(workers, cores)


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError for a tracker that Accelerate doesn't know, or would leave out silently."""
    known = [str(name.value) for name in LoggerType]
    installed = [str(name.value) for name in get_available_trackers()]
    for name in names:
        if name not in known:
            raise ValueError(
                f"train.log_with has {name!r}: allowed are {', '.join(known)}, or [] for none"
            )
        if name != "all" and name not in installed:
            package = name.replace("_", "-")
            raise ValueError(
                f"train.log_with has {name!r}, which isn't installed: pip install {package}, or "
                "leave it out"
            )


def _no_pieces(name: str) -> str:
    instead = (
        "allowed are one process, several that hold the whole model each "
        "(recipes/accelerate/ddp.yaml), or FSDP2 (recipes/accelerate/fsdp2.yaml)"
    )
    if name.startswith("DeepSpeed"):
        instead = IN_PLACE_OF_DEEPSPEED
    return f"accelerate was told to use {name}; {instead}"


def precision_of(accelerator: Accelerator) -> str:
    """What the accelerator computes in: "fp32", which Accelerate calls "no", "bf16" or "fp16"."""
    precision = accelerator.mixed_precision
    return "fp32" if precision == "no" else precision


def frozen_dtype(accelerator: Accelerator, config: PreTrainedConfig) -> torch.dtype:
    """The dtype to keep frozen weights in: that of the computation.

    Raises ValueError for FlanT5 in fp16: its activations pass 65504 and become infinite
    (transformers #20287).
    """
    if accelerator.mixed_precision == "fp16" and config.text_config.model_type == "t5":
        raise ValueError("FlanT5 overflows in fp16; set model.precision to bf16 or fp32")
    return DTYPES[precision_of(accelerator)]
