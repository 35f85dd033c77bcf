"""What a run starts from, and what of it trains and how."""

from dataclasses import dataclass, field
from typing import Literal

PartMode = Literal["frozen", "lora", "full"]
LoraInit = Literal["default", "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora", "eva"]


@dataclass(frozen=True)
class ModelConfig:
    """The checkpoint to start from and how to hold it.

    Args:
        name: Hub id or folder of a BLIP-2 checkpoint in transformers' format.
        revision: Branch, tag or commit of a hub checkpoint.
        image_size: Side of the square input in pixels; None keeps the checkpoint's. Another size
            interpolates the position embeddings (364 for captioning, appendix table 7).
        precision: How to compute. "auto" is bf16 autocast where the hardware has it, else fp32.
            Trained weights are fp32 in every case; frozen ones are kept in the compute precision.
        gradient_checkpointing: Parts that trade compute for memory, of vision, qformer, language.
        attention: Parts that attend by another implementation than transformers' choice, which is
            SDPA: such as {"vision": "flash_attention_2"}.
        compile: Parts whose blocks are compiled by torch.compile for training; the first steps
            then take minutes.
    """

    name: str
    revision: str | None = None
    image_size: int | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    gradient_checkpointing: list[Literal["vision", "qformer", "language"]] = field(
        default_factory=list
    )
    attention: dict[str, str] = field(default_factory=dict)
    compile: list[Literal["vision", "qformer", "language"]] = field(default_factory=list)


@dataclass(frozen=True)
class PartsConfig:
    """How each part of the model trains. The defaults are the paper's for captioning.

    Args:
        vision: The image encoder.
        qformer: The Q-Former with its query tokens.
        projection: The projection from the Q-Former into the language model.
        language: The language model.
    """

    vision: PartMode = "full"
    qformer: PartMode = "full"
    projection: PartMode = "full"
    language: PartMode = "frozen"


@dataclass(frozen=True)
class LoraConfig:
    """The adapters of the parts in mode "lora".

    Args:
        r: Rank of the update.
        alpha: The update is scaled by alpha / r, or by alpha / sqrt(r) with rslora.
        dropout: Dropout probability on the adapter's input.
        dora: Train magnitude and direction apart (arXiv 2402.09353).
        rslora: Rank-stabilised scaling (arXiv 2312.03732).
        init: Where the factors start: "default" (A random, B zero), "gaussian", "orthogonal", or
            from the weight itself: "pissa" (arXiv 2404.02948), "pissa_niter_16" (the same, nearly,
            in a fraction of the time), "olora" (arXiv 2406.01775); or from what the layers read of
            the first samples: "eva" (arXiv 2410.07170), at the rank that is given.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    dora: bool = False
    rslora: bool = False
    init: LoraInit = "default"


@dataclass(frozen=True)
class CacheConfig:
    """What a frozen image encoder computes, kept on disk; see blip2ft/features/.

    Args:
        folder: Where to keep it; None computes it in every step. Images that aren't augmented
            (data.crop_scale null, data.flip false) are then encoded once, before the first step.
        dtype: How to keep it. Under bf16 computing, "bf16" loses nothing; "fp32" keeps fp32 runs
            exact; "int8" takes 0.53 of bf16, with an error of up to 1/254 of the largest of 64
            channels.
    """

    folder: str | None = None
    dtype: Literal["bf16", "fp32", "int8"] = "bf16"
