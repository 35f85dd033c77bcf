"""How a part computes, which changes its speed and memory, and of its results the rounding."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from blip2ft.models.parts import modules_of
from blip2ft.models.retriever import Retriever

COMPUTING = ("vision", "qformer", "language")
IN_PIECES = "model.compile names qformer, whose blocks retrieval runs in pieces; compile vision"


def check_kernels(task: str, attention: Collection[str], compile: Collection[str]) -> None:
    """Raise ValueError where parts are named that a model of `task` lacks, or can't compile.

    attention, compile: parts, as `choose_attention` and `compile_blocks` take them; no model is
    needed.
    """
    has = [part for part in COMPUTING if part != "language" or task != "retrieval"]
    for setting, parts in {"attention": attention, "compile": compile}.items():
        for part in parts:
            _check_part(part, has, setting)
    if task == "retrieval" and "qformer" in compile:
        raise ValueError(IN_PIECES)


def choose_attention(model: nn.Module, attention: Mapping[str, str]) -> None:
    """Let parts attend by another implementation than transformers' choice, in place.

    attention: by part; "eager", "sdpa" (the choice wherever a model can), "flash_attention_2" and
    what else transformers knows.

    Raises ValueError for a part that can't, and where a package that it needs isn't installed.
    """
    for part, kind in attention.items():
        for module in _modules(model, part, "attention"):
            try:
                module.set_attn_implementation(kind)
            except (ValueError, ImportError) as error:
                reason = str(error).strip().splitlines()[0]
                raise ValueError(
                    f"model.attention: {part} can't use {kind!r} ({reason}); leave it out for what "
                    "fits, or use eager or sdpa"
                ) from error


def compile_blocks(model: nn.Module, parts: Collection[str]) -> None:
    """Compile each block of `parts` with torch.compile, in place, for training steps alone.

    Equal blocks share their code: compiling takes a minute or so, not tens of them, and names of
    weights, adapters and checkpoints stay. Batches of a second shape are compiled once more, for
    any shape. Answers, whose every word has another shape, are computed as before.

    Raises ValueError for the Q-Former of a `Retriever`, whose passes share parts of a block, for
    dropout in one, and where this machine lacks a compiler.
    """
    if "qformer" in parts and isinstance(model, Retriever):
        raise ValueError(IN_PIECES)
    if parts:
        _check_compiler(next(model.parameters()).device)
    for part in parts:
        for module in _modules(model, part, "compile"):
            for block in module.modules():
                if isinstance(block, GradientCheckpointingLayer):
                    _check_dropout(model, block)
                    block.forward = _where_it_trains(torch.compile(block.forward), block.forward)


def _where_it_trains(compiled: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else plain)(*args, **kwargs)

    return forward


def _check_dropout(model: nn.Module, block: nn.Module) -> None:
    """GradCache computes a retriever's features twice, and compiled code draws another dropout."""
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in block.modules())
    if drops and isinstance(model, Retriever):
        raise ValueError(
            "model.compile names a part of a retriever that drops out, which has to be the same "
            "with and without gradients (objectives.cache_itc); set lora.dropout to 0"
        )


def _modules(model: nn.Module, part: str, setting: str) -> list[Any]:
    _check_part(part, [name for name in COMPUTING if modules_of(model, name)], setting)
    return [module for module in modules_of(model, part) if hasattr(module, "config")]


def _check_part(part: str, has: Collection[str], setting: str) -> None:
    if part not in has:
        raise ValueError(f"model.{setting} names {part!r}: this model has {', '.join(has)}")


def _check_compiler(device: torch.device) -> None:
    hint = "leave model.compile empty, or install it"
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        major, minor = torch.cuda.get_device_capability(device)
        if major < 7:
            raise ValueError(
                f"model.compile: this GPU has compute capability {major}.{minor}, torch.compile "
                "needs 7.0; leave model.compile empty"
            )
        if not has_triton():
            raise ValueError(f"model.compile needs triton, which isn't installed; {hint}")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(f"model.compile needs a C++ compiler on a CPU; {hint}") from error
