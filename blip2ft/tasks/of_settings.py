"""What a run is evaluated on and how it answers, told from its settings."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from blip2ft.data.batches import text_layout
from blip2ft.data.decode import decode_text
from blip2ft.data.images import transforms_for
from blip2ft.data.pairs import pair_layout
from blip2ft.data.questions import read_questions
from blip2ft.data.records import read_records
from blip2ft.evaluation.rows import answer_rows, caption_rows, ranking_rows
from blip2ft.tasks.caption import predict
from blip2ft.tasks.ranking import rank
from blip2ft.tasks.vqa import answer, check_questions

Rows = list[dict[str, Any]]


def evaluated_on(task: str, settings: Mapping[str, Any], split: str) -> list[Any]:
    """The records, or questions, of the split "validation" or "test".

    A captioning split may be without captions, as NoCaps' test set is: it is answered, and not
    scored.

    Raises ValueError for a split that the settings don't name, and as the readers do.
    """
    source = settings["data"][split]
    if source is None:
        raise ValueError(
            f"the settings have no {split} split; give --data.{split}.source, or another --split"
        )
    if task == "vqa":
        return read_questions(**source)
    if task == "caption":
        records = read_records(**source, require_captions=False)
        if not any(record.captions for record in records):
            return records
    return read_records(**source)


def answerer(
    task: str,
    settings: Mapping[str, Any],
    model: Any,
    processor: Any,
    accelerator: Accelerator,
    workers: int,
    records: Sequence[Any],
) -> Callable[[Sequence[Any]], Rows]:
    """What makes rows of predictions of records or questions, as a recipe's evaluation would.

    Every process must call it with the same ones, and gets all rows, in their order. For retrieval
    these are all there are to search in. records: all that it will be asked.

    Raises ValueError for those that can't be answered, before any is.
    """
    image_processor = processor.image_processor
    _, resize = transforms_for(image_processor, scale=None, flip=False)
    longest = settings["data"]["max_target_tokens"]
    shared: dict[str, Any] = {"workers": workers, "accelerator": accelerator}
    if task == "retrieval":
        pairs = pair_layout(model, processor, longest)

        def search(records: Sequence[Any]) -> Rows:
            texts = [caption for record in records for caption in record.captions]
            asked = {**shared, **settings["search"], "progress": True}
            return ranking_rows(records, rank(model, pairs, resize, records, texts, **asked))

        return search
    layout = text_layout(model, processor, longest)
    prompt, decoding = settings["prompt"], {**shared, **settings["generation"]}
    if task == "caption":

        def caption(records: Sequence[Any]) -> Rows:
            said = predict(model, layout, resize, records, prompts=prompt, **decoding)
            return caption_rows(records, said)

        return caption
    decoding["candidates"] = candidates_of(settings)
    check_questions(layout, prompt, records)

    def reply(questions: Sequence[Any]) -> Rows:
        said = answer(model, layout, resize, questions, template=prompt, **decoding)
        return answer_rows(questions, said)

    return reply


def candidates_of(settings: Mapping[str, Any]) -> list[str] | None:
    """The lines of the file of answers that a question may have; None where they are written.

    Raises ValueError for a file that isn't there, isn't UTF-8 or has no line.
    """
    if settings.get("candidates") is None:
        return None
    path = Path(settings["candidates"])
    if not path.is_file():
        raise ValueError(f"candidates: there is no file {path}; give one with an answer a line")
    found = [line.strip() for line in decode_text(path).split("\n") if line.strip()]
    if not found:
        raise ValueError(
            f"candidates: {path} holds no answers to choose from; give one with an answer a line, "
            "or leave candidates out to have answers written"
        )
    return found
