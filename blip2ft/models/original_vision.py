"""The image encoder in a file of the original: its sizes, and the blocks that BLIP-2 keeps.

Names and sizes are those of the original's code; no file that it publishes was at hand.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blip2ft.models.clip_vision import CLIP_ACT
from blip2ft.models.lavis import encoder_of, to_transformers
from blip2ft.models.original import read_original

ORIGINAL, OURS = "visual_encoder.", "vision_model."
CLIP_HEAD_WIDTH = 64


class _Layout(NamedTuple):
    """What the original's tensors of an image encoder are called, and what they don't show."""

    patches: str
    positions: str
    hidden: str
    block: str
    unused: tuple[str, ...]
    head_width: int
    whole: tuple[int, int]  # width of the published encoder, and the blocks kept of it
    settings: dict[str, Any]


# LAVIS models/eva_vit.py, create_eva_vit_g, and models/clip_vit.py, create_clip_vit_L.
_LAYOUTS = {
    "eva": _Layout(
        patches="visual_encoder.patch_embed.proj.weight",
        positions="visual_encoder.pos_embed",
        hidden="visual_encoder.blocks.0.mlp.fc1.weight",
        block="visual_encoder.blocks.",
        unused=("visual_encoder.norm.", "visual_encoder.fc_norm.", "visual_encoder.head."),
        head_width=88,
        whole=(1408, 39),
        settings={"hidden_act": "gelu", "layer_norm_eps": 1e-6},
    ),
    "clip": _Layout(
        patches="visual_encoder.conv1.weight",
        positions="visual_encoder.positional_embedding",
        hidden="visual_encoder.transformer.resblocks.0.mlp.c_fc.weight",
        block="visual_encoder.transformer.resblocks.",
        unused=("visual_encoder.ln_post.", "visual_encoder.proj"),
        head_width=CLIP_HEAD_WIDTH,
        whole=(1024, 23),
        settings={"hidden_act": CLIP_ACT, "layer_norm_eps": 1e-5},
    ),
}


def original_sizes(
    state: Mapping[str, Tensor], num_attention_heads: int | None = None
) -> dict[str, Any]:
    """The vision config, as a dict, of the image encoder in the original's `state`.

    Sizes are read off the tensors; heads are 88 wide in EVA-CLIP, 64 in CLIP, unless their number
    is given. The published ViT-L checkpoints are said to have 21 blocks, with which they were
    trained (issues 216 and 609 of LAVIS); its later code builds 23 around them.

    Raises ValueError where tensors that show the sizes are missing, and for heads that don't divide
    the width.
    """
    layout = _LAYOUTS[encoder_of(state) or "eva"]
    shapes = []
    for name in (layout.patches, layout.positions, layout.hidden):
        tensor = state.get(name)
        if tensor is None or tensor.dim() < 2:
            raise ValueError(
                f"it lacks {name}, which shows the size of the image encoder; it is incomplete, or "
                "another model's"
            )
        shapes.append(tensor.shape)
    patches, positions, hidden = shapes
    width, patch = patches[0], patches[-1]
    heads = width / layout.head_width if num_attention_heads is None else num_attention_heads
    if heads < 1 or heads != int(heads) or width % heads:
        raise ValueError(
            f"an image encoder of width {width} can't have {heads:.3g} attention heads; the "
            f"original's are {layout.head_width} wide, read_vision takes another number of them"
        )
    return {
        "hidden_size": width,
        "intermediate_size": hidden[0],
        "num_hidden_layers": 1 + max(_block_number(name, layout.block) for name in state),
        "num_attention_heads": int(heads),
        "image_size": round((positions[-2] - 1) ** 0.5) * patch,
        "patch_size": patch,
        **layout.settings,
    }


def read_original_vision(
    path: Path, dtype: torch.dtype, num_attention_heads: int | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The vision config, as a dict, and the tensors of an image encoder alone, by our names.

    Of EVA-CLIP's ViT-g and CLIP's ViT-L as many blocks are kept as the original keeps, of others
    all but the last. There is no norm after the blocks among the tensors.

    Raises ValueError for other files.
    """
    state = {ORIGINAL + name: tensor for name, tensor in read_original(path).items()}
    encoder = encoder_of(state)
    if encoder is None:
        raise ValueError(
            f"{path} holds no image encoder of the original: neither EVA-CLIP's names (cls_token, "
            "blocks.0...) nor CLIP's (class_embedding, transformer.resblocks.0...); of a whole "
            "BLIP-2 of the original, blip2ft convert makes a folder"
        )
    layout = _LAYOUTS[encoder]
    try:
        sizes = original_sizes(state, num_attention_heads)
        width, blocks = sizes["hidden_size"], sizes["num_hidden_layers"]
        kept = layout.whole[1] if width == layout.whole[0] else blocks - 1
        if not 1 <= kept <= blocks:
            raise ValueError(f"it has {blocks} blocks, of which {kept} can't be kept")
        sizes["num_hidden_layers"] = kept
        used = {
            name: tensor
            for name, tensor in state.items()
            if not name.startswith(layout.unused) and _block_number(name, layout.block) < kept
        }
        mapped = to_transformers(used, "stage1")
    except ValueError as error:
        reason = str(error).replace(ORIGINAL, "")
        raise ValueError(f"can't take the image encoder of {path}: {reason}") from None
    return sizes, {name.removeprefix(OURS): tensor.to(dtype) for name, tensor in mapped.items()}


def _block_number(name: str, prefix: str) -> int:
    """The number of the block that the tensor `name` belongs to; -1 for none."""
    found = re.match(re.escape(prefix) + r"(\d+)\.", name)
    return int(found[1]) if found else -1
