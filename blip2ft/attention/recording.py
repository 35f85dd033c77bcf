"""Cross-attention as a stock Q-Former computes it, with the graph that led to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Blip2ForImageTextRetrieval, InstructBlipForConditionalGeneration


@contextmanager
def recorded(model: Any) -> Iterator[list[Tensor]]:
    """Within, forwards of the Q-Former leave their cross-attention in the list.

    A layer's is (B, heads, Q, S), S with the class token, and in the graph that gives the layer's
    output. Only eager attention computes it, so that is what the Q-Former uses meanwhile.

    Raises ValueError in training mode, also of a part such as a new LoRA, where dropout would be in
    it.
    """
    if any(module.training for module in model.modules()):
        raise ValueError("the model is in training mode, whose dropout changes maps; use .eval()")
    qformer = model.qformer
    before = qformer.config._attn_implementation
    weights: list[Tensor] = []
    hooks = [
        layer.crossattention.attention.register_forward_hook(
            lambda module, inputs, output: weights.append(output[1])
        )
        for layer in qformer.encoder.layer
        if layer.has_cross_attention
    ]
    qformer.set_attn_implementation("eager")
    try:
        yield weights
    finally:
        qformer.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()


@contextmanager
def gradients_of_queries(model: Any) -> Iterator[None]:
    """Within, the graph begins at the query tokens: nothing is kept for the image encoder, and
    frozen and quantised weights get no gradient."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, wanted in flags:
        if wanted:
            parameter.requires_grad_(False)
    model.query_tokens.requires_grad_(True)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter, wanted in flags:
            if parameter.requires_grad != wanted:
                parameter.requires_grad_(wanted)


def see(model: Any, pixels: Tensor) -> Tensor:
    """Features (B, S, D) of images."""
    check_pixels(model, pixels)
    dtype = model.vision_model.embeddings.patch_embedding.weight.dtype
    return model.vision_model(pixels.to(model.device, dtype)).last_hidden_state


def check_pixels(model: Any, pixels: Tensor) -> None:
    size = model.vision_model.embeddings.image_size
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, size, size):
        raise ValueError(
            f"pixels are {tuple(pixels.shape)}: this model takes (B, 3, {size}, {size}); resize "
            "them with its image processor"
        )


def run_queries(model: Any, image_embeds: Tensor, text: tuple[Tensor, Tensor] | None) -> Tensor:
    """States of the queries (B, Q, D), as the stock models compute them."""
    queries = model.query_tokens.expand(len(image_embeds), -1, -1)
    given: dict[str, Any] = {"query_embeds": queries}
    reads_questions = isinstance(model, InstructBlipForConditionalGeneration)
    if text is not None:
        ids, mask = (tensor.to(model.device) for tensor in text)
        given["attention_mask"] = torch.cat([mask.new_ones(queries.shape[:2]), mask], dim=1)
        if reads_questions:
            given["input_ids"] = ids
        elif isinstance(model, Blip2ForImageTextRetrieval):
            given["query_embeds"] = model.embeddings(input_ids=ids, query_embeds=queries)
            given["query_length"] = queries.shape[1]
        else:
            raise ValueError("this model's Q-Former reads no text; leave text out")
    elif reads_questions:
        raise ValueError("this model's Q-Former reads the question; give it as text")
    states = model.qformer(**given, encoder_hidden_states=image_embeds).last_hidden_state
    return states[:, : queries.shape[1]]


def on_grid(model: Any, pixels: Tensor, layers: list[Tensor]) -> Tensor:
    """(B, heads, Q, 1 + H * W) of each layer -> (B, L, heads, Q, H, W)."""
    patch = model.vision_model.embeddings.patch_size
    grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
    return torch.stack(layers, dim=1)[..., 1:].unflatten(-1, grid).float()
