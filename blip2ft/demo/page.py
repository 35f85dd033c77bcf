"""The page: what people see of a model, with Gradio."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from blip2ft.demo.answering import BEAMS, HEAT, LONGEST, PENALTY, Answering, decoding_of
from blip2ft.demo.reports import REASONS, Answer, keep_report
from blip2ft.demo.search import Search

logger = logging.getLogger(__name__)
WAITING = 20  # requests in the queue before further ones are told to come later
HIDDEN: dict[str, Any] = {"api_visibility": "private"}
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
REPORTED = (
    "The picture, the answer and what you write here are kept on the computer that runs this page, "
    "for whoever looks after the model."
)
POINTED = "What of it speaks for these words is shown beside it."
DIAGNOSTIC = (
    "The brighter, the more of the queries' attention. A diagnostic: attention, weighed by "
    "gradients too, is no explanation of an answer."
)


def make_page(answering: Answering, reports: Path, search: Search | None = None) -> gr.Blocks:
    """The page of a model; reports: the folder of what people report."""
    with gr.Blocks(title=f"{answering.name} · blip2ft", analytics_enabled=False) as page:
        gr.Markdown(f"# {_plain(answering.name)}")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                image = _picture()
                adapter: Any = gr.State(None)
                if answering.choices:
                    adapter = gr.Dropdown(
                        answering.choices, value=answering.choices[0], label="Adapter"
                    )
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                if answering.writes:
                    with gr.Tab("Caption"):
                        _writing(answering, reports, image, adapter, asks=False)
                    with gr.Tab("Question"):
                        _writing(answering, reports, image, adapter, asks=True)
                with gr.Tab("Attention"):
                    _attention(answering, image, adapter)
                if search is not None:
                    with gr.Tab("Search"):
                        _search(search)
    page.queue(max_size=WAITING)
    return page


def _writing(
    answering: Answering, reports: Path, image: gr.Image, adapter: Any, *, asks: bool
) -> None:
    """Captions, or with `asks` answers to questions, and the reports of bad ones."""
    first = answering.choices[0] if answering.choices else None
    if asks:
        asked = gr.Textbox(label="Question", placeholder="What is on the left?")
    else:
        told = "The caption goes on from here."
        asked = gr.Textbox(label="Prompt", value=answering.prompt(first), info=told)
        if answering.choices:
            adapter.change(answering.prompt, adapter, asked, **HIDDEN)
    go = gr.Button("Answer" if asks else "Caption", variant="primary")
    output = gr.Textbox(label="Answer" if asks else "Caption", lines=2, interactive=False)
    given: Any = gr.State(None)
    numbers = _decoding(answering.decoding(first), asks=asks)
    with gr.Accordion("Report a bad answer", open=False):
        gr.Markdown(REPORTED)
        reason = gr.Radio(list(REASONS), value=REASONS[0], label="What is wrong with it?")
        right = gr.Textbox(label="What would be right?", info="May stay empty.")
        send = gr.Button("Report")
        thanks = gr.Markdown()

    def answer(image: str | None, asked: str, name: str | None, *numbers: float) -> Any:
        work = answering.ask if asks else answering.caption
        found = _told_by_page(lambda: work(image, asked, name, **decoding_of(*numbers)))
        return found.output, found, ""

    def report(found: Answer | None, reason: str, right: str) -> Any:
        if found is None:
            raise gr.Error("There is no answer to report; each can be once.", print_exception=False)
        file = _told_by_page(lambda: keep_report(reports, found, reason, right))
        return f"Thank you. It is kept in {file.name}.", None, ""

    inputs, outputs = [image, asked, adapter, *numbers], [output, given, thanks]
    for event in (go.click, asked.submit):
        event(answer, inputs, outputs, **ONE_AT_A_TIME, **HIDDEN)
    image.change(lambda: ("", None, ""), None, outputs, **HIDDEN)
    send.click(report, [given, reason, right], [thanks, given, right], **HIDDEN)


def _decoding(known: Mapping[str, Any], *, asks: bool) -> list[gr.Slider]:
    """The sliders that `decoding_of` reads, as the model was tuned for."""
    longest = min(known.get("max_new_tokens", 10 if asks else 30), LONGEST[1])
    penalty = known.get("length_penalty", -1.0 if asks else 1.0)
    with gr.Accordion("Decoding", open=False), gr.Row():
        return [
            _slider("Beams", "Texts that are followed at once.", BEAMS, known.get("num_beams", 5)),
            _slider("Longest", "Tokens, of which a word has one or two.", LONGEST, longest),
            _slider("Length penalty", "Above 0 favours long texts.", PENALTY, penalty),
            _slider("Temperature", "0: the likeliest text. Above: one drawn.", HEAT, 0.0),
        ]


def _slider(label: str, info: str, ends: tuple[float, float], value: float) -> gr.Slider:
    step = 1 if isinstance(ends[0], int) else 0.1
    return gr.Slider(*ends, value, step=step, label=label, info=info, min_width=240)


def _attention(answering: Answering, image: gr.Image, adapter: Any) -> None:
    label = "Question" if answering.reads_questions else "Text, if you like"
    text = gr.Textbox(label=label, info="" if answering.reads_questions else POINTED)
    go = gr.Button("Show where it looks", variant="primary")
    pictures = _gallery("Where it looks", columns=2)
    score = gr.Markdown()
    gr.Markdown(DIAGNOSTIC)

    def attend(image: str | None, text: str, name: str | None) -> Any:
        shown, told = _told_by_page(lambda: answering.attend(image, text, name))
        return shown, _plain(told)

    for event in (go.click, text.submit):
        event(attend, [image, text, adapter], [pictures, score], **ONE_AT_A_TIME, **HIDDEN)
    image.change(lambda: (None, ""), None, [pictures, score], **HIDDEN)


def _search(search: Search) -> None:
    query = gr.Textbox(label="What to look for", placeholder="a red flag")
    go = gr.Button("Search", variant="primary")
    found = _gallery("Photos, the best first, with their scores", columns=3)

    def answer(query: str) -> Any:
        return _told_by_page(lambda: search(query))

    for event in (go.click, query.submit):
        event(answer, query, found, **ONE_AT_A_TIME, **HIDDEN)


def _told_by_page(work: Callable[[], Any]) -> Any:
    """The work's result; what went wrong is told on the page, in our words."""
    import torch

    try:
        return work()
    except ValueError as error:
        told = str(error)
    except torch.OutOfMemoryError:
        told = "The GPU's memory is full; take fewer beams, or a smaller model."
    except OSError as error:
        logger.warning("%s", error)
        told = f"It couldn't be kept ({error.strerror}); the terminal of blip2ft demo tells more."
    except Exception:
        logger.exception("an error that wasn't foreseen")
        told = "An error that wasn't foreseen; the terminal of blip2ft demo shows it."
    raise gr.Error(_plain(told), print_exception=False)


def _picture() -> gr.Image:
    sources: Any = ["upload", "webcam", "clipboard"]
    image = gr.Image(
        type="filepath",
        sources=sources,
        label="Picture",
        placeholder="Drop a picture here\nor click to choose one",
        height=360,
        buttons=[],
    )
    # the file as it is: Gradio would open it first, and of one that it can't open tells nothing. A
    # class of our own would do, but beside its module Gradio writes a file of types.
    setattr(image, "preprocess", lambda sent: None if sent is None else sent.path)  # noqa: B010
    return image


def _gallery(label: str, *, columns: int) -> gr.Gallery:
    return gr.Gallery(
        label=label,
        show_label=False,
        columns=columns,
        fit_columns=False,
        height="auto",
        object_fit="contain",
        format="jpeg",
        buttons=["fullscreen"],
    )


def _plain(text: str) -> str:
    """As text, in Markdown and in messages, which Gradio shows as HTML."""
    return "".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in text)
