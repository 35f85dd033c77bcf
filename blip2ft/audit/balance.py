"""Whether answers and splits are in balance."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from blip2ft.audit.contents import Item
from blip2ft.audit.findings import Finding
from blip2ft.audit.texts import shares
from blip2ft.counted import counted

SCORING = ("validation", "test")
FEW = 50  # images to score on
MOST = 0.5  # share of one answer that is too much
YES_NO = 0.75  # share of yes, or of no, among both
ENOUGH = 20  # questions from which shares mean something
APART = 0.25  # by which shares of two splits may differ
TIMES = 2  # by which their median lengths may
LISTED = 20  # answers told


def commonest(item: Item) -> str:
    """The answer that most people gave."""
    counts = Counter(answer.casefold() for answer in item.answers if answer)
    return max(counts, key=lambda answer: counts[answer]) if counts else ""


def answer_counts(items: Sequence[Item]) -> Counter[str]:
    """How many questions have each answer as their commonest."""
    return Counter(answer for item in items if (answer := commonest(item)))


def answer_findings(splits: Mapping[str, Sequence[Item]]) -> Iterator[Finding]:
    """Answers that are too common, and such as training never gives."""
    counts = {name: answer_counts(items) for name, items in splits.items()}
    for name, answers in counts.items():
        total = answers.total()
        if total < ENOUGH:
            continue
        (answer, count), *_ = answers.most_common(1)
        if count / total > MOST:
            more = f"{count:,} of {total:,} questions, {count / total:.0%}"
            yield Finding("one-answer", name, name, more, text=answer)
        both = answers["yes"] + answers["no"]
        if both >= ENOUGH and not 1 - YES_NO <= answers["yes"] / both <= YES_NO:
            yield Finding("yes-no", name, name, f"{answers['yes']:,} yes, {answers['no']:,} no")
    learned = counts.get("train")
    for name in SCORING:
        if learned and name in counts:
            unseen = {a: n for a, n in counts[name].items() if a not in learned}
            if unseen:
                share = sum(unseen.values()) / counts[name].total()
                such = ", ".join(list(unseen)[:3])
                more = f"{counted(len(unseen), 'answer')}, of {share:.1%} of the questions"
                yield Finding("unseen", name, name, more, text=such)


def split_findings(splits: Mapping[str, Sequence[Item]]) -> Iterator[Finding]:
    """Splits that are too small, or that differ from the one that is learned from."""
    sizes = {
        name: len({i.picture for i in items if i.picture is not None})
        for name, items in splits.items()
    }
    for name in SCORING:
        if name in sizes and sizes[name] < FEW:
            yield Finding("small-split", name, name, counted(sizes[name], "image"))
    if not sizes.get("train"):
        return
    for name in SCORING:
        if not sizes.get(name):
            continue
        if sizes[name] > sizes["train"]:
            more = f"{name} has {counted(sizes[name], 'image')}, train {sizes['train']:,}"
            yield Finding("lopsided", name, name, more)
        yield from (
            Finding("lopsided", name, name, more)
            for more in differences(name, splits[name], splits["train"])
        )


def differences(name: str, items: Sequence[Item], learned: Sequence[Item]) -> Iterator[str]:
    """In what the texts and kinds of answers of two splits differ."""
    words, trained = median_words(items), median_words(learned)
    if min(len(items), len(learned)) < ENOUGH or not words or not trained:
        return
    if max(words, trained) > TIMES * min(words, trained):
        yield f"half of its texts have {words:.0f} words or fewer, of those of train {trained:.0f}"
    kinds, known = (shares(kinds_of(rows)) for rows in (items, learned))
    for kind in sorted({*kinds, *known}) if kinds and known else ():
        share, other = kinds.get(kind, 0), known.get(kind, 0)
        if abs(share - other) > APART:
            yield f"{share:.0%} of its answers are {kind!r}, of those of train {other:.0%}"


def median_words(items: Sequence[Item]) -> float:
    """Words of a text, as many as half of the texts have at most; 0 without texts."""
    counts = [len(text.split()) for item in items for text in item.texts]
    return median(counts) if counts else 0.0


def kinds_of(items: Sequence[Item]) -> dict[str, int]:
    """How many questions are of each answer type, where the source tells it."""
    return Counter(item.answer_type for item in items if item.answer_type)


def answer_summary(items: Sequence[Item]) -> dict[str, Any]:
    """The commonest answers with the number of their questions, and how many different ones."""
    counts = answer_counts(items)
    return {
        "questions": counts.total(),
        "different": len(counts),
        "commonest": dict(counts.most_common(LISTED)),
    }
