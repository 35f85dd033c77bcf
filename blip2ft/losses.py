"""Losses: tensors in, sums out. Who calls them divides by the count over the whole batch."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def language_modeling(
    logits: Tensor,
    labels: Tensor,
    *,
    shift: bool,
    weights: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Cross entropy summed over the labelled tokens, a scalar in fp32.

    logits: (B, T, V) of any float dtype, computed in fp32; labels: (B, T) int64, `ignore_index`
    where nothing is to be learned. shift: the logits at t predict the label at t + 1
    (decoder-only models); without it, that at t (decoders of encoder-decoders). weights: (B,), what
    each row's tokens count; None counts each once.

    A sum and no mean: a mean over each micro-batch would weigh a token by how few there are
    beside it, and 2 x 4 accumulated would differ from 8 at once.
    """
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    # only labelled rows become fp32: image tokens, prompt and padding are most of the batch
    rows = labels != ignore_index
    if weights is None:
        return functional.cross_entropy(logits[rows].float(), labels[rows], reduction="sum")
    losses = functional.cross_entropy(logits[rows].float(), labels[rows], reduction="none")
    return (losses * weights[:, None].expand_as(labels)[rows]).sum()


def linear_language_modeling(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    shift: bool,
    weights: Tensor | None = None,
    ignore_index: int = -100,
    rows_at_once: int = 64,
) -> Tensor:
    """`language_modeling` of the logits `states @ weight.T + bias`, of which few exist at a time.

    states: (B, T, D), weight: (V, D), bias: (V,), of any float dtype, multiplied as autocast says.
    Only labelled rows get logits, in fp32, `rows_at_once` of them; the backward pass computes them
    again, and of a weight that is frozen no gradient.

    PyTorch's own chunked loss, with a loss a row: its sums are in the dtype of `states`.
    """
    if shift:
        states, labels = states[:, :-1], labels[:, 1:]
    rows = labels != ignore_index
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    with torch.autocast(device, enabled=False):
        losses = functional.linear_cross_entropy(
            states[rows].to(dtype),
            weight.to(dtype),
            labels[rows],
            linear_bias=None if bias is None else bias.to(dtype),
            reduction="none",
            options=nn.LinearCrossEntropyOptions(batch_chunk_size=rows_at_once),
        ).float()
    if weights is not None:
        losses = losses * weights[:, None].expand_as(labels)[rows]
    return losses.sum()


def similarities(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Of each image and each text the similarity of the best query: (N, M) in fp32.

    image_features: (N, Q, D), text_features: (M, D), both of unit length. Paper, section 3.1.
    """
    with torch.autocast(image_features.device.type, enabled=False):  # 3 digits are too few here
        queries, images = image_features.shape[1], image_features.float().flatten(0, 1)
        scores = (images @ text_features.float().T).unflatten(0, (-1, queries))
    return scores.amax(1)


def contrastive(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.1) -> Tensor:
    """ITC of one direction: cross entropy against soft targets, summed over rows, a scalar in fp32.

    logits: (B, G), similarities over the temperature; targets: (B, G), rows that sum to 1.
    label_smoothing: the share of each row spread evenly over all G. LAVIS models/blip2_models/
    blip2_qformer.py, forward.
    """
    smooth = targets * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    return functional.cross_entropy(logits.float(), smooth, reduction="sum")


def matching(logits: Tensor, matches: Tensor, weights: Tensor) -> Tensor:
    """ITM: cross entropy of "doesn't match" and "matches" (B, 2), summed with `weights` (B,).

    matches: (B,) int64, 1 where image and text belong together.
    """
    losses = functional.cross_entropy(logits.float(), matches, reduction="none")
    return (losses * weights).sum()


def text_generation(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.1) -> Tensor:
    """ITG: cross entropy of tokens (N, V) against labels (N,), summed, a scalar in fp32."""
    return functional.cross_entropy(
        logits.float(), labels, reduction="sum", label_smoothing=label_smoothing
    )
