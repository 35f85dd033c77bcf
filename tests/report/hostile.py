"""A run whose texts try to be more than text."""

import json
from pathlib import Path

from blip2ft.training.run import read_lines

TEXTS = (
    '<script>document.title = "owned"</script>',
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(2)</script>",
    "' onload='alert(3)",
    "{{ 7 * 7 }} <!-- &lt;b&gt;",
    "word " * 2000 + "the end",
    "x" * 10_000,
    "\u202eemordnilap \u2066",
    "bell\x07, nothing\x00, escape\x1b[31m",
    "\u05e9\u05dc\u05d5\u05dd",
    "  ",
    "\ud800 is half a character",
)


def make_hostile(run: Path, more: int = 90) -> Path:
    """Put `TEXTS` wherever a run has texts of someone else's, with so many further samples."""
    for path in (run / "predictions").glob("test-*.jsonl"):
        rows = read_lines(path)
        for i, row in enumerate(rows):
            if path.stem.endswith("40"):
                row["caption"] = TEXTS[i]
            row["references"] = [TEXTS[i - 1], *row["references"]]
        rows += [rows[i % 12] | {"image_id": f"{i} {TEXTS[i % 12]}"} for i in range(more)]
        # escaped: a file in UTF-8 holds no half of a character
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run
