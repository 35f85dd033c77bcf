"""Text from anywhere, shown as text in Markdown, and the tables and lists of a card."""

import re
from collections.abc import Sequence
from pathlib import PurePath

HUB = "https://huggingface.co"
LONGEST = 200  # characters of a caption or an answer
# What Markdown, HTML and the templates of sites read as more than a character: anywhere, and where
# a line begins.
SPECIAL = re.compile(r"[\\`*_{}\[\]#|~$:@]|^[-+=]")
# They turn the text around them.
BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")


def plain(text: object, longest: int = LONGEST) -> str:
    """Any text as one line that a reader sees as it was, cut where it is too long."""
    line = " ".join(BIDI.sub("", str(text)).split())
    line = "".join(c for c in line if c.isprintable() or c == " ")
    if len(line) > longest:
        line = line[: longest - 1] + "…"
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # a letter's number, as braces escaped by a backslash are still a template's
    line = SPECIAL.sub(lambda found: f"&#{ord(found[0])};", line)
    return re.sub(r"^(\d+)\.(?= |$)", r"\1&#46;", line) or "(nothing)"


def code(text: str) -> str:
    """Any text as a word of code, on one line."""
    line = " ".join(text.split())
    longest = max((len(ticks) for ticks in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; a line break or a pipe in them can't break it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def bullets(lines: Sequence[str]) -> str:
    """A list of lines that are Markdown already."""
    return "\n".join(f"- {line}" for line in lines)


def block(language: str, text: str) -> str:
    """Code that is ours, or settings, between fences longer than any of its own."""
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def shown_source(source: str) -> str:
    """A source of data or a model's name without where it lies on the machine that it was used on.

    A hub id, an address or a path below the working folder stays; of another path the last name.
    """
    outside = PurePath(source).is_absolute() or source.startswith(("~", ".."))
    outside = outside or re.match(r"[A-Za-z]:[\\/]|\\\\", source) is not None
    return re.split(r"[\\/]", source.rstrip("\\/"))[-1] if outside else source


def own_words(text: str) -> str:
    """A person's own Markdown: links and emphasis stay, HTML is shown as text."""
    return re.sub(r"<(?!https?://[^\s<>]+>|[\w.+-]+@[\w.-]+>)", "&lt;", text)


def hub_link(repo: str, revision: str | None = None) -> str:
    """A model on the hub, at its commit where that is known."""
    at = f"/tree/{revision}" if revision else ""
    return f"[{plain(repo)}]({HUB}/{repo}{at})"


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split())) or " "
