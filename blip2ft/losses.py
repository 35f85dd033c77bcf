"""Losses: tensors in, sums out. Who calls them divides by the count over the whole batch."""

from torch import Tensor
from torch.nn import functional


def language_modeling(
    logits: Tensor, labels: Tensor, *, shift: bool, ignore_index: int = -100
) -> Tensor:
    """Cross entropy summed over the labelled tokens, a scalar in fp32.

    logits: (B, T, V) of any float dtype, computed in fp32; labels: (B, T) int64, `ignore_index`
    where nothing is to be learned. shift: the logits at t predict the label at t + 1
    (decoder-only models); without it, that at t (decoders of encoder-decoders).

    A sum and no mean: a mean over each micro-batch would weigh a token by how few there are
    beside it, and 2 x 4 accumulated would differ from 8 at once.
    """
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    # only labelled rows become fp32: image tokens, prompt and padding are most of the batch
    rows = labels != ignore_index
    return functional.cross_entropy(logits[rows].float(), labels[rows], reduction="sum")
