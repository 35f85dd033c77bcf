"""A report as lines for a terminal."""

from collections.abc import Iterator, Mapping, Sequence

from blip2ft.audit.audit import Report
from blip2ft.audit.findings import SEVERITIES, Finding, grouped, shorten
from blip2ft.audit.languages import MISSING
from blip2ft.audit.summary import SplitSummary
from blip2ft.counted import counted

SHOWN = 3  # places of each kind
WIDTH = 60  # characters of a text, or of a reason


def as_text(report: Report) -> str:
    """What was looked at, what was found, and how texts and images are spread."""
    lines = [*split_lines(report), ""]
    for title, found in grouped(report.findings):
        lines += group_lines(title, found)
    lines += [*spread_lines(report), "", counts_line(report)]
    return "\n".join(lines)


def split_lines(report: Report) -> Iterator[str]:
    """A line for each split."""
    width = max([len(split.name) for split in report.splits], default=0)
    for split in report.splits:
        yield (
            f"{printable(split.name):<{width}}  {counted(split.images, 'image'):>16}  "
            f"{said(split, report.task)}"
        )


def said(split: SplitSummary, task: str) -> str:
    """How many texts a split has, and how long they are."""
    if not split.texts:
        return "no texts"
    what = "question" if task == "vqa" else "caption"
    return f"{counted(split.texts, what)} (median {counted(round(split.words), 'word')})"


def group_lines(title: str, found: Sequence[Finding]) -> Iterator[str]:
    """A kind of finding with its number, the first places, and what to do."""
    yield f"{found[0].severity:<8}{len(found):>7,}  {title}"
    for finding in found[:SHOWN]:
        yield f"{'':17}{place_line(finding)}"
    if len(found) > SHOWN:
        yield f"{'':17}and {len(found) - SHOWN:,} more"
    yield f"{'':17}{found[0].remedy}"


def place_line(finding: Finding) -> str:
    """Where one finding is, and what is particular to it."""
    words = [finding.origin]
    if finding.image not in ("", finding.origin):
        words.append(finding.image)
    if finding.text:
        words.append(f'"{shorten(finding.text, WIDTH)}"')
    if finding.detail:
        words.append(f"({shorten(finding.detail, 2 * WIDTH)})")
    return printable("  ".join(words))


def spread_lines(report: Report) -> Iterator[str]:
    """How long texts are, in which languages, what answers are given, and how large images are."""
    for split in report.splits:
        if split.texts:
            yield ""
            yield f"{printable(split.name)}: words of a text  {portions(split.lengths)}"
            if split.languages:
                yield f"{'':4}languages  {portions(split.languages, most=6)}"
        if split.answers.get("commonest"):
            total = split.answers["questions"]
            listed = portions(split.answers["commonest"], most=6, total=total)
            yield f"{'':4}{counted(split.answers['different'], 'answer')}  {listed}"
    if any(report.sizes.values()):
        yield ""
        yield f"shorter side of an image, in pixels  {portions(report.sizes)}"
    if any(split.texts and split.languages is None for split in report.splits):
        yield MISSING


def portions(counts: Mapping[str, int], most: int | None = None, total: int | None = None) -> str:
    """Counts that aren't 0 as shares: "1-5: 12 %, 6-10: 88 %"."""
    total = total or sum(counts.values()) or 1
    listed = [(name, count) for name, count in counts.items() if count]
    told = [f"{printable(name)} {share(count, total)}" for name, count in listed[:most]]
    return ", ".join(told) + (" ..." if most is not None and len(listed) > most else "")


def share(count: int, total: int) -> str:
    """A share in per cent, never rounded to nothing."""
    percent = 100 * count / total
    return f"{percent:.0f} %" if percent >= 1 else "< 1 %"


def counts_line(report: Report) -> str:
    """How many findings of each severity there are."""
    counts = [counted(report.count(severity), severity) for severity in SEVERITIES]
    return f"{', '.join(counts)}; {counted(report.pictures, 'image')} in {report.seconds:.1f} s"


def printable(text: str) -> str:
    """A text without what would steer a terminal, or turn the direction of what follows."""
    return "".join(c if c.isprintable() else "?" for c in text)
