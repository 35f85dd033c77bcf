"""What the pairs of a batch are to each other, over all processes: positives, hard negatives, ITC.

B are the pairs of this process, G those of all.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from blip2ft.gather import Shares
from blip2ft.losses import contrastive, similarities


@dataclass(frozen=True)
class ItcGradients:
    """What ITC over a whole step asks of one micro-batch (GradCache, arXiv 2101.06983).

    value: the loss, (); image: (B, Q, D), text: (B, D), temperature: (): its gradients.
    """

    value: Tensor
    image: Tensor
    text: Tensor
    temperature: Tensor

    def loss(self, image: Tensor, text: Tensor, temperature: Tensor) -> Tensor:
        """The loss, (), as its value and with its gradients, from features that have a graph."""
        linear = (image.float() * self.image).sum() + (text.float() * self.text).sum()
        linear = linear + temperature * self.temperature
        return self.value + (linear - linear.detach())


class Negatives(NamedTuple):
    """Of each of our pairs a text that isn't its image's and an image that isn't its text's.

    Both (B,) int64, numbered over all processes; of no meaning where a pair has none.
    """

    texts: Tensor
    images: Tensor


def same_image(shares: Shares, image_ids: Tensor | None, device: torch.device) -> Tensor:
    """Which of all pairs show the same image, (G, G) bool."""
    if image_ids is None:
        return torch.eye(shares.total, dtype=torch.bool, device=device)
    everyone = shares.gather(image_ids.view(-1))
    return everyone[:, None] == everyone


def similarity_logits(
    shares: Shares, image_features: Tensor, text_features: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Our images to all texts, our texts to all images, both (B, G), over the temperature."""
    image_to_text = similarities(image_features, shares.gather(text_features))
    text_to_image = similarities(shares.gather(image_features), text_features).T
    return image_to_text / temperature, text_to_image / temperature


def contrastive_loss(
    shares: Shares, same: Tensor, image_to_text: Tensor, text_to_image: Tensor
) -> Tensor:
    """ITC of our rows (B, G) over all pairs, half of each direction."""
    targets = same[shares.offset :][: len(image_to_text)].float()
    targets = targets / targets.sum(1, keepdim=True)
    both = contrastive(image_to_text, targets) + contrastive(text_to_image, targets)
    return both * (len(shares.sizes) / (2 * shares.total))


@torch.no_grad()
def draw_negatives(
    shares: Shares, same: Tensor, image_to_text: Tensor, text_to_image: Tensor
) -> Negatives:
    """Hard negatives: in proportion to the softmax of the similarity logits (B, G).

    The noise is drawn for all pairs from one seed on every process, so that splitting a batch over
    processes changes no draw.
    """
    generator = torch.Generator().manual_seed(shares.seed)
    ours = slice(shares.offset, shares.offset + len(image_to_text))
    drawn = []
    for logits in (image_to_text, text_to_image):
        # argmax of logits plus Gumbel noise is a draw from their softmax
        noise = torch.empty(same.shape).exponential_(generator=generator).log_().neg_()
        scores = logits.float() + noise[ours].to(logits.device)
        drawn.append(scores.masked_fill(same[ours], -torch.inf).argmax(1))
    return Negatives(*drawn)
