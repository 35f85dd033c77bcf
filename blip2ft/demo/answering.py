"""What the page does with a model, without the page."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from blip2ft.attention.look import look
from blip2ft.attention.pictures import overlay
from blip2ft.captioner import DEFAULT_PROMPT, QUESTION_TEMPLATE, ask, caption
from blip2ft.data.batches import text_layout
from blip2ft.demo.pictures import open_picture
from blip2ft.demo.reports import Answer
from blip2ft.demo.texts import checked_text
from blip2ft.models.adapter_set import Adapters
from blip2ft.tasks.vqa import ask as fill_template

BASE = "none (the base model)"
BEAMS, LONGEST, PENALTY, HEAT = (1, 10), (1, 200), (-2.0, 2.0), (0.0, 2.0)

DRAWS = 0.1  # near 0 the probabilities are no numbers any longer


@dataclass(frozen=True)
class Answering:
    """A model that answers, with its adapters where it has some.

    name: how the page calls it.
    descriptions: what is known of prompt and decoding, by adapter; None is the model without one.
    adapters: they and their model, and `runs` what each is in there, by what the page calls it.
    stopping: set, it ends an answer that is being written.
    """

    name: str
    model: Any
    processor: Any
    descriptions: Mapping[str | None, Mapping[str, Any]] = field(default_factory=dict)
    adapters: Adapters | None = None
    runs: Mapping[str, str] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)

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
        """The adapters to choose from, and the base; none where there is nothing to choose."""
        return [*self.runs, BASE] if self.runs else []

    def prompt(self, adapter: str | None) -> str:
        """What captions continue."""
        found = self._known(adapter).get("prompt", DEFAULT_PROMPT)
        return DEFAULT_PROMPT if "{}" in found else found

    def template(self, adapter: str | None) -> str:
        """What becomes of a question."""
        found = self._known(adapter).get("prompt", QUESTION_TEMPLATE)
        return found if "{}" in found else QUESTION_TEMPLATE

    def decoding(self, adapter: str | None) -> Mapping[str, Any]:
        """The options of `generate` that it was tuned for."""
        return self._known(adapter).get("generation", {})

    def caption(
        self, image: str | None, prompt: str, adapter: str | None, **decoding: Any
    ) -> Answer:
        """Caption the file `image`.

        Raises ValueError for a picture that `open_picture` refuses, a text that `checked_text`
        does, and for more tokens than the model has room for.
        """
        prompt = checked_text("The prompt", prompt)
        opened = open_picture(image)
        self._check_room(prompt, decoding)
        with self._with(adapter):
            (text,) = caption(
                self.model, self.processor, [opened], prompt=prompt, **self._stoppable(decoding)
            )
        return Answer("caption", str(image), prompt, text, self.name, adapter, decoding)

    def ask(self, image: str | None, question: str, adapter: str | None, **decoding: Any) -> Answer:
        """Answer a question about the file `image`. Raises ValueError as `caption`."""
        question = checked_text("The question", question)
        if not question.strip():
            raise ValueError("There is no question yet; write one.")
        opened, template = open_picture(image), self.template(adapter)
        self._check_room(fill_template(template, question), decoding)
        with self._with(adapter):
            (text,) = ask(
                self.model,
                self.processor,
                [(opened, question)],
                template=template,
                **self._stoppable(decoding),
            )
        return Answer("vqa", str(image), question, text, self.name, adapter, decoding)

    def attend(
        self, image: str | None, text: str, adapter: str | None
    ) -> tuple[list[tuple[Image.Image, str]], str]:
        """Where it looks in the file `image`, and what of that speaks for `text` if there is one.

        Returns pictures with what each shows, and how well the text fits, "" where none is weighed.

        Raises ValueError as `caption`, and where the model can't look with that text.
        """
        text = checked_text("The text", text).strip()
        opened = open_picture(image)
        if self.reads_questions and not text:
            raise ValueError(
                "There is no question yet; write one: the model looks where it points."
            )
        prompt = self.template(adapter) if self.reads_questions else self.prompt(adapter)
        with self._with(adapter):
            seen = look(self.model, self.processor, opened, text or None, prompt=prompt)
        pictures = [(overlay(seen.image, seen.map), "in general")]
        if seen.text_map is None:
            return pictures, ""
        pictures.append((overlay(seen.image, seen.text_map), f"for: {seen.text}"))
        return pictures, f"“{seen.text}”: {seen.scored} {seen.score:.2g}"

    def _known(self, adapter: str | None) -> Mapping[str, Any]:
        return self.descriptions.get(None if adapter == BASE else adapter, {})

    def _check_room(self, prompt: str, decoding: Mapping[str, Any]) -> None:
        """Raise ValueError for more tokens than positions: past them a GPU fails for good."""
        layout = text_layout(self.model, self.processor, max_target_tokens=1)
        if layout.max_positions is None or layout.is_encoder_decoder:
            return
        read = layout.num_query_tokens + len(layout.prompt_ids(prompt))
        longest = decoding.get("max_new_tokens", 0)
        if read + longest > layout.max_positions:
            raise ValueError(
                f"The text has {read - layout.num_query_tokens:,} tokens. With "
                f"{layout.num_query_tokens} of the picture and up to {longest} of the answer these "
                f"are more than the model's {layout.max_positions:,}; shorten the text."
            )

    def _stoppable(self, decoding: Mapping[str, Any]) -> dict[str, Any]:
        return {**decoding, "stopping_criteria": [lambda *_, **__: self.stopping.is_set()]}

    @contextmanager
    def _with(self, adapter: str | None) -> Iterator[None]:
        if self.adapters is None or adapter is None:
            yield
            return
        with self.adapters.answering({} if adapter == BASE else self.runs[adapter]):
            yield


def decoding_of(
    beams: float, longest: float, length_penalty: float, temperature: float
) -> dict[str, Any]:
    """Options of `generate`; temperature: from `DRAWS` on a text is drawn, else the likeliest.

    Raises ValueError for a number that the page's sliders don't have.
    """
    for what, number, (low, high) in (
        ("Beams", beams, BEAMS),
        ("Longest", longest, LONGEST),
        ("Length penalty", length_penalty, PENALTY),
        ("Temperature", temperature, HEAT),
    ):
        if not isinstance(number, int | float) or not low <= number <= high:
            raise ValueError(f"{what} is {number}; it goes from {low:g} to {high:g}.")
    options: dict[str, Any] = {"num_beams": int(beams), "max_new_tokens": int(longest)}
    if temperature >= DRAWS:
        return options | {"num_beams": 1, "do_sample": True, "temperature": float(temperature)}
    return options | {"length_penalty": float(length_penalty)}
