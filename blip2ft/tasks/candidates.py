"""Captions drawn for an image, and how well each text fits it: the two models of CapFilt.

BLIP, arXiv 2201.12086, section 3.3: captions by nucleus sampling, p = 0.9. BLIP-2's paper, section
3.4: ten of them an image, ranked together with the image's own.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import Blip2ForConditionalGeneration

from blip2ft.data.batches import Sample, TextLayout
from blip2ft.data.images import EvalTransform
from blip2ft.data.pairs import PairLayout
from blip2ft.losses import similarities
from blip2ft.models.qformer import ImageKeys, project_images
from blip2ft.models.retriever import Retriever
from blip2ft.tasks.ranking import text_features

SCORES = ("itm", "itc", "itc+itm")
WEB, SYNTHETIC = "web", "synthetic"
AT_ONCE = 512  # pairs of an image and a text in one pass


@dataclass(frozen=True)
class Captioner:
    """A model that writes captions, with what prepares its inputs."""

    model: Blip2ForConditionalGeneration
    layout: TextLayout
    transform: EvalTransform
    prompt: str


@dataclass(frozen=True)
class Scorer:
    """A model that compares images with texts, with what prepares its inputs."""

    model: Retriever
    layout: PairLayout
    transform: EvalTransform


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text that may become the caption of an image. origin: `WEB` or `SYNTHETIC`."""

    text: str
    score: float
    origin: str


def uniforms(seed: int, name: str, count: int, length: int) -> Tensor:
    """Numbers from 0 to before 1, (count, length) fp32, that depend on seed and name alone."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=16).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    return torch.from_numpy(rng.random((count, length), dtype=np.float32))


@torch.inference_mode()
def draw_captions(
    captioner: Captioner, pixels: Tensor, noise: Tensor, *, top_p: float = 0.9
) -> list[list[str]]:
    """K captions of each of B images by nucleus sampling; an image is encoded once.

    pixels: (B, 3, H, W). noise: (B, K, T) from 0 to 1: its number t decides the t-th token of a
    caption, so a caption is that of its image and its noise, whatever else is in the batch. T is
    the longest caption in tokens.
    """
    model, layout = captioner.model, captioner.layout
    pixels = pixels.to(next(model.vision_model.parameters()).dtype)
    batch = layout.collate_prompts([Sample(image, captioner.prompt) for image in pixels])
    # what an encoder-decoder writes begins with its start token, other models' with the prompt
    start = 1 if layout.is_encoder_decoder else batch["input_ids"].shape[1]
    count, length = noise.shape[1:]
    choose = Nucleus(noise.flatten(0, 1).to(model.device), top_p, start)
    ids = model.generate(
        **{key: tensor.to(model.device) for key, tensor in batch.items()},
        do_sample=True,  # from what `choose` leaves: one token
        num_beams=1,
        num_return_sequences=count,
        max_new_tokens=length,
        logits_processor=[choose],
        eos_token_id=layout.end_token_id,
        pad_token_id=layout.pad_token_id,
    )
    texts = layout.decode(ids[:, start:])
    return [texts[i : i + count] for i in range(0, len(texts), count)]


@dataclass(frozen=True)
class Nucleus:
    """A logits processor that leaves one token, drawn from the nucleus by a number of `noise`.

    The nucleus is the fewest most probable tokens that together have a probability of `top_p` or
    more (arXiv 1904.09751). With them in a row, most probable first, each as long as its
    probability, the token is the one at `noise` of the row's length: the inverse of their
    distribution function. Gumbel noise would need a number for every token of the vocabulary.

    noise: (R, T); start: tokens of a row before the first that is drawn.
    """

    noise: Tensor
    top_p: float
    start: int

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(R, L) and (R, V) -> (R, V): 0 at the token drawn, else -inf."""
        number = self.noise[:, input_ids.shape[1] - self.start, None]
        sizes, tokens = scores.float().softmax(-1).sort(descending=True, stable=True)
        ends = sizes.cumsum(-1)
        outside = (ends - sizes >= self.top_p) | (sizes == 0)
        outside[:, 0] = False
        last = (~outside).sum(-1, keepdim=True) - 1
        place = torch.searchsorted(ends, number * ends.gather(1, last), right=True)
        token = tokens.gather(1, torch.minimum(place, last))
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


def merge_texts(web: Sequence[str], synthetic: Sequence[str]) -> list[tuple[str, str]]:
    """Each text with its origin, the web's first; empty ones are left out.

    Of those that differ in case and white space alone, the first stays.
    """
    merged: dict[str, tuple[str, str]] = {}
    for origin, texts in ((WEB, web), (SYNTHETIC, synthetic)):
        for text in texts:
            merged.setdefault(" ".join(text.casefold().split()), (text, origin))
    merged.pop("", None)
    return list(merged.values())


@torch.inference_mode()
def score_texts(
    scorer: Scorer, pixels: Tensor, texts: Sequence[Sequence[str]], score: str
) -> list[list[float]]:
    """How well each of B images fits its own texts, any number of them; it is encoded once.

    pixels: (B, 3, H, W). score: "itm", the matching head's probability of "matches", 0 to 1; "itc",
    the cosine similarity of the text with the image's best query, -1 to 1; "itc+itm", similarity
    plus matching logit, as texts are ranked in section 4.4, without bounds.
    """
    if score not in SCORES:
        raise ValueError(f"score is {score!r}: allowed are {', '.join(SCORES)}")
    counts = [len(own) for own in texts]
    rows = scorer.layout.ids([text for own in texts for text in own]) if sum(counts) else []
    if not rows:
        return [[] for _ in texts]
    model = scorer.model
    pixels = pixels.to(model.device, next(model.vision_model.parameters()).dtype)
    keys = project_images(model.qformer, model.vision_model(pixels).last_hidden_state)
    scores = torch.zeros(len(rows), device=model.device)
    if "itc" in score:
        images = model.encode_images(keys)
        features = text_features(model, scorer.layout, rows, AT_ONCE).split(counts)
        similar = [similarities(images[i, None], own)[0] for i, own in enumerate(features)]
        scores += torch.cat(similar)
    if "itm" in score:
        logits = torch.cat(list(_match(scorer, keys, rows, counts)))
        scores += logits.softmax(1)[:, 1] if score == "itm" else logits[:, 1]
    return [own.tolist() for own in scores.cpu().split(counts)]


def _match(
    scorer: Scorer, keys: ImageKeys, rows: Sequence[Sequence[int]], counts: Sequence[int]
) -> Iterator[Tensor]:
    """Matching logits (R, 2) of texts with images, the first `counts[0]` with the first image."""
    at = np.repeat(np.arange(len(counts)), counts)
    for first in range(0, len(rows), AT_ONCE):
        images, each = np.unique(at[first : first + AT_ONCE], return_counts=True)
        pairs = [
            (keys.select(torch.tensor([image], device=scorer.model.device)), int(count))
            for image, count in zip(images, each, strict=True)
        ]
        ids, mask = scorer.layout.pad(rows[first : first + AT_ONCE])
        yield scorer.model.match(pairs, ids.to(scorer.model.device), mask.to(scorer.model.device))


def best(candidates: Sequence[Candidate], keep: int, min_score: float | None) -> list[Candidate]:
    """The `keep` best of candidates in the order of their scores, none below `min_score`."""
    good = (c for c in candidates if min_score is None or c.score >= min_score)
    return list(good)[:keep]
