"""The page: what people see of a model, with Gradio."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from blip2ft.demo.answering import Answering, Search, decoding_of
from blip2ft.demo.reports import REASONS, Answer, keep_report

UPLOAD = "20mb"
WAITING = 20  # requests in the queue before further ones are told to come later
# Gradio's own theme, with the fonts that are there: nothing is fetched from elsewhere
FONT = ["system-ui", "sans-serif"]
MONO = ["ui-monospace", "monospace"]
SHOWN = 24  # photos of a search


def make_page(answering: Answering, reports: Path, search: Search | None = None) -> gr.Blocks:
    """The page of a model; reports: the folder of what people report."""
    with gr.Blocks(title=f"blip2ft: {answering.name}", analytics_enabled=False) as page:
        gr.Markdown(f"# {_plain(answering.name)}")
        adapter: Any = gr.State(None)
        if answering.choices:
            adapter = gr.Dropdown(
                answering.choices, value=answering.choices[0], label="Adapter", interactive=True
            )
        with gr.Tabs():
            if answering.writes:
                with gr.Tab("Caption"):
                    _writing(answering, reports, adapter, asks=False)
                with gr.Tab("Question"):
                    _writing(answering, reports, adapter, asks=True)
            with gr.Tab("Attention"):
                _attention(answering, adapter)
            if search is not None:
                with gr.Tab("Search"):
                    _search(search)
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    return page


def open_page(page: gr.Blocks, host: str, port: int | None, *, wait: bool = True) -> str:
    """Serve the page and return its address; `wait` until Ctrl-C ends it.

    Raises ValueError where the port is taken.
    """
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            max_file_size=UPLOAD,
            theme=gr.themes.Default(font=FONT, font_mono=MONO),
            footer_links=[],
            ssr_mode=False,
            prevent_thread_lock=True,
        )
    except OSError as error:
        place = f"port {port}" if port else "any port from 7860"
        raise ValueError(
            f"{host} can't be listened on at {place} ({error}); choose another --port"
        ) from error
    print(f"{address} (Ctrl-C ends it)", flush=True)
    if wait:
        page.block_thread()
    return address


def _writing(answering: Answering, reports: Path, adapter: Any, *, asks: bool) -> None:
    """Captions, or with `asks` answers to questions, and the reports of bad ones."""
    known = answering.description.get("generation", {})
    with gr.Row():
        with gr.Column():
            image = _picture()
            if asks:
                asked = gr.Textbox(label="Question", placeholder="What is left of the dog?")
            else:
                asked = gr.Textbox(
                    value=answering.prompt, label="Prompt", info="The caption goes on from here."
                )
            go = gr.Button("Answer" if asks else "Caption", variant="primary")
            with gr.Accordion("Decoding", open=False):
                beams = gr.Slider(1, 10, known.get("num_beams", 5), step=1, label="Beams")
                longest = known.get("max_new_tokens", 10 if asks else 30)
                length = gr.Slider(1, 200, longest, step=1, label="Longest, in tokens")
                penalty = known.get("length_penalty", -1.0 if asks else 1.0)
                favour = gr.Slider(-2, 2, penalty, label="Length penalty: above 0 favours long")
                heat = gr.Slider(
                    0, 2, 0, label="Temperature", info="0 takes the likeliest; above, one is drawn"
                )
        with gr.Column():
            output = gr.Textbox(label="Answer" if asks else "Caption", lines=3, interactive=False)
            given: Any = gr.State(None)
            with gr.Accordion("Report a bad answer", open=False):
                gr.Markdown(
                    "The picture, the answer and what you write are kept on the computer that this "
                    f"page runs on, in {_plain(str(reports))}."
                )
                reason = gr.Radio(list(REASONS), value=REASONS[0], label="What is wrong with it?")
                right = gr.Textbox(label="What would be right?", info="May stay empty.")
                send = gr.Button("Report")
                told = gr.Markdown()

    def answer(image: str | None, asked: str, name: str | None, *numbers: float) -> Any:
        work = answering.ask if asks else answering.caption
        found = told_by_page(lambda: work(image, asked, name, **decoding_of(*numbers)))
        return found.output, found, ""

    def report(found: Answer | None, reason: str, right: str) -> str:
        if found is None:
            raise gr.Error("There is no answer yet to report.", print_exception=False)
        file = told_by_page(lambda: keep_report(reports, found, reason, right))
        return f"Thank you. It is in {_plain(str(file))}."

    numbers = [beams, length, favour, heat]
    for event in (go.click, asked.submit):
        event(answer, [image, asked, adapter, *numbers], [output, given, told])
    send.click(report, [given, reason, right], [told])


def _attention(answering: Answering, adapter: Any) -> None:
    with gr.Row():
        with gr.Column():
            image = _picture()
            label = "Question" if answering.reads_questions else "Text, if you like"
            text = gr.Textbox(label=label)
            go = gr.Button("Show where it looks", variant="primary")
        with gr.Column():
            pictures = gr.Gallery(label="Where it looks", columns=1, object_fit="contain")
            gr.Markdown(
                "A diagnostic: attention, weighed by gradients too, is no explanation of an answer."
            )

    def attend(image: str | None, text: str, name: str | None) -> Any:
        return told_by_page(lambda: answering.attend(image, text, name))

    for event in (go.click, text.submit):
        event(attend, [image, text, adapter], [pictures])


def _search(search: Search) -> None:
    query = gr.Textbox(label="What to look for", placeholder="a red flag")
    go = gr.Button("Search", variant="primary")
    found = gr.Gallery(label="Photos, the best first, with their scores", columns=4)

    def answer(query: str) -> Any:
        return told_by_page(lambda: search(query, SHOWN))

    for event in (go.click, query.submit):
        event(answer, [query], [found])


def told_by_page(work: Callable[[], Any]) -> Any:
    """The work's result; what went wrong is told on the page, in our words."""
    import torch

    try:
        return work()
    except ValueError as error:
        raise gr.Error(_plain(str(error)), print_exception=False) from error
    except torch.OutOfMemoryError as error:
        raise gr.Error(
            "The GPU's memory is full; take fewer beams, or a smaller model.", print_exception=False
        ) from error


def _picture() -> gr.Image:
    sources: Any = ["upload", "webcam", "clipboard"]
    return gr.Image(type="filepath", sources=sources, label="Picture", height=360)


def _plain(text: str) -> str:
    """As text, in Markdown and in messages, which Gradio shows as HTML."""
    marks = str.maketrans({mark: f"&#{ord(mark)};" for mark in "&<>`*_[]"})
    return text.translate(marks)
