"""Where the queries look in an image, and what of it a text's score hangs on.

B images, L layers with cross-attention, Q queries; H and W are the grid of patches. The class
token, which stands for no place, is left out of all maps.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    InstructBlipForConditionalGeneration,
)

from blip2ft.tasks.caption import caption_loss


def cross_attention(
    model: Any, pixels: Tensor, *, text: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """The share of its attention that each query gives each patch: (B, L, heads, Q, H, W), fp32.

    A query's shares of one head, and that of the class token, which is what is missing, sum to 1.

    Args:
        model: A captioner, a retriever, or one that answers questions, in eval mode; adapted and
            quantised ones too, whatever computes their attention.
        pixels: (B, 3, h, w), normalised, as the image processor gives them.
        text: Ids and attention mask (B, T) of what the Q-Former reads beside the queries: the
            question of an InstructBLIP, or a text that a retriever matches with the image.

    Raises:
        ValueError: The model is in training mode, takes other images, or reads no text; or it
            reads a question and there is none.
    """
    with torch.no_grad(), recorded(model) as weights:
        _run_queries(model, _see(model, pixels), text)
    return _on_grid(model, pixels, weights)


def itm_gradcam(
    model: Blip2ForImageTextRetrieval, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor
) -> Tensor:
    """What of the queries' attention speaks for "matches": (B, L, heads, Q, H, W), fp32, from 0 on.

    Attention times the gradient of the matching logit with respect to it, where that is above 0:
    Grad-CAM (arXiv 1610.02391) on cross-attention, as ALBEF (arXiv 2107.07651, visualization.ipynb)
    and BLIP (LAVIS models/blip_models/blip_image_text_matching.py, compute_gradcam) draw it, whose
    queries are the text's tokens. Its scale means nothing across texts. A diagnostic: attention is
    no explanation of an answer, weighed or not (arXiv 1902.10186). `text_map` makes it one map.

    Args:
        model: A retriever, in eval mode, as for `cross_attention`.
        pixels: (B, 3, h, w).
        input_ids: (B, T), `[CLS] text [SEP]` without image tokens, as `PairLayout.pad` gives them.
        attention_mask: (B, T), 0 at padding.

    Raises:
        ValueError: The model is none that matches, is in training mode, or takes other images.
    """
    if not isinstance(model, Blip2ForImageTextRetrieval):
        raise ValueError(
            f"a {type(model).__name__} has no matching head; use a Blip2ForImageTextRetrieval, or "
            "likelihood_gradcam"
        )
    with _gradients_of_queries(model), recorded(model) as weights:
        states = _run_queries(model, _see(model, pixels), (input_ids, attention_mask))
        logits = model.itm_head(states.to(model.itm_head.weight.dtype)).mean(1)[:, 1]
        return _weighed(model, pixels, weights, logits.float().sum())


def likelihood_gradcam(
    model: Blip2ForConditionalGeneration | InstructBlipForConditionalGeneration,
    batch: Mapping[str, Tensor],
) -> Tensor:
    """What of the queries' attention speaks for a caption: (B, L, heads, Q, H, W), fp32, from 0 on.

    As `itm_gradcam`, with the caption's log-likelihood for the matching logit.

    batch: as `TextLayout.collate` gives it, with the captions as labels.

    Raises ValueError for a retriever, in training mode, and for images of another size.
    """
    if isinstance(model, Blip2ForImageTextRetrieval):
        raise ValueError("a retriever gives texts no likelihood; use itm_gradcam")
    batch = {key: value.to(model.device) for key, value in batch.items()}
    _check(model, batch["pixel_values"])
    with _gradients_of_queries(model), recorded(model) as weights:
        return _weighed(model, batch["pixel_values"], weights, -caption_loss(model, batch))


def text_map(weighed: Tensor) -> Tensor:
    """One map (B, H, W) of an image's (B, L, heads, Q, H, W): the mean."""
    return weighed.mean((1, 2, 3))


@contextmanager
def recorded(model: Any) -> Iterator[list[Tensor]]:
    """Within, forwards of the Q-Former leave their cross-attention in the list.

    A layer's is (B, heads, Q, S), S with the class token, and in the graph that gives the layer's
    output. Only eager attention computes it, so that is what the Q-Former uses meanwhile.

    Raises ValueError in training mode, where dropout would be in it.
    """
    if model.training:
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
def _gradients_of_queries(model: Any) -> Iterator[None]:
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


def _see(model: Any, pixels: Tensor) -> Tensor:
    """Features (B, S, D) of images."""
    _check(model, pixels)
    dtype = model.vision_model.embeddings.patch_embedding.weight.dtype
    return model.vision_model(pixels.to(model.device, dtype)).last_hidden_state


def _check(model: Any, pixels: Tensor) -> None:
    size = model.vision_model.embeddings.image_size
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, size, size):
        raise ValueError(
            f"pixels are {tuple(pixels.shape)}: this model takes (B, 3, {size}, {size}); resize "
            "them with its image processor"
        )


def _run_queries(model: Any, image_embeds: Tensor, text: tuple[Tensor, Tensor] | None) -> Tensor:
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


def _weighed(model: Any, pixels: Tensor, weights: list[Tensor], score: Tensor) -> Tensor:
    gradients = torch.autograd.grad(score, weights)
    pairs = zip(weights, gradients, strict=True)
    return _on_grid(model, pixels, [w.detach() * g.clamp(min=0) for w, g in pairs])


def _on_grid(model: Any, pixels: Tensor, layers: list[Tensor]) -> Tensor:
    patch = model.vision_model.embeddings.patch_size
    grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
    return torch.stack(layers, dim=1)[..., 1:].unflatten(-1, grid).float()
