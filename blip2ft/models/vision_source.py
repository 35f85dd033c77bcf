"""The image encoder of a BLIP-2 to be: out of a BLIP-2, out of CLIP, or out of the original's file.

"The second last layer's features" (paper, section 3.1): what is no BLIP-2 yet loses its last block
and its last norm, and gets BLIP-2's norm, new, in their place. (Of ViT-L's 24 blocks that keeps 23;
the original's ViT-L checkpoints are said to have 21, in its issues 216 and 609.)
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionModel,
    PreTrainedConfig,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from blip2ft.hub import check_model_name
from blip2ft.models.build import empty_model
from blip2ft.models.clip_vision import MARK, class_for
from blip2ft.models.original import compare
from blip2ft.models.original_vision import read_original_vision
from blip2ft.models.source import check_weights, explained

_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
    "initializer_range",
)
# transformers' names of CLIP, where they differ from BLIP-2's; q, k and v are one there.
_CLIP_NAMES = {
    "embeddings.position_embedding.weight": "embeddings.position_embedding",
    "pre_layrnorm.": "embeddings.pre_layernorm.",
    "self_attn.out_proj.": "self_attn.projection.",
}
_QUERY = re.compile(r"(.+\.self_attn\.)q_proj(\..+)")
_CLIP_IMAGES: dict[str, Any] = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}


class VisionSource(NamedTuple):
    """An image encoder, its class being `class_for(Blip2VisionModel, config)`.

    state: its tensors, by the names of that class: a BLIP-2's without "vision_model.".
    image_processor: image_mean, image_std and size, as transformers' image processors take them.
    """

    config: Blip2VisionConfig
    state: dict[str, Tensor]
    image_processor: dict[str, Any]


def read_vision(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    num_attention_heads: int | None = None,
) -> VisionSource:
    """Read an image encoder, without what a BLIP-2 has no use for.

    name: hub id or folder of a BLIP-2 (captioner, retriever or InstructBLIP) or of a
      `Blip2VisionModel`, whose image encoder is taken as it is; or of a CLIP with an image
      encoder, such as openai/clip-vit-large-patch14, without its last block; or a file of the
      original, eva_vit_g.pth or clip_vit_L.pth, with the blocks that the original keeps.
    dtype: of the tensors.
    num_attention_heads: of a file, where they aren't 88 (EVA-CLIP) or 64 (CLIP) wide.

    The norm after the blocks is new (ones and zeros) but for a BLIP-2's.

    Raises ValueError for a checkpoint that is missing, damaged, or has no such image encoder.
    """
    if Path(name).is_file():
        settings, tensors = read_original_vision(Path(name), dtype, num_attention_heads)
        tensors |= _new_norm(settings["hidden_size"], dtype)
        return _checked(str(name), settings, tensors, _CLIP_IMAGES)
    name = str(name)
    if num_attention_heads is not None:
        raise ValueError(
            f"num_attention_heads is {num_attention_heads}, but {name} is no file of the original: "
            "its config says how many it has; leave it out"
        )
    check_model_name(name)
    with explained(name):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    if config.model_type in ("blip-2", "instructblip", "blip_2_vision_model"):
        settings, tensors = _from_blip2(name, revision, config, dtype)
    elif config.model_type in ("clip", "clip_vision_model"):
        settings, tensors = _from_clip(name, revision, config, dtype)
    else:
        raise ValueError(
            f"{name} is a checkpoint of type {config.model_type!r}, which has no image encoder for "
            "a BLIP-2; take it from a BLIP-2 such as Salesforce/blip2-itm-vit-g, a CLIP such as "
            "openai/clip-vit-large-patch14, or the original's file eva_vit_g.pth"
        )
    return _checked(name, settings, tensors, _image_settings(name, revision))


def _from_blip2(
    name: str, revision: str | None, config: PreTrainedConfig, dtype: torch.dtype
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    vision = getattr(config, "vision_config", config)
    settings = {field: getattr(vision, field) for field in (*_FIELDS, "qkv_bias")}
    with explained(name):
        model, info = class_for(Blip2VisionModel, config).from_pretrained(
            name,
            revision=revision,
            config=Blip2VisionConfig(**settings),
            dtype=dtype,
            key_mapping={r"^vision_model\.": ""},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    check_weights(name, info)
    return settings, model.state_dict()


def _from_clip(
    name: str, revision: str | None, config: PreTrainedConfig, dtype: torch.dtype
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with explained(name):
        model, info = CLIPVisionModel.from_pretrained(
            name,
            revision=revision,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    check_weights(name, info)
    vision = getattr(config, "vision_config", config)
    settings = {field: getattr(vision, field) for field in _FIELDS}
    settings["hidden_act"] = MARK + vision.hidden_act
    settings["num_hidden_layers"] = vision.num_hidden_layers - 1
    dropped = ("post_layernorm.", f"encoder.layers.{vision.num_hidden_layers - 1}.")
    found = {n: t for n, t in model.state_dict().items() if not n.startswith(dropped)}
    tensors: dict[str, Tensor] = {}
    for old, tensor in found.items():
        query, new = _QUERY.fullmatch(old), old
        for theirs, ours in _CLIP_NAMES.items():
            new = new.replace(theirs, ours)
        if query:
            three = [found[f"{query[1]}{part}_proj{query[2]}"] for part in "qkv"]
            tensors[f"{query[1]}qkv{query[2]}"] = torch.cat(three)
        elif "k_proj" not in old and "v_proj" not in old:
            tensors[new] = tensor
    for embedding in ("embeddings.class_embedding", "embeddings.position_embedding"):
        tensors[embedding] = tensors[embedding].reshape(1, -1, vision.hidden_size)
    return settings, tensors | _new_norm(vision.hidden_size, dtype)


def _new_norm(width: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        "post_layernorm.weight": torch.ones(width, dtype=dtype),
        "post_layernorm.bias": torch.zeros(width, dtype=dtype),
    }


def _image_settings(name: str, revision: str | None) -> dict[str, Any]:
    """Mean and deviation of the checkpoint's image processor, CLIP's where it has none."""
    try:
        processor = AutoImageProcessor.from_pretrained(
            name, revision=revision, trust_remote_code=False, backend="pil"
        )
    except (OSError, ValueError):
        return _CLIP_IMAGES
    return {what: list(getattr(processor, what)) for what in _CLIP_IMAGES}


def _checked(
    name: str, settings: dict[str, Any], tensors: dict[str, Tensor], images: dict[str, Any]
) -> VisionSource:
    """The image encoder, if its tensors are all that its class needs; else ValueError."""
    config = Blip2VisionConfig(**settings)
    expected = empty_model(Blip2VisionModel, config).state_dict()
    missing, unexpected, misshapen = compare(tensors, expected)
    wrong = [*missing, *unexpected, *misshapen]
    if wrong:
        raise ValueError(
            f"can't take the image encoder of {name}: {len(missing)} tensors are missing, "
            f"{len(unexpected)} unexpected and {len(misshapen)} misshapen, such as {wrong[0]}; it "
            "is incomplete, or another model's"
        )
    size = {"height": config.image_size, "width": config.image_size}
    return VisionSource(config, tensors, images | {"size": size})
