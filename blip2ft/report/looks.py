"""Where a run's model looks in some of the page's images, and what of that speaks for its words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import Any

import numpy as np
import torch
from PIL import Image

from blip2ft.attention.look import Look, look, most_at
from blip2ft.attention.pictures import overlay
from blip2ft.captioner import default_device
from blip2ft.data.images import open_image
from blip2ft.errors import plain_message
from blip2ft.finetuned import load_finetuned
from blip2ft.models.of_settings import load_for
from blip2ft.pages import data_uri
from blip2ft.report.gallery import Group, Sample
from blip2ft.report.pictures import SIDE, Picture
from blip2ft.report.reading import Contents


@dataclass(frozen=True)
class View:
    """A picture, what it shows, and the same in words for who can't see it."""

    uri: str
    title: str
    alt: str


@dataclass(frozen=True)
class Seen:
    """A sample, the text that was looked with, "" for none, its views, and what is amiss."""

    sample: Sample
    text: str
    views: Sequence[View]
    note: str


def looks_of(
    run: Contents,
    groups: Sequence[Group],
    pictures: Mapping[Any, Picture],
    count: int,
    dtype: torch.dtype | None = None,
) -> list[Seen]:
    """Looks at `count` of the samples with a picture, of each group in turn.

    dtype: of the weights that the run didn't train; None is fp32.

    Raises ValueError for a run that hasn't ended, and where its model can't be loaded.
    """
    turns = chain.from_iterable(zip_longest(*(group.samples for group in groups)))
    chosen = [one for one in turns if one is not None and one.key in pictures]
    if not chosen:
        return []
    model, processor, prompt = _load(run, dtype or torch.float32)
    return [
        _seen(model, processor, prompt, sample, pictures[sample.key])
        for sample in islice(chosen, count)
    ]


def _load(run: Contents, dtype: torch.dtype) -> tuple[Any, Any, str]:
    """Model, in eval mode, processor and prompt of a run, or of what it evaluated."""
    if run.trains:
        model, processor, description = load_finetuned(run.folder, dtype=dtype)
        prompt = description.get("prompt")
    else:
        model, processor = load_for(run.task, run.settings, dtype)
        prompt = run.settings.get("prompt")
    return model.to(default_device()).eval(), processor, prompt or ""


def _seen(model: Any, processor: Any, prompt: str, sample: Sample, picture: Picture) -> Seen:
    image = open_image(picture.source)
    text = _looked_with(model, prompt, sample)
    asks = model.config.model_type == "instructblip"  # it can't look without a question
    note = ""
    for with_text in [text] if asks or text is None else [text, None]:
        try:
            seen = look(model, processor, image, with_text, prompt=prompt)
            return Seen(sample, with_text or "", list(_views(seen, picture)), note)
        except ValueError as error:
            note = plain_message(error).splitlines()[0]
    return Seen(sample, "", [View(picture.uri, "image", "the image")], note)


def _looked_with(model: Any, prompt: str, sample: Sample) -> str | None:
    """A question that the Q-Former reads, or what the model answered, where that can be weighed."""
    if model.config.model_type == "instructblip":
        return sample.question
    answer = sample.answers[-1]
    # of an answer to a question that the Q-Former doesn't read nothing is known
    if "{}" in prompt or answer is None or not answer.text.strip():
        return None
    return answer.text


def _views(seen: Look, picture: Picture) -> Iterator[View]:
    small = seen.image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    yield View(picture.uri, "image", "the image")
    yield _view(small, seen.map, "where it looks", "looks most")
    if seen.text_map is not None:
        title = f"speaks for the words ({seen.scored} {seen.score:.2g})"
        yield _view(small, seen.text_map, title, "what speaks for the words is most")


def _view(image: Image.Image, heat: np.ndarray, title: str, what: str) -> View:
    return View(data_uri(overlay(image, heat)), title, f"{what} at {most_at(heat)}")
