"""What a run learned from, in numbers that stay when the data are elsewhere."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from blip2ft.audit.languages import count_languages
from blip2ft.data.questions import Question
from blip2ft.data.records import Record
from blip2ft.data.stream import Stream
from blip2ft.whole import write_text

FILE = "training-data.json"  # in a run's folder


def keep_learned_from(
    run: Path,
    source: Sequence[Record] | Sequence[Question] | Stream,
    answers: Sequence[str],
    accelerator: Accelerator,
) -> None:
    """Write the numbers of `describe_source` into the run's folder; call on every process."""
    if accelerator.is_main_process:
        write_text(run / FILE, json.dumps(describe_source(source, answers), indent=2) + "\n")


def describe_source(
    source: Sequence[Record] | Sequence[Question] | Stream, answers: Sequence[str] = ()
) -> dict[str, Any]:
    """How many images and texts there are to learn from, after the filters.

    answers: what the trained model wrote about images that it is tested on; "repeated" is the share
      of them that is, to the letter, a caption or an answer of the training data, null without any.

    Texts are captions or questions; "languages" counts a sample of them, null without py3langid. Of
    a stream only the number of its samples and shards is known.
    """
    if isinstance(source, Stream):
        return {"samples": len(source), "shards": len(source.sizes)}
    texts: list[str] = []
    learned: set[str] = set()
    for sample in source:
        if isinstance(sample, Question):
            texts.append(sample.question)
            learned.update(answer.strip() for answer in sample.answers)
        else:
            texts += sample.captions
            learned.update(caption.strip() for caption in sample.captions)
    words = sum(len(text.split()) for text in texts)
    repeated = sum(answer.strip() in learned for answer in answers)
    return {
        "images": len({sample.image_id for sample in source}),
        "texts": len(texts),
        "distinct_texts": len(set(texts)),
        "words_per_text": words / len(texts) if texts else None,
        "languages": count_languages(texts),
        "repeated": repeated / len(answers) if answers else None,
    }
