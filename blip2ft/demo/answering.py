"""What the page does with a model, without the page."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from blip2ft.attention.look import look
from blip2ft.attention.pictures import overlay
from blip2ft.captioner import DEFAULT_PROMPT, QUESTION_TEMPLATE, ask, caption
from blip2ft.data.images import open_image
from blip2ft.demo.reports import Answer
from blip2ft.models.adapter_set import Adapters

BASE = "none (the base model)"


@dataclass(frozen=True)
class Answering:
    """A model that answers, with its adapters where it has some.

    name: how the page calls it; description: what is known of prompt and decoding.
    """

    name: str
    model: Any
    processor: Any
    description: Mapping[str, Any] = field(default_factory=dict)
    adapters: Adapters | None = None

    @property
    def writes(self) -> bool:
        """Whether it writes captions and answers; a retriever doesn't."""
        return hasattr(self.model, "language_model")

    @property
    def reads_questions(self) -> bool:
        """Whether its Q-Former reads the question."""
        return self.model.config.model_type == "instructblip"

    @property
    def choices(self) -> list[str]:
        """The adapters to choose from, and the base."""
        return [*self.adapters.names, BASE] if self.adapters is not None else []

    @property
    def prompt(self) -> str:
        """What its captions continue."""
        found = self.description.get("prompt", DEFAULT_PROMPT)
        return DEFAULT_PROMPT if "{}" in found else found

    @property
    def template(self) -> str:
        """What becomes of a question."""
        found = self.description.get("prompt", QUESTION_TEMPLATE)
        return found if "{}" in found else QUESTION_TEMPLATE

    def caption(
        self, image: str | None, prompt: str, adapter: str | None, **decoding: Any
    ) -> Answer:
        """Caption the file `image`. Raises ValueError where there is none, or none to be read."""
        image = _given(image)
        with self._with(adapter):
            (text,) = caption(self.model, self.processor, [image], prompt=prompt, **decoding)
        return Answer("caption", image, prompt, text, self.name, adapter, decoding)

    def ask(self, image: str | None, question: str, adapter: str | None, **decoding: Any) -> Answer:
        """Answer a question about the file `image`. Raises ValueError as `caption`."""
        image = _given(image)
        if not question.strip():
            raise ValueError("There is no question yet; write one.")
        pair = [(image, question)]
        with self._with(adapter):
            (text,) = ask(self.model, self.processor, pair, template=self.template, **decoding)
        return Answer("vqa", image, question, text, self.name, adapter, decoding)

    def attend(
        self, image: str | None, text: str, adapter: str | None
    ) -> list[tuple[Image.Image, str]]:
        """Where it looks in the file `image`, and what of that speaks for `text` if there is one.

        Each a picture and what it shows. Raises ValueError as `caption`, and where the model can't
        look with that text.
        """
        opened = open_image(Path(_given(image)))
        prompt = self.template if self.reads_questions else self.prompt
        with self._with(adapter):
            seen = look(self.model, self.processor, opened, text.strip() or None, prompt=prompt)
        pictures = [(overlay(seen.image, seen.map), "all queries, heads and layers")]
        if seen.text_map is not None:
            told = f"what of it speaks for: {seen.text} ({seen.scored} {seen.score:.2g})"
            pictures.append((overlay(seen.image, seen.text_map), told))
        return pictures

    @contextmanager
    def _with(self, adapter: str | None) -> Iterator[None]:
        if self.adapters is None or adapter is None:
            yield
            return
        with self.adapters.answering({} if adapter == BASE else adapter):
            yield


def decoding_of(
    beams: float, longest: float, length_penalty: float, temperature: float
) -> dict[str, Any]:
    """Options of `generate`; temperature: 0 takes the likeliest text, above 0 draws one."""
    options: dict[str, Any] = {"num_beams": int(beams), "max_new_tokens": int(longest)}
    if temperature > 0:
        return options | {"num_beams": 1, "do_sample": True, "temperature": float(temperature)}
    return options | {"length_penalty": float(length_penalty)}


Search = Callable[[str, int], list[tuple[str, str]]]


def search_in(index: Path, **options: Any) -> Search:
    """A function (query, how many) -> [(path, score)] that searches an index of photos.

    options: see `PhotoIndex`, whose model is loaded by the first search. Raises ValueError as it.
    """
    from blip2ft.photos.search import PhotoIndex

    photos = PhotoIndex(index, **options)

    def search(query: str, top: int) -> list[tuple[str, str]]:
        found = photos.search(query, top=top)
        return [(match.path, f"{match.score:.3f}") for match in found]

    return search


def _given(image: str | None) -> str:
    if image is None:
        raise ValueError("There is no picture yet; choose one.")
    return image
