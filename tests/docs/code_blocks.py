"""The code of the docs' pages, as a reader copies it."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# what a page says of a block that can't run here, in a comment before it
MARK = re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and text, the line where it begins, and why it isn't run."""

    language: str
    text: str
    line: int
    not_run: str | None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order; ValueError for a fence that isn't closed."""
    found: list[Block] = []
    fence, language, start, inside, mark = "", "", 0, [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").split("\n"), 1):
        opened = re.match(r"\s*(```+)(\w*)", line)
        if not fence and opened:
            fence, language, start, inside = opened[1], opened[2], number, []
        elif fence and line.strip() == fence:
            found.append(Block(language, "\n".join(inside), start, mark))
            fence, mark = "", None
        elif fence:
            inside.append(line)
        elif said := MARK.fullmatch(line.strip()):
            mark = said[1]
        elif line.strip():
            mark = None
    if fence:
        raise ValueError(f"{page}:{start}: the block isn't closed; add {fence}")
    return found


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block, as words; comments and line breaks behind \\ are gone."""
    found = []
    for line in text.replace("\\\n", " ").split("\n"):
        words = shlex.split(line, comments=True)
        while "&&" in words:
            found.append(words[: words.index("&&")])
            words = words[words.index("&&") + 1 :]
        if words:
            found.append(words)
    return found
