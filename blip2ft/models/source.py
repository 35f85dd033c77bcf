"""What the name of a checkpoint stands for: its config, whether its weights fit, what is wrong."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from blip2ft.hub import check_model_name
from blip2ft.models.parts import PARTS, check_quantized
from blip2ft.quiet import quiet_kernel_search


def quantization_config(quantize: Mapping[str, str], dtype: torch.dtype) -> Any:
    """The BitsAndBytesConfig that quantises exactly the parts in `quantize`; None for none.

    NF4 with double quantisation (QLoRA, arXiv 2305.14314, section 3) or LLM.int8. All other parts
    and the output head are named as skipped, because bitsandbytes quantises every Linear it isn't
    told to leave alone. Of a T5, transformers leaves `wo` alone too, which overflows in fp16.

    dtype: what 4-bit weights are multiplied in; 8-bit ones are in fp16, whatever it is.

    Raises ValueError for a part that can't be quantised and for other or mixed kinds.
    """
    quiet_kernel_search()  # here, as peft imports bitsandbytes too, of whatever is loaded
    if not quantize:
        return None
    check_quantized(quantize)
    kinds = set(quantize.values())
    if len(kinds) > 1 or not kinds <= {"nf4", "int8"}:
        told = " and ".join(f"{part} in {kind}" for part, kind in quantize.items())
        raise ValueError(f"quantize has {told}: allowed are nf4 and int8, the same for all parts")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise ValueError('quantising needs bitsandbytes: pip install "blip2ft[quantize]"') from None
    from transformers import BitsAndBytesConfig

    skipped = [name for part, names in PARTS.items() if part not in quantize for name in names]
    skipped += ["lm_head", "language_model.lm_head"]
    if kinds == {"int8"}:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped,
    )


def leave_unpacked(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights otherwise at their first answer, in place.

    It does so on CPUs with AVX512-BF16 (0.50, Linear4bit.forward), and such weights pass no
    gradient on, are wrong once moved to a GPU (bitsandbytes #2078), and round in bf16 whatever the
    compute dtype: a run would go wrong from its first evaluation on.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False


def read_config(
    name: str, revision: str | None = None, types: Collection[str] = ("blip-2",)
) -> PreTrainedConfig:
    """The config of a BLIP-2, or of another of `types`; ValueError for anything else."""
    check_model_name(name)
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        hint = ""
        if (folder / "blip2ft.json").is_file() or (folder / "adapter_config.json").is_file():
            hint = "; it holds trained weights only: pass it as the adapter, or export the run"
        elif (folder / "config.yaml").is_file():
            hint = f"; it is a run: blip2ft export {name} --out FOLDER makes a model of it"
        raise ValueError(f"{name} has no config.json, so it isn't a transformers model{hint}")
    with explained(name):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    if config.model_type not in types:
        allowed = " or ".join(map(repr, types))
        raise ValueError(
            f"{name} is a checkpoint of type {config.model_type!r}, not {allowed}; "
            "start from one such as Salesforce/blip2-opt-2.7b"
        )
    return config


def is_retriever(config: PreTrainedConfig) -> bool:
    """Whether the checkpoint compares images and texts, and has no language model."""
    names = ("Blip2ForImageTextRetrieval", "ClipRetriever")
    return any(name in names for name in config.architectures or ())


def check_weights(name: str, info: Mapping[str, Any], optional: str = "$^") -> None:
    """Refuse weights that don't fit, which transformers would fill with random numbers.

    info: as from_pretrained gives it; optional: pattern of names that may be missing.
    """
    for what in ("missing_keys", "mismatched_keys"):
        found = sorted(str(key) for key in info.get(what, ()))
        if what == "missing_keys":
            found = [name for name in found if not re.match(optional, name)]
        if found:
            raise ValueError(
                f"{name}: {len(found)} weights are {what.split('_')[0]} in the checkpoint, "
                f"such as {', '.join(found[:3])}; it is incomplete or its config is another's"
            )


class explained:
    """Turn what a missing or damaged checkpoint raises into a ValueError that names it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(" .:")
        hint = None
        if isinstance(error, UnpicklingError):
            reason = "its weights are damaged, or a pickle with code in it, which was not run"
            hint = "use a checkpoint with model.safetensors"
        elif isinstance(error, SafetensorError):
            reason = f"its weights are damaged ({reason})"
            hint = "download or export it again"
        elif isinstance(error, OSError) and error.errno is None:
            if Path(self.name).is_dir():
                hint = "download or export it again"
            else:
                reason = f"it is no folder here, and the hub gave no such model ({reason})"
                hint = "check the spelling, the network, or HF_HUB_OFFLINE; a private one needs "
                hint += "`hf auth login`"
        elif isinstance(error, HTTPError):
            reason = f"the connection to the hub broke off ({reason})"
            hint = "run the same command again"
        elif isinstance(error, ValueError):
            hint = "start from one such as Salesforce/blip2-opt-2.7b"
        if hint is not None:
            raise ValueError(f"can't load {self.name!r}: {reason}; {hint}") from error
