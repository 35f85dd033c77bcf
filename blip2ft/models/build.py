"""A model out of tensors from several places: filled, drawn where there is none, saved whole."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2Processor, PreTrainedConfig

from blip2ft.models.clip_vision import class_for
from blip2ft.models.load import IMAGE_TOKEN
from blip2ft.whole import whole_folder


def empty_model(stock: type, config: PreTrainedConfig) -> Any:
    """A model without memory for its weights, on the meta device; stock: as for `class_for`."""
    with torch.device("meta"):
        return class_for(stock, config)(config).eval()


def fill(model: Any, tensors: Mapping[str, Tensor], seed: int) -> tuple[str, ...]:
    """Give a model on the meta device its weights, and return the names of those drawn at random.

    Those that `tensors` doesn't name are drawn as transformers draws them, from `seed`. Each keeps
    its dtype. Raises ValueError for tensors that the model has no place for, or of other shapes.
    """
    empty = model.state_dict()
    for name, tensor in tensors.items():
        if name not in empty or empty[name].shape != tensor.shape:
            place = f"of {list(empty[name].shape)}" if name in empty else "at all"
            raise ValueError(
                f"{name}, a tensor of {list(tensor.shape)}, has no place {place} in the model; the "
                "parts don't belong together"
            )
    tied = getattr(model, "all_tied_weights_keys", {})
    new = tuple(name for name in empty if name not in tensors and name not in tied)
    for top in {name.split(".", 1)[0] for name in new}:
        part = getattr(model, top)
        if isinstance(part, nn.Module):
            part.to_empty(device="cpu")
        else:
            setattr(model, top, nn.Parameter(torch.empty_like(part, device="cpu")))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.initialize_weights()
        if "query_tokens" in new:
            nn.init.normal_(model.query_tokens, std=0.02)  # equal queries would stay equal
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    return new


def processor_of(model: Any, image_processor: Any, tokenizer: Any) -> Blip2Processor:
    """The processor of `model`; the config gets the id of its `<image>` token."""
    processor = Blip2Processor(image_processor, tokenizer, model.config.num_query_tokens)
    model.config.image_token_index = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    return processor


def name_end_tokens(model: Any) -> None:
    """Give the outer generation config the special tokens of the language model."""
    text = model.config.text_config
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        setattr(model.generation_config, name, getattr(text, name, None))


def save_whole(model: Any, processor: Any, out: Path) -> None:
    """Save both in the folder `out`, which is there whole or not at all."""
    with whole_folder(out) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
