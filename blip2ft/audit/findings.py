"""What can be wrong with data, how much it matters, and what to do about it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

SEVERITIES = ("error", "warning", "note")
SHOWN_TEXT = 200  # characters of a text in a finding


class Kind(NamedTuple):
    """severity: an error stops training or spoils its result; a warning may; a note tells only."""

    severity: str
    title: str
    remedy: str


FETCH = "Fetch it again, or remove its rows."
KINDS: Mapping[str, Kind] = {
    "source": Kind("error", "a source that can't be read", "Mend it, and check again."),
    "record": Kind("error", "a row that can't be read", "Correct or remove it."),
    # images
    "missing": Kind("error", "no such image file", "Set image_root, or correct the paths."),
    "directory": Kind("error", "a folder in place of an image", "Name a file in it."),
    "empty": Kind("error", "an empty image file", FETCH),
    "truncated": Kind("error", "an image cut short", FETCH),
    "unreadable": Kind("error", "an image that can't be read", FETCH),
    "huge": Kind(
        "error",
        "too many pixels to be safe",
        "Make it smaller: an image that claims so many can fill the memory, and training refuses.",
    ),
    "tiny": Kind(
        "warning",
        "far smaller than the model reads",
        "Fetch larger ones, or leave them out: enlarged so much, they are a blur.",
    ),
    "blank": Kind("warning", "a single colour all over", "Remove it, or fetch it again."),
    "animated": Kind("warning", "animated", "Only the first frame is read: does the text fit it?"),
    "long-sided": Kind(
        "warning",
        "one side more than 4 times the other",
        "Crop it: the model reads squares, to which it is squeezed.",
    ),
    "mode": Kind("note", "an unusual kind of pixels", "Nothing has to be done: it is converted."),
    "rotated": Kind("note", "turned upright by its EXIF", "Nothing has to be done."),
    "extension": Kind(
        "note", "another format than its name says", "Read all the same; other programs may not."
    ),
    # copies
    "leak": Kind(
        "error",
        "an image of training, in a split that scores it",
        "Scores on it flatter. Give each image to one split.",
    ),
    "near-leak": Kind(
        "warning",
        "looks like an image of training, in a split that scores it",
        "Look at both: if they show the same, give them to one split.",
    ),
    "shared": Kind(
        "warning", "an image of two splits", "Give each image to one split, or keep one copy."
    ),
    "duplicate": Kind(
        "warning", "the same image twice", "Keep one, with all its texts: copies weigh double."
    ),
    "near-duplicate": Kind(
        "warning", "two images that look the same", "Look at both, and keep one of them."
    ),
    # texts
    "long": Kind("warning", "a very long text", "Is it a caption? Shorten it, or leave it out."),
    "cut": Kind(
        "warning",
        "longer than training reads, so it would be cut",
        "Shorten it, or raise data.max_target_tokens.",
    ),
    "repeated": Kind(
        "warning",
        "one text for very many images",
        "Such texts teach to say them of anything: leave out those that were made by rote.",
    ),
    "twice": Kind("warning", "the same text twice for one image", "Remove one of them."),
    "wordless": Kind("warning", "a text without a word", "Write one, or remove it."),
    "garbled": Kind(
        "warning",
        "garbled characters",
        "Read the text's source in its own encoding, and save it as UTF-8.",
    ),
    "markup": Kind("warning", "an address or HTML in a text", "Take it out."),
    "placeholder": Kind(
        "warning",
        "what programs write where there is no text",
        "Write a text, or remove the row: was an empty cell saved as a word?",
    ),
    "file-name": Kind("warning", "a file name as text", "Write what is to be seen."),
    # balance
    "one-answer": Kind(
        "warning",
        "one answer to most of the questions",
        "A model that always says it scores as much: add others, or watch the score by type.",
    ),
    "yes-no": Kind(
        "warning", "yes and no are out of balance", "Add questions with the rarer answer."
    ),
    "unseen": Kind(
        "note",
        "answers that training never gives",
        "A model that chooses among training's answers can't give them.",
    ),
    "small-split": Kind(
        "warning", "few images to score on", "Take 50 or more: scores on so few jump about."
    ),
    "lopsided": Kind(
        "warning", "splits that differ", "Draw the splits at random from the same images."
    ),
    "no-text": Kind("note", "images without texts", "Only the images were looked at."),
}


@dataclass(slots=True)
class Finding:
    """One thing that was found.

    Args:
        kind: One of `KINDS`.
        split: Name of the split that it is in.
        origin: Where it was named: file and line, row or place.
        detail: What is particular to this one.
        image: Path of the image, or where in a table or tar it is; "" where it isn't of one.
        text: Of a text its beginning.
        picture: Number of the image among those that were looked at, and `other` of one beside it.
        title: In the place of the kind's own.
        remedy: In the place of the kind's own.
    """

    kind: str
    split: str
    origin: str
    detail: str = ""
    image: str = ""
    text: str = ""
    picture: int | None = None
    other: int | None = None
    title: str = ""
    remedy: str = ""

    def __post_init__(self) -> None:
        self.title = self.title or KINDS[self.kind].title
        self.remedy = self.remedy or KINDS[self.kind].remedy
        self.text = shorten(self.text)

    @property
    def severity(self) -> str:
        return KINDS[self.kind].severity

    def as_json(self) -> dict[str, Any]:
        """A line of findings.jsonl."""
        line = {"severity": self.severity, "kind": self.kind, "split": self.split}
        line |= {"what": self.title, "detail": self.detail, **place_of(self.origin)}
        line |= {name: getattr(self, name) for name in ("image", "text") if getattr(self, name)}
        return {**line, "remedy": self.remedy}


def grouped(findings: Sequence[Finding]) -> list[tuple[str, list[Finding]]]:
    """Findings of one title together: errors first, in the order of `KINDS`."""
    kinds = list(KINDS)
    groups: dict[tuple[int, int, str], list[Finding]] = {}
    for found in findings:
        rank = SEVERITIES.index(found.severity), kinds.index(found.kind), found.title
        groups.setdefault(rank, []).append(found)
    return [(title, groups[severity, kind, title]) for severity, kind, title in sorted(groups)]


def shorten(text: str, limit: int = SHOWN_TEXT) -> str:
    """A text, or its beginning with three dots."""
    return text if len(text) <= limit else f"{text[:limit].rstrip()} ..."


def place_of(origin: str) -> dict[str, Any]:
    """File, and line, row or place in it, of an origin such as "captions.csv:12"."""
    for pattern, name in ((r"(.+):(\d+)", "line"), (r"(.+): row (\d+)", "row")):
        found = re.fullmatch(pattern, origin, re.DOTALL)
        if found:
            return {"file": found[1], name: int(found[2])}
    found = re.fullmatch(r"(.+?\.\w+): (.+)", origin, re.DOTALL)
    return {"file": found[1], "place": found[2]} if found else {"file": origin}
