"""What becomes of each text, decided once for all that are the same."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch.utils.data import Dataset

from blip2ft.bars import progress_bar
from blip2ft.data.loading import load_batches
from blip2ft.filters.harmful import harmful_finder
from blip2ft.filters.personal import find_personal, mask_personal
from blip2ft.filters.rules import Rules

PIECE = 1000  # texts that a process takes at once
FEW = 20_000  # texts that aren't worth starting processes for


class Verdict(NamedTuple):
    """What was found in a text, and what stays of it.

    filter: "harmful" or "personal"; found: the harmful words, or the kinds of personal data, never
    the data; text: what stays, None where all is dropped.
    """

    filter: str
    found: tuple[str, ...]
    text: str | None


def judge(text: str, rules: Rules) -> Verdict | None:
    """What becomes of one text; None where it stays as it is."""
    if rules.harmful == "drop":
        words = harmful_finder(tuple(rules.languages), tuple(rules.allow_words))(text)
        if words:
            return Verdict("harmful", words, None)
    if rules.personal != "keep":
        found = find_personal(text, rules.countries)
        if found:
            kinds = tuple(each.kind for each in found)
            masked = mask_personal(text, found) if rules.personal == "mask" else None
            return Verdict("personal", kinds, masked)
    return None


def judge_all(
    texts: Iterable[str], rules: Rules, *, workers: int = 0, progress: bool = False
) -> dict[str, Verdict]:
    """The verdicts on those texts that don't stay as they are.

    workers: processes that share the work, where there are many texts; they change nothing in the
    result.
    """
    unique = list(dict.fromkeys(texts))
    job = _Job(unique, rules)
    pieces = [[number] for number in range(-(-len(unique) // PIECE))]
    loader = load_batches(job, pieces, list, workers=workers if len(unique) >= FEW else 0)
    verdicts: dict[str, Verdict] = {}
    quiet = not progress or len(unique) < FEW
    bar = progress_bar(loader, "filtering", len(pieces), unit="k texts", hidden=quiet)
    for (piece,) in bar:
        verdicts.update(piece)
    return verdicts


@dataclass(frozen=True)
class _Job(Dataset):
    """Texts by piece, judged when one is asked for."""

    texts: Sequence[str]
    rules: Rules

    def __getitem__(self, number: int) -> dict[str, Verdict]:
        piece = self.texts[number * PIECE : (number + 1) * PIECE]
        judged = ((text, judge(text, self.rules)) for text in piece)
        return {text: verdict for text, verdict in judged if verdict is not None}
