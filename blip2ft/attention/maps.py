"""Where the queries look in an image, and what of it a text's score hangs on.

B images, L layers with cross-attention, Q queries; H and W are the grid of patches. The class
token, which stands for no place, is left out of all maps.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    InstructBlipForConditionalGeneration,
)

from blip2ft.attention.recording import (
    check_pixels,
    gradients_of_queries,
    on_grid,
    recorded,
    run_queries,
    see,
)
from blip2ft.data.batches import IGNORE


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
        run_queries(model, see(model, pixels), text)
    return on_grid(model, pixels, weights)


class Weighed(NamedTuple):
    """What of the queries' attention speaks for a text, of each of B images.

    attention: (B, L, heads, Q, H, W), as `cross_attention` gives it for that text.
    weighed: the same times the score's gradient with respect to it, where that is above 0.
    scores: (B,), of 0 to 1: how well image and text go together.

    All fp32. What is weighed compares places of one image; across texts its scale means nothing.
    """

    attention: Tensor
    weighed: Tensor
    scores: Tensor


def itm_gradcam(
    model: Blip2ForImageTextRetrieval, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor
) -> Weighed:
    """What of the queries' attention speaks for "matches"; its mean is a map.

    Grad-CAM (arXiv 1610.02391) of the matching logit on cross-attention, as ALBEF (2107.07651,
    visualization.ipynb) and BLIP (LAVIS models/blip_models/blip_image_text_matching.py,
    compute_gradcam) draw it, where the text's tokens look instead of queries. The score
    is the probability of "matches".

    A diagnostic: attention is no explanation of an answer (arXiv 1902.10186), weighed or not.

    Args:
        model: A retriever, in eval mode, as for `cross_attention`.
        pixels: (B, 3, h, w), normalised.
        input_ids: (B, T), `[CLS] text [SEP]` without image tokens, as `PairLayout.pad` gives them.
        attention_mask: (B, T), 0 at padding.

    Raises:
        ValueError: The model is none that matches, is in training mode, or takes other images.
    """
    if not isinstance(model, Blip2ForImageTextRetrieval):
        raise ValueError(
            f"a {type(model).__name__} has no matching head; give a retriever, or use "
            "likelihood_gradcam"
        )
    with gradients_of_queries(model), recorded(model) as weights:
        states = run_queries(model, see(model, pixels), (input_ids, attention_mask))
        logits = model.itm_head(states.to(model.itm_head.weight.dtype)).mean(1).float()
        return _weighed(model, pixels, weights, logits[:, 1], logits.softmax(-1)[:, 1])


def likelihood_gradcam(
    model: Blip2ForConditionalGeneration | InstructBlipForConditionalGeneration,
    batch: Mapping[str, Tensor],
) -> Weighed:
    """What of the queries' attention speaks for captions, by their log-likelihood.

    As `itm_gradcam` otherwise. The score is the geometric mean of the tokens' probabilities.

    batch: as `TextLayout.collate` gives it, the captions as labels.

    Raises ValueError for a retriever, in training mode, and for images of another size.
    """
    if isinstance(model, Blip2ForImageTextRetrieval):
        raise ValueError("a retriever gives texts no likelihood; use itm_gradcam")
    inputs = {key: value.to(model.device) for key, value in batch.items()}
    labels = inputs.pop("labels")
    pixels = inputs["pixel_values"]
    check_pixels(model, pixels)
    with gradients_of_queries(model), recorded(model) as weights:
        logits = model(**inputs, use_cache=False).logits
        if "decoder_input_ids" not in inputs:  # each position tells of the next
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
        likelihood = -losses.view_as(labels).sum(1)
        tokens = (labels != IGNORE).sum(1).clamp(min=1)
        return _weighed(model, pixels, weights, likelihood, (likelihood / tokens).exp())


def _weighed(
    model: Any, pixels: Tensor, weights: list[Tensor], targets: Tensor, scores: Tensor
) -> Weighed:
    """targets: (B,), whose gradients weigh; a row's depends on that row alone."""
    gradients = torch.autograd.grad(targets.sum(), weights)
    weights = [weight.detach() for weight in weights]
    pairs = zip(weights, gradients, strict=True)
    weighed = on_grid(model, pixels, [w * g.clamp(min=0) for w, g in pairs])
    return Weighed(on_grid(model, pixels, weights), weighed, scores.detach())
