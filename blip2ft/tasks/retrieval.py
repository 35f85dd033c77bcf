"""Retrieval: training pairs, the loss, ITC over a whole step, and the scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from blip2ft.data.broken import Broken
from blip2ft.data.image_texts import ImageTexts, image_texts
from blip2ft.data.images import TrainTransform
from blip2ft.data.order import Key
from blip2ft.data.pairs import Pair
from blip2ft.data.records import Record
from blip2ft.data.stream import Stream
from blip2ft.gather import share_batch
from blip2ft.metrics.recall_at_k import RECALL_AT, WAYS, recall_at_k
from blip2ft.models.in_batch import ItcGradients, contrastive_loss, same_image, similarity_logits
from blip2ft.models.retriever import Retriever
from blip2ft.tasks.ranking import Rankings

SCORES = (*(f"{way}_r{k}" for way in WAYS for k in RECALL_AT), "mean_recall")


@dataclass(frozen=True)
class ImageTextPairs(Dataset):
    """Pairs of an image and one of its captions, as training samples: see `ImageTexts`."""

    images: ImageTexts

    def __len__(self) -> int:
        return len(self.images)

    def origin(self, key: Key) -> str:
        """See `ImageTexts`."""
        return self.images.origin(key)

    def __getitem__(self, key: Key) -> Any:
        """A `Pair`; of a stream, what can't be read is `Broken`."""
        found = self.images[key]
        if isinstance(found, Broken):
            return found
        return Pair(found.pixels, found.text, found.record)


def image_text_pairs(
    source: Sequence[Record] | Stream, transform: TrainTransform, seed: int, *, skip: bool = False
) -> ImageTextPairs:
    """The training samples of `source`: see `image_texts`."""
    return ImageTextPairs(image_texts(source, transform, seed, skip=skip))


def retrieval_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The sum of a batch's losses, as the loop counts them: each pair's share of the mean."""
    inputs = dict(batch)
    if "random_state" in inputs:  # from cache_itc: draw the same dropout again
        _set_random_state(inputs.pop("random_state"))
    output = model(**inputs)
    return output.loss * output.pairs


def count_pairs(batch: Mapping[str, Tensor]) -> int:
    """How many pairs `retrieval_loss` sums over, on this process."""
    return len(batch["input_ids"])


def cache_itc(model: nn.Module, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """ITC over all micro-batches of a step and all processes at once (GradCache, arXiv 2101.06983).

    The features of every micro-batch are computed without keeping activations; ITC and its
    gradients follow from the features; each micro-batch then runs again, with those gradients and
    the same dropout. One more forward pass, and memory for one micro-batch. ITM still draws its
    negatives from the micro-batch, and all processes.

    model: a `Retriever`, as `accelerator.prepare` returned it or bare.
    """
    bare = model if isinstance(model, Retriever) else model.module
    assert isinstance(bare, Retriever)
    states, images, texts = [], [], []
    for batch in batches:
        states.append(_random_state())
        with torch.no_grad():
            features = model(**batch, features_only=True)
        images.append(features.image_features.float())
        texts.append(features.text_features.float())
    all_images = torch.cat(images).requires_grad_()
    all_texts = torch.cat(texts).requires_grad_()
    temperature = bare.temperature.detach().clone().requires_grad_()
    shares = share_batch(len(all_images), 0, all_images.device)
    ids = None
    if all("image_ids" in batch for batch in batches):
        ids = torch.cat([batch["image_ids"] for batch in batches])
    same = same_image(shares, ids, all_images.device)
    logits = similarity_logits(shares, all_images, all_texts, temperature)
    loss = contrastive_loss(shares, same, *logits)
    image, text, heat = torch.autograd.grad(loss, (all_images, all_texts, temperature))

    # the loop weighs a batch by its share of the step's pairs; ITC must come out whole
    sizes = [len(part) for part in images]
    pieces = zip(batches, states, image.split(sizes), text.split(sizes), strict=True)
    cached = []
    for batch, state, of_image, of_text in pieces:
        weight = len(all_images) / len(of_image)
        gradients = ItcGradients(loss.detach(), of_image * weight, of_text * weight, heat)
        cached.append({**batch, "itc_gradients": gradients, "random_state": state})
    return cached


def _random_state() -> list[Tensor]:
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *cuda]


def _set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    for cuda in state[1:]:
        torch.cuda.set_rng_state(cuda)


def score(rankings: Rankings, records: Sequence[Record]) -> dict[str, float]:
    """Recall at 1, 5 and 10, image to text and text to image, and the mean of the six."""
    owners = [i for i, record in enumerate(records) for _ in record.captions]
    texts_of: list[list[int]] = [[] for _ in records]
    for text, image in enumerate(owners):
        texts_of[image].append(text)
    scores = {}
    for name, ranking, right in (
        (WAYS[0], rankings.texts_of_images, texts_of),
        (WAYS[1], rankings.images_of_texts, [[owner] for owner in owners]),
    ):
        for k, value in recall_at_k(
            [*ranking.indices], [*ranking.scores], right, RECALL_AT
        ).items():
            scores[f"{name}_r{k}"] = value
    return {**scores, "mean_recall": sum(scores.values()) / len(scores)}
