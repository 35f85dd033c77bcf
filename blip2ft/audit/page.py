"""A report as a page: one HTML file that needs no other, no network and no script."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from blip2ft.audit.audit import Report
from blip2ft.audit.findings import SEVERITIES, Finding, grouped
from blip2ft.audit.kept import FINDINGS, writing
from blip2ft.audit.languages import MISSING
from blip2ft.audit.summary import SplitSummary
from blip2ft.audit.table import printable, said, share
from blip2ft.counted import counted
from blip2ft.pages import COLOURS, thumbnail
from blip2ft.whole import write_text

PICTURED = 8  # findings of each kind with a picture
LISTED = 100  # and without
SIDE = 320  # pixels of a picture's longer side: sharp at 160 on dense screens
BARS = 12  # of a histogram
FOR = {"caption": "captioning", "retrieval": "retrieval", "vqa": "questions and answers"}
STYLE = """\
:root { --error: #b3261e; --warning: #8a5300; --note: #35608f; --bar: #8fb0cf; }
@media (prefers-color-scheme: dark) { :root { --error: #ff8a80; --warning: #ffb95c;
  --note: #9cc4ee; --bar: #41617f; } }
body { margin: 0 auto; max-width: 1100px; padding: 2rem clamp(1rem, 4vw, 3rem) 3rem;
  background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .3rem; font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 2.2rem 0 .8rem; font-size: 1.2rem; }
h3 { margin: 0; font-size: 1rem; line-height: 1.35; }
p { margin: .3rem 0 0; color: var(--quiet); overflow-wrap: anywhere; }
.counts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1.2rem 0 0; padding: 0;
  list-style: none; }
.counts li { padding: .3rem .9rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 2rem; color: var(--quiet); }
.counts b { font-size: 1.1rem; font-variant-numeric: tabular-nums; }
.error b, .error .how { color: var(--error); } .warning b, .warning .how { color: var(--warning); }
.note b, .note .how { color: var(--note); } .none b { color: var(--quiet); }
section, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1rem 1.1rem; margin: 0 0 1rem; }
section { border-left-width: 4px; }
section.error { border-left-color: var(--error); }
section.warning { border-left-color: var(--warning); }
section.note { border-left-color: var(--note); }
.head { display: flex; gap: .7rem; align-items: baseline; justify-content: space-between; }
.how { white-space: nowrap; font-size: .85rem; }
.pictures { display: grid; gap: .8rem; margin: .9rem 0 0; padding: 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(min(150px, 100%), 1fr)); }
.pictures.two { grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); }
figure { margin: 0; overflow: hidden; border: 1px solid var(--line); border-radius: 8px; }
.pair { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: 1px;
  background: var(--line); }
.pair img { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: contain;
  background: var(--mat); }
figcaption { padding: .5rem .7rem .6rem; font-size: .85rem; overflow-wrap: anywhere; }
.where { display: block; color: var(--quiet); } .text { display: block; }
h3::first-letter { text-transform: uppercase; }
.pictures.said { grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); }
.said figure { display: grid; grid-template-columns: 7rem 1fr; height: 100%; }
.said .pair { background: var(--mat); align-items: center; }
ul.list { margin: .8rem 0 0; padding: 0; list-style: none; font-size: .88rem; }
ul.list li { padding: .4rem 0; border-top: 1px solid var(--line); overflow-wrap: anywhere; }
details { margin-top: .8rem; } summary { cursor: pointer; color: var(--quiet); }
summary:focus-visible { outline: 3px solid Highlight; outline-offset: 2px; }
.grid { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr)); }
.card { margin: 0; }
dl { display: grid; grid-template-columns: max-content 1fr max-content; gap: .25rem .7rem;
  margin: .7rem 0 0; font-size: .88rem; align-items: center; }
dt { max-width: 9rem; overflow-wrap: anywhere; } dd { margin: 0; color: var(--quiet);
  font-variant-numeric: tabular-nums; text-align: right; }
dd.bar { height: .75rem; } dd.bar i { display: block; height: 100%; min-width: 2px;
  border-radius: 3px; background: var(--bar); }
@media print { body { padding: 0; } section { break-inside: avoid; } }
"""


def write_page(file: Path, report: Report) -> None:
    """Write the report with thumbnails of what was found first, in the place of an earlier one."""
    names = ", ".join(Path(s).name or s for sources in report.data.values() for s in sources)
    counts = "".join(_count(report, severity) for severity in SEVERITIES)
    groups = "\n".join(_group(title, found, report) for title, found in grouped(report.findings))
    looked = f"{counted(report.pictures, 'image')}, looked over for {FOR[report.task]}"
    found = f"<h2>What was found</h2>\n{groups}" if groups else "<h2>Nothing was found</h2>"
    missing = any(split.texts and split.languages is None for split in report.splits)
    hint = f"<p>{escape(MISSING)}</p>" if missing else ""
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Check of {_safe(names)}</title>
<style>{COLOURS}{STYLE}</style>
</head>
<body>
<header>
<h1 dir="auto">{_safe(names)}</h1>
<p>{escape(looked)}</p>
<ul class="counts">{counts}</ul>
</header>
<main>
{found}
<h2>What is there</h2>
<div class="grid">
{"".join(_split(split, report) for split in report.splits)}
{_card("Images", "Shorter side, in pixels", [_bars(report.sizes)])}
</div>
{hint}
</main>
</body>
</html>
"""
    with writing(file):
        write_text(file, page)


def _count(report: Report, severity: str) -> str:
    number = report.count(severity)
    kind = severity if number else "none"
    noun = counted(number, severity).partition(" ")[2]
    return f'<li class="{kind}"><b>{number:,}</b> {noun}</li>'


def _split(split: SplitSummary, report: Report) -> str:
    about = f"{counted(split.images, 'image')}, {said(split, report.task)}"
    parts = []
    if split.texts:
        parts.append(f"<p>Words of a text</p>{_bars(split.lengths)}")
    if split.languages:
        parts.append(f"<p>Languages</p>{_bars(split.languages)}")
    if split.answers.get("commonest"):
        about += f", {counted(split.answers['different'], 'different answer')}"
        parts.append("<p>Commonest answers</p>")
        parts.append(_bars(split.answers["commonest"], split.answers["questions"]))
    return _card(split.name, about, parts)


def _card(title: str, about: str, parts: Sequence[str]) -> str:
    return (
        f'<div class="card"><h3 dir="auto">{_safe(title)}</h3>'
        f"<p>{escape(about)}</p>{''.join(parts)}</div>\n"
    )


def _bars(counts: Mapping[str, int], total: int | None = None) -> str:
    """A histogram; each bar's share is of `total`, its length of the longest."""
    shown = list(counts.items())[:BARS]
    most = max((count for _, count in shown), default=0)
    if not most:
        return ""
    total = total or sum(counts.values())
    rows = "".join(
        f'<dt dir="auto">{_safe(name)}</dt>'
        f'<dd class="bar">{_bar(count / most) if count else ""}</dd>'
        f'<dd title="{count:,}">{share(count, total) if count else "0"}</dd>'
        for name, count in shown
    )
    return f"<dl>{rows}</dl>"


def _bar(length: float) -> str:
    return f'<i style="width:{length:.1%}"></i>'


def _group(title: str, found: Sequence[Finding], report: Report) -> str:
    """One kind of finding: the first with pictures, where there are any, and the others."""
    severity = found[0].severity
    cards = list(_figures(found, report))
    rest = found[len(cards) :] if cards else found
    listed = "".join(f"<li>{_words(finding)}</li>" for finding in rest[:LISTED])
    if len(rest) > LISTED:
        listed += f"<li>and {len(rest) - LISTED:,} more in {FINDINGS}</li>"
    shape = " two" if found[0].other is not None else " said" if found[0].text else ""
    pictures = f'<ul class="pictures{shape}">{"".join(cards)}</ul>' if cards else ""
    body = f'<ul class="list">{listed}</ul>'
    if cards or len(rest) > PICTURED:
        which = f"{len(rest):,} {'more' if cards else 'of them'}"
        body = f"<details><summary>{which}</summary>{body}</details>"
    return (
        f'<section class="{severity}"><div class="head"><h3>{_safe(title)}</h3>'
        f'<span class="how">{counted(len(found), severity)}</span></div>'
        f"<p>{escape(found[0].remedy)}</p>{pictures}{body if rest else ''}</section>"
    )


def _figures(found: Sequence[Finding], report: Report) -> Iterator[str]:
    for finding in found[:PICTURED]:
        numbers = [n for n in (finding.picture, finding.other) if n is not None]
        # what killed a process that opened it would kill this one
        if not numbers or not report.broken.isdisjoint(numbers):
            return
        try:
            sources = [thumbnail(report.contents.pictures[n].image, SIDE) for n in numbers]
        except (ValueError, OSError):  # it went after it was looked at
            return
        images = "".join(f'<img src="{source}" alt="">' for source in sources)
        yield (
            f'<li><figure><div class="pair">{images}</div>'
            f"<figcaption>{_words(finding)}</figcaption></figure></li>"
        )


def _words(finding: Finding) -> str:
    text = f'<bdi class="text">{_safe(finding.text)}</bdi>' if finding.text else ""
    image = finding.image if finding.image != finding.origin else ""
    told = ": ".join(f"<bdi>{_safe(part)}</bdi>" for part in (image, finding.detail) if part)
    return f'{text}{told} <bdi class="where">{_safe(finding.origin)}</bdi>'


def _safe(text: str) -> str:
    """A text of someone else's as nothing but text."""
    return escape(printable(text))
