"""Which captions an image of the web keeps: candidates drawn, scored, chosen, and written down."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from blip2ft.data.broken import Broken
from blip2ft.tasks.candidates import (
    SCORES,
    WEB,
    Candidate,
    Captioner,
    Scorer,
    best,
    draw_captions,
    merge_texts,
    score_texts,
    uniforms,
)
from blip2ft.webimages.folder import Counts, Outcome
from blip2ft.webimages.reading import WebImage

DIGITS = 6  # of a score


@dataclass(frozen=True)
class Rules:
    """How captions are drawn and chosen.

    candidates: synthetic captions drawn for an image. keep: captions that stay, at most. score: one
    of `SCORES`. min_score: captions below are never kept; None keeps any. top_p: share of the
    probability that tokens are drawn from. max_new_tokens: of a synthetic caption. seed: of all
    draws.
    """

    candidates: int = 10
    keep: int = 2
    score: str = "itm"
    min_score: float | None = None
    top_p: float = 0.9
    max_new_tokens: int = 30
    seed: int = 0


def check_rules(rules: Rules) -> None:
    """Raise ValueError for rules out of range."""
    most, least = rules.candidates + 1, rules.min_score
    allowed = {
        "candidates": (rules.candidates >= 1, "1 or more"),
        "keep": (1 <= rules.keep <= most, f"1 to {most}, all candidates and a caption of the web"),
        "score": (rules.score in SCORES, ", ".join(SCORES)),
        "min_score": (
            rules.score != "itm" or least is None or 0 <= least <= 1,
            "0 to 1 with score itm, which is a probability",
        ),
        "top_p": (0 < rules.top_p <= 1, "above 0, to 1"),
        "max_new_tokens": (rules.max_new_tokens >= 1, "1 or more"),
    }
    for name, (good, range_) in allowed.items():
        if not good:
            raise ValueError(f"{name} is {getattr(rules, name)!r}: allowed is {range_}")


def filter_images(
    batch: Sequence[WebImage | Broken],
    shard: str,
    captioner: Captioner,
    scorer: Scorer,
    rules: Rules,
) -> Iterator[Outcome]:
    """What becomes of each sample of a batch from the shard of that name, in order.

    The first pixels of an image are the captioner's, its last the scorer's.
    """
    readable = [item for item in batch if isinstance(item, WebImage)]
    found = iter(rank_captions(readable, shard, captioner, scorer, rules) if readable else ())
    for item in batch:
        if isinstance(item, Broken):
            yield Outcome(Counts(skipped=1), broken=item)
        else:
            yield choose_captions(item, next(found), rules)


def rank_captions(
    images: Sequence[WebImage], shard: str, captioner: Captioner, scorer: Scorer, rules: Rules
) -> list[list[Candidate]]:
    """The captions of each image, its own and those drawn for it, best first.

    Of equal scores the web's comes first.
    """
    shape = rules.candidates, rules.max_new_tokens
    noise = [uniforms(rules.seed, f"{shard}/{image.key}", *shape) for image in images]
    pixels = torch.stack([image.pixels[0] for image in images])
    drawn = draw_captions(captioner, pixels, torch.stack(noise), top_p=rules.top_p)
    merged = [merge_texts(i.captions, texts) for i, texts in zip(images, drawn, strict=True)]
    pixels = torch.stack([image.pixels[-1] for image in images])
    texts = [[text for text, _ in own] for own in merged]
    scores = score_texts(scorer, pixels, texts, rules.score)
    ranked = []
    for own, of_own in zip(merged, scores, strict=True):
        candidates = [
            Candidate(text, round(score, DIGITS), origin)
            for (text, origin), score in zip(own, of_own, strict=True)
        ]
        ranked.append(sorted(candidates, key=lambda candidate: -candidate.score))
    return ranked


def choose_captions(image: WebImage, candidates: Sequence[Candidate], rules: Rules) -> Outcome:
    """The best of an image's candidates, which are sorted, as files of a shard."""
    kept = best(candidates, rules.keep, rules.min_score)
    web = [candidate for candidate in candidates if candidate.origin == WEB]
    web_kept = sum(candidate.origin == WEB for candidate in kept)
    counts = Counts(
        samples=1,
        dropped=int(not kept),
        replaced=int(bool(web and kept and not web_kept)),
        web=len(web),
        web_kept=web_kept,
        kept=len(kept),
        web_score=sum(candidate.score for candidate in web),
        kept_score=sum(candidate.score for candidate in kept),
    )
    if not kept:
        return Outcome(counts)
    # what readers would take for the captions steps aside
    aside = {name: f"other_{name}" for name in ("caption", "captions")}
    fields = {aside.get(name, name): value for name, value in image.fields.items()}
    fields |= {
        "captions": [candidate.text for candidate in kept],
        "web_captions": image.captions,
        "candidates": [asdict(candidate) for candidate in candidates],
    }
    # a Parquet file may hold what JSON has no word for, such as dates
    text = json.dumps(fields, default=str)
    files = {image.extension: image.image, "json": text.encode(), **image.others}
    return Outcome(counts, {f"{image.key}.{name}": data for name, data in files.items()})
