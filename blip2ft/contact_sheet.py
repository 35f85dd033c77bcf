"""A page of found photos: one HTML file that needs no other, no network and no script."""

import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from blip2ft.pages import COLOURS, thumbnail
from blip2ft.photos.files import shown
from blip2ft.photos.search import Match

STYLE = """\
body { margin: 0 auto; max-width: 1600px; padding: 2rem clamp(1rem, 4vw, 3rem) 3rem;
  background: var(--page); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
header { display: flex; gap: 1.25rem; align-items: center; margin-bottom: 1.75rem; }
header img { max-width: 10rem; max-height: 10rem; border-radius: 8px; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
p { margin: .3rem 0 0; color: var(--quiet); }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(170px, 100%), 1fr));
  gap: 1rem; margin: 0; padding: 0; list-style: none; }
figure { margin: 0; height: 100%; overflow: hidden; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; }
figure a, .lost { display: flex; align-items: center; justify-content: center;
  aspect-ratio: 4 / 3; background: var(--mat); color: var(--quiet); }
figure a:focus-visible { outline: 3px solid Highlight; outline-offset: -3px; }
figure img { width: 100%; height: 100%; object-fit: contain; }
figcaption { display: grid; grid-template-columns: auto 1fr; gap: 0 .6rem; padding: .6rem .8rem; }
.score { text-align: right; color: var(--quiet); font-variant-numeric: tabular-nums; }
.name { grid-column: 1 / -1; overflow-wrap: anywhere; font-size: .85rem; color: var(--quiet); }
@media print { body { padding: 0; } li { break-inside: avoid; } }
"""


def write_contact_sheet(
    file: str | Path,
    matches: Sequence[Match],
    *,
    query: str | None = None,
    image: str | Path | None = None,
    note: str = "",
) -> None:
    """Write the photos found for a query, or like an image, with rank, score and name.

    Thumbnails are inside the page and link to the photos. note: a line below the title.

    Raises ValueError where `file` exists; it is never overwritten.
    """
    file = Path(file)
    title = query if query is not None else f"photos like {shown(Path(str(image)).name)}"
    page = _page(shown(title), note, matches, image)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(page)
    except FileExistsError as error:
        raise _in_use(file) from error


def fresh_file(folder: str | Path, query: str) -> Path:
    """A name for a page that isn't in use: a-red-flag.html, a-red-flag-2.html ..."""
    words = "-".join(re.findall(r"\w+", query.lower()))
    # file systems allow 255 bytes, of which a letter may take four
    stem = words.encode()[:100].decode(errors="ignore").strip("-") or "search"
    number, file = 1, Path(folder) / f"{stem}.html"
    while file.exists():
        number += 1
        file = Path(folder) / f"{stem}-{number}.html"
    return file


def check_new(file: Path) -> None:
    """Raise ValueError where `file` exists."""
    if file.exists():
        raise _in_use(file)


def _in_use(file: Path) -> ValueError:
    return ValueError(f"{file} exists and is not overwritten; choose another --html")


def _page(title: str, note: str, matches: Sequence[Match], image: str | Path | None) -> str:
    like = f'<img src="{thumbnail(image)}" alt="">\n' if image is not None else ""
    items = "\n".join(_item(rank, match) for rank, match in enumerate(matches, start=1))
    below = f"<p>{escape(note)}</p>\n" if note else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{COLOURS}{STYLE}</style>
</head>
<body>
<header>
{like}<div>
<h1 dir="auto">{escape(title)}</h1>
{below}</div>
</header>
<main>
<ol>
{items}
</ol>
</main>
</body>
</html>
"""


def _item(rank: int, match: Match) -> str:
    path = escape(shown(match.path))
    name = escape(shown(os.path.basename(match.path)))
    try:
        source = thumbnail(match.path)
        address = escape(Path(match.path).absolute().as_uri())
        picture = f'<a href="{address}"><img src="{source}" alt="{name}" loading="lazy"></a>'
    except ValueError:  # it went after it was found
        picture = '<div class="lost">not readable</div>'
    return (
        f"<li><figure>{picture}\n"
        f'<figcaption><b>{rank}</b><span class="score">{match.score:.3f}</span>'
        f'<span class="name" title="{path}" dir="auto">{name}</span></figcaption></figure></li>'
    )
