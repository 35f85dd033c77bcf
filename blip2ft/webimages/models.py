"""The two models of CapFilt: one that writes captions, one that says how well a text fits."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blip2ft.captioner import DEFAULT_PROMPT, default_device
from blip2ft.data.batches import text_layout
from blip2ft.data.images import transforms_for
from blip2ft.data.pairs import pair_layout
from blip2ft.export import DTYPES
from blip2ft.finetuned import load_finetuned
from blip2ft.models.hub_adapter import holds_adapter, read_notes
from blip2ft.models.load import load_captioner, load_retriever
from blip2ft.tasks.candidates import Captioner, Scorer

TEXT_TOKENS = 35  # LAVIS reads no longer texts for retrieval
OBJECTIVES = {"itc": 1.0, "itm": 1.0}  # the head of ITG isn't needed, nor looked for
SEEN = 64  # numbers of each tensor that a digest is of, about


def choose_device(dtype: str) -> tuple[torch.device, str]:
    """This process's device, and "fp32" or "bf16": for "auto" bf16 on a GPU that has it."""
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: allowed are auto, {', '.join(DTYPES)}")
    device = default_device()
    half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return device, ("bf16" if half else "fp32") if dtype == "auto" else dtype


def open_captioner(
    name: str | Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantize: Mapping[str, str],
    prompt: str | None,
    max_new_tokens: int,
) -> Captioner:
    """The model of a hub id, a folder or a run.

    prompt: None is what it was tuned on, else "a photo of".

    Raises ValueError for what doesn't caption, and for captions longer than its positions.
    """
    model, processor, description = _load(name, "caption", dtype, quantize)
    layout = text_layout(model, processor, max_target_tokens=max_new_tokens)
    _, transform = transforms_for(processor.image_processor)
    if prompt is None:
        prompt = description.get("prompt", DEFAULT_PROMPT)
    return Captioner(model.to(device), layout, transform, prompt)


def open_scorer(
    name: str | Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantize: Mapping[str, str],
    score: str,
) -> Scorer:
    """The model of a hub id, a folder or a run, for a score of `SCORES`.

    Texts are cut to the tokens that it was tuned on, else to `TEXT_TOKENS`.

    Raises ValueError for what doesn't compare images with texts, or was tuned to do so otherwise.
    """
    model, processor, description = _load(name, "retrieval", dtype, quantize)
    objectives = description.get("objectives", OBJECTIVES)
    lacking = [objective for objective in score.split("+") if not objectives.get(objective)]
    if lacking:
        raise ValueError(
            f"{name} was tuned without {lacking[0]} ({', '.join(objectives)}), so its score "
            f"{score} means nothing; choose another --score, or another --scorer"
        )
    positions = model.config.qformer_config.max_position_embeddings
    tokens = description.get("max_text_tokens", min(TEXT_TOKENS, positions))
    _, transform = transforms_for(processor.image_processor)
    return Scorer(model.to(device), pair_layout(model, processor, tokens), transform)


def digest(model: nn.Module) -> str:
    """What tells a model's weights from others': of some numbers of each tensor, 16 digits.

    The head of ITG is left out: it is random where a checkpoint has none.
    """
    total = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not name.startswith("itg_head."):
            few = parameter.detach().flatten()[:: max(1, parameter.numel() // SEEN)]
            total.update(name.encode() + few.float().cpu().numpy().tobytes())
    return total.hexdigest()[:16]


def _load(
    name: str | Path, task: str, dtype: torch.dtype, quantize: Mapping[str, str]
) -> tuple[Any, Any, dict[str, Any]]:
    """Model, processor and what is known of how it was tuned."""
    folder = Path(name)
    a_run = folder.is_dir() and not (folder / "config.json").is_file()
    if a_run or holds_adapter(str(name)):
        model, processor, description = load_finetuned(name, dtype=dtype, quantize=quantize)
        if description["task"] != task:
            raise ValueError(
                f"{name} is a run of the task {description['task']}, and one of {task} is needed "
                "here; pass another --captioner or --scorer"
            )
        return model, processor, description
    if task == "caption":
        model, processor = load_captioner(name, dtype=dtype, quantize=quantize)
    else:
        model, processor = load_retriever(
            name, dtype=dtype, quantize=quantize, objectives=OBJECTIVES
        )
    return model, processor, read_notes(name)
