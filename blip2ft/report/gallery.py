"""Which answers a page shows: those that tell most of what a run gained and lost."""

import json
import re
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from blip2ft.pages import readable
from blip2ft.report.curves import NOTHING
from blip2ft.report.scores import Row, of_each

OF_A_KIND = 12  # of each of five kinds
OF_REFERENCES = 10  # that a page has of a sample
# Characters of what can be searched beside them.
OF_A_TEXT, OF_ALL_TEXTS = 300, 600_000


@dataclass(frozen=True)
class Answer:
    """What was said, how good it is (see `scores.of_each`), and of retrieval the further texts."""

    text: str
    score: float | None
    exact: bool
    more: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class Sample:
    """An image, with a question or without, and the answers of each column; None has none."""

    key: Any
    image_id: Any
    image: str | None
    question: str
    references: Sequence[str]
    answers: Sequence[Answer | None]

    @property
    def gain(self) -> float:
        """How much better the last answer is than the first; 0 where either isn't scored."""
        first, last = self.answers[0], self.answers[-1]
        if first is None or last is None or first.score is None or last.score is None:
            return 0.0
        return last.score - first.score

    @property
    def score(self) -> float | None:
        """How good the last answer is."""
        return None if self.answers[-1] is None else self.answers[-1].score

    @property
    def change(self) -> float:
        """The share of words that not all answers have, from 0 to 1."""
        said = [set(re.findall(r"\w+", a.text.lower())) for a in self.answers if a is not None]
        every = set().union(*said)
        return 1 - len(set.intersection(*said)) / len(every) if len(said) > 1 and every else 0.0


@dataclass(frozen=True)
class Group:
    """Samples that are shown for the same reason."""

    title: str
    about: str
    samples: Sequence[Sample]


def samples_of(task: str, columns: Sequence[Sequence[Row]]) -> list[Sample]:
    """The samples of the last of some evaluations, with what each of these answers to them."""
    scored = [dict(zip(map(_key, rows), zip(rows, of_each(task, rows)))) for rows in columns]  # noqa: B905
    samples = []
    for row in columns[-1]:
        found = [of_column.get(_key(row)) for of_column in scored]
        answers = [None if one is None else _answer(*one) for one in found]
        samples.append(
            Sample(
                _key(row),
                row["image_id"],
                row.get("image"),
                row.get("question", ""),
                references_of(row),
                answers,
            )
        )
    return samples


def references_of(row: Row) -> list[str]:
    """What people said, each once, the commonest first."""
    said = row["references"] if "references" in row else row["answers"]
    return sorted(dict.fromkeys(said), key=said.count, reverse=True)


def groups_of(samples: Sequence[Sample], *, of_runs: bool = False) -> list[Group]:
    """What to show; a sample is in one group, of those that have it the first.

    of_runs: the answers are of several runs, none of which came before another.
    """
    left = {sample.key: sample for sample in sorted(samples, key=_shuffled)}

    def take(title: str, about: str, worth: Callable[[Sample], float | None]) -> Group:
        worths = {key: worth(sample) for key, sample in left.items()}
        kept = [key for key, value in worths.items() if value is not None]
        first = sorted(kept, key=lambda key: -worths[key])[:OF_A_KIND]  # type: ignore[operator]
        return Group(title, about, [left.pop(key) for key in first])

    if of_runs:
        groups = [
            take("Scores differ most", "Where one run is far better than another.", _spread),
            take("Words differ most", "The answers share the fewest words.", _changed),
        ]
    else:
        groups = [
            take(
                "Most improved", "Whose score rose most.", lambda s: s.gain if s.gain > 0 else None
            ),
            take(
                "Worsened most", "Whose score fell most.", lambda s: -s.gain if s.gain < 0 else None
            ),
            take("Worst", "The lowest scores.", _badness),
            take("Best", "The highest scores.", lambda s: s.score),
            take("Most changed", "Before and after share the fewest words.", _changed),
        ]
    if not any(group.samples for group in groups):
        groups = [take("Some answers", "None of them is scored.", lambda _: 0.0)]
    return [group for group in groups if group.samples]


def texts_of(samples: Sequence[Sample], without: Collection[Any]) -> list[dict[str, Any]]:
    """What can be searched of samples but those with the keys `without`, as long as there is room.

    Of each image (its id), question, references and answers.
    """
    found, size = [], 0
    for sample in samples:
        if sample.key in without:
            continue
        said = [NOTHING if answer is None else answer.text for answer in sample.answers]
        texts = {
            "image": _short(str(sample.image_id)),
            "question": _short(sample.question),
            "references": [_short(text) for text in sample.references[:OF_REFERENCES]],
            "answers": [_short(text) for text in said],
        }
        size += len(json.dumps(texts, ensure_ascii=False))
        if size > OF_ALL_TEXTS:
            break
        found.append(texts)
    return found


def _short(text: str) -> str:
    return readable(text[:OF_A_TEXT])


def _key(row: Row) -> Any:
    return row.get("question_id", row["image_id"])


def _answer(row: Row, score: float | None) -> Answer:
    text = row["answer"] if "answer" in row else row["caption"]
    exact = text.strip() in {reference.strip() for reference in references_of(row)}
    further = list(zip(row.get("texts", ())[1:], row.get("scores", ())[1:], strict=True))
    return Answer(text, score, exact, further)


def _badness(sample: Sample) -> float | None:
    answer = sample.answers[-1]
    right = answer is None or answer.score is None or answer.exact
    return None if right or sample.score is None else -sample.score


def _spread(sample: Sample) -> float | None:
    scores = [a.score for a in sample.answers if a is not None and a.score is not None]
    return (max(scores) - min(scores) or None) if scores else None


def _changed(sample: Sample) -> float | None:
    return sample.change or None


def _shuffled(sample: Sample) -> int:
    """An order that is always the same, in which neighbours of the data are apart."""
    return zlib.crc32(str(sample.key).encode(errors="replace"))
