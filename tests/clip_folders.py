"""Small random models on CLIP's image encoder."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    Blip2ForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
)

from blip2ft.models.clip_vision import CLIP_ACT, class_for
from blip2ft.models.retriever import Retriever
from blip2ft.models.source import is_retriever

# Two heads in three blocks, of which BLIP-2 keeps two.
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@torch.no_grad()
def randomize(model: Any) -> Any:
    """Every parameter a random number, so that none is without effect."""
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():
        parameter.normal_(std=0.2)
        if "norm" in name and name.endswith("weight"):
            parameter.add_(1)
    return model.eval()


def tiny_clip(**changes: Any) -> CLIPModel:
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 30,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return randomize(CLIPModel(CLIPConfig(text_config=text, vision_config=VISION | changes)))


def vision_of(clip: CLIPModel, **options: Any) -> CLIPVisionModel:
    """CLIP's image encoder alone, as transformers has it."""
    model = CLIPVisionModel._from_config(clip.config.vision_config, **options)
    model.load_state_dict(clip.vision_model.state_dict())
    return model.eval()


def on_clip(folder: Path, out: Path, **sizes: int) -> Path:
    """A model like that in `folder`, captioner or retriever, on CLIP's image encoder.

    sizes: of the image encoder, where they aren't those of `folder`.
    """
    shutil.copytree(folder, out)
    config = AutoConfig.from_pretrained(folder)
    for name, value in {"hidden_act": CLIP_ACT, "layer_norm_eps": 1e-5, **sizes}.items():
        setattr(config.vision_config, name, value)
    config.qformer_config.encoder_hidden_size = config.vision_config.hidden_size
    stock = Retriever if is_retriever(config) else Blip2ForConditionalGeneration
    before = stock.from_pretrained(folder).state_dict()
    torch.manual_seed(7)
    model = class_for(stock, config)(config)
    own = model.state_dict()
    fitting = {n: t for n, t in before.items() if n in own and own[n].shape == t.shape}
    model.load_state_dict(fitting, strict=False)
    randomize(model.vision_model)
    model.save_pretrained(out)
    return out
