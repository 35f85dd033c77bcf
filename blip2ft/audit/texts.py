"""What is said of images: texts that teach nothing, or something else than was meant."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath

from blip2ft.audit.contents import Contents, Item
from blip2ft.audit.findings import Finding
from blip2ft.data.tables import IMAGE_SUFFIXES

LONG = 1000  # characters from which a text is hardly a caption
MANY = 10  # images that one text may be said of, and in large splits
SHARE = 0.01  # this share of them
# UTF-8 read as Latin-1 or Windows-1252 ("Ã©", "â€™"), the mark of what couldn't be read, control
GARBLED = re.compile(r"\ufffd|Ã[\u0080-\u00bf]|â€|Â[\u00a0-\u00bf]|[\x00-\x08\x0e-\x1f\x7f]")
TAGS = "a|b|br|div|em|font|h[1-6]|html|i|img|li|p|script|span|strong|sub|sup|td|tr|u|ul"
MARKUP = re.compile(
    rf"https?://|www\.\w|</?({TAGS})(\s[^<>]*)?/?>|&(amp|lt|gt|quot|nbsp|#\d+);", re.IGNORECASE
)
LETTER = re.compile(r"[^\W\d_]")
# what pandas, databases, spreadsheets and programs write for a value that is missing
PLACEHOLDERS = {"nan", "null", "none", "n/a", "na", "<na>", "nat", "nil", "undefined"}
PLACEHOLDERS |= {"#n/a", "#na", "#name?", "#ref!", "#value!", "\\n"}
BINS = (5, 10, 15, 20, 30, 50)  # words up to which a bar of the histogram goes


def text_findings(contents: Contents) -> Iterator[Finding]:
    """What single captions or questions show."""
    for split, items in contents.splits.items():
        for item in items:
            for text in item.texts:
                for kind, detail in text_faults(text, _name(contents, item)):
                    yield _of(contents, item, kind, split, text, detail)


def text_faults(text: str, image: str) -> Iterator[tuple[str, str]]:
    """Kind and detail of what one text shows by itself; image: the name of its file, or ""."""
    if len(text) > LONG:
        yield "long", f"{len(text):,} characters"
    if GARBLED.search(text):
        yield "garbled", ""
    if MARKUP.search(text):
        yield "markup", ""
    stem, ending = PurePath(image).stem, PurePath(text[:LONG]).suffix.lower()
    numbered = text == stem and re.search(r"\d", stem) and LETTER.search(stem)
    if " " not in text and (ending in IMAGE_SUFFIXES or numbered):
        yield "file-name", ""
    elif text.casefold() in PLACEHOLDERS:
        yield "placeholder", ""
    elif not LETTER.search(text):
        yield "wordless", ""


def cut_texts(
    contents: Contents,
    limit: int,
    count_tokens: Callable[[Sequence[str]], list[int]] | None,
    *,
    answers: bool,
) -> Iterator[Finding]:
    """Captions, or `answers`, of which training would read the beginning only.

    Very long ones are told already. count_tokens: tokens of each of some texts; None counts words,
    of which there are never more.
    """
    count, unit = (count_tokens, "tokens") if count_tokens else (word_counts, "words")
    for split, items in contents.splits.items():
        read = [(i, t) for i in items for t in (dict.fromkeys(i.answers) if answers else i.texts)]
        some = [(item, text) for item, text in read if len(text) <= LONG]
        lengths = count([text for _, text in some])
        for (item, text), length in zip(some, lengths, strict=True):
            if length > limit:
                more = f"{length} {unit}; training reads {limit} tokens"
                yield _of(contents, item, "cut", split, text, more)


def repeated_texts(contents: Contents, *, across: bool) -> Iterator[Finding]:
    """Texts said twice of one image, and with `across` those said of very many images."""
    for split, items in contents.splits.items():
        said: dict[tuple[str, int], str] = {}
        images: Counter[str] = Counter()
        first: dict[str, tuple[Item, str]] = {}
        for item in items:
            if item.picture is None:
                continue
            for text in item.texts:
                plain = " ".join(text.casefold().split())
                key = plain, item.picture
                if key in said:
                    yield _of(contents, item, "twice", split, text, f"also {said[key]}")
                    continue
                said[key] = item.origin
                images[plain] += 1
                first.setdefault(plain, (item, text))
        total = len({item.picture for item in items})
        for plain, count in images.most_common() if across else ():
            if count <= max(MANY, SHARE * total):
                break
            item, text = first[plain]
            more = f"of {count:,} images, {count / total:.1%}"
            yield Finding("repeated", split, item.origin, more, text=text)


def length_histogram(items: Sequence[Item]) -> dict[str, int]:
    """How many texts have so many words: "1-5", "6-10" ... "51+"."""
    counts = [0] * (len(BINS) + 1)
    for item in items:
        for text in item.texts:
            words = len(text.split())
            counts[sum(words > last for last in BINS)] += 1
    starts = (1, *(last + 1 for last in BINS))
    names = [f"{s}-{e}" for s, e in zip(starts, BINS, strict=False)] + [f"{starts[-1]}+"]
    return dict(zip(names, counts, strict=True))


def word_counts(texts: Sequence[str]) -> list[int]:
    """Words of each text; tokens are as many at least."""
    return [len(text.split()) for text in texts]


def shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Counts as shares of their sum."""
    total = sum(counts.values()) or 1
    return {name: count / total for name, count in counts.items()}


def _name(contents: Contents, item: Item) -> str:
    return "" if item.picture is None else contents.pictures[item.picture].name


def _of(contents: Contents, item: Item, kind: str, split: str, text: str, detail: str) -> Finding:
    name = _name(contents, item)
    return Finding(kind, split, item.origin, detail, name, text, item.picture)
