"""Start Accelerate with a precision that the hardware and the model can bear."""

import logging
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PreTrainedConfig


def start_processes(precision: str, log_with: list[str], output: str | Path) -> Accelerator:
    """An Accelerator for "auto", "fp32", "bf16" or "fp16".

    "auto" takes what `accelerate launch --mixed_precision` asked for, else bf16 on hardware that
    has it, else fp32. Raises ValueError for bf16 on a GPU that lacks it.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    bf16_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        precision = asked if asked in ("bf16", "fp16") else ("bf16" if bf16_gpu else "fp32")
    if precision == "bf16" and torch.cuda.is_available() and not bf16_gpu:
        raise ValueError(
            "model.precision is bf16, which this GPU lacks; use fp32, or fp16 for OPT models"
        )
    if int(os.environ.get("RANK", "0")):
        logging.getLogger("blip2ft").setLevel(logging.WARNING)  # the first process says it all
    mixed = "no" if precision == "fp32" else precision
    return Accelerator(mixed_precision=mixed, log_with=log_with or None, project_dir=str(output))


def frozen_dtype(accelerator: Accelerator, config: PreTrainedConfig) -> torch.dtype:
    """The dtype to keep frozen weights in: that of the computation.

    Raises ValueError for FlanT5 in fp16: its activations pass 65504 and become infinite
    (transformers #20287).
    """
    if accelerator.mixed_precision == "fp16" and config.text_config.model_type == "t5":
        raise ValueError("FlanT5 overflows in fp16; set model.precision to bf16 or fp32")
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(
        accelerator.mixed_precision, torch.float32
    )
