"""The templates in page/, filled: all that they get is escaped, but for drawings of ours."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from blip2ft.pages import COLOURS, readable
from blip2ft.report.curves import score

PAGE = Path(__file__).parent / "page"
LONG = 240  # characters of a text that are shown at once
LONGEST = 12_000  # and of one that is shown at all


def fill(template: str, **values: Any) -> str:
    """A whole page. Scripts but our own don't run in it, wherever they come from."""
    jinja = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters |= {"readable": readable, "score": score, "fold": fold}
    script = (PAGE / "search.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return jinja.get_template(template).render(
        style=Markup(COLOURS + (PAGE / "style.css").read_text(encoding="utf-8")),  # ours
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        **values,
    )


def fold(text: str) -> tuple[str, str, int]:
    """A text's beginning, the rest of what is shown of it, and how many characters aren't."""
    text = readable(text)
    if len(text) <= LONG:
        return text, "", 0
    cut = text.rfind(" ", LONG // 2, LONG) + 1 or LONG
    return text[:cut], text[cut:LONGEST], max(0, len(text) - LONGEST)
