"""A card as a file, which is replaced while nobody has changed it."""

import hashlib
import re
from pathlib import Path

from blip2ft.whole import check_writable, write_text

MARK = re.compile(r"\n<!-- blip2ft card ([0-9a-f]{16}) -->\n$")


def write_card(out: Path, text: str) -> None:
    """Write a card, in place of an earlier one that is as it was written.

    Raises ValueError where `out` can't be written, and for any other file there.
    """
    check_replaceable(out)
    write_text(out, f"{text}\n<!-- blip2ft card {_digest(text)} -->\n")


def write_new(out: Path, text: str) -> None:
    """Write a file that isn't there yet. Raises ValueError where one is, or it can't be written."""
    if out.exists():
        raise ValueError(f"{out} is there already and isn't overwritten; choose another --out")
    check_writable(out.parent)
    write_text(out, text)


def check_replaceable(out: Path) -> None:
    """Raise ValueError where a card can't be written to `out`."""
    if out.is_dir():
        raise ValueError(f"{out} is a folder; name a file, such as --out {out / 'README.md'}")
    check_writable(out.parent)
    if not out.exists():
        return
    text = out.read_text(encoding="utf-8", errors="replace")
    mark = MARK.search(text)
    if mark is None:
        raise ValueError(
            f"{out} is no card of blip2ft card and isn't overwritten; choose another with --out"
        )
    if mark[1] != _digest(text[: mark.start()]):
        raise ValueError(
            f"{out} was changed since blip2ft card wrote it, and isn't overwritten; move it away, "
            "or choose another with --out"
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
