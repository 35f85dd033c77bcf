"""Features in the place of pixels: how a model computes them, and how it goes on from them.

`pixel_values` of 4 dimensions (B, 3, H, W) are pixels and take the stock way. Of 3 they are
features (B, S, D): at level "vision" the hidden states before the norm after the blocks, which
learns with the Q-Former (see models/parts.py), at level "queries" what the projection gives the
language model.
Only instances are changed, so that what wraps, adapts, checkpoints or saves a model sees the stock
class.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.blip_2.modeling_blip_2 import BaseModelOutputWithVisionQformerOutputs

from blip2ft.features.key import weights_digest
from blip2ft.features.level import QUERIES, VISION
from blip2ft.models.parts import NORM


def features_shape(config: Any, level: str) -> tuple[int, int]:
    """(S, D) of one image: of "vision" tokens and width, of "queries" theirs in the language
    model."""
    if level == QUERIES:
        return config.num_query_tokens, config.text_config.hidden_size
    vision = config.vision_config
    return (vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size


def features_digest(model: nn.Module, level: str) -> str:
    """sha256 over what the features of `level` depend on, as it lies in memory."""
    config: Any = model.config
    configs = {"vision": config.vision_config.to_dict()}
    if level == QUERIES:
        configs["qformer"] = config.qformer_config.to_dict()
        configs["queries"] = {"count": config.num_query_tokens}
    return weights_digest(configs, _tensors(model, level))


def compute_features(model: Any, level: str, pixels: Tensor) -> Tensor:
    """The features (B, S, D) of pixels (B, 3, H, W), as the stock forward has them on its way."""
    if level == QUERIES:
        return model.get_image_features(pixels, return_dict=True).pooler_output
    vision = model.vision_model
    return vision.encoder(inputs_embeds=vision.embeddings(pixels)).last_hidden_state


def serve_features(model: Any, level: str) -> None:
    """Let `model` take features of `level` as `pixel_values` of 3 dimensions, in place.

    model: Blip2ForConditionalGeneration, InstructBlipForConditionalGeneration (level "vision") or a
    `Retriever` (level "vision"), bare: before Accelerate wraps it.
    """
    shape = features_shape(model.config, level)
    if level == VISION:
        vision = model.vision_model
        vision.forward = partial(_normalize_states, vision, vision.forward, shape)
    else:
        model.get_image_features = partial(_take_queries, model.get_image_features, shape)
        model.generate = partial(_generate_from_queries, model, model.generate, shape)


def set_tower_aside(model: Any) -> None:
    """Move the image encoder's blocks, which features make needless, off the GPU.

    Call after `accelerator.prepare`, which moves all to the device, and expects it there. The
    embeddings stay: the model's device is told by them. Quantised blocks stay too, and shards, of
    which a process has few.
    """
    encoder = model.vision_model.encoder
    parameters = list(encoder.parameters())
    if all(p.is_floating_point() and not isinstance(p, DTensor) for p in parameters):
        encoder.to("cpu")


def _normalize_states(
    vision: Any,
    stock: Callable[..., Any],
    shape: tuple[int, int],
    pixel_values: Tensor | None = None,
    *arguments: Any,
    **options: Any,
) -> Any:
    """Blip2VisionModel.forward from behind the blocks."""
    if pixel_values is None or pixel_values.ndim != 3:
        return stock(pixel_values, *arguments, **options)
    _check_shape(pixel_values, shape)
    # what the blocks add up is in their weights' dtype
    dtype = vision.embeddings.patch_embedding.weight.dtype
    states = vision.post_layernorm(pixel_values.to(dtype))
    pooled = vision.post_layernorm(states[:, 0, :])
    return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)


def _take_queries(
    stock: Callable[..., Any],
    shape: tuple[int, int],
    pixel_values: Tensor,
    *arguments: Any,
    **options: Any,
) -> Any:
    if pixel_values.ndim != 3:
        return stock(pixel_values, *arguments, **options)
    _check_shape(pixel_values, shape)
    return BaseModelOutputWithVisionQformerOutputs(pooler_output=pixel_values)


@torch.no_grad()
def _generate_from_queries(
    model: Any,
    stock: Callable[..., Any],
    shape: tuple[int, int],
    pixel_values: Tensor,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> Any:
    """Blip2ForConditionalGeneration.generate from behind the projection."""
    if pixel_values.ndim != 3:
        return stock(pixel_values, input_ids, attention_mask, **options)
    _check_shape(pixel_values, shape)
    embeds = model.get_input_embeddings()(input_ids)
    places = model.get_placeholder_mask(input_ids, inputs_embeds=embeds)
    embeds = embeds.masked_scatter(places, pixel_values.to(embeds.dtype))
    inputs = {"inputs_embeds": embeds, "attention_mask": attention_mask}
    if not model.language_model.config.is_encoder_decoder:
        inputs["input_ids"] = input_ids
    return model.language_model.generate(**inputs, **options)


def _check_shape(features: Tensor, shape: tuple[int, int]) -> None:
    if tuple(features.shape[1:]) != shape:
        raise ValueError(
            f"pixel_values of shape {tuple(features.shape)} are neither pixels (B, 3, H, W) nor "
            f"this model's features (B, {shape[0]}, {shape[1]})"
        )


def _tensors(model: nn.Module, level: str) -> Iterator[tuple[str, Tensor]]:
    deciding = ["vision_model."]
    if level == QUERIES:
        deciding += ["qformer.", "query_tokens", "language_projection."]
    for name, tensor in sorted(model.state_dict().items()):
        if level == VISION and name.startswith(NORM):
            continue
        if name.startswith(tuple(deciding)) and isinstance(tensor, Tensor):
            yield name, tensor
