"""Filters on records and questions, and what they took away, line by line."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from blip2ft.counted import counted
from blip2ft.data.questions import Question
from blip2ft.data.records import Record
from blip2ft.filters.rules import Rules
from blip2ft.filters.texts import Verdict, judge_all

Sample = TypeVar("Sample", Record, Question)


@dataclass(frozen=True)
class Filtered:
    """What is left of the samples, and a row for each text that was dropped or masked.

    Rows have origin ("captions.csv:12"; of an image with several rows in a table the first one's),
    image_id or question_id, part ("caption", "question", "answer" or "choice"), number (which of
    the image's captions, or of the question's answers, from 1), filter ("harmful" or "personal"),
    found (the harmful words; of personal data the kinds alone), done ("dropped" or "masked") and
    left_out: whether the whole image or question is.
    """

    kept: list[Any]
    rows: list[dict[str, Any]]
    told: str


def filter_samples(
    samples: Sequence[Sample], rules: Rules, *, workers: int = 0, progress: bool = False
) -> Filtered:
    """Drop or mask captions, questions and answers by `rules`, in their order.

    An image without a caption left is left out. So is a question that is dropped itself, or that
    has no answer left, or loses one of its choices. Other columns and keys stay as they are.

    workers, progress: see `judge_all`.

    Raises ValueError where nothing is left.
    """
    texts = texts_of(samples)
    return apply_verdicts(samples, judge_all(texts, rules, workers=workers, progress=progress))


def texts_of(samples: Iterable[Sample]) -> Iterator[str]:
    """All texts that are looked at."""
    for sample in samples:
        for _, texts in _parts(sample):
            yield from texts


def apply_verdicts(samples: Sequence[Sample], verdicts: Mapping[str, Verdict]) -> Filtered:
    """The samples without what the verdicts of `judge_all` drop; see `filter_samples`."""
    kept: list[Any] = []
    rows: list[dict[str, Any]] = []
    for sample in samples:
        found = [
            (part, number, verdicts[text])
            for part, texts in _parts(sample)
            for number, text in enumerate(texts, start=1)
            if text in verdicts
        ]
        left = _apply(sample, verdicts) if found else sample
        if left is not None:
            kept.append(left)
        rows += [_row(sample, *each, left_out=left is None) for each in found]
    if samples and not kept:
        raise ValueError(
            f"the filters leave nothing of {counted(len(samples), _noun(samples[0]))}; in "
            f"{rows[0]['origin']} is {rows[0]['found'][0]!r}, for one. Change the filters, or look "
            "at the data"
        )
    return Filtered(kept, rows, _told(samples, rows, len(samples) - len(kept)))


def _parts(sample: Record | Question) -> Iterator[tuple[str, tuple[str, ...]]]:
    if isinstance(sample, Record):
        yield "caption", sample.captions
    else:
        yield "question", (sample.question,)
        yield "answer", sample.answers
        yield "choice", sample.choices


def _apply(sample: Sample, verdicts: Mapping[str, Verdict]) -> Sample | None:
    def left(texts: Sequence[str]) -> tuple[str, ...]:
        stay = (verdicts[text].text if text in verdicts else text for text in texts)
        return tuple(text for text in stay if text is not None)

    if isinstance(sample, Record):
        captions = left(sample.captions)
        return replace(sample, captions=captions) if captions else None
    question, answers, choices = left([sample.question]), left(sample.answers), left(sample.choices)
    unanswered = any(sample.answers) and not any(answers)
    if not question or unanswered or len(choices) < len(sample.choices):
        return None
    return replace(sample, question=question[0], answers=answers, choices=choices)


def _row(
    sample: Record | Question, part: str, number: int, verdict: Verdict, *, left_out: bool
) -> dict[str, Any]:
    named = {"image_id": sample.image_id}
    if isinstance(sample, Question):
        named = {"question_id": sample.question_id}
    done = "dropped" if verdict.text is None else "masked"
    what = {"filter": verdict.filter, "found": list(verdict.found), "done": done}
    return {"origin": sample.origin, **named, "part": part, "number": number, **what} | {
        "left_out": left_out
    }


def _told(samples: Sequence[Any], rows: Sequence[Mapping[str, Any]], left_out: int) -> str:
    """What was done, in a line."""
    if not samples:
        return "filters: nothing to look at"
    noun = _noun(samples[0])
    if not rows:
        return f"filters: nothing found in {counted(len(samples), noun)}"
    told = []
    for name, why in (("harmful", "for harmful words"), ("personal", "for personal data")):
        for done in ("dropped", "masked"):
            some = [row for row in rows if row["filter"] == name and row["done"] == done]
            if some:
                parts = dict.fromkeys(row["part"] for row in some)
                what = parts.popitem()[0] if len(parts) == 1 else "text"
                told.append(f"{counted(len(some), what)} {done} {why}")
    gone = f"; {counted(left_out, noun)} left out" if left_out else ""
    return f"filters: {', '.join(told)}{gone}; filtered.jsonl has each"


def _noun(sample: Record | Question) -> str:
    return "image" if isinstance(sample, Record) else "question"
