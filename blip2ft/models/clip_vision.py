"""CLIP's image encoder in a BLIP-2, as in the original's ViT-L checkpoints.

It is stock's `Blip2VisionModel` with one norm more, between the embeddings and the first block, and
without a bias of the patch embedding. So that is what is built here, and not a `CLIPVisionModel`
behind an adapter: all names are those of ViT-g, so that parts, LoRA, quantising, gradient
checkpointing and another image size work as they are. The norm is one of the embeddings, so that it
learns at their rate, as LAVIS models/clip_vit.py, get_num_layer, means it to. At another image size
positions are interpolated as transformers' CLIP does; the original aligns corners here, and here
alone (clip_vit.py, interpolate_pos_embed).

A checkpoint says that it has this encoder in `vision_config.hidden_act`, which starts with
"blip2ft.". Stock transformers stops at an activation that it doesn't know (KeyError); it would pass
over an unknown field, or over the norm's weights, and compute something else.
"""

from typing import Any

from torch import Tensor, nn
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2VisionModel,
    InstructBlipForConditionalGeneration,
    PreTrainedConfig,
)

from blip2ft.models.retriever import Retriever
from blip2ft.models.source import is_retriever

# Before the name of the activation.
MARK = "blip2ft."
CLIP_ACT = MARK + "quick_gelu"


class _ClipEncoder:
    """Mixed into a stock class: its image encoder becomes CLIP's."""

    def __init__(self, config: PreTrainedConfig) -> None:
        vision = getattr(config, "vision_config", config)
        marked = vision.hidden_act
        # only while the blocks look their activation up: any copy of the config keeps the mark
        vision.hidden_act = marked.removeprefix(MARK)
        try:
            super().__init__(config)  # type: ignore[call-arg]
        finally:
            vision.hidden_act = marked
        encoder: Any = getattr(self, "vision_model", self)
        embeddings = encoder.embeddings
        embeddings.patch_embedding.bias = None
        like = embeddings.class_embedding
        embeddings.pre_layernorm = nn.LayerNorm(
            vision.hidden_size, eps=vision.layer_norm_eps, device=like.device, dtype=like.dtype
        )
        embeddings.register_forward_hook(_normalize)


def _normalize(embeddings: Any, inputs: Any, output: Tensor) -> Tensor:
    return embeddings.pre_layernorm(output)


class ClipVisionModel(_ClipEncoder, Blip2VisionModel):
    """CLIP's image encoder alone, with BLIP-2's norm after the blocks."""


class ClipCaptioner(_ClipEncoder, Blip2ForConditionalGeneration):
    """A BLIP-2 that generates text, on CLIP's image encoder."""


class ClipInstructBlip(_ClipEncoder, InstructBlipForConditionalGeneration):
    """A BLIP-2 whose Q-Former reads the question, on CLIP's image encoder."""


class ClipRetriever(_ClipEncoder, Retriever):
    """A `Retriever` on CLIP's image encoder."""

    ARCHITECTURE = "ClipRetriever"


_CLASSES: dict[type, type] = {
    Blip2VisionModel: ClipVisionModel,
    Blip2ForConditionalGeneration: ClipCaptioner,
    InstructBlipForConditionalGeneration: ClipInstructBlip,
    Retriever: ClipRetriever,
}


def is_clip(config: PreTrainedConfig) -> bool:
    """Whether the image encoder of a model, or a `vision_config`, is CLIP's."""
    return getattr(config, "vision_config", config).hidden_act.startswith(MARK)


def class_for(stock: type, config: PreTrainedConfig) -> Any:
    """The class that builds the model of `config`: `stock`, or its like on CLIP's image encoder.

    stock: Blip2ForConditionalGeneration, InstructBlipForConditionalGeneration, Blip2VisionModel or
      our `Retriever`.
    """
    return _CLASSES[stock] if is_clip(config) else stock


def who_loads(config: PreTrainedConfig) -> str:
    """What loads a saved model of `config`, in words."""
    if not is_clip(config):
        return "stock transformers loads it"
    loader = "load_retriever" if is_retriever(config) else "load_captioner"
    if config.model_type == "instructblip":
        loader = "load_vqa"
    return f"blip2ft.{loader} loads it, stock transformers can't, as its image encoder is CLIP's"
